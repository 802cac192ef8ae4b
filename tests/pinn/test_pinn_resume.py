"""A run's folder: whose it is, what a resume must agree with, and what a refusal changes."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from pinn_problems import advection_sample

from dcase.errors import CheckpointError, DataError, OptionError, RunError
from dcase.pinn.conditions import Boundary, Dirichlet, Initial, Neumann, Observed, Periodic
from dcase.pinn.domains import Domain
from dcase.pinn.experiments.runs import PinnRun, perform
from dcase.pinn.identity import digest
from dcase.pinn.initial import FunctionState
from dcase.pinn.march import march
from dcase.pinn.pdebench.generate import write_advection
from dcase.pinn.problem import PDEProblem, problem_of
from dcase.pinn.run import prepared, read_run, train
from dcase.pinn.settings import PinnSettings, PointSettings
from dcase.pinn.solver import solve
from dcase.pinn.source import Source, identity_of, place_of, read_record
from dcase.runs import claim
from dcase.runs import read_record as read_run_record

NETWORK = PinnSettings(
    width=8, depth=2, modes=3, optimizer="adam:20,lbfgs:5", lr=5e-3, smooth=0, windows=2,
    checkpoint_every=1e-9, points=PointSettings(interior=64, boundary=16, initial=16),
)  # fmt: skip
MODES = PinnSettings(
    network="modes", march="1:0.5:8,2:0.5:8", optimizer="lbfgs:5", smooth=0, checkpoint_every=1e-9
)
KINDS = {"network": NETWORK, "modes": MODES}


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
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of the same shape, each with two samples."""
    folder = tmp_path_factory.mktemp("files")
    options = {"cells": 64, "times": 21, "scheme": "exact"}
    return [str(write_advection(folder / f"{n}.hdf5", [0, 1], seed=n, **options)) for n in (1, 2)]


def begin(settings, files, folder, after=None):
    options = {"pictures": False}
    if after is None:
        return train(Source("advection", files[0]), settings, folder, **options)
    with pytest.raises(Stop):
        train(Source("advection", files[0]), settings, folder, on_step=stopping(after), **options)
    return None


def weights(outcome):
    return [p.detach() for w in outcome.solution.windows for p in w.model.parameters()]


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


