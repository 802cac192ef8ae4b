"""Methods on networks: the flow along the manifold is mechanics, projections are the paper's."""

import numpy as np
import pytest
import torch
from torch import nn

from dcase.dae.constraints import chain
from dcase.dae.mechanical import MechanicalNetwork
from dcase.dae.methods import METHODS, ConstrainedNetwork, MethodSettings
from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.projection import ProjectionSettings
from dcase.dae.skeleton import ResidualNetwork, StepSizes, runge_kutta_4
from dcase.errors import OptionError

GRAVITY = 9.82


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(batch=3, seed=0):
    """Rods of the right length, and velocities along them."""
    angle, turning = 3.0 * random((batch, 5), seed), random((batch, 5), seed + 1)
    r = torch.stack([angle.sin(), -angle.cos()], -1).cumsum(1)
    v = (torch.stack([angle.cos(), angle.sin()], -1) * turning[..., None]).cumsum(1)
    return r, v


class Spread(ResidualNetwork):
    """A latent space of 12 channels a node, a random smooth flow."""

    def __init__(self, layers=3, channels=12, strength=0.3):
        super().__init__()
        self.n_layers, self.strength = layers, strength
        self.k = torch.linalg.qr(random((channels, 4)))[0]  # [channels, 4], orthonormal columns
        self.mix = nn.Parameter(random((channels, channels), 1) / channels**0.5)
        self.sizes = StepSizes(layers, start=0.1).double()

    def open(self, r, v):
        return torch.cat([r, v], -1) @ self.k.T, None

    def close(self, z, context):
        y = z @ self.k
        return y[..., :2], y[..., 2:]

    def lower(self, dz, context):
        return self.close(dz, context)

    def lift(self, dr, dv, context):
        dv = torch.zeros_like(dr) if dv is None else dv
        return torch.cat([dr, dv], -1) @ self.k.T

    def rate(self, layer, z, context):
        return self.strength * torch.tanh(z @ self.mix) + 0.3 * (z.roll(1, 1) - z)

    def steps(self):
        return self.sizes()


def falling(duration, layers):
    """A mechanical network whose accelerations are those of gravity."""
    pairs = [(i - 1, i) for i in range(5)]
    network = MechanicalNetwork(pairs, range(5), 2, duration=duration, layers=layers).double()
    with torch.no_grad():
        network.out[-1].bias.copy_(torch.tensor([0.0, -GRAVITY]))
    tight = ProjectionSettings(tolerance=1e-10)
    return ConstrainedNetwork(network, chain(5), MethodSettings("manifold", projection=tight))


def test_along_the_manifold_gravity_gives_the_pendulum_in_angles():
    """Multipliers in Cartesian coordinates against the Lagrangian in angles, at fourth order."""
    true = simulate_pendulum(221, seed=3)
    start = 200
    r, v = (torch.tensor(a[start : start + 1]) for a in (true.positions, true.velocities))
    errors = []
    with torch.no_grad():
        for layers in (8, 16, 32):
            found = falling(0.2, layers)(r, v)
            errors.append(np.abs(found.r[0].numpy() - true.positions[start + 20]).max())
            speed = np.abs(found.v[0].numpy() - true.velocities[start + 20]).max()
    assert errors[-1] < 1e-4
    assert speed < 1e-3
    assert errors[0] / errors[1] > 8
    assert errors[1] / errors[2] > 8


def test_a_network_without_acceleration_moves_on_uniformly():
    pairs = [(i - 1, i) for i in range(5)]
    network = MechanicalNetwork(pairs, range(5), 2, duration=0.3, layers=2).double()
    r, v = states()
    found = ConstrainedNetwork(network, chain(5))(r, v)
    torch.testing.assert_close(found.r, r + 0.3 * v)
    torch.testing.assert_close(found.v, v)


@pytest.mark.parametrize("method", ["end", "smooth", "manifold"])
def test_projections_leave_less_than_the_tolerance(method):
    r, v = states(batch=6)
    model = ConstrainedNetwork(Spread(), chain(5), MethodSettings(method))
    free = ConstrainedNetwork(Spread(), chain(5))
    with torch.no_grad():
        assert float(chain(5).violation(free(r, v).r).max()) > 1e-2
        assert float(chain(5).violation(model(r, v).r).max()) < 1e-4


