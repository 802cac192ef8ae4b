"""Time steps without ASE in between: many steps a call, for compiled potentials.

A step of ASE's loop costs a few tenths of a millisecond in Python, several times what a compiled
potential needs for a small molecule. Here the loop itself is compiled (``verlet.c``): the same
operations in the same order as ASE's :class:`~ase.md.verlet.VelocityVerlet` and
:class:`~ase.md.langevin.Langevin`, each rounded by itself, and the same random numbers, so that
positions and momenta are those of ASE to the last bit (which the tests check).

Of an ensemble the forces are the mean of its members', and the uncertainty of every step is told.

Whatever is not plain sailing is left to ASE's loop: a block of steps ends before a step that looks
like a blow-up, or is too uncertain to go on, and the caller does that one as usual and finds out
what is the matter.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from ase import Atoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from dcase.errors import DcaseError
from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.potentials.calculator import DCCalculator, NeighbourList
from dcase.potentials.kernels.atom_kernel import integer_result, pointer
from dcase.potentials.kernels.build import load_library
from dcase.potentials.kernels.compiled import Prepared
from dcase.units import FS, KB

MOST_STEPS = 200
"""Of a block."""
MOST_SECONDS = 0.5
"""Of a block, by the steps so far: Ctrl-C and the progress bar wait for its end."""
MOST_VALUES = 2_000_000
"""Numbers kept for the steps of a block."""

_DONE, _NEW_PAIRS, _LOOK = range(3)


class _Member(ctypes.Structure):
    """``member`` of verlet.c: the same fields in the same order."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("scale", "offset", "nearest")),
        *((name, ctypes.c_void_p) for name in ("x", "energies", "forces", "neighbours", "closest")),
        *((name, ctypes.c_void_p) for name in ("evaluate", "argument")),
    )

    def point_to(self, prepared: Prepared) -> None:
        """Evaluate there."""
        result = prepared.result
        self.x = prepared.positions.ctypes.data
        self.energies, self.forces = result.energies.ctypes.data, result.forces.ctypes.data
        self.neighbours, self.closest = result.neighbours.ctypes.data, result.closest.ctypes.data
        self.evaluate, self.argument = prepared.function, prepared.argument


