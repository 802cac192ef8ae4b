"""Experiments that are stopped, killed, half made by another, or diverge."""

import json
import shutil
import signal

import pytest
import torch

from dcase.dae.evaluation import measure, of_model
from dcase.dae.experiments.figures import curves, figure_rows, write_figure
from dcase.dae.experiments.runs import DaeRun, perform
from dcase.dae.experiments.tables import markdown, table_figure, table_rows
from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.rollouts import pairs_of
from dcase.dae.run import load_model
from dcase.dae.settings import default_settings
from dcase.dae.systems import system_named
from dcase.dae.task import PairSource
from dcase.errors import DataError

EPOCHS = 3  # of two steps each
TIMES = ("elapsed_s", "cpu_s")


@pytest.fixture(scope="module")
def swing():
    return simulate_pendulum(1100, substeps=2)


def figure(**changes):
    """Two runs as of figure 8, without and with an auxiliary loss, of a network in no time."""
    tiny = {"n_train": 20, "n_validation": 10, "n_test": 10, "epochs": EPOCHS, "k": 5}
    tiny |= {"method": "auxiliary", "layers": 2, "hidden": 4, **changes}
    return [
        DaeRun(f"eta = {eta:g}", default_settings("pendulum").changed(eta=eta, **tiny))
        for eta in (0.0, 10.0)
    ]


def stop_after(steps):
    """Ctrl-C at the end of the step of this number, over all runs; one more is made."""
    count = 0

    def step(progress):
        nonlocal count
        count += 1
        if count == steps:
            signal.raise_signal(signal.SIGINT)

    return step


def timeless(results):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in results]


@pytest.fixture(scope="module")
def folder_of_whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(swing, folder_of_whole):
    """What the two runs give when nothing happens."""
    return timeless(perform(figure(), swing, folder_of_whole, history=True))


def test_every_epoch_is_followed(whole):
    for result in whole:
        assert [row["epoch"] for row in result["history"]] == [1, 2, 3]
    assert whole[0]["history"] != whole[1]["history"]


def test_history_is_measured_with_the_weights_of_its_epoch(whole, folder_of_whole, swing):
    """The model that is kept is that of the best epoch: it makes that epoch's errors."""
    for run, result in zip(figure(), whole, strict=True):
        model, settings = load_model(folder_of_whole / run.name / "model.pt")
        pairs = pairs_of(settings, swing)
        data = PairSource(swing, pairs.validation, pairs.ahead, torch.float64)
        found = measure(of_model(model), data, model.constraint, system_named("pendulum"))
        row = result["history"][int(result["best"]["epoch"]) - 1]
        for name in ("mae_cm", "mean_violation", "max_violation"):
            assert row[f"val_{name}"] == pytest.approx(found[name], rel=1e-12)


# In the middle of an epoch, near its end, at the end of the first run, and in the second one.
@pytest.mark.parametrize(("pressed", "made"), [(2, 3), (3, 4), (6, 6), (7, 8)])
def test_stopped_and_gone_on_with_is_as_if_never_stopped(whole, swing, tmp_path, pressed, made):
    """Numbers and history, to the last bit, and no step is made twice."""
    seen = []
    assert (
        perform(
            figure(),
            swing,
            tmp_path,
            history=True,
            on_step=stop_after(pressed),
            on_result=lambda results: seen.append(len(results)),
        )
        is None
    )
    assert seen == [1] * (pressed >= 6)  # a run that is finished is reported all the same
    kept, steps = [], []
    again = perform(
        figure(),
        swing,
        tmp_path,
        history=True,
        on_run=lambda number, run, was: kept.append(was),
        on_step=steps.append,
    )
    assert kept[0] == (pressed >= 6)
    assert len(steps) == 2 * 6 - made
    assert timeless(again) == whole


def test_killed_after_more_epochs_than_were_saved(whole, swing, tmp_path):
    """The state is saved now and then only: epochs after it are made and followed once more."""
    folder = tmp_path / figure()[0].name
    perform(figure()[:1], swing, tmp_path, history=True, on_step=stop_after(1))
    shutil.copy(folder / "state.pt", tmp_path / "old.pt")
    perform(figure()[:1], swing, tmp_path, history=True, on_step=stop_after(2))
    assert len(json.loads((folder / "history.json").read_text())) == 2
    shutil.copy(tmp_path / "old.pt", folder / "state.pt")
    assert timeless(perform(figure()[:1], swing, tmp_path, history=True)) == whole[:1]


def test_a_table_may_have_made_a_part_of_a_figures_run(whole, swing, tmp_path):
    """Both name a run alike; only figures follow it epoch by epoch."""
    perform(figure()[:1], swing, tmp_path, on_step=stop_after(3))
    assert timeless(perform(figure()[:1], swing, tmp_path, history=True)) == whole[:1]


