"""Variance propagation, drawing of weights, and LSUV."""

import itertools
import math

import pytest
import torch
from torch import nn

from dcase.activations import get_activation
from dcase.errors import OptionError, TrainingError
from dcase.initialization import (
    INIT_MODES,
    gain,
    init_linear_,
    lsuv_,
    residual_alpha,
    stable_variances,
    variance_map,
)

# facts/pinn-and-dae-peers.md, E.2: gain, slope, chi, curvature.
TABLE = {
    "irelu": (1.633, 2.00, 1.333, 1.333),
    "ielu": (1.419, 1.89, 1.30, 1.35),
    "isilu": (1.996, 2.16, 1.42, 1.51),
    "igelu": (1.832, 2.15, 1.43, 1.53),
    "isoftplus": (1.088, 1.43, 1.09, 0.35),
    "issp": (2.196, 2.08, 1.37, 1.42),
    "log_cosh": (1.741, 1.51, 1.20, 1.41),
    "ssp": (1.876, 1.09, 1.03, 0.16),
    "iclipped_relu": (2.170, 1.45, 1.22, 1.61),
    "ierf": (1.597, 1.46, 1.19, 1.45),
    "tanh": (1.593, 0.46, 1.18, 0.76),
    "silu": (1.677, 1.17, 1.07, None),
}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", TABLE)
def test_table_of_gains(name):
    g, s, chi, kappa = TABLE[name]
    m = variance_map(name)
    assert gain(name) == pytest.approx(g, abs=6e-4)
    assert m.slope == pytest.approx(s, abs=6e-3)
    assert m.chi == pytest.approx(chi, abs=6e-3)
    if kappa is not None:
        assert m.curvature == pytest.approx(kappa, abs=6e-3)
    assert m.q_next == pytest.approx(1.0)


def test_exact_gains():
    assert gain("irelu") == pytest.approx(math.sqrt(8 / 3), rel=1e-12)
    assert gain("irelu", q=4.0) == pytest.approx(math.sqrt(8 / 3) / 2, rel=1e-12)
    assert gain("irelu", centered=True) == pytest.approx(math.sqrt(16 / 5), rel=1e-12)
    assert gain("relu") == pytest.approx(math.sqrt(2), rel=1e-12)
    assert gain(None) == gain("identity") == pytest.approx(1.0, rel=1e-12)
    assert gain(nn.PReLU(init=0.0)) == pytest.approx(math.sqrt(2), rel=1e-6)
    # the clip of iclipped_relu falls inside a panel of the quadrature for odd tau
    tau = 0.7371
    z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    phi = get_activation("iclipped_relu", tau=tau)(z)
    pdf = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    power = float((phi.square() * pdf).sum() * (z[1] - z[0]))
    assert gain(get_activation("iclipped_relu", tau=tau)) == pytest.approx(power**-0.5, rel=1e-9)


def test_irelu_has_no_edge_of_chaos():
    # chi = (2/3) s at any fixed point with bias: a q^2 - q + sigma_b^2 = 0.
    a, sb2 = 3.0 / 8.0, 0.5
    q = (1 - math.sqrt(1 - 4 * a * sb2)) / (2 * a)
    m = variance_map("irelu", q, sigma_w2=1.0, sigma_b2=sb2)
    assert m.q_next == pytest.approx(q)
    assert m.chi == pytest.approx(2 / 3 * m.slope)
    assert m.chi < 2 / 3
    assert stable_variances("irelu") == pytest.approx((2 / 3, 3 / 4))
    for name, slope in (("irelu", 1.0), ("isilu", 0.8), ("log_cosh", 1.0)):
        sw2, sb2 = stable_variances(name, q=0.7, slope=slope)
        m = variance_map(name, 0.7, sigma_w2=sw2, sigma_b2=sb2)
        assert m.q_next == pytest.approx(0.7)
        assert m.slope == pytest.approx(slope)
    assert stable_variances("sigmoid") == pytest.approx((gain("sigmoid") ** 2, 0.0))


