"""Equations against closed solutions and independently written conservation laws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from dcase.errors import OptionError
from dcase.pinn.derivatives.engines import AutogradEngine
from dcase.pinn.derivatives.names import trace
from dcase.pinn.equations import Advection, CompressibleFlow, DiffusionReaction, with_parameters
from dcase.pinn.paper import PaperDiffusionReaction, PaperFlow
from dcase.pinn.zoo import PROBLEMS, AllenCahn, Burgers

pytestmark = pytest.mark.physics


class Closed(nn.Module):
    """A closed expression where a network is expected."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, points):
        return torch.stack(self.function(*points.unbind(1)), 1)


def residuals(equation, function, n=50, spread=1.0):
    generator = torch.Generator().manual_seed(3)
    points = spread * torch.rand(n, len(equation.coordinates), generator=generator).double()
    d = AutogradEngine()(Closed(function), points, trace(equation))
    return {name: r.detach() for name, r in equation.residuals(d).items()}, points


def test_a_travelling_wave_solves_advection():
    found, _ = residuals(Advection(0.3), lambda x, t: [torch.sin(5 * (x - 0.3 * t))])
    assert found["advection"].abs().max() < 1e-12
    wrong, _ = residuals(Advection(0.6), lambda x, t: [torch.sin(5 * (x - 0.3 * t))])
    assert wrong["advection"].abs().max() > 0.1


def test_carried_density_solves_the_flow_equations():
    def fields(x, t):
        return [5 + torch.sin(3 * (x - 0.7 * t)), 0.7 + 0 * x, 50.0 + 0 * x]

    found, _ = residuals(CompressibleFlow(), fields)
    assert all(r.abs().max() < 1e-11 for r in found.values())


def test_sound_travels_both_ways_at_the_speed_of_sound():
    """A small wave in a gas at rest: d rho = rho0 v / c, d p = rho0 c v, to first order."""
    rho0, p0, gamma = 2.0, 30.0, 5 / 3
    c = math.sqrt(gamma * p0 / rho0)
    for amplitude, way in ((1e-4, 1.0), (1e-4, -1.0)):

        def fields(x, t, a=amplitude, way=way):
            v = a * torch.sin(4 * (x - way * c * t))
            return [rho0 + way * rho0 * v / c, v, p0 + way * rho0 * c * v]

        found, _ = residuals(CompressibleFlow(), fields)
        sizes = {"mass": rho0, "momentum": rho0 * c, "energy": p0 * gamma / (gamma - 1)}
        for name, r in found.items():
            # Of the order of amplitude^2, beside terms of the order of amplitude.
            assert r.abs().max() < 1e-2 * amplitude * 4 * sizes[name], name
        # With the baseline's sign of the pressure gradient sound does not travel.
        wrong, _ = residuals(PaperFlow(), fields)
        assert wrong["f1+f2+f3"].abs().max() > 1e-1 * amplitude * rho0 * c


def test_the_flow_equations_are_the_conservation_laws():
    """Against d/dt and d/dx of rho, rho v, E and their fluxes, viscous stress included."""
    gamma, eta, zeta, kinematic = 1.4, 0.3, 0.2, 0.15

    def primitive(x, t):
        rho = 2 + torch.sin(x + 2 * t)
        v = torch.cos(2 * x - t)
        p = 3 + torch.sin(x) * torch.cos(t)
        return rho, v, p

    equation = CompressibleFlow(eta, zeta, gamma, kinematic)
    found, points = residuals(equation, lambda x, t: list(primitive(x, t)))
    x, t = (c.clone().requires_grad_(True) for c in points.unbind(1))
    rho, v, p = primitive(x, t)
    (v_x,) = torch.autograd.grad(v.sum(), x, create_graph=True)
    energy = p / (gamma - 1) + rho * v**2 / 2
    stress = (4 / 3 * eta + zeta + kinematic * rho) * v_x
    momentum_flux = rho * v**2 + p - stress
    energy_flux = (energy + p) * v - v * stress

    def derivative(f, by):
        return torch.autograd.grad(f.sum(), by, retain_graph=True)[0]

    mass = derivative(rho, t) + derivative(rho * v, x)
    momentum = derivative(rho * v, t) + derivative(momentum_flux, x)
    # Ours is the non-conservative momentum equation: subtract v times that of mass.
    torch.testing.assert_close(found["mass"], mass, rtol=0, atol=1e-12)
    torch.testing.assert_close(found["momentum"], momentum - v.detach() * mass, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        found["energy"], derivative(energy, t) + derivative(energy_flux, x), rtol=0, atol=1e-12
    )


