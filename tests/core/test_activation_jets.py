"""Closed forms of the derivatives of activations against nested autograd in float64."""

import pytest
import torch
from torch import nn

from dcase.activations import ACTIVATIONS, get_activation
from dcase.activations.jets import activation_jet, closed_form
from dcase.errors import OptionError

# Options that are not the defaults, so that a rule which ignores them fails.
OPTIONS = {
    "ileaky_relu": {"negative_slope": 0.2},
    "leaky_relu": {"negative_slope": 0.2},
    "ielu": {"alpha": 0.7},
    "elu": {"alpha": 0.7},
    "clipped_relu": {"tau": 1.7},
    "iclipped_relu": {"tau": 1.7},
}


def points():
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(60, generator=generator, dtype=torch.float64) * 2.0
    return torch.cat([spread, torch.tensor([-30.0, -8.0, 8.0, 30.0, 1e-3], dtype=torch.float64)])


def by_autograd(module, z, order):
    x = z.clone().requires_grad_()
    out = [module(x)]
    for _ in range(order):
        grad = None
        if out[-1].requires_grad:
            (grad,) = torch.autograd.grad(out[-1].sum(), x, create_graph=True, allow_unused=True)
        out.append(torch.zeros_like(z) if grad is None else grad)
    return [d.detach() for d in out]


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_closed_forms_are_the_derivatives(name, order):
    module = get_activation(name, **OPTIONS.get(name, {}))
    assert closed_form(module) is not None
    z = points()
    expected = by_autograd(module, z, order)
    found = activation_jet(module, z, order)
    assert len(found) == order + 1
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == z.shape
        assert a.dtype == z.dtype
        torch.testing.assert_close(a, b, rtol=1e-11, atol=2e-14, msg=f"{name}, derivative {k}")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_derivative_is_differentiable_into_the_next(name):
    module = get_activation(name, **OPTIONS.get(name, {}))
    z = points().requires_grad_()
    out = activation_jet(module, z, 3)
    for k in range(3):
        slope = torch.zeros_like(z)
        if out[k].requires_grad:
            (slope,) = torch.autograd.grad(out[k].sum(), z, retain_graph=True)
        torch.testing.assert_close(slope, out[k + 1].detach(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float32_stays_finite_and_float32(name):
    z = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4])
    for d in activation_jet(get_activation(name), z, 3):
        assert d.dtype == torch.float32
        assert torch.isfinite(d).all()


class Cubic(nn.Module):
    """A user's activation, with a parameter."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x):
        return self.a * x**3


def test_a_users_activation_goes_by_autograd():
    module, z = Cubic(), points().requires_grad_()
    value, first, second, third = activation_jet(module, z, 3)
    torch.testing.assert_close(value, 0.3 * z**3)
    torch.testing.assert_close(first, 0.9 * z**2)
    torch.testing.assert_close(second, 1.8 * z)
    torch.testing.assert_close(third, torch.full_like(z, 1.8))
    (to_a,) = torch.autograd.grad(second.sum(), module.a, retain_graph=True)
    torch.testing.assert_close(to_a, (6.0 * z).sum().detach())
    (to_z,) = torch.autograd.grad(first.sum(), z)
    torch.testing.assert_close(to_z, (1.8 * z).detach())
    with torch.no_grad():
        assert not any(d.requires_grad for d in activation_jet(module, z, 2))


def test_variants_of_known_modules_are_not_mistaken_for_them():
    class Shifted(nn.Tanh):
        def forward(self, input):
            return super().forward(input) + 1.0

    z = points()
    for module in (nn.GELU("tanh"), nn.Softplus(beta=2.0), Shifted()):
        for a, b in zip(activation_jet(module, z, 2), by_autograd(module, z, 2), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


def test_impossible_orders_are_refused():
    with pytest.raises(OptionError, match="not be negative"):
        activation_jet(nn.Tanh(), points(), -1)
    with pytest.raises(OptionError, match="order 3, not 4"):
        activation_jet(nn.Tanh(), points(), 4)
