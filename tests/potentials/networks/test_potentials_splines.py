"""Splines and the pair convolution: values, smoothness and derivatives of every order."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dcase.potentials.networks.bases import CosineCutoff, GaussianBasis
from dcase.potentials.networks.pair_convolution import pair_convolution
from dcase.potentials.networks.splines import UniformSpline

CUTOFF = 5.0


def _f(d):
    """Smooth, without curvature at 0 and without slope at the cutoff, as a filter is."""
    return torch.sin(2.5 * d) * 0.25 * (1 + torch.cos(math.pi * d / CUTOFF)) ** 2


def _spline(n, values=None):
    spline = UniformSpline(CUTOFF, n)
    at_knots = _f(spline.knots) if values is None else values
    return spline, spline.coefficients(at_knots.reshape(len(spline.knots), -1))


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _rand(*shape, seed=0):
    return torch.rand(*shape, generator=_generator(seed), dtype=torch.float64)


def test_potentials_spline_interpolates_the_knots():
    values = _rand(31, 4)
    spline, c = _spline(30, values)
    found = spline(c, spline.locate(spline.knots))
    torch.testing.assert_close(found, values, rtol=0, atol=1e-13)


def test_potentials_spline_error_falls_with_the_fourth_power():
    d = CUTOFF * _rand(2000)
    errors = []
    for n in (40, 80, 160):
        spline, c = _spline(n)
        # sin(2.5 d) has no curvature at 0 but the envelope has: stay away from that end.
        away = d[d > 1.0]
        errors.append(float((spline(c, spline.locate(away))[:, 0] - _f(away)).abs().max()))
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(16.0, rel=0.15)


def test_potentials_spline_is_twice_continuously_differentiable():
    values = _rand(21, 1)
    spline, c = _spline(20, values)
    eps = 1e-9
    jumps = []
    for side in (-eps, eps):
        d = (spline.knots[1:-1] + side).requires_grad_(True)
        y = spline(c, spline.locate(d)).sum()
        derivatives = [spline(c, spline.locate(d))[:, 0].detach()]
        for _ in range(3):
            (slope,) = torch.autograd.grad(y, d, create_graph=True)
            derivatives.append(slope.detach())
            y = slope.sum()
        jumps.append(derivatives)
    below, above = jumps
    size = [float(x.abs().max()) for x in above]
    for order in range(3):
        assert float((above[order] - below[order]).abs().max()) < 1e-6 * size[order], order
    # A cubic spline's third derivative does jump: the test can see a jump.
    assert float((above[3] - below[3]).abs().max()) > 0.1 * size[3]


def test_potentials_spline_end_conditions_and_beyond():
    envelope = CosineCutoff(CUTOFF)
    spline = UniformSpline(CUTOFF, 32)
    c = spline.coefficients((_rand(33, 3) + 1) * envelope(spline.knots)[:, None])
    d = torch.tensor(
        [0.0, CUTOFF, CUTOFF + 1e-9, 6.0, 60.0], dtype=torch.float64, requires_grad=True
    )
    y = spline(c, spline.locate(d))
    (slope,) = torch.autograd.grad(y.sum(), d, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), d)
    assert y[0].abs().max() > 0.5  # control
    assert y[1:].abs().max() < 1e-14  # zero, but for the rounding of the linear solve
    assert slope[1:].abs().max() < 1e-13
    assert curvature[0].abs() < 1e-10


@pytest.mark.parametrize("wrt", ["coefficients", "distances", "both"])
def test_potentials_spline_derivatives(wrt):
    spline, _ = _spline(6)
    c = _rand(9, 2).requires_grad_(wrt != "distances")
    # Away from the knots, where the third derivative (in the second-order check) jumps.
    d = ((torch.arange(5) + 0.2 + 0.6 * _rand(5, seed=1)) * spline.spacing).double()
    d = d.detach().requires_grad_(wrt != "coefficients")

    def evaluate(c, d):
        return spline(c, spline.locate(d))

    assert torch.autograd.gradcheck(evaluate, (c, d))
    weights = torch.ones(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(evaluate, (c, d), (weights,))


def test_potentials_spline_third_derivatives():
    # d/dc of the loss of a force that is d/dx: what training needs, one order beyond.
    spline, _ = _spline(6)
    c = _rand(9, 2).requires_grad_(True)
    d = (torch.arange(4).double() + 0.4) * spline.spacing

    def force(c, d):
        d = d.detach().requires_grad_(True)
        y = spline(c, spline.locate(d)).pow(3).sum()
        return torch.autograd.grad(y, d, create_graph=True)[0]

    assert torch.autograd.gradcheck(lambda c: force(c, d), (c,))
    assert torch.autograd.gradgradcheck(
        lambda c: force(c, d), (c,), (torch.ones(4, dtype=torch.float64, requires_grad=True),)
    )


def test_potentials_spline_stays_exact_in_float32_networks():
    spline = UniformSpline(CUTOFF, 64)
    knots, matrix = spline.knots.clone(), spline.to_coefficients.clone()
    spline.to(torch.float32).to(torch.float64)
    assert torch.equal(spline.knots, knots)
    assert torch.equal(spline.to_coefficients, matrix)
    basis = GaussianBasis(CUTOFF, 50)
    centres = basis.centres.clone()
    assert torch.equal(basis.half().double().centres, centres)


def _pairs(n_atoms=6, n_pairs=11, seed=0):
    pairs = torch.randint(n_atoms, (2, n_pairs), generator=_generator(seed))
    pairs[:, 0] = 2  # an atom and its own image
    pairs[:, 1] = pairs[:, 2]  # two images of one pair
    return pairs


def _naive(filters, x, pairs):
    out = torch.zeros_like(x)
    i, j = pairs
    out = out.index_add(0, i, filters * x[j])
    return out.index_add(0, j, filters * x[i])


def test_potentials_convolution_equals_gather_and_scatter():
    pairs, filters, x = _pairs(), _rand(11, 5), _rand(6, 5, seed=1)
    filters.requires_grad_(True), x.requires_grad_(True)
    results = []
    for convolve in (pair_convolution, _naive):
        y = convolve(filters, x, pairs)
        first = torch.autograd.grad(y.pow(3).sum(), (filters, x), create_graph=True)
        second = torch.autograd.grad(
            sum(g.pow(2).sum() for g in first), (filters, x), create_graph=True
        )
        third = torch.autograd.grad(sum(g.sin().sum() for g in second), (filters, x))
        results.append((y, *first, *second, *third))
    for fast, slow in zip(*results, strict=True):
        assert (fast - slow).abs().max() <= 1e-11 * slow.abs().max()
        assert slow.abs().max() > 0.1


@pytest.mark.parametrize("wrt", [(True, True), (True, False), (False, True)])
def test_potentials_convolution_derivatives(wrt):
    pairs = _pairs()
    filters = _rand(11, 2).requires_grad_(wrt[0])
    x = _rand(6, 2, seed=1).requires_grad_(wrt[1])

    def convolve(filters, x):
        return pair_convolution(filters, x, pairs)

    assert torch.autograd.gradcheck(convolve, (filters, x))
    ones = torch.ones(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(convolve, (filters, x), (ones,))


def test_potentials_convolution_of_no_pairs_is_zero():
    x = _rand(3, 4).requires_grad_(True)
    filters = torch.zeros(0, 4, dtype=torch.float64, requires_grad=True)
    y = pair_convolution(filters, x, torch.zeros(2, 0, dtype=torch.int64))
    assert torch.equal(y, torch.zeros_like(x))
    gradients = torch.autograd.grad(y.sum(), (filters, x))
    assert gradients[0].shape == (0, 4)
    assert not gradients[1].any()


def test_potentials_cosine_cutoff_vanishes_with_its_slope():
    cutoff = CosineCutoff(CUTOFF)
    d = torch.tensor([0.0, 2.5, CUTOFF - 1e-7, CUTOFF, 7.0], dtype=torch.float64)
    d.requires_grad_(True)
    y = cutoff(d)
    (slope,) = torch.autograd.grad(y.sum(), d)
    y = y.detach()
    assert y[:2].tolist() == pytest.approx([1.0, 0.5])
    assert abs(float(slope[1])) == pytest.approx(math.pi / (2 * CUTOFF))
    assert y[2:].tolist() == pytest.approx([0.0] * 3, abs=1e-14)
    assert slope[2:].abs().max() < 1e-7
    assert (float(y[4]), float(slope[4])) == (0.0, 0.0)


def test_potentials_gaussians_are_the_published_ones():
    basis = GaussianBasis(6.0, 25)
    d = 6 * _rand(9)
    expected = torch.exp(-0.5 * ((d[:, None] - torch.arange(25) * 0.25) / 0.25) ** 2)
    torch.testing.assert_close(basis(d), expected.double(), rtol=1e-12, atol=1e-15)
    single = basis(d, torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected.double(), rtol=0, atol=3e-7)
