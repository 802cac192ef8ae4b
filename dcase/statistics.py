"""Statistics of series whose neighbours are not independent."""

from __future__ import annotations

import numpy as np


def autocorrelation_time(series: np.ndarray, *, window: float = 5.0) -> float:
    """Integrated autocorrelation time ``tau = 1/2 + sum_k rho(k)`` in samples, at least 1/2.

    Sokal's automatic window: the sum stops at the first lag ``W >= window * tau(W)``; beyond it
    collects noise only.

    Args:
        series: Shape [n_samples]; its mean makes no difference.
        window: Sokal's constant.

    Returns:
        The time in samples; 1/2 (independent samples) where the values do not vary.
    """
    values = np.asarray(series, dtype=np.float64)
    n = len(values)
    if n < 4:
        return 0.5
    values = values - values.mean()
    scale = float(np.max(np.abs(values)))
    if not scale > 0.0:
        return 0.5
    values = values / scale  # tiny residuals must not underflow when squared
    size = 1 << (2 * n - 1).bit_length()  # zero-padded: no wrap-around
    spectrum = np.abs(np.fft.rfft(values, size)) ** 2
    covariance = np.fft.irfft(spectrum, size)[:n] / np.arange(n, 0, -1)
    tau = 0.5 + np.cumsum(covariance[1 : n // 2] / covariance[0])
    lags = np.arange(1, len(tau) + 1)
    closed = np.flatnonzero(lags >= window * tau)
    stop = int(closed[0]) if len(closed) else len(tau) - 1
    return max(0.5, float(tau[stop]))
