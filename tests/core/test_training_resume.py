"""A run that was interrupted and resumed is the run that was not, bit for bit."""

import dataclasses
import os
import random
import signal

import pytest
import torch
from clocks import Clock
from processes import finish, start
from training_problems import (
    Curve,
    Shared,
    fit_water,
    network,
    rows_but_time,
    same,
    saved,
    straight,
    trainer,
    water,
    water_recipe,
    weights,
)

from dcase import checkpoint
from dcase.errors import CheckpointError, DcaseError, OptionError, RunError
from dcase.objective import Term
from dcase.potentials.fitting.fit_potential import fit_potential
from dcase.potentials.potential import load_potential
from dcase.training import state as state_module
from dcase.training.budget import Seconds
from dcase.training.logs import read_metrics


class Killed(BaseException):
    """Stands for a kill: nothing in the trainer may catch it."""


def killed_after(n, count=None):
    """An ``on_state`` that kills at the n-th save."""
    count = count if count is not None else [0]

    def on_state():
        count[0] += 1
        if count[0] == n:
            raise Killed

    return on_state


SETTINGS = {
    "cosine": {"warmup_steps": 4},
    "everything": {
        "schedule": "plateau", "patience": 1, "ema": 0.9, "amsgrad": True, "optimizer": "adamw",
        "weight_decay": 0.01, "clip_norm": 0.5, "lr": 0.3, "early_stopping": 4, "epochs": 8,
    },
    "sparse": {"schedule": "exponential", "final_lr": 0.1, "validate_every": 2, "ema": 0.5},
    "full batch": {"batch_size": 0, "epochs": 9},
    "soap": {"optimizer": "soap", "weight_decay": 0.01, "ema": 0.9},
    "lbfgs": {"optimizer": "lbfgs", "history": 3, "batch_size": 0, "epochs": 12, "ema": 0.5},
    "bfgs": {"optimizer": "bfgs", "batch_size": 0, "epochs": 8},
    "ssbfgs": {"optimizer": "ssbfgs", "epochs": 2},
    "ssbroyden": {"optimizer": "ssbroyden", "batch_size": 0, "epochs": 12, "validate_every": 3},
    "gradient norms": {"balance": "gradient-norm", "balance_every": 4, "epochs": 2},
    "tangent kernel": {"balance": "ntk", "balance_every": 3, "balance_momentum": 0.5, "epochs": 2},
    "weights once": {"balance": "ntk", "optimizer": "ssbroyden", "batch_size": 0, "epochs": 6},
}  # fmt: skip


# Every fifth comes to every batch of an epoch in turn.
@pytest.mark.parametrize("apart", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SETTINGS)
def test_resume_at_any_batch_is_exact(tmp_path, name, apart):
    settings = SETTINGS[name]
    whole = trainer(tmp_path / "whole", **settings)
    expected = whole.fit()
    # The last "save" is that of the end: to resume from there must change nothing either.
    for n in sorted({*range(1, expected.steps + 1, apart), expected.steps}):
        folder = tmp_path / str(n)
        interrupted = trainer(folder, on_state=killed_after(n), checkpoint_every=1e-9, **settings)
        with pytest.raises(Killed):
            interrupted.fit()
        # A garbled start, so that all that matters must come from the state.
        run = trainer(folder, model=network(seed=n), **settings)
        result = run.fit(resume=True)
        assert (result.status, result.steps) == (expected.status, expected.steps)
        assert result.best == expected.best
        assert same(weights(run.model), weights(whole.model)), f"killed after {n} steps"
        assert rows_but_time(folder) == rows_but_time(tmp_path / "whole")
        assert same(saved(folder), saved(tmp_path / "whole"))


def test_the_settings_of_that_test_do_what_they_are_for(tmp_path):
    run = trainer(tmp_path, **SETTINGS["everything"])
    result = run.fit()
    assert result.status == "early stopping"
    assert run.schedule.factor < 1
    assert run.state.validations_since_best == 4


