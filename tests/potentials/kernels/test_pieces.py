"""Cubics between uneven knots: where the knots are, and how close the cubics come."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dcase.potentials.kernels.pieces import FIRST_INTERVALS, fit_pieces, sign_changes

LOW, HIGH = 0.3, 4.7
KINKS = np.array([0.7, 1.9, 1.9 + 3e-7, 3.3])


def bent(x):
    """Two functions whose curvatures jump at the kinks, and their slopes."""
    past = (x[:, None] - torch.from_numpy(KINKS)).clamp(min=0)
    value = (past**2 / 2).sum(dim=1) + torch.sin(3 * x)
    slope = past.sum(dim=1) + 3 * torch.cos(3 * x)
    other = torch.exp(-x) * past[:, 1] ** 2
    other_slope = torch.exp(-x) * (2 * past[:, 1] - past[:, 1] ** 2)
    return torch.stack([value, other], dim=1), torch.stack([slope, other_slope], dim=1)


def evaluate(pieces, x):
    at = np.clip(np.searchsorted(pieces.knots, x, side="right") - 1, 0, len(pieces) - 1)
    u = torch.from_numpy(x - pieces.knots[at])[:, None]
    a, b, c, d = pieces.coefficients[at].unbind(dim=1)
    return a + u * (b + u * (c + u * d)), b + u * (2 * c + u * 3 * d)


@pytest.mark.parametrize("error", [1e-4, 1e-6, 1e-8])
def test_values_and_slopes_are_as_close_as_asked_for(error):
    pieces = fit_pieces(bent, KINKS, LOW, HIGH, error)
    x = np.sort(np.random.default_rng(0).uniform(LOW, HIGH, 20_001))
    wanted = bent(torch.from_numpy(x))
    told = pieces.value_error, pieces.slope_error
    for found, right, worst in zip(evaluate(pieces, x), wanted, told, strict=True):
        off = float((found - right).abs().max() / right.abs().max())
        assert off <= 1.1 * error
        assert off <= 1.2 * worst <= 1.2 * error


def test_a_kink_costs_a_knot_where_it_is_known_and_many_where_it_is_not():
    def parabolas(x):
        past = (x[:, None] - torch.from_numpy(KINKS)).clamp(min=0)
        return past**2 / 2, past

    known = fit_pieces(parabolas, KINKS, LOW, HIGH, 1e-7)
    assert len(known) == FIRST_INTERVALS + len(KINKS)
    assert np.isin(KINKS, known.knots).all()
    assert np.all(np.diff(known.knots) > 0)
    assert (known.knots[0], known.knots[-1]) == (LOW, HIGH)
    unknown = fit_pieces(parabolas, np.empty(0), LOW, HIGH, 1e-7)
    assert len(unknown) > FIRST_INTERVALS + 10 * len(KINKS)
    assert unknown.slope_error <= 1e-7


def test_the_slope_is_the_derivative_and_nothing_jumps_at_a_knot():
    pieces = fit_pieces(bent, KINKS, LOW, HIGH, 1e-3)
    x = np.linspace(LOW, HIGH - 1e-6, 3001)
    step = 1e-6
    rise = (evaluate(pieces, x + step)[0] - evaluate(pieces, x - step)[0])[1:] / (2 * step)
    np.testing.assert_allclose(rise, evaluate(pieces, x)[1][1:], atol=2e-5)
    inner = pieces.knots[1:-1]
    for before, after in zip(
        evaluate(pieces, inner - 1e-13), evaluate(pieces, inner + 1e-13), strict=True
    ):
        np.testing.assert_allclose(before, after, atol=1e-9)


def test_a_slope_that_jumps_has_no_cubics():
    """As of a network with ReLU, wherever that is not at a knot."""

    def corner(x):
        return (x - 1.234).abs()[:, None], torch.sign(x - 1.234)[:, None]

    assert fit_pieces(corner, np.empty(0), LOW, HIGH, 1e-4) is None


def test_more_kinks_than_there_may_be_pieces():
    kinks = np.linspace(LOW, HIGH, 10_000)
    assert fit_pieces(bent, kinks, LOW, HIGH, 1e-4) is None


def test_a_cubic_is_itself_and_zero_is_zero():
    def cubic(x):
        x = x[:, None]
        return torch.cat([x**3 - x, 0 * x], 1), torch.cat([3 * x**2 - 1, 0 * x], 1)

    pieces = fit_pieces(cubic, np.empty(0), LOW, HIGH, 1e-12)
    assert len(pieces) == FIRST_INTERVALS
    nothing = fit_pieces(lambda x: (0 * x[:, None], 0 * x[:, None]), KINKS, LOW, HIGH, 1e-12)
    assert (nothing.value_error, nothing.slope_error) == (0.0, 0.0)


def test_bins_begin_in_the_interval_that_holds_their_left_end():
    pieces = fit_pieces(bent, KINKS, LOW, HIGH, 1e-5)
    begins, n = pieces.bins(), len(pieces)
    left = LOW + np.arange(n) * ((HIGH - LOW) / n)
    assert begins.dtype == np.int64
    assert (pieces.knots[begins] <= left + 1e-12).all()
    assert (left < pieces.knots[begins + 1]).all()


def test_sign_changes_are_zeros():
    weight = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    bias = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)

    def basis(d):
        return torch.stack([torch.sin(5 * d), torch.cos(5 * d)], dim=1)

    found = np.sort(sign_changes(basis, weight, bias, LOW, HIGH))
    turn, k = math.atan2(0.6, 0.8), np.arange(-20, 20)
    first = np.pi * k / 5  # sin 5d = 0
    arc = math.acos(-0.3)  # cos(5d - turn) = -0.3
    second = np.concatenate([(turn + sign * arc + 2 * np.pi * k) / 5 for sign in (1, -1)])
    wanted = np.concatenate([first, second])  # the third is positive
    wanted = np.sort(wanted[(wanted > LOW) & (wanted < HIGH)])
    np.testing.assert_allclose(found, wanted, atol=1e-13)
