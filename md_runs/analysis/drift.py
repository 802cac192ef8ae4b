"""How well a trajectory conserves its energy: the slope, its honest error, and a verdict in words.

The slope is an ordinary least-squares fit. Its standard error must not pretend that neighbouring
samples are independent: the total energy of a Verlet run is ``E(t) = H' - dt^2 G(x(t), p(t))`` with
a conserved ``H'`` near the Hamiltonian (the "shadow" Hamiltonian; Hairer, Lubich and Wanner, Acta
Numerica 12, 399 (2003)), so its fluctuation is as correlated as the motion itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dcase.errors import OptionError
from dcase.md_runs.analysis.dt_scan_verdict import DtScan, dt_scan_table
from dcase.statistics import autocorrelation_time
from dcase.units import KB

__all__ = [
    "DtScan",
    "EnergyDrift",
    "analyse",
    "dt_scan_table",
    "fit_line",
    "mean_and_error",
    "plus_minus",
]

FITTED = 2
"""Parameters of a line, for which autocorrelation times are corrected."""

MIN_SAMPLES = 10
"""Fewer samples than this get numbers but no judgement."""

SIGNIFICANT = 2.0
"""A slope counts as real beyond this many standard errors."""

SMALL_DRIFT = 0.1
"""Drift below this fraction of the kinetic energy's fluctuation is called small."""

WANDERING = 0.2
"""Detrended total energy above this fraction of the kinetic energy's fluctuation is not conserved.

A sound Verlet run has about (omega dt)^2 / 8 here: 5 % at the largest sensible time step.
"""


