"""The equivariant network: symmetries to rounding error, locality, and e3nn's own formulas."""

from __future__ import annotations

import copy
import functools
import math
import sys

import pytest
import torch

from dcase.dae.equivariant import PAPER, SMALL, EquivariantNetwork, envelope
from dcase.dae.skeleton import StepSizes, runge_kutta_4
from dcase.errors import MissingExtraError, OptionError

TINY = {"scalars": 3, "vectors": 6, "layers": 2, "basis": 3, "radial": (5,), "radius": 6.0}


@functools.cache
def shared_network() -> EquivariantNetwork:
    """One that no test changes: building takes longer than running."""
    return tiny_network()


def tiny_network(dtype: torch.dtype = torch.float64, **options) -> EquivariantNetwork:
    pytest.importorskip("e3nn")
    settings = {"velocity_scale": 0.01, "steps": StepSizes(2, start=0.1)} | TINY | options
    return EquivariantNetwork(**settings).to(dtype)


def droplet(n: int = 4, n_batch: int = 2, seed: int = 0):
    """Positions [A] and velocities [A/fs] of n molecules a few A apart."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    centres = 2.5 * torch.arange(n, dtype=torch.float64)[:, None, None]
    centres = centres * torch.tensor([1.0, 0.4, -0.3]) + 0.3 * normal(n_batch, n, 1, 3)
    return (centres + 0.5 * normal(n_batch, n, 3, 3)).flatten(1, 2), 0.01 * normal(
        n_batch, 3 * n, 3
    )


def run(network: EquivariantNetwork, r: torch.Tensor, v: torch.Tensor):
    z, context = network.open(r, v)
    for layer, step in enumerate(network.steps()):
        here = network.begin_layer(layer, z, context)
        z = runge_kutta_4(lambda y, n=layer, c=here: network.rate(n, y, c), z, step)
    return network.close(z, context)


def rotation(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    return q * torch.linalg.det(q)


def assert_same(got, expected, tolerance: float = 1e-11):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.physics
@pytest.mark.parametrize("kind", ["rotation", "reflection", "inversion"])
def test_turned_input_gives_turned_output(kind):
    turn = {
        "rotation": rotation(),
        "reflection": rotation() @ torch.diag(torch.tensor([1.0, -1.0, 1.0]).double()),
        "inversion": -torch.eye(3).double(),
    }[kind]
    network = shared_network()
    r, v = droplet()
    plain = run(network, r, v)
    assert (plain[0] - r).abs().max() > 1e-3, "the network must do something"
    assert_same(run(network, r @ turn.T, v @ turn.T), [x @ turn.T for x in plain])


@pytest.mark.physics
def test_pseudo_channels_are_at_work_and_turn_as_they_should():
    network = shared_network()
    turn = -rotation()
    r, v = droplet()
    states = []
    for frame in (torch.eye(3).double(), turn):
        z, context = network.open(r @ frame.T, v @ frame.T)
        for layer in (0, 1):
            here = network.begin_layer(layer, z, context)
            z = z + network.rate(layer, z, here)
        states.append(z.split([3, 3, 18, 18], -1))
    odd0, even0, odd1, even1 = states[0]
    assert min(part.abs().max() for part in states[0]) > 1e-2
    expected = (
        -odd0,
        even0,
        (odd1.unflatten(-1, (6, 3)) @ turn.T).flatten(-2),
        (even1.unflatten(-1, (6, 3)) @ -turn.T).flatten(-2),
    )
    assert_same(states[1], expected)


@pytest.mark.physics
def test_moved_input_gives_moved_output():
    network = shared_network()
    r, v = droplet()
    shift = torch.tensor([3.0, -20.0, 7.0]).double()
    plain = run(network, r, v)
    assert_same(run(network, r + shift, v), (plain[0] + shift, plain[1]))


@pytest.mark.physics
def test_exchanged_molecules_give_exchanged_outputs():
    network = shared_network()
    r, v = droplet()
    order = torch.tensor([2, 0, 3, 1])
    atoms = (3 * order[:, None] + torch.arange(3)).flatten()
    plain = run(network, r, v)
    assert_same(run(network, r[:, atoms], v[:, atoms]), [x[:, atoms] for x in plain])


@pytest.mark.physics
def test_molecules_beyond_the_cutoff_do_not_see_each_other():
    network = shared_network()
    near, far = droplet(seed=1), droplet(seed=2)
    shift = torch.tensor([40.0, 0.0, 0.0]).double()
    both = run(network, torch.cat([near[0], far[0] + shift], 1), torch.cat([near[1], far[1]], 1))
    alone = run(network, *near)
    assert_same([x[:, :12] for x in both], alone)
    # and within it they do
    close = run(
        network, torch.cat([near[0], far[0] + shift / 20], 1), torch.cat([near[1], far[1]], 1)
    )
    assert (close[0][:, :12] - alone[0]).abs().max() > 1e-4


@pytest.mark.physics
def test_the_cutoff_is_smooth():
    network = tiny_network(layers=1, steps=StepSizes(1, start=0.1))
    r, v = droplet(n=2, n_batch=1)
    pair = r.unflatten(1, (2, 3)) - r.unflatten(1, (2, 3)).mean(2, keepdim=True)

    def influence(distance: float) -> torch.Tensor:
        moved = pair.clone()
        moved[:, 1, :, 0] += distance
        apart = pair.clone()
        apart[:, 1, :, 0] += 100.0
        z, context = network.open(moved.flatten(1, 2), v)
        rate = network.rate(0, z, network.begin_layer(0, z, context))
        z, context = network.open(apart.flatten(1, 2), v)
        return (rate - network.rate(0, z, network.begin_layer(0, z, context))).abs().max()

    inside = [influence(6.0 - gap).item() for gap in (0.4, 0.2, 0.1)]
    # Three continuous powers: halving the gap divides the influence by 8 in the limit.
    assert inside[0] > 5 * inside[1] > 25 * inside[2] > 0
    assert influence(6.0 + 1e-9) < 1e-12


def test_envelope_and_its_derivatives():
    u = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    value = envelope(u)
    first = torch.autograd.grad(value.sum(), u, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), u)[0]
    torch.testing.assert_close(value.detach(), torch.tensor([1.0, 0.0]).double())
    for derivative in (first.detach(), second):
        torch.testing.assert_close(derivative, torch.zeros(2).double())
    assert envelope(torch.tensor(3.0)) == 0


def test_close_undoes_open_and_lower_undoes_lift():
    network = tiny_network(position_scale=1.3)
    r, v = droplet()
    z, context = network.open(r, v)
    assert_same(network.close(z, context), (r, v), 1e-12)
    zero = torch.zeros_like(v)
    assert_same(network.lower(network.lift(r, v, context), context), (r, v), 1e-12)
    assert_same(network.lower(network.lift(r, None, context), context), (r, zero), 1e-12)
    moved = network.close(z + network.lift(0.1 * r, None, context), context)
    assert_same(moved, (1.1 * r, v), 1e-12)
    torch.testing.assert_close(context.k.T @ context.k, torch.eye(6).double(), rtol=0, atol=1e-13)


def test_messages_are_the_tensor_product_of_e3nn():
    """Sum over pairs of e3nn's own product, with its constants and normalisation, one by one."""
    o3 = pytest.importorskip("e3nn.o3")
    network = shared_network()
    r, v = droplet(n=3, n_batch=1)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 3, 42, generator=generator, dtype=torch.float64)
    places, speeds = (y.unflatten(1, (3, 3))[0] for y in (r, v / 0.01))
    wigner = o3.wigner_3j(1, 1, 1, dtype=torch.float64)
    expected = torch.zeros(3, 66, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            if i == j:
                continue
            d = torch.cat([places[i] - places[j], speeds[i] - speeds[j]])  # [6, 3]
            lengths = d.norm(dim=-1)
            u = torch.cat([lengths[:3] / 6.0, lengths[3:] / 10.0])
            n = torch.arange(1, 4, dtype=torch.float64)
            bessel = 2**0.5 * torch.sin(n * math.pi * u[:, None]) / (math.pi * u[:, None])
            weight = network.layers[1].radial(bessel.flatten()[None]).view(30, 6)
            y = o3.spherical_harmonics("1o", d, normalize=True, normalization="component")
            size = torch.cat([torch.ones(3), lengths[3:] / (1 + lengths[3:] ** 2).sqrt()])
            fade = envelope(d[:3].mean(0).norm() / 6.0)
            a = weight @ (y * size[:, None]) * fade / (6 * 31.0) ** 0.5  # [30 paths, 3]
            odd0, even0 = x[0, j, :3], x[0, j, 3:6]
            odd, even = x[0, j, 6:24].view(6, 3), x[0, j, 24:].view(6, 3)

            def dot(a, b):
                return (a * b).sum(-1) / 3**0.5

            def cross(a, b):
                # component normalisation: sqrt(2 l + 1) times the unit-norm 3j symbol
                return 3**0.5 * torch.einsum("ijk,ui,uj->uk", wigner, a, b)

            expected[i] += torch.cat(
                [
                    dot(a[6:12], even),
                    dot(a[12:18], odd),
                    (a[3:6] * even0[:, None]).flatten(),
                    cross(a[18:24], even).flatten(),
                    (a[:3] * odd0[:, None]).flatten(),
                    cross(a[24:30], odd).flatten(),
                ]
            )
    got = network.messages(x, network.kernels(1, r, v))[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    network = tiny_network(layers=1, steps=StepSizes(1, start=0.1))
    r, v = (x.requires_grad_() for x in droplet(n=2, n_batch=1))
    assert torch.autograd.gradcheck(lambda r, v: run(network, r, v), (r, v), fast_mode=True)


def test_gradients_are_finite_where_lengths_vanish():
    network = shared_network()
    r, v = droplet()
    v = torch.zeros_like(v).requires_grad_()
    loss = sum(x.square().sum() for x in run(network, r, v))
    gradients = torch.autograd.grad(loss, [v, *network.parameters()], allow_unused=True)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    assert gradients[0].abs().max() > 0


def test_every_parameter_is_used():
    network = tiny_network()
    sum(x.square().sum() for x in run(network, *droplet())).backward()
    for name, parameter in network.named_parameters():
        # The last layer's scalars are closed by nobody but still act in the later stages.
        assert parameter.grad is not None, name
        if parameter.numel():
            assert parameter.grad.abs().max() > 0, name


def test_coupling_constants_are_exact_in_float64_and_the_global_dtype_is_left_alone():
    default = torch.get_default_dtype()
    network = tiny_network(torch.float32, layers=1, steps=None).double()
    assert torch.get_default_dtype() == default
    constants = [b for name, b in network.named_buffers() if "_w3j_" in name]
    assert len(constants) == 1
    assert (constants[0].abs().max() - 6**-0.5).abs() < 1e-15


def test_copies_compute_the_same_and_share_saved_weights():
    network = shared_network()
    twin = copy.deepcopy(network)
    r, v = droplet()
    expected = run(network, r, v)
    assert_same(run(twin, r, v), expected, 1e-13)
    parameters = dict(network.named_parameters())
    assert set(network.state_dict()) == set(parameters)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(network.state_dict())
    assert_same(run(twin, r, v), expected, 1e-13)
    network.load_state_dict(twin.state_dict())


def test_float32_agrees_with_float64():
    r, v = droplet()
    wide = run(shared_network(), r, v)
    narrow = run(tiny_network(torch.float32), r.float(), v.float())
    assert narrow[0].dtype == torch.float32
    assert_same([x.double() for x in narrow], wide, 1e-4)


def test_output_starts_at_the_input():
    network = tiny_network(layers=1, steps=None)
    r, v = droplet()
    r_out, v_out = run(network, r, v)
    assert 0 < (r_out - r).abs().max() < 0.01
    assert 0 < (v_out - v).abs().max() < 0.0001


def test_seed_and_saved_weights():
    a, b, c = (tiny_network(seed=n, layers=1, steps=None) for n in (1, 1, 2))
    r, v = droplet()
    assert torch.equal(run(a, r, v)[0], run(b, r, v)[0])
    assert not torch.equal(run(a, r, v)[0], run(c, r, v)[0])
    c.load_state_dict(a.state_dict())
    assert torch.equal(run(a, r, v)[0], run(c, r, v)[0])


def test_number_of_parameters_of_the_published_size():
    pytest.importorskip("e3nn")
    s, c = PAPER["scalars"], PAPER["vectors"]
    network = EquivariantNetwork(**{**PAPER, "layers": 1})
    square = 2 * s * (2 * s * s + 2 * c * c) + 2 * c * (4 * s * c + 2 * c * c)
    gates = 2 * c
    linear = s * s + s * (s + gates) + 2 * c * c  # own state
    linear += 2 * s * s + 2 * c * c  # sent
    linear += c * s + c * (s + gates) + 2 * (s + c) * c + c  # received, and the angle
    radial = 48 * 48 + 48 * 6 * (2 * s + 4 * c)
    layer = square + linear + radial + 2  # and mix and step
    assert sum(p.numel() for p in network.parameters()) == layer + 6 * c
    assert 8 * layer + 6 * c == pytest.approx(2.8e6, rel=0.05)
    assert SMALL["vectors"] >= 6


def test_missing_package_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "e3nn", None)
    monkeypatch.setitem(sys.modules, "e3nn.nn", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dcase\[e3nn\]'") as caught:
        EquivariantNetwork(**TINY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": 5}, "at least 6 channels"),
        ({"radius": 0.0}, "above zero"),
        ({"scalars": 0}, "at least 1"),
        ({"layers": 0}, "at least one layer"),
        ({"velocity_scale": -1.0}, "above zero"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        tiny_network(**options)


def test_atoms_that_are_no_whole_molecules_are_named():
    network = shared_network()
    r, v = droplet()
    with pytest.raises(OptionError, match="11 atoms are not molecules of 3"):
        network.open(r[:, :11], v[:, :11])
