"""The integrated family against mpmath: values, three derivatives, extremes, transforms."""

import functools
import math
import pickle

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcase import activations as A
from dcase.activations import ACTIVATIONS, ALIASES, activation_names, get_activation
from dcase.errors import OptionError

LAMBDA, ALPHA = (
    mp.mpf("1.0507009873554804934193349852946"),
    mp.mpf("1.6732632423543772848170429916717"),
)


def _sp(x):
    return mp.log1p(mp.exp(x)) if x < 0 else x + mp.log1p(mp.exp(-x))


def _sig(x):
    return 1 / (1 + mp.exp(-x)) if x > 0 else mp.exp(x) / (1 + mp.exp(x))


def _tanh_jet(x):
    t, c = mp.tanh(x), mp.sech(x) ** 2
    return [t, c, -2 * t * c]


def _sig_jet(x):
    s, c = _sig(x), _sig(-x)  # 1 - s without cancellation
    return [s, s * c, s * c * (c - s)]


def _silu_jet(x):
    s, d, dd = _sig_jet(x)
    ddd = d * (1 - 6 * d)
    return [x * s, s + x * d, 2 * d + x * dd, 3 * dd + x * ddd]


def _gelu_jet(x):
    n = mp.npdf(x)
    return [x * mp.ncdf(x), mp.ncdf(x) + x * n, (2 - x * x) * n, (x**3 - 4 * x) * n]


def _elu_jet(x, alpha=1):
    e = alpha * mp.exp(x)
    return [x, mp.mpf(1), mp.mpf(0)] if x > 0 else [alpha * mp.expm1(x), e, e]


def _dilog(x):
    return -mp.polylog(2, -mp.exp(x)).real - mp.pi**2 / 12


def _erf_jet(x):
    g = 2 / mp.sqrt(mp.pi) * mp.exp(-x * x)
    return [mp.erf(x), g, -2 * x * g]


def _step(x):
    return mp.mpf(1) if x > 0 else mp.mpf(0)


ZERO = mp.mpf(0)
# Phi, then Phi', Phi'', Phi''' : closed forms, independent of the code under test.
REFERENCE = {
    "irelu": lambda x: [x * x / 2 * _step(x), x * _step(x), _step(x), ZERO],
    "ileaky_relu": lambda x: (lambda a: [a * x * x / 2, a * x, a, ZERO])(
        _step(x) + mp.mpf(0.01) * (1 - _step(x))
    ),
    "ielu": lambda x: [x * x / 2 if x > 0 else mp.expm1(x) - x, *_elu_jet(x)],
    "iselu": lambda x: [
        LAMBDA * v for v in [x * x / 2 if x > 0 else ALPHA * (mp.expm1(x) - x), *_elu_jet(x, ALPHA)]
    ],
    "isilu": lambda x: [x * _sp(x) - _dilog(x), *_silu_jet(x)[:3]],
    "igelu": lambda x: [
        ((x * x - 1) * mp.ncdf(x) + x * mp.npdf(x)) / 2 + mp.mpf(1) / 4,
        *_gelu_jet(x)[:3],
    ],
    "isoftplus": lambda x: [_dilog(x), _sp(x), *_sig_jet(x)[:2]],
    "issp": lambda x: [_dilog(x) - x * mp.log(2), _sp(x) - mp.log(2), *_sig_jet(x)[:2]],
    "log_cosh": lambda x: [mp.log(mp.cosh(x)), *_tanh_jet(x)],
    "iclipped_relu": lambda x: (
        [x - mp.mpf(1) / 2, mp.mpf(1), ZERO, ZERO] if x > 1 else REFERENCE["irelu"](x)
    ),
    "ierf": lambda x: [x * mp.erf(x) + mp.expm1(-x * x) / mp.sqrt(mp.pi), *_erf_jet(x)],
    "ssp": lambda x: [_sp(x) - mp.log(2), *_sig_jet(x)],
    "softplus": lambda x: [_sp(x), *_sig_jet(x)],
    "silu": _silu_jet,
    "gelu": _gelu_jet,
    "tanh": lambda x: [*_tanh_jet(x), (lambda t, c: c * (6 * t * t - 2))(*_tanh_jet(x)[:2])],
}
INTEGRATED = [n for n in ACTIVATIONS if n.startswith("i") or n == "log_cosh"]
SMOOTH = ["isilu", "igelu", "isoftplus", "issp", "log_cosh", "ierf", "ssp", "silu", "softplus"]
POINTS = sorted(
    [-60.0, -30.0, -20.5, -19.7, -12.0, 12.0, 19.7, 20.5, 39.0, 41.0, 60.0]
    + [s * v for s in (-1, 1) for v in (1e-6, 1e-4, 1e-2, 0.3, 0.499, 0.501, 0.999, 1.001)]
    + [-7.3 + 0.37 * i for i in range(40)]
)


