"""Space-time boxes and points in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dcase.errors import OptionError

SAMPLERS = ("sobol", "lhs", "uniform", "hammersley", "grid")


@dataclass(frozen=True)
class Domain:
    """A box, with the interval of every coordinate by name; time is called ``t`` and comes last.

    Attributes:
        intervals: For example ``{"x": (0, 1), "t": (0, 2)}``.

    Raises:
        OptionError: If an interval is empty or time is not last.
    """

    intervals: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        for name, (low, high) in self.intervals.items():
            if not low < high:
                raise OptionError(f"the interval of {name} is empty: {low} to {high}")
        names = list(self.intervals)
        if "t" in names and names[-1] != "t":
            raise OptionError(f"time comes last among the coordinates, got {', '.join(names)}")

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(self.intervals)

    @property
    def space(self) -> tuple[str, ...]:
        """Names of the coordinates but time."""
        return tuple(name for name in self.intervals if name != "t")

    def low(self, name: str) -> float:
        """Lower end of a coordinate."""
        return float(self.intervals[name][0])

    def high(self, name: str) -> float:
        """Upper end of a coordinate."""
        return float(self.intervals[name][1])

    def length(self, name: str) -> float:
        """Extent of a coordinate."""
        return self.high(name) - self.low(name)

    def with_times(self, start: float, end: float) -> Domain:
        """The same space with another interval of time."""
        return Domain({**self.intervals, "t": (start, end)})

    def sample(self, n: int, method: str = "sobol", seed: int = 0) -> Tensor:
        """Points inside, float64 [n, d].

        Args:
            n: How many; ``"grid"`` gives the largest tensor grid of at most so many.
            method: ``"sobol"`` (scrambled), ``"lhs"`` (Latin hypercube), ``"uniform"``,
                ``"hammersley"`` (what DeepXDE draws by default; the seed is not used), ``"grid"``
                (cell centres).
            seed: Of what is random.

        Raises:
            OptionError: For an unknown method.
        """
        return self.place(unit_points(n, len(self.intervals), method, seed))

    def place(self, unit: Tensor) -> Tensor:
        """Map points of the unit cube [n, d] into the box."""
        low = torch.tensor([self.low(c) for c in self.intervals], dtype=torch.float64)
        high = torch.tensor([self.high(c) for c in self.intervals], dtype=torch.float64)
        return low + unit.double() * (high - low)

    def face(
        self, n: int, coordinate: str, at: float, method: str = "sobol", seed: int = 0
    ) -> Tensor:
        """Points with ``coordinate`` = ``at``, spread over the other coordinates, [n, d].

        Args:
            n: How many.
            coordinate: The one that is held.
            at: Its value.
            method: As for :meth:`sample`.
            seed: As for :meth:`sample`.
        """
        names = list(self.intervals)
        others = [i for i, name in enumerate(names) if name != coordinate]
        points = torch.zeros(n, len(names), dtype=torch.float64)
        if others:
            points[:, others] = unit_points(n, len(others), method, seed).double()
        points = self.place(points)
        points[:, names.index(coordinate)] = at
        return points


def unit_points(n: int, dimensions: int, method: str, seed: int) -> Tensor:
    """Points of the unit cube [n, dimensions], float64; see :meth:`Domain.sample`."""
    generator = torch.Generator().manual_seed(seed)
    if method == "sobol":
        engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed)
        return engine.draw(n, dtype=torch.float64)
    if method == "uniform":
        return torch.rand(n, dimensions, dtype=torch.float64, generator=generator)
    if method == "lhs":
        jitter = torch.rand(n, dimensions, dtype=torch.float64, generator=generator)
        order = [torch.randperm(n, generator=generator) for _ in range(dimensions)]
        return (torch.stack(order, 1) + jitter) / n
    if method == "hammersley":
        first = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        rest = [_radical_inverse(n, base) for base in (2, 3, 5, 7, 11)[: dimensions - 1]]
        return torch.stack([first, *rest], 1)
    if method == "grid":
        per_axis = max(1, int(n ** (1.0 / dimensions) + 1e-9))
        axis = (torch.arange(per_axis, dtype=torch.float64) + 0.5) / per_axis
        return torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)
    raise OptionError(f"unknown sampler {method!r}; choose from {', '.join(SAMPLERS)}")


def _radical_inverse(n: int, base: int) -> Tensor:
    """The first ``n`` numbers of van der Corput's sequence, from its second on."""
    number = torch.arange(1, n + 1)
    result = torch.zeros(n, dtype=torch.float64)
    weight = 1.0 / base
    while bool((number > 0).any()):
        result += weight * (number % base)
        number = number // base
        weight /= base
    return result
