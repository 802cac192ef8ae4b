"""One-dimensional compressible flow of an ideal gas: PDEBench's MUSCL scheme with the HLLC flux.

The Euler equations, which the published eta = zeta = 1e-8 are to all purposes: the viscous terms of
the published scheme are some 1e-8 of the others and less than its rounding, and are left out.
"""

from __future__ import annotations

import numpy as np

from dcase.errors import DataError
from dcase.pinn.pdebench.limiter import Progress, half_slopes, pad

GAMMA = 5.0 / 3.0
COURANT = 0.3
PRESSURE_FLOOR = 1e-4

Flow = dict[str, np.ndarray]


def conserved(rho: np.ndarray, v: np.ndarray, p: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """Densities of mass, momentum and energy, stacked in front: ``[3, ...]``."""
    return np.stack((rho, rho * v, p / (gamma - 1.0) + 0.5 * rho * v * v))


def primitive(state: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """Density, velocity and pressure of conserved densities, ``[3, ...]``."""
    result = np.empty_like(state)
    result[0] = state[0]
    np.divide(state[1], state[0], out=result[1])
    kinetic = state[1] * result[1]
    kinetic *= 0.5
    np.subtract(state[2], kinetic, out=result[2])
    result[2] *= gamma - 1.0
    if result[2].min() < PRESSURE_FLOOR:
        np.maximum(result[2], PRESSURE_FLOOR, out=result[2])
    return result


def hllc_flux(left: np.ndarray, right: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """Flux through faces between primitive states ``[3, ...]`` on their two sides.

    Three waves (Toro, Spruce and Speares 1994) with Davis's bounds of the outer speeds.
    """
    rho_l, v_l, p_l = left
    rho_r, v_r, p_r = right
    sound = np.sqrt(gamma * np.maximum(p_l / rho_l, p_r / rho_r))
    s_l = np.minimum(v_l, v_r) - sound
    s_r = np.maximum(v_l, v_r) + sound
    mass_l = rho_l * (s_l - v_l)  # mass that each outer wave sweeps up, negative on the left
    mass_r = rho_r * (s_r - v_r)
    contact = (mass_r * v_r - mass_l * v_l - p_r + p_l) / (mass_r - mass_l)
    # Only the side on which the face lies matters, the left one if the contact moves right.
    on_left = contact >= 0.0
    rho = np.where(on_left, rho_l, rho_r)
    v = np.where(on_left, v_l, v_r)
    p = np.where(on_left, p_l, p_r)
    speed = np.where(on_left, s_l, s_r)
    mass = np.where(on_left, mass_l, mass_r)
    energy = p * (1.0 / (gamma - 1.0)) + 0.5 * rho * v * v
    p_star = p + mass * (contact - v)
    rho_star = mass / (speed - contact)
    energy_star = ((speed - v) * energy - p * v + p_star * contact) / (speed - contact)
    outside = np.where(on_left, s_l >= 0.0, s_r <= 0.0)
    if outside.any():  # supersonic: the face sees the undisturbed state
        rho_star = np.where(outside, rho, rho_star)
        energy_star = np.where(outside, energy, energy_star)
        p_star = np.where(outside, p, p_star)
        contact = np.where(outside, v, contact)
    flux = np.empty_like(left)
    np.multiply(rho_star, contact, out=flux[0])
    np.multiply(flux[0], contact, out=flux[1])
    flux[1] += p_star
    np.multiply(energy_star + p_star, contact, out=flux[2])
    return flux


def _outflow(values: np.ndarray, gamma: float) -> np.ndarray:
    """What leaves each cell on the right less what enters on the left, ``[3, S, n]``.

    The limiter keeps the values at faces between those of the cells, so positive ones positive.
    """
    padded = pad(values)
    centre, slope = padded[..., 1:-1], half_slopes(padded)
    low, high = centre - slope, centre + slope
    return np.diff(hllc_flux(high[..., :-1], low[..., 1:], gamma), axis=-1)


@np.errstate(all="ignore")  # what goes wrong is seen in the result
def solve_flow(
    initial: Flow,
    times: np.ndarray,
    *,
    length: float = 2.0,
    gamma: float = GAMMA,
    progress: Progress | None = None,
) -> Flow:
    """Second-order finite volumes on a period, midpoint rule in time.

    Every sample has its own time step, so that it does not depend on those solved with it.

    Args:
        initial: ``{"rho", "v", "p"}``, cell values ``[samples, nx]``.
        times: Increasing times at which the solution is stored ``[nt]``; the first is the start.
        length: Period.
        gamma: Ratio of specific heats.
        progress: Called after each stored time.

    Returns:
        ``{"rho", "v", "p"}``, each ``[samples, nt, nx]``.

    Raises:
        DataError: If density or pressure is not positive, or the solution blows up.
    """
    values = np.stack([np.asarray(initial[k], dtype=np.float64) for k in ("rho", "v", "p")])
    if not (values[[0, 2]] > 0.0).all():
        raise DataError("the initial density and pressure of a flow must be positive")
    samples, cells = values.shape[1:]
    spacing = length / cells
    state = conserved(values[0], values[1], values[2], gamma)
    solution = np.empty((3, samples, len(times), cells))
    solution[:, :, 0] = values
    for i in range(1, len(times)):
        _advance(state, values, times[i] - times[i - 1], spacing, gamma)
        if not (np.isfinite(state).all() and state[0].min() > 0.0):
            raise DataError(f"the flow blows up before t = {times[i]:.4g}")
        solution[:, :, i] = values
        if progress:
            progress(i, len(times) - 1)
    return dict(zip(("rho", "v", "p"), solution, strict=True))


def _advance(
    state: np.ndarray, values: np.ndarray, interval: float, spacing: float, gamma: float
) -> None:
    """Bring all samples forward by ``interval``, in place."""
    active = np.arange(state.shape[1])
    left = np.full(len(active), interval)
    q, w = state.copy(), values.copy()
    while len(active):
        fastest = (np.sqrt(gamma * w[2] / w[0]) + np.abs(w[1])).max(axis=-1)
        step = COURANT * spacing / fastest
        if not (step > 1e-8 * interval).all():  # a sound speed beyond all bounds, or NaN
            state[:] = np.nan
            return
        last = step >= left
        step = np.where(last, left, step)
        ratio = (step / spacing)[:, None]
        middle = primitive(q - 0.5 * ratio * _outflow(w, gamma), gamma)
        q -= ratio * _outflow(middle, gamma)
        w = primitive(q, gamma)
        left = left - step
        if last.any():
            state[:, active[last]] = q[:, last]
            values[:, active[last]] = w[:, last]
            keep = ~last
            active, left, q, w = active[keep], left[keep], q[:, keep], w[:, keep]