def test_every_integrated_activation_has_a_reference():
    assert set(INTEGRATED) <= set(REFERENCE)


def jet(f, x, order=3):
    """f, f', ..., as one would train on them: repeated create_graph."""
    x = x.detach().clone().requires_grad_()
    y = f(x)
    out = [y]
    for _ in range(order):
        if y.requires_grad:
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True)
        else:
            y = None
        y = torch.zeros_like(x) if y is None else y
        out.append(y)
    return [t.detach() for t in out]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", REFERENCE)
def test_values_and_derivatives_against_mpmath(name, dtype):
    x = torch.tensor(POINTS, dtype=dtype)
    got = jet(get_activation(name), x)
    assert all(g.dtype == dtype and g.shape == x.shape for g in got)
    with mp.workdps(40):
        # From the rounded argument: the argument's own rounding is not the activation's.
        want = [REFERENCE[name](mp.mpf(v)) for v in x.double().tolist()]
    rel, floor = (2e-13, 2e-15) if dtype == torch.float64 else (1e-6, 1e-6)
    # Full relative accuracy of the integrals themselves, down to x = 1e-6.
    floor_value = 0.0 if name in INTEGRATED else floor
    for order in range(4):
        for i, v in enumerate(POINTS):
            exact = float(want[i][order])
            # Derivatives: relative to the derivative or to a scale of 1 (they cross zero).
            tol = rel * abs(exact) + (floor_value if order == 0 else floor)
            assert abs(float(got[order][i]) - exact) <= tol, (order, v, float(got[order][i]), exact)


@pytest.mark.parametrize("name", INTEGRATED)
def test_derivative_is_the_base_activation(name):
    module = get_activation(name)
    x = torch.linspace(-6, 6, 301, dtype=torch.float64)
    assert torch.equal(jet(module, x, 1)[1], get_activation(module.base)(x))
    assert float(module(torch.zeros((), dtype=torch.float64))) == 0.0


@pytest.mark.parametrize("name", activation_names())
def test_gradcheck(name):
    g = torch.Generator().manual_seed(0)
    x = 3.0 * torch.randn(9, generator=g, dtype=torch.float64)
    x[x.abs() < 0.05] += 0.2  # away from kinks
    x.requires_grad_()
    module = get_activation(name)
    assert torch.autograd.gradcheck(module, x, check_forward_ad=True)
    if name not in ("relu", "leaky_relu", "clipped_relu"):
        assert torch.autograd.gradgradcheck(module, x)


@pytest.mark.parametrize("name", SMOOTH)
def test_third_derivative_by_gradcheck(name):
    x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    module = get_activation(name)

    def second(x):
        (d,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        (d,) = torch.autograd.grad(d.sum(), x, create_graph=True)
        return d

    assert torch.autograd.gradcheck(second, x)


EXTREME = [0.0, -0.0, 1e-38, 1e-30, 1e-8, 19.99, 20.01, 39.99, 40.01, 56.92, 88.7, 88.8, 103.9]
EXTREME += [104.1, 300.01, 745.2, 1e3, 1e4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", activation_names())
def test_extreme_inputs_are_finite_to_third_order(name, dtype):
    x = torch.tensor(EXTREME + [-v for v in EXTREME], dtype=dtype)
    for order, t in enumerate(jet(get_activation(name), x)):
        assert torch.isfinite(t).all(), (order, x[~torch.isfinite(t)])


def test_seed_overflow_is_in_the_naive_formula_and_not_here():
    """Seed report, sec. 4.3, table 5: 300.01 in interaction 2 made exp overflow, then NaN."""

    def naive(x):
        return torch.log(0.5 * torch.exp(x) + 0.5)

    x = torch.tensor([8.78, 56.92, 88.73, 300.01])
    value, first = jet(naive, x, 1)
    assert torch.isfinite(value[:2]).all()
    assert torch.isinf(value[2:]).all()
    assert torch.isnan(first[2:]).all()

    value, first, second, third = jet(A.ssp, x)
    torch.testing.assert_close(value, (x.double() - math.log(2)).float(), rtol=3e-5, atol=0.0)
    assert torch.equal(first[1:], torch.ones(3))
    assert torch.isfinite(second).all()
    assert torch.isfinite(third).all()

    # The same through a network: four growing layers, as in the report's table.
    layers = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(8, 8), A.SSP())])
    with torch.no_grad():
        for m in layers:
            if isinstance(m, nn.Linear):
                m.weight.fill_(2.0)
                m.bias.fill_(0.5)
    y = layers(torch.ones(2, 8))
    assert float(y.detach().max()) > 1e4
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layers.parameters())


