"""NVE on a GPU: many steps of velocity Verlet in one CUDA graph, without the host in between.

A step of a small molecule is some hundreds of short kernels, and launching them from Python takes
several times as long as they run. Here positions, momenta and forces stay on the device in float64,
and K whole steps, with the checks that belong to them, are recorded once and then replayed by one
launch; one copy a replay brings all K to the host:

    p <- p + f dt/2;   x <- x + p dt/m;   f <- -dE/dx;   p <- p + f dt/2

A recording has fixed shapes. Its pairs are those within cutoff + skin, filled up with pairs that
never interact, and what lies beyond the cutoff must contribute exactly nothing, in value and slope,
which is tried out for each potential.

As in :mod:`dcase.md_runs.loop.compiled_blocks` a block ends before a step that looks like a
blow-up, which the caller does as usual to find out what is the matter. Where there is no GPU the
same function runs as ordinary operations, so that the tests need none.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.md.verlet import VelocityVerlet

from dcase.errors import DcaseError
from dcase.md_runs.loop.compiled_blocks import (
    MOST_STEPS,
    MOST_VALUES,
    Block,
    evaluates_the_potential,
)
from dcase.md_runs.loop.gpu_replay import CudaGraphRunner, EagerRunner, Runner, needs_host
from dcase.md_runs.loop.gpu_verlet import DeviceSteps, FixedGraph
from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.potentials.calculator import DCCalculator, NeighbourList
from dcase.potentials.potential import Potential
from dcase.units import FS, KB

STEPS_A_REPLAY = 20
"""K: more amortise the launch and the copy, fewer are in vain when pairs have to be listed anew."""
MOST_PAIR_STEPS = 4_000_000
"""Pairs times K that are looked at in one go for atoms without a neighbour, some 400 MB."""
SPARE = 1.1
"""Room for pairs, times those there are; a new recording is made when it is used up."""


class GraphBlocks:
    """Blocks of NVE steps of one structure on one device; made by :func:`graph_blocks`.

    Args:
        atoms: Numbers, masses, cell; with a calculator of a single potential.
        timestep_fs: fs.
        watch: What counts as a blow-up.
        n_dof: Degrees of freedom, for the temperature.
        runner: How the steps are run.
        steps_a_replay: K, at most.

    Attributes:
        searches: How often pairs have been listed.
        recordings: How often steps have been recorded.
        model_seconds: Spent in the potential so far; here with the rest of the steps.
    """

    def __init__(
        self,
        atoms: Atoms,
        timestep_fs: float,
        watch: BlowUpWatch,
        n_dof: int,
        runner: Runner,
        steps_a_replay: int = STEPS_A_REPLAY,
    ):
        self.calculator: DCCalculator = atoms.calc  # type: ignore[assignment]
        self.searches, self.recordings, self.model_seconds = 0, 0, 0.0
        self._atoms = atoms.copy()  # to search for neighbours with
        self._atoms.calc = self.calculator
        self._watch, self._runner, self._replay = watch, runner, steps_a_replay
        self._dt = timestep_fs * FS
        self._heat = 0.5 * watch.max_temperature_K * n_dof * KB
        self._listed: NeighbourList | None = None
        self._steps: DeviceSteps | None = None

    @property
    def most_steps(self) -> int:
        """Of one block: few where steps are long or their numbers are many."""
        return max(1, min(MOST_STEPS, MOST_VALUES // (6 * len(self._atoms))))

    def forget(self) -> None:
        """Drop the pairs, so that what follows does not depend on what went before."""
        self._listed = None

    def advance(
        self, positions: np.ndarray, momenta: np.ndarray, forces: np.ndarray, steps: int
    ) -> Block:
        """Do up to ``steps`` steps; fewer, down to none, before one that has to be looked at.

        Args:
            positions: A, shape [n_atoms, 3].
            momenta: ASE's units, shape [n_atoms, 3].
            forces: At the positions, eV/A, shape [n_atoms, 3].
            steps: At most this many; and never more than :attr:`most_steps`.
        """
        steps, done, listed = min(steps, self.most_steps), 0, -1
        state = np.stack([positions, momenta, forces]).astype(np.float64)
        states = [np.empty((0, *state.shape))]
        energies = [np.empty((0, 2))]
        device = self.cover(positions) if steps > 0 else None
        if device is not None:
            device.start(state)
        while device is not None and done < steps:
            began = time.perf_counter()
            found = device.replay()
            self.model_seconds += time.perf_counter() - began
            outside, wrong = found.outside[:, 0], (found.outside | found.unsound)[:, 0]
            sound = int(wrong.argmax()) if wrong.any() else device.steps
            good = min(sound, steps - done)
            if good:
                states.append(found.state[:good, :, 0])
                energies.append(found.energies[:good, :, 0])
                state, done = states[-1][-1], done + good
            if done == steps:
                break
            if good == device.steps:
                device.go_on(good)
                continue
            # Where the step leads out of the list's reach: list the pairs there, and do it. One
            # that is longer than that reach is no step but an explosion.
            to = found.state[sound, 0, 0]
            with np.errstate(over="ignore", invalid="ignore"):
                is_step = bool(np.abs(to - state[0]).max() < device.reach)
            if not outside[sound] or not is_step or listed == done:
                break
            listed, device = done, self.cover(to, anew=True)
            if device is not None:
                device.start(state)
        all_states = np.concatenate(states)
        return Block(np.concatenate(energies), all_states[:, 0], all_states[:, 1], state[2].copy())

    def cover(self, positions: np.ndarray, *, anew: bool = False) -> DeviceSteps | None:
        """Steps with pairs that hold at ``positions``; None where the calculator refuses these.

        Args:
            positions: A, shape [n_atoms, 3].
            anew: Search for them even where the last ones would do.

        Raises:
            RuntimeError: If the steps cannot be recorded.
        """
        self._atoms.positions[:] = positions
        try:
            listed = self.calculator.search(self._atoms, None if anew else self._listed)
        except DcaseError:
            return None
        if listed is self._listed:
            return self._steps
        self._listed = listed
        self.searches += 1
        steps, count = self._steps, listed.pairs.shape[1]
        if steps is not None and count <= steps.capacity:
            steps.list_pairs(listed.pairs, listed.offsets, positions, listed.limit)
            return steps
        self._steps = steps = None  # room for one at a time
        room = max(1, count if np.isinf(listed.limit) else int(SPARE * count) + 16)
        replay = max(1, min(self._replay, self.most_steps, MOST_PAIR_STEPS // room))
        steps = DeviceSteps(self._atoms, self._watch, self._heat, self._dt, replay, room)
        steps.list_pairs(listed.pairs, listed.offsets, positions, listed.limit)
        start = np.stack([positions, 0.0 * positions, 0.0 * positions])
        steps.start(start)
        plain = steps.replay().state
        steps.run = self._runner(steps, self.calculator.device)
        steps.rows.zero_()
        steps.start(start)
        # A recording that has missed something does other steps, and does not say so.
        if not np.allclose(steps.replay().state, plain, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise RuntimeError("the recorded steps are not those that were to be recorded")
        self.recordings += 1
        self._steps = steps
        return steps


def nothing_beyond(potential: Potential, numbers: np.ndarray, reach: float) -> bool:
    """Whether pairs between the cutoff and ``reach`` contribute exactly nothing.

    To the atoms' energies and to the forces, tried with pairs of all atoms of ``numbers`` in that
    shell and no other pairs.
    """
    n, count, device = len(numbers), max(64, len(numbers)), potential.device
    first = torch.arange(count, device=device)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    distances = torch.linspace(potential.cutoff * (1 + 1e-9), reach, count, dtype=torch.float64)
    offsets = torch.nn.functional.normalize(directions) * distances[:, None]
    graph = FixedGraph(
        numbers=torch.as_tensor(np.asarray(numbers, dtype=np.int64), device=device),
        positions=torch.zeros(n, 3, dtype=torch.float64, device=device),
        system=torch.zeros(n, dtype=torch.int64, device=device),
        n_systems=1,
        pairs=torch.stack([first % n, (7 * first + 1) % n]),
        offsets=offsets.to(device),
    )
    assert graph.offsets is not None
    none = replace(graph, pairs=graph.pairs[:, :0], offsets=graph.offsets[:0])
    with torch.no_grad():
        same = torch.equal(potential.atom_energies(graph), potential.atom_energies(none))
    return same and not bool(potential.energies_and_forces(graph)[1].any())


def graph_blocks(
    atoms: Atoms,
    timestep_fs: float,
    watch: BlowUpWatch,
    n_dof: int,
    *,
    dynamics: Any = None,
    runner: Runner | None = None,
    steps_a_replay: int = STEPS_A_REPLAY,
) -> GraphBlocks | None:
    """The loop on the device for a run, or None where ASE's loop has to do.

    It is for NVE without constraints, with a calculator of dcase with a single potential on a GPU,
    of an architecture without data-dependent shapes whose pairs end smoothly at the cutoff.

    Args:
        atoms: The structure, with any calculator.
        timestep_fs: fs.
        watch: What counts as a blow-up.
        n_dof: Degrees of freedom, for the temperature.
        dynamics: The integrator of ASE whose place the loop takes; None: velocity Verlet.
        runner: :class:`EagerRunner` or :class:`CudaGraphRunner` on whatever device; None: the
            latter, on a GPU alone.
        steps_a_replay: K, at most.
    """
    calculator = atoms.calc
    if atoms.constraints or not (dynamics is None or type(dynamics) is VelocityVerlet):
        return None
    if not evaluates_the_potential(calculator) or not calculator.skin > 0 or not len(atoms):
        return None
    potential = calculator.potential
    if not isinstance(potential, Potential):
        return None
    if runner is None:
        if calculator.device.type != "cuda":
            return None
        runner = CudaGraphRunner
    trial = GraphBlocks(atoms, timestep_fs, watch, n_dof, EagerRunner, 1).cover(atoms.positions)
    reach = potential.cutoff + calculator.skin
    if trial is None or needs_host(trial) or not nothing_beyond(potential, atoms.numbers, reach):
        return None
    del trial
    blocks = GraphBlocks(atoms, timestep_fs, watch, n_dof, runner, steps_a_replay)
    try:
        blocks.cover(atoms.positions)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(f"no CUDA graph, simulating by single steps: {reason}", stacklevel=2)
        return None
    return blocks
