"""Spherical Bessel functions against scipy: zeros, values, slopes, and both orders of autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

from dcase.potentials.networks.spherical import (
    SphericalBesselBasis,
    spherical_bessel,
    spherical_bessel_zeros,
)


@pytest.mark.parametrize("order", [0, 1, 2, 6, 11, 20])
def test_potentials_spherical_bessel_functions(order):
    # Small arguments too, where closed forms cancel: at x = 0.01 that of j_6 has no digit left.
    x = np.concatenate([np.geomspace(1e-8, 1.0, 50), np.linspace(1.0, 80.0, 500)])
    assert np.abs(spherical_bessel(order, x) - special.spherical_jn(order, x)).max() < 2e-14


def test_potentials_spherical_bessel_zeros():
    zeros = spherical_bessel_zeros(12, 10)
    assert zeros.shape == (12, 10)
    assert np.allclose(zeros[0], np.pi * np.arange(1, 11), rtol=1e-15)
    # Textbook values (Abramowitz and Stegun, table 10.6).
    assert np.allclose(zeros[1, :3], [4.493409, 7.725252, 10.904122], atol=1e-6)
    assert np.allclose(zeros[2, :2], [5.763459, 9.095011], atol=1e-6)
    for order in range(12):
        assert np.abs(special.spherical_jn(order, zeros[order])).max() < 1e-14
        # None is left out: between neighbouring zeros the function has one sign only.
        for low, high in zip(np.append(1e-3, zeros[order]), zeros[order], strict=False):
            inside = special.spherical_jn(order, np.linspace(low, high, 60)[1:-1])
            assert (np.sign(inside) == np.sign(inside[0])).all()


@pytest.mark.parametrize(
    ("spherical", "radial"), [(7, 6), (1, 1), pytest.param(12, 16, marks=pytest.mark.slow)]
)
def test_potentials_spherical_basis_and_its_slope(spherical, radial):
    cutoff = 5.0
    basis = SphericalBesselBasis(cutoff, spherical, radial)
    zeros = spherical_bessel_zeros(spherical, radial)
    d = np.linspace(0.05, cutoff, 400)
    distances = torch.tensor(d, requires_grad=True)
    values = basis(distances).view(-1, spherical, radial)
    for order in range(spherical):
        for n, z in enumerate(zeros[order]):
            norm = np.sqrt(2) / abs(special.spherical_jn(order + 1, z))
            own = values[:, order, n]
            expected = norm * special.spherical_jn(order, z * d / cutoff)
            assert np.abs(own.detach().numpy() - expected).max() < 1e-12 * max(1.0, norm)
            (slope,) = torch.autograd.grad(own.sum(), distances, retain_graph=True)
            expected = norm * z / cutoff * special.spherical_jn(order, z * d / cutoff, True)
            assert np.abs(slope.numpy() - expected).max() < 1e-11 * max(1.0, norm) * z


def test_potentials_spherical_basis_has_unit_norm_in_the_sphere():
    # The integral of R_ln R_lm x^2 over the unit sphere is delta_nm: orthonormal for each l.
    x, weights = np.polynomial.legendre.leggauss(80)
    x, weights = (x + 1) / 2, weights / 2
    values = SphericalBesselBasis(1.0, 5, 4)(torch.tensor(x)).view(-1, 5, 4).numpy()
    overlap = np.einsum("pln,plm,p->lnm", values, values, weights * x**2)
    assert np.allclose(overlap, np.eye(4), atol=1e-13)


def test_potentials_spherical_basis_differentiates_twice():
    basis = SphericalBesselBasis(4.0, 4, 3, factors=np.array([1.0, -2.0, 0.5, 3.0]))
    distances = torch.tensor([0.3, 1.1, 2.7, 3.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(basis, distances)
    assert torch.autograd.gradgradcheck(basis, distances)
    plain = SphericalBesselBasis(4.0, 4, 3)(distances).view(4, 4, 3)
    scaled = basis(distances).view(4, 4, 3)
    assert torch.allclose(scaled[:, 1], -2 * plain[:, 1])


def test_potentials_spherical_basis_stays_exact_in_a_float32_network():
    basis = SphericalBesselBasis(5.0, 7, 6)
    distances = torch.linspace(0.5, 5, 100, dtype=torch.float64)
    exact = basis(distances)
    rounded = basis.to(torch.float32)(distances, torch.float32)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 3e-6 * exact.abs().max()
    assert torch.equal(basis.to(torch.float64)(distances), exact)