def test_softplus_has_no_threshold_error_in_float64():
    x = torch.tensor([20.0001, 25.0, 36.0], dtype=torch.float64)
    exact = x + torch.log1p(torch.exp(-x))
    assert float((F.softplus(x) - exact).abs().max()) > 1e-9  # torch's default threshold
    assert float((A.ssp(x) + math.log(2) - exact).abs().max()) < 1e-14
    assert float(jet(A.ssp, x, 2)[2].min()) > 0.0


@pytest.mark.parametrize("name", ["irelu", "ileaky_relu", "iclipped_relu"])
def test_kinks_at_exactly_zero(name):
    _, first, second, third = jet(get_activation(name), torch.zeros(3))
    assert torch.equal(first, torch.zeros(3))
    assert bool(((second >= 0) & (second <= 1)).all())
    assert torch.equal(third, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", activation_names())
def test_half_precision_keeps_dtype(name, dtype):
    module = get_activation(name)
    x = torch.linspace(-8, 8, 65).to(dtype)
    value, first, second = jet(module, x, 2)
    assert value.dtype == first.dtype == second.dtype == dtype
    want = module(x.double())
    eps = torch.finfo(dtype).eps
    assert float(((value.double() - want).abs() / (want.abs() + 1)).max()) < 4 * eps
    assert torch.isfinite(second).all()


@pytest.mark.parametrize(
    "name", [*SMOOTH, "irelu", "ileaky_relu", "ielu", "iselu", "iclipped_relu"]
)
def test_torch_func_transforms(name):
    func = torch.func
    f = get_activation(name)
    x = torch.linspace(-4, 4, 13, dtype=torch.float64) + 0.01
    _, d1, d2, d3 = jet(f, x)

    def along(g):
        return lambda x: func.jvp(g, (x,), (torch.ones_like(x),))[1]

    torch.testing.assert_close(along(f)(x), d1)
    torch.testing.assert_close(along(along(f))(x), d2)  # forward over forward: Taylor mode
    torch.testing.assert_close(along(along(along(f)))(x), d3)
    torch.testing.assert_close(torch.diagonal(func.jacrev(f)(x)), d1)
    grad = func.grad(f)
    torch.testing.assert_close(func.vmap(grad)(x), d1)
    torch.testing.assert_close(func.vmap(func.grad(grad))(x), d2)
    torch.testing.assert_close(along(func.vmap(grad))(x), d2)  # forward over reverse
    torch.testing.assert_close(func.vmap(f, in_dims=1, out_dims=1)(x.view(1, -1)), f(x).view(1, -1))
    hessian = func.hessian(lambda x: f(x).sum())(x)
    torch.testing.assert_close(torch.diagonal(hessian), d2)


@pytest.mark.parametrize("name", activation_names())
def test_composites_are_finite_at_extremes_and_agree(name):
    f, func = get_activation(name), torch.func
    x = torch.tensor([v for v in EXTREME if v] + [-v for v in EXTREME if v])
    x = torch.cat([x, torch.linspace(-9.9, 9.9, 100)])
    want = jet(f, x)
    g = f
    for order in range(4):
        got = g(x)
        assert torch.isfinite(got).all(), order
        torch.testing.assert_close(got, want[order], rtol=1e-5, atol=3e-5)
        g = functools.partial(lambda g, x: func.jvp(g, (x,), (torch.ones_like(x),))[1], g)


@pytest.mark.parametrize("name", SMOOTH)
def test_dual_numbers(name):
    f = get_activation(name)
    x = torch.linspace(-4, 4, 13, dtype=torch.float64, requires_grad=True)
    _, d1, d2, _ = jet(f, x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(f(dual)).tangent
        torch.testing.assert_close(tangent, d1)
        (second,) = torch.autograd.grad(tangent.sum(), x)
    torch.testing.assert_close(second, d2)


def test_mixed_graph_matches_when_weights_are_trained_on_forces():
    """Double backward through a layer, against central differences over the weights."""
    g = torch.Generator().manual_seed(1)
    w = torch.randn(5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 3, generator=g, dtype=torch.float64, requires_grad=True)

    def loss(w, f):
        (force,) = torch.autograd.grad(f(x @ w.T).sum(), x, create_graph=True)
        return force.square().sum()

    for name in [*INTEGRATED, "ssp", "silu"]:
        assert torch.autograd.gradcheck(functools.partial(loss, f=get_activation(name)), (w,))


def test_non_contiguous_empty_scalar_and_no_grad():
    x = torch.randn(6, 4)
    for name in activation_names():
        f = get_activation(name)
        torch.testing.assert_close(f(x.T), f(x).T)
        assert f(torch.empty(0, 3)).shape == (0, 3)
        assert f(torch.tensor(0.5)).shape == ()
        assert not f(x).requires_grad
        before = x.clone()
        f(x)
        assert torch.equal(before, x)  # nothing in place on the input


def test_parameters_of_the_family():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    leaky = get_activation("ileaky_relu", negative_slope=0.2)
    assert torch.equal(jet(leaky, x, 1)[1], F.leaky_relu(x, 0.2))
    clipped = get_activation("iclipped_relu", tau=2.0)
    assert torch.equal(jet(clipped, x, 1)[1], x.clamp(0, 2))
    assert float(clipped(torch.tensor(5.0))) == pytest.approx(2 * 5 - 2)
    elu = get_activation("ielu", alpha=0.5)
    assert torch.equal(jet(elu, x, 1)[1], F.elu(x, 0.5))
    assert "0.2" in repr(leaky)
    assert "tau=2" in repr(clipped)
    assert "alpha=0.5" in repr(elu)
    copy = pickle.loads(pickle.dumps(clipped))
    assert torch.equal(copy(x), clipped(x))


def test_registry():
    assert set(ALIASES.values()) <= set(ACTIVATIONS)
    assert not set(ALIASES) & set(ACTIVATIONS)
    assert type(get_activation("itanh")) is type(get_activation("log_cosh"))
    assert isinstance(get_activation("Shifted-Softplus"), A.SSP)
    assert isinstance(get_activation("SWISH"), type(get_activation("silu")))
    module = A.IReLU()
    assert get_activation(module) is module
    for base in (get_activation(n).base for n in INTEGRATED):
        assert base in ACTIVATIONS
    for name in activation_names():
        assert not list(get_activation(name).parameters())


def test_errors_are_one_clear_line():
    with pytest.raises(OptionError, match=r"did you mean 'irelu'.*choose from irelu") as info:
        get_activation("ireluu")
    assert "\n" not in str(info.value)
    with pytest.raises(OptionError, match="does not take these options: tau"):
        get_activation("irelu", tau=1.0)
    with pytest.raises(OptionError, match="tau must be"):
        get_activation("iclipped_relu", tau=0.0)
    with pytest.raises(OptionError, match="alpha must be"):
        get_activation("ielu", alpha=math.inf)
    with pytest.raises(OptionError, match="together"):
        get_activation(A.IReLU(), tau=1.0)


def test_silu_has_the_derivatives_of_torchs():
    # Its first two derivatives are written out for speed; the further ones follow from them.
    def orders(function, x):
        found = [function(x)]
        for _ in range(4):
            (slope,) = torch.autograd.grad(found[-1].sum(), x, create_graph=True)
            found.append(slope)
        return torch.stack(found).detach()

    x = torch.tensor([-900.0, -40.0, -2.4, -1.0, 0.0, 0.3, 2.0, 30.0, 900.0], dtype=torch.float64)
    x.requires_grad_(True)
    own = orders(get_activation("silu"), x)
    assert torch.allclose(own, orders(F.silu, x), rtol=1e-13, atol=1e-15)
    assert own.isfinite().all()
    assert own[2].abs().max() > 0.4
    assert torch.autograd.gradgradcheck(get_activation("silu"), x[2:7].detach().requires_grad_())
    y = torch.func.grad(torch.func.grad(get_activation("silu")))(torch.tensor(0.0))
    assert float(y) == 0.5