def test_a_table_may_have_ended_a_figures_run(whole, swing, tmp_path):
    perform(figure()[:1], swing, tmp_path, history=True, on_step=stop_after(3))
    assert perform(figure()[:1], swing, tmp_path) is not None
    assert timeless(perform(figure()[:1], swing, tmp_path, history=True)) == whole[:1]


@pytest.mark.parametrize("damage", ["state.pt", "run.json", "history.json"])
def test_a_damaged_file_begins_the_run_again(whole, swing, tmp_path, damage):
    perform(figure()[:1], swing, tmp_path, history=True, on_step=stop_after(3))
    (tmp_path / figure()[0].name / damage).write_bytes(b"{")
    assert timeless(perform(figure()[:1], swing, tmp_path, history=True)) == whole[:1]


def test_half_a_run_of_other_data_begins_again(whole, swing, tmp_path):
    other = simulate_pendulum(1100, substeps=3)
    perform(figure()[:1], other, tmp_path, history=True, on_step=stop_after(3))
    assert timeless(perform(figure()[:1], swing, tmp_path, history=True)) == whole[:1]


def test_a_run_shorter_than_an_epoch_has_no_history_and_is_kept(swing, tmp_path):
    runs, kept = figure(time_limit=1e-9), []
    for _ in range(2):
        found = perform(
            runs, swing, tmp_path, history=True, on_run=lambda n, run, was: kept.append(was)
        )
        assert [result["history"] for result in found] == [[], []]
    assert kept == [False, False, True, True]
    assert curves(found, "val_mae_cm") == {}
    text = write_figure(tmp_path, "dae-figure8", found)
    assert "| eta = 10 |" in text


# ------------------------------------------------------------------------------------------------
# Runs that diverge


@pytest.fixture(scope="module")
def diverged(swing, tmp_path_factory):
    """Two seeds: the first with a step that no network survives."""
    run = figure()[1]
    wild = DaeRun(run.label, run.settings.changed(lr=1e200, clip_value=0.0))
    calm = DaeRun(run.label, run.settings.changed(seed=1))
    folder = tmp_path_factory.mktemp("diverged")
    results = perform([wild, calm], swing, folder, history=True)
    kept = []
    again = perform(
        [wild, calm], swing, folder, history=True, on_run=lambda n, run, was: kept.append(was)
    )
    assert kept == [True, True]
    assert timeless(again) == timeless(results)
    return results


def test_a_diverged_run_is_marked_and_the_rest_goes_on(diverged):
    assert [result["status"] for result in diverged] == ["diverged", "finished"]
    assert "\n" not in diverged[0]["reason"]
    rows = table_rows("pendulum", diverged)
    row = rows[0]
    assert (row["runs"], row["failed"]) == (2, 1)
    assert row["mae_cm mean"] == diverged[1]["mae_cm"]
    assert "(1 of 2 diverged)" in markdown("pendulum", rows, "Table")
    (row,) = figure_rows(diverged)
    assert (row["runs"], row["diverged"], row["epoch"]) == (2, 1, EPOCHS)
    assert row["mae_cm std"] is None
    assert row["mae_cm mean"] == diverged[1]["history"][-1]["val_mae_cm"]


def test_when_all_diverge_tables_and_figures_say_so(diverged, tmp_path):
    rows = table_rows("pendulum", diverged[:1])
    assert "| Auxiliary loss" not in markdown("pendulum", rows, "T")  # figures label by strength
    assert "| eta = 10 | diverged |" in markdown("pendulum", rows, "T")
    shown = table_figure("pendulum", rows)
    assert [text.get_text() for text in shown.axes[0].texts] == ["diverged"]
    text = write_figure(tmp_path, "dae-figure8", diverged[:1])
    assert "| eta = 10 |  | NaN |  | NaN | 1 | 1 |" in text


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_a_prediction_that_is_no_number_counts_as_diverged(diverged, missing):
    """Files hold null for it, memory NaN or infinity."""
    lost = {**diverged[1], "mae_cm": missing, "mean_violation": missing, "max_violation": missing}
    lost["settings"] = {**lost["settings"], "seed": 7}
    row = table_rows("pendulum", [diverged[1], lost])[0]
    assert (row["runs"], row["failed"]) == (2, 1)
    assert row["mae_cm mean"] == diverged[1]["mae_cm"]
    rows = [{"epoch": 1, "x": 1.0}, {"epoch": 2, "x": missing}]
    epochs, mean, _ = curves([{"label": "a", "history": rows}], "x")["a"]
    assert (epochs.tolist(), mean.tolist()) == ([1], [1.0])


def test_data_of_another_time_step_are_refused(tmp_path):
    slow = simulate_pendulum(1100, interval=0.02, substeps=2)
    with pytest.raises(DataError, match=r"steps of 0.02 s.*--interval 0.01"):
        perform(figure(), slow, tmp_path)
    assert list(tmp_path.iterdir()) == []
