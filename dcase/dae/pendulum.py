"""A chain of pendulums in the plane: its trajectories, in Cartesian coordinates.

``n`` point masses of 1 kg hang one below the other on massless rods of 1 m; the first rod turns
about the origin and ``y`` points up. The angle ``theta_i`` of rod ``i`` is measured from straight
down, so that ``r_i = sum_{j <= i} (sin theta_j, -cos theta_j)``.

The equations of motion are solved for the tensions ``T_i`` of the rods, not for the angular
accelerations: with unit masses and rods

    ===================================================  =======================================
    equation                                             where it comes from
    ===================================================  =======================================
    ``r_i'' = -T_i e_i + T_{i+1} e_{i+1} + (0, -g)``     Newton, ``e_i = (sin, -cos)(theta_i)``
    ``-T_{i-1} c_{i-1} + 2 T_i - T_{i+1} c_i = w_i^2``   rod ``i`` keeps its length; ``i > 1``
    ``T_1 - T_2 c_1 = w_1^2 + g cos theta_1``            the same for the rod at the pivot
    ``w_i' = T_{i+1} s_i - T_{i-1} s_{i-1}``             the rest; ``- g sin theta_1`` for ``i = 1``
    ===================================================  =======================================

with ``c_i, s_i`` the cosine and sine of ``theta_{i+1} - theta_i`` and ``w = theta'``. This is the
same motion as ``[C_ij cos(theta_i - theta_j)] w' = b`` with the dense matrix ``C_ij = n - max(i,
j)`` (Boesen, Haber and Ascher, "Neural DAEs", section 4.1), but tridiagonal: ``O(n)`` operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dcase._version import __version__
from dcase.dae.trajectory_file import Trajectory
from dcase.errors import OptionError, SimulationError
from dcase.options import check_memory, check_size

REVISION = 1
"""Raised when the same settings give another trajectory, so that old caches are not used."""

REPORT_EVERY = 50
"""Frames between two reports of progress."""


def pendulum_settings(
    steps: int = 14_000,
    *,
    n: int = 5,
    interval: float = 0.01,
    substeps: int = 10,
    start_angle: float = math.pi / 2,
    seed: int | None = None,
    gravity: float = 9.82,
) -> dict[str, Any]:
    """The settings of :func:`simulate_pendulum` as a dictionary, checked.

    Raises:
        OptionError: For a value that makes no sense.
    """
    for name, count in (("steps", steps), ("n", n), ("substeps", substeps)):
        check_size(name, count)
        if isinstance(count, bool) or int(count) != count or count < 1:
            raise OptionError(f"{name} must be a whole number of at least 1, got {count!r}")
    # Angles, rates, positions, velocities and energy of every frame.
    check_memory(float(steps) * (6 * n + 1) * 8, f"{steps} steps of {n} nodes")
    if not (math.isfinite(interval) and interval > 0):
        raise OptionError(f"interval must be a positive time in s, got {interval!r}")
    for name, number in (("start_angle", start_angle), ("gravity", gravity)):
        if not math.isfinite(number):
            raise OptionError(f"{name} must be a finite number, got {number!r}")
    if seed is not None and seed < 0:
        raise OptionError(f"seed must not be negative, got {seed}")
    return {
        "steps": int(steps),
        "n": int(n),
        "interval": float(interval),
        "substeps": int(substeps),
        # A seed replaces the angle.
        "start_angle": float(start_angle) if seed is None else None,
        "seed": None if seed is None else int(seed),
        "gravity": float(gravity),
        "revision": REVISION,
        "version": __version__,
    }


def simulate_pendulum(
    steps: int = 14_000,
    *,
    n: int = 5,
    interval: float = 0.01,
    substeps: int = 10,
    start_angle: float = math.pi / 2,
    seed: int | None = None,
    gravity: float = 9.82,
    progress: Callable[[int, int], object] | None = None,
) -> Trajectory:
    """A trajectory of ``n`` pendulums that start at rest.

    The motion is chaotic: another processor or mathematics library gives another trajectory after
    some ten seconds (of the same energy and statistics). A trajectory is a prefix of every longer
    one with the same settings.

    Args:
        steps: Frames; the first one is the start, frame ``i`` is at ``i * interval``.
        n: Pendulums.
        interval: Time between two frames, s.
        substeps: Runge-Kutta steps between two frames.
        start_angle: Angle of all rods at the start, rad from straight down. The default is
            the paper's: a horizontal chain.
        seed: Draw the start angles uniformly from [-pi, pi] instead; None: ``start_angle``.
        gravity: Acceleration, m/s^2, downwards.
        progress: Called with (frames done, frames in all) now and then.

    Returns:
        The trajectory in float64: ``positions [steps, n, 2]`` in m, ``velocities`` in m/s,
        ``energy [steps]`` in J, ``interval`` in s.

    Raises:
        OptionError: For an impossible option.
        SimulationError: If the interval is too long for the integrator and the motion blows up.
    """
    settings = pendulum_settings(
        steps,
        n=n,
        interval=interval,
        substeps=substeps,
        start_angle=start_angle,
        seed=seed,
        gravity=gravity,
    )
    if seed is None:
        start = np.full(n, start_angle)
    else:
        start = np.random.default_rng(seed).uniform(-math.pi, math.pi, n)
    theta, omega = integrate_angles(
        start, np.zeros(n), steps, interval, substeps, gravity=gravity, progress=progress
    )
    positions, velocities = cartesian(theta, omega)
    return Trajectory(
        system="pendulum",
        positions=positions,
        velocities=velocities,
        masses=np.ones(n),
        numbers=np.zeros(n, dtype=np.int64),
        interval=float(interval),
        energy=pendulum_energy(positions, velocities, gravity),
        settings=settings,
    )


def cartesian(theta: np.ndarray, omega: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities ``[..., n, 2]`` (m, m/s) from angles and rates ``[..., n]``."""
    sine, cosine = np.sin(theta), np.cos(theta)
    rods = np.stack([sine, -cosine], axis=-1)
    rates = omega[..., None] * np.stack([cosine, sine], axis=-1)
    return np.cumsum(rods, axis=-2), np.cumsum(rates, axis=-2)


