"""Linear potentials: atomic energies and pair functions, with forces that are their derivatives.

    E    = E_c + sum_i E0[z_i] + sum_{i<j} sum_k w[{z_i, z_j}, k] phi_k(d_ij)
    F_i  = sum_j sum_k w[{z_i, z_j}, k] phi_k'(d_ij) (x_j - x_i) / d_ij  =  -dE/dx_i
    phi_k(d) = exp(-(d - mu_k)^2 / (2 s^2)) (1 + cos(pi d / rc)) / 2

Everything is float64 and without autograd. :mod:`dcase.potentials.fitting.baseline` fits them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.quantity import ENERGY, Quantity
from dcase.rescaling import LabelScale

FIRST_CENTRE = 0.5  # A; no two nuclei of a molecule come closer


@dataclass(frozen=True)
class PairBasis:
    """Gaussians times a cutoff on the distance, a set for every pair of elements.

    Attributes:
        elements: Atomic numbers, ascending.
        cutoff: A.
        size: Functions a pair of elements.
        width: Standard deviation of the Gaussians, A.
    """

    elements: tuple[int, ...]
    cutoff: float
    size: int
    width: float

    @property
    def channels(self) -> int:
        """Unordered pairs of elements."""
        return len(self.elements) * (len(self.elements) + 1) // 2

    @property
    def columns(self) -> int:
        """Weights altogether."""
        return self.channels * self.size

    def species(self, graph: AtomicGraph) -> Tensor:
        """Index of each atom's element, int64, shape [n_atoms]."""
        table = torch.full((119,), -1, dtype=torch.int64)
        table[list(self.elements)] = torch.arange(len(self.elements))
        return table[graph.numbers]

    def channel(self, first: Tensor, second: Tensor) -> Tensor:
        """Which unordered pair two species are; any shape."""
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        return high * (high + 1) // 2 + low

    def functions(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """``phi_k(d)`` and ``phi_k'(d)``, float64, each [n_pairs, size], from d [n_pairs] in A."""
        centres = torch.linspace(FIRST_CENTRE, self.cutoff, self.size, dtype=torch.float64)
        d = distances.double().clamp(max=self.cutoff).unsqueeze(1)
        z = (d - centres) / self.width
        gaussian = torch.exp(-0.5 * z * z)
        turn = math.pi / self.cutoff
        envelope = 0.5 * (1.0 + torch.cos(turn * d))
        slope = -0.5 * turn * torch.sin(turn * d)
        return gaussian * envelope, gaussian * (slope - envelope * z / self.width)


@dataclass(frozen=True)
class LinearPotential:
    """A baseline: called with a graph it answers as a Potential does.

    Attributes:
        kind: ``"mean"``, ``"composition"`` or ``"pairs"``.
        elements: Atomic numbers it knows, ascending.
        constant: What every system gets, eV (``"mean"``; else 0).
        offsets: E0 in eV by atomic number (empty for ``"mean"``).
        basis: Of ``"pairs"``, else None.
        weights: eV, float64, shape [channels, size], or None.
        ridge: lambda, for a loss in eV^2, eV^2/A^2.
        level_of_theory: Of the training labels.
        quantity: What it predicts; if that is no energy, all that is in eV here is in its unit.
    """

    kind: str
    elements: list[int]
    constant: float = 0.0
    offsets: dict[int, float] = field(default_factory=dict)
    basis: PairBasis | None = None
    weights: Tensor | None = None
    ridge: float = 0.0
    level_of_theory: str = "unknown"
    quantity: Quantity = ENERGY

    @property
    def cutoff(self) -> float:
        """Pairs beyond it do not matter, A (without pairs: any)."""
        return 5.0 if self.basis is None else self.basis.cutoff

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Always float64."""
        return torch.float64

    @property
    def num_parameters(self) -> int:
        """Fitted numbers."""
        weights = 0 if self.weights is None else self.weights.numel()
        return weights + len(self.offsets) + (self.kind == "mean")

    def eval(self) -> LinearPotential:
        """Itself; there is nothing to switch."""
        return self

    def __call__(self, graph: AtomicGraph, *, forces: bool = True) -> dict[str, Tensor]:
        """``"energy"`` eV [n_systems], ``"energies"`` eV [n_atoms], ``"forces"`` eV/A [n_atoms, 3].

        An atom of a pair has half of the pair's energy. Of a quantity that is no energy: its values
        alone, by its name, [n_systems].

        Args:
            graph: One or more systems; pairs must cover :attr:`cutoff`.
            forces: For agreement with Potential; they cost next to nothing.
        """
        if self.kind == "mean":
            return self._mean(graph)
        per_atom = LabelScale(offsets=self.offsets).table()[graph.numbers]
        pulls = torch.zeros_like(graph.positions)
        if self.basis is not None and self.weights is not None:
            i, j = graph.pairs
            r = graph.vectors()
            d = torch.linalg.vector_norm(r, dim=1)
            value, slope = self.basis.functions(d)
            w = self.weights[self.basis.channel(*self.basis.species(graph)[graph.pairs])]
            half = 0.5 * (value * w).sum(1)
            per_atom = per_atom.index_add(0, i, half).index_add(0, j, half)
            pull = ((slope * w).sum(1) / d).unsqueeze(1) * r
            pulls = pulls.index_add(0, i, pull).index_add(0, j, -pull)
        total = self.quantity.read_out(per_atom, graph)
        if not self.quantity.is_energy:
            return {self.quantity.key: total}
        found = {"energy": total, "energies": per_atom}
        return {**found, "forces": pulls} if forces else found

    def _mean(self, graph: AtomicGraph) -> dict[str, Tensor]:
        total = torch.full((graph.n_systems,), self.constant, dtype=torch.float64)
        if not self.quantity.is_energy:
            return {self.quantity.key: total}
        counts = torch.bincount(graph.system, minlength=graph.n_systems)
        per_atom = (total / counts)[graph.system]
        return {"energy": total, "energies": per_atom, "forces": torch.zeros_like(graph.positions)}
