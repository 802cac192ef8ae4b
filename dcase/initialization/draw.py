"""Drawing the weights of linear layers."""

from __future__ import annotations

import math

import torch
from torch import nn

from dcase.errors import OptionError
from dcase.initialization.variance import gain, stable_variances

#: Modes of :func:`init_linear_`.
INIT_MODES = ("variance_preserving", "stable", "centered", "lecun", "he", "xavier")


@torch.no_grad()
def init_linear_(
    linear: nn.Linear,
    activation: str | nn.Module | None,
    generator: torch.Generator,
    *,
    mode: str = "variance_preserving",
    distribution: str = "normal",
    bias_std: float | None = None,
) -> float:
    """Draw the weights of one linear layer, in place.

    ======================  ============================================================
    mode                    standard deviation of the weights
    ======================  ============================================================
    variance_preserving     gain(activation) / sqrt(fan_in)
    stable                  as :func:`stable_variances` says, slope 1/2; with its bias
    centered                the same for rows shifted to sum to zero (the mean
                            of the features then drops out)
    lecun                   1 / sqrt(fan_in)
    he                      sqrt(2 / fan_in)
    xavier                  sqrt(2 / (fan_in + fan_out))
    ======================  ============================================================

    Args:
        linear: any module with ``weight`` (out, in) and perhaps ``bias`` (out,).
        activation: the activation that FEEDS this layer; ``None`` for a first layer, whose inputs
            are taken to have unit variance.  Used by the first three modes.
        generator: source of the numbers.  They are drawn on its device, in float32 or wider, so
            that one seed gives the same weights on every device.
        mode: see the table.
        distribution: "normal" or "uniform" (same standard deviation).
        bias_std: standard deviation of the bias (normal); 0 sets it to zero.  Default: what
            mode "stable" asks for, 0 in the others.

    Returns:
        The standard deviation that was used.

    Raises:
        OptionError: unknown mode or distribution, or a negative ``bias_std``.
    """
    if mode not in INIT_MODES:
        raise OptionError(f"unknown init mode '{mode}'; choose from {', '.join(INIT_MODES)}")
    if distribution not in ("normal", "uniform"):
        raise OptionError(f"unknown distribution '{distribution}'; choose from normal, uniform")
    if bias_std is not None and not (math.isfinite(bias_std) and bias_std >= 0):
        raise OptionError(f"bias_std must be >= 0, got {bias_std}")
    fan_out, fan_in = linear.weight.shape
    centered = mode == "centered"
    if centered and fan_in < 2:
        raise OptionError("mode 'centered' needs at least two inputs")
    if mode in ("variance_preserving", "centered"):
        std = gain(activation, centered=centered) / math.sqrt(fan_in)
    elif mode == "stable":
        sigma_w2, sigma_b2 = stable_variances(activation)
        std = math.sqrt(sigma_w2 / fan_in)
        bias_std = math.sqrt(sigma_b2) if bias_std is None else bias_std
    elif mode == "xavier":
        std = math.sqrt(2.0 / (fan_in + fan_out))
    else:
        std = math.sqrt((2.0 if mode == "he" else 1.0) / fan_in)
    dtype = torch.promote_types(linear.weight.dtype, torch.float32)
    draw = torch.empty(fan_out, fan_in, dtype=dtype, device=generator.device)
    if distribution == "normal":
        draw.normal_(0.0, std, generator=generator)
    else:
        bound = math.sqrt(3.0) * std
        draw.uniform_(-bound, bound, generator=generator)
    if centered:
        # Centring takes 1/n of the variance; give it back.
        draw = (draw - draw.mean(1, keepdim=True)) * math.sqrt(fan_in / (fan_in - 1.0))
    linear.weight.copy_(draw)
    if linear.bias is not None:
        if bias_std:
            bias = torch.empty(fan_out, dtype=dtype, device=generator.device)
            linear.bias.copy_(bias.normal_(0.0, bias_std, generator=generator))
        else:
            linear.bias.zero_()
    return std


def residual_alpha(depth: int, factor: float = 1.0) -> float:
    """Scale ``alpha = factor / depth`` for ``h + alpha Phi(W h)``.

    With alpha <= 1/L a stack of L residual blocks changes the variance by a bounded factor, however
    deep it is, even where Phi is quadratic.
    """
    if depth < 1 or not (0 < factor <= 1):
        raise OptionError(f"need depth >= 1 and 0 < factor <= 1, got {depth} and {factor}")
    return factor / depth
