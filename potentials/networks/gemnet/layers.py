"""Dense and residual layers of GemNet: no biases, outputs of unit variance, zero stays zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dcase.activations import canonical_name, get_activation
from dcase.initialization import gain
from dcase.potentials.networks.linear_growth import at_unit_size, begins_with_a_square

INV_SQRT_2 = 1 / math.sqrt(2.0)


# Mean square of the features below which the pre-activation is no longer normalised.
FLOOR = 0.1


class ScaledActivation(nn.Module):
    """The activation, scaled: unit variance out for unit variance in, and 0 for 0.

    GemNet scales SiLU by 1/0.6 so that each layer hands on the variance it gets (arXiv:2106.08903,
    "scaling factors"). Here the gain g follows from the activation,
    ``g^-2 = E[(act(z + b) - act(b))^2]`` over ``z ~ N(0, 1)``; for SiLU it is 1/0.596:

        y = g (act(x + b) - act(b))                         b = 0 for SiLU and most others

    Zero has to stay zero for another reason: an edge at the cutoff has features of zero behind its
    envelope, and only then does it leave the energy as smoothly as the envelope says.

    A gain is not enough for activations that begin with a square (the integrated ones: IReLU, log
    cosh, ...). IReLU turns a variance q into q^2, so that whatever is above the fixed point grows
    doubly exponentially with depth: a block of GemNet has ten dense layers in series, and atoms and
    edges are not all alike (docs/methods.md has numbers). For these

        y = r g (act(x / r + b) - act(b)),   b = 1,   r^2 = (mean x^2 + FLOOR) / (1 + FLOOR)

    ``r``, the root mean square of the features of one edge or atom, makes the layer grow linearly,
    as SiLU does; ``b`` gives it a linear term at 0, as SiLU has (twice SiLU is
    ``x + x^2/2 - x^4/24 ...``, ``IReLU(x + 1) - IReLU(1)`` is ``x + x^2/2`` above -1).

    Args:
        activation: Name.

    Attributes:
        gain: g.
        shift: b.
        quadratic: Whether the second form is used.
    """

    def __init__(self, activation: str):
        super().__init__()
        self.act = get_activation(activation)
        self.quadratic = begins_with_a_square(self.act)
        self.shift = 1.0 if self.quadratic else 0.0
        with torch.no_grad():
            self.offset = float(self.act(torch.tensor(self.shift, dtype=torch.float64)))
        self.gain = gain(_Centred(self.act, self.shift, self.offset))

    def forward(self, x: Tensor) -> Tensor:
        """Map x, shape [..., features], to the same shape."""
        if not self.quadratic:
            y = self.act(x)
            return (y - self.offset) * self.gain if self.offset else y * self.gain
        mean_square = x.square().mean(-1, keepdim=True)
        r = ((mean_square + FLOOR) / (1.0 + FLOOR)).sqrt()
        return at_unit_size(self.act, self.offset, x, r, self.gain)

    def extra_repr(self) -> str:
        """Show the numbers."""
        return f"gain={self.gain:.4g}, shift={self.shift:g}"


class _Centred(nn.Module):
    """``act(x + shift) - offset``."""

    def __init__(self, act: nn.Module, shift: float, offset: float):
        super().__init__()
        self.act, self.shift, self.offset = act, shift, offset

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.shift) - self.offset


class PublishedActivation(nn.Module):
    """The published implementation's: SiLU over 0.6, and any other activation as it is."""

    def __init__(self, activation: str):
        super().__init__()
        self.act = get_activation(activation)
        self.gain = 1 / 0.6 if canonical_name(activation) == "silu" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        y = self.act(x)
        return y if self.gain == 1.0 else y * self.gain


@torch.no_grad()
def he_orthogonal_(weight: Tensor) -> Tensor:
    """Draw a weight [n_out, n_in] in place: orthogonal, then every row of mean 0, variance 1/n_in.

    Source: GemNet's published implementation (``he_orthogonal_init``). Rows of variance ``1/n_in``
    hand on the variance of their inputs, rows of mean zero do not hand on their mean.

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
