"""Hard conditions hold whatever the weights, and their derivatives are those of autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pinn_problems import advection_sample, reaction_sample, wave

from dcase.errors import OptionError
from dcase.pinn.ansatz import build_model
from dcase.pinn.conditions import Dirichlet, Initial, Neumann, Periodic
from dcase.pinn.derivatives.engines import AutogradEngine, choose_engine
from dcase.pinn.derivatives.names import wanted
from dcase.pinn.domains import Domain
from dcase.pinn.equations import Advection
from dcase.pinn.initial import FunctionState, GridState
from dcase.pinn.networks import MLP
from dcase.pinn.problem import PDEProblem, problem_of
from dcase.pinn.zoo import burgers, diffusion_sorption


def body(n_in, n_out, activation="tanh"):
    generator = torch.Generator().manual_seed(5)
    return MLP(
        n_in, n_out, width=12, depth=3, activation=activation, generator=generator,
        dtype=torch.float64,
    )  # fmt: skip


def points(problem, n=40):
    return problem.domain.sample(n, "sobol", 3)


@pytest.mark.parametrize(
    "problem",
    [
        problem_of(advection_sample()).hardened(["initial", "periodic"]),
        problem_of(advection_sample()).hardened([]),
        problem_of(reaction_sample()).hardened(["initial", "neumann"]),
        burgers().hardened(["initial", "dirichlet"]),
        burgers().hardened(["dirichlet"]),
    ],
    ids=["periodic, initial", "soft", "no-flux, initial", "walls, initial", "walls"],
)
def test_all_engines_agree_on_hard_conditions(problem):
    model = build_model(problem, body, modes=3)
    fields, names = problem.equation.fields, problem.domain.coordinates
    asked = [f"{f}_{c}" for f in fields for c in names]
    asked += [*fields, *(f"lap_{f}" for f in fields), f"{fields[0]}_{names[0]}{names[0]}"]
    asked += [f"{fields[0]}_{names[0]}t"]
    want = wanted(asked, names, fields)
    where = points(problem)
    reference = AutogradEngine()(model, where, want)
    found = choose_engine(model, want, "jet")(model, where, want)
    for name in asked:
        torch.testing.assert_close(found[name], reference[name], rtol=1e-9, atol=1e-9)
    loss = sum(found[n].square().sum() for n in asked)
    again = sum(reference[n].square().sum() for n in asked)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(again, parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_the_initial_state_is_kept_exactly():
    sample = advection_sample()
    problem = problem_of(sample).hardened(["initial", "periodic"])
    model = build_model(problem, body, modes=4)
    x = torch.from_numpy(sample.axes["x"])
    start = torch.stack([x, torch.zeros_like(x)], 1)
    np.testing.assert_allclose(model(start)[:, 0].detach(), wave(x.numpy()), atol=1e-14)
    later = torch.stack([x, torch.ones_like(x)], 1)
    assert (model(later)[:, 0] - torch.from_numpy(wave(x.numpy()))).abs().max() > 1e-3


def test_a_periodic_embedding_is_periodic_with_all_its_slopes():
    problem = problem_of(advection_sample()).hardened(["periodic"])
    model = build_model(problem, body, modes=4)
    t = torch.linspace(0, 2, 7, dtype=torch.float64)
    want = wanted(["u", "u_x", "u_xx", "u_t"], ("x", "t"), ("u",))
    ends = [torch.stack([torch.full_like(t, end), t], 1) for end in (0.0, 1.0)]
    low, high = (choose_engine(model, want)(model, end, want) for end in ends)
    for name in want.names:
        torch.testing.assert_close(low[name], high[name], rtol=1e-10, atol=1e-10)


def test_a_cosine_embedding_has_no_flux_through_any_wall():
    problem = problem_of(reaction_sample()).hardened(["neumann"])
    model = build_model(problem, body, modes=4)
    want = wanted(["u_x", "u_y", "v_x", "v_y"], ("x", "y", "t"), ("u", "v"))
    for axis, name in enumerate("xy"):
        for wall in (-1.0, 1.0):
            where = points(problem)
            where[:, axis] = wall
            d = choose_engine(model, want)(model, where, want)
            for field in "uv":
                assert d[f"{field}_{name}"].abs().max() < 1e-13
                other = "xy"[1 - axis]
                assert d[f"{field}_{other}"].abs().max() > 1e-4


@pytest.mark.parametrize("hard", [["dirichlet"], ["dirichlet", "initial"]])
def test_walls_hold_their_values(hard):
    model = build_model(burgers().hardened(hard), body)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    for wall in (-1.0, 1.0):
        at = torch.stack([torch.full_like(t, wall), t], 1)
        assert model(at).abs().max() < 1e-14


def test_walls_that_contradict_the_initial_state_stay_soft():
    """Diffusion-sorption starts at 0.1 everywhere, the left wall holds 1."""
    kinds = ["initial", "dirichlet"]
    column = {c.kind: c.hard for c in diffusion_sorption().hardened(kinds).conditions}
    assert column == {"initial": True, "dirichlet": False, "boundary": False}
    assert all(c.hard for c in burgers().hardened(kinds).conditions)
    assert diffusion_sorption().hardened(["dirichlet"]).conditions[1].hard


def test_one_sided_walls_with_other_values():
    domain = Domain({"x": (0.0, 2.0), "t": (0.0, 1.0)})
    walls = [
        Dirichlet(coordinate="x", side="low", values={"u": 3.0}, hard=True),
    ]
    model = build_model(PDEProblem("p", Advection(), domain, walls), body)
    at = torch.tensor([[0.0, 0.3], [2.0, 0.3]], dtype=torch.float64)
    assert model(at)[0, 0] == 3.0
    assert model(at)[1, 0] != 3.0


def test_fields_come_in_the_units_of_the_initial_state():
    state = FunctionState({"u": lambda x: 500.0 + 20.0 * torch.sin(2 * math.pi * x)}, {"x": (0, 1)})
    domain = Domain({"x": (0.0, 1.0), "t": (0.0, 1.0)})
    problem = PDEProblem("p", Advection(), domain, [Initial(state=state)])
    values = build_model(problem, body)(points(problem, 200))
    assert 450 < values.mean() < 550
    assert 1 < values.std() < 60
    plain = build_model(problem, body, scale_outputs=False)(points(problem, 200))
    assert plain.abs().max() < 20


def test_what_cannot_be_hard_says_so():
    with pytest.raises(OptionError, match="no-flux"):
        Neumann(coordinates=("x",), fields=("u",), value=1.0, hard=True)
    with pytest.raises(OptionError, match="numbers"):
        Dirichlet(values={"u": lambda x, t: x}, hard=True)
    problem = problem_of(reaction_sample())
    half = [Neumann(coordinates=("x", "y"), fields=("u",), hard=True)]
    with pytest.raises(OptionError, match="all fields"):
        build_model(PDEProblem("p", problem.equation, problem.domain, half), body)


@pytest.mark.physics
def test_grid_states_differentiate_as_their_functions():
    x = (np.arange(200) + 0.5) / 200
    state = GridState({"x": x}, {"u": np.sin(2 * np.pi * x)}, {"x": (0.0, 1.0)}, ("x",))
    at = torch.linspace(-0.5, 1.5, 57, dtype=torch.float64)[:, None]  # beyond the seam too
    for order, sign in ((0, torch.sin), (1, torch.cos), (2, lambda z: -torch.sin(z))):
        exact = (2 * math.pi) ** order * sign(2 * math.pi * at)
        scale = (2 * math.pi) ** order
        assert (state.derivative(at, [order]) - exact).abs().max() < 1e-3 * scale
    y = np.linspace(-1, 1, 90)
    values = np.cos(x)[:, None] * np.exp(y)
    surface = GridState({"x": x, "y": y}, {"v": values}, {"x": (0, 1), "y": (-1, 1)})
    at = torch.tensor([[0.3, 0.2], [0.9, -0.9]], dtype=torch.float64)
    exact = -torch.sin(at[:, 0]) * torch.exp(at[:, 1])
    torch.testing.assert_close(surface.derivative(at, [1, 1])[:, 0], exact, rtol=1e-5, atol=1e-6)
    plane = GridState({"x": x, "y": x}, {"v": np.sin(2 * np.pi * (x[:, None] + x))},
                      {"x": (0, 1), "y": (0, 1)}, ("x", "y"))  # fmt: skip
    seam = torch.tensor([[0.0, 0.4], [1.0, 0.4], [0.4, 1.0], [0.4, 0.0]], dtype=torch.float64)
    low = plane.derivative(seam, [1, 0])[:, 0]
    assert abs(low[0] - low[1]) < 1e-9
    assert abs(low[2] - low[3]) < 1e-9


def test_a_function_state_of_the_wrong_shape_says_so():
    state = FunctionState({"u": lambda x: x.sum()}, {"x": (0.0, 1.0)})
    with pytest.raises(OptionError, match="one value a point"):
        state.derivative(torch.zeros(4, 2), [0])


def test_conditions_name_their_terms_and_vanish_on_a_solution():
    sample = advection_sample()
    problem = problem_of(sample).hardened([])

    class Exact(torch.nn.Module):
        def forward(self, at):
            z = 2 * math.pi * (at[:, 0] - 0.1 * at[:, 1])
            return (torch.sin(z) + 0.5 * torch.cos(3 * z))[:, None]

    from dcase.pinn.settings import PointSettings
    from dcase.pinn.task import PinnTask

    task = PinnTask(problem, PointSettings(interior=64, boundary=16), engine="autograd")
    assert task.term_names == ["advection", "initial u", "periodic u"]
    found = task.terms(Exact(), task.batch(), training=False)
    assert list(found) == task.term_names
    assert [len(r) for r in found.values()] == [64, 128, 16]
    assert all(r.abs().max() < 1e-6 for r in found.values())
    slopes = Periodic(coordinate="x", fields=("u",), slopes=True)
    assert slopes.term_names() == ["periodic u", "periodic u_x"]