@dataclass(frozen=True)
class EnergyDrift:
    """Drift of a conserved energy; every number is a float64, NaN where it has no meaning.

    Attributes:
        slope_mev_per_atom_ps: Least-squares slope, meV/atom/ps.
        slope_stderr_mev_per_atom_ps: Its standard error, autocorrelation included, meV/atom/ps.
        slope_kt_per_ns_dof: The slope in kT per nanosecond per degree of freedom (OpenMM's unit).
        rms_mev_per_atom: Root mean square of the detrended energy, meV/atom.
        max_deviation_mev_per_atom: Largest |E(t) - E(0)|, meV/atom.
        drift_ratio: |slope * duration| / std(kinetic energy).
        fluctuation_ratio: Root mean square of the detrended energy / std(kinetic energy).
        autocorrelation_time_fs: Integrated autocorrelation time of the detrended energy, fs.
        effective_samples: Samples divided by their statistical inefficiency.
        n_samples: Finite samples used.
        duration_ps: From the first to the last sample used, ps.
        temperature_K: Temperature used for kT.
        verdict: One sentence.
    """

    slope_mev_per_atom_ps: float
    slope_stderr_mev_per_atom_ps: float
    slope_kt_per_ns_dof: float
    rms_mev_per_atom: float
    max_deviation_mev_per_atom: float
    drift_ratio: float
    fluctuation_ratio: float
    autocorrelation_time_fs: float
    effective_samples: float
    n_samples: int
    duration_ps: float
    temperature_K: float
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain numbers and one string, for ``report.json``."""
        return asdict(self)

    @property
    def conserved(self) -> bool:
        """Whether the verdict is one of the two good ones."""
        return self.verdict.startswith(("no significant drift", "significant but small"))


def fit_line(times: np.ndarray, values: np.ndarray) -> tuple[float, float, float, float]:
    """Least-squares line through correlated samples.

    ``Var(slope) = 2 tau s^2 / sum (t - <t>)^2`` with ``s^2 = SSR / (n - 4 tau)``: the textbook
    formula with ``n`` replaced by the number of independent samples ``n / (2 tau)``.

    A fast oscillation hides a slow wander from Sokal's window, so the error is also computed from
    means over blocks (which average the oscillation away) and the largest one is used.

    Args:
        times: ``(n,)`` any unit, strictly increasing.
        values: ``(n,)`` any unit.

    Returns:
        ``(intercept at t = 0, slope, standard error of the slope, tau in units of time)``.
    """
    times = np.asarray(times, dtype=np.float64)
    values = np.asarray(values, dtype=np.float64)
    n = len(times)
    if n < 2:
        return (float(values[0]) if n else math.nan), math.nan, math.nan, math.nan
    mean_t, mean_v = times.mean(), values.mean()
    x = times - mean_t
    y = values - mean_v  # a total energy is thousands of eV: subtract before squaring
    sxx = float(x @ x)
    slope = float(x @ y) / sxx
    intercept = float(mean_v - slope * mean_t)
    if n < 4:
        return intercept, slope, math.nan, math.nan
    residual = y - slope * x
    variance, inefficiency = 0.0, 1.0
    for block in _block_sizes(n):
        blocks = n // block
        means = residual[: blocks * block].reshape(blocks, block).mean(axis=1)
        positions = x[: blocks * block].reshape(blocks, block).mean(axis=1)
        means = means - means.mean()
        tau = autocorrelation_time(means, fitted=FITTED)
        # At least two independent samples must be left, or there is no error to speak of.
        freedom = max(blocks - 4.0 * tau, 0.5)
        spread = float(means @ means) / freedom
        centred = positions - positions.mean()
        estimate = 2.0 * tau * spread / float(centred @ centred)
        if estimate > variance:
            variance, inefficiency = estimate, 2.0 * tau * (block if block > 1 else 1)
    step = float(times[-1] - times[0]) / (n - 1)
    return intercept, slope, math.sqrt(variance), float(0.5 * inefficiency * step)


def _block_sizes(n: int) -> list[int]:
    """Block lengths that leave about 256 and 64 blocks, and no blocks at all."""
    return sorted({1, *(n // count for count in (256, 64) if n // count > 1)})


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error ``sqrt(2 tau s^2 / n)`` for a correlated series.

    Args:
        values: ``(n,)``; non-finite entries are left out.

    Returns:
        ``(mean, standard error)``; NaN where there is nothing to average.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return math.nan, math.nan
    mean = float(values.mean())
    if n < 4:
        return mean, math.nan
    residual = values - mean
    tau = autocorrelation_time(residual, fitted=FITTED)
    spread = float(residual @ residual) / max(n - 2.0 * tau, 0.5)
    return mean, math.sqrt(2.0 * tau * spread / n)


def analyse(
    times_fs: Sequence[float] | np.ndarray,
    total_energy: Sequence[float] | np.ndarray,
    kinetic_energy: Sequence[float] | np.ndarray,
    *,
    n_atoms: int,
    n_dof: int,
    temperature_K: float | None = None,
) -> EnergyDrift:
    """Drift of a conserved energy along a run.

    A series that is not finite everywhere is analysed up to its first bad sample and fails.

    Args:
        times_fs: ``(n,)`` times in fs, increasing.
        total_energy: ``(n,)`` total (or conserved) energy in eV.
        kinetic_energy: ``(n,)`` kinetic energy in eV.
        n_atoms: Number of atoms.
        n_dof: Number of degrees of freedom that move (see ``mechanics.degrees_of_freedom``).
        temperature_K: For kT; by default the mean kinetic temperature ``2 <K> / (n_dof k)``.

    Raises:
        OptionError: If the three series differ in length, or there are no atoms.
    """
    times = np.asarray(times_fs, dtype=np.float64).ravel()
    energy = np.asarray(total_energy, dtype=np.float64).ravel()
    kinetic = np.asarray(kinetic_energy, dtype=np.float64).ravel()
    if not len(times) == len(energy) == len(kinetic):
        raise OptionError(
            "times, total energy and kinetic energy must have the same length, not "
            f"{len(times)}, {len(energy)} and {len(kinetic)}"
        )
    if n_atoms < 1:
        raise OptionError("energy drift is per atom: n_atoms must be at least 1")
    bad = np.flatnonzero(~(np.isfinite(times) & np.isfinite(energy) & np.isfinite(kinetic)))
    broken_at = int(bad[0]) if len(bad) else None
    if broken_at is not None:
        times, energy, kinetic = times[:broken_at], energy[:broken_at], kinetic[:broken_at]
    n = len(times)
    per_atom = 1e3 / n_atoms  # eV -> meV/atom
    picoseconds = times * 1e-3
    duration = float(picoseconds[-1] - picoseconds[0]) if n else 0.0
    intercept, slope, stderr, tau = fit_line(picoseconds, energy)
    spread = float(np.std(kinetic)) if n else math.nan
    rms = max_deviation = ratio = fluctuation = math.nan
    if n >= 2:
        rms = float(np.sqrt(np.mean((energy - intercept - slope * picoseconds) ** 2)))
        max_deviation = float(np.max(np.abs(energy - energy[0])))
        if spread > 0.0:
            ratio = abs(slope * duration) / spread
            fluctuation = rms / spread
    if temperature_K is None:
        temperature_K = (
            2.0 * float(np.mean(kinetic)) / (n_dof * KB) if n and n_dof > 0 else math.nan
        )
    heat = KB * temperature_K * n_dof
    samples = float(n)
    if math.isfinite(tau) and tau > 0.0 and duration > 0.0:
        samples = min(float(n), duration / (2.0 * tau))
    return EnergyDrift(
        slope_mev_per_atom_ps=slope * per_atom,
        slope_stderr_mev_per_atom_ps=stderr * per_atom,
        slope_kt_per_ns_dof=slope * 1e3 / heat if heat > 0.0 else math.nan,
        rms_mev_per_atom=rms * per_atom,
        max_deviation_mev_per_atom=max_deviation * per_atom,
        drift_ratio=ratio,
        fluctuation_ratio=fluctuation,
        autocorrelation_time_fs=tau * 1e3,
        effective_samples=samples,
        n_samples=n,
        duration_ps=duration,
        temperature_K=float(temperature_K),
        verdict=_verdict(slope, stderr, ratio, fluctuation, n, broken_at, times),
    )


def _verdict(
    slope: float,
    stderr: float,
    ratio: float,
    fluctuation: float,
    n: int,
    broken_at: int | None,
    times: np.ndarray,
) -> str:
    """One sentence for people; the words before the bracket are stable."""
    if broken_at is not None:
        when = f"after {times[-1]:g} fs" if n else "from the first sample on"
        return f"failed: the energy is not a finite number {when}"
    if n < MIN_SAMPLES:
        return f"too short to judge ({n} samples; at least {MIN_SAMPLES} are needed)"
    share = f"{_percent(ratio)} of the kinetic energy's fluctuation"
    if fluctuation > WANDERING:
        return (
            "not conserved (the total energy wanders by "
            f"{_percent(fluctuation)} of the kinetic energy's fluctuation)"
        )
    if not abs(slope) > SIGNIFICANT * stderr:
        return f"no significant drift (slope within {SIGNIFICANT:g} standard errors; {share})"
    sigmas = f"{abs(slope) / stderr:.1f}" if stderr > 0.0 else "infinitely many"
    if ratio < SMALL_DRIFT:
        return f"significant but small (slope is {sigmas} standard errors; {share})"
    return f"not conserved (slope is {sigmas} standard errors; {share})"


def _percent(fraction: float) -> str:
    if not math.isfinite(fraction):
        return "an undefined share"
    return f"{100.0 * fraction:.2g} %" if fraction < 1.0 else f"{100.0 * fraction:.0f} %"


def plus_minus(value: float, error: float) -> str:
    """``12.3 ± 0.4``: the error with two digits, the value with as many as that allows."""
    if not (math.isfinite(error) and error > 0.0 and math.isfinite(value)):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    if digits > 6 or error >= 1e5:
        return f"{value:.3g} ± {error:.2g}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"
