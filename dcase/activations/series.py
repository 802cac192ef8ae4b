"""Constants and series: what the closed forms need where they would lose digits."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

LN2 = math.log(2.0)
PI2_12 = math.pi**2 / 12.0
INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
INV_SQRT_PI = 1.0 / math.sqrt(math.pi)
INV_SQRT2 = math.sqrt(0.5)
# torch's softplus turns into the identity above a threshold.  Its default of 20 is wrong by 2e-9,
# which is rounding in float32 but seven digits in float64; at 40 the step is 4e-18.
THRESHOLD = 40.0
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


def _log_cosh_half_series(terms: int) -> list[Fraction]:
    """Coefficients c_n of ``ln cosh(x/2) = sum_{n>=1} c_n x^(2n)`` (radius of convergence pi).

    ``d/dx ln cosh(x/2) = t = tanh(x/2)/2`` obeys ``t' = 1/4 - t^2``: a recurrence for the odd
    coefficients of t.
    """
    t = [Fraction(1, 4)]  # t = sum t_k x^(2k+1)
    for k in range(1, terms):
        square = sum((t[i] * t[k - 1 - i] for i in range(k)), Fraction(0))
        t.append(-square / (2 * k + 1))
    return [t_k / (2 * k + 2) for k, t_k in enumerate(t)]


_LCH = _log_cosh_half_series(12)
# int ln cosh(x/2) = x^3 sum_k a_k x^(2k): the odd part of S(x) beyond x ln 2.
ISSP_ODD = [float(c / (2 * n + 3)) for n, c in enumerate(_LCH)]
# x ln cosh(x/2) minus that: the odd part of ISiLU.
ISILU_ODD = [float(c - c / (2 * n + 3)) for n, c in enumerate(_LCH)]
# Odd part of IGELU: n(0) sum_k (-1)^k x^(2k+3) / (2^k k! (2k+1) (2k+3)).
IGELU_ODD = [
    INV_SQRT_2PI * (-1) ** k / (2.0**k * math.factorial(k) * (2 * k + 1) * (2 * k + 3))
    for k in range(12)
]
# -Li2(-exp(-a)) = u + u^2/4 + u^3 * (series in u^2) with u = softplus(-a) in (0, ln 2]: the
# classical Bernoulli series of the dilogarithm, 1.4e-16 with seven terms.
DILOG = [
    1.0 / 36.0,
    -1.0 / 3600.0,
    1.0 / 211680.0,
    -1.0 / 10886400.0,
    1.0 / 526901760.0,
    -691.0 / 16999766784000.0,
    1.0 / 1120863744000.0,
]
# Below this |x| the closed forms lose digits by cancellation and the Taylor series is used.
SMALL = 0.5
# e^x - 1 - x = x^2 sum_k x^k / (k + 2)!
EXP_TAIL = [1.0 / math.factorial(k + 2) for k in range(16)]


def horner(z: Tensor, coefficients: list[float]) -> Tensor:
    """Return sum_k coefficients[k] z^k, shape of z."""
    result = torch.full_like(z, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result.mul_(z).add_(c)
    return result


def terms(x: Tensor, coefficients: list[float], double: int, single: int) -> list[float]:
    """As many coefficients as the dtype of x can resolve."""
    return coefficients[: double if x.dtype == torch.float64 else single]


def choose(condition: Tensor, this: Tensor, other: Tensor) -> Tensor:
    """``torch.where`` for finite scratch tensors, which it overwrites; several times as fast."""
    mask = condition.to(this.dtype)
    return this.mul_(mask).add_(other.mul_(1.0 - mask))


def blend(x: Tensor, odd: list[float], closed: Tensor, linear: float = 0.0) -> Tensor:
    """``linear x + x^2/4 + x^3 odd(x^2)`` for small |x|, ``closed`` (overwritten) elsewhere."""
    small = x.clamp(-SMALL, SMALL)
    square = small * small
    series = horner(square, terms(x, odd, 11, 4)).mul_(small).add_(0.25).mul_(square)
    if linear:
        series = series.add_(small, alpha=linear)
    return choose(x.abs() < SMALL, series, closed)


def softplus_integral(x: Tensor) -> Tensor:
    """S(x) = int_0^x softplus = -Li2(-e^x) - pi^2/12, few-ulp for |x| >= 1/2."""
    u = F.softplus(-x.abs(), 1.0, THRESHOLD)
    square = u * u
    dilog = horner(square, terms(x, DILOG, 7, 3)).mul_(u).add_(0.25).mul_(square).add_(u)
    dilog = dilog.sub_(PI2_12)
    positive = x.clamp(min=0.0)
    # -Li2(-e^-a) - pi^2/12 <= 0 is S for x < 0; for x > 0, S = x^2/2 minus it.
    return (0.5 * positive).mul_(positive).add_(torch.copysign(dilog, x))
