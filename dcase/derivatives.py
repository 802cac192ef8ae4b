"""First derivatives of an energy with respect to positions and strain, by autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_gradient(
    energy: Tensor, inputs: Tensor, *, create_graph: bool = False, retain_graph: bool | None = None
) -> Tensor:
    """``d(sum of energies)/d inputs``, shape of ``inputs``; zeros where nothing depends on them.

    Because systems in a batch do not interact, the gradient of the sum holds each system's own.

    Args:
        energy: Per-system or per-atom energies, any shape.
        inputs: The leaf to differentiate by; must require gradients.
        create_graph: Keep the result differentiable (needed to train on it).
        retain_graph: Keep the graph of ``energy`` (default: as ``create_graph``).
    """
    if not energy.requires_grad:  # e.g. no pair within the cutoff
        return torch.zeros_like(inputs)
    (gradient,) = torch.autograd.grad(
        energy.sum(),
        inputs,
        create_graph=create_graph,
        retain_graph=create_graph if retain_graph is None else retain_graph,
        allow_unused=True,
    )
    return torch.zeros_like(inputs) if gradient is None else gradient


def apply_strain(positions: Tensor, cells: Tensor, system: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Strain positions and cells by a zero strain that can be differentiated by.

    ``x -> x (1 + eps)`` with a symmetric ``eps`` per system, so that the stress is
    ``sigma = (1/V) dE/d eps`` (Knuth et al., Comput. Phys. Commun. 190, 33 (2015)).

    Args:
        positions: A, shape [n_atoms, 3].
        cells: A, shape [n_systems, 3, 3].
        system: System of each atom, shape [n_atoms].

    Returns:
        Strained positions, strained cells, and the strain leaf [n_systems, 3, 3].
    """
    strain = torch.zeros_like(cells, requires_grad=True)
    symmetric = 0.5 * (strain + strain.transpose(1, 2))
    positions = positions + torch.einsum("nx,nxy->ny", positions, symmetric.index_select(0, system))
    return positions, cells + cells @ symmetric, strain


def stress_voigt(strain_gradient: Tensor, cells: Tensor) -> Tensor:
    """Stress in eV/A^3, Voigt order xx, yy, zz, yz, xz, xy, tension positive, shape [n_systems, 6].

    Args:
        strain_gradient: dE/d eps in eV, symmetric, shape [n_systems, 3, 3].
        cells: A, shape [n_systems, 3, 3].
    """
    volume = torch.linalg.det(cells).abs()
    stress = strain_gradient / volume[:, None, None]
    rows, columns = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    return stress[:, rows, columns]


def pair_virials(vectors: Tensor, pulls: Tensor, system: Tensor, n_systems: int) -> Tensor:
    """dE/d eps of :func:`apply_strain` from pairs: ``sum_p (r_p g_p^T + g_p r_p^T) / 2``.

    Args:
        vectors: r of each pair, A, shape [n_pairs, 3].
        pulls: Its ``g = dE/dr``, eV/A, shape [n_pairs, 3].
        system: System of each pair, shape [n_pairs].
        n_systems: How many there are.

    Returns:
        eV, shape [n_systems, 3, 3]; differentiable in ``pulls``.
    """
    outer = vectors[:, :, None] * pulls[:, None, :]
    found = outer.new_zeros(n_systems, 3, 3).index_add(0, system, outer)
    return 0.5 * (found + found.transpose(1, 2))
