"""The activations as functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dcase.activations.autodiff import integrate, wide
from dcase.activations.composites import (
    composite_iclipped,
    composite_ielu,
    composite_ierf,
    composite_igelu,
    composite_ileaky,
    composite_irelu,
    composite_iselu,
    composite_isilu,
    composite_isoftplus,
    composite_issp,
    composite_log_cosh,
    composite_softplus,
    composite_ssp,
)
from dcase.activations.series import (
    EXP_TAIL,
    IGELU_ODD,
    INV_SQRT2,
    INV_SQRT_2PI,
    INV_SQRT_PI,
    ISILU_ODD,
    ISSP_ODD,
    LN2,
    SELU_ALPHA,
    SELU_SCALE,
    SMALL,
    THRESHOLD,
    blend,
    choose,
    horner,
    softplus_integral,
    terms,
)


def _value_irelu(x: Tensor) -> Tensor:
    r = torch.relu(x)
    # r * (r / 2) rather than (r * r) / 2: the square alone would overflow float16 twice as early.
    return (0.5 * r).mul_(r)


def irelu(x: Tensor) -> Tensor:
    """Integrated ReLU ``0.5 max(x, 0)^2`` (DC paper, eq. 3).

    Its derivative is relu, its second the step, its third zero (the Dirac at 0 is lost, as ReLU
    loses its second).

    Args:
        x: any shape, floating dtype.

    Returns:
        Same shape and dtype.
    """
    return integrate(x, _value_irelu, torch.relu, composite_irelu)


def _value_ileaky(x: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(x, slope).mul_(0.5 * x)


def ileaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Integrated leaky ReLU ``0.5 x leaky(x)``; derivative ``leaky_relu(x, negative_slope)``."""
    return integrate(x, _value_ileaky, F.leaky_relu, composite_ileaky, negative_slope)


@wide
def _value_ielu(x: Tensor, alpha: float) -> Tensor:
    negative = x.clamp(max=0.0)
    r = torch.relu(x)
    exact = torch.expm1(negative).sub_(negative)
    # e^x - 1 - x = x^2 (1/2 + x/6 + ...): the difference cancels for small x.
    small = negative.clamp(min=-SMALL)
    series = horner(small, terms(x, EXP_TAIL, 14, 7)).mul_(small).mul_(small)
    exact = choose(negative > -SMALL, series, exact)
    return (0.5 * r).mul_(r).add_(exact, alpha=alpha)


def _elu(x: Tensor, alpha: float) -> Tensor:
    return F.elu(x, alpha)


def ielu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Integrated ELU: ``x^2/2`` for x > 0, ``alpha (e^x - 1 - x)`` below; derivative ``elu``."""
    return integrate(x, _value_ielu, _elu, composite_ielu, alpha)


@wide
def _value_iselu(x: Tensor) -> Tensor:
    return _value_ielu(x, SELU_ALPHA).mul_(SELU_SCALE)


def iselu(x: Tensor) -> Tensor:
    """Integrated SELU: lambda times the integrated ELU of alpha = 1.6733; derivative ``selu``."""
    return integrate(x, _value_iselu, F.selu, composite_iselu)


@wide
def _value_isilu(x: Tensor) -> Tensor:
    closed = F.softplus(x, 1.0, THRESHOLD).mul_(x).sub_(softplus_integral(x))
    return blend(x, ISILU_ODD, closed)


def isilu(x: Tensor) -> Tensor:
    """Integrated SiLU ``x softplus(x) - S(x)``; derivative ``silu``."""
    return integrate(x, _value_isilu, F.silu, composite_isilu)


@wide
def _value_igelu(x: Tensor) -> Tensor:
    cdf = torch.erfc(x * -INV_SQRT2).mul_(0.5)
    pdf = torch.exp(x * x * -0.5).mul_(INV_SQRT_2PI)
    # (x - 1)(x + 1) keeps the digits that x^2 - 1 loses near 1.
    closed = ((x - 1.0) * (x + 1.0)).mul_(cdf).add_(pdf.mul_(x)).mul_(0.5).add_(0.25)
    return blend(x, IGELU_ODD, closed)


def igelu(x: Tensor) -> Tensor:
    """Integrated GELU ``[(x^2-1) N(x) + x n(x)]/2 + 1/4``, N and n the normal law's cdf and pdf."""
    return integrate(x, _value_igelu, F.gelu, composite_igelu)


