"""Objectives: named, weighted terms. One form for forces, PDE residuals and constraints alike.

A *problem* turns a model and a batch into residuals, one tensor a term::

    terms(model, batch, training) -> {"energy": [n_systems], "forces": [n_atoms, 3]}

Residuals are not reduced, so that the objective can apply any loss, and so that several processes
can divide by the number of elements in the joint batch rather than average averages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dcase.errors import OptionError
from dcase.options import check_types

LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l1": lambda r, _: r.abs(),
    "l2": lambda r, _: r * r,
    "huber": lambda r, delta: nn.functional.huber_loss(
        r, torch.zeros_like(r), reduction="none", delta=delta
    ),
}


@dataclass(frozen=True)
class Term:
    """One term of an objective.

    Attributes:
        weight: Factor of the mean loss; 0 leaves the term out of the loss but not out of reports.
        loss: ``"l1"``, ``"l2"`` (no factor 1/2) or ``"huber"`` (quadratic within ``delta``).
        delta: Where the Huber loss turns linear, in the residual's unit.
    """

    weight: float = 1.0
    loss: str = "l2"
    delta: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        if self.loss not in LOSSES:
            raise OptionError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")
        if self.weight < 0:
            raise OptionError(f"a loss weight must be zero or positive, got {self.weight}")
        if not self.delta > 0:
            raise OptionError(f"delta of the Huber loss must be positive, got {self.delta}")


class Problem(Protocol):
    """What a domain implements."""

    @property
    def display(self) -> Mapping[str, tuple[float, str]]:
        """For reports, by term: factor from the residual's unit to a physical one, and its name."""
        ...

    def terms(self, model: nn.Module, batch: Any, training: bool) -> dict[str, Tensor]:
        """Residuals by name; differentiable in the model's parameters when ``training``."""
        ...


class Objective:
    """Weighs and sums a problem's terms.

    Args:
        problem: Gives the residuals.
        terms: The terms to use, by name. Residuals of other names are ignored.

    Raises:
        OptionError: If no term has a positive weight.
    """

    def __init__(self, problem: Problem, terms: Mapping[str, Term]):
        if not any(term.weight > 0 for term in terms.values()):
            raise OptionError("at least one loss term needs a positive weight")
        self.problem = problem
        self.terms = dict(terms)

    def residuals(self, model: nn.Module, batch: Any, training: bool = True) -> dict[str, Tensor]:
        """The problem's residuals for the terms in use.

        Raises:
            OptionError: If the problem does not provide a term.
        """
        found = self.problem.terms(model, batch, training)
        missing = [name for name in self.terms if name not in found]
        if missing:
            raise OptionError(
                f"the problem has no term {missing[0]!r}; it has: {', '.join(found) or 'none'}"
            )
        return {name: found[name] for name in self.terms}

    def reduce(
        self,
        residuals: Mapping[str, Tensor],
        counts: Mapping[str, float] | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and each term's mean loss (unweighted).

        Args:
            residuals: From :meth:`residuals`.
            counts: Elements to divide by; default: those here. Given the number of elements in the
                joint batch of several processes, the sum of their losses is the joint loss.
            factors: By which to multiply the weights; 1 where one is missing.
        """
        values = {}
        for name, term in self.terms.items():
            r = residuals[name]
            count = r.numel() if counts is None else counts[name]
            values[name] = LOSSES[term.loss](r, term.delta).sum() / max(count, 1)
        used = [
            (term.weight * (factors or {}).get(name, 1.0), values[name])
            for name, term in self.terms.items()
            if term.weight > 0
        ]
        total = used[0][0] * used[0][1]
        for weight, value in used[1:]:
            total = total + weight * value
        return total, values
