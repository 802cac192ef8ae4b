"""``bench_md``: what it says adds up, and it leaves everything as it was. No time is tested."""

import json
import math
import tempfile
import threading
from contextlib import ExitStack
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from md_models import spring_molecule

from dcase.data.molecules import structure
from dcase.errors import OptionError, SimulationError
from dcase.md_runs.bench import rounds as bench_rounds
from dcase.md_runs.bench.machine import busy, machine
from dcase.md_runs.bench.measure import FORMAT, bench_md
from dcase.md_runs.bench.rounds import LEAST_STEPS, OneCopy, Replicas, Rounds
from dcase.md_runs.bench.stopwatch import PARTS, Stopwatch, replaced
from dcase.md_runs.files.recorder import Recorder
from dcase.md_runs.files.run_folder import Checkpoint
from dcase.md_runs.loop.engine import Simulation
from dcase.md_runs.settings import MDSettings
from dcase.potentials.calculator import DCCalculator, DCCalculatorError, NeighbourList
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.potential import find_checkpoint, load_potential

SHIPPED, _ = find_checkpoint("aspirin_irelu.pt")
SHORT = {"steps": 12, "rounds": 3}
COMPILED = available(torch.float32)
needs_compiler = pytest.mark.skipif(not COMPILED, reason="no C compiler: no compiled form")


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where temporary files go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []  # whatever became of the test


def aspirin(*, periodic=False, members=1, **options):
    atoms = structure("aspirin")
    if periodic:
        atoms.center(vacuum=3.0)
        atoms.pbc = True
    potential = load_potential(SHIPPED)
    model = potential if members == 1 else Ensemble([potential] * members)
    atoms.calc = DCCalculator(model, device="cpu", **options)
    return atoms


