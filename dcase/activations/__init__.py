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

from dcase.activations.functional import (
    clipped_relu,
    iclipped_relu,
    ielu,
    ierf,
    igelu,
    ileaky_relu,
    irelu,
    iselu,
    isilu,
    isoftplus,
    issp,
    log_cosh,
    softplus,
    ssp,
)
from dcase.activations.modules import (
    IELU,
    IGELU,
    ISELU,
    ISSP,
    SSP,
    Activation,
    ClippedReLU,
    Erf,
    IClippedReLU,
    IErf,
    ILeakyReLU,
    IReLU,
    ISiLU,
    ISoftplus,
    LogCosh,
    Softplus,
)
from dcase.activations.registry import (
    ACTIVATIONS,
    ALIASES,
    activation_names,
    canonical_name,
    get_activation,
)

__all__ = [
    "ACTIVATIONS",
    "ALIASES",
    "IELU",
    "IGELU",
    "ISELU",
    "ISSP",
    "SSP",
    "Activation",
    "ClippedReLU",
    "Erf",
    "IClippedReLU",
    "IErf",
    "ILeakyReLU",
    "IReLU",
    "ISiLU",
    "ISoftplus",
    "LogCosh",
    "Softplus",
    "activation_names",
    "canonical_name",
    "clipped_relu",
    "get_activation",
    "iclipped_relu",
    "ielu",
    "ierf",
    "igelu",
    "ileaky_relu",
    "irelu",
    "iselu",
    "isilu",
    "isoftplus",
    "issp",
    "log_cosh",
    "softplus",
    "ssp",
]
