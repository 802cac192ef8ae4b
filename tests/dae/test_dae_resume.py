"""A run's folder: whose it is, what a resume must agree with, and what a refusal changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.run import identity_of, load_model, place_of, read_settings, train
from dcase.dae.settings import default_settings
from dcase.dae.trajectories import make_pairs
from dcase.errors import DataError, RunError
from dcase.runs import claim, read_record

SETTINGS = default_settings("pendulum").changed(
    n_train=20, n_validation=10, n_test=10, epochs=3, k=5, layers=2, hidden=4
)
STEPS = 6  # two an epoch


class Stop(Exception):
    pass


def stopping(after):
    """As a kill between two steps: whatever is on disk is what a resume finds."""
    count = 0

    def step(progress):
        nonlocal count
        count += 1
        if count == after:
            raise Stop

    return step


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def swing():
    return simulate_pendulum(1100, substeps=2)


def make(swing, folder, settings=SETTINGS, *, pairs=None, after=None, **options):
    pairs = pairs or make_pairs(swing, 5, 20, 10, 10, seed=settings.seed)
    options = {"trajectory": swing, "pairs": pairs, "pictures": False, **options}
    if after:
        with pytest.raises(Stop):
            train(settings, folder, on_step=stopping(after), **options)
        return None
    return train(settings, folder, **options)


@pytest.fixture(scope="module")
def finished(swing, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    make(swing, folder)
    return folder


@pytest.fixture(scope="module")
def stopped(swing, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    make(swing, folder, after=3)
    return folder


@pytest.mark.parametrize("state", ["finished", "stopped"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("lr", "lr was 0.003, now 0.1"),
        ("gamma", "gamma was 10.0, now 3.0"),
        ("dtype", "dtype was 'float64', now 'float32'"),
        ("trajectory", "other "),
        ("pairs", "other "),
    ],
)
def test_a_resume_with_anything_else_is_refused_and_changes_nothing(
    swing, request, state, what, message
):
    folder = request.getfixturevalue(state)
    before = content(folder)
    changes = {"lr": {"lr": 0.1}, "gamma": {"gamma": 3.0}, "dtype": {"dtype": "float32"}}
    settings = SETTINGS.changed(**changes.get(what, {}))
    data = simulate_pendulum(1100, substeps=3) if what == "trajectory" else swing
    pairs = make_pairs(swing, 5, 20, 10, 10, seed=9) if what == "pairs" else None
    with pytest.raises(RunError, match=message):
        make(data, folder, settings, pairs=pairs, resume=True)
    assert content(folder) == before


def test_without_a_flag_or_beside_a_live_run_nothing_is_touched(swing, finished):
    before = content(finished)
    with pytest.raises(RunError, match="--resume goes on, --overwrite starts again"):
        make(swing, finished)
    pairs = make_pairs(swing, 5, 20, 10, 10, seed=0)
    with claim(place_of(finished), identity_of(SETTINGS, swing, pairs), resume=True):
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match="another process .* is at work"):
                make(swing, finished, **options)
    assert content(finished) == before


def test_a_finished_run_is_left_as_it_is(swing, finished):
    before = content(finished)
    outcome = make(swing, finished, resume=True, on_step=stopping(1))
    assert content(finished) == before
    assert outcome.was_finished
    assert outcome.metrics == json.loads((finished / "metrics.json").read_text())
    assert (outcome.result.epochs, outcome.result.steps) == (3, STEPS)
    with pytest.raises(RunError, match="finished after 3 epochs"):
        make(swing, finished, SETTINGS.changed(epochs=2), resume=True)
    assert content(finished) == before


@pytest.mark.parametrize("lost", ["model.pt", "metrics.json"])
def test_a_finished_run_whose_result_is_lost_makes_it_of_its_state(swing, finished, tmp_path, lost):
    folder = shutil.copytree(finished, tmp_path / "run")
    before = json.loads((folder / "metrics.json").read_text())
    (folder / lost).write_bytes(b"{")
    outcome = make(swing, folder, resume=True, on_step=stopping(1))
    assert not outcome.was_finished
    again = json.loads((folder / "metrics.json").read_text())
    for found in (before, again):
        found.pop("elapsed_s"), found.pop("cpu_s")
    assert again == before
    one, other = (load_model(f / "model.pt")[0].state_dict() for f in (finished, folder))
    assert all(other[name].equal(weight) for name, weight in one.items())


def test_a_longer_run_goes_on_to_what_it_would_have_been(swing, finished, tmp_path):
    """With a learning rate that does not depend on the length."""
    settings = SETTINGS.changed(schedule="constant")
    make(swing, tmp_path / "a", settings.changed(epochs=2))
    longer = make(swing, tmp_path / "a", settings, resume=True).metrics
    whole = make(swing, tmp_path / "b", settings).metrics
    assert longer["mae_cm"] == whole["mae_cm"]
    assert longer["settings"] == whole["settings"]
    assert read_settings(tmp_path / "a").epochs == 3


@pytest.mark.parametrize("what", ["removed", "moved"])
def test_a_folder_that_goes_away_is_noticed_in_the_next_step_and_not_made_anew(
    swing, tmp_path, what
):
    folder, count = tmp_path / "run", 0

    def step(progress):
        nonlocal count
        count += 1
        if count == 3:
            folder.rename(tmp_path / "elsewhere")
            if what == "removed":
                shutil.rmtree(tmp_path / "elsewhere")

    with pytest.raises(RunError, match="was moved, removed or replaced"):
        make(swing, folder, on_step=step)
    assert count == 3
    assert not folder.exists()


def test_a_run_of_before_the_record_is_read_but_not_gone_on_with(swing, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    old = {"version": 2, "settings": read_record(folder)["identity"]["settings"], "data": "x"}
    (folder / "run.json").write_text(json.dumps(old))
    assert read_settings(folder) == SETTINGS
    with pytest.raises(RunError, match="not of this version of dcase; --overwrite"):
        make(swing, folder, resume=True)
    (folder / "run.json").write_text(json.dumps({"kind": "md", "identity": {"settings": {}}}))
    with pytest.raises(DataError, match="is a run of `dcase md`"):
        read_settings(folder)


def test_samples_of_another_split_are_other_data(swing):
    pairs = make_pairs(swing, 5, 20, 10, 10, seed=0)
    swapped = replace(pairs, validation=pairs.test, test=pairs.validation)
    one, other = (identity_of(SETTINGS, swing, p) for p in (pairs, swapped))
    assert one.data != other.data