class Ticks:
    """A clock that others move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def after(self, seconds, function):
        def run(*args, **options):
            self.now += seconds
            return function(*args, **options)

        return run


# ---------------------------------------------------------------------------------- stopwatch


def test_a_timed_function_within_another_counts_once():
    clock = Ticks()
    watch = Stopwatch(clock)
    inner = watch.timed("neighbours", clock.after(3.0, lambda: None))

    def outer():
        clock.now += 10.0
        inner()
        clock.now += 20.0
        raise ValueError

    timed = watch.timed("model", outer)
    watch.start()
    clock.now += 0.5
    with pytest.raises(ValueError):
        timed()
    inner()
    clock.now += 0.25
    watch.stop()
    clock.now += 1000.0
    inner()  # between rounds nothing counts
    assert watch.seconds == {"neighbours": 6.0, "model": 30.0, "integrator": 0.75, "io": 0.0}
    assert watch.calls == 3
    watch.move(0.5, "io")
    assert (watch.seconds["integrator"], watch.seconds["io"]) == (0.25, 0.5)


def test_other_threads_are_kept_apart():
    clock = Ticks()
    watch = Stopwatch(clock)
    work = watch.timed("model", clock.after(5.0, lambda: None))
    watch.start()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    watch.stop()
    assert watch.elsewhere == {"neighbours": 0.0, "model": 5.0, "integrator": 0.0, "io": 0.0}
    assert watch.seconds["model"] == 0.0
    assert watch.seconds["integrator"] == 5.0  # it waited


def test_replaced_attributes_come_back():
    class Thing:
        def f(self):
            return "class"

    one, other = Thing(), Thing()
    other.f = lambda: "own"
    for thing, before in ((one, "class"), (other, "own")):
        said = []

        def fail(thing=thing, said=said):
            with replaced(thing, "f", lambda: "new"):
                said.append(thing.f())
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert said == ["new"]
        assert thing.f() == before
    assert vars(one) == {}


# ----------------------------------------------------------------------------------- results

CASES = {
    "compiled": ({}, {}, "compiled", "compiled"),
    "PyTorch": ({"optimize": False}, {}, "PyTorch", "ASE"),
    "ensemble": ({"members": 2}, {}, "compiled", "compiled"),
    "periodic": ({"periodic": True}, {}, "compiled", "compiled"),
    "replicas": ({}, {"replicas": 3}, "compiled", "compiled"),
    "replicas in PyTorch": ({"optimize": False}, {"replicas": 2}, "PyTorch", "batch"),
}


@pytest.mark.parametrize("case", CASES)
def test_figures_add_up(case):
    system, options, potential, loop = CASES[case]
    if not COMPILED:
        potential, loop = "PyTorch", "batch" if options else "ASE"
    atoms = aspirin(**system)
    before, attributes = atoms.positions.copy(), set(vars(atoms.calc))
    result = bench_md(atoms, timestep_fs=0.4, **SHORT, **options)
    timing, copies = result.timing, options.get("replicas", 1)
    assert (timing.potential, timing.loop, timing.steps) == (potential, loop, 12)
    assert len(timing.rounds_ms) == 3
    assert timing.ms_per_step == median(timing.rounds_ms)
    assert sum(timing.parts_ms.values()) == pytest.approx(timing.ms_per_step, rel=1e-9)
    assert sum(timing.parts_percent.values()) == pytest.approx(100.0, rel=1e-9)
    assert all(timing.parts_ms[part] > 0.0 for part in PARTS)  # every part was seen
    for part in PARTS:
        share = timing.parts_ms[part] / timing.ms_per_step
        assert timing.parts_percent[part] == pytest.approx(100.0 * share)
    steps_per_day = 86400.0 / (1e-3 * timing.ms_per_step)
    assert timing.ns_per_day == pytest.approx(copies * steps_per_day * 0.4e-6)
    assert timing.atom_steps_per_s == pytest.approx(21 * timing.steps_per_s)
    assert timing.steps_per_s == pytest.approx(copies * steps_per_day / 86400.0)
    assert timing.timers_percent > 0.0
    whole = timing.whole_run
    assert (whole.steps, whole.equilibrate) == (12, 1)
    assert 0.0 < whole.production_s + (whole.equilibration_s or 0.0) < whole.seconds
    assert (whole.equilibration_s is None) == ("replicas" in options)
    assert (result.plain, result.ratio) == (None, None)
    # The same potential and structure go on being what they were.
    assert set(vars(atoms.calc)) == attributes
    np.testing.assert_array_equal(atoms.positions, before)
    assert math.isfinite(atoms.get_potential_energy())


def test_what_is_said_about_the_system():
    atoms = aspirin(periodic=True)
    result = bench_md(atoms, steps=2, rounds=1, temperature_K=100.0, seed=4)
    i, j = np.triu_indices(21, k=1)
    vectors = atoms.positions[j] - atoms.positions[i]
    near = np.linalg.norm(vectors[None] + _images(atoms)[:, None], axis=2) < 5.0
    assert result.system == {
        "formula": "C9H8O4", "n_atoms": 21, "n_pairs": int(near.sum()), "cutoff_A": 5.0,
        "periodic": [True, True, True], "replicas": None,
    }  # fmt: skip
    expected = {"dtype": "float32", "device": "cpu", "temperature_K": 100.0, "seed": 4}
    assert {name: result.settings[name] for name in expected} == expected
    assert result.settings["level_of_theory"] == "GFN2-xTB"
    assert {"processor", "cores", "threads", "gpu", "versions"} <= set(result.machine)
    again = json.loads(json.dumps(result.to_dict()))
    assert again["format"] == FORMAT
    assert again["timing"]["parts_percent"].keys() == set(PARTS)


def _images(atoms):
    """Lattice vectors to the neighbouring cells; no atom sees its own images."""
    assert min(atoms.cell.lengths()) > 5.0
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return shifts @ atoms.cell.array


@needs_compiler
def test_compare_times_both_forms():
    result = bench_md(aspirin(), compare=True, steps=4, rounds=2)
    assert (result.timing.potential, result.plain.potential) == ("compiled", "PyTorch")
    assert len(result.plain.rounds_ms) == 2
    assert result.ratio == result.plain.ms_per_step / result.timing.ms_per_step
    assert result.to_dict()["ratio"] == result.ratio


@needs_compiler
def test_a_warning_is_said_once():
    warnings = bench_md(aspirin(), compare=True, steps=2, rounds=1, timestep_fs=1.2).warnings
    assert sum("a time step of 1.2 fs is large" in text for text in warnings) == 1


# ----------------------------------------------------------------- where a second is counted


def test_every_second_is_counted_where_it_was_spent(tmp_path, monkeypatch):
    clock = Ticks()
    for owner, name, seconds in (
        (DCCalculator, "_plain", 1.0),
        (NeighbourList, "__init__", 10.0),
        (Recorder, "record_steps", 100.0),
        (Checkpoint, "save", 1000.0),
        (Simulation, "look", 1e4),
    ):
        monkeypatch.setattr(owner, name, clock.after(seconds, getattr(owner, name)))
        # as a function of the class, so that it is bound
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _f=function, **k: _f(*a, **k))
    monkeypatch.setattr("dcase.md_runs.loop.engine.SAVE_SECONDS", 0.0)
    settings = MDSettings(equilibrate=0, checkpoint_every=5)
    copy = OneCopy(aspirin(optimize=False), settings, tmp_path, [])
    with ExitStack() as stack:
        stack.callback(copy.close)
        copy.prepare(7)
        copy.rewind()
        copy.stopwatch.clock = clock
        copy.watch(stack)
        copy.round()
    # Forces of the first step and of 7 more, and anew after the checkpoint at step 5.
    assert copy.stopwatch.seconds == {
        "model": 9.0, "neighbours": 20.0, "io": 1700.0, "integrator": 7e4,
    }  # fmt: skip
    assert copy.searches == 2
    assert copy.rounds_s == [71729.0]


@pytest.mark.parametrize("optimize", [None, False])
@pytest.mark.parametrize("kind", ["single", "replicas"])
def test_timing_changes_nothing_in_the_trajectory(tmp_path, optimize, kind):
    settings = MDSettings(equilibrate=0, checkpoint_every=10)
    arguments = aspirin(optimize=optimize), settings, tmp_path, []
    copy = OneCopy(*arguments) if kind == "single" else Replicas(*arguments, 2)
    found = []
    with ExitStack() as close:
        close.callback(copy.close)
        copy.prepare(25)
        for watched in (False, True):
            with ExitStack() as stack:
                if watched:
                    copy.watch(stack)
                copy.rewind()
                copy.advance(25)
            x = copy.run.atoms.get_positions() if kind == "single" else copy.run.x
            found.append(x.copy())
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0] - copy.origin[0]).max() > 0.01


class Fixed(Rounds):
    """A simulation that takes a given time for a step."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.settings = clock, seconds, MDSettings()

    def advance(self, count):
        self.clock.now += count * self.seconds


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(1e-4, {9500, 10000}), (1.7e-3, {500}), (2e-2, {49, 50}), (3.0, {LEAST_STEPS})],
)
def test_a_round_is_about_a_second_and_whole_checkpoints(monkeypatch, seconds, steps):
    clock = Ticks()
    monkeypatch.setattr(bench_rounds, "time", SimpleNamespace(perf_counter=clock))
    assert Fixed(clock, seconds)._enough_steps() in steps