def test_a_converged_run_stays_converged(tmp_path):
    """A linear model of the values: a quadratic, which BFGS finishes."""
    settings = {
        "model": straight(), "data": Curve(22, dtype=torch.float64),
        "validation": None, "terms": {"value": Term()}, "optimizer": "ssbroyden", "batch_size": 0,
        "epochs": 1000, "validate_every": 500,
    }  # fmt: skip
    result = trainer(tmp_path, **settings).fit()
    assert result.status == "converged"
    assert result.steps < 100
    ended, rows = saved(tmp_path), rows_but_time(tmp_path)
    again = trainer(tmp_path, **settings).fit(resume=True)
    assert (again.status, again.steps, again.losses) == ("converged", result.steps, result.losses)
    assert same(saved(tmp_path), ended)
    assert rows_but_time(tmp_path) == rows


def test_the_dense_matrix_is_in_the_state(tmp_path):
    trainer(tmp_path, **SETTINGS["ssbroyden"]).fit()
    state = saved(tmp_path)["optimizer"]["state"][0]
    size = sum(p.numel() for p in network().parameters())
    assert state["matrix"].shape == (size, size)
    assert state["updates"] == 12


def test_many_interruptions(tmp_path):
    settings = SETTINGS["everything"]
    whole = trainer(tmp_path / "whole", **settings)
    whole.fit()
    sittings = 0
    while sittings < 100:
        sittings += 1
        run = trainer(
            tmp_path / "parts", on_state=killed_after(3), checkpoint_every=1e-9, **settings
        )
        try:
            run.fit(resume=True)
            break
        except Killed:
            continue
    assert sittings > 5
    assert same(weights(run.model), weights(whole.model))
    assert rows_but_time(tmp_path / "parts") == rows_but_time(tmp_path / "whole")


def test_rows_written_after_the_state_are_written_again(tmp_path):
    settings = {"epochs": 6}
    trainer(tmp_path / "whole", **settings).fit()

    def die(progress):
        if progress.step == 18:
            raise Killed

    saves = [0]
    run = trainer(tmp_path / "a", on_step=die, checkpoint_every=1e-9, **settings)
    real = run._save_state

    def save_early_ones():
        saves[0] += 1
        if saves[0] <= 7:
            real()

    run._save_state = save_early_ones
    with pytest.raises(Killed):
        run.fit()
    assert len(read_metrics(tmp_path / "a" / "metrics.csv")) == 3
    assert saved(tmp_path / "a")["epoch"] == 1
    trainer(tmp_path / "a", **settings).fit(resume=True)
    assert rows_but_time(tmp_path / "a") == rows_but_time(tmp_path / "whole")


def test_both_clocks_accumulate(tmp_path):
    clock = Clock(0.0)

    def a_step(progress):
        clock.pass_by(1.0, 3.0)

    first = trainer(tmp_path, epochs=2, on_step=a_step, clock=clock).fit()
    assert (first.elapsed, first.cpu, first.steps) == (10.0, 30.0, 10)
    clock.pass_by(1000.0, 1000.0)  # what passes between two runs counts in neither
    before = Seconds(4.0, 5.0)  # what a sitting has spent before it trains does
    options = {"epochs": 3, "on_step": a_step, "clock": clock, "prepared": before}
    second = trainer(tmp_path, **options).fit(resume=True)
    assert (second.elapsed, second.cpu, second.steps) == (19.0, 50.0, 15)


def test_resume_without_a_state_starts(tmp_path):
    a = trainer(tmp_path / "a").fit(resume=True)
    b = trainer(tmp_path / "b").fit()
    assert (a.steps, a.best) == (b.steps, b.best)


def test_a_new_start_deletes_the_old_state(tmp_path):
    # Else a kill before the first save would leave the old run to be resumed as the new one.
    trainer(tmp_path).fit()

    def die(progress):
        raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path, on_step=die).fit()
    assert not (tmp_path / "state.pt").exists()
    assert read_metrics(tmp_path / "metrics.csv") == []


def test_a_finished_run_can_be_extended(tmp_path):
    first = trainer(tmp_path, epochs=2).fit()
    assert trainer(tmp_path, epochs=2).fit(resume=True).best == first.best
    rates = []
    longer = trainer(tmp_path, epochs=4, on_step=lambda p: rates.append(p.lr)).fit(resume=True)
    assert (longer.status, longer.epochs, longer.steps) == ("finished", 4, 20)
    # The cosine goes on as if 4 epochs had been the plan: half-way down at its start.
    assert rates[0] == pytest.approx(0.5 * 1e-2)
    assert len(rates) == 10
    assert [r["epoch"] for r in read_metrics(tmp_path / "metrics.csv")] == [1, 2, 3, 4]
    shorter = trainer(tmp_path, epochs=1).fit(resume=True)
    assert (shorter.status, shorter.epochs) == ("finished", 4)


