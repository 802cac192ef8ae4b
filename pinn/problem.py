"""A problem: an equation on a domain with conditions, and perhaps a reference solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dcase.errors import OptionError
from dcase.pinn.conditions import (
    Condition,
    Dirichlet,
    Initial,
    Periodic,
    Placement,
    no_flux,
    wall_points,
)
from dcase.pinn.derivatives.names import trace
from dcase.pinn.domains import Domain
from dcase.pinn.equations import Advection, CompressibleFlow, DiffusionReaction, with_parameters
from dcase.pinn.initial import GridState, InitialState
from dcase.pinn.sample import Sample


@dataclass(frozen=True)
class PDEProblem:
    """What a network is to solve.

    Attributes:
        name: For files and messages.
        equation: See :mod:`dcase.pinn.equations`.
        domain: Coordinates in the order of the equation's.
        conditions: See :mod:`dcase.pinn.conditions`.
        reference: A solution to compare with, or None; or a function that works it out when it is
            wanted.
        scales: Typical mean and standard deviation of each field; default: of the initial state.

    Raises:
        OptionError: If equation, domain and conditions do not fit together.
    """

    name: str
    equation: Any
    domain: Domain
    conditions: Sequence[Condition]
    reference: Sample | Callable[[], Sample] | None = None
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        equation = self.equation
        if tuple(equation.coordinates) != self.domain.coordinates:
            raise OptionError(
                f"{self.name}: the equation's coordinates are {', '.join(equation.coordinates)}, "
                f"the domain's {', '.join(self.domain.coordinates)}"
            )
        trace(equation)  # an unknown name in the residuals is found here, not in training
        for condition in self.conditions:
            for name in condition.wanted(self.domain):
                known = (
                    *equation.fields,
                    *equation.coordinates,
                )  # a wall's value may be a function
                if name.split("_")[0] not in known:
                    raise OptionError(
                        f"{self.name}: a condition ({condition.kind}) is about {name}, but the "
                        f"fields are {', '.join(equation.fields)}"
                    )

    @property
    def initial(self) -> InitialState | None:
        """The initial state, if there is a condition on it."""
        for condition in self.conditions:
            if isinstance(condition, Initial):
                return condition.state
        return None

    def field_scales(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of each field, as far as is known; else (0, 1)."""
        state = self.initial
        known = {**(state.scales() if state else {}), **self.scales}
        return {name: known.get(name, (0.0, 1.0)) for name in self.equation.fields}

    def sample(self) -> Sample | None:
        """The reference solution."""
        return self.reference() if callable(self.reference) else self.reference

    def hardened(self, kinds: Sequence[str]) -> PDEProblem:
        """The same problem with conditions of these kinds hard and all others soft.

        A wall stays soft where the initial state is hard and does not have the wall's value: they
        cannot both hold.
        """
        conditions = [
            replace(c, hard=c.kind in kinds) if c.can_be_hard else c for c in self.conditions
        ]
        state = self.initial
        if state is not None and "initial" in kinds:
            conditions = [
                replace(c, hard=False) if c.hard and _disagree(c, state, self.domain) else c
                for c in conditions
            ]
        return replace(self, conditions=conditions)

    def smoothed(self, modes: int) -> PDEProblem:
        """The same problem with a hard periodic initial state smoothed; see :class:`GridState`."""
        conditions = [
            replace(c, state=c.state.smoothed(modes))
            if isinstance(c, Initial) and c.hard and isinstance(c.state, GridState)
            else c
            for c in self.conditions
        ]
        return replace(self, conditions=conditions)

    def starting_at(self, start: float, end: float, state: InitialState | None) -> PDEProblem:
        """The same problem on a window of time, from ``state`` if given."""
        conditions = [
            replace(c, state=state, at=None) if state and isinstance(c, Initial) else c
            for c in self.conditions
        ]
        return replace(self, domain=self.domain.with_times(start, end), conditions=conditions)


def _disagree(condition: Condition, state: InitialState, domain: Domain) -> bool:
    """Whether the initial state has other values on a wall than the wall."""
    if not isinstance(condition, Dirichlet):
        return False
    points = wall_points(domain, condition.coordinate, condition.side, Placement(64))
    values = state.derivative(points, [0] * len(domain.space))
    return any(
        float((values[:, state.fields.index(name)] - value).abs().max()) > 1e-6
        for name, value in condition.values.items()
        if not callable(value)
    )


def problem_of(sample: Sample) -> PDEProblem:
    """The problem that a PDEBench sample is a solution of.

    Its first time is the initial state, its parameters go into the equation, and its domain is the
    problem's, wherever the collocation points of other codes may lie.

    Raises:
        OptionError: If its task is none of PDEBench's.
    """
    kinds = {
        "advection": Advection,
        "cfd": CompressibleFlow,
        "diffusion-reaction": DiffusionReaction,
    }
    if sample.task not in kinds:
        raise OptionError(f"unknown task {sample.task!r}; choose from {', '.join(kinds)}")
    equation = with_parameters(kinds[sample.task], sample.parameters)
    domain = Domain({name: sample.domain[name] for name in equation.coordinates})
    state = initial_state(sample)
    grid = np.stack(np.meshgrid(*state.axes.values(), indexing="ij"), -1)
    conditions: list[Condition] = [Initial(state=state, at=grid.reshape(-1, len(state.axes)))]
    if sample.periodic:
        conditions += [
            Periodic(coordinate=c, fields=tuple(equation.fields)) for c in sample.periodic
        ]
    else:
        conditions.append(no_flux(equation.fields, domain))
    return PDEProblem(sample.task, equation, domain, conditions, sample)


def initial_state(sample: Sample) -> GridState:
    """The fields of a sample at its first time."""
    axes = {name: axis for name, axis in sample.axes.items() if name != "t"}
    values = {name: array[..., 0] for name, array in sample.fields.items()}
    return GridState(axes, values, sample.domain, sample.periodic)
