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
Another, ``mode_hints``, helps the network of modes (:mod:`dcase.pinn.spectral`) where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from dcase.errors import OptionError
from dcase.options import check_types


@dataclass(frozen=True)
class ModeHints:
    """What is known of an equation's linear part, to condition the weights; all optional.

    Attributes:
        rate: A typical rate of change, 1/time.
        scales: Typical size of a change of each field.
        decay: By field: decay rate of each mode, [modes].
        frequency: By field: frequency of each mode, [modes].
        shared: Pairs (a, b): a change of field b comes with one of field a, in units of scales.
        residuals: Typical size of each residual.
    """

    rate: float = 1.0
    scales: Mapping[str, float] = field(default_factory=dict)
    decay: Mapping[str, Tensor] = field(default_factory=dict)
    frequency: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Sequence[tuple[str, str]] = ()
    residuals: Mapping[str, float] = field(default_factory=dict)


class Equation(Protocol):
    """What a problem needs of an equation."""

    coordinates: ClassVar[tuple[str, ...]]
    fields: ClassVar[tuple[str, ...]]

    def residuals(self, d: Any) -> dict[str, Tensor]:
        """What must vanish, by name, each of shape [N]; ``d`` gives fields and derivatives."""
        ...


class _Ones:
    """Stands in for fields and derivatives where numbers do not matter."""

    def __getattr__(self, name: str) -> Tensor:
        return torch.ones(1)


def residual_names(equation: Equation) -> list[str]:
    """Names of an equation's residuals, in order."""
    return list(equation.residuals(_Ones()))


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

    def mode_hints(self, state: Mapping[str, Tensor], k: Tensor) -> ModeHints:
        """A mode turns at beta k."""
        size = float(state["u"].std()) or 1.0
        rate = 6.0 * abs(self.beta) or 1.0
        frequency = {"u": abs(self.beta) * k}
        return ModeHints(rate, {"u": size}, {}, frequency, (), {"advection": size * rate})


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

    def mode_hints(self, state: Mapping[str, Tensor], k: Tensor) -> ModeHints:
        """Sound turns velocity and pressure at c k, and density with them; entropy drifts at v."""
        rho, v, p = (state[name] for name in self.fields)
        density = float(rho.mean())
        sound = float((self.gamma * p / rho).mean().sqrt())
        drift = float(v.square().mean().sqrt())
        scales = {"rho": density, "v": sound, "p": density * sound**2}
        residuals = {
            "mass": density * sound,
            "momentum": density * sound**2,
            "energy": density * sound**3 / (self.gamma - 1.0),
        }
        frequency = {"rho": drift * k, "v": sound * k, "p": sound * k}
        return ModeHints(sound, scales, {}, frequency, (("rho", "p"),), residuals)


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

    def mode_hints(self, state: Mapping[str, Tensor], k: Tensor) -> ModeHints:
        """Modes decay by diffusion, those of the inhibitor by its own decay too."""
        decay = {"u": self.Du * k**2, "v": self.Dv * k**2 + 1.0}
        return ModeHints(decay=decay)


def with_parameters(kind: type, parameters: dict[str, float]) -> Any:
    """An equation of class ``kind`` with those of ``parameters`` that it has.

    Args:
        kind: A frozen dataclass such as :class:`Advection`.
        parameters: For example those of a sample; others are ignored.
    """
    known = {f.name for f in fields(kind)}
    return kind(**{name: value for name, value in parameters.items() if name in known})
