"""Slope-limited reconstruction on a periodic grid, shared by the finite-volume schemes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

GHOSTS = 2


def pad(values: np.ndarray) -> np.ndarray:
    """``[..., n]`` with two periodic ghost cells on each side, ``[..., n + 4]``."""
    return np.concatenate((values[..., -GHOSTS:], values, values[..., :GHOSTS]), axis=-1)


def half_slopes(padded: np.ndarray) -> np.ndarray:
    """Half the limited difference across each inner cell, ``[..., n + 4] -> [..., n + 2]``.

    The generalised minmod limiter: the central difference, but at most twice the smaller of the
    one-sided ones, and zero at an extremum.
    """
    steps = np.diff(padded, axis=-1)
    left, right = steps[..., :-1], steps[..., 1:]
    central = left + right
    central *= 0.25  # half of the central difference
    bound = np.minimum(np.abs(left), np.abs(right))  # half of twice the smaller one
    bound *= left * right > 0
    return np.clip(central, -bound, bound, out=central)
