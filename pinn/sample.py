"""One reference solution on a grid: a PINN's initial state, and what it is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dcase.errors import DataError


@dataclass(frozen=True)
class Sample:
    """A solution on a tensor grid, with the problem that it solves.

    Attributes:
        task: ``"advection"``, ``"cfd"``, ``"diffusion-reaction"``, or a user's own.
        axes: Grid values of each coordinate, in the order of the equation's coordinates, time last
            (``{"x": [nx], "y": [ny], "t": [nt]}``), float64, increasing.
        fields: Values of each field on the grid, ``[nx, (ny,) nt]``: one axis for each of ``axes``,
            in that order, float64.
        domain: Full extent of each coordinate. A grid of cell centres lies inside it; the extent
            of a periodic coordinate is its period.
        parameters: Constants of the equation (``{"beta": 0.1}``).
        periodic: The periodic coordinates.
        source: File and sample, for reports.
        warnings: What a user of this sample should know, one line each.

    Raises:
        DataError: If shapes do not fit, a value is not finite, an axis does not increase, or a
            grid leaves the domain.
    """

    task: str
    axes: dict[str, np.ndarray]
    fields: dict[str, np.ndarray]
    domain: dict[str, tuple[float, float]]
    parameters: dict[str, float]
    periodic: tuple[str, ...]
    source: str
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = self.source or "sample"
        for attribute in ("axes", "fields"):
            arrays = getattr(self, attribute).items()
            converted = {name: np.asarray(array, dtype=np.float64) for name, array in arrays}
            object.__setattr__(self, attribute, converted)
        self._check_axes(where)
        shape = tuple(len(axis) for axis in self.axes.values())
        if not self.fields:
            raise DataError(f"{where}: no fields")
        for name, array in self.fields.items():
            if array.shape != shape:
                raise DataError(
                    f"{where}: field {name!r} has the shape {array.shape}, but the axes "
                    f"{', '.join(self.axes)} make {shape}"
                )
            if not np.isfinite(array).all():
                bad = int(array.size - np.isfinite(array).sum())
                raise DataError(
                    f"{where}: field {name!r} has NaN or infinity at {bad} of {array.size} points"
                )
        for name, value in self.parameters.items():
            if not math.isfinite(value):
                raise DataError(f"{where}: parameter {name!r} is {value}")

    def _check_axes(self, where: str) -> None:
        if "t" not in self.axes or list(self.axes)[-1] != "t" or len(self.axes) < 2:
            raise DataError(
                f"{where}: axes are {list(self.axes)}; give the coordinates with time 't' last"
            )
        if set(self.domain) != set(self.axes):
            raise DataError(
                f"{where}: the domain is given for {sorted(self.domain)}, the axes are "
                f"{sorted(self.axes)}"
            )
        if unknown := set(self.periodic) - set(self.axes):
            raise DataError(f"{where}: periodic coordinate {sorted(unknown)[0]!r} has no axis")
        for name, axis in self.axes.items():
            if axis.ndim != 1 or len(axis) < 2:
                raise DataError(
                    f"{where}: axis {name!r} has the shape {axis.shape}; it must be a row of at "
                    "least 2 values"
                )
            if not np.isfinite(axis).all():
                raise DataError(f"{where}: axis {name!r} has NaN or infinity")
            if not (np.diff(axis) > 0).all():
                raise DataError(f"{where}: axis {name!r} does not increase")
            low, high = self.domain[name]
            slack = 1e-5 * (axis[-1] - axis[0])  # axes of files are float32
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise DataError(f"{where}: the domain of {name!r} is ({low}, {high})")
            if axis[0] < low - slack or axis[-1] > high + slack:
                raise DataError(
                    f"{where}: axis {name!r} runs from {axis[0]:.6g} to {axis[-1]:.6g}, outside "
                    f"its domain ({low:.6g}, {high:.6g})"
                )

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of the coordinates, time last."""
        return tuple(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of grid values of each coordinate."""
        return tuple(len(axis) for axis in self.axes.values())
