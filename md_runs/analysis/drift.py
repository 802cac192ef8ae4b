"""How well a trajectory conserves its energy: the slope, its honest error, and a verdict in words.

The slope is an ordinary least-squares fit. Its standard error must not pretend that neighbouring
samples are independent: the total energy of a Verlet run is ``E(t) = H' - dt^2 G(x(t), p(t))`` with
a conserved ``H'`` near the Hamiltonian (the "shadow" Hamiltonian; Hairer, Lubich and Wanner, Acta
Numerica 12, 399 (2003)), so its fluctuation is as correlated as the motion itself.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dcase.errors import OptionError
from dcase.md_runs.analysis.correlated import (
    Part,
    average,
    blocks,
    fit_line,
    mean_and_error,
    sliceable,
)
from dcase.md_runs.analysis.dt_scan_verdict import DtScan, dt_scan_table
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


def analyse(
    times_fs: Any,
    total_energy: Any,
    kinetic_energy: Any,
    *,
    n_atoms: int,
    n_dof: int,
    temperature_K: float | None = None,
) -> EnergyDrift:
    """Drift of a conserved energy along a run.

    A series that is not finite everywhere is analysed up to its first bad sample and fails. The
    series may be an open file's: they are read a block at a time.

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
    times, energy, kinetic = (sliceable(v) for v in (times_fs, total_energy, kinetic_energy))
    if not len(times) == len(energy) == len(kinetic):
        raise OptionError(
            "times, total energy and kinetic energy must have the same length, not "
            f"{len(times)}, {len(energy)} and {len(kinetic)}"
        )
    if n_atoms < 1:
        raise OptionError("energy drift is per atom: n_atoms must be at least 1")
    broken_at = _first_bad(times, energy, kinetic)
    if broken_at is not None:
        times, energy, kinetic = (Part(v, broken_at) for v in (times, energy, kinetic))
    n = len(times)
    per_atom = 1e3 / n_atoms  # eV -> meV/atom
    first, last = (float(times[k : k + 1][0]) * 1e-3 if n else 0.0 for k in (0, n - 1))
    duration = last - first
    intercept, slope_fs, stderr_fs, tau_fs = fit_line(times, energy)
    slope, stderr, tau = slope_fs * 1e3, stderr_fs * 1e3, tau_fs * 1e-3
    heat_mean = average(kinetic)[0]
    spread, rms, max_deviation = _spreads(times, energy, kinetic, (intercept, slope_fs, heat_mean))
    ratio = fluctuation = math.nan
    if n < 2:
        rms = max_deviation = math.nan
    elif spread > 0.0:
        ratio = abs(slope * duration) / spread
        fluctuation = rms / spread
    if temperature_K is None:
        temperature_K = 2.0 * heat_mean / (n_dof * KB) if n and n_dof > 0 else math.nan
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
        verdict=_verdict(slope, stderr, ratio, fluctuation, n, broken_at, last * 1e3),
    )


def _first_bad(*columns: Any) -> int | None:
    """Where the first sample is of which one is not finite."""
    done = 0
    for parts in blocks(*columns):
        bad = np.flatnonzero(~np.isfinite(np.stack(parts)).all(axis=0))
        if len(bad):
            return done + int(bad[0])
        done += len(parts[0])
    return None


def _spreads(
    times: Any, energy: Any, kinetic: Any, fit: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Standard deviation of K, root mean square about the line, largest distance from the start."""
    intercept, slope, mean = fit
    heat = square = largest = 0.0
    start = float(energy[0:1][0]) if len(times) else math.nan
    for t, e, k in blocks(times, energy, kinetic):
        heat += float(np.sum((k - mean) ** 2))
        square += float(np.sum((e - intercept - slope * t) ** 2))
        largest = max(largest, float(np.abs(e - start).max()))
    n = len(times)
    return (math.sqrt(heat / n), math.sqrt(square / n), largest) if n else (math.nan,) * 3


def _verdict(
    slope: float,
    stderr: float,
    ratio: float,
    fluctuation: float,
    n: int,
    broken_at: int | None,
    last_fs: float,
) -> str:
    """One sentence for people; the words before the bracket are stable."""
    if broken_at is not None:
        when = f"after {last_fs:g} fs" if n else "from the first sample on"
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
