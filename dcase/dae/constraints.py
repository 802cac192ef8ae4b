"""Constraints c(r) = 0 on positions, and the products with their derivatives that methods need.

No Jacobian is ever stored: methods ask for J dr, J^T lam, second derivatives along directions, and
solutions of (J W J^T) x = b. :class:`Distances` has closed forms of all of them;
:class:`FunctionConstraint` gets them for any function from ``torch.func``.

Shapes: positions ``r`` and directions ``dr`` [B, N, d]; constraints and multipliers [B, m].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dcase.dae.linear import BlockSolver, Solver, SymmetricSolver
from dcase.errors import OptionError


class Linearized(Protocol):
    """A constraint about fixed positions: products there, as often as they are needed."""

    def jvp(self, dr: Tensor) -> Tensor:
        """J dr [B, m]."""
        ...

    def vjp(self, lam: Tensor) -> Tensor:
        """J^T lam [B, N, d]."""
        ...

    def curvature(self, lam: Tensor, dr: Tensor) -> Tensor:
        """(sum_i lam_i Hessian of c_i) dr [B, N, d]."""
        ...

    def second(self, a: Tensor, b: Tensor) -> Tensor:
        """a^T (Hessian of c_i) b for every i [B, m]."""
        ...

    def gram(self, weight: Tensor | None = None) -> Solver:
        """Solves (J W J^T) x = b, W diagonal with ``weight`` [N, 1] (None: ones)."""
        ...


class Constraint(ABC):
    """Equations c(r) = 0 that every sample obeys by itself.

    Attributes:
        count: Equations a sample, m.
        tolerance: Largest violation, in the unit of :meth:`violation`, that a projection leaves.
    """

    count: int
    tolerance: float

    @abstractmethod
    def __call__(self, r: Tensor) -> Tensor:
        """c(r) [B, m], in the form that penalties and auxiliary losses use."""

    def violation(self, r: Tensor) -> Tensor:
        """How far from fulfilled each equation is [B, m], in physical units, not negative."""
        return self(r).abs()

    def jvp(self, r: Tensor, dr: Tensor) -> Tensor:
        """J dr [B, m]."""
        return torch.func.jvp(self, (r,), (dr,))[1]

    def vjp(self, r: Tensor, lam: Tensor) -> Tensor:
        """J^T lam [B, N, d]."""
        return torch.func.vjp(self, r)[1](lam)[0]

    def curvature(self, r: Tensor, lam: Tensor, dr: Tensor) -> Tensor:
        """(sum_i lam_i Hessian of c_i) dr [B, N, d]."""
        return torch.func.jvp(lambda at: self.vjp(at, lam), (r,), (dr,))[1]

    def second(self, r: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """a^T (Hessian of c_i) b for every i [B, m]."""
        return torch.func.jvp(lambda at: self.jvp(at, a), (r,), (b,))[1]

    def gram(self, r: Tensor, weight: Tensor | None = None) -> Solver:
        """Solves (J W J^T) x = b, W diagonal with ``weight`` [N, 1] (None: ones)."""
        basis = torch.eye(self.count, dtype=r.dtype, device=r.device)
        pull = torch.func.vjp(self, r)[1]
        rows = torch.vmap(lambda lam: pull(lam.expand(len(r), -1))[0])(basis)  # [m, B, N, d]
        scaled = rows if weight is None else rows * weight
        return SymmetricSolver(torch.einsum("mbnd,kbnd->bmk", rows, scaled))

    def at(self, r: Tensor) -> Linearized:
        """The products above about ``r``."""
        return _At(self, r)

    def for_newton(self) -> Constraint:
        """The same manifold by equations on which Newton's method goes further; default: these."""
        return self


@dataclass(frozen=True)
class _At:
    """Asks the constraint each time."""

    constraint: Constraint
    r: Tensor

    def jvp(self, dr: Tensor) -> Tensor:
        return self.constraint.jvp(self.r, dr)

    def vjp(self, lam: Tensor) -> Tensor:
        return self.constraint.vjp(self.r, lam)

    def curvature(self, lam: Tensor, dr: Tensor) -> Tensor:
        return self.constraint.curvature(self.r, lam, dr)

    def second(self, a: Tensor, b: Tensor) -> Tensor:
        return self.constraint.second(self.r, a, b)

    def gram(self, weight: Tensor | None = None) -> Solver:
        return self.constraint.gram(self.r, weight)


