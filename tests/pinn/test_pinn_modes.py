"""Networks of modes: exact derivatives and conditions, known solutions, exact resumes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pinn_problems import advection_sample, flow_sample, reaction_sample

from dcase.errors import CheckpointError, OptionError
from dcase.pinn.conditions import Initial
from dcase.pinn.derivatives.engines import AutogradEngine
from dcase.pinn.derivatives.names import wanted
from dcase.pinn.domains import Domain
from dcase.pinn.equations import DiffusionReaction
from dcase.pinn.initial import FunctionState
from dcase.pinn.march import (
    build_window,
    march,
    mode_kinds,
    parse_march,
    start_coefficients,
    with_count,
)
from dcase.pinn.metrics import evaluate
from dcase.pinn.problem import PDEProblem, problem_of
from dcase.pinn.run import Source, prepared, read_run, train
from dcase.pinn.settings import PinnSettings
from dcase.pinn.spectral import Modes, SpectralNetwork, fit_modes
from dcase.pinn.zoo import burgers

QUICK = PinnSettings(
    network="modes", march="2:0.5:8", optimizer="lbfgs:60", width=12, hidden=5, smooth=0
)


def network(kinds, sizes, fields=("u", "v"), **options):
    names = "xy"[: len(kinds)]
    domain = Domain({**dict.fromkeys(names, (-1.0, 1.5)), "t": (0.2, 0.7)})
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(len(fields), *sizes, dtype=torch.float64, generator=generator)
    model = SpectralNetwork(domain, fields, kinds, start, grid=11, hidden=4, times=5, **options)
    with torch.no_grad():
        model.B += torch.randn(model.B.shape, dtype=torch.float64, generator=generator)
    return model, domain


@pytest.mark.parametrize(
    ("kinds", "sizes"),
    [(["fourier"], [9]), (["cosine"], [6]), (["cosine", "cosine"], [5, 4]),
     (["fourier", "cosine"], [7, 4])],
)  # fmt: skip
def test_derivatives_on_the_grid_are_those_of_the_function(kinds, sizes):
    model, domain = network(kinds, sizes, activation="isilu")
    names = list(domain.space)
    asked = ["u", "v", "u_t", "lap_v", *domain.coordinates]
    asked += [f"u_{n}" for n in names] + [f"v_{n}{n}" for n in names]
    asked += ["u_xy"] if len(names) == 2 else []
    want = wanted(asked, domain.coordinates, ("u", "v"))
    found = model.grid_derivatives(want)
    points = torch.stack([found[n] for n in domain.coordinates], 1)

    class Function(torch.nn.Module):
        """The same function, of operations that autograd follows."""

        def forward(self, at):
            tau = (at[:, -1] - model.t0) / model.T
            c = model.coefficients(tau)
            waves = [m.at(at[:, k]) for k, m in enumerate(model.modes)]
            if len(waves) == 1:
                return torch.einsum("nfx,nx->nf", c, waves[0])
            return torch.einsum("nfxy,nx,ny->nf", c, *waves)

    reference = AutogradEngine()(Function(), points.detach(), want)
    for name in asked:
        torch.testing.assert_close(found[name], reference[name], rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(model(points), Function()(points), rtol=1e-10, atol=1e-10)
    with pytest.raises(OptionError, match="second derivative"):
        model.grid_derivatives(wanted(["u_xt"], domain.coordinates, ("u", "v")))


def test_walls_periods_and_the_start_are_exact():
    model, _ = network(["fourier", "cosine"], [7, 5])
    t = torch.linspace(0.2, 0.7, 5, dtype=torch.float64)
    at = torch.stack([torch.full_like(t, -1.0), torch.full_like(t, 0.3), t], 1)
    other = at.clone()
    other[:, 0] = 1.5
    torch.testing.assert_close(model(at), model(other))
    for wall in (-1.0, 1.5):
        assert model.modes[1].at(torch.tensor([wall]), 1).abs().max() < 1e-12
    start = model.coefficients(torch.zeros(1, dtype=torch.float64))[0]
    torch.testing.assert_close(start, model.start, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "count", "cells"), [("fourier", 6, 13), ("cosine", 9, 9)])
def test_modes_are_orthonormal_and_fit_exactly(kind, count, cells):
    modes = Modes(-1.0, 2.0, kind, count)
    basis = modes.at(modes.grid(cells))
    torch.testing.assert_close(basis.T @ basis / cells, torch.eye(len(modes)).double(),
                               rtol=0, atol=1e-12)  # fmt: skip
    c = torch.randn(2, len(modes), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fit_modes(c @ basis.T, [modes]), c)


def test_coefficients_are_cut_and_padded_by_mode():
    c = torch.arange(1.0, 8.0)[None]  # constant, 3 cosines, 3 sines
    assert with_count(c, ["fourier"], 2).tolist() == [[1, 2, 3, 5, 6]]
    assert with_count(c, ["fourier"], 4).tolist() == [[1, 2, 3, 4, 0, 5, 6, 7, 0]]
    assert with_count(c, ["cosine"], 2).tolist() == [[1, 2]]


@pytest.mark.physics
def test_projected_residuals_measure_what_modes_see():
    """Parseval: of a residual within the modes the mean square is that on the grid."""
    model, _ = network(["cosine"], [6])
    want = wanted(["u"], ("x", "t"), ("u", "v"))
    u = model.grid_derivatives(want).u.detach()
    ours = model.project(u).square().mean()
    torch.testing.assert_close(ours, u.square().mean())
    beyond = Modes(-1.0, 2.5, "cosine", 11).at(model.modes[0].grid(11))[:, 9]
    assert model.project(beyond.repeat(5)).abs().max() < 1e-12


@pytest.mark.physics
def test_linear_diffusion_needs_no_training():
    """With the decay known the base is the solution, and the residual vanishes at zero weights."""
    equation = DiffusionReaction(Du=0.02, Dv=0.05)
    problem = problem_of(reaction_sample())
    start = torch.zeros(2, 4, 4, dtype=torch.float64)
    start[1, 2, 1] = 1.0
    window = replace(problem, equation=equation)
    model, hints = build_window(window, QUICK, start, ["cosine", "cosine"])
    assert set(hints.decay) == {"u", "v"}
    end = model.end()[1, 2, 1]
    rate = 0.05 * (math.pi / 2) ** 2 * (2**2 + 1) + 1.0
    assert math.isclose(float(end), math.exp(-rate * 5.0), rel_tol=1e-10)


@pytest.mark.physics
@pytest.mark.parametrize("activation", ["tanh", "isilu", "log_cosh"])
def test_a_wave_is_carried(tmp_path, activation):
    sample = advection_sample()
    settings = QUICK.changed(activation=activation)
    outcome = march(prepared(problem_of(sample), settings), settings, tmp_path)
    error = evaluate(outcome.solution.on_grid(sample.axes), sample)["fields"]["u"]["nrmse"]
    assert error < 1e-3
    assert len(outcome.solution.windows) == 4


@pytest.mark.physics
def test_density_is_carried_by_a_uniform_flow(tmp_path):
    sample = flow_sample()
    settings = QUICK.changed(march="1:0.1:6", optimizer="lbfgs:80", target=1e-8)
    outcome = march(prepared(problem_of(sample), settings), settings, tmp_path)
    errors = evaluate(outcome.solution.on_grid(sample.axes), sample)["fields"]
    assert max(e["nrmse"] for e in errors.values()) < 1e-3


@pytest.mark.physics
def test_reaction_and_diffusion_against_a_method_of_lines(tmp_path):
    """From a smooth state; the reference is a fine spectral method with tight tolerances."""
    from scipy.fft import dctn, idctn
    from scipy.integrate import solve_ivp

    n, equation = 16, DiffusionReaction()
    sample = reaction_sample(n=n)
    k = math.pi / 2 * np.arange(n)
    squares = k[:, None] ** 2 + k**2

    def slope(_, state):
        u, v = state.reshape(2, n, n)
        lap = [idctn(-squares * dctn(f, norm="ortho"), norm="ortho") for f in (u, v)]
        return np.stack(
            [equation.Du * lap[0] + u - u**3 - equation.k - v, equation.Dv * lap[1] + u - v]
        ).ravel()

    start = np.stack([sample.fields[f][..., 0] for f in "uv"])
    t = sample.axes["t"]
    found = solve_ivp(slope, (0, 5), start.ravel(), "DOP853", t, rtol=1e-8, atol=1e-10).y
    fields = dict(zip("uv", found.reshape(2, n, n, len(t)), strict=True))
    sample = replace(sample, fields=fields)
    settings = QUICK.changed(march="5:0.5:16", oversample=1.0, history=10)
    outcome = march(prepared(problem_of(sample), settings), settings, tmp_path)
    errors = evaluate(outcome.solution.on_grid(sample.axes), sample)["fields"]
    assert max(e["nrmse"] for e in errors.values()) < 5e-3


class Stop(Exception):
    pass


def test_a_stopped_march_goes_on_to_the_same_result(tmp_path):
    sample = advection_sample()
    settings = QUICK.changed(optimizer="lbfgs:10", checkpoint_every=1e-9)
    problem = prepared(problem_of(sample), settings)
    whole = march(problem, settings, tmp_path / "whole")

    def begin(fit, trainer):
        if fit.window == 2:
            raise Stop

    with pytest.raises(Stop):
        march(problem, settings, tmp_path / "parts", on_fit=begin)
    begun = []
    parts = march(problem, settings, tmp_path / "parts", resume=True,
                  on_fit=lambda fit, trainer: begun.append(fit.window))  # fmt: skip
    assert begun == [2, 3]
    for one, other in zip(whole.solution.windows, parts.solution.windows, strict=True):
        assert torch.equal(one.model.B, other.model.B)
    assert whole.terms == parts.terms
    other = settings.changed(seed=5)
    with pytest.raises(CheckpointError, match="other settings"):
        march(problem, other, tmp_path / "parts", resume=True)


@pytest.mark.parametrize("limit", ["time_limit", "cpu_limit"])
def test_a_limit_still_gives_a_solution(tmp_path, limit):
    sample = advection_sample()
    settings = QUICK.changed(**{limit: 1e-4})  # less than any step
    outcome = march(prepared(problem_of(sample), settings), settings, tmp_path)
    assert outcome.status == "time limit"
    assert outcome.solution.windows[-1].end == 2.0


def write_sample(path):
    from dcase.pinn.pdebench.generate import write_advection

    write_advection(path, [9996], cells=64, times=41, scheme="exact")
    return str(path)


def test_a_run_of_modes_is_read_back(tmp_path):
    source = Source("advection", write_sample(tmp_path / "f.hdf5"), 0)
    metrics, outcome = train(source, QUICK.changed(optimizer="lbfgs:20"), tmp_path / "run")
    saved = read_run(tmp_path / "run")
    assert saved.metrics()["fields"] == metrics["fields"]
    assert "loss.png" in saved.pictures()
    assert outcome.steps <= 80


def test_what_modes_cannot_do_says_so():
    with pytest.raises(OptionError, match="dirichlet"):
        mode_kinds(burgers())
    problem = problem_of(advection_sample())
    bare = PDEProblem("p", problem.equation, problem.domain, [problem.conditions[0]])
    with pytest.raises(OptionError, match="x is neither"):
        mode_kinds(bare)
    for text, message in (("1:0.1:8", "ends at"), ("2:0.1", "UNTIL"), ("2:-1:8", "forward")):
        with pytest.raises(OptionError, match=message):
            parse_march(text, problem.domain)
    steps = parse_march("0.5:0.2:8,2:0.5:4", problem.domain)
    assert [s.modes for s in steps] == [8, 8, 4, 4, 4]
    assert steps[-1].end == 2.0


def test_a_function_as_initial_state():
    problem = problem_of(advection_sample())
    state = FunctionState({"u": lambda x: torch.cos(2 * math.pi * x)}, {"x": (0.0, 1.0)})
    periodic = problem.conditions[1]
    problem = replace(problem, conditions=[Initial(state=state), periodic])
    c = start_coefficients(problem, ["fourier"], 3)
    expected = torch.zeros(1, 7, dtype=torch.float64)
    expected[0, 1] = 1 / math.sqrt(2)
    torch.testing.assert_close(c, expected, rtol=0, atol=1e-12)
