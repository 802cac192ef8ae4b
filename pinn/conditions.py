"""Conditions: initial, boundary, periodic, observed; each soft, and most of them also hard.

A *soft* condition is a term of the loss, with points of its own. A *hard* one is built into the
network (:mod:`dcase.pinn.ansatz`) and holds exactly, whatever the weights; it has no term.

Every term has a name: ``initial u``, ``periodic u``, ``no-flux u``, ``observed u``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dcase.errors import OptionError
from dcase.pinn.domains import Domain
from dcase.pinn.initial import InitialState


@dataclass(frozen=True)
class Placement:
    """How soft conditions draw their points.

    Attributes:
        n: Number of points.
        method: See :meth:`dcase.pinn.domains.Domain.sample`.
        seed: Of the points.
    """

    n: int
    method: str = "sobol"
    seed: int = 0


@dataclass(frozen=True)
class Condition:
    """Base of the conditions.

    Attributes:
        hard: Built into the network rather than a term of the loss.
    """

    hard: bool = False

    kind: ClassVar[str] = "condition"

    @property
    def can_be_hard(self) -> bool:
        """Whether :mod:`dcase.pinn.ansatz` can build it into a network."""
        return True

    def term_names(self) -> list[str]:
        """Names of the soft terms."""
        return []

    def wanted(self, domain: Domain) -> list[str]:
        """Names of the derivatives that :meth:`residuals` uses."""
        raise NotImplementedError

    def place(self, domain: Domain, placement: Placement) -> tuple[Tensor, dict[str, Tensor]]:
        """Points of the soft condition, float64 [n, d], and what is known there, each [n]."""
        raise NotImplementedError

    def residuals(self, d: Any, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What must vanish at those points, by term name; ``d`` as in an equation."""
        raise NotImplementedError


