"""How an activation carries the variance of pre-activations from layer to layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dcase.activations import get_activation
from dcase.errors import OptionError


@dataclass(frozen=True)
class VarianceMap:
    """One step of the variance recursion at ``q``.

    Attributes:
        q: pre-activation variance that goes in.
        q_next: ``q' = sigma_w^2 E[Phi^2] + sigma_b^2``.
        slope: ``s = d ln q' / d ln q``; a fixed point is stable if |s| < 1.
        chi: ``sigma_w^2 E[Phi'^2]``, the gain of squared gradients.
        curvature: ``E[Phi''^2] / E[Phi^2]`` (0 where Phi'' has no autograd).
        mean: ``E[Phi]``.
        second_moment: ``E[Phi^2]``.
        sigma_w2: weight variance times fan-in.
        sigma_b2: bias variance.
    """

    q: float
    q_next: float
    slope: float
    chi: float
    curvature: float
    mean: float
    second_moment: float
    sigma_w2: float
    sigma_b2: float


def _quadrature(breaks: Iterable[float]) -> tuple[Tensor, Tensor]:
    """Nodes and weights for E over N(0, 1), float64.

    Composite Gauss-Legendre rather than Gauss-Hermite: most activations have a kink in some
    derivative, and panels that end there keep the full order.
    """
    edges = np.unique(np.concatenate([np.linspace(-12.0, 12.0, 49), list(breaks)]))
    edges = edges[(edges >= -12.0) & (edges <= 12.0)]
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half, middle = 0.5 * np.diff(edges)[:, None], 0.5 * (edges[1:] + edges[:-1])[:, None]
    t = (middle + half * nodes).ravel()
    w = (half * weights).ravel() * np.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)
    return torch.from_numpy(t), torch.from_numpy(w)


def _resolve(activation: str | nn.Module | None) -> nn.Module:
    if activation is None or activation in ("identity", "linear"):
        return nn.Identity()
    module = get_activation(activation)
    if any(True for _ in module.parameters()):
        module = copy.deepcopy(module)
    return module.to(torch.float64) if any(True for _ in module.parameters()) else module


def _moments(activation: str | nn.Module | None, q: float) -> dict[str, float]:
    """E over z ~ N(0, q) of Phi, Phi^2, Phi'^2, Phi''^2 and Phi Phi' z."""
    if not (math.isfinite(q) and q > 0):
        raise OptionError(f"the variance q must be a positive number, got {q}")
    module, root = _resolve(activation), math.sqrt(q)
    tau = float(getattr(module, "tau", 1.0))
    t, w = _quadrature([-tau / root, tau / root])
    z = (root * t).requires_grad_()
    with torch.enable_grad():
        phi = module(z)
        first = second = torch.zeros_like(t)
        if phi.requires_grad:
            (first,) = torch.autograd.grad(phi.sum(), z, create_graph=True)
        if first.requires_grad:
            (grad2,) = torch.autograd.grad(first.sum(), z, allow_unused=True)
            second = second if grad2 is None else grad2
    phi, first, z = phi.detach(), first.detach(), z.detach()
    return {
        "mean": float(w @ phi),
        "second": float(w @ phi.square()),
        "first2": float(w @ first.square()),
        "second2": float(w @ second.detach().square()),
        "cross": float(w @ (phi * first * z)),
    }


def gain(activation: str | nn.Module | None, *, q: float = 1.0, centered: bool = False) -> float:
    """Variance-preserving gain ``g = sqrt(q / E[Phi(z)^2])``, ``z ~ N(0, q)``.

    Weights of standard deviation ``g / sqrt(fan_in)`` behind this activation give
    pre-activations the variance q again.  IReLU: sqrt(8/3) = 1.633; ReLU: sqrt(2).

    Args:
        activation: name or elementwise module; ``None`` or "identity" gives 1.
        q: variance to preserve.
        centered: for weight rows that sum to zero, which see ``Var[Phi]`` in place of
            ``E[Phi^2]``.

    Returns:
        g > 0.

    Raises:
        OptionError: unknown activation, q not positive, or an activation that is constant.
    """
    m = _moments(activation, q)
    power = m["second"] - m["mean"] ** 2 if centered else m["second"]
    if not (math.isfinite(power) and power > 0):
        raise OptionError(f"activation {activation} has no variance to preserve (E = {power:g})")
    return math.sqrt(q / power)


def variance_map(
    activation: str | nn.Module | None,
    q: float = 1.0,
    *,
    sigma_w2: float | None = None,
    sigma_b2: float = 0.0,
) -> VarianceMap:
    """One step of the variance recursion (see :mod:`dcase.initialization`).

    Args:
        activation: name or elementwise module.
        q: variance of the pre-activations that go in.
        sigma_w2: weight variance times fan-in; default: the one that makes ``q' = q``.
        sigma_b2: bias variance.

    Returns:
        q', its logarithmic slope, chi and the moments behind them.
    """
    m = _moments(activation, q)
    if sigma_w2 is None:
        sigma_w2 = (q - sigma_b2) / m["second"]
    q_next = sigma_w2 * m["second"] + sigma_b2
    # d/dq E[Phi(sqrt(q) t)^2] = E[Phi Phi' z] / q with z = sqrt(q) t.
    slope = sigma_w2 * m["cross"] / q_next
    return VarianceMap(
        q=q,
        q_next=q_next,
        slope=slope,
        chi=sigma_w2 * m["first2"],
        curvature=m["second2"] / m["second"],
        mean=m["mean"],
        second_moment=m["second"],
        sigma_w2=sigma_w2,
        sigma_b2=sigma_b2,
    )


def stable_variances(
    activation: str | nn.Module | None, *, q: float = 1.0, slope: float = 0.5
) -> tuple[float, float]:
    """Weight and bias variance for which q is a fixed point with a logarithmic slope <= ``slope``.

    Args:
        activation: name or elementwise module.
        q: the fixed point, ``q' = q``.
        slope: largest slope wanted; below 1 the fixed point is stable.  Where the slope has to be
            bought with biases, its basin is narrow near 1 (IReLU: q (2/slope - 1)).

    Returns:
        ``(sigma_w^2, sigma_b^2)``, the first times 1/fan_in.  sigma_b^2 is 0 where the activation
        is that stable by itself (sigmoid).  IReLU, q = 1, slope = 1/2: (2/3, 3/4).
    """
    if not (math.isfinite(slope) and slope > 0):
        raise OptionError(f"the slope must be a positive number, got {slope}")
    m = _moments(activation, q)
    if not m["second"] > 0:
        raise OptionError(f"activation {activation} has no variance to preserve")
    sigma_w2 = q / m["second"]
    if m["cross"] > 0:
        sigma_w2 = min(sigma_w2, slope * q / m["cross"])
    return sigma_w2, max(q - sigma_w2 * m["second"], 0.0)
