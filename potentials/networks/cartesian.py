"""Functions of directions and numbers that ForceNet starts from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dcase.potentials.networks.float64_buffers import ExactBuffers


class SineBasis(ExactBuffers):
    """``sin(1.1^k x)`` for k = 0 ... num_freqs - 1 ("powersine").

    Source: ForceNet (arXiv:2103.01436), appendix; Open Catalyst's form.

    Args:
        num_freqs: Number of frequencies.
    """

    frequencies: Tensor

    def __init__(self, num_freqs: int):
        super().__init__()
        frequencies = torch.tensor([1.1**k for k in range(num_freqs)], dtype=torch.float64)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Map [...] to [..., num_freqs] of type ``dtype``; the product is taken in x's own."""
        scaled = x.unsqueeze(-1) * self.frequencies.to(x.dtype)
        return torch.sin(scaled.to(dtype or x.dtype))


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of unit vectors as polynomials, smooth at the poles too.

    Ordered by degree l = 0 ... l_max and within it m = -l ... l, and scaled to a mean square of 1
    on the sphere: ``sum_m Y_lm(u) Y_lm(v) = (2 l + 1) P_l(u . v)``.

    With ``(x + iy)^m = a_m + i b_m`` and ``p_lm(z) = P_lm(z) / (1 - z^2)^(m/2)``:

        p_mm = (2m - 1)!!,   (l - m) p_lm = (2l - 1) z p_(l-1)m - (l + m - 1) p_(l-2)m
        Y_l,+-m = sqrt((2 - delta_m0) (2l + 1) (l - m)! / (l + m)!) p_lm(z) {a_m | b_m}

    Args:
        l_max: Largest degree.
    """

    def __init__(self, l_max: int):
        super().__init__()
        self.l_max = l_max
        self.size = (l_max + 1) ** 2

    def forward(self, units: Tensor) -> Tensor:
        """Map unit vectors [n, 3] to [n, (l_max + 1)^2]."""
        x, y, z = units.unbind(-1)
        a, b = [torch.ones_like(x)], [torch.zeros_like(x)]
        for m in range(self.l_max):
            a.append(x * a[m] - y * b[m])
            b.append(x * b[m] + y * a[m])
        harmonics: dict[tuple[int, int], Tensor] = {}
        for m in range(self.l_max + 1):
            before, p = torch.zeros_like(z), torch.full_like(z, _double_factorial(2 * m - 1))
            for degree in range(m, self.l_max + 1):
                if degree > m:
                    rise = (2 * degree - 1) * z * p - (degree + m - 1) * before
                    before, p = p, rise / (degree - m)
                square = (2 * degree + 1) * math.factorial(degree - m) / math.factorial(degree + m)
                scaled = p * math.sqrt(square * (2 if m else 1))
                harmonics[degree, m] = scaled * a[m]
                if m:
                    harmonics[degree, -m] = scaled * b[m]
        return torch.stack([harmonics[key] for key in sorted(harmonics)], dim=-1)


def _double_factorial(n: int) -> float:
    return math.prod(range(n, 0, -2)) if n > 0 else 1.0