@pytest.mark.parametrize("mode", INIT_MODES)
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_init_linear(mode, distribution):
    linear = nn.Linear(400, 300)
    std = init_linear_(linear, "irelu", gen(), mode=mode, distribution=distribution, bias_std=0.5)
    want = {
        "variance_preserving": math.sqrt(8 / 3 / 400),
        "stable": math.sqrt(2 / 3 / 400),
        "centered": math.sqrt(16 / 5 / 400),
        "lecun": math.sqrt(1 / 400),
        "he": math.sqrt(2 / 400),
        "xavier": math.sqrt(2 / 700),
    }[mode]
    assert std == pytest.approx(want)
    assert float(linear.weight.detach().std()) == pytest.approx(want, rel=0.02)
    assert float(linear.bias.detach().std()) == pytest.approx(0.5, rel=0.15)
    if mode == "centered":
        assert float(linear.weight.detach().sum(1).abs().max()) < 1e-5
    first = linear.weight.clone()
    init_linear_(linear, "irelu", gen(), mode=mode, distribution=distribution)
    assert torch.equal(first, linear.weight)
    spread = float(linear.bias.detach().std())
    assert spread == pytest.approx(math.sqrt(0.75) if mode == "stable" else 0.0, rel=0.15)


def test_init_preserves_variance():
    linear = nn.Linear(2000, 500, bias=False)
    z = torch.randn(400, 2000, generator=gen(1))
    for name in ("irelu", "isilu", "ssp"):
        for mode in ("variance_preserving", "centered"):
            init_linear_(linear, name, gen(2), mode=mode)
            y = linear(get_activation(name)(z)).detach().double()
            assert float(y.square().mean()) == pytest.approx(1.0, rel=0.05)


def test_options_are_checked():
    linear = nn.Linear(3, 2)
    for kwargs in ({"mode": "kaiming"}, {"distribution": "cauchy"}, {"bias_std": -1.0}):
        with pytest.raises(OptionError):
            init_linear_(linear, "irelu", gen(), **kwargs)
    with pytest.raises(OptionError, match="two inputs"):
        init_linear_(nn.Linear(1, 2), "irelu", gen(), mode="centered")
    with pytest.raises(OptionError, match="positive"):
        gain("irelu", q=0.0)
    with pytest.raises(OptionError, match="slope"):
        stable_variances("irelu", slope=0.0)
    with pytest.raises(OptionError, match="no variance"):
        gain(nn.Threshold(100.0, 0.0))
    with pytest.raises(OptionError):
        residual_alpha(0)
    assert residual_alpha(8, 0.5) == 1 / 16


# ------------------------------------------------------------------------------------- LSUV


def mlp(depth=10, width=128, n_in=6, act="irelu", seed=0):
    """Torch's default initialisation, U(+-1/sqrt(fan_in)), from a generator."""
    layers = []
    g = gen(seed)
    for i in range(depth):
        linear = nn.Linear(n_in if i == 0 else width, width)
        bound = linear.in_features**-0.5
        with torch.no_grad():
            linear.weight.uniform_(-bound, bound, generator=g)
            linear.bias.uniform_(-bound, bound, generator=g)
        layers += [linear, get_activation(act)]
    return nn.Sequential(*layers)


def preactivation_stds(model, x):
    stds, handles = [], []
    for m in model:
        if isinstance(m, nn.Linear):
            handles.append(
                m.register_forward_hook(
                    lambda _m, _i, y: stds.append(float(y.detach().double().std()))
                )
            )
    model(x)
    for h in handles:
        h.remove()
    return stds


def input_gradients(model, x):
    """Norm over inputs of d(sum of outputs / sqrt(number of outputs)), one per sample."""
    x = x.clone().requires_grad_()
    y = model(x)
    (g,) = torch.autograd.grad(y.sum() / math.sqrt(y.shape[1]), x)
    return g.double().norm(dim=1)


