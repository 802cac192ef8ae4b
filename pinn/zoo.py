r"""Ready problems beside PDEBench's: the tutorial for one of your own (docs/pinn.md).

Each is an equation of a few lines, and a function that puts it on a domain with conditions and a
reference solution from a classical method.

==================  ================================================================================
name                problem
==================  ================================================================================
burgers             ``u_t + u u_x = nu u_xx``, ``nu = 0.01/pi``, from ``-sin(pi x)`` on [-1, 1],
                    walls held at 0 (Raissi et al. 2019, sec. 3.1.1); reference by Cole-Hopf
allen-cahn          ``u_t = 1e-4 u_xx + 5 (u - u^3)``, from ``x^2 cos(pi x)``, periodic (Raissi et
                    al. 2019, sec. 3.2.1); reference by a Fourier method
diffusion-sorption  ``R(u) u_t = D u_xx`` with retardation by a Freundlich isotherm, PDEBench's
                    constants; reference by the method of lines
==================  ================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dcase.pinn.conditions import Boundary, Dirichlet, Initial, Periodic
from dcase.pinn.domains import Domain
from dcase.pinn.initial import FunctionState
from dcase.pinn.problem import PDEProblem
from dcase.pinn.sample import Sample


@dataclass(frozen=True)
class Burgers:
    """``u_t + u u_x - nu u_xx = 0``."""

    nu: float = 0.01 / math.pi

    coordinates: ClassVar[tuple[str, ...]] = ("x", "t")
    fields: ClassVar[tuple[str, ...]] = ("u",)

    def residuals(self, d: Any) -> dict[str, Tensor]:
        """One."""
        return {"burgers": d.u_t + d.u * d.u_x - self.nu * d.u_xx}


def burgers(nu: float = 0.01 / math.pi) -> PDEProblem:
    """Burgers' equation from a sine that steepens into a shock layer at x = 0."""
    domain = Domain({"x": (-1.0, 1.0), "t": (0.0, 1.0)})
    start = FunctionState({"u": lambda x: -torch.sin(math.pi * x)}, domain.intervals)
    conditions = [Initial(state=start), Dirichlet(coordinate="x", values={"u": 0.0})]
    return PDEProblem("burgers", Burgers(nu), domain, conditions, lambda: _cole_hopf(nu))


@dataclass(frozen=True)
class AllenCahn:
    """``u_t - D u_xx - 5 (u - u^3) = 0``."""

    D: float = 1e-4

    coordinates: ClassVar[tuple[str, ...]] = ("x", "t")
    fields: ClassVar[tuple[str, ...]] = ("u",)

    def residuals(self, d: Any) -> dict[str, Tensor]:
        """One."""
        return {"allen-cahn": d.u_t - self.D * d.u_xx - 5.0 * (d.u - d.u * d.u * d.u)}


def allen_cahn(D: float = 1e-4) -> PDEProblem:
    """The Allen-Cahn equation, periodic, with sharp interfaces at the end."""
    domain = Domain({"x": (-1.0, 1.0), "t": (0.0, 1.0)})
    start = FunctionState({"u": lambda x: x * x * torch.cos(math.pi * x)}, domain.intervals)
    conditions = [Initial(state=start), Periodic(coordinate="x", fields=("u",), slopes=True)]
    return PDEProblem("allen-cahn", AllenCahn(D), domain, conditions, lambda: _allen_cahn(D))


@dataclass(frozen=True)
class DiffusionSorption:
    """``u_t - D / R(u) u_xx = 0``, ``R = 1 + (1 - phi)/phi rho_s k n u^(n - 1)``."""

    D: float = 5e-4
    porosity: float = 0.29
    density: float = 2880.0
    k: float = 3.5e-4
    n: float = 0.874

    coordinates: ClassVar[tuple[str, ...]] = ("x", "t")
    fields: ClassVar[tuple[str, ...]] = ("u",)

    def retardation(self, u: Any) -> Any:
        """Of a tensor or an array; ``u`` is held above 1e-6, where the power diverges."""
        slope = (1.0 - self.porosity) / self.porosity * self.density * self.k * self.n
        floor = u.clamp(min=1e-6) if isinstance(u, Tensor) else np.maximum(u, 1e-6)
        return 1.0 + slope * floor ** (self.n - 1.0)

    def residuals(self, d: Any) -> dict[str, Tensor]:
        """One."""
        return {"sorption": d.u_t - self.D / self.retardation(d.u) * d.u_xx}

    def residual_scales(self, scale: Any) -> dict[str, float]:
        """Of the time derivative: the run takes 500 units of time."""
        return {"sorption": 1.0 / 500.0}