# ------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize("after", [None, 12], ids=["finished", "stopped"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("file", "other "),
        ("sample", "source.sample was 0, now 1"),
        ("lr", "lr was 0.00., now 0.1"),
        ("activation", "activation was 'tanh', now 'isilu'"),
        ("seed", "seed was 0, now 7"),
        ("dtype", "dtype was 'float64', now 'float32'"),
        ("paper", "source.paper was False, now True"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_with_anything_else_is_refused_and_changes_nothing(
    files, tmp_path, begun, kind, after, what, message
):
    folder = begun(kind, after)
    settings, source = KINDS[kind], Source("advection", files[0])
    changes = {"lr": 0.1, "activation": "isilu", "seed": 7, "dtype": "float32"}
    if what in changes:
        settings = settings.changed(**{what: changes[what]})
    source = {
        "file": Source("advection", files[1]),
        "sample": Source("advection", files[0], 1),
        "paper": Source("advection", files[0], paper=True),
    }.get(what, source)
    if what == "paper":  # which knows coordinate networks only
        settings = NETWORK
    before = content(folder)
    with pytest.raises(RunError, match=message) as refused:
        train(source, settings, folder, resume=True, pictures=False)
    assert "\n" not in str(refused.value)
    assert content(folder) == before


@pytest.fixture(scope="module")
def begun(files, tmp_path_factory):
    """Runs, finished or stopped, made once each."""
    made = {}

    def make(kind, after):
        if (kind, after) not in made:
            folder = made[kind, after] = tmp_path_factory.mktemp("begun") / "run"
            begin(KINDS[kind], files, folder, after)
        return made[kind, after]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_flag_or_beside_a_live_run_nothing_is_touched(files, begun, kind):
    folder, settings, source = begun(kind, None), KINDS[kind], Source("advection", files[0])
    before = content(folder)
    with pytest.raises(RunError, match="--resume goes on, --overwrite starts again"):
        train(source, settings, folder, pictures=False)
    assert content(folder) == before
    with claim(place_of(folder), identity_of(source, source.problem(), settings), resume=True):
        before = content(folder)
        for options in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(RunError, match="another process .* is at work"):
                train(source, settings, folder, pictures=False, **options)
        assert content(folder) == before


def test_what_the_settings_cannot_do_is_said_before_anything_is_written(files, tmp_path):
    source = Source("advection", files[0])
    for settings, message in (
        (MODES.changed(march=""), "needs march"),
        (MODES.changed(optimizer="adam:5,lbfgs:5"), "one optimizer"),
        (NETWORK.changed(weights={"mess": 1.0}), "no term 'mess'"),
    ):
        with pytest.raises(OptionError, match=message):
            train(source, settings, tmp_path / "run", pictures=False)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------
# Going on


@pytest.mark.parametrize("after", [1, 12, 23, 27, 48])
def test_a_stopped_run_of_a_network_goes_on_to_the_same_result(files, begun, tmp_path, after):
    """In every fit: two windows of twenty steps and five."""
    whole = read_run(begun("network", None))
    begin(NETWORK, files, tmp_path / "run", after)
    moved = shutil.copy(files[0], tmp_path / "moved.hdf5")
    source = Source("advection", moved)
    metrics, outcome = train(source, NETWORK, tmp_path / "run", resume=True, pictures=False)
    assert same_weights(whole, outcome)
    then = json.loads((whole.folder / "metrics.json").read_text())
    assert metrics["sample"] != then["sample"]  # it names the file
    for name in ("fields", "terms", "status", "steps"):
        assert metrics[name] == then[name]
    assert read_record(tmp_path / "run")[0].file == str(moved)
    assert read_run_record(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_is_left_as_it_is(files, begun, kind, monkeypatch):
    folder = begun(kind, None)
    before = content(folder)
    metrics, outcome = train(
        Source("advection", files[0]), KINDS[kind], folder, resume=True, on_step=stopping(1)
    )
    assert content(folder) == before
    assert outcome.was_finished
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert (outcome.steps, outcome.status) == (metrics["steps"], metrics["status"])
    assert same_weights(read_run(folder), outcome)
    assert outcome.cpu == metrics["cpu_s"] > 0
    for name in ("time_limit", "cpu_limit"):
        longer = KINDS[kind].changed(**{name: 100.0})
        with pytest.raises(RunError, match=f"it is finished .{name} was None"):
            train(Source("advection", files[0]), longer, folder, resume=True)
    assert content(folder) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lost", ["model.pt", "metrics.json"])
def test_a_finished_run_whose_result_is_lost_makes_it_of_its_fits(
    files, begun, tmp_path, kind, lost
):
    whole = shutil.copytree(begun(kind, None), tmp_path / "run")
    before = content(whole)
    (whole / lost).write_bytes(b"{")
    _, outcome = train(
        Source("advection", files[0]), KINDS[kind], whole, resume=True, pictures=False,
        on_step=stopping(1),
    )  # fmt: skip
    assert not outcome.was_finished
    assert content(whole).keys() == before.keys()
    assert json.loads((whole / "metrics.json").read_text()) == json.loads(before["metrics.json"])
    assert same_weights(read_run(begun(kind, None)), outcome)


def test_points_that_are_drawn_anew_are_those_of_the_last_step_after_a_resume(tmp_path):
    settings = NETWORK.changed(optimizer="adam:60", resample=2, windows=1)
    problem = prepared(problem_of(advection_sample()), settings)
    whole = solve(problem, settings, tmp_path)
    again = solve(problem, settings, tmp_path, resume=True, on_step=stopping(1))
    assert again.terms == whole.terms


def test_how_a_finished_fit_ended_is_not_forgotten(tmp_path):
    settings = NETWORK.changed(optimizer="adam:50%,lbfgs", windows=1, cpu_limit=0.3)
    problem = prepared(problem_of(advection_sample()), settings)
    assert solve(problem, settings, tmp_path / "a").status == "time limit"
    assert solve(problem, settings, tmp_path / "a", resume=True).status == "time limit"
    settings = MODES.changed(time_limit=1e-4)
    assert march(problem, settings, tmp_path / "b").status == "time limit"
    assert march(problem, settings, tmp_path / "b", resume=True).status == "time limit"


def test_an_interrupted_window_is_counted_once(files, begun, tmp_path):
    whole = json.loads((begun("modes", None) / "metrics.json").read_text())
    count = 0

    def press(progress):
        nonlocal count
        count += 1
        if count == 7:  # in the second window; the step after it is still made
            signal.raise_signal(signal.SIGINT)

    source = Source("advection", files[0])
    metrics, outcome = train(source, MODES, tmp_path / "run", pictures=False, on_step=press)
    assert (metrics, outcome.status, outcome.steps) == ({}, "interrupted", count)
    assert read_run_record(tmp_path / "run")["status"] == "interrupted"
    metrics, _ = train(source, MODES, tmp_path / "run", resume=True, pictures=False)
    assert metrics["steps"] == whole["steps"]
    assert metrics["fields"] == whole["fields"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["removed", "moved"])
def test_a_folder_that_goes_away_is_noticed_in_the_next_step_and_not_made_anew(
    files, tmp_path, kind, what
):
    folder, count = tmp_path / "run", 0

    def step(progress):
        nonlocal count
        count += 1
        if count == 3:
            folder.rename(tmp_path / "elsewhere")
            if what == "removed":
                shutil.rmtree(tmp_path / "elsewhere")

    # Not saved in between, which would notice it, too.
    settings = KINDS[kind].changed(checkpoint_every=60.0)
    with pytest.raises(RunError, match="was moved, removed or replaced"):
        train(Source("advection", files[0]), settings, folder, pictures=False, on_step=step)
    assert count == 3
    assert not folder.exists()


# ------------------------------------------------------------------------------------------------
# Fits that are not this run's


def test_the_fit_of_another_problem_is_not_taken_over(tmp_path):
    """Same settings, same names, same shapes: but other waves."""
    one, other = (prepared(problem_of(advection_sample(beta=b)), NETWORK) for b in (0.1, 0.1))
    shifted = advection_sample()
    shifted = replace(shifted, fields={"u": np.roll(shifted.fields["u"], 5, 0)})
    other = prepared(problem_of(shifted), NETWORK)
    solve(one, NETWORK, tmp_path / "one")
    solve(other, NETWORK, tmp_path / "other")
    with pytest.raises(CheckpointError, match="it had another problem"):
        solve(other, NETWORK, tmp_path / "one", resume=True)
    # A fit of the second window of the right problem, begun from another end of the first.
    solve(one, NETWORK.changed(seed=3), tmp_path / "seed")
    for name in ("002-w1-adam", "003-w1-lbfgs"):
        shutil.rmtree(tmp_path / "one" / "fits" / name)
    first = tmp_path / "one" / "fits" / "001-w0-lbfgs" / "done.pt"
    saved = torch.load(first, weights_only=True)
    solve(one, NETWORK, tmp_path / "one", resume=True)
    saved["weights"] = {n: 1.01 * w for n, w in saved["weights"].items()}
    torch.save(saved, first)
    with pytest.raises(CheckpointError, match="it had another start"):
        solve(one, NETWORK, tmp_path / "one", resume=True)


def test_the_windows_of_another_problem_are_not_taken_over(tmp_path):
    one = prepared(problem_of(advection_sample()), MODES)
    shifted = advection_sample()
    shifted = replace(shifted, fields={"u": np.roll(shifted.fields["u"], 5, 0)})
    other = prepared(problem_of(shifted), MODES)
    march(one, MODES, tmp_path)
    with pytest.raises(CheckpointError, match="other settings or data"):
        march(other, MODES, tmp_path, resume=True)
    with pytest.raises(Stop):  # killed before the first save: nothing of before is left
        march(other, MODES, tmp_path, on_step=stopping(1))
    assert march(other, MODES, tmp_path, resume=True).steps == march(other, MODES, tmp_path).steps


# ------------------------------------------------------------------------------------------------
# Problems of one's own


def heat(rate=0.05, wall=0.0, start=1.0, slope=0.0, law=None, observed=0.5, **names):
    @dataclass(frozen=True)
    class Heat:
        coordinates = ("x", "t")
        fields = ("u",)

        def residuals(self, d):
            return {"heat": d.u_t - (law or (lambda u: rate))(d.u) * d.u_xx}

    domain = Domain({"x": (0.0, 1.0), "t": (0.0, names.get("end", 0.5))})
    state = FunctionState({"u": lambda x: start * torch.sin(torch.pi * x)}, domain.intervals)
    conditions = [
        Initial(state=state),
        Dirichlet(coordinate="x", side="low", values={"u": lambda x, t: wall * t}),
        Neumann(coordinates=("x",), fields=("u",), value=slope, side="high"),
        Boundary(
            name="mixed", uses=("u", "u_x"), relation=lambda d: d.u_x + names.get("robin", 1) * d.u
        ),
        Observed(at=np.array([[0.5, 0.1]]), values={"u": np.array([observed])}),
    ]
    return PDEProblem("heat", Heat(), domain, conditions)


def test_the_digest_of_a_problem_sees_everything_that_decides_it():
    changes = [
        {}, {"rate": 0.06}, {"wall": 0.1}, {"start": 2.0}, {"slope": 0.1}, {"end": 0.6},
        {"law": lambda u: 0.05 * u}, {"observed": 0.6}, {"robin": 2.0},
    ]  # fmt: skip
    found = [digest(heat(**c)) for c in changes]
    assert len(set(found)) == len(found)
    assert found == [digest(heat(**c)) for c in changes]
    periodic = [
        replace(heat(), conditions=[Periodic(coordinate="x", fields=("u",), slopes=s)])
        for s in (False, True)
    ]
    assert digest(periodic[0]) != digest(periodic[1])


def test_the_digest_of_data_counts_every_bit():
    sample = advection_sample()
    other = {"u": sample.fields["u"].copy()}
    other["u"][3, -1] = np.nextafter(other["u"][3, -1], 9.0)  # of the reference only
    assert digest(problem_of(sample)) == digest(problem_of(replace(sample, source="elsewhere")))
    assert digest(problem_of(sample)) != digest(problem_of(replace(sample, fields=other)))
    assert digest(problem_of(sample)) != digest(problem_of(replace(sample, parameters={"beta": 1})))


@pytest.mark.parametrize("after", [None, 12], ids=["finished", "stopped"])
def test_a_python_problem_that_changed_is_not_gone_on_with(tmp_path, after):
    settings, folder = NETWORK.changed(windows=1), tmp_path / "run"
    options = {"pictures": False, "on_step": stopping(after) if after else None}
    if after:
        with pytest.raises(Stop):
            train(Source("mine"), settings, folder, problem=heat(), **options)
    else:
        train(Source("mine"), settings, folder, problem=heat(), **options)
    before = content(folder)
    with pytest.raises(RunError, match="other "):
        train(Source("mine"), settings, folder, problem=heat(wall=0.1), resume=True)
    assert content(folder) == before
    _, outcome = train(Source("mine"), settings, folder, problem=heat(), resume=True)
    assert outcome.was_finished == (after is None)


TEXT = """
from dcase.pinn.zoo import burgers
problem = burgers({nu})
"""


def test_a_users_file_counts_by_its_text_and_may_move(tmp_path):
    path, folder = tmp_path / "mine.py", tmp_path / "run"
    settings = NETWORK.changed(windows=1)
    path.write_text(TEXT.format(nu=0.02))
    with pytest.raises(Stop):
        train(Source(str(path)), settings, folder, on_step=stopping(9))
    path.write_text(TEXT.format(nu=0.03))
    with pytest.raises(RunError, match="other "):
        train(Source(str(path)), settings, folder, resume=True)
    moved = tmp_path / "other.py"
    moved.write_text(TEXT.format(nu=0.02))
    train(Source(str(moved)), settings, folder, resume=True, pictures=False)
    assert read_record(folder)[0].task == str(moved)


# ------------------------------------------------------------------------------------------------
# Records and experiments


def test_a_run_of_before_the_record_is_read_but_not_gone_on_with(files, begun, tmp_path):
    folder = shutil.copytree(begun("network", None), tmp_path / "run")
    record = read_run_record(folder)["identity"]["settings"]
    old = {"source": record.pop("source"), "settings": record}
    (folder / "run.json").write_text(json.dumps(old))
    assert same_weights(read_run(folder), read_run(begun("network", None)))
    with pytest.raises(RunError, match="not of this version of dcase; --overwrite"):
        train(Source("advection", files[0]), NETWORK, folder, resume=True)
    (folder / "run.json").write_text(json.dumps({"kind": "md", "identity": {"settings": {}}}))
    with pytest.raises(DataError, match="is a run of `dcase md`"):
        read_run(folder)


def test_an_experiment_keeps_what_is_the_same_and_nothing_else(files, tmp_path):
    def make(source, settings, **callbacks):
        kept = []
        run = PinnRun("one", "label", source, settings)
        results = perform(
            [run], source.problem(), tmp_path, pictures=False,
            on_run=lambda number, run, was: kept.append(was), **callbacks,
        )  # fmt: skip
        return kept[0], results

    source = Source("advection", files[0])
    assert make(source, MODES)[0] is False
    kept, results = make(Source("advection", shutil.copy(files[0], tmp_path / "m.hdf5")), MODES)
    assert kept
    assert results[0]["label"] == "label"
    for other in (MODES.changed(seed=1), MODES.changed(seed=1, time_limit=50.0)):
        assert make(source, other)[0] is False
        assert make(source, other)[0] is True
    assert make(Source("advection", files[1]), other)[0] is False
    with pytest.raises(Stop):
        make(source, MODES, on_step=stopping(7))
    steps = []
    kept, again = make(source, MODES, on_step=steps.append)
    assert kept is False
    assert len(steps) < again[0]["steps"]  # it went on
    for key in ("fields", "terms", "steps"):
        assert again[0][key] == results[0][key]


def test_an_experiments_run_that_diverged_is_kept_as_such(files, tmp_path):
    wild = NETWORK.changed(lr=1e200, optimizer="adam:30", windows=1)
    run, kept = PinnRun("one", "wild", Source("advection", files[0]), wild), []
    found = [
        perform([run], run.source.problem(), tmp_path, on_run=lambda n, r, was: kept.append(was))
        for _ in range(2)
    ]
    assert kept == [False, True]
    assert found[0] == found[1]
    assert found[0][0]["status"] == "NaN"
    assert "NaN or infinite" in found[0][0]["reason"]