def test_diffusion_reaction_at_its_uniform_states():
    """Without gradients it is the FitzHugh-Nagumo system of ordinary equations."""
    u0, v0, k = 0.4, -0.3, 5e-3

    def fields(x, y, t):
        return [u0 + (u0 - u0**3 - k - v0) * t, v0 + (u0 - v0) * t]

    found, points = residuals(DiffusionReaction(), fields, spread=1e-7)
    assert found["activator"].abs().max() < 1e-6
    assert found["inhibitor"].abs().max() < 1e-6
    # A cosine decays at D k^2 in the linear part.
    lam = 5e-3 * 2 * 9.0
    decays = lambda x, y, t: [0 * x, torch.exp(-lam * t) * torch.cos(3 * x) * torch.cos(3 * y)]  # noqa: E731
    found, points = residuals(DiffusionReaction(), decays)
    v = decays(*points.unbind(1))[1]
    torch.testing.assert_close(found["inhibitor"], v, rtol=0, atol=1e-12)


def test_the_letter_sums_residuals():
    fields = lambda x, y, t: [torch.sin(x + t) * y, torch.cos(y - t) * x]  # noqa: E731
    apart, _ = residuals(DiffusionReaction(), fields)
    (summed,) = residuals(PaperDiffusionReaction(), fields)[0].values()
    torch.testing.assert_close(summed, apart["activator"] + apart["inhibitor"])


def test_burgers_travelling_shock():
    nu, c, a = 0.05, 0.4, 0.7

    def shock(x, t):
        return [c - a * torch.tanh(a * (x - c * t) / (2 * nu))]

    found, _ = residuals(Burgers(nu), shock)
    assert found["burgers"].abs().max() < 1e-10


def test_allen_cahn_standing_interface():
    """tanh(x / sqrt(2 D / 5)) is at rest."""
    width = math.sqrt(2 * 0.01 / 5)
    found, _ = residuals(AllenCahn(0.01), lambda x, t: [torch.tanh((x - 0.5) / width)])
    assert found["allen-cahn"].abs().max() < 1e-10


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_references_solve_their_equations(name):
    """Residuals of the reference by finite differences, in the smooth part of space and time."""
    problem = PROBLEMS[name]()
    sample = problem.sample()
    x, t, u = sample.axes["x"], sample.axes["t"], sample.fields["u"]
    dx, dt = x[1] - x[0], t[1] - t[0]
    u_t = (u[1:-1, 2:] - u[1:-1, :-2]) / (2 * dt)
    u_x = (u[2:, 1:-1] - u[:-2, 1:-1]) / (2 * dx)
    u_xx = (u[2:, 1:-1] - 2 * u[1:-1, 1:-1] + u[:-2, 1:-1]) / dx**2
    late = slice(len(t) // 10, len(t) // 3)

    @dataclass
    class D:
        u: np.ndarray
        u_t: np.ndarray
        u_x: np.ndarray
        u_xx: np.ndarray

    d = D(*(a[20:-20, late] for a in (u[1:-1, 1:-1], u_t, u_x, u_xx)))
    (r,) = problem.equation.residuals(d).values()
    assert np.sqrt(np.mean(r**2)) < 0.02 * np.sqrt(np.mean(d.u_t**2))


def test_parameters_of_a_sample_go_into_the_equation():
    assert with_parameters(Advection, {"beta": 4.0, "other": 1.0}) == Advection(4.0)
    with pytest.raises(OptionError, match="gamma"):
        CompressibleFlow(gamma=1.0)
    with pytest.raises(OptionError, match="negative"):
        DiffusionReaction(Du=-1.0)


def test_an_unknown_name_in_an_equation_is_found_at_once():
    @dataclass(frozen=True)
    class Wrong:
        coordinates: ClassVar = ("x", "t")
        fields: ClassVar = ("u",)

        def residuals(self, d):
            return {"r": d.u_t + d.w_x}

    with pytest.raises(OptionError, match="w_x"):
        trace(Wrong())
