"""The MLP: sizes, starts, variants."""

import math

import pytest
import torch

from dcase.errors import OptionError
from dcase.pinn.networks import INITIALIZATIONS, MLP

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n_in", "n_out", "count"), [(2, 1, 8361), (2, 3, 8443), (3, 2, 8442)])
def test_the_baseline_has_the_published_number_of_parameters(n_in, n_out, count):
    assert sum(p.numel() for p in MLP(n_in, n_out).parameters()) == count


def test_glorot_is_normal_with_zero_bias():
    model = MLP(2, 1, width=200, depth=3, generator=generator())
    inner = model.layers[1]
    std = math.sqrt(2 / 400)
    assert float(inner.weight.detach().std()) == pytest.approx(std, rel=0.02)
    # A normal law has 4.6 % beyond two standard deviations, a uniform one none.
    tail = float((inner.weight.detach().abs() > 2 * std).double().mean())
    assert tail == pytest.approx(0.0455, rel=0.1)
    assert all(float(layer.bias.detach().abs().max()) == 0 for layer in model.layers)


@pytest.mark.parametrize("init", INITIALIZATIONS)
def test_a_seed_gives_the_same_network_in_both_precisions(init):
    state = torch.get_rng_state()
    wide = MLP(2, 1, init=init, activation="irelu", generator=generator(3), dtype=F64)
    narrow = MLP(2, 1, init=init, activation="irelu", generator=generator(3))
    other = MLP(2, 1, init=init, activation="irelu", generator=generator(4))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched
    for a, b, c in zip(wide.parameters(), narrow.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.float(), b)
        assert not b.abs().max() or not torch.equal(b, c)


def spread(model, x):
    """Standard deviation of the pre-activations of each hidden layer."""
    out, h = [], x
    for layer in list(model.layers)[:-1]:
        z = layer(h)
        out.append(float(z.std()))
        h = model.activation(z)
    return out


@torch.no_grad()
def test_lsuv_gives_unit_pre_activations_where_glorot_collapses():
    x = torch.randn(500, 2, generator=generator(1), dtype=F64)
    glorot = MLP(2, 1, activation="irelu", generator=generator(2), dtype=F64)
    assert spread(glorot, x)[-1] < 1e-3
    model = MLP(2, 1, activation="irelu", init="lsuv", generator=generator(2), dtype=F64)
    report = model.scale_on(lambda: model(x))
    assert len(report.layers) == 6
    assert spread(model, x) == pytest.approx([1.0] * 6, rel=0.03)


@torch.no_grad()
def test_residual_blocks_change_the_variance_by_a_bounded_factor():
    x = torch.randn(500, 2, generator=generator(1), dtype=F64)
    model = MLP(2, 1, depth=12, residual=True, init="variance", dtype=F64)
    h = torch.tanh(model.layers[0](x))
    start = float(h.std())
    for layer in model.layers[1:12]:
        h = h + torch.tanh(layer(h)) / 12
    assert torch.allclose(model(x), model.layers[12](h))
    assert 0.8 * start < float(h.std()) < 4 * start


def test_batch_norm_is_between_map_and_activation():
    model = MLP(2, 1, depth=2, batch_norm=True, dtype=F64).train()
    x = torch.randn(50, 2, generator=generator(1), dtype=F64)
    h = x
    for layer in list(model.layers)[:-1]:
        z = layer(h)
        z = (z - z.mean(0)) / torch.sqrt(z.var(0, unbiased=False) + 1e-5)
        h = torch.tanh(z)
    torch.testing.assert_close(model(x), model.layers[-1](h))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width of the network"),
        ({"depth": 0}, "depth of the network"),
        ({"init": "best"}, "unknown init 'best'"),
        ({"activation": "tanhh"}, "did you mean 'tanh'"),
        ({"dtype": torch.float16}, "float32 or float64"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        MLP(2, 1, **options)
