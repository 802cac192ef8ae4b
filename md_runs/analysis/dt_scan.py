"""The same start at several time steps: does the energy error fall as dt^2?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.md.verlet import VelocityVerlet

from dcase.errors import OptionError, SimulationError
from dcase.md_runs.analysis.drift import fit_line
from dcase.md_runs.analysis.dt_scan_verdict import DtScan, dt_scan_table
from dcase.md_runs.analysis.frequency import check_timestep
from dcase.md_runs.loop.constrain import constrain
from dcase.md_runs.loop.ensembles import EQUILIBRATION
from dcase.md_runs.loop.freedom import hold_as_given
from dcase.md_runs.loop.integrators import make_dynamics
from dcase.md_runs.loop.mechanics import draw_momenta, still
from dcase.md_runs.settings import MDSettings
from dcase.units import FS

PERIODS = 20.0
"""Periods of the fastest vibration that a scan lasts.

Enough for an amplitude, and short enough for the runs to stay together: they part by a phase of
``(omega dt)^2 / 24`` per radian, and by chaos after picoseconds. When they have parted, they no
longer sample the same function, and the ratio wanders off 4 for a good force field too.
"""

LEAST_STEPS = 100
"""Steps of the largest time step that a scan lasts at least."""

NO_VIBRATION_FS = 500.0
"""Duration where nothing vibrates, fs."""


def dt_scan(
    atoms: Atoms,
    settings: MDSettings,
    factors: Sequence[float] = (1.0, 0.5, 0.25),
    *,
    duration_fs: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    notify: Callable[[str], None] | None = None,
) -> DtScan:
    """Velocity Verlet at ``factors`` times the time step, over the same time from the same start.

    All runs are compared at the same instants (those of the largest step), so that the amplitude is
    that of one function sampled once: ``E(t) - E(0) = -dt^2 (G(t) - G(0)) + O(dt^4)``. Always in
    NVE, whatever the ensemble of ``settings``: only there is the energy conserved.

    Args:
        atoms: With a calculator. Momenta that it has are used as they are; without any, they are
            drawn and equilibrated as ``run_md`` would (same seed, same start).
        settings: Time step, temperature, equilibration, seed.
        factors: Of ``settings.timestep_fs``; 1/factor relative to the largest must be whole.
        duration_fs: Simulated time, fs; None is 20 periods of the fastest vibration.
        progress: Called with steps done and in all.
        notify: Called with warnings.

    Raises:
        OptionError: If a factor is not one, or there is no calculator.
        SimulationError: If the largest time step is past the stability limit.
    """
    if atoms.calc is None:
        raise OptionError("the structure has no calculator: set atoms.calc before dt_scan")
    ordered = sorted((float(f) for f in factors), reverse=True)
    if len(ordered) < 2 or not all(math.isfinite(f) and f > 0.0 for f in ordered):
        raise OptionError("a time-step scan needs at least two positive factors, such as 1 and 0.5")
    largest = ordered[0] * settings.timestep_fs
    strides = [round(ordered[0] / f) for f in ordered]
    if any(abs(s * f / ordered[0] - 1.0) > 1e-9 for s, f in zip(strides, ordered, strict=True)):
        raise OptionError("every factor must be the largest divided by a whole number")
    start = start_state(atoms, settings, notify)
    period, warning = check_timestep(start, largest, force=settings.force_timestep)
    if warning and notify is not None:
        notify(f"warning: {warning}")
    if duration_fs is None:
        duration_fs = PERIODS * period if math.isfinite(period) else NO_VIBRATION_FS
        duration_fs = max(duration_fs, LEAST_STEPS * largest)
    samples = max(20, math.ceil(duration_fs / largest))
    total = samples * sum(strides)
    done = 0
    entries = []
    for stride in strides:
        entries.append(_one(start, largest / stride, samples, stride))
        done += samples * stride
        if progress is not None:
            progress(done, total)
    return dt_scan_table(entries)


def start_state(
    atoms: Atoms, settings: MDSettings, notify: Callable[[str], None] | None = None
) -> Atoms:
    """Positions and momenta that a run of ``settings`` starts production from (in NVE).

    Args:
        atoms: With a calculator; momenta of its own are kept.
        settings: Temperature, equilibration, seed.
        notify: Called when the equilibration begins.

    Returns:
        A copy with momenta, the calculator, and the bonds that ``settings`` hold.
    """
    start = atoms.copy()
    start.calc = atoms.calc
    if constrain(start, settings.constrain) is None:
        hold_as_given(start)
    if np.any(start.get_momenta() != 0.0):
        return start
    rng = np.random.default_rng(settings.seed)
    draw_momenta(start, settings.temperature_K, rng)
    if settings.equilibrate and settings.temperature_K > 0:
        if notify is not None:
            notify(f"equilibrating for {settings.equilibrate} steps")
        dynamics = make_dynamics(start, settings, rng, ensemble=EQUILIBRATION.name)
        for _ in range(settings.equilibrate):
            dynamics.step()
    still(start, "nve")
    return start


def _one(start: Atoms, timestep_fs: float, samples: int, stride: int) -> dict[str, Any]:
    """One run of ``samples * stride`` steps, compared every ``stride`` steps."""
    atoms = start.copy()
    atoms.calc = start.calc
    free = "free_energy" in getattr(start.calc, "implemented_properties", ())
    dynamics = VelocityVerlet(atoms, timestep=timestep_fs * FS)
    energy = np.full(samples * stride + 1, np.nan)
    n = len(atoms)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(len(energy)):
            if k:
                try:
                    dynamics.step()
                except Exception:
                    if np.isfinite(atoms.get_positions()).all():
                        raise
                    break
            energy[k] = (
                atoms.get_potential_energy(force_consistent=free) + atoms.get_kinetic_energy()
            )
            if not np.isfinite(energy[k]):
                break
    if not np.isfinite(energy[0]):
        raise SimulationError("the energy of the starting structure is not a finite number")
    picoseconds = np.arange(len(energy)) * timestep_fs * 1e-3
    times, sampled = picoseconds[::stride], energy[::stride]
    intercept, slope, stderr, _ = fit_line(times, sampled)
    rms = float(np.sqrt(np.mean((sampled - intercept - slope * times) ** 2)))
    return {
        "timestep_fs": timestep_fs,
        "steps": samples * stride,
        "duration_ps": samples * stride * timestep_fs * 1e-3,
        "rms_mev_per_atom": rms * 1e3 / n,
        "slope_mev_per_atom_ps": slope * 1e3 / n,
        "slope_stderr_mev_per_atom_ps": stderr * 1e3 / n,
        "noise_mev_per_atom": white_noise(energy) * 1e3 / n,
    }


def white_noise(values: np.ndarray) -> float:
    """Standard deviation of the part of a series that does not get smoother with finer sampling.

    The fourth difference ``v0 - 4 v1 + 6 v2 - 4 v3 + v4`` removes anything smooth; of white noise
    it leaves ``sqrt(1 + 16 + 36 + 16 + 1) = sqrt(70)`` times its standard deviation. The median
    makes it blind to a few jumps, which are not noise.

    Args:
        values: ``(n,)``.

    Returns:
        In the units of ``values``; NaN for fewer than 16 of them.
    """
    if len(values) < 16:
        return math.nan
    difference = np.diff(values - values[0], n=4)
    return float(np.median(np.abs(difference)) / 0.6745 / math.sqrt(70.0))
