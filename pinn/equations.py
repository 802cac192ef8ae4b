r"""Differential equations: small frozen classes with named coordinates, fields and residuals.

An equation says which coordinates and fields it has and what must vanish. Derivatives are asked for
by name, never by index::

    @dataclass(frozen=True)
    class Advection:
        beta: float = 0.1
        coordinates: ClassVar = ("x", "t")
        fields: ClassVar = ("u",)

        def residuals(self, d):
            return {"advection": d.u_t + self.beta * d.u_x}

``d.u`` is a field, ``d.u_t`` and ``d.u_xx`` are its derivatives, ``d.lap_u`` its Laplacian over all
coordinates but ``t``, ``d.x`` a coordinate; each a tensor [N]. That is all an equation of your own
needs; see :mod:`dcase.pinn.zoo` for more of them and docs/pinn.md for the tutorial.

One optional method makes training easier: ``residual_scales(scale)`` may say how large each
residual is for fields and derivatives of typical size (``scale.u``, ``scale.u_t``: plain numbers,
from the initial condition), so that residuals in different units weigh alike. Default: 1 for each.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from torch import Tensor

from dcase.errors import OptionError
from dcase.options import check_types


class Equation(Protocol):
    """What a problem needs of an equation."""

    coordinates: ClassVar[tuple[str, ...]]
    fields: ClassVar[tuple[str, ...]]

    def residuals(self, d: Any) -> dict[str, Tensor]:
        """What must vanish, by name, each of shape [N]; ``d`` gives fields and derivatives."""
        ...


@dataclass(frozen=True)
class Advection:
    """Linear advection ``u_t + beta u_x = 0``.

    Attributes:
        beta: Speed.
    """

    beta: float = 0.1

    coordinates: ClassVar[tuple[str, ...]] = ("x", "t")
    fields: ClassVar[tuple[str, ...]] = ("u",)

    def __post_init__(self) -> None:
        check_types(self)

    def residuals(self, d: Any) -> dict[str, Tensor]:
        """``u_t + beta u_x``."""
        return {"advection": d.u_t + self.beta * d.u_x}

    def residual_scales(self, scale: Any) -> dict[str, float]:
        """Size of the advective term."""
        return {"advection": abs(self.beta) * scale.u_x}


@dataclass(frozen=True)
class CompressibleFlow:
    r"""1D compressible Navier-Stokes equations for density, velocity and pressure.

    With the stress :math:`\tau = (4\eta/3 + \zeta + \nu\rho)\, v_x` and
    :math:`E = p/(\gamma-1) + \rho v^2/2`::

        rho_t + (rho v)_x                        = 0
        rho (v_t + v v_x) + p_x - tau_x          = 0
        E_t + [(E + p) v]_x - (v tau)_x          = 0

    The pressure gradient stands with a *plus*; PDEBench's training script and eq. 22 of the DC
    paper have a minus there (PDEBench issue 54), which :class:`dcase.pinn.paper.PaperFlow` keeps.

    Attributes:
        eta: Shear viscosity. At PDEBench's 1e-8 the second derivatives are 1e-6 of the rest and
            are left out altogether, where all viscosity is below ``negligible``.
        zeta: Bulk viscosity.
        gamma: Ratio of specific heats.
        viscosity: Artificial kinematic viscosity nu, to give shocks a width that a network can
            resolve; conserves what the equations conserve, and leaves contacts sharp.
        negligible: See ``eta``.
    """

    eta: float = 1e-8
    zeta: float = 1e-8
    gamma: float = 5.0 / 3.0
    viscosity: float = 0.0
    negligible: float = 1e-6

    coordinates: ClassVar[tuple[str, ...]] = ("x", "t")
    fields: ClassVar[tuple[str, ...]] = ("rho", "v", "p")

    def __post_init__(self) -> None:
        check_types(self)
        if not self.gamma > 1:
            raise OptionError(f"gamma must be above 1, got {self.gamma}")
        if min(self.eta, self.zeta, self.viscosity) < 0:
            raise OptionError("viscosities must not be negative")

    def residuals(self, d: Any) -> dict[str, Tensor]:
        """Of mass, momentum and energy."""
        g = 1.0 / (self.gamma - 1.0)
        mass = d.rho_t + d.rho * d.v_x + d.v * d.rho_x
        momentum = d.rho * (d.v_t + d.v * d.v_x) + d.p_x
        v2 = d.v * d.v
        energy_density = g * d.p + 0.5 * d.rho * v2
        energy_t = g * d.p_t + 0.5 * d.rho_t * v2 + d.rho * d.v * d.v_t
        energy_x = g * d.p_x + 0.5 * d.rho_x * v2 + d.rho * d.v * d.v_x
        energy = energy_t + d.v * (energy_x + d.p_x) + d.v_x * (energy_density + d.p)
        constant = 4.0 / 3.0 * self.eta + self.zeta
        if max(constant, self.viscosity) >= self.negligible:
            coefficient = constant + self.viscosity * d.rho
            stress_x = coefficient * d.v_xx + self.viscosity * d.rho_x * d.v_x
            momentum = momentum - stress_x
            energy = energy - d.v * stress_x - coefficient * d.v_x * d.v_x
        return {"mass": mass, "momentum": momentum, "energy": energy}

    def residual_scales(self, scale: Any) -> dict[str, float]:
        """Sizes of the largest terms: density ~10 and pressure ~100 are in different units."""
        sound = (self.gamma * scale.p / scale.rho) ** 0.5
        return {
            "mass": scale.rho * scale.v_x + scale.v * scale.rho_x,
            "momentum": scale.p_x + scale.rho * scale.v * scale.v_x,
            "energy": self.gamma / (self.gamma - 1.0) * scale.p * scale.v_x + sound * scale.p_x,
        }


@dataclass(frozen=True)
class DiffusionReaction:
    """2D diffusion-reaction with FitzHugh-Nagumo kinetics (activator u, inhibitor v).

    ``u_t = Du lap u + u - u^3 - k - v``, ``v_t = Dv lap v + u - v``. The cube stands with a minus;
    eq. 24 of the DC paper prints a plus, its eq. 27 is right.

    Attributes:
        Du: Diffusion coefficient of the activator.
        Dv: Diffusion coefficient of the inhibitor.
        k: Constant of the kinetics.
    """

    Du: float = 1e-3
    Dv: float = 5e-3
    k: float = 5e-3

    coordinates: ClassVar[tuple[str, ...]] = ("x", "y", "t")
    fields: ClassVar[tuple[str, ...]] = ("u", "v")

    def __post_init__(self) -> None:
        check_types(self)
        if self.Du < 0 or self.Dv < 0:
            raise OptionError("diffusion coefficients must not be negative")

    def residuals(self, d: Any) -> dict[str, Tensor]:
        """Of activator and inhibitor."""
        u, v = d.u, d.v
        return {
            "activator": d.u_t - self.Du * d.lap_u - (u - u * u * u - self.k - v),
            "inhibitor": d.v_t - self.Dv * d.lap_v - (u - v),
        }


def with_parameters(kind: type, parameters: dict[str, float]) -> Any:
    """An equation of class ``kind`` with those of ``parameters`` that it has.

    Args:
        kind: A frozen dataclass such as :class:`Advection`.
        parameters: For example those of a sample; others are ignored.
    """
    known = {f.name for f in fields(kind)}
    return kind(**{name: value for name, value in parameters.items() if name in known})
