"""The paper's experiments: its numbers, the settings of a row, runs that are made once."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from dcase.data.md17 import load_md17
from dcase.errors import DcaseError, DivergedError, OptionError
from dcase.potentials.experiments import curves, runs, tables
from dcase.potentials.experiments.protocol import MODELS, SETTINGS, TABLES, Protocol
from dcase.potentials.experiments.published import MOLECULES, published, schnet_literature
from dcase.potentials.experiments.runs import Frames, perform, plan, trivial_errors
from dcase.units import KCAL_PER_MOL

pytestmark = pytest.mark.pictures

TINY = Protocol(size="tiny", train=24, epochs=2)


@pytest.fixture(scope="module")
def ethanol():
    dataset = load_md17("ethanol", "xtb")
    return Frames("ethanol", dataset.subset(np.arange(60)), dataset.subset(np.arange(60, 80)))


# ------------------------------------------------------------------------------------------------
# The paper's numbers


def test_published_energies_add_up_to_the_papers_own_count():
    # Section 5.1.1: "our methods also improve the energy loss (38 out of 40 cases)".
    won = sum(
        published(m, "ours", s)[0] < published(m, "original", s)[0]
        for m in MODELS
        for s in MOLECULES
    )
    assert won == 38


def test_published_tables_are_complete_and_nan_is_nan():
    for name, (models, settings) in TABLES.items():
        systems = ("oc22",) if name == "table2" else MOLECULES
        for model in models:
            for setting in settings:
                for system in systems:
                    assert len(published(model, setting, system)) == 2
    diverged = [s for s in MOLECULES if math.isnan(published("gemnet-t", "irelu", s)[0])]
    assert diverged == ["benzene", "malonaldehyde", "naphthalene", "salicylic"]
    assert published("schnet", "offset", "aspirin") is None
    assert published("schnet", "original", "azobenzene") is None
    # The literature's SchNet is better than the paper's in every molecule: worth a note.
    for system in MOLECULES:
        energy, forces = published("schnet", "original", system)
        assert schnet_literature(system)[0] < energy
        assert schnet_literature(system)[1] < forces


# ------------------------------------------------------------------------------------------------
# What a row means


@pytest.mark.parametrize(
    ("setting", "activation", "denormalize", "rescale", "offset"),
    [
        ("original", "original", False, "none", "none"),
        ("ours", "irelu", True, 1e6, "none"),
        ("irelu", "irelu", False, "none", "none"),
        ("rescaled", "original", True, 1e6, "none"),
        ("offset", "original", False, "none", "atomic"),
    ],
)
def test_rows_are_combinations_of_switches(setting, activation, denormalize, rescale, offset):
    recipe = Protocol().recipe_of("cgcnn", SETTINGS[setting], 50_000)
    assert recipe.model.activation == activation
    assert recipe.model.denormalize is denormalize
    assert (recipe.labels.rescale, recipe.labels.offset) == (rescale, offset)
    assert (recipe.model.variant, recipe.model.size) == ("paper", "paper")
    assert (recipe.training.epochs, recipe.training.lr, recipe.training.batch_size) == (
        50,
        1e-4,
        20,
    )
    assert (recipe.loss.energy_weight, recipe.loss.forces_weight) == (1.0, 30.0)


def test_a_time_limit_may_make_as_many_steps_as_the_paper():
    limited = Protocol(time_limit=60.0).recipe_of("schnet", SETTINGS["original"], 1000)
    assert limited.training.epochs * 1000 == 50 * 50_000
    assert Protocol().recipe_of("schnet", SETTINGS["original"], 1000).training.epochs == 50
    chosen = Protocol(time_limit=60.0, epochs=7)
    assert chosen.recipe_of("schnet", SETTINGS["original"], 1000).training.epochs == 7


def test_table_2_has_settings_of_its_own():
    def training(model, **protocol):
        return Protocol(**protocol).recipe_of(model, SETTINGS["ours"], 10, oc22=True).training

    assert [training(m).batch_size for m in TABLES["table2"][0]] == [20, 20, 10, 10]
    assert [training(m).lr for m in TABLES["table2"][0]] == [1e-4, 1e-4, 1e-4, 1e-5]
    assert training("forcenet", lr=1e-3, batch_size=5).lr == 1e-3
    assert training("schnet", time_limit=9.0).epochs * 10 == 50 * 200_000
    labels = Protocol().recipe_of("cgcnn", SETTINGS["ours"], 10, oc22=True).labels
    assert labels.rescale == 1e4
    # With the default recipe its own values stand.
    assert (
        training("forcenet", recipe="default").lr
        == Protocol(recipe="default").recipe_of("forcenet", SETTINGS["ours"], 10).training.lr
    )


@pytest.mark.parametrize(
    ("n_frames", "own_test", "train", "expected"),
    [
        (200_000, False, None, (50_000, 6_250, 6_250)),
        (1000, False, None, (800, 100, 100)),
        (1000, True, None, (900, 100, 0)),
        (1000, True, 950, (950, 50, 0)),
        (200_000, False, 100_000, (100_000, 6_250, 6_250)),
    ],
)
def test_splits_are_the_papers_or_its_shares(n_frames, own_test, train, expected):
    s = Protocol(train=train).split(n_frames, own_test=own_test)
    assert (len(s.train), len(s.val), len(s.test)) == expected


def test_a_split_without_room_is_refused():
    with pytest.raises(OptionError, match="use --train with a smaller number"):
        Protocol(train=1000).split(1000, own_test=True)
    with pytest.raises(OptionError, match="none to test"):
        Protocol(train=999).split(1000, own_test=False)


# ------------------------------------------------------------------------------------------------
# Runs


def test_a_run_is_made_once_and_its_folder_tells_protocols_apart(ethanol, tmp_path, monkeypatch):
    run = plan(TINY, ethanol, "schnet", SETTINGS["ours"])
    result = perform(run, tmp_path)
    assert result["status"] == "finished"
    assert result["epochs"] == 2
    assert result["label_constant_eV"] == pytest.approx(1e6 * KCAL_PER_MOL)
    with np.load(tmp_path / "runs" / run.name / "split.npz") as saved:
        assert np.array_equal(saved["train"], run.splits.train)

    def refuse(*args, **kwargs):
        raise AssertionError("trained twice")

    monkeypatch.setattr(runs, "fit_potential", refuse)
    assert perform(plan(TINY, ethanol, "schnet", SETTINGS["ours"]), tmp_path) == result
    others = [
        plan(TINY, ethanol, "schnet", SETTINGS["original"]),
        plan(Protocol(size="tiny", train=24, epochs=3), ethanol, "schnet", SETTINGS["ours"]),
        plan(TINY, Frames("ethanol", ethanol.dataset), "schnet", SETTINGS["ours"]),
        plan(TINY, ethanol, "schnet", SETTINGS["ours"], forces_weight=7.0),
    ]
    assert len({o.name for o in [run, *others]}) == 5
    with pytest.raises(AssertionError, match="trained twice"):
        perform(others[0], tmp_path)


def test_divergence_is_a_result(ethanol, tmp_path, monkeypatch):
    def diverge(*args, **kwargs):
        raise DivergedError("the forces became NaN")

    monkeypatch.setattr(runs, "fit_potential", diverge)
    run = plan(TINY, ethanol, "schnet", SETTINGS["irelu"])
    result = perform(run, tmp_path)
    monkeypatch.undo()
    assert perform(run, tmp_path) == result  # kept, not tried again
    assert result["status"] == "NaN"
    assert result["n_test"] == 20  # the caption counts it like any other
    rows = tables.table_rows([result], {"ethanol": trivial_errors(run)})
    assert math.isnan(rows[1]["energy_mae"])
    assert "| NaN | 0.840 | NaN | 1.430 |" in tables.markdown(rows, "", [])


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_happened(
    ethanol, tmp_path, monkeypatch
):
    run = plan(TINY, ethanol, "schnet", SETTINGS["original"])
    straight = perform(run, tmp_path / "a")
    seen = []

    def stop(potential, trainer):
        seen.append(trainer)

    def press(progress):
        if progress.step == 2:
            seen[-1]._stop.set()  # as Ctrl-C does

    assert perform(run, tmp_path / "b", on_start=stop, on_step=press) is None
    resumed = perform(run, tmp_path / "b")
    assert resumed["metrics"] == straight["metrics"]


def test_trivial_errors_are_those_of_the_mean(ethanol):
    run = plan(TINY, ethanol, "schnet", SETTINGS["ours"])
    train = ethanol.dataset.subset(run.splits.train)
    expected = np.abs(ethanol.test.energies - train.energies.mean()).mean() / KCAL_PER_MOL
    errors = trivial_errors(run)
    assert errors["energy"] == pytest.approx(expected, rel=1e-9)
    assert errors["forces"] == pytest.approx(np.abs(ethanol.test.forces).mean() / KCAL_PER_MOL)


# ------------------------------------------------------------------------------------------------
# Tables


def _result(setting, energy, forces, model="schnet", status="finished", **more):
    return {
        "system": "aspirin", "model": model, "setting": setting, "label": "", "status": status,
        "epochs": 1, "steps": 2, "seconds": 60.0,
        "metrics": {"energy_mae_kcal_mol": energy, "forces_mae_kcal_mol_angstrom": forces,
                    "efwt": 0.25},
        **more,
    }  # fmt: skip


def test_verdicts_count_here_and_in_the_paper():
    results = [_result("original", 2.0, 1.0), _result("ours", 1.0, 3.0)]
    energy, force = tables.verdicts(results, "original", "ours")
    assert "in 1 of 1; in the paper, in 1 of 1" in energy  # 53.00 -> 28.31
    assert "in 0 of 1; in the paper, in 0 of 1" in force  # 1.21 -> 1.67
    assert tables.verdicts(results[:1], "original", "ours") == []


def test_tables_are_written_beside_the_papers_figures(tmp_path):
    rows = tables.table_rows(
        [_result("original", 2.0, 1.0)], {"aspirin": {"energy": 4.7, "forces": 20.0}}
    )
    tables.write_table(tmp_path, "table1", rows, tables.markdown(rows, "Caption.", ["A note."]))
    text = (tmp_path / "table1.md").read_text()
    assert (
        "| aspirin | schnet | original | 2.000 | 53.00 | 1.000 | 1.210 | 25.00 | 1 | 1.0 |" in text
    )
    assert "mean energy, zero forces | 4.700 |" in text
    with open(tmp_path / "table1.csv", newline="") as file:
        trivial, own = csv.DictReader(file)
    assert float(own["energy_mae_paper"]) == 53.0
    assert trivial["energy_mae_paper"] == ""


def test_figure_2_draws_a_line_for_each_setting(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves.plotting, "save", lambda figure, path: drawn.append(figure))
    results = [
        _result(setting, energy, energy, n_train=n)
        for setting, energy in (("ours", 2.0), ("offset", 1.0))
        for n in (20, 10)
    ]
    results.append(_result("ours", 0.0, 0.0, n_train=30, status="NaN") | {"metrics": {}})
    curves.figure2(results, tmp_path / "x.png")
    (figure,) = drawn
    for ax in figure.axes:
        shown = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
        assert shown == {"ours": [[10, 2], [20, 2]], "offset": [[10, 1], [20, 1]]}


def test_the_caption_says_what_is_not_the_papers_protocol(ethanol):
    limited = Protocol(size="tiny", train=24, time_limit=30.0)
    run = plan(limited, ethanol, "schnet", SETTINGS["ours"])
    result = _result("ours", 1.0, 1.0, recipe=run.recipe.to_dict(), n_train=24, n_val=3,
                     n_test=20, level_of_theory="GFN2-xTB")  # fmt: skip
    text = tables.caption("Title", limited, [result], unit="kcal/mol")
    parts = ("Not the paper's protocol", "fewer training frames", "size tiny",
             "at most 0.5 minutes", "1 L1(E) + 30 L1(F)", "24 / 3 / 20 frames",
             "GFN2-xTB")  # fmt: skip
    assert [part for part in parts if part not in text] == []
    whole = plan(Protocol(), Frames("ethanol", ethanol.dataset), "schnet", SETTINGS["ours"])
    letter = {**result, "recipe": whole.recipe.to_dict(), "n_train": 50_000}
    assert "Not the paper's" not in tables.caption("T", Protocol(), [letter], unit="kcal/mol")
    more = {**letter, "n_train": 100_000}
    assert "more training frames than" in tables.caption("T", Protocol(), [more], unit="kcal/mol")
    # The paper divides by 1e6 whatever the molecule; its rule gives less for small ones.
    small = {**letter, "label_constant_eV": 1e5 * KCAL_PER_MOL}
    text = tables.caption("T", Protocol(), [small], unit="kcal/mol")
    assert "labels divided by 1e+05 instead of 1e+06" in text
    same = {**letter, "label_constant_eV": 1e6 * KCAL_PER_MOL}
    assert "Not the paper's" not in tables.caption("T", Protocol(), [same], unit="kcal/mol")


def test_the_caption_speaks_for_all_runs_and_not_for_the_first(ethanol):
    def result(model, beta=None, label="", oc22=False):
        recipe = Protocol().recipe_of(model, SETTINGS["ours"], 24, forces_weight=beta, oc22=oc22)
        return _result("ours", 1.0, 1.0, model=model, recipe=recipe.to_dict(), n_train=24, n_val=3,
                       level_of_theory="x", label=label, device="cuda:0")  # fmt: skip

    table2 = [{**result(m, oc22=True), "system": "oc22"} for m in ("forcenet", "schnet")]
    text = tables.caption("T", Protocol(), table2, unit="eV")
    assert "adam 1e-05 (forcenet) / 0.0001 (schnet)" in text
    assert "batch 10 (forcenet) / 20 (schnet)" in text
    figure1 = [result("schnet", beta, f"beta={beta:g}") for beta in (0.01, 200.0)]
    text = tables.caption("T", Protocol(), figure1, unit="kcal/mol")
    assert "1 L1(E) + beta L1(F)" in text
    assert "fewer training frames than the paper's 50,000" in text
    diverged = {k: v for k, v in result("schnet").items() if k != "device"} | {"metrics": {}}
    assert "on cuda:0." in tables.caption("T", Protocol(), [diverged, figure1[0]], unit="x")


def test_what_is_no_better_than_trivial_is_counted():
    results = [_result("original", 2.0, 19.9), _result("ours", 1.0, 3.0),
               _result("irelu", 0.0, 0.0, status="NaN") | {"metrics": {}}]  # fmt: skip
    notes = tables.nothing_learned(results, {"aspirin": {"energy": 4.7, "forces": 20.0}})
    assert notes == [
        "No better than the mean energy: 1 of 3 runs.",
        "No better than zero forces: 2 of 3 runs.",
    ]


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"status": "finished"}'])
def test_a_damaged_result_is_named(ethanol, tmp_path, content):
    run = plan(TINY, ethanol, "schnet", SETTINGS["original"])
    path = tmp_path / "runs" / run.name / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DcaseError, match=r"result\.json is damaged .* delete it"):
        perform(run, tmp_path)