def test_velocities_of_the_manifold_keep_the_constraint():
    r, v = states()
    with torch.no_grad():
        found = ConstrainedNetwork(Spread(), chain(5), MethodSettings("manifold"))(r, v)
    assert float(chain(5).jvp(found.r, found.v).abs().max()) < 1e-10


def test_smooth_projection_is_equation_10_in_the_latent_space():
    """The step z <- z - K^T J^T (J K K^T J^T)^-1 c, dense and iterated, for one small layer."""
    network = Spread(layers=1, strength=0.02)
    r, v = states(batch=1)
    settings = MethodSettings("smooth", gamma=0.0, projection=ProjectionSettings(tolerance=1e-12))
    model = ConstrainedNetwork(network, chain(5), settings)
    with torch.no_grad():
        found = model(r, v).r
        z, context = network.open(r, v)
        z = runge_kutta_4(lambda at: network.rate(0, at, context), z, network.steps()[0])

    def c(flat):
        return chain(5)(network.close(flat.reshape(z.shape), context)[0])[0]

    flat = z.flatten()
    for _ in range(30):
        j = torch.autograd.functional.jacobian(c, flat)
        flat = flat - j.T @ torch.linalg.solve(j @ j.T, c(flat))
    with torch.no_grad():
        paper = network.close(flat.reshape(z.shape), context)[0]
    moved = float((found - network.close(z, context)[0]).norm())
    assert moved > 1e-3
    # Equation 10 ends beside the nearest point, by the square of what it moves.
    assert float((found - paper).norm()) < 0.1 * moved


@pytest.mark.parametrize("metric", ["identity", "gram"])
def test_a_penalty_alone_flows_to_the_constraint(metric):
    """Without a network, H = (J J^T)^-1 makes c decay as exp(-gamma tau)."""

    class Still(Spread):
        def rate(self, layer, z, context):
            return torch.zeros_like(z)

    r, v = states()
    r = r + 0.01 * random(r.shape, 5)
    network = Still(layers=20)
    settings = MethodSettings("penalty", gamma=1.0, penalty_metric=metric, penalty_clamp=0.0)
    with torch.no_grad():
        after = chain(5)(ConstrainedNetwork(network, chain(5), settings)(r, v).r)
    before = chain(5)(r)
    assert bool((after.abs().mean(1) < before.abs().mean(1)).all())
    if metric == "gram":
        torch.testing.assert_close(after, before * np.exp(-2.0), rtol=1e-5, atol=1e-8)


def test_the_clamp_limits_the_penalty():
    r = 3.0 * states()[0]
    settings = MethodSettings("penalty", gamma=1e4)
    model = ConstrainedNetwork(Spread(layers=1, strength=0.0), chain(5), settings)
    pull = model._penalty(r)
    assert bool((pull.abs() <= 0.1 * r.abs() + 1e-12).all())


def test_the_auxiliary_loss_sees_what_is_there_before_projections():
    r, v = states()
    free = ConstrainedNetwork(Spread(), chain(5), MethodSettings("penalty"))(r, v)
    end = ConstrainedNetwork(Spread(), chain(5), MethodSettings("end"))(r, v)
    torch.testing.assert_close(end.violated, chain(5)(free.r))
    smooth = ConstrainedNetwork(Spread(), chain(5), MethodSettings("smooth"))(r, v)
    assert smooth.violated.shape == (3, 3, 5)
    assert float(smooth.violated.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_differences(method):
    r, v = states(batch=2)
    network = Spread(layers=2)
    projection = ProjectionSettings(tolerance=1e-12)
    model = ConstrainedNetwork(network, chain(5), MethodSettings(method, projection=projection))
    upstream = random(r.shape, 7)

    def value():
        return (model(r, v).r * upstream).sum()

    (gradient,) = torch.autograd.grad(value(), network.mix)
    direction, h = random(network.mix.shape, 8), 1e-6
    with torch.no_grad():
        network.mix += h * direction
        plus = value()
        network.mix -= 2 * h * direction
        minus = value()
    torch.testing.assert_close(
        (gradient * direction).sum(), (plus - minus) / (2 * h), rtol=1e-5, atol=1e-7
    )


def test_steps_stay_in_their_range():
    sizes = StepSizes(3, start=0.05, low=0.01, high=0.1)
    torch.testing.assert_close(sizes(), torch.full((3,), 0.05))
    with torch.no_grad():
        sizes.root.copy_(torch.tensor([0.0, 0.2, 5.0]))
    torch.testing.assert_close(sizes(), torch.tensor([0.01, 0.04, 0.1]))
    with pytest.raises(OptionError, match="low <= start"):
        StepSizes(2, start=1.0, high=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "magic"}, "none, auxiliary"),
        ({"eta": -1.0}, "negative"),
        ({"penalty_metric": "h"}, "identity, gram"),
    ],
)
def test_impossible_settings(values, message):
    with pytest.raises(OptionError, match=message):
        MethodSettings(**values)