@dataclass(frozen=True)
class Initial(Condition):
    """``field(x, t0) = state(x)``.

    Attributes:
        state: The fields at the start.
        at: Spatial points of the soft form [n, space], or None to draw them.
        hard: ``u = state(x) + s(t) N(x, t)`` with ``s(t0) = 0``.
    """

    state: InitialState = None  # type: ignore[assignment]
    at: np.ndarray | None = None

    kind: ClassVar[str] = "initial"

    def term_names(self) -> list[str]:
        """One a field."""
        return [f"initial {name}" for name in self.state.fields]

    def wanted(self, domain: Domain) -> list[str]:
        """The fields themselves."""
        return list(self.state.fields)

    def place(self, domain: Domain, placement: Placement) -> tuple[Tensor, dict[str, Tensor]]:
        """At the start of the domain."""
        start = domain.low("t")
        if self.at is None:
            points = domain.face(placement.n, "t", start, placement.method, placement.seed)
        else:
            at = torch.as_tensor(np.asarray(self.at), dtype=torch.float64)
            points = torch.cat([at, torch.full((len(at), 1), start, dtype=torch.float64)], 1)
        values = self.state.derivative(points, [0] * len(domain.space))
        return points, dict(zip(self.state.fields, values.unbind(1), strict=True))

    def residuals(self, d: Any, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Difference from the state."""
        return {f"initial {n}": getattr(d, n) - known[n] for n in self.state.fields}


@dataclass(frozen=True)
class Periodic(Condition):
    """Same values, and with ``slopes`` same first derivatives, at both ends of a coordinate.

    Attributes:
        coordinate: The periodic one.
        fields: The fields.
        slopes: Also match the first derivatives (off: they may kink at the seam; hurts as often as
            it helps, facts B.4).
        hard: By an embedding of the coordinate in sines and cosines.
    """

    coordinate: str = "x"
    fields: tuple[str, ...] = ()
    slopes: bool = False

    kind: ClassVar[str] = "periodic"

    def term_names(self) -> list[str]:
        """One a field, and one a slope."""
        names = [f"periodic {name}" for name in self.fields]
        if self.slopes:
            names += [f"periodic {name}_{self.coordinate}" for name in self.fields]
        return names

    def wanted(self, domain: Domain) -> list[str]:
        """Fields, and slopes if asked for."""
        slopes = [f"{name}_{self.coordinate}" for name in self.fields] if self.slopes else []
        return [*self.fields, *slopes]

    def place(self, domain: Domain, placement: Placement) -> tuple[Tensor, dict[str, Tensor]]:
        """``n`` points of the lower end, then their partners at the upper end."""
        low, high = domain.intervals[self.coordinate]
        lower = domain.face(placement.n, self.coordinate, low, placement.method, placement.seed)
        upper = lower.clone()
        upper[:, domain.coordinates.index(self.coordinate)] = high
        return torch.cat([lower, upper]), {}

    def residuals(self, d: Any, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Lower minus upper."""
        found = {}
        for name in self.term_names():
            lower, upper = getattr(d, name.removeprefix("periodic ")).chunk(2)
            found[name] = lower - upper
        return found


@dataclass(frozen=True)
class Dirichlet(Condition):
    """A field has a given value on a wall.

    Attributes:
        coordinate: The wall is at an end of this one.
        side: ``"low"``, ``"high"`` or ``"both"``.
        values: By field: a number, or a function of the coordinates (keyword arguments, each [n]).
        hard: A factor that vanishes on the wall times the network, plus the value; numbers only.
    """

    coordinate: str = "x"
    side: str = "both"
    values: Mapping[str, float | Callable[..., Tensor]] = field(default_factory=dict)

    kind: ClassVar[str] = "dirichlet"

    @property
    def can_be_hard(self) -> bool:
        """Where values are numbers."""
        return not any(map(callable, self.values.values()))

    def __post_init__(self) -> None:
        check_side(self.side)
        if self.hard and not self.can_be_hard:
            raise OptionError("a hard Dirichlet condition needs numbers, not functions")

    def term_names(self) -> list[str]:
        """One a field."""
        where = "" if self.side == "both" else f" {self.side} {self.coordinate}"
        return [f"dirichlet {name}{where}" for name in self.values]

    def wanted(self, domain: Domain) -> list[str]:
        """The fields, and the coordinates where a value depends on them."""
        coordinates = domain.coordinates if any(map(callable, self.values.values())) else ()
        return [*self.values, *coordinates]

    def place(self, domain: Domain, placement: Placement) -> tuple[Tensor, dict[str, Tensor]]:
        """On the walls."""
        return wall_points(domain, self.coordinate, self.side, placement), {}

    def residuals(self, d: Any, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Difference from the value."""
        found = {}
        for term, (name, value) in zip(self.term_names(), self.values.items(), strict=True):
            target: Any = value
            if callable(value):
                target = value(**{c: d[c] for c in d if c not in self.values})
            found[term] = getattr(d, name) - target
        return found


@dataclass(frozen=True)
class Neumann(Condition):
    """The normal derivative of fields has a given value (outward or not: along the coordinate).

    Attributes:
        coordinates: Walls at the ends of these.
        fields: The fields.
        value: Of the derivative; zero is a no-flux wall.
        side: ``"low"``, ``"high"`` or ``"both"``.
        hard: By an embedding of the coordinates in cosines; value zero on both sides only.
    """

    coordinates: tuple[str, ...] = ("x",)
    fields: tuple[str, ...] = ()
    value: float = 0.0
    side: str = "both"

    kind: ClassVar[str] = "neumann"

    @property
    def can_be_hard(self) -> bool:
        """No-flux walls on both sides."""
        return self.value == 0.0 and self.side == "both"

    def __post_init__(self) -> None:
        check_side(self.side)
        if self.hard and not self.can_be_hard:
            raise OptionError("a hard Neumann condition is no-flux, on both sides")

    def term_names(self) -> list[str]:
        """One a field."""
        word = "no-flux" if self.value == 0.0 else "neumann"
        return [f"{word} {name}" for name in self.fields]

    def wanted(self, domain: Domain) -> list[str]:
        """The normal derivatives."""
        return [f"{name}_{c}" for c in self.coordinates for name in self.fields]

    def place(self, domain: Domain, placement: Placement) -> tuple[Tensor, dict[str, Tensor]]:
        """Wall by wall, the same number on each."""
        share = max(1, placement.n // len(self.coordinates))
        parts = [
            wall_points(domain, c, self.side, Placement(share, placement.method, seed))
            for seed, c in enumerate(self.coordinates, placement.seed)
        ]
        return torch.cat(parts), {}

    def residuals(self, d: Any, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normal derivative minus value."""
        walls = len(self.coordinates)
        found = {}
        for term, name in zip(self.term_names(), self.fields, strict=True):
            parts = [
                getattr(d, f"{name}_{c}").chunk(walls)[k] for k, c in enumerate(self.coordinates)
            ]
            found[term] = torch.cat(parts) - self.value
        return found


@dataclass(frozen=True)
class Boundary(Condition):
    """Any relation on a wall, for example a mixed (Robin) condition; soft only.

    Attributes:
        name: Of the term, after ``boundary``.
        uses: Names of the fields and derivatives that ``relation`` reads.
        relation: ``relation(d)`` must vanish; ``d`` as in an equation.
        coordinate: The wall is at an end of this one.
        side: ``"low"``, ``"high"`` or ``"both"``.
    """

    name: str = ""
    uses: tuple[str, ...] = ()
    relation: Callable[[Any], Tensor] = None  # type: ignore[assignment]
    coordinate: str = "x"
    side: str = "both"

    kind: ClassVar[str] = "boundary"

    @property
    def can_be_hard(self) -> bool:
        """Never."""
        return False

    def __post_init__(self) -> None:
        check_side(self.side)
        if self.hard:
            raise OptionError("a relation on a wall cannot be hard")

    def term_names(self) -> list[str]:
        """One."""
        return [f"boundary {self.name}"]

    def wanted(self, domain: Domain) -> list[str]:
        """As given."""
        return list(self.uses)

    def place(self, domain: Domain, placement: Placement) -> tuple[Tensor, dict[str, Tensor]]:
        """On the walls."""
        return wall_points(domain, self.coordinate, self.side, placement), {}

    def residuals(self, d: Any, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The relation."""
        return {f"boundary {self.name}": self.relation(d)}


def no_flux(fields: Sequence[str], domain: Domain, *, hard: bool = False) -> Neumann:
    """Zero normal derivative on every wall of the domain."""
    return Neumann(hard=hard, coordinates=domain.space, fields=tuple(fields))


@dataclass(frozen=True)
class Observed(Condition):
    """Measured values at points of space and time.

    Attributes:
        at: Points [n, d].
        values: By field [n].
    """

    at: np.ndarray = None  # type: ignore[assignment]
    values: Mapping[str, np.ndarray] = field(default_factory=dict)

    kind: ClassVar[str] = "observed"

    @property
    def can_be_hard(self) -> bool:
        """Never."""
        return False

    def __post_init__(self) -> None:
        if self.hard:
            raise OptionError("observed values cannot be hard")
        for name, values in self.values.items():
            if len(values) != len(self.at):
                raise OptionError(
                    f"{len(values)} observed values of {name} for {len(self.at)} points"
                )

    def term_names(self) -> list[str]:
        """One a field."""
        return [f"observed {name}" for name in self.values]

    def wanted(self, domain: Domain) -> list[str]:
        """The fields."""
        return list(self.values)

    def place(self, domain: Domain, placement: Placement) -> tuple[Tensor, dict[str, Tensor]]:
        """As given, but for those outside the times of the domain."""
        points = torch.as_tensor(np.asarray(self.at), dtype=torch.float64)
        inside = torch.ones(len(points), dtype=torch.bool)
        if "t" in domain.intervals:
            inside = (points[:, -1] >= domain.low("t")) & (points[:, -1] <= domain.high("t"))
        values = {n: torch.as_tensor(np.asarray(v)).double() for n, v in self.values.items()}
        return points[inside], {name: value[inside] for name, value in values.items()}

    def residuals(self, d: Any, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Difference from what was observed."""
        return {f"observed {name}": getattr(d, name) - known[name] for name in self.values}


def check_side(side: str) -> None:
    """Refuse what is not a side.

    Raises:
        OptionError: Unless it is ``"low"``, ``"high"`` or ``"both"``.
    """
    if side not in ("low", "high", "both"):
        raise OptionError(f"side must be low, high or both; got {side!r}")


def wall_points(domain: Domain, coordinate: str, side: str, placement: Placement) -> Tensor:
    """Points on one or both ends of a coordinate; on both, half of ``n`` each."""
    low, high = domain.intervals[coordinate]
    ends = {"low": [low], "high": [high], "both": [low, high]}[side]
    n = max(1, placement.n // len(ends))
    faces = [domain.face(n, coordinate, end, placement.method, placement.seed) for end in ends]
    return torch.cat(faces)
