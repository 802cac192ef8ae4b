"""The integrals as composites of torch operations, for forward mode and ``torch.func``.

The same functions out of operations that any autodiff mode can take apart, to any order and without
overflow in branches that are not selected.  Near 0 some have absolute, not relative, accuracy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dcase.activations.series import (
    DILOG,
    INV_SQRT2,
    INV_SQRT_2PI,
    INV_SQRT_PI,
    LN2,
    SELU_ALPHA,
    SELU_SCALE,
    THRESHOLD,
)


def composite_irelu(x: Tensor) -> Tensor:
    """``irelu``."""
    r = torch.relu(x)
    return 0.5 * r * r


def composite_ileaky(x: Tensor, slope: float) -> Tensor:
    """``ileaky_relu``."""
    return 0.5 * x * F.leaky_relu(x, slope)


def composite_ielu(x: Tensor, alpha: float) -> Tensor:
    """``ielu``."""
    negative = -torch.relu(-x)
    return composite_irelu(x) + alpha * (torch.expm1(negative) - negative)


def composite_iselu(x: Tensor) -> Tensor:
    """``iselu``."""
    return SELU_SCALE * composite_ielu(x, SELU_ALPHA)


def composite_softplus(x: Tensor) -> Tensor:
    """``softplus``."""
    return F.softplus(x, 1.0, THRESHOLD)


def composite_ssp(x: Tensor) -> Tensor:
    """``ssp``."""
    return composite_softplus(x) - LN2


def composite_isoftplus(x: Tensor) -> Tensor:
    """``isoftplus``."""
    # Two one-sided halves, each constant (and harmless) where the other one lives.
    zero = torch.zeros_like(x)
    above, below = torch.where(x > 0, x, zero), torch.where(x > 0, zero, x)
    series = []
    for side in (below, -above):
        u = composite_softplus(side)
        square = u * u
        tail = torch.full_like(u, DILOG[-1])
        for c in reversed(DILOG[:-1]):
            tail = tail * square + c
        series.append(u + square * (0.25 + u * tail))
    return series[0] - series[1] + 0.5 * above * above


def composite_issp(x: Tensor) -> Tensor:
    """``issp``."""
    return composite_isoftplus(x) - LN2 * x


def composite_isilu(x: Tensor) -> Tensor:
    """``isilu``."""
    return x * composite_softplus(x) - composite_isoftplus(x)


def composite_igelu(x: Tensor) -> Tensor:
    """``igelu``."""
    cdf = 0.5 * torch.erfc(x * -INV_SQRT2)
    pdf = INV_SQRT_2PI * torch.exp(-0.5 * x * x)
    return 0.5 * ((x - 1.0) * (x + 1.0) * cdf + x * pdf) + 0.25


def composite_log_cosh(x: Tensor) -> Tensor:
    """``log_cosh``."""
    return composite_softplus(2.0 * x) - x - LN2


def composite_iclipped(x: Tensor, tau: float) -> Tensor:
    """``iclipped_relu``."""
    c = torch.clamp(x, 0.0, tau)
    return c * (x - 0.5 * c)


def composite_ierf(x: Tensor) -> Tensor:
    """``ierf``."""
    return x * torch.erf(x) + INV_SQRT_PI * torch.expm1(-x * x)