def rate_of_change(c, r, v, dr, dv, step=1e-5):
    """Of the constraints' own rate ``J(r) v`` along ``dr, dv``, by a central difference."""
    c = c.for_newton()
    ahead, behind = (c.at(r + s * dr).jvp(v + s * dv) for s in (step, -step))
    return (ahead - behind) / (2 * step)


@pytest.mark.parametrize("weighted", [False, True])
def test_reactions_keep_position_and_velocity_on_the_manifold(weighted):
    """Of any flow, also one that moves positions otherwise than their velocities say."""
    weight = 0.5 + torch.arange(5).double()[:, None] if weighted else None
    net = ConstrainedNetwork(Spread(), chain(5), MethodSettings("manifold"), weight=weight)
    net.requires_grad_(False)
    r, v = states()
    z, context = net.network.open(r, v)
    dz = net.network.rate(0, z, context)
    dr, dv = net.network.lower(dz, context)
    push_r, push_v = net._reaction(r, v, dz, context)
    here = net.constraint.for_newton().at(r)
    assert float(here.jvp(dr).abs().max()) > 0.01
    assert float(here.jvp(dr + push_r).abs().max()) < 1e-10
    assert float(rate_of_change(net.constraint, r, v, dr, dv).abs().max()) > 0.01
    found = rate_of_change(net.constraint, r, v, dr + push_r, dv + push_v)
    assert float(found.detach().abs().max()) < 1e-7


def test_velocities_are_tangential_where_the_positions_have_come_to():
    tight = MethodSettings("manifold", projection=ProjectionSettings(tolerance=1e-12))
    net = ConstrainedNetwork(Spread(layers=1), chain(5), tight).requires_grad_(False)
    r, v = states()
    found = net(r + 0.05 * random(r.shape, 5), v)  # a long way to the manifold
    at = net.constraint.for_newton().at(found.r)
    assert float(at.jvp(found.v).abs().max()) < 1e-9


def test_the_penalty_in_the_metric_of_the_masses_is_a_newton_step():
    """Gamma = 1: what is left of the violation is of second order, whatever the masses."""
    weight = 0.2 + torch.arange(5).double()[:, None]
    settings = MethodSettings("penalty", gamma=1.0, penalty_metric="gram", penalty_clamp=0.0)
    net = ConstrainedNetwork(Spread(), chain(5), settings, weight=weight).requires_grad_(False)
    r, _ = states()
    for size in (1e-2, 1e-3):
        away = r + size * random(r.shape, 5)
        left = net.constraint(away - net._penalty(away)).abs().max()
        assert left < 20 * size * net.constraint(away).abs().max()


def test_pairs_are_told_how_fast_they_stretch():
    """The features of a pair: distance, its rate of change, and both vectors, in A and scaled."""
    network = MechanicalNetwork([(0, 1), (-1, 0)], [0, 0], 2, duration=0.1, velocity_scale=2.0)
    seen = []
    network.message[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    r, v = 3.0 * random((4, 2, 2), 1).float(), random((4, 2, 2), 2).float()
    network.acceleration(r, v)
    distance, stretch = seen[0][..., -6], seen[0][..., -5]
    step = 1e-3
    for pair, (i, j) in enumerate([(0, 1), (None, 0)]):

        def length(at, i=i, j=j):
            return (at[:, j] - (0.0 if i is None else at[:, i])).double().norm(dim=-1)

        torch.testing.assert_close(distance[:, pair].double(), length(r), rtol=1e-5, atol=1e-6)
        fast = (length(r + step * v) - length(r - step * v)) / (2 * step) / 2.0
        torch.testing.assert_close(stretch[:, pair].double(), fast, rtol=1e-3, atol=1e-3)
