"""Dense and residual layers of GemNet: no biases, outputs of unit variance, zero stays zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dcase.activations import get_activation
from dcase.initialization import gain

INV_SQRT_2 = 1 / math.sqrt(2.0)


class ScaledActivation(nn.Module):
    """``g (act(x + b) - act(b))``: unit variance out for unit variance in, and 0 for 0.

    GemNet scales SiLU by 1/0.6 so that each layer hands on the variance it gets (section 6 of the
    paper). Here the factor g follows from the activation, ``g^-2 = E[(act(z + b) - act(b))^2]``
    over ``z ~ N(0, 1)``; for SiLU it is 1/0.596.

    Zero has to stay zero for another reason: an edge at the cutoff has features of zero behind its
    envelope, and only then does it leave the energy as smoothly as the envelope says.

    Activations that begin with a square (the integrated ones: IReLU, log cosh, ...) have no linear
    term at 0. Stacked, they square their input layer by layer, and whatever exceeds the fixed point
    grows doubly exponentially. With ``b = 1`` they have one: twice SiLU is
    ``x + x^2/2 - x^4/24 ...``, and ``IReLU(x + 1) - IReLU(1)`` is ``x + x^2/2``, cut off at -1.

    Args:
        activation: Name.
        shift: b; None: 1 where the activation has no linear term at 0, else 0.
    """

    def __init__(self, activation: str, shift: float | None = None):
        super().__init__()
        self.act = get_activation(activation)
        self.shift = _default_shift(self.act) if shift is None else shift
        with torch.no_grad():
            at = torch.tensor(self.shift, dtype=torch.float64)
            self.offset = float(self.act(at))
        self.gain = gain(_Centred(self.act, self.shift, self.offset))

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        y = self.act(x + self.shift) if self.shift else self.act(x)
        return (y - self.offset) * self.gain if self.offset else y * self.gain

    def extra_repr(self) -> str:
        """Show the numbers."""
        return f"gain={self.gain:.4g}, shift={self.shift:g}"


class _Centred(nn.Module):
    def __init__(self, act: nn.Module, shift: float, offset: float):
        super().__init__()
        self.act, self.shift, self.offset = act, shift, offset

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.shift) - self.offset


def _default_shift(act: nn.Module) -> float:
    with torch.enable_grad():
        zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(act(zero), zero)
    return 0.0 if abs(float(slope)) > 1e-6 else 1.0


class PublishedActivation(nn.Module):
    """The published implementation's: SiLU over 0.6, and any other activation as it is."""

    def __init__(self, activation: str):
        super().__init__()
        self.act = get_activation(activation)
        self.gain = 1 / 0.6 if isinstance(self.act, nn.SiLU) else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        y = self.act(x)
        return y if self.gain == 1.0 else y * self.gain


@torch.no_grad()
def he_orthogonal_(weight: Tensor) -> Tensor:
    """Draw a weight [n_out, n_in] in place: orthogonal, then every row of mean 0, variance 1/n_in.

    Source: GemNet, section 6 ("orthogonal" with He's variance). Rows of variance ``1/n_in`` hand on
    the variance of their inputs, rows of mean zero do not hand on their mean.

    Drawn from torch's global generator, like torch's own layers.
    """
    nn.init.orthogonal_(weight)
    n_in = weight.shape[1]
    if n_in > 1:
        weight -= weight.mean(1, keepdim=True)
        weight /= (weight.std(1, keepdim=True) + 1e-12) * math.sqrt(n_in)
    return weight


def linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer without bias, He-orthogonal."""
    layer = nn.Linear(n_in, n_out, bias=False)
    he_orthogonal_(layer.weight)
    return layer


class Dense(nn.Module):
    """``act(W x)``.

    Args:
        n_in: Input size.
        n_out: Output size.
        act: Activation, shared between layers (it has no parameters).
    """

    def __init__(self, n_in: int, n_out: int, act: nn.Module):
        super().__init__()
        self.linear = linear(n_in, n_out)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., n_in] to [..., n_out]."""
        return self.act(self.linear(x))


class Residual(nn.Module):
    """``(x + Dense(Dense(x))) / sqrt(2)``: the sum of two parts of unit variance, scaled back."""

    def __init__(self, n: int, act: nn.Module):
        super().__init__()
        self.first = Dense(n, n, act)
        self.second = Dense(n, n, act)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., n] to the same shape."""
        return (x + self.second(self.first(x))) * INV_SQRT_2


def residuals(count: int, n: int, act: nn.Module) -> nn.Sequential:
    """``count`` residual layers, one after the other."""
    return nn.Sequential(*(Residual(n, act) for _ in range(count)))