def stable_mlp(seed=0, depth=10, width=128):
    model, g = mlp(depth, width), gen(seed)
    for i in range(depth):
        init_linear_(model[2 * i], "irelu" if i else None, g, mode="stable")
    return model


@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
def test_default_init_collapses_or_explodes_and_lsuv_does_not(scale):
    x = scale * torch.randn(256, 6, generator=gen(3))
    # What the default does: degree 2^10 in x, so that large inputs overflow, and the others end
    # on the biases alone, with dead input gradients.
    model = mlp()
    if scale == 100.0:
        assert not math.isfinite(preactivation_stds(model, x)[-1])
    else:
        assert float(input_gradients(model, x).max()) < 1e-6

    for model in (mlp(), stable_mlp()):
        report = lsuv_(model, lambda model=model: model(x), tol=0.01)
        stds = preactivation_stds(model, x)
        assert len(stds) == len(report.layers) == 10
        assert all(abs(s - 1) < 0.05 for s in stds)
        assert [entry.name for entry in report.layers] == [str(2 * i) for i in range(10)]
        assert all(entry.note == "" for entry in report.layers)
        assert all(entry.std_after == pytest.approx(1, abs=0.05) for entry in report.layers)
        assert report.runs <= 11
        gradients = input_gradients(model, x) * scale
        assert torch.isfinite(gradients).all()
    # With the stable biases the typical sample keeps a gradient too, and none dominates.
    low, median, high = gradients.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    assert low > 1e-4
    assert 5e-4 < median < 1e-1
    assert high < 1.0


def test_lsuv_alone_leaves_the_spread_among_samples():
    """Why mode "stable" exists: std is 1, but one sample in many carries it."""
    x = torch.randn(256, 6, generator=gen(3))
    model = mlp()
    lsuv_(model, lambda: model(x))
    gradients = input_gradients(model, x)
    assert float(gradients.median()) < 1e-6 * float(gradients.max())


def test_quadratic_map_doubles_a_perturbation_per_layer():
    width, depth = 1500, 6
    g = gen(5)
    layers = [nn.Linear(width, width, bias=False) for _ in range(depth)]
    for i, layer in enumerate(layers):
        init_linear_(layer, "irelu" if i else None, g)
    x = torch.randn(64, width, generator=g)
    act = get_activation("irelu")
    logs = []
    for factor in (1.0, 1.1):
        h, row = factor * x, []
        for layer in layers:
            h = layer(h)
            row.append(float(h.detach().double().square().mean().log()))
            h = act(h)
        logs.append(row)
    deviation = [b - a for a, b in zip(*logs, strict=True)]
    for before, after in itertools.pairwise(deviation):
        assert after / before == pytest.approx(variance_map("irelu").slope, rel=1e-3)