def pendulum_energy(
    positions: np.ndarray, velocities: np.ndarray, gravity: float = 9.82
) -> np.ndarray:
    """Total energy of unit masses, from Cartesian coordinates alone.

    Args:
        positions: ``[..., n, 2]`` m; height zero is the pivot.
        velocities: ``[..., n, 2]`` m/s.
        gravity: m/s^2.

    Returns:
        ``[...]`` J.
    """
    kinetic = 0.5 * np.sum(np.square(velocities), axis=(-2, -1))
    return kinetic + gravity * np.sum(positions[..., 1], axis=-1)


def angular_accelerations(
    theta: list[float], omega: list[float], gravity: float = 9.82
) -> list[float]:
    """Angular accelerations of the rods, rad/s^2; see the equations at the top of the module.

    Plain floats: for five rods a NumPy call costs more than the arithmetic.
    """
    n = len(theta)
    # Forward elimination; every pivot is at least 1, so that nothing can go wrong here.
    pivot, right = 1.0, omega[0] * omega[0] + gravity * math.cos(theta[0])
    pivots, rights, cosines, sines = [pivot], [right], [], []
    for i in range(1, n):
        difference = theta[i] - theta[i - 1]
        cosine = math.cos(difference)
        factor = cosine / pivot
        pivot = 2.0 - factor * cosine
        right = omega[i] * omega[i] + factor * right
        pivots.append(pivot)
        rights.append(right)
        cosines.append(cosine)
        sines.append(math.sin(difference))
    tension = rights[-1] / pivots[-1]
    accelerations = [0.0] * n
    for i in range(n - 2, -1, -1):
        accelerations[i] += tension * sines[i]  # the rod below pulls
        tension = (rights[i] + cosines[i] * tension) / pivots[i]
        accelerations[i + 1] -= tension * sines[i]  # and the rod above
    accelerations[0] -= gravity * math.sin(theta[0])
    return accelerations


def integrate_angles(
    theta: np.ndarray,
    omega: np.ndarray,
    steps: int,
    interval: float,
    substeps: int,
    *,
    gravity: float = 9.82,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Angles and rates ``[steps, n]`` by the classical Runge-Kutta method of fourth order.

    Args:
        theta: ``[n]`` start angles, rad.
        omega: ``[n]`` start rates, rad/s.
        steps: Frames, the start included.
        interval: Time between frames, s; negative goes back in time.
        substeps: Runge-Kutta steps per interval.
        gravity: m/s^2.
        progress: Called with (frames done, frames in all) now and then.

    Raises:
        SimulationError: If the motion blows up.
    """
    h = interval / substeps
    half, sixth = h / 2, h / 6
    x, v = [float(a) for a in theta], [float(a) for a in omega]
    angles, rates = np.empty((steps, len(x))), np.empty((steps, len(x)))
    for frame in range(steps):
        angles[frame], rates[frame] = x, v
        if progress is not None and frame % REPORT_EVERY == 0:
            progress(frame, steps)
        if frame == steps - 1:
            break
        try:
            for _ in range(substeps):
                a1 = angular_accelerations(x, v, gravity)
                v2 = [b + half * a for b, a in zip(v, a1, strict=True)]
                x2 = [b + half * a for b, a in zip(x, v, strict=True)]
                a2 = angular_accelerations(x2, v2, gravity)
                v3 = [b + half * a for b, a in zip(v, a2, strict=True)]
                x3 = [b + half * a for b, a in zip(x, v2, strict=True)]
                a3 = angular_accelerations(x3, v3, gravity)
                v4 = [b + h * a for b, a in zip(v, a3, strict=True)]
                x4 = [b + h * a for b, a in zip(x, v3, strict=True)]
                a4 = angular_accelerations(x4, v4, gravity)
                x = [
                    b + sixth * (p + 2.0 * (q + r) + s)
                    for b, p, q, r, s in zip(x, v, v2, v3, v4, strict=True)
                ]
                v = [
                    b + sixth * (p + 2.0 * (q + r) + s)
                    for b, p, q, r, s in zip(v, a1, a2, a3, a4, strict=True)
                ]
        except (ValueError, OverflowError):  # sine of infinity
            v = [math.nan]
        if not math.isfinite(sum(v)):
            raise SimulationError(
                f"the pendulum blew up after {frame * abs(interval):g} s; use a shorter interval "
                "or more substeps"
            )
    if progress is not None:
        progress(steps, steps)
    return angles, rates
