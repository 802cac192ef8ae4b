"""How far a predicted standard deviation can be trusted.

Two different questions. *Ranking*: are the errors large where the standard deviation is large?
Spearman's rank correlation of ``|error|`` with the standard deviation answers it; it decides
whether frames can be selected by uncertainty. *Calibration*: is the standard deviation of the right
size? With errors ``e``, standard deviations ``s`` and ``z = e / s``, a Gaussian with the right
``s`` has

    coverage(p) = share of points with |z| <= sqrt(2) erfinv(p)  =  p      for every level p,

so the area between that curve and the diagonal (0 for the right size, 1/2 at worst) measures the
error of size, and ``sqrt(mean z^2)`` is the factor to multiply ``s`` by.

    equation                                         variable
    u_i = erf(|z_i| / sqrt 2)                        confidence: the level that just covers i
    coverage(p) = #{u_i <= p} / n                    Calibration.coverage at Calibration.levels
    int_0^1 |coverage(p) - p| dp                     Calibration.miscalibration_area
    int_0^1 (coverage(p) - p) dp = 1/2 - mean u      Calibration.signed_area
    mean [ln(2 pi s^2) + z^2] / 2                    Calibration.nll
    sqrt(mean z^2)                                   Calibration.scale
    sqrt(mean s^2)                                   Calibration.sharpness

Sources: Kuleshov et al., ICML 2018 (arXiv:1807.00263), calibration curves; Tran et al., Mach.
Learn.: Sci. Technol. 1, 025006 (2020), miscalibration area and sharpness for potentials; Levi et
al., Sensors 22, 5540 (2022), root mean square errors in bins of the standard deviation.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import erf

from dcase.errors import DataError

LEVELS = np.linspace(0.0, 1.0, 101)
"""Nominal levels at which the coverage is recorded; the areas are exact and need no grid."""


@dataclass(frozen=True)
class Calibration:
    """Standard deviations against errors; NaN where there are too few points to say.

    Attributes:
        n: Points that were used.
        n_left_out: Points left out because a value is NaN or infinite.
        n_zero: Points with a standard deviation of exactly 0. An interval of no width covers only
            an error of exactly 0; ``nll`` and ``scale`` are those of the other points.
        spearman: Rank correlation of ``|error|`` with the standard deviation.
        miscalibration_area: Between coverage and the diagonal; 0 to 1/2.
        signed_area: The same with a sign: negative where the standard deviations are too small.
        nll: Mean negative log-likelihood of a Gaussian, in nats, errors in the unit they came in.
        scale: Root mean square of error over standard deviation: multiply the latter by it.
        sharpness: Root mean square of the standard deviation, in its unit; small is sharp.
        rmse: Root mean square error, in its unit: what the sharpness should be.
        levels: Nominal levels, shape [101].
        coverage: Share of points within the central interval of each level, shape [101].
    """

    n: int
    n_left_out: int
    n_zero: int
    spearman: float
    miscalibration_area: float
    signed_area: float
    nll: float
    scale: float
    sharpness: float
    rmse: float
    levels: np.ndarray
    coverage: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in asdict(self).items()}


def calibrate(reference: np.ndarray, predicted: np.ndarray, std: np.ndarray) -> Calibration:
    """Compare predicted standard deviations with the errors that were made.

    Args:
        reference: Labels, any shape and unit.
        predicted: Mean predictions, the same shape and unit.
        std: Standard deviations, the same shape and unit.

    Returns:
        Everything over all elements alike. For forces these are the components; see
        :func:`rank_correlation` for lengths of vectors.

    Raises:
        DataError: If shapes differ, there is no point, or a standard deviation is negative.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in (reference, predicted, std)]
    if len({values.shape for values in arrays}) != 1:
        shapes = ", ".join(str(values.shape) for values in arrays)
        raise DataError(f"references, predictions and uncertainties differ in shape: {shapes}")
    error, deviation = (arrays[1] - arrays[0]).ravel(), arrays[2].ravel()
    if not error.size:
        raise DataError("there is nothing to compare uncertainties with: no points were given")
    if (deviation < 0).any():
        raise DataError(f"a standard deviation must not be negative, got {deviation.min():g}")
    usable = np.isfinite(error) & np.isfinite(deviation)
    error, deviation = np.abs(error[usable]), deviation[usable]
    positive = deviation > 0
    z = np.full(len(error), math.inf)
    with np.errstate(over="ignore"):  # a standard deviation of 1e-300 is as good as none
        np.divide(error, deviation, out=z, where=positive)
    z[(error == 0.0) & ~positive] = 0.0  # no width, but no error either: covered
    confidence = erf(z / math.sqrt(2.0))  # of the central interval that ends at this error
    known = len(error) > 0
    return Calibration(
        n=len(error),
        n_left_out=int((~usable).sum()),
        n_zero=int((~positive).sum()),
        spearman=rank_correlation(error, deviation),
        miscalibration_area=_area(confidence),
        signed_area=0.5 - float(confidence.mean()) if known else math.nan,
        nll=_negative_log_likelihood(z[positive], deviation[positive]),
        scale=_root_mean_square(z[positive]),
        sharpness=_root_mean_square(deviation),
        rmse=_root_mean_square(error),
        levels=LEVELS.copy(),
        coverage=np.searchsorted(np.sort(confidence), LEVELS, side="right") / len(error)
        if known
        else np.full(len(LEVELS), math.nan),
    )


