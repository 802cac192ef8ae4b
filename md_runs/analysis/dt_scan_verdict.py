"""What a time-step scan says about a force field: each fault leaves its own fingerprint.

Verlet's total energy oscillates with an amplitude proportional to ``dt^2`` around a conserved
value, provided that the force is the gradient of a smooth energy. So, from the same start:

| what is seen as dt falls | what it means |
|---|---|
| amplitude falls as dt^2 (ratio 4 for dt, dt/2) | force and energy belong together, smoothly |
| a slope that does not depend on dt | the force is not the gradient of the energy |
| amplitude stays, in steps or bends | the energy has jumps or kinks (cutoff, neighbour limit) |
| amplitude stays, as white noise | rounding: single precision has reached its floor |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

TOLERANCE = 0.15
"""How far a ratio may be from (dt_i / dt_j)^2 and still count as the square law."""

NOISE_SHARE = 0.5
"""White noise above this share of the amplitude means the amplitude IS rounding."""


@dataclass(frozen=True)
class DtScan:
    """A time-step scan with its reading.

    Attributes:
        entries: Largest time step first; each has ``timestep_fs``, ``rms_mev_per_atom`` and
            ``ratio_to_next`` (None in the last), and what else was measured
            (``slope_mev_per_atom_ps``, ``slope_stderr_mev_per_atom_ps``, ``noise_mev_per_atom``,
            ``steps``, ``duration_ps``).
        interpretation: One sentence.
        passed: Whether the energy error falls as dt^2 (or is down at rounding).
    """

    entries: tuple[dict[str, Any], ...]
    interpretation: str
    passed: bool

    def to_list(self) -> list[dict[str, Any]]:
        """The entries as plain dictionaries, for ``report.json``."""
        return [dict(entry) for entry in self.entries]


def dt_scan_table(entries: Iterable[Mapping[str, Any]]) -> DtScan:
    """Ratios between neighbouring time steps, and what they mean.

    Args:
        entries: Each with ``timestep_fs`` and ``rms_mev_per_atom`` (or ``rms``: meV/atom), and, if
            known, ``slope_mev_per_atom_ps``, ``duration_ps`` and ``noise_mev_per_atom`` (the
            white part of the energy, see ``scan.white_noise``).
    """
    rows: list[dict[str, Any]] = []
    for entry in entries:
        row = {k: v for k, v in entry.items() if k not in ("rms", "ratio_to_next")}
        row["timestep_fs"] = float(entry["timestep_fs"])
        row["rms_mev_per_atom"] = float(
            entry["rms_mev_per_atom"] if "rms_mev_per_atom" in entry else entry["rms"]
        )
        rows.append(row)
    rows.sort(key=lambda row: -row["timestep_fs"])
    for this, following in pairwise(rows):
        below = following["rms_mev_per_atom"]
        this["ratio_to_next"] = this["rms_mev_per_atom"] / below if below > 0.0 else None
    if rows:
        rows[-1]["ratio_to_next"] = None
    passed, interpretation = _read(rows)
    return DtScan(tuple(rows), interpretation, passed)


def _read(rows: list[dict[str, Any]]) -> tuple[bool, str]:
    if len(rows) < 2:
        return False, "a scan needs at least two time steps"
    if not all(math.isfinite(row["rms_mev_per_atom"]) for row in rows):
        return False, "failed: the energy stopped being a finite number at one of the time steps"
    exponents = []  # d log(rms) / d log(dt) between neighbours; 2 for Verlet
    for this, following in pairwise(rows):
        if not this["rms_mev_per_atom"] > 0.0 or not following["rms_mev_per_atom"] > 0.0:
            return True, "the energy does not change at all: nothing moves, or the force is zero"
        step = math.log(this["timestep_fs"] / following["timestep_fs"])
        change = math.log(this["rms_mev_per_atom"] / following["rms_mev_per_atom"])
        exponents.append(change / step if step > 0.0 else math.nan)
    ratios = ", ".join(f"{row['ratio_to_next']:.2f}" for row in rows[:-1])
    measured = f"(ratios {ratios})"
    constant_slope = _slope_stays(rows)
    if constant_slope is not None:
        return False, (
            f"the energy drifts by {constant_slope:.3g} meV/atom/ps whatever the time step: "
            "the force is not the gradient of the energy (non-conservative, or discontinuous)"
        )
    # (dt_i/dt_j)^2 within the tolerance, as an exponent: independent of the steps chosen
    close = math.log(1.0 + TOLERANCE) / math.log(2.0)
    if all(abs(exponent - 2.0) <= close for exponent in exponents):
        return True, f"the energy error falls as dt^2 {measured}: force and energy are consistent"
    last = rows[-1]
    noise = last.get("noise_mev_per_atom")
    if noise is not None and noise > NOISE_SHARE * last["rms_mev_per_atom"]:
        return True, (
            f"the energy error levels off at {last['rms_mev_per_atom']:.2g} meV/atom as white "
            f"noise {measured}: rounding (single precision?), not the forces"
        )
    if exponents[-1] > 2.0 + close or exponents[0] > 2.0 + close:
        return False, (
            f"the energy error falls faster than dt^2 {measured}: the largest time step is too "
            "large; scan smaller ones"
        )
    if exponents[-1] < 1.0:
        if noise is None:
            return False, (
                f"the energy error levels off {measured}: rounding (repeat in float64), or an "
                "energy with jumps or kinks, or a force that is not its gradient"
            )
        return False, (
            f"the energy error does not fall with the time step {measured}, and it is not "
            "rounding: the energy has jumps or kinks (cutoff, neighbour limit), or the force is "
            "not its gradient"
        )
    return False, (
        f"the energy error falls more slowly than dt^2 {measured}: kinks in the force, a cutoff "
        "that is not smooth, or too short a window; look at smaller time steps"
    )


def _slope_stays(rows: list[dict[str, Any]]) -> float | None:
    """The slope at the smallest step if it dominates and does not fall with dt, else None.

    No standard error is asked for: a force that is not a gradient heats along a smooth curve, not a
    line with noise. A healthy slope is part of the oscillation, and falls as dt^2 with it.
    """
    try:
        (larger, larger_rise), (smaller, smaller_rise) = (
            (
                float(row["slope_mev_per_atom_ps"]),
                abs(float(row["slope_mev_per_atom_ps"])) * float(row["duration_ps"]),
            )
            for row in rows[-2:]
        )
    except (KeyError, TypeError):
        return None
    if not all(math.isfinite(value) for value in (larger, smaller)):
        return None
    rises = smaller_rise > rows[-1]["rms_mev_per_atom"]
    rises = rises and larger_rise > rows[-2]["rms_mev_per_atom"]
    return smaller if rises and abs(larger - smaller) < 0.2 * abs(smaller) else None
