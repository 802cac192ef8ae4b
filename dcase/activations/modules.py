"""The activations as modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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
from dcase.errors import OptionError


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
