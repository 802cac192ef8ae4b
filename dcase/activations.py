r"""Activations for networks that are trained on their own derivatives.

A network trained on forces or on a PDE residual is fitted through the *derivative* of its
activations.  The integrated family therefore uses

.. math:: \Phi(x) = \int_0^x \varphi(t)\,dt, \qquad \Phi' = \varphi,

with a familiar activation :math:`\varphi` (IReLU: Lo et al., "Derivative-constrained networks",
eq. 3), so that the derivative of the network looks like an ordinary network.

All of them are elementwise, keep shape and dtype, and can be differentiated three times or more,
by ``torch.autograd.grad(..., create_graph=True)`` and by ``torch.func`` (``jvp``, ``jacrev``,
``vmap`` and their nestings).  None of them forms ``exp`` of an unbounded argument, so that the
overflow of the textbook shifted softplus ``log(0.5 * exp(x) + 0.5)`` (inf from x = 88.7 in float32,
then NaN) cannot occur, and none of them differentiates through a ``where`` whose unselected branch
could be infinite.

Each integral exists twice: as an ``autograd.Function`` (fast kernel forward, backward calls the
base activation) for ordinary reverse mode, and as a composite of torch operations for everything
else; which one runs is decided per call and is of no concern to the caller.

========================  ======================================================  ==============
name                      Phi(x)                                                  Phi'(x)
========================  ======================================================  ==============
``irelu``                 max(x, 0)^2 / 2                                         relu
``ileaky_relu``           x leaky(x) / 2                                          leaky_relu
``ielu``                  x^2 / 2 (x > 0); alpha (expm1(x) - x)                   elu
``iselu``                 lambda times the above with SELU's alpha                selu
``isilu``                 x softplus(x) - S(x)                                    silu
``igelu``                 [(x^2 - 1) N(x) + x n(x)] / 2 + 1/4                     gelu (erf)
``isoftplus``             S(x) = int_0^x softplus                                 softplus
``issp``                  S(x) - x ln 2                                           ssp
``log_cosh`` (``itanh``)  ln cosh x                                               tanh
``iclipped_relu``         0; x^2 / 2; tau x - tau^2 / 2                           clamp(x, 0, tau)
``ierf``                  x erf(x) + (exp(-x^2) - 1) / sqrt(pi)                   erf
``ssp``                   softplus(x) - ln 2 (itself the integrated sigmoid)      sigmoid
========================  ======================================================  ==============
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from dcase.errors import OptionError

_LN2 = math.log(2.0)
_PI2_12 = math.pi**2 / 12.0
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
_INV_SQRT_PI = 1.0 / math.sqrt(math.pi)
_INV_SQRT2 = math.sqrt(0.5)
# torch's softplus turns into the identity above a threshold.  Its default of 20 is wrong by 2e-9,
# which is rounding in float32 but seven digits in float64; at 40 the step is 4e-18.
_THRESHOLD = 40.0
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", None)


def _composite_needed() -> bool:
    """Whether to leave the ``autograd.Function`` and use its composite of torch operations.

    Forward mode nested in forward mode gives *zeros* through a Function, without a word (torch
    2.13), and Neural-PINN code takes second derivatives exactly so.  Hence the fast road only for
    plain reverse mode; if a future torch does not say what is active, the slow one always.
    """
    return (
        _transforms_active is None
        or _transforms_active()
        or getattr(forward_ad, "_current_level", 0) >= 0
        or torch.compiler.is_compiling()
    )


class _Antiderivative(torch.autograd.Function):
    """Elementwise function with a known derivative: ``y = value(x)``, ``dy = derivative(x) dx``.

    ``derivative`` is made of differentiable operations, so that every higher order follows from
    it by autograd; ``value`` is never differentiated and may use in-place operations and branches.
    Written in the one-method style: with ``setup_context``, torch binds the signature by
    ``inspect`` in every call, 20 us, which is as long as the activation of a small layer.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Callable, derivative: Callable, params: tuple
    ) -> Tensor:
        ctx.derivative, ctx.params = derivative, params
        ctx.save_for_backward(x)
        return value(x, *params)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * ctx.derivative(x, *ctx.params), None, None, None


def _wide(value: Callable) -> Callable:
    """Evaluate ``value`` in float32 for half-precision input: the closed forms need the digits."""

    @functools.wraps(value)
    def wrapped(x: Tensor, *params: float) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            return value(x.float(), *params).to(x.dtype)
        return value(x, *params)

    return wrapped