class FunctionConstraint(Constraint):
    """Any differentiable function as constraint.

    Args:
        function: From positions [B, N, d] to residuals [B, m], sample by sample, by torch
            operations that ``torch.func`` can differentiate twice.
        count: m.
        tolerance: Largest residual that a projection leaves.

    Example:
        Atoms 0 and 1 stay at the same height::

            level = FunctionConstraint(lambda r: r[:, 0, 2:] - r[:, 1, 2:], count=1)
    """

    def __init__(self, function: Callable[[Tensor], Tensor], count: int, tolerance: float = 1e-4):
        self.function, self.count, self.tolerance = function, count, tolerance

    def __call__(self, r: Tensor) -> Tensor:
        """c(r) [B, m].

        Raises:
            OptionError: If the function gives another shape.
        """
        value = self.function(r)
        if value.shape != (len(r), self.count):
            raise OptionError(
                f"a constraint of {self.count} equations must give ({len(r)}, {self.count}) for "
                f"{len(r)} samples, not {tuple(value.shape)}"
            )
        return value


class Distances(Constraint):
    """Fixed distances between nodes: rods, bonds, rigid molecules.

    Args:
        pairs: [m, 2] node numbers; -1 is a fixed point at the origin.
        lengths: [m] positive, in the unit of the positions.
        n_nodes: N.
        squared: c = |r_j - r_i|^2 - l^2, smooth everywhere and with a shorter gradient for short
            distances, rather than |r_j - r_i| - l. :meth:`violation` is ``||r_j - r_i| - l|``
            in both cases.
        tolerance: Largest violation that a projection leaves.

    Raises:
        OptionError: For impossible pairs or lengths.
    """

    def __init__(
        self,
        pairs: Sequence[Sequence[int]] | Tensor,
        lengths: Sequence[float] | Tensor,
        n_nodes: int,
        *,
        squared: bool = False,
        tolerance: float = 1e-4,
    ):
        self.pairs = torch.as_tensor(pairs, dtype=torch.long).reshape(-1, 2)
        self.lengths = torch.as_tensor(lengths, dtype=torch.float64).reshape(-1)
        self.n_nodes, self.squared, self.tolerance = n_nodes, squared, tolerance
        self.count = len(self.pairs)
        first, second = self.pairs.T
        if self.count == 0 or len(self.lengths) != self.count:
            raise OptionError(
                f"distances need as many lengths as pairs, and at least one: got {self.count} "
                f"pairs, {len(self.lengths)} lengths"
            )
        if bool((self.pairs < -1).any() | (self.pairs >= n_nodes).any() | (first == second).any()):
            raise OptionError(f"a distance needs two different nodes of 0 to {n_nodes - 1} (or -1)")
        if not bool(((self.lengths > 0) & self.lengths.isfinite()).all()):
            raise OptionError("distances must be positive numbers")
        signs = torch.zeros(self.count, n_nodes + 1, dtype=torch.float64)
        rows = torch.arange(self.count)
        signs[rows, second] += 1.0
        signs[rows, first] -= 1.0  # -1 is the last column, which stays out: it does not move
        self._signs = signs[:, :n_nodes]
        self._kept: dict[Any, Any] = {}  # constants by dtype and device, solvers by weight

    def _on(self, r: Tensor) -> tuple[Tensor, ...]:
        """Signs [m, N] and lengths [m] as ``r`` is."""
        key = (r.dtype, r.device)
        if key not in self._kept:
            self._kept[key] = self._signs.to(*key[::-1]), self.lengths.to(*key[::-1])
        return self._kept[key]

    def _between(self, dr: Tensor) -> Tensor:
        """Differences [B, m, d]."""
        return self._on(dr)[0] @ dr

    def _back(self, per_pair: Tensor) -> Tensor:
        """The transpose of :meth:`_between`: [B, m, d] to [B, N, d]."""
        return self._on(per_pair)[0].T @ per_pair

    def _directions(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of J by pair [B, m, d], and lengths now [B, m, 1]."""
        between = self._between(r)
        now = between.square().sum(-1, keepdim=True)
        if self.squared:
            return 2.0 * between, now
        # Two nodes in one place have no direction; none is better than NaN.
        now = now.clamp_min(torch.finfo(r.dtype).tiny ** 0.5).sqrt()
        return between / now, now

    def __call__(self, r: Tensor) -> Tensor:
        """c(r) [B, m]."""
        now = self._between(r).square().sum(-1)
        length = self._on(r)[1]
        if self.squared:
            return now - length.square()
        return now.clamp_min(torch.finfo(r.dtype).tiny ** 0.5).sqrt() - length

    def violation(self, r: Tensor) -> Tensor:
        """``||r_j - r_i| - l|`` [B, m]."""
        return (torch.linalg.vector_norm(self._between(r), dim=-1) - self._on(r)[1]).abs()

    def at(self, r: Tensor) -> _DistancesAt:
        """Directions and lengths are worked out once."""
        return _DistancesAt(self, *self._directions(r))

    def jvp(self, r: Tensor, dr: Tensor) -> Tensor:
        """J dr [B, m]."""
        return self.at(r).jvp(dr)

    def vjp(self, r: Tensor, lam: Tensor) -> Tensor:
        """J^T lam [B, N, d]."""
        return self.at(r).vjp(lam)

    def curvature(self, r: Tensor, lam: Tensor, dr: Tensor) -> Tensor:
        """(sum_i lam_i Hessian of c_i) dr [B, N, d]."""
        return self.at(r).curvature(lam, dr)

    def second(self, r: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """a^T (Hessian of c_i) b for every i [B, m]."""
        return self.at(r).second(a, b)

    def gram(self, r: Tensor, weight: Tensor | None = None) -> Solver:
        """Solves (J W J^T) x = b by blocks of connected pairs."""
        return self.at(r).gram(weight)

    def _solver(self, weight: Tensor | None) -> BlockSolver:
        key = ("solver", None if weight is None else tuple(weight.flatten().tolist()))
        if key not in self._kept:
            w = torch.ones(self.n_nodes, 1) if weight is None else weight.detach().cpu()
            self._kept[key] = BlockSolver(self._signs @ (w.double() * self._signs.T))
        return self._kept[key]

    def for_newton(self) -> Constraint:
        """Plain distances: a rod of the wrong length is put right in one step."""
        if not self.squared:
            return self
        if "plain" not in self._kept:
            self._kept["plain"] = Distances(
                self.pairs, self.lengths, self.n_nodes, tolerance=self.tolerance
            )
        return self._kept["plain"]


@dataclass(frozen=True)
class _DistancesAt:
    """Products of :class:`Distances` with rows of J [B, m, d] (and lengths now [B, m, 1])."""

    constraint: Distances
    rows: Tensor
    now: Tensor

    def jvp(self, dr: Tensor) -> Tensor:
        return (self.rows * self.constraint._between(dr)).sum(-1)

    def vjp(self, lam: Tensor) -> Tensor:
        return self.constraint._back(self.rows * lam.unsqueeze(-1))

    def curvature(self, lam: Tensor, dr: Tensor) -> Tensor:
        return self.constraint._back(lam.unsqueeze(-1) * self._bend(dr))

    def second(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.constraint._between(a) * self._bend(b)).sum(-1)

    def _bend(self, dr: Tensor) -> Tensor:
        """Change of the rows along dr [B, m, d]."""
        change = self.constraint._between(dr)
        if self.constraint.squared:
            return 2.0 * change
        return (change - self.rows * (self.rows * change).sum(-1, keepdim=True)) / self.now

    def gram(self, weight: Tensor | None = None) -> Solver:
        return self.constraint._solver(weight).at(self.rows)


def chain(n_nodes: int, length: float = 1.0, *, tolerance: float = 1e-4) -> Distances:
    """Rods from the origin to node 0, from it to node 1, and so on: a multi-body pendulum.

    The equations are the squared ones, as in the paper's experiments.
    """
    pairs = [(i - 1, i) for i in range(n_nodes)]
    return Distances(pairs, [length] * n_nodes, n_nodes, squared=True, tolerance=tolerance)


def rigid_water(
    n_molecules: int, oh: float = 0.957, hh: float = 1.513, *, tolerance: float = 5e-4
) -> Distances:
    """Three distances a molecule, atoms in the order O, H, H; lengths in A (the paper's)."""
    pairs, lengths = [], []
    for o in range(0, 3 * n_molecules, 3):
        pairs += [(o, o + 1), (o, o + 2), (o + 1, o + 2)]
        lengths += [oh, oh, hh]
    return Distances(pairs, lengths, 3 * n_molecules, tolerance=tolerance)