@wide
def _value_isoftplus(x: Tensor) -> Tensor:
    return blend(x, ISSP_ODD, softplus_integral(x), linear=LN2)


def isoftplus(x: Tensor) -> Tensor:
    """Integrated softplus ``S(x) = -Li2(-e^x) - pi^2/12``; derivative ``softplus``."""
    return integrate(x, _value_isoftplus, softplus, composite_isoftplus)


@wide
def _value_issp(x: Tensor) -> Tensor:
    return blend(x, ISSP_ODD, softplus_integral(x).sub_(x, alpha=LN2))


def issp(x: Tensor) -> Tensor:
    """Integrated shifted softplus ``S(x) - x ln 2``; derivative ``ssp``."""
    return integrate(x, _value_issp, ssp, composite_issp)


@wide
def _value_log_cosh(x: Tensor) -> Tensor:
    a = x.abs()
    capped = a.clamp(max=THRESHOLD)
    # cosh a = 1 + e^2 / (2 + 2e), e = expm1(a): no cancellation anywhere.  Above the cap, cosh is
    # e^a / 2 to rounding and the logarithm goes on as a straight line.
    e = torch.expm1(capped)
    rise = (a - capped).clamp_(min=0.0)
    return (e * e).div_(e.add_(1.0).mul_(2.0)).log1p_().add_(rise)


def log_cosh(x: Tensor) -> Tensor:
    """Integrated tanh ``ln cosh x``; derivative ``tanh``."""
    return integrate(x, _value_log_cosh, torch.tanh, composite_log_cosh)


def _value_iclipped(x: Tensor, tau: float) -> Tensor:
    c = x.clamp(0.0, tau)
    # c (x - c/2): x^2/2 inside, tau x - tau^2/2 above, 0 below (c = 0).
    return (x - 0.5 * c).mul_(c)


def clipped_relu(x: Tensor, tau: float = 1.0) -> Tensor:
    """``min(max(x, 0), tau)``."""
    return torch.clamp(x, 0.0, tau)


def iclipped_relu(x: Tensor, tau: float = 1.0) -> Tensor:
    """Integrated clipped ReLU: ``0``, ``x^2/2``, ``tau x - tau^2/2``; derivative clamp(x, 0, tau).

    Grows linearly, so that it does not square its way to infinity in deep stacks as IReLU can.
    """
    return integrate(x, _value_iclipped, clipped_relu, composite_iclipped, tau)


@wide
def _value_ierf(x: Tensor) -> Tensor:
    return torch.erf(x).mul_(x).add_(torch.expm1(-x * x), alpha=INV_SQRT_PI)


def ierf(x: Tensor) -> Tensor:
    """Integrated error function ``x erf(x) + (e^(-x^2) - 1)/sqrt(pi)``; derivative ``erf``."""
    return integrate(x, _value_ierf, torch.erf, composite_ierf)


def _value_softplus(x: Tensor) -> Tensor:
    return F.softplus(x, 1.0, THRESHOLD)


def softplus(x: Tensor) -> Tensor:
    """``ln(1 + e^x)``, overflow-free and with exact derivatives of every order."""
    return integrate(x, _value_softplus, torch.sigmoid, composite_softplus)


def _value_ssp(x: Tensor) -> Tensor:
    return F.softplus(x, 1.0, THRESHOLD).sub_(LN2)


def ssp(x: Tensor) -> Tensor:
    """Shifted softplus ``ln(e^x / 2 + 1/2) = softplus(x) - ln 2`` (SchNet); derivative sigmoid.

    Args:
        x: any shape, floating dtype.

    Returns:
        Same shape and dtype; finite for every finite x.
    """
    return integrate(x, _value_ssp, torch.sigmoid, composite_ssp)
