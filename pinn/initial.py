"""States at one time: fields as functions of space, with their derivatives.

A hard initial condition needs ``u0`` and its spatial derivatives at every collocation point; a soft
one its values. The points stay the same from step to step, so these are worked out once a set of
points, in float64 and outside autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dcase.errors import DataError, OptionError


class InitialState(Protocol):
    """Fields as functions of the spatial coordinates."""

    fields: tuple[str, ...]

    def derivative(self, points: Tensor, orders: Sequence[int]) -> Tensor:
        """Derivatives of the fields, float64 [N, F].

        Args:
            points: [N, d], space first; further columns (time) are ignored.
            orders: How often to differentiate by each spatial coordinate; all zero: the values.
        """
        ...

    def scales(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of each field (of a constant one: its size, at least 1)."""
        ...


class GridState:
    """Fields known on a grid in one or two dimensions, as cubic splines.

    Args:
        axes: Grid values by coordinate, space only.
        values: By field, [nx, (ny)].
        domain: Extent of each coordinate; the period of a periodic one.
        periodic: Coordinates that are periodic. Others are continued by the outermost cubic from
            the first and last grid value to the walls.

    Raises:
        DataError: If there are too few grid values, or more than two dimensions.
    """

    def __init__(
        self,
        axes: Mapping[str, np.ndarray],
        values: Mapping[str, np.ndarray],
        domain: Mapping[str, tuple[float, float]],
        periodic: Sequence[str] = (),
    ):
        self.fields = tuple(values)
        self.axes = {name: np.asarray(axis, dtype=np.float64) for name, axis in axes.items()}
        self.values = {name: np.asarray(v, dtype=np.float64) for name, v in values.items()}
        self.domain = {name: (float(domain[name][0]), float(domain[name][1])) for name in axes}
        self.periodic = tuple(p for p in periodic if p in self.axes)
        if len(self.axes) not in (1, 2):
            raise DataError(f"a state on a grid has one or two dimensions, not {len(self.axes)}")
        for name, axis in self.axes.items():
            if len(axis) < 4:
                raise DataError(f"the grid in {name} needs at least 4 values, has {len(axis)}")
        self._splines = [self._spline(self.values[name]) for name in self.fields]

    def _spline(self, values: np.ndarray) -> Callable[[np.ndarray, Sequence[int]], np.ndarray]:
        from scipy.interpolate import CubicSpline, RectBivariateSpline

        padded, grids = values, []
        for axis_number, (name, axis) in enumerate(self.axes.items()):
            if name not in self.periodic:
                grids.append(axis)
                continue
            low, high = self.domain[name]
            # In 1D the spline itself is periodic; in 2D a margin makes it so to rounding.
            margin = 0 if len(self.axes) == 1 else min(12, len(axis))
            period, n = high - low, len(axis)
            index = np.arange(-margin, n + max(margin, 1))
            grids.append(axis[index % n] + period * (index // n))
            padded = np.take(padded, index % n, axis=axis_number)
        if len(self.axes) == 1:
            (name,) = self.axes
            low, high = self.domain[name]
            wrap = name in self.periodic
            spline = CubicSpline(grids[0], padded, bc_type="periodic" if wrap else "not-a-knot")
            return lambda x, orders: spline(x[:, 0], orders[0])
        surface = RectBivariateSpline(grids[0], grids[1], padded, kx=3, ky=3, s=0)
        lows = [self.domain[n][0] for n in self.axes]
        periods = [self.domain[n][1] - low for n, low in zip(self.axes, lows, strict=True)]

        def evaluate(x: np.ndarray, orders: Sequence[int]) -> np.ndarray:
            where = x.copy()
            for k, name in enumerate(self.axes):
                if name in self.periodic:
                    where[:, k] = lows[k] + np.mod(x[:, k] - lows[k], periods[k])
            return surface.ev(where[:, 0], where[:, 1], dx=orders[0], dy=orders[1])

        return evaluate

    def derivative(self, points: Tensor, orders: Sequence[int]) -> Tensor:
        """See :class:`InitialState`."""
        x = points.detach().to("cpu", torch.float64).numpy()[:, : len(self.axes)]
        columns = [spline(x, orders) for spline in self._splines]
        return torch.from_numpy(np.stack(columns, 1)).to(points.device)

    def smoothed(self, modes: int) -> GridState:
        """The state without the Fourier modes above ``modes`` of its periodic coordinates.

        Damped by ``exp(-36 (k / modes)^8)``, which leaves no ringing. A PDEBench state has a seam:
        its period is one cell short of the domain, so that it jumps by one cell's slope. No
        collocation point sees so thin a jump, but a network that starts from it has to carry it.
        """
        values = {}
        for name, array in self.values.items():
            for k, axis in enumerate(self.axes):
                if axis not in self.periodic:
                    continue
                n = array.shape[k]
                damping = np.exp(-36.0 * (np.arange(n // 2 + 1) / modes) ** 8)
                shape = [-1 if j == k else 1 for j in range(array.ndim)]
                spectrum = np.fft.rfft(array, axis=k) * damping.reshape(shape)
                array = np.fft.irfft(spectrum, n, axis=k)
            values[name] = array
        return GridState(self.axes, values, self.domain, self.periodic)

    def scales(self) -> dict[str, tuple[float, float]]:
        """See :class:`InitialState`."""
        return {name: _scale(self.values[name]) for name in self.fields}


class FunctionState:
    """Fields given by functions of the spatial coordinates, differentiated by autograd.

    Args:
        functions: By field: called with the spatial coordinates as keyword arguments, each [N];
            returns [N], or a number for a constant.
        domain: Extent of each spatial coordinate.

    Example:
        >>> state = FunctionState({"u": lambda x: -torch.sin(torch.pi * x)}, {"x": (-1.0, 1.0)})
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Tensor | float]],
        domain: Mapping[str, tuple[float, float]],
    ):
        self.functions = dict(functions)
        self.fields = tuple(functions)
        self.domain = {name: interval for name, interval in domain.items() if name != "t"}

    def derivative(self, points: Tensor, orders: Sequence[int]) -> Tensor:
        """See :class:`InitialState`."""
        with torch.enable_grad():
            coordinates = {
                name: points[:, k].detach().double().requires_grad_(True)
                for k, name in enumerate(self.domain)
            }
            columns = []
            for name, function in self.functions.items():
                value = function(**coordinates)
                if not isinstance(value, Tensor):
                    value = torch.full_like(points[:, 0], float(value), dtype=torch.float64)
                if value.shape != points[:, 0].shape:
                    raise OptionError(
                        f"the initial state of {name} must have one value a point, got the shape "
                        f"{tuple(value.shape)} for {len(points)} points"
                    )
                for coordinate, order in zip(coordinates.values(), orders, strict=True):
                    for _ in range(order):
                        value = _slope(value, coordinate)
                columns.append(value.detach().double())
        return torch.stack(columns, 1)

    def scales(self) -> dict[str, tuple[float, float]]:
        """See :class:`InitialState`."""
        axes = [torch.linspace(low, high, 101) for low, high in self.domain.values()]
        grid = torch.cartesian_prod(*axes).reshape(-1, len(axes)).double()
        values = self.derivative(grid, [0] * len(axes)).numpy()
        return {name: _scale(values[:, k]) for k, name in enumerate(self.fields)}


def _slope(value: Tensor, coordinate: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(coordinate)
    (gradient,) = torch.autograd.grad(value.sum(), coordinate, create_graph=True, allow_unused=True)
    return torch.zeros_like(coordinate) if gradient is None else gradient


def _scale(values: np.ndarray) -> tuple[float, float]:
    mean, std = float(np.mean(values)), float(np.std(values))
    if std <= 1e-12 * max(abs(mean), 1.0):
        return mean, max(abs(mean), 1.0)
    return mean, std