def test_the_number_of_steps_is_chosen(monkeypatch):
    monkeypatch.setattr(bench_rounds, "ROUND_SECONDS", 1e-3)
    result = bench_md(aspirin(), rounds=1)
    assert result.timing.steps >= LEAST_STEPS
    assert result.timing.whole_run.steps == result.timing.steps


# ------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1, not 0"),
        ({"steps": 1.5}, "steps must be"),
        ({"rounds": 0}, "rounds must be"),
        ({"replicas": -1}, "replicas must be"),
        ({"timestep_fs": 0.0}, "timestep_fs"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(OptionError, match=words):
        bench_md(aspirin(), **options)


def test_calculators_of_others_are_refused():
    with pytest.raises(OptionError, match="needs a potential of dcase"):
        bench_md(spring_molecule())
    with pytest.raises(OptionError, match="needs a potential of dcase"):
        bench_md(structure("ethanol"))


def test_nothing_to_compare_with():
    with pytest.raises(OptionError, match="no compiled form to compare"):
        bench_md(aspirin(optimize=False), compare=True)


def test_a_structure_that_the_potential_does_not_know():
    atoms = aspirin()
    atoms.numbers[0] = 17
    with pytest.raises(DCCalculatorError, match="not trained on Cl"):
        bench_md(atoms, **SHORT)


@pytest.mark.parametrize("replicas", [None, 2])
def test_a_blow_up_is_an_error(replicas):
    with pytest.raises(SimulationError, match="nothing to time: relax the structure first"):
        bench_md(aspirin(), steps=200, rounds=1, temperature_K=3e4, replicas=replicas)


def test_a_time_step_past_the_limit():
    with pytest.raises(SimulationError, match="past the stability limit"):
        bench_md(aspirin(), timestep_fs=30.0, **SHORT)


@pytest.mark.parametrize("calls", [1, 30])  # in the whole run, or in the second round
def test_ctrl_c_leaves_nothing(monkeypatch, calls, scratch):
    left, advance = [calls], Simulation.advance

    def interrupted(self):
        left[0] -= 1
        if left[0] == 0:
            assert len(list(scratch.iterdir())) == 1
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Simulation, "advance", interrupted)
    atoms = aspirin(optimize=False)
    attributes = set(vars(atoms.calc))
    with pytest.raises(KeyboardInterrupt):
        bench_md(atoms, **SHORT)
    assert set(vars(atoms.calc)) == attributes


# ------------------------------------------------------------------------------------- machine


def test_machine_and_its_load():
    facts = machine(torch.device("cpu"))
    assert facts["processor"]
    assert facts["cores"] >= 1
    assert facts["threads"] == torch.get_num_threads()
    assert not facts["gpu_used"]
    idle = {**facts, "cores": 4, "threads": 2, "load_average": 2.0}
    assert busy(idle) == ""
    assert busy({**idle, "load_average": None}) == ""
    assert "load average 3.1 on 4 cores" in busy({**idle, "load_average": 3.1})