# ---------------------------------------------------------------- states of other runs


IDENTITY = {"dataset": "abc", "hyper_parameters": {"cutoff": 5.0, "activation": "irelu"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": {**IDENTITY, "dataset": "xyz"}}, "dataset was 'abc', now 'xyz'"),
        (
            {"identity": {**IDENTITY, "hyper_parameters": {"cutoff": 4.0, "activation": "irelu"}}},
            r"hyper_parameters cutoff was 5\.0, now 4\.0",
        ),
        ({"lr": 0.5}, r"lr was 0\.01, now 0\.5"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"batch_size": 4}, "batch_size was 5, now 4"),
        ({"optimizer": "soap"}, "optimizer was 'adam', now 'soap'"),
        ({"balance": "ntk"}, "balance was 'none', now 'ntk'"),
        ({"terms": {"value": Term(1.0), "slope": Term(0.7)}}, "loss slope was .* now .*0.7"),
        ({"terms": {"value": Term(1.0)}}, "loss slope was .* now None"),
        ({"model": Shared()}, "parts are missing or do not fit the model"),
        ({"model": network(9)}, "parts are missing or do not fit the model"),
    ],
)
def test_states_of_other_runs_are_refused_by_name(tmp_path, change, message):
    trainer(tmp_path, identity=IDENTITY).fit()
    content = (tmp_path / "state.pt").read_bytes()
    rows = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(CheckpointError, match=f"state.pt: cannot resume: .*{message}") as caught:
        trainer(tmp_path, **{"identity": IDENTITY, **change}).fit(resume=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "state.pt").read_bytes() == content
    assert (tmp_path / "metrics.csv").read_bytes() == rows


@pytest.mark.parametrize("part", ["optimizer", "schedule", "sums", "settings", "terms"])
def test_a_state_with_parts_missing_is_refused(tmp_path, part):
    trainer(tmp_path).fit()
    version = state_module.STATE_VERSION
    content = checkpoint.load(tmp_path / "state.pt", "training", version)
    del content[part]
    checkpoint.save(tmp_path / "state.pt", "training", version, content)
    with pytest.raises(CheckpointError, match="cannot resume"):
        trainer(tmp_path).fit(resume=True)


def test_a_state_of_before_the_newest_entries_is_read(tmp_path):
    trainer(tmp_path).fit()
    version = state_module.STATE_VERSION
    content = checkpoint.load(tmp_path / "state.pt", "training", version)
    for part in ("best_buffers", "validated_step", "balance", "losses"):
        del content[part]
    checkpoint.save(tmp_path / "state.pt", "training", version, content)
    newer = trainer(tmp_path, epochs=4, identity={"new": 1}).fit(resume=True)
    assert newer.epochs == 4


def test_a_damaged_state_is_refused(tmp_path):
    trainer(tmp_path).fit()
    data = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        trainer(tmp_path).fit(resume=True)


