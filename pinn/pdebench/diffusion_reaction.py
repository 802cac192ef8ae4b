"""The 2D FitzHugh-Nagumo system as PDEBench solves it: finite volumes and Runge-Kutta 4(5).

u_t = Du lap u + u - u^3 - k - v and v_t = Dv lap v + u - v on a square with closed walls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dcase.errors import DataError
from dcase.pinn.pdebench.limiter import Progress


@dataclass(frozen=True)
class Constants:
    """Diffusion coefficients and the reaction's offset; the defaults are PDEBench's."""

    Du: float = 1e-3
    Dv: float = 5e-3
    k: float = 5e-3


def laplacian(values: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Five-point Laplacian with no flux through the walls; axes (..., y, x)."""
    result = np.zeros_like(values)
    flux = np.diff(values, axis=-1) / dx**2
    result[..., :-1] += flux
    result[..., 1:] -= flux
    flux = np.diff(values, axis=-2) / dy**2
    result[..., :-1, :] += flux
    result[..., 1:, :] -= flux
    return result


def solve_diffusion_reaction(
    initial: dict[str, np.ndarray],
    times: np.ndarray,
    *,
    constants: Constants = Constants(),
    size: tuple[float, float] = (2.0, 2.0),
    rtol: float = 1e-3,
    atol: float = 1e-6,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Integrate one sample in time.

    Args:
        initial: ``{"u", "v"}``, each ``[ny, nx]`` at cell centres.
        times: Increasing times at which the solution is stored ``[nt]``; the first is the start.
        constants: Of the equations.
        size: Extent along x and y.
        rtol: Relative tolerance of SciPy's RK45; PDEBench has SciPy's default.
        atol: Absolute tolerance, as above.
        progress: Called as the stored times are passed.

    Returns:
        ``{"u", "v"}``, each ``[nt, ny, nx]``.

    Raises:
        DataError: If the integration fails.
    """
    from scipy.integrate import solve_ivp

    start = np.stack((initial["u"], initial["v"])).astype(np.float64)
    shape = start.shape
    dx, dy = size[0] / shape[2], size[1] / shape[1]
    passed = 0

    def change(t: float, flat: np.ndarray) -> np.ndarray:
        nonlocal passed
        state = flat.reshape(shape)
        u, v = state
        rate = laplacian(state, dx, dy)
        rate[0] *= constants.Du
        rate[1] *= constants.Dv
        rate[0] += u - u**3 - constants.k - v
        rate[1] += u - v
        if progress and (now := int(np.searchsorted(times, t, side="right")) - 1) > passed:
            passed = now
            progress(passed, len(times) - 1)
        return rate.reshape(-1)

    with np.errstate(over="raise", invalid="raise"):
        try:
            found = solve_ivp(
                change,
                (times[0], times[-1]),
                start.reshape(-1),
                t_eval=times,
                rtol=rtol,
                atol=atol,
            )
        except FloatingPointError as error:
            raise DataError("the diffusion-reaction solution blows up") from error
    if not found.success:
        raise DataError(f"the diffusion-reaction solution failed: {found.message}")
    solution = found.y.T.reshape(len(times), *shape)
    return {"u": solution[:, 0], "v": solution[:, 1]}