def _integrate(
    x: Tensor, value: Callable, derivative: Callable, composite: Callable, *params: float
) -> Tensor:
    """Apply Phi = ``value``, with Phi' = ``derivative``; ``composite`` is Phi for any autodiff."""
    if _composite_needed():
        return composite(x, *params)
    return _Antiderivative.apply(x, value, derivative, params)


# ---------------------------------------------------------------------------------------------
# Series


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
_ISSP_ODD = [float(c / (2 * n + 3)) for n, c in enumerate(_LCH)]
# x ln cosh(x/2) minus that: the odd part of ISiLU.
_ISILU_ODD = [float(c - c / (2 * n + 3)) for n, c in enumerate(_LCH)]
# Odd part of IGELU: n(0) sum_k (-1)^k x^(2k+3) / (2^k k! (2k+1) (2k+3)).
_IGELU_ODD = [
    _INV_SQRT_2PI * (-1) ** k / (2.0**k * math.factorial(k) * (2 * k + 1) * (2 * k + 3))
    for k in range(12)
]
# -Li2(-exp(-a)) = u + u^2/4 + u^3 * (series in u^2) with u = softplus(-a) in (0, ln 2]: the
# classical Bernoulli series of the dilogarithm, 1.4e-16 with seven terms.
_DILOG = [
    1.0 / 36.0,
    -1.0 / 3600.0,
    1.0 / 211680.0,
    -1.0 / 10886400.0,
    1.0 / 526901760.0,
    -691.0 / 16999766784000.0,
    1.0 / 1120863744000.0,
]
# Below this |x| the closed forms lose digits by cancellation and the Taylor series is used.
_SMALL = 0.5


