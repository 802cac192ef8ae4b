"""The radial part of DimeNet's spherical basis: spherical Bessel functions, to machine precision.

DimeNet (Gasteiger et al., ICLR 2020, arXiv:2003.03123), eq. 6, expands distance and angle in

    j_l(z_ln d / rc) Y_l0(angle),      z_ln the n-th positive zero of j_l.

Neither closed forms (which cancel where the argument is smaller than l) nor the recurrences (which
are stable in one direction only) are needed. On the interval [0, rc] each of these functions is
analytic, so a few dozen Chebyshev polynomials hold it to rounding, and its derivatives of any order
are Chebyshev series again. Evaluation is one cosine a polynomial and one matrix product.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcase.potentials.networks.float64_buffers import ExactBuffers


def spherical_bessel(order: int, x: np.ndarray) -> np.ndarray:
    """``j_l(x) = 1/2 int_{-1}^{1} cos(x s - l pi / 2) P_l(s) ds``, to 1e-14 absolute.

    The Rayleigh expansion of a plane wave, projected on ``P_l``; Gauss-Legendre quadrature of the
    analytic integrand converges faster than exponentially, and nothing cancels.

    Args:
        order: l, at least 0.
        x: Arguments, any shape.
    """
    x = np.asarray(x, dtype=np.float64)
    reach = float(np.abs(x).max(initial=0.0))
    s, weights = np.polynomial.legendre.leggauss(int(reach) + order + 20)
    legendre = np.polynomial.legendre.legval(s, np.eye(order + 1)[order])
    return 0.5 * np.cos(x[..., None] * s - 0.5 * math.pi * order) @ (weights * legendre)


def spherical_bessel_zeros(num_spherical: int, num_radial: int) -> np.ndarray:
    """Positive zeros ``z_ln`` of ``j_0 ... j_{num_spherical-1}``.

    The zeros of ``j_l`` interlace with those of ``j_{l-1}``, so that each is bracketed by two
    known ones; those of ``j_0 = sin(x) / x`` are multiples of pi.

    Returns:
        float64, shape [num_spherical, num_radial].
    """
    previous = math.pi * np.arange(1, num_radial + num_spherical)
    zeros = [previous[:num_radial]]
    for order in range(1, num_spherical):
        low, high = previous[:-1].copy(), previous[1:].copy()
        rising = spherical_bessel(order, low) < 0
        for _ in range(60):  # bisection down to the last bit
            middle = 0.5 * (low + high)
            left = (spherical_bessel(order, middle) < 0) == rising
            low, high = np.where(left, middle, low), np.where(left, high, middle)
        previous = 0.5 * (low + high)
        zeros.append(previous[:num_radial])
    return np.stack(zeros)


class _ChebyshevSeries(torch.autograd.Function):
    """``out[p, f] = sum_k T_k(x_p) c[k, f]``, differentiable in the distance any number of times.

    ``polynomials`` holds ``T_k(x_p)`` already; ``slope`` maps the coefficients of a series to those
    of its derivative with respect to the distance. Coefficients are constants.
    """

    @staticmethod
    def forward(
        ctx: Any, distances: Tensor, polynomials: Tensor, coefficients: Tensor, slope: Tensor
    ) -> Tensor:
        ctx.save_for_backward(distances, polynomials, coefficients, slope)
        return polynomials @ coefficients.to(polynomials.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        distances, polynomials, coefficients, slope = ctx.saved_tensors
        derivative = _ChebyshevSeries.apply(distances, polynomials, slope @ coefficients, slope)
        return (grad * derivative).sum(-1).to(distances.dtype), None, None, None


class SphericalBesselBasis(ExactBuffers):
    """``c_l sqrt(2) / |j_{l+1}(z_ln)| j_l(z_ln d / rc)`` for all l and n: eq. 6 without its P_l.

    The factor normalises j_l on the unit sphere; eq. 6's ``rc^{-3/2}`` is left out, as in the
    published code.

    Args:
        cutoff: rc, A.
        num_spherical: Number of orders l = 0, 1, ...
        num_radial: Number of zeros of each.
        factors: ``c_l``, shape [num_spherical]; default 1.
    """

    coefficients: Tensor
    slope: Tensor

    def __init__(
        self, cutoff: float, num_spherical: int, num_radial: int, factors: np.ndarray | None = None
    ):
        super().__init__()
        self.cutoff = cutoff
        zeros = spherical_bessel_zeros(num_spherical, num_radial)
        # T_k's share of a wave with k_max radians on [-1, 1] is J_k(k_max): it falls faster than
        # exponentially from there on.
        half = float(zeros.max()) / 2
        n = math.ceil(half + 8 * half ** (1 / 3)) + 20
        nodes = np.cos(math.pi * (np.arange(n) + 0.5) / n)
        values = np.empty((n, num_spherical, num_radial))
        for order in range(num_spherical):
            z = zeros[order]
            norm = math.sqrt(2.0) / np.abs(spherical_bessel(order + 1, z))
            norm = norm * (1.0 if factors is None else factors[order])
            values[:, order] = norm * spherical_bessel(order, np.outer((nodes + 1) / 2, z))
        # Interpolation at Chebyshev nodes is a cosine transform.
        transform = 2 / n * np.cos(math.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n)
        transform[0] /= 2
        coefficients = transform @ values.reshape(n, -1)
        # T_k' = 2k (T_{k-1} + T_{k-3} + ...), the last T_0 counting half; dx/dd = 2 / rc.
        slope = np.zeros((n, n))
        for k in range(1, n):
            slope[k - 1 :: -2, k] = 2 * k
        slope[0] /= 2
        self.register_buffer("coefficients", torch.from_numpy(coefficients), persistent=False)
        self.register_buffer("slope", torch.from_numpy(slope * 2 / cutoff), persistent=False)

    def forward(self, distances: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Map distances [n] in A to [n, num_spherical * num_radial], l before n, in ``dtype``.

        The value at the cutoff holds beyond it, where an envelope is zero anyway.
        """
        with torch.no_grad():
            x = (distances * (2 / self.cutoff) - 1).clamp(-1, 1)
            degree = torch.arange(len(self.slope), dtype=x.dtype, device=x.device)
            polynomials = torch.cos(torch.acos(x).unsqueeze(-1) * degree)
        return _ChebyshevSeries.apply(
            distances, polynomials.to(dtype or x.dtype), self.coefficients, self.slope
        )