def rank_correlation(error: np.ndarray, std: np.ndarray) -> float:
    """Spearman's rank correlation of ``|error|`` with ``std``; ties share their mean rank.

    Args:
        error: Any shape and unit; the sign does not matter.
        std: The same shape.

    Returns:
        In [-1, 1]; NaN for fewer than two finite points, or where all errors, or all standard
        deviations, are the same: then there is no order to compare.
    """
    error, std = np.abs(np.asarray(error, float)).ravel(), np.asarray(std, float).ravel()
    usable = np.isfinite(error) & np.isfinite(std)
    error, std = error[usable], std[usable]
    if len(error) < 2 or np.ptp(error) == 0.0 or np.ptp(std) == 0.0:
        return math.nan
    from scipy.stats import spearmanr  # slow to import

    return float(spearmanr(error, std).statistic)


def spread_bins(
    error: np.ndarray, std: np.ndarray, n_bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors in bins of the standard deviation that hold equally many points.

    Args:
        error: Any shape and unit.
        std: The same shape and unit; points of std 0 or not finite are left out.
        n_bins: At most; a bin holds 5 points at least.

    Returns:
        Root mean square of the standard deviation and of the error in each bin (equal where
        calibrated), and the points in it; shapes [bins], empty where there are no points.
    """
    error, std = np.asarray(error, float).ravel(), np.asarray(std, float).ravel()
    usable = np.isfinite(error) & np.isfinite(std) & (std > 0)
    error, std = error[usable], std[usable]
    if not len(std):
        return np.empty(0), np.empty(0), np.empty(0, dtype=int)
    order = np.argsort(std, kind="stable")
    bins = np.array_split(order, max(1, min(n_bins, len(order) // 5)))
    return (
        np.array([_root_mean_square(std[b]) for b in bins]),
        np.array([_root_mean_square(error[b]) for b in bins]),
        np.array([len(b) for b in bins]),
    )


def _area(confidence: np.ndarray) -> float:
    """``int_0^1 |ECDF(p) - p| dp`` of the confidences, exactly."""
    n = len(confidence)
    if n == 0:
        return math.nan
    # Between neighbouring confidences the empirical distribution is constant at k / n, and the
    # integral of |k/n - p| is a difference of (p - k/n)|p - k/n| / 2.
    edges = np.concatenate([[0.0], np.sort(confidence), [1.0]])
    height = np.arange(n + 1) / n
    upper, lower = edges[1:] - height, edges[:-1] - height
    return float((upper * np.abs(upper) - lower * np.abs(lower)).sum() / 2.0)


def _negative_log_likelihood(z: np.ndarray, std: np.ndarray) -> float:
    if not len(z):
        return math.nan
    with np.errstate(over="ignore"):
        return float(0.5 * math.log(2.0 * math.pi) + np.mean(np.log(std) + 0.5 * z * z))


def _root_mean_square(values: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(values * values))) if len(values) else math.nan
