"""Velocity Verlet in tensors that stay on the device; for :mod:`dcase.md_runs.loop.gpu_blocks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.potentials.calculator import DCCalculator
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.potential import Potential


@dataclass(frozen=True)
class FixedGraph(AtomicGraph):
    """A graph whose pairs have vectors between their cells given as such.

    Attributes:
        offsets: A, float64, shape [n_pairs, 3]: ``r_ij = x_j - x_i + offset``.
    """

    known: ClassVar[bool] = True  # the calculator has looked
    offsets: Tensor | None = None

    def vectors(self) -> Tensor:
        """``r_ij``, A, shape [n_pairs, 3]."""
        assert self.offsets is not None
        i, j = self.pairs
        return self.positions.index_select(0, j) - self.positions.index_select(0, i) + self.offsets


@dataclass(frozen=True)
class Steps:
    """K steps of R copies, on the host.

    Attributes:
        state: Positions (A), momenta (ASE's units), forces (eV/A), shape [K, 3, R, n_atoms, 3].
        energies: Potential and kinetic, eV, shape [K, 2, R].
        outside: Where an atom has left the reach of the list of pairs, bool, shape [K, R].
        unsound: Where the step has left physics, bool, shape [K, R].
    """

    state: np.ndarray
    energies: np.ndarray
    outside: np.ndarray
    unsound: np.ndarray


class DeviceSteps:
    """K steps of R independent copies of a system, in tensors that stay where they are.

    A call does them; it reads and writes these tensors only and never waits for the device, so that
    it can be recorded.

    Args:
        atoms: One copy: numbers, masses; with the calculator.
        watch: What counts as a blow-up.
        heat: Highest kinetic energy, eV.
        dt: Time step in ASE's units.
        steps: K.
        capacity: Pairs of all copies together, at least 1.
        copies: R.
    """

    def __init__(
        self,
        atoms: Atoms,
        watch: BlowUpWatch,
        heat: float,
        dt: float,
        steps: int,
        capacity: int,
        copies: int = 1,
    ):
        calculator: DCCalculator = atoms.calc  # type: ignore[assignment]
        potential: Potential = calculator.potential
        n, device = len(atoms), calculator.device
        self.potential, self.heat, self.dt, self.steps = potential, heat, dt, steps
        self.capacity, self.copies, self.n_atoms = capacity, copies, n
        self.run: Callable[[], None] = self
        # Copied to the host in one go: the state, then both energies and both marks of each copy.
        self.rows = torch.zeros(steps + 1, copies * (9 * n + 4), dtype=torch.float64, device=device)
        state, told = self.rows.split([9 * n * copies, 4 * copies], dim=1)
        self.state, self.told = state.view(-1, 3, copies, n, 3), told.view(-1, 4, copies)

        def here(values: np.ndarray) -> Tensor:
            return torch.as_tensor(np.array(values), device=device)

        self.masses = here(atoms.get_masses().astype(np.float64)[:, None])
        self.scale = potential.scale.constant
        numbers = here(np.tile(np.asarray(atoms.numbers, dtype=np.int64), copies))
        self.offset = float(potential.offsets[numbers[:n]].sum())
        self.listed = torch.zeros(copies, n, 3, dtype=torch.float64, device=device)
        self.limit = torch.zeros((), dtype=torch.float64, device=device)  # (skin/2)^2
        self.graph = FixedGraph(
            numbers=numbers,
            positions=torch.zeros(copies * n, 3, dtype=torch.float64, device=device),
            system=torch.arange(copies, device=device).repeat_interleave(n),
            n_systems=copies,
            pairs=torch.zeros(2, capacity, dtype=torch.int64, device=device),
            offsets=torch.zeros(capacity, 3, dtype=torch.float64, device=device),
        )
        self.reach = potential.cutoff + calculator.skin
        self.lonely = calculator.allow_isolated or n == 1
        self.stretch = watch.bond_stretch_A if len(watch.lengths) else None
        i, j, shift = watch.bonds
        self.bonds = (here(i), here(j), here(shift @ watch.cell))
        self.lengths = here(watch.lengths)

    def list_pairs(
        self, pairs: np.ndarray, offsets: np.ndarray | None, positions: np.ndarray, limit: float
    ) -> None:
        """Take other pairs, at most :attr:`capacity`.

        Args:
            pairs: Atoms numbered through all copies, int64, shape [2, n_pairs].
            offsets: Between the cells of each pair, A, shape [n_pairs, 3], or None for none.
            positions: For which they are, A, shape [R, n_atoms, 3].
            limit: (skin/2)^2, A^2; infinite where all pairs there can be are listed.
        """
        count, spare = pairs.shape[1], self.capacity - pairs.shape[1]
        # An atom with an image of its own that is out of the cutoff, wherever the atom goes.
        idle = np.arange(spare, dtype=np.int64) % (self.n_atoms * self.copies)
        all_pairs = np.concatenate([pairs, np.stack([idle, idle])], axis=1)
        all_offsets = np.zeros((self.capacity, 3))
        all_offsets[count:, 0] = self.reach
        if offsets is not None:
            all_offsets[:count] = offsets
        assert self.graph.offsets is not None
        self.graph.pairs.copy_(torch.as_tensor(all_pairs))
        self.graph.offsets.copy_(torch.as_tensor(all_offsets))
        self.listed.copy_(torch.as_tensor(positions).view_as(self.listed))
        self.limit.fill_(limit)

    def start(self, state: np.ndarray) -> None:
        """Begin at positions, momenta and forces, shape [3, R, n_atoms, 3]."""
        self.state[0].copy_(torch.as_tensor(state).view_as(self.state[0]))

    def go_on(self, steps: int) -> None:
        """Begin where so many steps of the last replay have led."""
        self.state[0].copy_(self.state[steps])

    @torch.no_grad()
    def __call__(self) -> None:
        """The K steps, and what there is to say about them."""
        for k in range(self.steps):
            (x, p, f), (x_next, p_next, f_next) = self.state[k], self.state[k + 1]
            torch.add(p, f, alpha=0.5 * self.dt, out=p_next)
            torch.addcdiv(x, p_next, self.masses, value=self.dt, out=x_next)
            # After a blow-up the steps that follow are done too, in vain: keep indices in bounds.
            finite = torch.nan_to_num(x_next.flatten(0, 1), 0.0, 0.0, 0.0)
            energies, forces = self.potential.energies_and_forces(
                replace(self.graph, positions=finite)
            )
            torch.mul(forces.view_as(f), self.scale, out=f_next)
            p_next.add_(f_next, alpha=0.5 * self.dt)
            self.told[k + 1, 0].copy_(energies)
        self._look()

    def _look(self) -> None:
        """Energies in eV, and whether the steps hold; the criteria of BlowUpWatch."""
        state, told = self.state[1:], self.told[1:]
        x, p = state[:, 0], state[:, 1]  # [K, R, n_atoms, 3]
        potential = told[:, 0].mul_(self.scale).add_(self.offset)
        kinetic = 0.5 * (p * p / self.masses).sum(dim=(2, 3))
        covered = (x - self.listed).square().sum(-1) < self.limit
        # Positions that are not finite are not covered; forces that are not have made momenta that
        # are not, and those an energy below no limit.
        sound = potential.isfinite() & (kinetic <= self.heat)
        if self.stretch is not None:
            i, j, shift = self.bonds
            vectors = x.index_select(2, j) - x.index_select(2, i) + shift
            lengths = torch.linalg.vector_norm(vectors, dim=-1)
            sound &= (lengths - self.lengths <= self.stretch).all(-1)
        if not self.lonely:
            sound &= (self._neighbours(x.flatten(1, 2)) > 0).view_as(covered).all(-1)
        told[:, 1].copy_(kinetic)
        told[:, 2].copy_(~covered.all(-1))
        told[:, 3].copy_(~sound)

    def _neighbours(self, x: Tensor) -> Tensor:
        """How many each atom has within the cutoff, [K, R n_atoms], at ``x`` [K, R n_atoms, 3]."""
        assert self.graph.offsets is not None
        i, j = self.graph.pairs
        r = x.index_select(1, j) - x.index_select(1, i) + self.graph.offsets
        near = (r.square().sum(-1) < self.potential.cutoff**2).to(x.dtype)
        return x.new_zeros(x.shape[:2]).index_add_(1, i, near).index_add_(1, j, near)

    def replay(self) -> Steps:
        """Do the steps, and fetch them."""
        self.run()
        rows = self.rows[1:].to("cpu", copy=True).numpy()
        state, told = np.split(rows, [self.state[0].numel()], axis=1)
        state, told = state.reshape(-1, *self.state.shape[1:]), told.reshape(-1, 4, self.copies)
        return Steps(state, told[:, :2], told[:, 2] != 0, told[:, 3] != 0)
