"""Radial bases and cutoff envelopes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dcase.potentials.exact import ExactBuffers


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
        :class:`~dcase.potentials.graph.AtomicGraph`), the exponential in ``dtype``.
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
