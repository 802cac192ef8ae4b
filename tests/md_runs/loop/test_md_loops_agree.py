"""The compiled loop does what the plain one does, whatever options stand together.

A run is made three times: in the compiled form, in the compiled form with stops (Ctrl-C in either
phase, an error, an end that was too early) and by PyTorch with ASE's loop alone. The first two are
the same to the last bit; the third is the same but for rounding: the same rows and frames, random
numbers, checkpoint and end.

The normal tests try as many cases as bring every two options of the compiled loop together, and
every ensemble and hold with where a run starts and stops; the slow ones try all.
"""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.io import read
from potential_models import lively

from dcase import DCCalculator
from dcase.md_runs.files.journal import read_rows
from dcase.md_runs.files.replica_folder import ReplicaCheckpoint, ReplicaFolder
from dcase.md_runs.files.run_folder import Checkpoint, RunFolder
from dcase.md_runs.loop import compiled_blocks, engine, replica_batch
from dcase.md_runs.loop.mechanics import draw_momenta
from dcase.md_runs.replicas import run_replicas
from dcase.md_runs.settings import ENSEMBLES, MDSettings
from dcase.md_runs.simulate import run_md
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.kernels.atom_kernel import available

pytestmark = pytest.mark.skipif(
    not available(torch.float64), reason="no C compiler works here: there is no compiled loop"
)
STEPS = 23


class Case(NamedTuple):
    """Options that stand together."""

    form: str
    ensemble: str
    hold: str
    start: str
    equilibrate: int
    box: str
    dtype: str
    intervals: tuple[int, int, int]  # of rows, frames and checkpoints
    members: int  # of an ensemble of potentials; 1: a potential
    stop: str

    def __str__(self) -> str:
        parts = ("-".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in self)
        return " ".join(parts)


CHOICES = (
    ("single", "replicas"),
    ENSEMBLES,
    ("none", "bonds-to-hydrogen", "all-bonds", "atom"),
    ("drawn", "kept"),
    (0, 11),
    ("free", "periodic"),
    ("float64", "float32"),
    ((1, 1, 50), (3, 7, 10), (5, 2, 8)),
    (1, 3),
    ("ctrl-c", "error", "longer"),
)


def possible(case: Case) -> bool:
    """Whether such a run is not refused."""
    if case.form == "replicas":
        return (case.ensemble, case.hold, case.start) == ("nve", "none", "drawn")
    if case.start == "kept" and case.equilibrate:
        return False
    return case.ensemble != "nose-hoover" or case.hold == "none"


ALL = [case for case in (Case(*values) for values in itertools.product(*CHOICES)) if possible(case)]


def looped(case: Case) -> bool:
    """Whether production is the compiled loop's, rather than ASE's with the compiled potential."""
    return case.hold == "none" and case.ensemble in ("nve", "langevin")


def two_by_two(case: Case) -> set[tuple[object, ...]]:
    """The options of a case by twos; without the loop, ensemble and hold with start and stop."""
    options = list(enumerate(case))
    if looped(case):
        return {("looped", *a, *b) for a, b in itertools.combinations(options, 2)}
    return {(*a, *b) for a in options[1:3] for b in (*options[1:6], *options[8:])}


def covering() -> Iterator[Case]:
    """Cases that have all of ``two_by_two`` of all cases."""
    order = np.random.default_rng(0).permutation(len(ALL))
    pairs = [two_by_two(ALL[k]) for k in order]
    left = set().union(*pairs)
    while left:
        best = max(range(len(ALL)), key=lambda k: len(pairs[k] & left))
        left -= pairs[best]
        yield ALL[order[best]]


@cache
def model(members: int):
    options = {"filter_knots": 48, "dtype": torch.float64, "num_interactions": 1}
    potentials = [lively(seed=seed, **options) for seed in range(3, 3 + members)]
    return Ensemble(potentials) if members > 1 else potentials[0]


@cache
def calculator(members: int, dtype: str, compiled: bool) -> DCCalculator:
    optimize = None if compiled else False
    return DCCalculator(
        model(members), dtype=dtype, skin=0.1, allow_isolated=True, optimize=optimize
    )


def prepared(case: Case, *, compiled: bool) -> Atoms:
    """Methanol; periodic in a cell that it fills."""
    atoms = molecule("CH3OH")
    atoms = Atoms(atoms.numbers, atoms.positions)
    atoms.positions += np.random.default_rng(0).normal(0, 0.02, (6, 3))
    if case.box == "periodic":
        atoms.set_cell([[4.6, 0.3, 0.0], [0.4, 4.4, -0.2], [0.0, 0.5, 4.2]])
        atoms.pbc = True
    if case.start == "kept":
        draw_momenta(atoms, 250.0, np.random.default_rng(4))
    if case.hold == "atom":
        atoms.set_constraint(FixAtoms([0]))
    atoms.calc = calculator(case.members, case.dtype, compiled).copy()
    return atoms


def settings_of(case: Case, steps: int = STEPS) -> MDSettings:
    log, traj, checkpoint = case.intervals
    watched = case.members > 1 and case.form == "single"
    return MDSettings(
        ensemble=case.ensemble, temperature_K=250.0, steps=steps, equilibrate=case.equilibrate,
        constrain="none" if case.hold == "atom" else case.hold, seed=6,
        keep_momenta=case.start == "kept", log_every=log, traj_every=traj,
        checkpoint_every=checkpoint, taut_fs=20.0, bond_stretch_A=None, max_temperature_K=1e9,
        force_timestep=True, max_uncertainty_eV_A=1.0 if watched else None, on_uncertain="flag",
    )  # fmt: skip


class Boom(Exception):
    """An error that is nobody's."""


