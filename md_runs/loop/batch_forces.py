"""Forces of many copies of one system at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms

from dcase.errors import OptionError
from dcase.md_runs.loop.compiled_blocks import evaluates_the_potential
from dcase.potentials.calculator import DCCalculator, NeighbourList
from dcase.potentials.graphs.graph import AtomicGraph

SYSTEMS_AT_A_TIME = 8
"""Copies in one call of the compiled form: more amortise the call, fewer stay in the cache."""


class BatchForces:
    """Energies and forces of R copies of a system (same atoms, same cell, other positions).

    Args:
        calculator: Whose potential is evaluated, in its compiled form where it has one.
        numbers: Atomic numbers of one copy, shape [n].
        cell: Lattice vectors as rows, A, shape [3, 3].
        pbc: Periodic directions, shape [3].

    Raises:
        OptionError: If the calculator is none of dcase's.
    """

    def __init__(
        self, calculator: Any, numbers: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> None:
        if not evaluates_the_potential(calculator):
            raise OptionError("replicas need a potential of dcase (DCCalculator, no subclass)")
        self.calculator: DCCalculator = calculator
        self.numbers, self.cell = np.asarray(numbers), np.asarray(cell)
        self._atoms = Atoms(self.numbers, cell=self.cell, pbc=pbc)  # to search for pairs with
        self.lists: dict[int, NeighbourList] = {}

    def reset(self) -> None:
        """Forget all pairs, so that what follows does not depend on what went before."""
        self.lists.clear()

    def __call__(self, positions: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Potential energies and forces.

        Args:
            positions: A, shape [R, n, 3].
            which: Number of each copy, by which its pairs are kept, shape [R].

        Returns:
            eV [R] and eV/A [R, n, 3]; NaN where a potential gave none or an atom has flown away
            from all others.
        """
        energies = np.full(len(which), np.nan)
        forces = np.full(positions.shape, np.nan)
        good = np.flatnonzero(np.isfinite(positions).all(axis=(1, 2)))
        for begin in range(0, len(good), SYSTEMS_AT_A_TIME):
            some = good[begin : begin + SYSTEMS_AT_A_TIME]
            found = [self._pairs(int(which[r]), positions[r]) for r in some]
            energies[some], forces[some] = self._evaluate(positions[some], found)
        return energies, forces

    def _pairs(self, copy: int, positions: np.ndarray) -> NeighbourList:
        self._atoms.positions[:] = positions
        self.lists[copy] = self.calculator.search(self._atoms, self.lists.get(copy))
        return self.lists[copy]

    def _evaluate(
        self, positions: np.ndarray, lists: list[NeighbourList]
    ) -> tuple[np.ndarray, np.ndarray]:
        count, n = positions.shape[:2]
        numbers = np.tile(self.numbers, count)
        flat = positions.reshape(-1, 3)
        pairs = np.concatenate([p.pairs + n * k for k, p in enumerate(lists)], axis=1)
        offsets = None
        if lists[0].offsets is not None:
            offsets = np.concatenate([p.offsets for p in lists])  # type: ignore[misc]
        deployed = self.calculator.deployed
        if deployed is not None:
            found = deployed(numbers, flat, pairs, offsets)
            per_atom, forces = found.energies.mean(axis=0), found.forces.mean(axis=0)
            neighbours = found.neighbours
        else:
            per_atom, forces, neighbours = self._plain(numbers, flat, pairs, lists, count)
        energies = per_atom.reshape(count, n).sum(axis=1)
        forces = forces.reshape(count, n, 3).copy()
        if n > 1 and not self.calculator.allow_isolated:
            lonely = (neighbours.reshape(count, n) == 0).any(axis=1)
            energies[lonely], forces[lonely] = np.nan, np.nan
        return energies, forces

    def _plain(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        pairs: np.ndarray,
        lists: list[NeighbourList],
        count: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By PyTorch, on the calculator's device."""
        potential, device = self.calculator.potential, self.calculator.device
        n = len(self.numbers)
        shifts = [p.wide.shifts for p in lists if p.wide.shifts is not None]
        graph = AtomicGraph(
            numbers=torch.as_tensor(numbers, dtype=torch.int64),
            positions=torch.as_tensor(positions),
            system=torch.arange(count).repeat_interleave(n),
            n_systems=count,
            pairs=torch.as_tensor(pairs),
            shifts=torch.cat(shifts) if shifts else None,
            cells=torch.as_tensor(self.cell).expand(count, 3, 3).clone() if shifts else None,
        ).to(device)
        r = graph.vectors()
        inside = (r * r).sum(dim=1) < potential.cutoff**2
        graph = AtomicGraph(
            graph.numbers, graph.positions, graph.system, count, graph.pairs[:, inside],
            None if graph.shifts is None else graph.shifts[inside], graph.cells,
        )  # fmt: skip
        result = potential(graph)
        counts = torch.bincount(graph.pairs.flatten(), minlength=len(numbers))
        return (
            result["energies"].cpu().numpy(),
            result["forces"].cpu().numpy(),
            counts.cpu().numpy(),
        )
