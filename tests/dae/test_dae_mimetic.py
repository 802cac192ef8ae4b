"""The mimetic network: its form, its block against loops over edges, its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from dcase.dae.mimetic import PAPER, SMALL, MimeticNetwork, semi_orthogonal
from dcase.dae.skeleton import StepSizes, runge_kutta_4
from dcase.errors import OptionError

CHAIN = [(0, 1), (1, 2), (2, 3), (3, 4)]


def small_network(**options) -> MimeticNetwork:
    settings = {"n_nodes": 5, "edges": CHAIN, "latent": 6, "layers": 2, "type_size": 3} | options
    return MimeticNetwork(**settings).double()


def state(n_batch: int = 3, n: int = 5, dim: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n_batch, n, dim, generator=generator, dtype=torch.float64).unbind(0)


def run(network: MimeticNetwork, r: torch.Tensor, v: torch.Tensor):
    z, context = network.open(r, v)
    for layer, step in enumerate(network.steps()):
        here = network.begin_layer(layer, z, context)
        z = runge_kutta_4(lambda y, n=layer, c=here: network.rate(n, y, c), z, step)
    return network.close(z, context)


@pytest.mark.parametrize("trained", [False, True])
def test_k_is_orthonormal_to_rounding_whatever_the_parameters(trained):
    generator = torch.Generator().manual_seed(0)
    linear = semi_orthogonal(20, 6, generator).double()  # drawn in float32
    start = linear.weight.detach()
    (free,) = linear.parameters()
    torch.testing.assert_close(start, free.detach(), rtol=0, atol=1e-6)
    if trained:
        with torch.no_grad():
            free.mul_(0.9).add_(0.3 * torch.randn(20, 6, generator=generator))
        assert (linear.weight - start).abs().max() > 0.1
    k = linear.weight
    torch.testing.assert_close(k.T @ k, torch.eye(6).double(), rtol=0, atol=1e-13)
    assert gradcheck(linear.parametrizations.weight[0], (free,))


def test_close_undoes_open_and_lower_undoes_lift():
    network = small_network(position_scale=2.5, velocity_scale=7.0)
    r, v = state()
    z, context = network.open(r, v)
    for got, expected in zip(network.close(z, context), (r, v), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for dv in (v, None):
        dr_back, dv_back = network.lower(network.lift(r, dv, context), context)
        torch.testing.assert_close(dr_back, r, rtol=0, atol=1e-12)
        expected = torch.zeros_like(v) if dv is None else v
        torch.testing.assert_close(dv_back, expected, rtol=0, atol=1e-12)
    assert network.lift(r, None, context).shape == z.shape


@pytest.mark.parametrize("duplicate", [True, False])
def test_block_equals_loops_over_samples_and_edges(duplicate):
    edges = [(0, 1), (2, 1), (2, 3), (0, 4)]  # a tree with mixed directions
    network = small_network(edges=edges, duplicate=duplicate, position_scale=1.7)
    r, v = state()
    z, context = network.open(r, v)
    block = network.blocks[1]
    got = network.rate(1, z, network.begin_layer(1, z, context))
    expected = torch.zeros_like(z)
    second = block.first if block.second is None else block.second
    assert (block.second is None) == duplicate
    for b in range(len(z)):
        for i, j in edges:
            distance = (r[b, j] - r[b, i]).norm() / 1.7
            attributes = torch.cat([network.types[i], network.types[j], distance[None]])
            w = torch.nn.functional.silu(block.edge(attributes))
            g, a = w * (z[b, j] - z[b, i]), w * (z[b, j] + z[b, i]) / 2
            h = block.first(torch.cat([g, a, g * a, g**2, a**2]).tanh())
            h = h - h.mean()
            h = h / (h.square().sum() + 1e-3).sqrt()
            h = second(h.tanh()).tanh()
            chunk = [w * part for part in h.split(z.shape[-1])]
            average = (chunk[1] + chunk[2] + chunk[3] + chunk[4]) / 2
            expected[b, i] += chunk[0] + average
            expected[b, j] += -chunk[0] + average
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("duplicate", [True, False])
@pytest.mark.parametrize("size", [PAPER, SMALL])
def test_number_of_parameters(size, duplicate):
    network = MimeticNetwork(n_nodes=5, edges=CHAIN, duplicate=duplicate, **size)
    c, n_layers = size["latent"], size["layers"]
    matrices = (1 if duplicate else 2) * (5 * c) ** 2
    expected = n_layers * (matrices + (2 * 8 + 1) * c + c + 1) + 5 * 8 + 4 * c
    assert sum(p.numel() for p in network.parameters()) == expected
    if size is PAPER:
        assert expected == pytest.approx(2.9e6 if duplicate else 5.8e6, rel=0.01)


def test_every_parameter_is_used():
    network = small_network(duplicate=False, steps=StepSizes(2, start=0.05))
    r, v = run(network, *state())
    (r.square().sum() + v.square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_are_those_of_finite_differences():
    network = small_network(steps=StepSizes(2, start=0.1))
    r, v = (x.requires_grad_() for x in state(n_batch=2))
    assert gradcheck(lambda r, v: run(network, r, v), (r, v))
    weight = network.blocks[0].first.weight
    gradient = torch.autograd.grad(run(network, r, v)[0].sum(), weight)[0]
    with torch.no_grad():
        for row, column in ((0, 0), (7, 3), (29, 29)):
            sums = []
            for change in (1e-5, -2e-5):
                weight[row, column] += change
                sums.append(run(network, r, v)[0].sum())
            weight[row, column] += 1e-5
            assert (sums[0] - sums[1]) / 2e-5 == pytest.approx(
                gradient[row, column].item(), rel=1e-4, abs=1e-9
            )


def test_output_starts_at_the_input():
    r, v = state()
    r_out, v_out = run(small_network(), r, v)
    assert 0 < (r_out - r).abs().max() < 0.01
    assert 0 < (v_out - v).abs().max() < 0.01


def test_samples_do_not_see_each_other():
    network = small_network(steps=StepSizes(2, start=0.1))
    r, v = state()
    together, alone = run(network, r, v), run(network, r[1:2], v[1:2])
    torch.testing.assert_close(together[0][1:2], alone[0], rtol=1e-12, atol=1e-13)


def test_renamed_nodes_give_renamed_outputs():
    network = small_network(steps=StepSizes(2, start=0.1))
    renamed_to = torch.tensor([3, 0, 4, 1, 2])
    other = small_network(
        edges=[(int(renamed_to[i]), int(renamed_to[j])) for i, j in reversed(CHAIN)],
        steps=StepSizes(2, start=0.1),
    )
    with torch.no_grad():
        other.types[renamed_to] = network.types.clone()
    r, v = state()
    r_new, v_new = torch.empty_like(r), torch.empty_like(v)
    r_new[:, renamed_to], v_new[:, renamed_to] = r, v
    expected, got = run(network, r, v), run(other, r_new, v_new)
    torch.testing.assert_close(got[0][:, renamed_to], expected[0], rtol=1e-11, atol=1e-12)
    # It is no equivariant network: the nodes' types tell them apart.
    assert (run(network, r_new, v_new)[0][:, renamed_to] - expected[0]).abs().max() > 1e-6


def test_the_seed_alone_decides_the_weights():
    a, b, c = small_network(seed=1), small_network(seed=1), small_network(seed=2)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.types, c.types)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(small_network(seed=generator).types, a.types)


def test_weights_are_saved_and_loaded():
    a, b = small_network(seed=1), small_network(seed=2)
    b.load_state_dict(a.state_dict())
    r, v = state()
    assert torch.equal(run(a, r, v)[0], run(b, r, v)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": [(0, 5)]}, "edges must join nodes 0..4"),
        ({"edges": []}, "edges must join"),
        ({"edges": [(1, 1)]}, "joins a node to itself"),
        ({"latent": 3}, "at least 4 channels"),
        ({"layers": 0}, "at least one layer"),
        ({"position_scale": 0.0}, "above zero"),
        ({"steps": StepSizes(3)}, "3 steps for 2 layers"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        small_network(**options)
