"""Weights of loss terms that follow the terms: by gradient norms, or by the tangent kernel.

Every ``balance_every`` steps each term with a weight gets a size, on the batch of that step:

| balance | size of term i with residuals r (N of them) and mean loss L |
|---|---|
| ``gradient-norm`` | ``||dL/dtheta||`` (Wang, Teng and Perdikaris, arXiv 2001.04536) |
| ``ntk`` | ``tr(K) / N`` with ``K = J J^T``, ``J = dr/dtheta`` (arXiv 2007.14527) |

and the factor ``mean of all sizes / size``. So the gradients of all terms get the same norm, or
their residuals the same mean rate of convergence. The trace is Hutchinson's estimate, the mean of
``||J^T v||^2`` over :data:`PROBES` vectors of random signs; one is ``sum of ||dr/dtheta||^2`` on
average, and no J is made.

Factors are averaged geometrically, ``f <- f^m f_now^(1 - m)`` with ``m = balance_momentum``, from
the first estimate on: a gradient that nearly vanishes for a moment does not blow up its term. A
term whose size is zero or not finite keeps its factor. Factors multiply the weights that the
objective has; those then say which shares the terms should have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dcase.objective import Objective
from dcase.training.processes import Processes
from dcase.training.settings import TrainSettings

PROBES = 4


class Balance:
    """Factors of an objective's terms.

    Args:
        settings: Name the rule, and how often and how smoothly it is applied.
        objective: Has the terms.

    Attributes:
        factors: By term; terms that were never estimated are missing, and count as 1.
    """

    def __init__(self, settings: TrainSettings, objective: Objective):
        self.settings, self.objective = settings, objective
        self.factors: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Whether to update before ``step``. Quasi-Newton would mistake it for curvature."""
        return step == 0 if self.settings.quasi_newton else step % self.settings.balance_every == 0

    def update(
        self,
        residuals: Mapping[str, Tensor],
        counts: Mapping[str, float],
        parameters: Sequence[Tensor],
        step: int,
        processes: Processes,
    ) -> None:
        """Estimate the factors anew.

        Args:
            residuals: Of this process's share of the batch, with their graph, which stays; empty
                if it has none.
            counts: Elements of each in the joint batch.
            parameters: Of the model.
            step: Number of the step, which with the seed makes the random signs.
            processes: Those that train together.
        """
        names = [name for name, term in self.objective.terms.items() if term.weight > 0]
        measure = self._norms if self.settings.balance == "gradient-norm" else self._traces
        sizes = measure(names, residuals, counts, parameters, step, processes)
        known = {n: s for n, s in zip(names, sizes, strict=True) if 0 < s < math.inf}
        mean = sum(known.values()) / max(len(known), 1)
        momentum = self.settings.balance_momentum
        for name, size in known.items():
            now = mean / size
            before = self.factors.get(name, now)
            self.factors[name] = before**momentum * now ** (1.0 - momentum)

    def _norms(
        self,
        names: list[str],
        residuals: Mapping[str, Tensor],
        counts: Mapping[str, float],
        parameters: Sequence[Tensor],
        step: int,
        processes: Processes,
    ) -> list[float]:
        losses = self.objective.reduce(residuals, counts)[1] if residuals else {}
        gradients = torch.stack([_gradient(losses.get(n), parameters) for n in names])
        return processes.sum_tensor(gradients).norm(dim=1).tolist()

    def _traces(
        self,
        names: list[str],
        residuals: Mapping[str, Tensor],
        counts: Mapping[str, float],
        parameters: Sequence[Tensor],
        step: int,
        processes: Processes,
    ) -> list[float]:
        number = (self.settings.seed * 1_000_003 + step) * processes.world + processes.rank
        generator = torch.Generator().manual_seed(number)
        sums = []
        for name in names:
            r, total = residuals.get(name), 0.0
            for _ in range(PROBES if r is not None else 0):
                assert r is not None
                signs = torch.randint(0, 2, r.shape, generator=generator).to(r) * 2 - 1
                # Independent signs everywhere, so that shares of the processes add up.
                total += float(_gradient((signs * r).sum(), parameters).square().sum())
            sums.append(total / PROBES)
        joint = processes.sum(sums)
        return [value / max(counts[name], 1.0) for value, name in zip(joint, names, strict=True)]

    def state(self) -> dict[str, Any]:
        """For a training state."""
        return {"factors": dict(self.factors)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self.factors = {name: float(value) for name, value in state["factors"].items()}


def _gradient(value: Tensor | None, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient as one vector; zeros of what ``value`` does not depend on."""
    if value is None or not value.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(parameters, found, strict=True)
        ]
    )