def diffusion_sorption(start: float = 0.1) -> PDEProblem:
    """A contaminant diffusing from the left wall into a column that holds it back.

    Args:
        start: Concentration at first, the same everywhere (PDEBench draws it from 0 to 0.2).
    """
    equation = DiffusionSorption()
    domain = Domain({"x": (0.0, 1.0), "t": (0.0, 500.0)})
    conditions = [
        Initial(state=FunctionState({"u": lambda x: start}, domain.intervals)),
        Dirichlet(coordinate="x", side="low", values={"u": 1.0}),
        Boundary(
            name="outflow",
            uses=("u", "u_x"),
            relation=lambda d: d.u - equation.D * d.u_x,
            coordinate="x",
            side="high",
        ),
    ]
    scales = {"u": (0.5, 0.5)}
    return PDEProblem(
        "diffusion-sorption",
        equation,
        domain,
        conditions,
        lambda: _sorption(equation, start),
        scales,
    )


PROBLEMS: dict[str, Callable[[], PDEProblem]] = {
    "burgers": burgers,
    "allen-cahn": allen_cahn,
    "diffusion-sorption": diffusion_sorption,
}


# ------------------------------------------------------------------------------------------------
# References


def _sample(problem: PDEProblem, x: np.ndarray, t: np.ndarray, u: np.ndarray, how: str) -> Sample:
    periodic = tuple(c.coordinate for c in problem.conditions if isinstance(c, Periodic))
    domain = dict(problem.domain.intervals)
    return Sample(problem.name, {"x": x, "t": t}, {"u": u}, domain, {}, periodic, how)


def _cole_hopf(nu: float) -> Sample:
    """Burgers' equation solved exactly, the integrals by Gauss-Hermite quadrature.

    ``u = -int sin(pi (x - y)) f(x - y) g(y) dy / int f(x - y) g(y) dy`` with
    ``f(z) = exp(-cos(pi z) / (2 pi nu))`` and the heat kernel ``g`` (Basdevant et al. 1986).
    """
    x, t = np.linspace(-1.0, 1.0, 257), np.linspace(0.0, 1.0, 101)
    nodes, weights = np.polynomial.hermite.hermgauss(120)
    u = np.empty((len(x), len(t)))
    u[:, 0] = -np.sin(np.pi * x)
    for k in range(1, len(t)):
        z = x[:, None] - np.sqrt(4.0 * nu * t[k]) * nodes
        exponent = -np.cos(np.pi * z) / (2.0 * np.pi * nu)
        f = weights * np.exp(exponent - exponent.max(1, keepdims=True))
        u[:, k] = -(np.sin(np.pi * z) * f).sum(1) / f.sum(1)
    return _sample(burgers(nu), x, t, u, "Cole-Hopf")


def _allen_cahn(D: float) -> Sample:
    """512 Fourier modes, the linear part by an integrating factor, tight tolerances in time."""
    from scipy.integrate import solve_ivp

    n, t = 512, np.linspace(0.0, 1.0, 101)
    x = -1.0 + 2.0 * np.arange(n) / n
    rate = 5.0 - D * (np.pi * np.arange(n // 2 + 1)) ** 2

    def slope(_: float, u: np.ndarray) -> np.ndarray:
        return np.fft.irfft(rate * np.fft.rfft(u), n) - 5.0 * u**3

    found = solve_ivp(
        slope, (0.0, 1.0), x * x * np.cos(np.pi * x), "DOP853", t, rtol=1e-9, atol=1e-11
    )
    return _sample(allen_cahn(D), x, t, found.y, "Fourier, 512 modes")


def _sorption(equation: DiffusionSorption, start: float) -> Sample:
    """512 finite volumes, an implicit method in time."""
    from scipy.integrate import solve_ivp

    n, t = 512, np.linspace(0.0, 500.0, 101)
    dx = 1.0 / n
    x = (np.arange(n) + 0.5) * dx

    def slope(_: float, u: np.ndarray) -> np.ndarray:
        # The walls lie half a cell outside the first and last centre.
        wall = equation.D * u[-1] / (equation.D - 0.5 * dx)  # u = D u_x there
        left = 2.0 * 1.0 - u[0]
        right = 2.0 * wall - u[-1]
        padded = np.concatenate([[left], u, [right]])
        curvature = (padded[2:] - 2.0 * u + padded[:-2]) / dx**2
        return equation.D / equation.retardation(u) * curvature

    bands = np.diag(np.ones(n)) + np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)
    found = solve_ivp(
        slope,
        (0.0, 500.0),
        np.full(n, start),
        "BDF",
        t,
        rtol=1e-7,
        atol=1e-9,
        jac_sparsity=bands,
    )
    return _sample(diffusion_sorption(start), x, t, found.y, "method of lines, 512 cells")