class Odd(nn.Module):
    """Called twice, tied, never called, zero, bias-dominated."""

    def __init__(self):
        super().__init__()
        self.b = nn.Linear(8, 8)
        self.a = nn.Linear(4, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.b.weight
        self.unused = nn.Linear(8, 8)
        self.zero = nn.Linear(8, 3)
        self.wide = nn.Linear(8, 8)
        self.pooled = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        with torch.no_grad():
            self.zero.weight.zero_()
            self.wide.bias.copy_(torch.linspace(-50, 50, 8))
            for p in (self.a.bias, self.b.bias):
                p.normal_(0.0, 0.3, generator=gen(1))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        h = torch.tanh(self.b(h))
        h = torch.tanh(self.b(h))
        h = torch.tanh(self.tied(h))
        return self.zero(h).sum() + self.wide(h).sum() + self.pooled(h).sum()


def test_lsuv_odd_layers():
    x = torch.randn(128, 4, generator=gen(0))
    model = Odd()
    bias = model.a.bias.clone()
    report = lsuv_(model, lambda: model(x))
    by = {entry.name: entry for entry in report.layers}
    assert list(by) == ["a", "b", "tied", "zero", "wide", "pooled", "unused"]
    assert torch.equal(model.a.bias, bias)
    assert by["a"].std_after == pytest.approx(1, abs=0.02)
    assert by["b"].calls == 2
    assert by["b"].std_after == pytest.approx(1, abs=0.021)
    assert "shares" in by["tied"].note
    assert "constant" in by["zero"].note
    assert "bias" in by["wide"].note
    assert "parametrised" in by["pooled"].note
    assert "never called" in by["unused"].note
    assert all(by[n].scale == 1 for n in ("tied", "zero", "wide", "pooled", "unused"))
    assert report.scales["a"] == by["a"].scale
    assert "never called" in str(report)
    assert report.to_dict()["layers"][0]["name"] == "a"


def test_lsuv_chooses_layers_and_removes_its_hooks():
    x = torch.randn(64, 6, generator=gen(0))
    model = mlp(3, 16)
    frozen = model[4].weight.clone()
    report = lsuv_(model, lambda: model(x), layers=["0", model[2]], target_std=2.0)
    assert [entry.name for entry in report.layers] == ["0", "2"]
    assert torch.equal(frozen, model[4].weight)
    assert preactivation_stds(model, x)[:2] == pytest.approx([2, 2], rel=0.03)

    def boom():
        model(x)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        lsuv_(model, boom)
    assert not any(m._forward_hooks for m in model.modules())


def test_lsuv_refuses_nonsense():
    model = mlp(2, 8)
    x = torch.full((4, 6), math.nan)
    with pytest.raises(TrainingError, match="inf or NaN"):
        lsuv_(model, lambda: model(x))
    with pytest.raises(OptionError, match="no layer 'nope'"):
        lsuv_(model, lambda: None, layers=["nope"])
    with pytest.raises(OptionError, match="no weight"):
        lsuv_(model, lambda: None, layers=["1"])
    with pytest.raises(OptionError, match="no linear layer"):
        lsuv_(nn.Tanh(), lambda: None)
    with pytest.raises(OptionError, match="target_std"):
        lsuv_(model, lambda: None, target_std=0.0)


def test_lsuv_works_through_forces():
    """Run() may differentiate: the hooks must not cut the graph or keep it."""
    model = mlp(4, 32)
    x = torch.randn(32, 6, generator=gen(0))

    def run():
        p = x.clone().requires_grad_()
        (force,) = torch.autograd.grad(model(p).sum(), p, create_graph=True)
        return force.square().sum()

    report = lsuv_(model, run)
    assert all(entry.std_after == pytest.approx(1, abs=0.02) for entry in report.layers)
    assert all(p.grad is None for p in model.parameters())


def test_lsuv_scale_is_of_all_rescalings_together():
    """A layer that feeds on itself takes several: their product is what the weight has grown by."""
    torch.manual_seed(0)
    layer = nn.Linear(20, 20)
    before = layer.weight.detach().clone()
    x = torch.randn(400, 20)
    report = lsuv_(layer, lambda: layer(torch.tanh(layer(x))), target_std=2.0, tol=1e-3)
    (entry,) = report.layers
    assert report.runs > 2
    torch.testing.assert_close(layer.weight.detach(), entry.scale * before, rtol=1e-5, atol=1e-7)


def test_lsuv_target_is_the_one_asked_for():
    torch.manual_seed(0)
    layer, x = nn.Linear(30, 30, bias=False), torch.randn(500, 30)
    lsuv_(layer, lambda: layer(x))
    assert layer(x).std().item() == pytest.approx(1.0, abs=0.02)  # from which the second starts
    lsuv_(layer, lambda: layer(x), target_std=3.0)
    assert layer(x).std().item() == pytest.approx(3.0, rel=0.02)