def test_a_full_disk_keeps_the_last_state(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def fill(progress):
        if progress.step == 6:
            monkeypatch.setattr(os, "replace", full)

    with pytest.raises(DcaseError, match=r"cannot write .*state\.pt: No space left on device"):
        trainer(tmp_path, on_step=fill, checkpoint_every=1e-9).fit()
    monkeypatch.undo()
    assert saved(tmp_path)["step"] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.csv", "state.pt"]


# ---------------------------------------------------------------- potentials, and real kills


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of the potential."""
    out = tmp_path_factory.mktemp("whole") / "a.pt"
    assert finish(start(fit_water, out, False)) == 0
    return out


def assert_same_runs(out, whole):
    a, b = load_potential(out), load_potential(whole)
    assert same(dict(a.network.state_dict()), dict(b.network.state_dict()))
    assert a.metadata["metrics"] == b.metadata["metrics"]
    assert rows_but_time(out.with_suffix(".run")) == rows_but_time(whole.with_suffix(".run"))
    assert same(saved(out.with_suffix(".run")), saved(whole.with_suffix(".run")))


def test_kill_9_at_random_writes(tmp_path, whole):
    rng = random.Random()  # each run of the tests tries others
    seed = rng.randrange(10**6)
    rng.seed(seed)
    print(f"seed {seed}")
    out = tmp_path / "a.pt"
    total = saved(whole.with_suffix(".run"))["step"]
    steps = [0]
    for part in range(3):
        # A step is a sync and a rename at least: this is far from the end, and past the start.
        process = start(fit_water, out, part > 0, 0, "", rng.randrange(10, total // 2))
        assert finish(process) == -signal.SIGKILL
        steps.append(saved(out.with_suffix(".run"))["step"])
    assert steps == sorted(steps)
    assert 0 < steps[-1] < total
    assert finish(start(fit_water, out, True)) == 0
    assert_same_runs(out, whole)


@pytest.mark.parametrize("how", ["write", "replace"])
def test_kill_9_within_a_save(tmp_path, whole, how):
    out = tmp_path / "a.pt"
    process = start(fit_water, out, False, 9, how)
    assert finish(process) == -signal.SIGKILL
    folder = out.with_suffix(".run")
    leftovers = [p for p in folder.iterdir() if p.name.startswith(".state.pt.")]
    assert len(leftovers) == 1, "the kill was not within a save"
    before = saved(folder)["step"]  # whole, and that of the save before
    assert before > 0
    assert finish(start(fit_water, out, True)) == 0
    assert_same_runs(out, whole)
    assert sorted(p.name for p in folder.iterdir()) == [
            "metrics.csv", "report.json", "run.json", "state.pt", "training.png"
        ]  # fmt: skip


def test_fit_potential_interrupted_writes_no_model(tmp_path, whole):
    dataset, splits = water()
    out = tmp_path / "a.pt"

    def press(progress):
        if progress.step == 13:
            signal.raise_signal(signal.SIGINT)

    fit = fit_potential(dataset, splits, water_recipe(), out, on_step=press)
    assert fit.result.status == "interrupted"
    assert not out.exists()
    assert not (fit.folder / "report.json").exists()
    with pytest.raises(OptionError, match="already exists .* --resume goes on, --overwrite"):
        fit_potential(dataset, splits, water_recipe(), out)
    fit = fit_potential(dataset, splits, water_recipe(), out, resume=True)
    assert fit.result.status == "finished"
    assert_same_runs(out, whole)


def content(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_would_change_a_potential_is_refused(tmp_path):
    dataset, splits = water()
    out = tmp_path / "a.pt"
    quick = {"training.epochs": 1}
    fit_potential(dataset, splits, water_recipe(**quick), out)
    before = content(tmp_path)
    for key, value, message in [
        ("labels.energy_per_atom", True, "labels.energy_per_atom was False, now True"),
        ("acceleration.filter_table", 64, "filter_knots was 128, now 64"),
        ("labels.rescale", "none", "labels.rescale was 'forces', now 'none'"),
        ("model.num_radial", 6, "model.hyper_parameters.num_radial was 8, now 6"),
        ("loss.forces_loss", "l1", "loss.forces_loss was 'l2', now 'l1'"),
        ("training.lr", 1e-5, "training.lr was"),
        ("training.basis_every", 7, "training.basis_every was 5, now 7"),
    ]:
        with pytest.raises(RunError, match=message):
            fit_potential(dataset, splits, water_recipe(**quick, **{key: value}), out, resume=True)
    other = dataset.subset(range(25, -1, -1))
    with pytest.raises(RunError, match="other frames"):
        fit_potential(other, splits, water_recipe(**quick), out, resume=True)
    other = dataclasses.replace(splits, train=splits.val, val=splits.train)
    with pytest.raises(RunError, match="other split"):
        fit_potential(dataset, other, water_recipe(**quick), out, resume=True)
    assert content(tmp_path) == before
    (tmp_path / "a.run" / "state.pt").unlink()
    with pytest.raises(OptionError, match="no training state to resume, and .* exists"):
        fit_potential(dataset, splits, water_recipe(**quick), out, resume=True)
