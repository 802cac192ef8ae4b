"""Activations as piecewise cubics, for the kernels that do not know them by name.

Between -:data:`REACH` and :data:`REACH` a cubic through four points of each of many short
intervals; outside a parabola, which every activation of the registry is there up to exp(-REACH).
Kinks (ReLU) lie on a knot and stay sharp.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from dcase.activations import get_activation
from dcase.errors import OptionError

REACH = 24.0
INTERVALS_PER_UNIT = 64
TOLERANCE = 1e-9
"""Largest error of a fit, relative to 1 + |x|^2, at the points where it is checked."""


class _Curve(ctypes.Structure):
    """The kernels' ``curve``."""

    _fields_ = (
        ("intervals", ctypes.c_int64),
        ("lowest", ctypes.c_double),
        ("spacing", ctypes.c_double),
        ("coefficients", ctypes.c_void_p),
    )


class Curve:
    """A function of one number on even intervals.

    Args:
        lowest: First knot.
        spacing: Between knots.
        coefficients: float64, shape [n_intervals + 2, 4]: of the powers of the place in the
            interval (0 to 1); the first row counts from the first knot and holds below it, the last
            from the last knot and holds above it.
    """

    def __init__(self, lowest: float, spacing: float, coefficients: np.ndarray):
        self._coefficients = np.ascontiguousarray(coefficients)
        self._struct = _Curve(
            len(coefficients) - 2, lowest, spacing, self._coefficients.ctypes.data
        )

    @property
    def address(self) -> int:
        """Of the structure that the kernels take."""
        return ctypes.addressof(self._struct)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Values at ``x``, as the kernels compute them."""
        n = self._struct.intervals
        t = (x - self._struct.lowest) / self._struct.spacing
        knot = np.clip(np.floor(t), 0, n)
        row = np.where(t < 0, 0, knot.astype(int) + 1)
        u = t - knot
        c = self._coefficients[row]
        return c[:, 0] + u * (c[:, 1] + u * (c[:, 2] + u * c[:, 3]))


def fit_curve(name: str) -> Curve:
    """The activation ``name`` as a :class:`Curve`.

    Raises:
        OptionError: If it is not reproduced to :data:`TOLERANCE`.
    """
    module = get_activation(name).double()

    def phi(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy()

    n = int(2 * REACH * INTERVALS_PER_UNIT)
    spacing = 2 * REACH / n
    # Chebyshev's points of [0, 1]
    u = 0.5 - 0.5 * np.cos(np.pi * (np.arange(4) + 0.5) / 4)
    x = -REACH + spacing * (np.arange(n)[:, None] + u)
    inside = np.linalg.solve(np.vander(u, 4, increasing=True), phi(x.ravel()).reshape(n, 4).T).T
    # Parabolas outside: points half a REACH apart, in units of the spacing.
    far = 0.5 * REACH / spacing * np.arange(3)
    powers = np.vander(far, 3, increasing=True)
    above = np.linalg.solve(powers, phi(REACH + spacing * far))
    below = np.linalg.solve(powers * [1, -1, 1], phi(-REACH - spacing * far))
    coefficients = np.zeros((n + 2, 4))
    coefficients[0, :3], coefficients[1:-1], coefficients[-1, :3] = below, inside, above
    curve = Curve(-REACH, spacing, coefficients)
    points = np.linspace(-2.5 * REACH, 2.5 * REACH, 40_001)
    error = np.abs(curve(points) - phi(points)) / (1 + points**2)
    if not error.max() <= TOLERANCE:
        raise OptionError(f"{name} cannot be tabulated for the compiled form")
    return curve
