"""Networks of modes: what they keep exactly, their derivatives, and what they learn."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from dcase.errors import OptionError
from dcase.pinn.derivatives.names import trace, wanted
from dcase.pinn.domains import Domain
from dcase.pinn.equations import CompressibleFlow, DiffusionReaction, ModeHints
from dcase.pinn.spectral import Modes, SpectralNetwork, fit_modes

WINDOW = (0.3, 0.7)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def line(fields=("u", "v"), size=9, window=WINDOW, start=None, **options):
    """Fourier modes of a period [-1, 2] with random weights."""
    domain = Domain({"x": (-1.0, 2.0), "t": window})
    start = random(len(fields), size) if start is None else start
    options = {"grid": 16, **options}
    network = SpectralNetwork(domain, fields, ["fourier"], start, **options)
    with torch.no_grad():
        network.B.copy_(random(*network.B.shape, seed=1))
    return network


def square(fields=("u", "v"), sizes=(4, 5), window=WINDOW, start=None, **options):
    """Cosines on [-1, 1] x [0, 3] with random weights."""
    domain = Domain({"x": (-1.0, 1.0), "y": (0.0, 3.0), "t": window})
    start = random(len(fields), *sizes) if start is None else start
    options = {"grid": 7, **options}
    network = SpectralNetwork(domain, fields, ["cosine", "cosine"], start, **options)
    with torch.no_grad():
        network.B.copy_(random(*network.B.shape, seed=1))
    return network


def collocation(network):
    """The points of ``grid_derivatives``, in its order."""
    names = network.domain.coordinates
    found = network.grid_derivatives(wanted(names, names, network.fields))
    return torch.stack([found[name] for name in names], 1)


def difference(network, points, column, step=1e-4):
    """Fourth-order central difference of the fields by a coordinate, [N, F]."""
    shift = torch.zeros(points.shape[1], dtype=torch.float64)
    shift[column] = step
    near = network(points + shift) - network(points - shift)
    far = network(points + 2 * shift) - network(points - 2 * shift)
    return (8 * near - far) / (12 * step)


HINTS = {
    "plain": None,
    "waves, decay and sharing": ModeHints(
        rate=2.0,
        scales={"u": 3.0, "v": 0.5},
        decay={"v": torch.linspace(0.0, 4.0, 9)},
        frequency={"u": torch.linspace(0.0, 20.0, 9)},
        shared=(("u", "v"),),
    ),
}


@pytest.mark.parametrize("hints", HINTS.values(), ids=list(HINTS))
@torch.no_grad()
def test_derivatives_on_a_line_are_those_of_the_values(hints):
    network = line(hints=hints)
    points = collocation(network)
    names = ["u", "v_x", "u_t", "v_t", "u_xx", "lap_v"]
    found = network.grid_derivatives(wanted(names, ("x", "t"), ("u", "v")))
    torch.testing.assert_close(found.u, network(points)[:, 0])
    slope = difference(network, points, 0)
    rate = difference(network, points, 1)
    torch.testing.assert_close(found.v_x, slope[:, 1], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.u_t, rate[:, 0], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.v_t, rate[:, 1], rtol=1e-7, atol=1e-7)
    bend = network(points + torch.tensor([1e-3, 0.0])) + network(points - torch.tensor([1e-3, 0]))
    bend = (bend - 2 * network(points)) / 1e-6
    torch.testing.assert_close(found.u_xx, bend[:, 0], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found.lap_v, bend[:, 1], rtol=1e-3, atol=1e-2)


@torch.no_grad()
def test_derivatives_on_a_square_are_those_of_the_values():
    decay = {"u": random(4, 5, seed=3).abs()}
    network = square(hints=ModeHints(decay=decay))
    points = collocation(network)
    names = ["v", "u_x", "u_y", "u_t", "u_xy", "u_xx", "u_yy", "lap_u"]
    found = network.grid_derivatives(wanted(names, ("x", "y", "t"), ("u", "v")))
    torch.testing.assert_close(found.v, network(points)[:, 1])
    for column, name in enumerate(["u_x", "u_y", "u_t"]):
        slope = difference(network, points, column)[:, 0]
        torch.testing.assert_close(found[name], slope, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.lap_u, found.u_xx + found.u_yy)
    step = torch.tensor([0.0, 1e-3, 0.0], dtype=torch.float64)

    def u_x(at):
        return difference(network, at, 0)[:, 0]

    mixed = (u_x(points + step) - u_x(points - step)) / 2e-3
    torch.testing.assert_close(found.u_xy, mixed, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_period_is_kept_exactly_at_all_times():
    network = line()
    points = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    points = points * torch.tensor([3.0, 0.4]) + torch.tensor([-1.0, 0.3])
    beyond = points + torch.tensor([3.0, 0.0])
    torch.testing.assert_close(network(points), network(beyond), rtol=1e-11, atol=1e-11)
    middle = points + torch.tensor([1.5, 0.0])
    assert (network(points) - network(middle)).abs().max() > 0.1  # and it is not constant


@torch.no_grad()
def test_nothing_flows_through_walls():
    network = square()
    times = torch.linspace(*WINDOW, 5, dtype=torch.float64)
    along = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    for column, (low, high) in enumerate([(-1.0, 1.0), (0.0, 3.0)]):
        for wall in (low, high):
            other = along * 2.0 - 1.0 if column else along * 3.0
            space = [torch.full((7,), wall, dtype=torch.float64), other]
            space = space[::-1] if column else space
            points = torch.cat(
                [torch.stack([*space, torch.full_like(along, float(t))], 1) for t in times]
            )
            assert difference(network, points, column).abs().max() < 1e-8
            inside = points.clone()
            inside[:, column] = low + 0.3 * (high - low)
            assert difference(network, inside, column).abs().max() > 0.1


@pytest.mark.parametrize("make", [line, square])
@torch.no_grad()
def test_a_window_starts_exactly_where_the_last_one_ends(make):
    first = make()
    assert (first.end() - first.start).abs().max() > 0.1
    second = make(window=(0.7, 0.9), start=first.end())
    points = collocation(first)[::3].clone()
    points[:, -1] = 0.7
    torch.testing.assert_close(first(points), second(points), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("kind", "count", "cells"), [("fourier", 4, 12), ("cosine", 9, 9)])
def test_values_on_cells_and_coefficients_determine_each_other(kind, count, cells):
    modes = Modes(-1.0, 3.0, kind, count)
    coefficients = random(2, len(modes))
    values = coefficients @ modes.at(modes.grid(cells)).T
    torch.testing.assert_close(fit_modes(values, [modes]), coefficients)
    # The mean square over the cells is the sum of squares: the modes are orthonormal there.
    torch.testing.assert_close(values.square().mean(1), coefficients.square().sum(1))


def test_as_many_cosines_as_cells_interpolate_noise():
    modes = [Modes(-1.0, 2.0, "cosine", 6), Modes(0.0, 1.0, "cosine", 8)]
    noise = random(2, 6, 8)
    c = fit_modes(noise, modes)
    back = torch.einsum(
        "im,fmn,jn->fij", modes[0].at(modes[0].grid(6)), c, modes[1].at(modes[1].grid(8))
    )
    torch.testing.assert_close(back, noise)


@torch.no_grad()
def test_diffusion_is_solved_before_training():
    """With the decay of the modes known, the untrained network is the exact solution."""
    diffusivity, waves = 0.05, Modes(-1.0, 2.0, "cosine", 6).wave_numbers
    squares = waves[:, None] ** 2 + waves**2
    domain = Domain({"x": (-1.0, 1.0), "y": (-1.0, 1.0), "t": (0.0, 1.5)})
    hints = ModeHints(decay={"u": diffusivity * squares})
    start = random(1, 6, 6)
    network = SpectralNetwork(domain, ["u"], ["cosine"] * 2, start, grid=9, hints=hints)
    d = network.grid_derivatives(wanted(["u_t", "lap_u"], ("x", "y", "t"), ["u"]))
    assert d.u_t.abs().max() > 0.1
    torch.testing.assert_close(d.u_t, diffusivity * d.lap_u, rtol=1e-10, atol=1e-10)
    exact = start[0] * torch.exp(-1.5 * diffusivity * squares)
    torch.testing.assert_close(network.end()[0], exact)


@torch.no_grad()
def test_the_projection_keeps_what_modes_express_and_drops_the_rest():
    network = line(fields=("u",), grid=24)
    points = collocation(network)
    phase = 2 * math.pi * (points[:, 0] + 1.0) / 3.0
    inside, outside = 0.7 * torch.sin(3 * phase) + 0.2, torch.cos(8 * phase)
    energy = network.project(inside).square().mean()
    torch.testing.assert_close(energy, inside.square().mean())  # Parseval
    torch.testing.assert_close(network.project(inside + outside), network.project(inside))


def train(network, equation, hints, steps):
    """L-BFGS on the mean square of the projected residuals; returns first and last loss."""
    asked = trace(equation)
    optimizer = torch.optim.LBFGS(
        [network.B],
        max_iter=steps,
        line_search_fn="strong_wolfe",
        tolerance_change=0.0,
        tolerance_grad=0.0,
    )
    losses = []

    def closure():
        optimizer.zero_grad()
        found = equation.residuals(network.grid_derivatives(asked))
        loss = sum(
            (network.project(r) / hints.residuals.get(name, 1.0)).square().mean()
            for name, r in found.items()
        )
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    return losses[0], losses[-1]


def test_a_trained_window_agrees_with_an_ode_solver():
    """Diffusion-reaction without space: one mode, where the equation is an ODE."""
    equation = DiffusionReaction()
    start = torch.tensor([[[0.8]], [[-0.3]]], dtype=torch.float64)
    domain = Domain({"x": (-1.0, 1.0), "y": (-1.0, 1.0), "t": (0.0, 0.5)})
    network = SpectralNetwork(domain, ["u", "v"], ["cosine"] * 2, start, grid=1, hidden=8, times=10)
    first, last = train(network, equation, ModeHints(), 60)
    assert last < 1e-7 * first

    def slope(_, y):
        u, v = y
        return [u - u**3 - equation.k - v, u - v]

    exact = solve_ivp(slope, (0.0, 0.5), [0.8, -0.3], rtol=1e-10, atol=1e-12).y[:, -1]
    torch.testing.assert_close(network.end().flatten(), torch.tensor(exact), rtol=1e-5, atol=1e-5)


def test_sound_travels_at_the_speed_of_sound_and_entropy_stays():
    """A weak standing wave and a blob of heavy gas at rest, over a sixth of a period."""
    equation, domain = CompressibleFlow(), Domain({"x": (-1.0, 1.0), "t": (0.0, 0.25)})
    modes, cells = Modes(-1.0, 2.0, "fourier", 6), 24
    x, small, sound = modes.grid(cells), 1e-5, math.sqrt(5.0 / 3.0)
    wave, blob = small * torch.cos(math.pi * x), 2e-5 * torch.sin(3 * math.pi * x)
    values = torch.stack([1.0 + wave / sound**2 + blob, 0.0 * x, 1.0 + wave])
    hints = equation.mode_hints(dict(zip(equation.fields, values, strict=True)), modes.wave_numbers)
    start = fit_modes(values, [modes])
    network = SpectralNetwork(
        domain, equation.fields, ["fourier"], start, grid=cells, hidden=8, times=10, hints=hints
    )
    train(network, equation, hints, 80)
    rho, v, p = (network.end() @ modes.at(x).T).detach()
    phase = math.pi * sound * 0.25
    exact_p = 1.0 + wave * math.cos(phase)
    exact_v = small / sound * torch.sin(math.pi * x) * math.sin(phase)
    for got, exact in [
        (p, exact_p),
        (v, exact_v),
        (rho, 1.0 + (exact_p - 1.0) / sound**2 + blob),
    ]:
        assert (got - exact).abs().max() < 2e-4 * small


def test_conditioning_makes_a_stiff_window_train_in_a_few_steps():
    waves = Modes(-1.0, 2.0, "fourier", 24).wave_numbers

    class Wave:
        coordinates, fields = ("x", "t"), ("u", "v")

        def residuals(self, d):
            return {"u": d.u_t + 8.0 * d.v_x, "v": d.v_t + 8.0 * d.u_x}

    domain = Domain({"x": (-1.0, 1.0), "t": (0.0, 0.01)})
    loss = {}
    for name, hints in {
        "plain": ModeHints(),
        "conditioned": ModeHints(frequency={"u": 8.0 * waves, "v": 8.0 * waves}),
    }.items():
        start = random(2, len(waves), seed=5)
        network = SpectralNetwork(
            domain, Wave.fields, ["fourier"], start, grid=72, hidden=7, times=9, hints=hints
        )
        first, last = train(network, Wave(), hints, 15)
        loss[name] = last / first
    assert loss["conditioned"] < 0.1 * loss["plain"]


def test_gradients_reach_the_hidden_layer_only_if_it_is_trained():
    for trained in (False, True):
        network = line(train_hidden=trained)
        found = network.grid_derivatives(wanted(["u_t"], ("x", "t"), ("u", "v")))
        found.u_t.square().mean().backward()
        assert network.B.grad is not None
        assert (network.w.grad is not None) == trained


def test_float32_agrees_with_float64():
    double, single = line(), line(dtype=torch.float32)
    with torch.no_grad():
        got, exact = single.end(), double.end()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=2e-3, atol=2e-3)


def test_impossible_networks_are_refused():
    with pytest.raises(OptionError, match="8 cells"):
        line(grid=8)
    with pytest.raises(OptionError, match="fourier or cosine"):
        Modes(0.0, 1.0, "wavelet", 3)
    second = wanted(["u_tt"], ("x", "t"), ("u", "v"))
    with pytest.raises(OptionError, match="u_tt"):
        line().grid_derivatives(second)
