"""The SchNet report's tables: its figures, runs of its length, its loss, and what is printed."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from processes import finish, start

from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.data.md17 import load_md17
from dcase.errors import DataError, DcaseError, DivergedError, OptionError, RunError
from dcase.potentials.experiments import (
    report_figures,
    report_fits,
    report_runs,
    report_studies,
)
from dcase.potentials.experiments import report_format as formats
from dcase.potentials.experiments import report_published as printed
from dcase.potentials.experiments import report_tables as tables
from dcase.potentials.experiments.published import schnet_literature
from dcase.potentials.experiments.report_data import Sources, load_system, report_split
from dcase.potentials.experiments.report_runs import Length, plan_run, report_recipe
from dcase.potentials.experiments.runs import Frames, only_maker
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.networks.registry import create_potential
from dcase.units import ENERGY_UNITS, KCAL_PER_MOL

pytestmark = pytest.mark.pictures

TINY = """
[model]
size = "tiny"
activation = "original"
[labels]
rescale = "none"
[loss]
energy_weight = 0.01
forces_weight = 3.0
[training]
batch_size = 8
schedule = "constant"
[acceleration]
filter_table = 0
"""


@pytest.fixture(scope="module")
def ethanol():
    return load_md17("ethanol", "xtb").subset(np.arange(60))


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return str(path)


# ------------------------------------------------------------------------------------------------
# What the report prints


def test_table_6_is_the_difference_of_table_2():
    seen = 0
    for system in printed.SYSTEMS:
        for task in printed.TASKS:
            baseline, schnet = printed.table2(system, task)
            if baseline is None:
                assert printed.table6(system, task) is None
                continue
            assert printed.table6(system, task) == pytest.approx(schnet - baseline, rel=5e-3)
            seen += 1
    assert seen == 11 * 3 + 1


def test_the_third_column_of_the_authors_is_their_force_error():
    for system in printed.MOLECULES:
        both, forces = printed.table7(system, "energy+forces"), printed.table7(system, "forces")
        assert both[1] == forces[1]
        if schnet_literature(system):
            assert both[1] == schnet_literature(system)[1]


def test_the_reports_networks_are_known_to_the_last_parameter():
    for size in printed.TABLE1.values():
        assert printed.report_parameters(size) == size.parameters


def test_where_our_networks_have_fewer_parameters():
    for name, size in printed.TABLE1.items():
        recipe = report_recipe("schnet-report", "aspirin", "energy", 900, 1, Length(), size)
        potential = create_potential(
            "schnet", elements=[1, 6, 8], size=recipe.model.size, **recipe.model.hyper_parameters
        )
        ours = sum(p.numel() for p in potential.parameters())
        f, half = size.features, size.features // 2
        embeddings, biases = (100 - 3) * f, size.blocks * f
        read_out = (f * 32 + 32 + 33) - (f * half + half + half + 1)
        assert size.parameters - ours == embeddings + biases + read_out, name


def test_iso17_is_in_ev():
    # C7H10O2 from free atoms (QM9's references, Hartree), against the report's mean of -1.15e4.
    hartree = 7 * -37.846772 + 10 * -0.500273 + 2 * -75.064579
    assert hartree * ENERGY_UNITS["Hartree"] == pytest.approx(-1.15e4, rel=0.01)
    assert hartree * ENERGY_UNITS["Hartree"] / KCAL_PER_MOL < -2.6e5
    # On MD17 the baseline's forces are hardly better than none, 20 kcal/mol/A; so on ISO17 in eV.
    assert printed.table2("iso17", "forces")[0] / KCAL_PER_MOL == pytest.approx(19.0, rel=0.02)


# ------------------------------------------------------------------------------------------------
# Frames


def save(path, dataset, rows):
    n = dataset.n_atoms[0]
    kcal = KCAL_PER_MOL
    np.savez(
        path,
        nuclear_charges=dataset.numbers[:n],
        coords=dataset.positions.reshape(-1, n, 3)[rows],
        energies=np.zeros(len(rows)),
        forces=np.zeros((len(rows), n, 3)),
        old_energies=dataset.energies[rows] / kcal,
        old_forces=dataset.forces.reshape(-1, n, 3)[rows] / kcal,
    )


def test_files_are_joined_and_no_frame_comes_twice(ethanol, tmp_path):
    save(tmp_path / "rmd17_ethanol_train_01.npz", ethanol, np.arange(30))
    save(tmp_path / "rmd17_ethanol_test_01.npz", ethanol, np.arange(20, 50))
    sources = Sources((str(tmp_path / "rmd17_{molecule}_*.npz"),), "md17")
    found = load_system("ethanol", sources)
    assert len(found) == 50
    assert sorted(found.energies) == pytest.approx(sorted(ethanol.energies[:50]))
    assert len({f.positions.tobytes() for f in found}) == 50
    with pytest.raises(DataError, match="no file .* of aspirin"):
        load_system("aspirin", sources)


def test_labels_of_two_kinds_are_not_joined(ethanol, tmp_path):
    save(tmp_path / "a.npz", ethanol, np.arange(30))
    with pytest.raises(DataError, match="which do not mix"):
        load_system("ethanol", Sources((str(tmp_path / "a.npz"), "xtb")))


def test_what_is_not_here_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("dcase.data.qm9_files.qm9pack_folder", lambda needed: None)
    monkeypatch.setattr("dcase.data.download.cache_folder", lambda _: tmp_path)
    with pytest.raises(DataError, match="pip install qm9pack"):
        load_system("qm9", Sources())
    with pytest.raises(DataError, match="--iso17-source"):
        load_system("iso17", Sources())


@pytest.mark.parametrize(
    ("n_frames", "train", "test", "expected"),
    [
        (200_000, None, None, (10_000, 500, 1_000)),
        (1_000, None, None, (760, 40, 200)),
        (6_000, 4_000, 1_000, (4_000, 200, 1_000)),
    ],
)
def test_splits_have_the_reports_numbers_or_what_there_is(n_frames, train, test, expected):
    s = report_split(n_frames, printed.SHORT, 0, train=train, test=test)
    assert (len(s.train), len(s.val), len(s.test)) == expected


def test_test_frames_do_not_depend_on_the_training_frames():
    one = report_split(1_000, printed.SHORT, 3)
    other = report_split(1_000, printed.LONG, 3, train=100)
    assert np.array_equal(one.test, other.test)
    with pytest.raises(OptionError, match="use --train and --test with smaller numbers"):
        report_split(1_000, printed.SHORT, 0, train=900, test=200)


# ------------------------------------------------------------------------------------------------
# Recipes


def test_runs_make_the_reports_number_of_steps():
    assert (printed.SHORT.steps, printed.LONG.steps) == (626, 15_630)
    for n_train, setup in ((10_000, printed.SHORT), (950, printed.SHORT), (4_750, printed.LONG)):
        recipe = report_recipe("schnet-report", "aspirin", "energy", n_train, setup.steps, Length())
        per_epoch = math.ceil(n_train / 32)
        steps = recipe.training.epochs * per_epoch
        assert setup.steps <= steps < setup.steps + per_epoch
    exact = report_recipe("schnet-report", "aspirin", "energy", 10_000, 626, Length())
    assert exact.training.epochs == 2
    # A limit ends the report's protocol earlier, never later; other recipes have only the limit.
    limited = Length(time_limit=30.0)
    report = report_recipe("schnet-report", "aspirin", "energy", 10_000, 626, limited)
    ours = report_recipe("default", "aspirin", "energy", 10_000, 626, limited)
    assert (report.training.epochs, report.training.time_limit) == (2, 30.0)
    assert ours.training.epochs * 1_000 == 1_000_000


def test_tasks_are_weights_of_the_loss():
    def weights(task, name="schnet-report"):
        loss = report_recipe(name, "aspirin", task, 100, 1, Length()).loss
        return loss.energy_weight, loss.forces_weight

    assert weights("energy") == (1.0, 0.0)
    assert weights("forces") == (0.0, 3.0)
    assert weights("energy+forces") == (0.01, 3.0)
    assert weights("energy+forces", "default")[0] > 0


def test_total_energies_can_be_learned_as_in_the_report():
    args = ("aspirin", "energy", 10_000, 626, Length(time_limit=9.0))
    total, offset = (report_recipe(n, *args) for n in ("schnet-report-total", "schnet-report"))
    assert (total.labels.offset, offset.labels.offset) == ("none", "atomic")
    assert total.training == offset.training
    assert total.model == offset.model
    assert (total.name, total.acceleration) == ("schnet-report-total", offset.acceleration)


def test_qm9_has_its_recipe_and_its_unit():
    ours = report_recipe("default", "qm9", "energy", 100, 1, Length())
    assert ours.loss.energy_loss == "l1"
    letter = report_recipe("schnet-report", "qm9", "energy", 100, 1, Length())
    scale = letter.labels.rescale * ENERGY_UNITS["Hartree"]
    assert scale == pytest.approx(KCAL_PER_MOL)


def test_the_loss_is_the_reports(ethanol):
    potential = create_potential("schnet", elements=[1, 6, 8], size="tiny", seed=3)
    metrics = evaluate_potential(potential, ethanol).metrics
    losses = []
    for index, frame in enumerate(ethanol):
        alone = evaluate_potential(potential, ethanol.subset([index]))
        error = (alone.energy[1] - alone.energy[0])[0] / KCAL_PER_MOL
        forces = (alone.forces[1] - alone.forces[0]).reshape(-1, 3) / KCAL_PER_MOL
        losses.append(0.01 * error**2 + (forces**2).sum() / len(frame))
    assert report_runs.report_loss(metrics) == pytest.approx(np.mean(losses), rel=1e-5)
    assert report_runs.report_loss({"energy_rmse_kcal_mol": 1.0}) is None


# ------------------------------------------------------------------------------------------------
# Runs, baselines, folds


def test_runs_keep_the_loss_of_every_step(ethanol, tiny, tmp_path):
    splits = report_split(60, printed.SHORT, 0, train=32, test=20)
    frames = Frames("ethanol", ethanol)
    run = plan_run(frames, splits, tiny, "energy", 8, Length())
    result = report_runs.perform_recorded(run, tmp_path)
    kept = np.load(report_runs.losses_file(run, tmp_path))
    assert result["steps"] == 8
    assert kept[:, 0].tolist() == list(range(1, 9))
    # The first loss is that of the first weights: squared errors of energies in kcal/mol.
    spread = np.std(ethanol.energies) / KCAL_PER_MOL
    assert 0.1 * spread**2 < kept[0, 1] < 10 * spread**2
    assert report_runs.perform_recorded(run, tmp_path) == result
    assert np.array_equal(np.load(report_runs.losses_file(run, tmp_path)), kept)


def killed_at_step(run, folder, number):
    def step(progress):
        if progress.step == number:
            os.kill(os.getpid(), signal.SIGKILL)

    report_runs.perform_recorded(run, folder, on_step=step)


def test_a_kill_loses_the_loss_of_no_step(ethanol, tiny, tmp_path):
    splits = report_split(60, printed.SHORT, 0, train=32, test=20)
    run = plan_run(Frames("ethanol", ethanol), splits, tiny, "energy", 8, Length())
    training = replace(run.recipe.training, checkpoint_every=1e-9)  # after every step
    run = replace(run, recipe=replace(run.recipe, training=training))
    report_runs.perform_recorded(run, tmp_path / "whole")
    for number in (3, 6):
        process = start(killed_at_step, run, tmp_path / "killed", number)
        assert finish(process) == -signal.SIGKILL
    report_runs.perform_recorded(run, tmp_path / "killed")
    whole, killed = (
        np.load(report_runs.losses_file(run, tmp_path / name)) for name in ("whole", "killed")
    )
    assert killed[:, 0].tolist() == list(range(1, 9))
    np.testing.assert_allclose(killed, whole, rtol=1e-6)


def left_by_a_kill(*targets):
    """Files that were being written."""
    left = [path.with_name(f".{path.name}.0123456789ab{path.suffix}") for path in targets]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    return left


def test_what_kills_left_goes_when_runs_and_pages_are_made(ethanol, tiny, tmp_path):
    frames = Frames("ethanol", ethanol)
    splits = report_split(60, printed.SHORT, 0, train=32, test=20)
    run = plan_run(frames, splits, tiny, "energy", 4, Length())
    fit = report_fits.Fit(frames, splits, "energy", "composition")
    crossing = report_fits.plan_crossing(frames, tiny, 4, 16, 2, Length())
    for work, what in (
        (report_runs.perform_recorded, run),
        (report_fits.perform_fit, fit),
        (report_fits.perform_crossing, crossing),
    ):
        place = tmp_path / "runs" / what.name
        files = [place / name for name in ("result.json", "losses.npy", "split.npz")]
        left = left_by_a_kill(*files)
        work(what, tmp_path)
        assert not [path for path in left if path.exists()]
        assert (place / "result.json").exists()
        assert not list(place.glob(".lock*"))
    files = [tmp_path / f"table.{ending}" for ending in ("md", "csv", "json", "png")]
    left = left_by_a_kill(*files, tmp_path / "other.md")
    formats.write_page(tmp_path, "table", "text", [{"a": 1}])
    assert [path for path in left if path.exists()] == left[-1:]  # of another page, maybe at work


def test_a_run_has_one_sitting_at_a_time(ethanol, tmp_path):
    splits = report_split(60, printed.SHORT, 0, train=32, test=20)
    fit = report_fits.Fit(Frames("ethanol", ethanol), splits, "energy", "composition")
    with only_maker(tmp_path / "runs" / fit.name):
        with pytest.raises(RunError, match=r"another process .*is making .*result\.json"):
            report_fits.perform_fit(fit, tmp_path)
        assert report_fits.fit_of(fit, tmp_path) is None
    report_fits.perform_fit(fit, tmp_path)
    assert report_fits.fit_of(fit, tmp_path) is not None


def test_losses_of_steps_made_again_are_replaced(tmp_path):
    losses = report_runs.StepLosses(tmp_path / "a.npy")
    for step in (1, 2, 3):
        losses.add(step, float(step))
    losses.save()
    resumed = report_runs.StepLosses(tmp_path / "a.npy")
    resumed.add(2, 20.0)
    assert resumed.values == [(1.0, 1.0), (2.0, 20.0)]


def test_baselines_are_made_once(ethanol, tmp_path, monkeypatch):
    frames, splits = Frames("ethanol", ethanol), report_split(60, printed.SHORT, 0)
    trivial = report_fits.Fit(frames, splits, "energy", "composition")
    result = report_fits.perform_fit(trivial, tmp_path)
    train, test = ethanol.subset(splits.train), ethanol.subset(splits.test)
    expected = np.abs(test.energies - train.energies.mean()).mean() / KCAL_PER_MOL
    assert result["metrics"]["energy_mae_kcal_mol"] == pytest.approx(expected)
    zero = np.abs(test.forces).mean() / KCAL_PER_MOL
    assert result["metrics"]["forces_mae_kcal_mol_angstrom"] == pytest.approx(zero)
    pairs = report_fits.perform_fit(report_fits.Fit(frames, splits, "forces", "pairs"), tmp_path)
    assert pairs["metrics"]["forces_mae_kcal_mol_angstrom"] < zero
    monkeypatch.setattr(report_fits, "fit_baseline", None)
    assert report_fits.perform_fit(trivial, tmp_path) == json.loads(json.dumps(result))
    (tmp_path / "runs" / trivial.name / "result.json").write_text("{}")
    with pytest.raises(DcaseError, match=r"result\.json is damaged .* delete it"):
        report_fits.perform_fit(trivial, tmp_path)


def test_a_cross_validation_has_the_reports_loss(ethanol, tiny, tmp_path, monkeypatch):
    frames = Frames("ethanol", ethanol)
    crossing = report_fits.plan_crossing(frames, tiny, 8, 30, 3, Length())
    assert [len(p) for p in crossing.folds.parts] == [10, 10, 10]
    assert len(crossing.folds.test) == 10
    result = report_fits.perform_crossing(crossing, tmp_path)
    for row, part in zip(result["folds"], crossing.folds.parts, strict=True):
        # All ten frames are one batch: the loss of the batch is that of the fold.
        metrics = {k: v for k, v in row.items() if k.endswith(("mol", "angstrom"))}
        assert row["report_loss"]["mean"] == pytest.approx(
            report_runs.report_loss(metrics), rel=1e-4
        )
        assert len(part) == 10
    monkeypatch.setattr(report_fits, "cross_validate", None)
    assert report_fits.perform_crossing(crossing, tmp_path) == json.loads(json.dumps(result))
    assert set(result["spread"]) == {"energy", "forces_x", "forces_y", "forces_z"}

    options = {"time_limit": None, "epochs": None}
    text, rows = report_studies.fold_table("T", "ethanol", {tiny: result}, options)
    assert len(rows) == 3
    assert "| mean ± std of folds |" in text
    text, rows = report_studies.spread_table("T", "ethanol", {tiny: result}, options)
    assert "| energy (kcal/mol) | 0.53 | 62.16 | 5.08 |" in text
    assert [r["std_of"] for r in rows] == ["energy", "forces_x", "forces_y", "forces_z"]


def test_a_diverging_fold_is_a_result(ethanol, tiny, tmp_path, monkeypatch):
    def diverge(*args, **kwargs):
        raise DivergedError("the loss became NaN")

    monkeypatch.setattr(report_fits, "cross_validate", diverge)
    crossing = report_fits.plan_crossing(Frames("ethanol", ethanol), tiny, 8, 30, 3, Length())
    result = report_fits.perform_crossing(crossing, tmp_path)
    assert result == report_fits.crossing_of(crossing, tmp_path)
    for page in (report_studies.fold_table, report_studies.spread_table):
        text, rows = page("T", "ethanol", {tiny: result}, {})
        assert "recipe tiny: NaN (the loss became NaN)." in text
        assert rows == []


def test_folds_take_what_there_is():
    dataset = AtomicDataset(
        numbers=np.ones(70_000, dtype=np.int64), positions=np.zeros((70_000, 3)),
        ptr=np.arange(70_001), energies=np.zeros(70_000), info=DatasetInfo("x"),
    )  # fmt: skip
    for count, length, folds, apart in (
        (70_000, Length(), 10_000, 10_000),
        (6_000, Length(), 1_000, 1_000),
        (6_000, Length(train=2_000, test=100), 400, 100),
    ):
        frames = Frames("x", dataset.subset(np.arange(count)))
        found = report_fits.plan_crossing(frames, "schnet-report", 10, 50_000, 5, length)
        assert {len(p) for p in found.folds.parts} == {folds}
        assert len(found.folds.test) == apart


# ------------------------------------------------------------------------------------------------
# Tables


def _result(energy, forces, status="finished", **more):
    metrics = {
        "energy_mae_kcal_mol": energy, "energy_rmse_kcal_mol": energy,
        "forces_mae_kcal_mol_angstrom": forces, "forces_rmse_kcal_mol_angstrom": forces,
    }  # fmt: skip
    found = {"status": status, "metrics": metrics if status != "NaN" else {}, "n_train": 900}
    return {**found, **more}


def _results():
    results = {}
    for task in printed.TASKS:
        results["aspirin", task, "trivial"] = _result(5.0, 20.0)
        results["aspirin", task, "baseline"] = _result(4.0, 6.0)
        results["aspirin", task, "schnet-report"] = _result(0.5, 19.9)
    results["aspirin", "forces", "default"] = _result(0, 0, "NaN")
    results["qm9", "energy", "trivial"] = _result(9.0, None)
    results["qm9", "energy", "default"] = _result(2.0, None)
    return results


def test_table_2_stands_beside_the_reports():
    text = "\n".join(tables.comparison(_results(), ["schnet-report", "default"], authors=False))
    assert "| aspirin | 900 | 5 | 2,710 | 4 | 6,160 | 0.5 | n.a. |" in text
    assert "| aspirin | 900 | 20 | 19.53 | 6 | 5.94 | 19.9 † | NaN † |" in text
    loss = 0.01 * 0.25 + 3 * 19.9**2
    assert f"| aspirin | 900 | 1,200 | 2.58e+07 | 108 | 5,200 | {loss:,.0f} | n.a. |" in text
    assert "| qm9 | 900 | 9 | 5.64 | n.a. | 3.01 | n.a. | 2 |" in text
    assert "| aspirin | 5 | 0.5 | 20 | 19.9 † |" in text  # the errors behind the loss


def test_table_7_has_the_authors_figures():
    text = "\n".join(tables.comparison(_results(), ["schnet-report"], authors=True))
    assert "| aspirin | 900 | 5 | 0.25 | 1,440 | 0.5 |" in text
    assert "| aspirin | 900 | 1,200 | 868 |" in text
    assert "| aspirin | 5 | 0.12 | 0.5 | 20 | 0.33 | 19.9 † |" in text


def test_errors_below_1_are_counted():
    (report, other) = tables.accuracy_notes(_results(), ["schnet-report", "default"])
    assert "1 of 1 after training of energies alone (0.5)" in report
    assert "1 of 1 after training of both" in report
    assert "0 of 1 after training of energies alone (2)" in other


def test_baseline_and_network_are_compared_here_and_there():
    ours, theirs = tables.verdict_notes(_results(), ["schnet-report", "default"])[::2]
    assert "report's protocol, offset: 1 of 1 energies, 0 of 1 forces, 0 of 1 losses." in ours
    # QM9 and aspirin: the report's SchNet is worse in the energy of aspirin alone.
    assert theirs == "The report, of the same: 1 of 2 energies, 1 of 1 forces, 1 of 1 losses."
    assert tables.ratio_notes(_results(), authors=False) == [
        f"Force errors, report's protocol, offset: {19.9 / 5.94:.3g} times the report's."
    ]
    assert f"{19.9 / 1.25:.3g} times" in tables.ratio_notes(_results(), authors=True)[0]


def test_table_6_is_ours_less_baseline():
    lines, rows = tables.differences(_results(), ["schnet-report"])
    assert "| aspirin | +3,450 | +127 | -3.5 | -87.5 |" in lines
    assert {(r["system"], r["task"]) for r in rows} == {("aspirin", t) for t in printed.TASKS}


def test_pages_are_written_thrice(tmp_path):
    rows = tables.records(_results())
    formats.write_page(tmp_path, "x", formats.page("Head", ["| a |"], ["A note."]), rows)
    assert (tmp_path / "x.md").read_text() == "Head\n\n| a |\n\n* A note.\n"
    with open(tmp_path / "x.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows)
    assert read[0]["value"] == "5.0"
    found = json.loads((tmp_path / "x.json").read_text())["rows"]
    nan = next(r for r in found if r["status"] == "NaN")
    assert nan["value"] is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "n.a."), (math.nan, "NaN"), (0.0, "0"), (0.1234, "0.123"), (62.16, "62.2"),
     (6160.0, "6,160"), (2.58e7, "2.58e+07"), (-1.45e5, "-1.45e+05"), (1e-4, "1.00e-04")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert formats.number(value) == text


def test_table_1_says_what_was_trained(ethanol, tiny, tmp_path):
    frames, splits = Frames("ethanol", ethanol), report_split(60, printed.LONG, 0, train=16)
    results = {}
    for name, size in printed.TABLE1.items():
        run = plan_run(frames, splits, tiny, "energy+forces", 1, Length(epochs=1), (name, size))
        assert run.recipe.model.hyper_parameters["num_interactions"] == size.blocks
        assert "cutoff" not in run.recipe.model.hyper_parameters  # another recipe keeps its own
        if name == "Small":
            results["ethanol", tiny, name] = report_runs.perform_recorded(run, tmp_path)
    text, rows = report_studies.size_table(results, {"time_limit": None, "epochs": 1})
    assert "| parameters, report | 13,345 | 116,225 | 874,817 |" in text
    assert "| validation loss, report | 3.22 | 1.68 | 1.32 |" in text
    assert "| steps, report | 1,563 | 3,126 | 6,252 |" in text
    assert rows[0]["parameters"] == results["ethanol", tiny, "Small"]["parameters"]


# ------------------------------------------------------------------------------------------------
# Figures


def test_the_straight_line_is_that_of_least_squares():
    steps = np.arange(1.0, 101.0)
    losses = np.column_stack([steps, 50.0 - 0.25 * steps])
    found = report_figures.trend(losses)
    shown = math.ceil(100 * 10_000 / 15_630)
    assert (found["first_step"], found["last_step"]) == (101 - shown, 100)
    assert found["line_first"] == pytest.approx(50.0 - 0.25 * (101 - shown))
    assert found["line_last"] == pytest.approx(25.0)
    assert found["falling"]


def test_a_panel_a_molecule(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report_figures.plotting, "save", lambda figure, path: drawn.append(figure))
    steps = np.arange(1.0, 101.0)
    losses = np.column_stack([steps, 1.0 / steps])
    report_figures.loss_figure(dict.fromkeys(("a", "b", "c"), losses), tmp_path / "x.png")
    axes = drawn[0].axes
    assert [ax.get_title() for ax in axes if ax.get_visible()] == ["a", "b", "c"]
    assert all("(kcal/mol)²" in ax.get_ylabel() for ax in axes[:3])
    line = axes[0].lines[1].get_ydata()
    fit = np.polyval(np.polyfit(*losses[-64:].T, 1), losses[[-64, -1], 0])
    assert line == pytest.approx(fit)