def simulate(case: Case, out: Path, *, compiled: bool = True, stops: bool = False) -> None:
    """One run, in parts if it ``stops``."""
    ahead = case.equilibrate
    parts: list[tuple[int, int | None]] = [(STEPS, None)]  # steps, and where it is stopped
    if stops and case.stop == "longer":
        parts = [(13, None), *parts]
    elif stops:
        parts = [(STEPS, 6), (STEPS, ahead + 15), *parts]
    for number, (steps, stop_at) in enumerate(parts):

        def progress(done: int, total: int, stop_at: int | None = stop_at) -> None:
            if stop_at is not None and done >= stop_at:
                if case.stop == "error":
                    raise Boom
                signal.raise_signal(signal.SIGINT)

        atoms, settings = prepared(case, compiled=compiled), settings_of(case, steps)
        try:
            if case.form == "replicas":
                status = run_replicas(atoms, settings, 1, out, resume=number > 0, progress=progress)
            else:
                status = run_md(atoms, settings, out, resume=number > 0, progress=progress).status
            assert status == ("finished" if stop_at is None else "interrupted")
        except Boom:
            assert stop_at is not None


def left_by(case: Case, out: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """What a run has left: numbers with the rounding of their making, and what has none."""
    numbers: dict[str, np.ndarray] = {}
    if case.form == "replicas":
        folder = ReplicaFolder(out)
        saved = folder.latest()
        exact = {"step": saved.step, "rows": (saved.series, saved.frames)}
        exact |= {"from": ReplicaCheckpoint.load(folder.checkpoint).step}
        exact |= {"rng": json.dumps(saved.rngs), "stopped": saved.trouble}
        numbers |= {"x": saved.x, "p": saved.p, "e": saved.e}
        numbers["series"] = np.array(read_rows(folder.series, 3))
        numbers["frames"] = np.array(read_rows(folder.frames, 1 + saved.x.size))
        return numbers, exact

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf":
            numbers[name] = item[()]

    with h5py.File(out / "trajectory.h5") as file:
        file.visititems(note)
    end = read(out / "final.extxyz")
    numbers |= {"end": end.positions, "end momenta": end.get_momenta()}
    saved = Checkpoint.load(RunFolder(out).checkpoint)
    state = dict(saved.dynamics)
    exact = {"step": saved.step, "rows": (saved.series_rows, saved.frame_rows)}
    exact |= {"rng": str(state.pop("rng")), "last": end.info["step"]}
    numbers |= {"x": saved.positions, "p": saved.momenta, "e": saved.potential_energy, **state}
    numbers |= {f"uncertainty {name}": values for name, values in saved.uncertainty.items()}
    return {name: np.asarray(values) for name, values in numbers.items()}, exact


@pytest.fixture
def blocks(monkeypatch):
    """Progress after every block; to be called with their length, gives those that will be done."""
    for module in (engine, replica_batch):
        monkeypatch.setattr(module, "PROGRESS_SECONDS", -1.0)
    steps: list[int] = []
    advance = compiled_blocks.VerletBlocks.advance

    def counted(self, *arguments):
        block = advance(self, *arguments)
        steps.append(len(block))
        return block

    monkeypatch.setattr(compiled_blocks.VerletBlocks, "advance", counted)

    def longest(steps_a_block: int) -> list[int]:
        monkeypatch.setattr(compiled_blocks, "MOST_STEPS", steps_a_block)
        steps.clear()
        return steps

    return longest


def loops_agree(cases: list[Case], out: Path, blocks) -> None:
    """Of cases that are the same but for where they stop."""
    case, done = cases[0], blocks(200)
    simulate(case, out / "compiled")
    equilibrated = case.form == "single" and case.equilibrate > 0
    assert (sum(done) > 0) == (looped(case) or (case.hold == "none" and equilibrated))
    done = blocks(200)
    simulate(case, out / "plain", compiled=False)
    assert not done
    ours, exactly = left_by(case, out / "compiled")
    theirs, their_facts = left_by(case, out / "plain")
    assert exactly == their_facts
    assert ours.keys() == theirs.keys()
    rounding = 1e-10 if case.dtype == "float64" else 1e-4
    for name, values in theirs.items():
        scale = np.abs(values[np.isfinite(values)]).max(initial=1.0)
        np.testing.assert_allclose(
            ours[name], values, rtol=rounding, atol=rounding * scale, err_msg=name
        )
    blocks(4)  # so that stops are within blocks
    for stopped in cases:
        simulate(stopped, out / stopped.stop, stops=True)
        again, facts = left_by(case, out / stopped.stop)
        assert facts == exactly, stopped
        for name, values in ours.items():
            np.testing.assert_array_equal(again[name], values, err_msg=f"{stopped} {name}")


@pytest.mark.parametrize("case", list(covering()), ids=str)
def test_both_loops_are_one_run(case, tmp_path, blocks):
    loops_agree([case], tmp_path, blocks)


def groups() -> dict[tuple[str, str, str], list[list[Case]]]:
    """All cases by form, ensemble and hold; those that differ by their stop alone together."""
    found: dict[tuple[str, str, str], list[list[Case]]] = {}
    for _, cases in itertools.groupby(ALL, key=lambda case: case[:-1]):
        same = list(cases)
        key = (same[0].form, same[0].ensemble, same[0].hold)
        found.setdefault(key, []).append(same)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("group", list(groups().values()), ids=["-".join(key) for key in groups()])
def test_both_loops_are_one_run_whatever_stands_together(group, tmp_path, blocks):
    for number, cases in enumerate(group):
        loops_agree(cases, tmp_path / str(number), blocks)


def test_every_two_options_stand_together():
    cases = list(covering())
    assert len(cases) < 30
    tried = set().union(*map(two_by_two, cases))
    assert all(two_by_two(case) <= tried for case in ALL)
