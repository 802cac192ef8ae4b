"""Linear advection u_t + beta u_x = 0 on a period: the exact shift, and PDEBench's MUSCL scheme."""

from __future__ import annotations

import math

import numpy as np

from dcase.errors import OptionError
from dcase.pinn.pdebench.limiter import Progress, half_slopes, pad
from dcase.pinn.pdebench.random_fields import RandomField

COURANT = 0.4
"""Largest part of a cell that a wave crosses in one step."""


def exact_shift(field: RandomField, x: np.ndarray, t: np.ndarray, beta: float) -> np.ndarray:
    """The exact solution: the initial profile on [0, 1), moved by ``beta t`` around the period.

    Returns:
        Array ``[samples, nt, nx]``.
    """
    solution = np.empty((len(field), len(t), len(x)))
    for step, time in enumerate(t):
        solution[:, step] = field((x - beta * time) % 1.0)
    return solution


def solve_advection(
    initial: np.ndarray,
    times: np.ndarray,
    beta: float,
    *,
    length: float = 1.0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Second-order finite volumes: MUSCL, upwind flux, midpoint rule in time.

    Args:
        initial: Cell values ``[samples, nx]``.
        times: Increasing times at which the solution is stored ``[nt]``; the first is the start.
        beta: Speed.
        length: Period.
        progress: Called after each stored time.

    Returns:
        Array ``[samples, nt, nx]``.

    Raises:
        OptionError: If the speed is not finite.
    """
    if not math.isfinite(beta):
        raise OptionError(f"the speed beta must be a finite number, not {beta}")
    if beta < 0:  # seen in a mirror
        return solve_advection(initial[:, ::-1], times, -beta, length=length, progress=progress)[
            ..., ::-1
        ]
    u = np.array(initial, dtype=np.float64)
    spacing = length / u.shape[1]
    solution = np.empty((u.shape[0], len(times), u.shape[1]))
    solution[:, 0] = u
    for i in range(1, len(times)):
        # Steps as long as is allowed, the last one to the stored time, as the published files have.
        distance = beta * (times[i] - times[i - 1]) / spacing
        while distance > 0.0:
            courant = min(COURANT, distance)
            middle = u - 0.5 * courant * _outflow(u)
            u -= courant * _outflow(middle)
            distance -= courant
        solution[:, i] = u
        if progress:
            progress(i, len(times) - 1)
    return solution


def _outflow(u: np.ndarray) -> np.ndarray:
    """What leaves each cell on the right less what enters on the left, per unit speed."""
    padded = pad(u)
    face = padded[..., 1:-1] + half_slopes(padded)  # right edge of cells -1 .. n
    return np.diff(face[..., :-1], axis=-1)