class _Run(ctypes.Structure):
    """``verlet_run`` of verlet.c: the same fields in the same order."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("atoms", "bonds", "members")),
        *((name, ctypes.c_double) for name in ("dt", "skin", "stretch", "heat", "spread")),
        ("lonely", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("masses", "listed", "bond", "shift", "lengths")),
        ("c1", ctypes.c_double),
        ("c2", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("c3", "c4", "c5", "x", "p", "f", "member")),
        ("seconds", ctypes.c_double),
    )


@dataclass(frozen=True)
class Block:
    """Steps done.

    Attributes:
        energies: Potential and kinetic energy, eV, shape [k, 2].
        positions: A, shape [k, n_atoms, 3].
        momenta: ASE's units, shape [k, n_atoms, 3].
        forces: After the last step, eV/A, shape [n_atoms, 3].
        uncertainties: Of an ensemble (:mod:`dcase.md_runs.loop.uncertainty`), eV/A, shape [k]; None
            of a single potential.
    """

    energies: np.ndarray
    positions: np.ndarray
    momenta: np.ndarray
    forces: np.ndarray
    uncertainties: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.energies)


class VerletBlocks:
    """Blocks of NVE or Langevin steps of one structure; made by :func:`verlet_blocks`.

    Args:
        library: The compiled loop.
        atoms: Numbers, masses, cell; with a calculator that has a compiled form.
        timestep_fs: fs.
        watch: What counts as a blow-up.
        n_dof: Degrees of freedom, for the temperature.
        langevin: Whose constants and random numbers to use; None: NVE.
        most_uncertain: Of a step of an ensemble, eV/A; what is beyond has to be looked at.
        shared: Use the calculator's list of pairs and room; else have both for oneself, to run
            beside others in a thread.

    Attributes:
        searches: How often neighbours have been searched for.
        steps_done: So far.
    """

    def __init__(
        self,
        library: Any,
        atoms: Atoms,
        timestep_fs: float,
        watch: BlowUpWatch,
        n_dof: int,
        *,
        langevin: Langevin | None = None,
        most_uncertain: float = np.inf,
        shared: bool = True,
    ):
        self._shared = shared
        self._rng = None if langevin is None else langevin.rng
        self._verlet = library.verlet
        self._verlet.restype = ctypes.c_int64
        assert int(integer_result(library.size_of_run)()) == ctypes.sizeof(_Run)
        assert int(integer_result(library.size_of_member)()) == ctypes.sizeof(_Member)
        self.calculator: DCCalculator = atoms.calc  # type: ignore[assignment]
        self.searches = 0
        assert self.calculator.deployed is not None
        self._parts = self.calculator.deployed.loop_parts(atoms.numbers)
        self._members = (_Member * len(self._parts))(
            *(_Member(part.scale, part.offset, part.kernel.nearest) for part in self._parts)
        )
        self._atoms = atoms.copy()  # to search for neighbours with
        n = len(atoms)
        look = watch.bond_stretch_A is not None and len(watch.lengths) > 0
        i, j, shift = watch.bonds
        self._arrays: dict[str, np.ndarray] = {
            "masses": np.array(atoms.get_masses(), dtype=np.float64),
            "bond": np.ascontiguousarray(np.stack([i, j]), dtype=np.int64),
            "shift": np.ascontiguousarray(shift @ watch.cell, dtype=np.float64),
            "lengths": np.ascontiguousarray(watch.lengths, dtype=np.float64),
            "p": np.empty((n, 3)),
            "f": np.empty((n, 3)),
        }
        constants = {}
        if langevin is not None:
            constants = {"c1": langevin.c1, "c2": langevin.c2}
            for name in ("c3", "c4", "c5"):
                self._arrays[name] = np.array(getattr(langevin, name), dtype=np.float64).ravel()
                assert self._arrays[name].shape == (n,)
        self._before, self._next = np.empty((3, n, 3)), np.empty((n, 3))
        self._run = _Run(
            atoms=n,
            bonds=len(watch.lengths),
            members=len(self._parts),
            dt=timestep_fs * FS,
            stretch=float(watch.bond_stretch_A or 0.0) if look else -1.0,
            heat=0.5 * watch.max_temperature_K * n_dof * KB,
            spread=most_uncertain,
            lonely=self.calculator.allow_isolated,
            member=ctypes.addressof(self._members),
            **constants,
            **{name: array.ctypes.data for name, array in self._arrays.items()},
        )
        self.steps_done = 0
        self._listed: NeighbourList | None = None  # the list that the arguments are made for
        self._prepared: list[Prepared] = []  # of every member

    @property
    def most_steps(self) -> int:
        """Of one block: few where steps are long or their numbers are many."""
        most = min(MOST_STEPS, MOST_VALUES // (6 * len(self._atoms)))
        if self.model_seconds > 0.0:
            most = min(most, int(MOST_SECONDS * self.steps_done / self.model_seconds))
        return max(1, most)

    def forget(self) -> None:
        """Drop the pairs, so that what follows does not depend on what went before."""
        self._listed, self._prepared = None, []

    @property
    def model_seconds(self) -> float:
        """Spent in the potential so far."""
        return float(self._run.seconds)

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
        steps = min(steps, self.most_steps)
        n = len(self._atoms)
        rows = np.empty((steps, 3))
        xs, ps = np.empty((steps, n, 3)), np.empty((steps, n, 3))
        self._arrays["p"][:], self._arrays["f"][:] = momenta, forces
        random = None if self._rng is None else self._rng.bit_generator.state
        noise = np.empty(0) if self._rng is None else self._rng.standard_normal((steps, 2, n, 3))
        here = to = np.array(positions)
        why, done = ctypes.c_int(_DONE), 0
        while done < steps:
            first = self._prepare(to)
            if first is None:
                break
            first.positions[:] = here
            # The first step tells how long one takes.
            some = max(1, min(steps, self.most_steps) - done) if self.steps_done else 1
            found = int(
                self._verlet(
                    ctypes.byref(self._run),
                    ctypes.c_int64(some),
                    pointer(noise[done:]),
                    pointer(rows[done:]),
                    pointer(xs[done:]),
                    pointer(ps[done:]),
                    pointer(self._before),
                    pointer(self._next),
                    ctypes.byref(why),
                )
            )
            done += found
            self.steps_done += found
            if why.value == _LOOK:
                break
            # NEW_PAIRS: the next step leads out of the list's reach; list the pairs where it leads
            here = first.positions.copy()
            to = self._next if why.value == _NEW_PAIRS else here
            if done >= self.most_steps:
                break
        if self._rng is not None and done < steps:  # as if only these steps had drawn
            self._rng.bit_generator.state = random
            self._rng.standard_normal((done, 2, n, 3))
        return Block(
            rows[:done, :2],
            xs[:done],
            ps[:done],
            self._arrays["f"].copy(),
            rows[:done, 2] if len(self._parts) > 1 else None,
        )

    def _prepare(self, positions: np.ndarray) -> Prepared | None:
        """The first member with pairs that hold at ``positions``, the others likewise.

        None where the calculator refuses these.
        """
        self._atoms.positions[:] = positions
        try:
            if self._shared:
                listed = self.calculator.neighbour_list(self._atoms)
            else:
                listed = self.calculator.search(self._atoms, self._listed)
        except DcaseError:
            return None
        if not self._prepared or listed is not self._listed:
            self._listed, self._prepared = listed, []  # room for one list at a time
            self.searches += 1
            for part, member in zip(self._parts, self._members, strict=True):
                system = (listed.positions, part.species, listed.pairs, listed.offsets)
                if self._shared:
                    prepared = part.kernel.taken(*system)
                else:
                    prepared = part.kernel.prepare(*system, 1)
                member.point_to(prepared)
                self._prepared.append(prepared)
            self._run.x = self._members[0].x
            self._run.listed, self._run.skin = listed.positions.ctypes.data, listed.limit
        return self._prepared[0]


def evaluates_the_potential(calculator: Any) -> TypeGuard[DCCalculator]:
    """Whether forces are those of a potential alone: a subclass may add to them."""
    return (
        isinstance(calculator, DCCalculator)
        and type(calculator).calculate is DCCalculator.calculate
    )


def _is_plain_langevin(dynamics: Any) -> bool:
    """Whether this is an integrator whose constants ``verlet.c`` knows."""
    known = all(hasattr(dynamics, name) for name in ("c1", "c2", "c3", "c4", "c5"))
    return type(dynamics) is Langevin and known and not getattr(dynamics, "fix_com", False)


def verlet_blocks(
    atoms: Atoms,
    timestep_fs: float,
    watch: BlowUpWatch,
    n_dof: int,
    *,
    dynamics: Any = None,
    most_uncertain: float = np.inf,
    shared: bool = True,
) -> VerletBlocks | None:
    """The compiled loop for a run, or None where ASE's loop has to do.

    It is for NVE and Langevin dynamics without constraints, with a calculator of dcase that has a
    compiled form (:mod:`dcase.potentials.kernels.deployed`).

    Args:
        atoms: As of :class:`VerletBlocks`, with any calculator.
        timestep_fs: fs.
        watch: What counts as a blow-up.
        n_dof: Degrees of freedom, for the temperature.
        dynamics: The integrator of ASE whose place the loop takes; None: velocity Verlet.
        most_uncertain: As of :class:`VerletBlocks`.
        shared: As of :class:`VerletBlocks`.
    """
    calculator = atoms.calc
    langevin = dynamics if _is_plain_langevin(dynamics) else None
    if atoms.constraints or not (langevin or dynamics is None or type(dynamics) is VelocityVerlet):
        return None
    if not evaluates_the_potential(calculator) or calculator.deployed is None:
        return None
    if not calculator.skin > 0:
        return None
    library = load_library("verlet", "double", sources=Path(__file__).parent, exact=True)
    if library is None:
        return None
    return VerletBlocks(
        library,
        atoms,
        timestep_fs,
        watch,
        n_dof,
        langevin=langevin,
        most_uncertain=most_uncertain,
        shared=shared,
    )
