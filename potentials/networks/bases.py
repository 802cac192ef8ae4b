"""Radial bases and cutoff envelopes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dcase.potentials.networks.float64_buffers import ExactBuffers


class GaussianBasis(ExactBuffers):
    """Gaussians on an even grid, ``exp(-(d - mu_k)^2 / (2 delta^2))`` with ``delta`` the spacing.

    Source: SchNet (Schuett et al., NeurIPS 2017), section 4.1; the convention of PyG's
    ``GaussianSmearing``.

    Args:
        cutoff: Last centre, A; the first is 0.
        num_gaussians: Number of centres, at least 2.
    """

    centres: Tensor

    def __init__(self, cutoff: float, num_gaussians: int):
        super().__init__()
        self.register_buffer(
            "centres",
            torch.linspace(0.0, cutoff, num_gaussians, dtype=torch.float64),
            persistent=False,
        )
        self.width = cutoff / (num_gaussians - 1)

    def forward(self, distances: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Map distances [...] in A to features [..., num_gaussians] of type ``dtype``.

        The difference to the centre is taken in the distances' own precision (float64 in an
        :class:`~dcase.potentials.graphs.graph.AtomicGraph`), the exponential in ``dtype``.
        """
        scaled = (distances.unsqueeze(-1) - self.centres.to(distances.dtype)) / self.width
        scaled = scaled.to(dtype or distances.dtype)
        return torch.exp(-0.5 * scaled * scaled)


class CosineCutoff(nn.Module):
    """``(1 + cos(pi d / rc)) / 2`` inside, 0 outside: value and slope vanish at the cutoff.

    Source: Behler and Parrinello, PRL 98, 146401 (2007), as used by PyG's SchNet.

    Args:
        cutoff: A.
    """

    def __init__(self, cutoff: float):
        super().__init__()
        self.cutoff = cutoff

    def forward(self, distances: Tensor) -> Tensor:
        """Map distances in A to weights of the same shape."""
        # Clamping the distance (not the value) makes value and gradient exactly zero outside.
        inside = distances.clamp(max=self.cutoff)
        return 0.5 * (torch.cos(inside * (math.pi / self.cutoff)) + 1.0)


class PolynomialEnvelope(nn.Module):
    """``1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2)``, ``x = d / rc``; 0 outside.

    Value, slope and curvature vanish at the cutoff. Source: DimeNet (Gasteiger et al., ICLR 2020,
    arXiv:2003.03123), eq. 8; DimeNet's ``envelope_exponent`` is p - 1, GemNet's is p.

    Args:
        cutoff: A.
        p: Order, at least 2.
    """

    def __init__(self, cutoff: float, p: int):
        super().__init__()
        self.cutoff, self.p = cutoff, p

    def forward(self, distances: Tensor) -> Tensor:
        """Map distances in A to weights of the same shape."""
        # Clamping the distance (not the value) makes value and gradient exactly zero outside.
        x, p = (distances / self.cutoff).clamp(max=1.0), self.p
        return 1.0 - x**p * ((p + 1) * (p + 2) / 2 - x * (p * (p + 2) - x * (p * (p + 1) / 2)))


class BesselBasis(nn.Module):
    """``sqrt(2 / rc) sin(f_n d / rc) / d`` with trainable frequencies that start as ``n pi``.

    Source: DimeNet (arXiv:2003.03123), eq. 7.

    Args:
        cutoff: A.
        num_radial: Number of functions.
    """

    def __init__(self, cutoff: float, num_radial: int):
        super().__init__()
        self.cutoff = cutoff
        self.frequencies = nn.Parameter(math.pi * torch.arange(1.0, num_radial + 1))

    def forward(self, distances: Tensor) -> Tensor:
        """Map distances [...] in A to [..., num_radial] in the dtype of the frequencies."""
        scaled = (distances / self.cutoff).to(self.frequencies.dtype).unsqueeze(-1)
        return math.sqrt(2.0 / self.cutoff**3) * torch.sin(self.frequencies * scaled) / scaled