def _horner(z: Tensor, coefficients: list[float]) -> Tensor:
    """Return sum_k coefficients[k] z^k, shape of z."""
    result = torch.full_like(z, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result.mul_(z).add_(c)
    return result


def _terms(x: Tensor, coefficients: list[float], double: int, single: int) -> list[float]:
    """As many coefficients as the dtype of x can resolve."""
    return coefficients[: double if x.dtype == torch.float64 else single]


def _choose(condition: Tensor, this: Tensor, other: Tensor) -> Tensor:
    """``torch.where`` for finite scratch tensors, which it overwrites; several times as fast."""
    mask = condition.to(this.dtype)
    return this.mul_(mask).add_(other.mul_(1.0 - mask))


def _blend(x: Tensor, odd: list[float], closed: Tensor, linear: float = 0.0) -> Tensor:
    """``linear x + x^2/4 + x^3 odd(x^2)`` for small |x|, ``closed`` (overwritten) elsewhere."""
    small = x.clamp(-_SMALL, _SMALL)
    square = small * small
    series = _horner(square, _terms(x, odd, 11, 4)).mul_(small).add_(0.25).mul_(square)
    if linear:
        series = series.add_(small, alpha=linear)
    return _choose(x.abs() < _SMALL, series, closed)


def _softplus_integral(x: Tensor) -> Tensor:
    """S(x) = int_0^x softplus = -Li2(-e^x) - pi^2/12, few-ulp for |x| >= 1/2."""
    u = F.softplus(-x.abs(), 1.0, _THRESHOLD)
    square = u * u
    dilog = _horner(square, _terms(x, _DILOG, 7, 3)).mul_(u).add_(0.25).mul_(square).add_(u)
    dilog = dilog.sub_(_PI2_12)
    positive = x.clamp(min=0.0)
    # -Li2(-e^-a) - pi^2/12 <= 0 is S for x < 0; for x > 0, S = x^2/2 minus it.
    return (0.5 * positive).mul_(positive).add_(torch.copysign(dilog, x))


# ---------------------------------------------------------------------------------------------
# Composites: the same functions out of operations that any autodiff mode can take apart, to any
# order and without overflow in branches that are not selected.  Near 0 some have absolute, not
# relative, accuracy.


def _composite_irelu(x: Tensor) -> Tensor:
    r = torch.relu(x)
    return 0.5 * r * r


def _composite_ileaky(x: Tensor, slope: float) -> Tensor:
    return 0.5 * x * F.leaky_relu(x, slope)


def _composite_ielu(x: Tensor, alpha: float) -> Tensor:
    negative = -torch.relu(-x)
    return _composite_irelu(x) + alpha * (torch.expm1(negative) - negative)


def _composite_iselu(x: Tensor) -> Tensor:
    return _SELU_SCALE * _composite_ielu(x, _SELU_ALPHA)


def _composite_softplus(x: Tensor) -> Tensor:
    return F.softplus(x, 1.0, _THRESHOLD)


def _composite_ssp(x: Tensor) -> Tensor:
    return _composite_softplus(x) - _LN2


def _composite_isoftplus(x: Tensor) -> Tensor:
    # Two one-sided halves, each constant (and harmless) where the other one lives.
    zero = torch.zeros_like(x)
    above, below = torch.where(x > 0, x, zero), torch.where(x > 0, zero, x)
    series = []
    for side in (below, -above):
        u = _composite_softplus(side)
        square = u * u
        tail = torch.full_like(u, _DILOG[-1])
        for c in reversed(_DILOG[:-1]):
            tail = tail * square + c
        series.append(u + square * (0.25 + u * tail))
    return series[0] - series[1] + 0.5 * above * above


def _composite_issp(x: Tensor) -> Tensor:
    return _composite_isoftplus(x) - _LN2 * x


def _composite_isilu(x: Tensor) -> Tensor:
    return x * _composite_softplus(x) - _composite_isoftplus(x)


def _composite_igelu(x: Tensor) -> Tensor:
    cdf = 0.5 * torch.erfc(x * -_INV_SQRT2)
    pdf = _INV_SQRT_2PI * torch.exp(-0.5 * x * x)
    return 0.5 * ((x - 1.0) * (x + 1.0) * cdf + x * pdf) + 0.25


def _composite_log_cosh(x: Tensor) -> Tensor:
    return _composite_softplus(2.0 * x) - x - _LN2


def _composite_iclipped(x: Tensor, tau: float) -> Tensor:
    c = torch.clamp(x, 0.0, tau)
    return c * (x - 0.5 * c)


def _composite_ierf(x: Tensor) -> Tensor:
    return x * torch.erf(x) + _INV_SQRT_PI * torch.expm1(-x * x)


# ---------------------------------------------------------------------------------------------
# Functional forms


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
    return _integrate(x, _value_irelu, torch.relu, _composite_irelu)


def _value_ileaky(x: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(x, slope).mul_(0.5 * x)


def ileaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Integrated leaky ReLU ``0.5 x leaky(x)``; derivative ``leaky_relu(x, negative_slope)``."""
    return _integrate(x, _value_ileaky, F.leaky_relu, _composite_ileaky, negative_slope)


@_wide
def _value_ielu(x: Tensor, alpha: float) -> Tensor:
    negative = x.clamp(max=0.0)
    r = torch.relu(x)
    exact = torch.expm1(negative).sub_(negative)
    # e^x - 1 - x = x^2 (1/2 + x/6 + ...): the difference cancels for small x.
    small = negative.clamp(min=-_SMALL)
    series = _horner(small, _terms(x, _EXP_TAIL, 14, 7)).mul_(small).mul_(small)
    exact = _choose(negative > -_SMALL, series, exact)
    return (0.5 * r).mul_(r).add_(exact, alpha=alpha)


_EXP_TAIL = [1.0 / math.factorial(k + 2) for k in range(16)]


def _elu(x: Tensor, alpha: float) -> Tensor:
    return F.elu(x, alpha)


def ielu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Integrated ELU: ``x^2/2`` for x > 0, ``alpha (e^x - 1 - x)`` below; derivative ``elu``."""
    return _integrate(x, _value_ielu, _elu, _composite_ielu, alpha)


@_wide
def _value_iselu(x: Tensor) -> Tensor:
    return _value_ielu(x, _SELU_ALPHA).mul_(_SELU_SCALE)


def iselu(x: Tensor) -> Tensor:
    """Integrated SELU: lambda times the integrated ELU of alpha = 1.6733; derivative ``selu``."""
    return _integrate(x, _value_iselu, F.selu, _composite_iselu)


@_wide
def _value_isilu(x: Tensor) -> Tensor:
    closed = F.softplus(x, 1.0, _THRESHOLD).mul_(x).sub_(_softplus_integral(x))
    return _blend(x, _ISILU_ODD, closed)


def isilu(x: Tensor) -> Tensor:
    """Integrated SiLU ``x softplus(x) - S(x)``; derivative ``silu``."""
    return _integrate(x, _value_isilu, F.silu, _composite_isilu)


@_wide
def _value_igelu(x: Tensor) -> Tensor:
    cdf = torch.erfc(x * -_INV_SQRT2).mul_(0.5)
    pdf = torch.exp(x * x * -0.5).mul_(_INV_SQRT_2PI)
    # (x - 1)(x + 1) keeps the digits that x^2 - 1 loses near 1.
    closed = ((x - 1.0) * (x + 1.0)).mul_(cdf).add_(pdf.mul_(x)).mul_(0.5).add_(0.25)
    return _blend(x, _IGELU_ODD, closed)


def igelu(x: Tensor) -> Tensor:
    """Integrated GELU ``[(x^2-1) N(x) + x n(x)]/2 + 1/4``, N and n the normal law's cdf and pdf."""
    return _integrate(x, _value_igelu, F.gelu, _composite_igelu)


@_wide
def _value_isoftplus(x: Tensor) -> Tensor:
    return _blend(x, _ISSP_ODD, _softplus_integral(x), linear=_LN2)


def isoftplus(x: Tensor) -> Tensor:
    """Integrated softplus ``S(x) = -Li2(-e^x) - pi^2/12``; derivative ``softplus``."""
    return _integrate(x, _value_isoftplus, softplus, _composite_isoftplus)


@_wide
def _value_issp(x: Tensor) -> Tensor:
    return _blend(x, _ISSP_ODD, _softplus_integral(x).sub_(x, alpha=_LN2))


def issp(x: Tensor) -> Tensor:
    """Integrated shifted softplus ``S(x) - x ln 2``; derivative ``ssp``."""
    return _integrate(x, _value_issp, ssp, _composite_issp)


@_wide
def _value_log_cosh(x: Tensor) -> Tensor:
    a = x.abs()
    capped = a.clamp(max=_THRESHOLD)
    # cosh a = 1 + e^2 / (2 + 2e), e = expm1(a): no cancellation anywhere.  Above the cap, cosh is
    # e^a / 2 to rounding and the logarithm goes on as a straight line.
    e = torch.expm1(capped)
    rise = (a - capped).clamp_(min=0.0)
    return (e * e).div_(e.add_(1.0).mul_(2.0)).log1p_().add_(rise)


def log_cosh(x: Tensor) -> Tensor:
    """Integrated tanh ``ln cosh x``; derivative ``tanh``."""
    return _integrate(x, _value_log_cosh, torch.tanh, _composite_log_cosh)


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
    return _integrate(x, _value_iclipped, clipped_relu, _composite_iclipped, tau)


@_wide
def _value_ierf(x: Tensor) -> Tensor:
    return torch.erf(x).mul_(x).add_(torch.expm1(-x * x), alpha=_INV_SQRT_PI)


def ierf(x: Tensor) -> Tensor:
    """Integrated error function ``x erf(x) + (e^(-x^2) - 1)/sqrt(pi)``; derivative ``erf``."""
    return _integrate(x, _value_ierf, torch.erf, _composite_ierf)


def _value_softplus(x: Tensor) -> Tensor:
    return F.softplus(x, 1.0, _THRESHOLD)


def softplus(x: Tensor) -> Tensor:
    """``ln(1 + e^x)``, overflow-free and with exact derivatives of every order."""
    return _integrate(x, _value_softplus, torch.sigmoid, _composite_softplus)


def _value_ssp(x: Tensor) -> Tensor:
    return F.softplus(x, 1.0, _THRESHOLD).sub_(_LN2)


def ssp(x: Tensor) -> Tensor:
    """Shifted softplus ``ln(e^x / 2 + 1/2) = softplus(x) - ln 2`` (SchNet); derivative sigmoid.

    Args:
        x: any shape, floating dtype.

    Returns:
        Same shape and dtype; finite for every finite x.
    """
    return _integrate(x, _value_ssp, torch.sigmoid, _composite_ssp)


# ---------------------------------------------------------------------------------------------
# Modules


class Activation(nn.Module):
    """Base of the activations: elementwise, same shape and dtype out as in.

    Attributes:
        base: registry name of the derivative Phi', or ``None`` where it is not in the registry.
    """

    base: str | None = None


def _positive(name: str, value: float, *, zero: bool = False) -> float:
    number = float(value)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        bound = ">= 0" if zero else "> 0"
        raise OptionError(f"activation option {name} must be a finite number {bound}, got {value}")
    return number


class IReLU(Activation):
    """Module form of :func:`irelu`."""

    base = "relu"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return irelu(x)


class ILeakyReLU(Activation):
    """Module form of :func:`ileaky_relu`.

    Args:
        negative_slope: slope of the base activation for x < 0.
    """

    base = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = _positive("negative_slope", negative_slope, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return ileaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        """Show the slope."""
        return f"negative_slope={self.negative_slope:g}"


class IELU(Activation):
    """Module form of :func:`ielu`.

    Args:
        alpha: minus the limit of the base activation at minus infinity.
    """

    base = "elu"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = _positive("alpha", alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return ielu(x, self.alpha)

    def extra_repr(self) -> str:
        """Show alpha."""
        return f"alpha={self.alpha:g}"


class ISELU(Activation):
    """Module form of :func:`iselu`."""

    base = "selu"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return iselu(x)


class ISiLU(Activation):
    """Module form of :func:`isilu`."""

    base = "silu"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return isilu(x)


class IGELU(Activation):
    """Module form of :func:`igelu`."""

    base = "gelu"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return igelu(x)


class ISoftplus(Activation):
    """Module form of :func:`isoftplus`."""

    base = "softplus"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return isoftplus(x)


class ISSP(Activation):
    """Module form of :func:`issp`."""

    base = "ssp"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return issp(x)


class LogCosh(Activation):
    """Module form of :func:`log_cosh`."""

    base = "tanh"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return log_cosh(x)


class ClippedReLU(Activation):
    """Module form of :func:`clipped_relu`.

    Args:
        tau: upper clip.
    """

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__()
        self.tau = _positive("tau", tau)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return clipped_relu(x, self.tau)

    def extra_repr(self) -> str:
        """Show tau."""
        return f"tau={self.tau:g}"


class IClippedReLU(ClippedReLU):
    """Module form of :func:`iclipped_relu`.

    Args:
        tau: where the quadratic turns into a straight line.
    """

    base = "clipped_relu"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return iclipped_relu(x, self.tau)


class IErf(Activation):
    """Module form of :func:`ierf`."""

    base = "erf"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return ierf(x)


class SSP(Activation):
    """Module form of :func:`ssp`."""

    base = "sigmoid"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return ssp(x)


class Softplus(Activation):
    """Module form of :func:`softplus`."""

    base = "sigmoid"

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return softplus(x)


class Erf(Activation):
    """The error function."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return torch.erf(x)


#: Every activation by its canonical name.
ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "irelu": IReLU,
    "ileaky_relu": ILeakyReLU,
    "ielu": IELU,
    "iselu": ISELU,
    "isilu": ISiLU,
    "igelu": IGELU,
    "isoftplus": ISoftplus,
    "issp": ISSP,
    "log_cosh": LogCosh,
    "iclipped_relu": IClippedReLU,
    "ierf": IErf,
    "ssp": SSP,
    "silu": nn.SiLU,
    "softplus": Softplus,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "clipped_relu": ClippedReLU,
    "erf": Erf,
    "sigmoid": nn.Sigmoid,
}

#: Other names people use, and the canonical name each stands for.
ALIASES: dict[str, str] = {
    "itanh": "log_cosh",
    "logcosh": "log_cosh",
    "shifted_softplus": "ssp",
    "swish": "silu",
    "iswish": "isilu",
    "ileakyrelu": "ileaky_relu",
    "leakyrelu": "leaky_relu",
    "ishifted_softplus": "issp",
}


def activation_names() -> list[str]:
    """Return the canonical names that :func:`get_activation` knows, aliases left out."""
    return list(ACTIVATIONS)


def canonical_name(name: str) -> str:
    """Return the registry name for a name in any case, with hyphens or an alias.

    Raises:
        OptionError: when there is no such activation; the message names the closest ones.
    """
    key = str(name).strip().lower().replace("-", "_").replace(" ", "_")
    key = ALIASES.get(key, key)
    if key in ACTIVATIONS:
        return key
    close = difflib.get_close_matches(key, [*ACTIVATIONS, *ALIASES], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    raise OptionError(f"unknown activation '{name}'{hint} choose from {', '.join(ACTIVATIONS)}")


def get_activation(name: str | nn.Module, **kwargs: Any) -> nn.Module:
    """Make the activation of that name.

    Args:
        name: a name in :func:`activation_names`, an alias, or a module (returned as it is).
        **kwargs: options of that activation (``negative_slope``, ``alpha``, ``tau``).

    Returns:
        A new module without parameters.

    Raises:
        OptionError: unknown name, or an option that this activation does not have.
    """
    if isinstance(name, nn.Module):
        if kwargs:
            raise OptionError("options cannot be given together with an activation module")
        return name
    key = canonical_name(name)
    try:
        return ACTIVATIONS[key](**kwargs)
    except TypeError as error:
        given = ", ".join(kwargs)
        raise OptionError(f"activation '{key}' does not take these options: {given}") from error
