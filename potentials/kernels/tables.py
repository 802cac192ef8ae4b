"""Functions of the distance as fine splines, for kernels that evaluate them without their formulas.

Fine enough that the difference to the formula is below the rounding of float32; forces are the
exact derivatives of the splines.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import solve_banded
from torch import Tensor

from dcase.errors import OptionError

ERROR = 1e-8
"""Largest error of a table beyond :data:`CLOSEST`, relative to its largest value there."""
INTERVALS = (512, 1024, 2048, 4096, 8192)
CLOSEST = 0.25
"""A; nearer than atoms come, and there the splines' end condition costs accuracy."""
_LEAST = 0.1  # A; formulas that have a pole at 0 are taken to be constant below

Function = Callable[[Tensor], Tensor]


def fine_enough(function: Function, cutoff: float, error: float = ERROR) -> int:
    """The number of intervals that ``function`` needs.

    Args:
        function: Maps distances [n], A, float64, to values [n, columns].
        cutoff: A.
        error: As :data:`ERROR`.

    Raises:
        OptionError: If the most there are do not do.
    """
    for intervals in INTERVALS:
        points = (np.arange(intervals) + 0.5) * (cutoff / intervals)
        points = points[points > CLOSEST]
        exact = _values(function, points)
        table = coefficients(function, cutoff, intervals)
        row = (points * (intervals / cutoff)).astype(int)
        # Between two knots, where the error is largest: the weights of B-splines at 1/2.
        found = sum(w * table[row + k] for k, w in enumerate((1 / 48, 23 / 48, 23 / 48, 1 / 48)))
        if np.abs(found - exact).max(initial=0) <= error * np.abs(exact).max(initial=1e-300):
            return intervals
    raise OptionError(f"{INTERVALS[-1]} knots do not reproduce the radial functions")


def coefficients(function: Function, cutoff: float, intervals: int) -> np.ndarray:
    """B-spline coefficients, float64, shape [intervals + 3, columns], as in ``UniformSpline``.

    No curvature at 0; at the cutoff the slope of the function.
    """
    h = cutoff / intervals
    knots = np.linspace(0.0, cutoff, intervals + 1)
    values = _values(function, knots)
    # The slope at the last knot from five points.
    slope = values[-5:].T @ np.array([3, -16, 36, -48, 25]) / (12 * h)
    right = np.concatenate([np.zeros_like(values[:1]), values, slope[None] * 2 * h])
    n = intervals + 3
    # Rows (c[k-1] + 4 c[k] + c[k+1]) / 6 between c0 - 2 c1 + c2 and c[n-1] - c[n-3]; in LAPACK's
    # banded form, entry [2 + i - j, j].
    band = np.zeros((5, n))
    band[1, 2:], band[2, 1:-1], band[3, :-2] = 1 / 6, 4 / 6, 1 / 6
    band[2, 0], band[1, 1], band[0, 2] = 1, -2, 1
    band[4, n - 3], band[3, n - 2], band[2, n - 1] = -1, 0, 1
    return np.asarray(solve_banded((2, 2), band, right))


@torch.no_grad()
def _values(function: Function, distances: np.ndarray) -> np.ndarray:
    values = function(torch.from_numpy(np.maximum(distances, _LEAST)))
    return values.double().numpy()
