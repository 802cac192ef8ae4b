"""What training is made of: refined points, balanced weights, windows, and values on walls."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pinn_problems import advection_sample, flow_sample, reaction_sample
from torch import nn

from dcase.pinn.conditions import Boundary, Dirichlet, Initial, Neumann, Observed, Periodic
from dcase.pinn.domains import Domain
from dcase.pinn.equations import Advection, DiffusionReaction
from dcase.pinn.fits import build_network
from dcase.pinn.initial import FunctionState
from dcase.pinn.march import ModeTask, march
from dcase.pinn.problem import PDEProblem, problem_of
from dcase.pinn.run import prepared
from dcase.pinn.settings import PinnSettings, PointSettings
from dcase.pinn.solution import Solution, Window
from dcase.pinn.solver import residual_size, solve
from dcase.pinn.task import PinnTask
from dcase.pinn.windows import build_window, start_coefficients

QUICK = PinnSettings(
    width=8, depth=2, modes=3, optimizer="adam:10", lr=5e-3, smooth=0, init="glorot",
    points=PointSettings(interior=64, boundary=16, initial=24, steps_per_epoch=1),
)  # fmt: skip


def solved(folder, **changes):
    """Outcome of a short training, and its fits: task, starting weights, stage, each."""
    settings = QUICK.changed(**changes)
    problem = prepared(problem_of(advection_sample()), settings)
    fits = []

    def begin(fit, trainer):
        task = trainer.objective.problem
        start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        points = task.batch().interior.clone()
        size = residual_size(task.problem, trainer.model, probe(task.problem), settings)
        fits.append((task, start, fit, trainer, points, size, task.causal))

    return solve(problem, settings, folder, on_fit=begin), fits


def probe(problem):
    return problem.domain.sample(4000, "uniform", 99)


# ------------------------------------------------------------------------------------------------
# Refinement


def test_refined_points_are_the_worst_and_pile_up(tmp_path):
    """Each round adds a quarter as many points, of the largest residuals among many more."""
    # Hardly any step: the second round would find the points of the first, were they candidates.
    _, fits = solved(tmp_path, refine=2, lr=1e-12)
    assert [len(points) for _, _, _, _, points, _, _ in fits] == [64, 64 + 16, 64 + 32]
    torch.testing.assert_close(fits[2][4][:80], fits[1][4], rtol=0, atol=0)
    for number in (1, 2):
        task, start, _, _, points, elsewhere, _ = fits[number]
        model = build_network(task.problem, QUICK)
        model.load_state_dict(start, strict=False)
        added = residual_size(task.problem, model, points[-16:], QUICK)
        assert added.min() > torch.quantile(elsewhere, 0.9)
    first, second = fits[2][4][64:80], fits[2][4][80:]
    assert torch.cdist(first, second).min() > 0  # of other candidates


def test_the_size_of_residuals_is_that_of_the_loss():
    """Root of the sum of squares, each with its weight: density and pressure are in other units."""
    problem = problem_of(flow_sample())
    settings = QUICK.changed(weights={"mass": 7.0})
    model = build_network(problem, settings)
    points = problem.domain.sample(50, "sobol", 2)
    task = PinnTask(problem, settings.points)
    residuals, weights = task.residuals_at(model, points), task.term_weights()
    square = sum(weights[name] * r.detach() ** 2 for name, r in residuals.items())
    torch.testing.assert_close(residual_size(problem, model, points, settings), square.sqrt())
    assert weights["mass"] > 7.0 * weights["momentum"]


# ------------------------------------------------------------------------------------------------
# Balance and causal weights


def test_balance_is_for_gradient_methods_and_begins_anew_in_each_window(tmp_path):
    _, fits = solved(
        tmp_path, hard="none", optimizer="adam:20,lbfgs:3", windows=2, scaled=False,
        balance="gradient-norm", balance_every=5,
    )  # fmt: skip
    trainers = [fit[3] for fit in fits]
    weights = [{n: t.weight for n, t in trainer.objective.terms.items()} for trainer in trainers]
    assert set(weights[0].values()) == {1.0}
    assert weights[1] == trainers[0].term_weights != weights[0]
    assert weights[2] == weights[0]
    assert [trainer.balance is None for trainer in trainers] == [False, True, False, True]


def test_causal_weights_are_for_gradient_methods_and_not_in_the_reported_terms(tmp_path):
    outcome, fits = solved(tmp_path, causal=50.0, optimizer="lbfgs:2,adam:5")
    assert [causal for *_, causal in fits] == [0.0, 50.0]
    plain = mean_square(fits[-1][0].problem, outcome.solution.windows[0].model, fits[-1][4])
    assert outcome.terms["advection"] == pytest.approx(plain, rel=1e-9)


def mean_square(problem, model, points):
    task = PinnTask(problem, QUICK.points)
    return float(task.residuals_at(model, points)["advection"].detach().square().mean())


# ------------------------------------------------------------------------------------------------
# Windows


@pytest.mark.parametrize("hard", ["periodic", "initial,periodic"])
def test_a_window_starts_from_the_end_of_the_one_before(tmp_path, hard):
    outcome, fits = solved(tmp_path, windows=2, hard=hard)
    first, second = outcome.solution.windows
    assert (first.start, first.end, second.start, second.end) == (0.0, 1.0, 1.0, 2.0)
    problem = fits[1][0].problem
    x = torch.linspace(0.1, 0.9, 33, dtype=torch.float64)
    ended = first.model(torch.stack([x, torch.full_like(x, 1.0)], 1)).detach()
    begins = problem.initial.derivative(x[:, None], [0])
    torch.testing.assert_close(begins, ended, rtol=0, atol=2e-4)  # kept on the sample's grid
    assert (begins - fits[0][0].problem.initial.derivative(x[:, None], [0])).abs().max() > 0.05
    # The state that is handed over has the period of the problem.
    seam = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for order in (0, 1):
        low, high = problem.initial.derivative(seam, [order])
        torch.testing.assert_close(low, high, rtol=0, atol=1e-9)
    if hard == "periodic":  # then it is a term, at points of its own
        terms = fits[1][0].terms(second.model, fits[1][0].batch(), training=False)
        assert len(fits[0][0].batch().known[1]["u"]) == 128  # the sample's
        assert len(terms["initial u"]) == 24


def test_windows_have_weights_and_points_of_their_own(tmp_path):
    _, fits = solved(tmp_path, windows=2)
    one, other = (fit[1] for fit in fits)
    assert not any(torch.equal(one[name], other[name]) for name in one if one[name].ndim == 2)
    points = [fits[0][4], fits[1][4] - torch.tensor([0.0, 1.0])]
    assert torch.cdist(*points).min() > 0


def test_terms_are_means_over_windows_by_their_length(tmp_path):
    outcome, fits = solved(tmp_path, windows=2)
    found = [
        mean_square(fit[0].problem, window.model, fit[4])
        for fit, window in zip(fits, outcome.solution.windows, strict=True)
    ]
    assert outcome.terms["advection"] == pytest.approx(sum(found) / 2, rel=1e-9)
    alone, fits = solved(tmp_path / "one")
    plain = mean_square(fits[0][0].problem, alone.solution.windows[0].model, fits[0][4])
    assert alone.terms["advection"] == pytest.approx(plain, rel=1e-9)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, points):
        return self.value.expand(len(points), 1)


def test_times_belong_to_the_window_that_ends_there():
    windows = [Window(float(k), k + 1.0, Constant(float(k))) for k in range(3)]
    solution = Solution(("x", "t"), ("u",), windows)
    t = torch.tensor([-5.0, 0.5, 1.0, 1.5, 2.0, 2.5, 9.0], dtype=torch.float64)
    at = torch.stack([torch.linspace(7.0, -7.0, 7, dtype=torch.float64), t], 1)
    assert solution(at)["u"].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    grid = solution.on_grid({"x": np.array([-3.0, 3.0]), "t": np.array([0.5, 1.5])})
    assert grid["u"].tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_windows_of_modes_have_their_number_of_modes_and_share_of_the_terms(tmp_path):
    settings = PinnSettings(
        network="modes", march="0.4:0.4:12,2:0.8:8", optimizer="lbfgs:1", smooth=0
    )
    problem = prepared(problem_of(advection_sample()), settings)
    outcome = march(problem, settings, tmp_path)
    windows = outcome.solution.windows
    assert [w.model.start.shape[1] for w in windows] == [25, 17, 17]
    total = 0.0
    for window, share in zip(windows, (0.2, 0.4, 0.4), strict=True):
        problem_there = problem.starting_at(window.start, window.end, None)
        _, hints = build_window(problem_there, settings, window.model.start, ["fourier"])
        task = ModeTask(problem_there, hints)
        r = task.terms(window.model, None, training=False)["advection"].detach()
        total += share * float(r.square().mean())
        size = hints.residuals["advection"]
        assert task.objective_terms()["advection"].weight == pytest.approx(size**-2)
    assert outcome.terms["advection"] == pytest.approx(total, rel=1e-9)
    assert outcome.steps == 3


def test_modes_of_a_square_decay_by_both_wave_numbers():
    problem = problem_of(reaction_sample()).hardened(["neumann"])
    settings = PinnSettings(network="modes", march="5:1:4")
    start = start_coefficients(problem, ["cosine", "cosine"], 4)
    _, hints = build_window(problem, settings, start, ["cosine", "cosine"])
    k = math.pi / 2.0 * torch.arange(4, dtype=torch.float64)
    expected = DiffusionReaction().Du * (k[:, None] ** 2 + k**2)
    torch.testing.assert_close(hints.decay["u"], expected)


# ------------------------------------------------------------------------------------------------
# Conditions against functions that are known


class Exact(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, points):
        return self.function(*points.unbind(1))[:, None]


def residuals(function, *conditions, space=("x",)):
    """Of the conditions, for u = function(x, (y,) t) on unit intervals."""
    names = (*space, "t")

    class Nothing:
        coordinates, fields = names, ("u",)

        def residuals(self, d):
            return {"nothing": 0.0 * d.u}

    domain = Domain(dict.fromkeys(names, (0.0, 1.0)))
    problem = PDEProblem("p", Nothing(), domain, list(conditions))
    task = PinnTask(problem, PointSettings(interior=8, boundary=24), engine="autograd")
    found = task.terms(Exact(function), task.batch(), training=False)
    return {name: r.detach() for name, r in found.items() if name != "nothing"}


def test_neumann_values_that_are_not_zero_on_a_line():
    def slope(x, t):
        return 3.0 * x + x * x * t  # u_x = 3 + 2 x t: 3 on the low wall

    found = residuals(slope, Neumann(coordinates=("x",), fields=("u",), value=3.0, side="low"))
    assert list(found) == ["neumann u"]
    assert found["neumann u"].abs().max() < 1e-12
    found = residuals(slope, Neumann(coordinates=("x",), fields=("u",), value=-2.0, side="low"))
    torch.testing.assert_close(found["neumann u"], torch.full_like(found["neumann u"], 5.0))
    found = residuals(slope, Neumann(coordinates=("x",), fields=("u",), side="low"))
    torch.testing.assert_close(found["no-flux u"], torch.full_like(found["no-flux u"], 3.0))


def test_neumann_values_that_are_not_zero_on_a_square():
    """Each wall is asked for the derivative across it."""
    found = residuals(
        lambda x, y, t: 2.0 * x + 5.0 * y + 0.0 * t,
        Neumann(coordinates=("x", "y"), fields=("u",), value=2.0),
        space=("x", "y"),
    )["neumann u"]
    expected = torch.tensor([0.0] * 12 + [3.0] * 12, dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    found = residuals(
        lambda x, y, t: x * x + y * y + 0.0 * t,  # slopes of 0 on the low walls, 2 on the high ones
        Neumann(coordinates=("x", "y"), fields=("u",), value=1.0),
        space=("x", "y"),
    )["neumann u"]
    expected = torch.tensor(([-1.0] * 6 + [1.0] * 6) * 2, dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_walls_whose_values_are_functions():
    def wave(x, t):
        return torch.sin(3.0 * t) * (1.0 + x)

    def law(x, t):
        return torch.sin(3.0 * t) * 2.0 * x

    low, high = (
        residuals(wave, Dirichlet(coordinate="x", side=side, values={"u": law}))
        for side in ("low", "high")
    )
    assert high["dirichlet u high x"].abs().max() < 1e-12
    assert low["dirichlet u low x"].abs().max() > 0.5
    flux = Boundary(
        name="flux", uses=("u_x", "t"), relation=lambda d: d.u_x - torch.sin(3.0 * d.t), side="low"
    )
    assert residuals(wave, flux)["boundary flux"].abs().max() < 1e-12


def test_periods_of_values_and_of_slopes():
    found = residuals(
        lambda x, t: x * (1.0 - x) + t, Periodic(coordinate="x", fields=("u",), slopes=True)
    )
    assert list(found) == ["periodic u", "periodic u_x"]
    assert found["periodic u"].abs().max() < 1e-12
    torch.testing.assert_close(found["periodic u_x"], torch.full_like(found["periodic u_x"], 2.0))
    found = residuals(lambda x, t: 3.0 * x + t, Periodic(coordinate="x", fields=("u",)))
    torch.testing.assert_close(found["periodic u"], torch.full_like(found["periodic u"], -3.0))


def test_observations_count_in_the_window_of_their_time():
    at = np.array([[0.2, 0.1], [0.4, 0.5], [0.6, 0.9]])
    condition = Observed(at=at, values={"u": np.array([1.0, 2.0, 3.0])})
    for times, expected in (((0.0, 0.5), [1.0, 2.0]), ((0.5, 1.0), [2.0, 3.0])):
        points, known = condition.place(Domain({"x": (0.0, 1.0), "t": times}), None)
        assert known["u"].tolist() == expected
        assert len(points) == len(expected)


def test_a_wall_is_compared_with_its_own_field_of_the_initial_state():
    class Two:
        coordinates, fields = ("x", "t"), ("u", "v")

        def residuals(self, d):
            return {"one": d.u_t, "other": d.v_t}

    domain = Domain({"x": (0.0, 1.0), "t": (0.0, 1.0)})
    state = FunctionState({"u": lambda x: 1.0 + x, "v": lambda x: x * (1 - x)}, domain.intervals)
    problem = PDEProblem(
        "two", Two(), domain, [Initial(state=state), Dirichlet(coordinate="x", values={"v": 0.0})]
    )
    assert [c.hard for c in problem.hardened(["initial", "dirichlet"]).conditions] == [True, True]
    other = replace(problem.conditions[1], values={"u": 0.0})
    problem = replace(problem, conditions=[problem.conditions[0], other])
    assert [c.hard for c in problem.hardened(["initial", "dirichlet"]).conditions] == [True, False]


def test_the_equation_of_a_sample_has_its_speed():
    assert problem_of(advection_sample(beta=0.7)).equation == Advection(0.7)
