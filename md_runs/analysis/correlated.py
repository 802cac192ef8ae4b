"""Means and lines of series whose neighbours are not independent, read a block at a time.

The error of a mean or a slope is set by the slowest motions alone: by the spectral density at
frequencies of about one over the length of the series. What is left of the series beside the
fitted mean (and line) is projected on cosines of few periods, which for a series long against its
correlation time are independent with that variance (the equal-weighted cosine estimator: Lazarus,
Lewis, Stock and Watson, J. Bus. Econ. Stat. 36, 541 (2018)). Where the density falls within these
frequencies it is carried on to frequency zero by a fit ``log S = a + b f^2`` (Heidelberger and
Welch, Commun. ACM 24, 233 (1981), by maximum likelihood instead of on logarithms) with ``b <= 0``,
which also makes up for the few degrees of freedom.

A fast oscillation adds what it has not completed at the two ends; this falls off faster with
length, but is all there is where nothing slow moves: it is estimated from the running sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

MODES = 20
"""Cosines: more make the error steadier, fewer allow longer correlation times."""

BINS = 2048
"""Parts of a series whose sums stand for it at the low frequencies of the cosines."""

BLOCK = 65536
"""Samples read at a time, so that a long series never has to fit in memory."""


@dataclass(frozen=True)
class Part:
    """The first ``length`` samples of an array or of an open file's."""

    values: Any
    length: int
    ndim: int = 1

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, where: slice) -> np.ndarray:
        first, last, _ = where.indices(self.length)
        return np.asarray(self.values[first:last])


def sliceable(values: Any) -> Any:
    """An open file's series as it is, anything else as a flat array of float64."""
    if hasattr(values, "__array_interface__") or getattr(values, "ndim", 0) != 1:
        return np.asarray(values, dtype=np.float64).ravel()
    return values


def blocks(*columns: Any, size: int = 1) -> Iterator[tuple[np.ndarray, ...]]:
    """Columns of one length side by side, some samples at a time.

    Args:
        columns: Each ``(n,)``, an array or an open file's.
        size: Every block but the last is a whole multiple of this.
    """
    step = size * max(1, BLOCK // size)
    for first in range(0, len(columns[0]), step):
        yield tuple(np.asarray(c[first : first + step], dtype=np.float64) for c in columns)


def extremes(values: Any) -> tuple[float, float, float]:
    """First, lowest and highest finite value; NaN where there is none."""
    first, low, high = math.nan, math.inf, -math.inf
    for (block,) in blocks(sliceable(values)):
        finite = block[np.isfinite(block)]
        if len(finite):
            first = float(finite[0]) if math.isnan(first) else first
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (first, low, high) if low <= high else (math.nan, math.nan, math.nan)


def average(values: Any) -> tuple[float, int]:
    """Mean of the finite values, and how many there are."""
    total, count = 0.0, 0
    for (block,) in blocks(sliceable(values)):
        finite = block[np.isfinite(block)]
        total, count = total + float(finite.sum()), count + len(finite)
    return (total / count if count else math.nan), count


def fit_line(times: Any, values: Any) -> tuple[float, float, float, float]:
    """Least-squares line through correlated samples.

    Args:
        times: ``(n,)`` any unit, strictly increasing; an array, or an open file's.
        values: ``(n,)`` any unit, finite.

    Returns:
        ``(intercept at t = 0, slope, standard error of the slope, tau in units of time)``, where
        ``2 tau`` is the time that an independent sample takes, at least a step.
    """
    times, values = sliceable(times), sliceable(values)
    n = len(times)
    if n < 2:
        only = float(np.asarray(values[:1])[0]) if n else math.nan
        return only, math.nan, math.nan, math.nan
    mean_t, mean_v = average(times)[0], average(values)[0]
    sxx = sxy = 0.0
    for t, v in blocks(times, values):
        x = t - mean_t  # a total energy is thousands of eV: subtract before squaring
        sxx, sxy = sxx + float(x @ x), sxy + float(x @ (v - mean_v))
    slope = sxy / sxx
    intercept = float(mean_v - slope * mean_t)
    if n < 4:
        return intercept, slope, math.nan, math.nan
    size = -(-n // BINS)
    residuals = (
        (t - mean_t, v - mean_v - slope * (t - mean_t)) for t, v in blocks(times, values, size=size)
    )
    density, tau = _density_at_zero(_Sums.of(residuals, size), size, line=True)
    ends = [float(np.asarray(times[k : k + 1])[0]) for k in (0, n - 1)]
    return intercept, slope, math.sqrt(density / sxx), tau * (ends[1] - ends[0]) / (n - 1)


def mean_and_error(values: Any) -> tuple[float, float]:
    """Mean of a correlated series and its standard error.

    Args:
        values: ``(n,)``, an array, or an open file's; non-finite entries are left out.

    Returns:
        ``(mean, standard error)``; NaN where there is nothing to average.
    """
    values = sliceable(values)
    mean, n = average(values)
    if n < 4:
        return mean, math.nan
    size = -(-len(values) // BINS)
    residuals = ((np.zeros(len(v)), v - mean) for (v,) in blocks(values, size=size))
    density, _ = _density_at_zero(_Sums.of(residuals, size), size, line=False)
    return mean, math.sqrt(density / n)


@dataclass(frozen=True)
class _Sums:
    """Of what is left beside a fit: over bins, and in all.

    Attributes:
        centres: Place of each bin in the series, from 0 to 1, shape [bins].
        counts: Finite samples in it.
        x: Sum of the centred times.
        left: Sum of the residuals.
        running: Sum of the running sum of the residuals.
        squares: Of the residuals.
        running_squares: Of their running sum.
    """

    centres: np.ndarray
    counts: np.ndarray
    x: np.ndarray
    left: np.ndarray
    running: np.ndarray
    squares: float
    running_squares: float

    @classmethod
    def of(cls, residuals: Iterable[tuple[np.ndarray, np.ndarray]], size: int) -> _Sums:
        """Sums over bins of ``size`` samples, of blocks of whole bins."""
        parts: list[np.ndarray] = []
        squares = running_squares = carry = 0.0
        for x, r in residuals:
            known = np.isfinite(r)
            r = np.where(known, r, 0.0)
            running = carry + np.cumsum(r)
            carry = float(running[-1])
            running = np.where(known, running, 0.0)
            squares += float(r @ r)
            running_squares += float(running @ running)
            starts = np.arange(0, len(r), size)
            rows = (known.astype(float), np.where(known, x, 0.0), r, running)
            parts.append(np.stack([np.add.reduceat(row, starts) for row in rows]))
        sums = np.concatenate(parts, axis=1)
        sums = sums[:, sums[0] > 0]
        counts = sums[0]
        centres = (np.cumsum(counts) - 0.5 * counts) / counts.sum()
        return cls(centres, counts, sums[1], sums[2], sums[3], squares, running_squares)


def _density_at_zero(sums: _Sums, size: int, *, line: bool) -> tuple[float, float]:
    """Variance per sample of the slowest motions, and half of its ratio to the whole variance."""
    n, root = float(sums.counts.sum()), np.sqrt(sums.counts)
    head = [root, sums.x / root] if line else [root]
    fitted = len(head)
    modes = min(MODES, len(root) - fitted)
    if not sums.squares > 0.0 or modes < 1:
        return 0.0, 0.5
    # The first cosine is all but the line itself.
    order = np.arange(fitted, fitted + modes)
    waves = np.cos(np.pi * order * sums.centres[:, None]) * root[:, None]
    basis, _ = np.linalg.qr(np.column_stack([*head, waves]))
    slow = basis[:, fitted:]
    density = _at_zero((slow.T @ (sums.left / root)) ** 2, (order / order[-1]) ** 2)
    # What the ends add, of which the cosines have noticed the share that they are large there.
    whole = basis[:, fitted - 1] / root
    at_ends = float(whole[0] ** 2 + whole[-1] ** 2)
    noticed = float(np.mean((slow[[0, -1]] / root[[0, -1], None]) ** 2)) * 2.0 / at_ends
    fast = sums.running_squares - float(np.sum((basis.T @ (sums.running / root)) ** 2))
    rest = n - modes - fitted
    if rest > 0 and fast > 0.0:
        density += max(0.0, 1.0 - noticed) * at_ends * fast / rest
    return density, max(0.5, 0.5 * density * (n - fitted) / sums.squares)


def _at_zero(power: np.ndarray, squares: np.ndarray) -> float:
    """Value at 0 of ``exp(a + b f^2)``, ``b <= 0``, through exponentially scattered powers.

    Args:
        power: Of the modes, each a chi-square of one degree of freedom times the density.
        squares: Of their frequencies, up to 1.
    """
    mean = float(power.mean())
    if not mean > 0.0 or len(power) < 3:
        return mean
    design = np.stack([np.ones_like(squares), squares])
    inverse = np.linalg.inv(design @ design.T)
    found = np.zeros(2)
    for _ in range(100):  # Fisher scoring; it converges in some 10
        change = inverse @ (design @ (power / mean * np.exp(-(found @ design)) - 1.0))
        change *= min(1.0, 1.0 / max(float(np.abs(change).max()), 1e-300))
        found = np.clip(found + change, -30.0, 30.0)
        if np.abs(change).max() < 1e-10:
            break
    return mean * math.exp(found[0]) if found[1] < 0.0 else mean
