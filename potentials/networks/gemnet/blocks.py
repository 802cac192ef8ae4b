"""The blocks of GemNet-T: edge embedding, atom update, output, interaction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcase.potentials.networks.gemnet.layers import (
    INV_SQRT_2,
    Dense,
    he_orthogonal_,
    linear,
    residuals,
)
from dcase.potentials.networks.gemnet.scaling import ScaleFactor
from dcase.potentials.networks.gemnet.triplets import Geometry, TripletInteraction


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network, named as its hyper-parameters."""

    emb_size_atom: int
    emb_size_edge: int
    emb_size_trip: int
    emb_size_rbf: int
    emb_size_cbf: int
    emb_size_bil_trip: int
    num_before_skip: int
    num_after_skip: int
    num_concat: int
    num_atom: int


class EdgeFeatures(nn.Module):
    """``act(W [h_c, h_a, x_ca])``: edge features from both atoms and ``x`` of the edge.

    The product with the concatenated vector is taken as a sum of three products, two of them once
    per atom and not once per edge.
    """

    def __init__(self, n_atom: int, n_edge: int, n_out: int, act: nn.Module):
        super().__init__()
        self.n_atom = n_atom
        self.weight = nn.Parameter(he_orthogonal_(torch.empty(n_out, 2 * n_atom + n_edge)))
        self.act = act

    def forward(self, h: Tensor, x: Tensor, shape: Geometry) -> Tensor:
        """Edge features.

        Args:
            h: Atom features, shape [n_atoms, n_atom].
            x: Edge features of any direction, shape [n_pairs, n_edge] or [2, n_pairs, n_edge].
            shape: The edges.

        Returns:
            Shape [2, n_pairs, n_out].
        """
        source, target, own = self.weight.split(
            [self.n_atom, self.n_atom, self.weight.shape[1] - 2 * self.n_atom], dim=1
        )
        atoms = nn.functional.linear(h, source).index_select(0, shape.source)
        atoms = atoms + nn.functional.linear(h, target).index_select(0, shape.target)
        return self.act(atoms.view(2, x.shape[-2], atoms.shape[1]) + nn.functional.linear(x, own))


class AtomUpdate(nn.Module):
    """Messages into atoms: ``MLP(sum_c m_ca * W rbf(d_ca))``.

    Args:
        name: For the scale factor.
        size: Sizes.
        act: Activation.
    """

    def __init__(self, name: str, size: Sizes, act: nn.Module):
        super().__init__()
        self.mlp_rbf = linear(size.emb_size_rbf, size.emb_size_edge)
        self.scale_sum = ScaleFactor(f"{name}_sum")
        self.dense = Dense(size.emb_size_edge, size.emb_size_atom, act)
        self.residuals = residuals(size.num_atom, size.emb_size_atom, act)

    def forward(self, m: Tensor, rbf: Tensor, shape: Geometry, n_atoms: int) -> Tensor:
        """Atom features from messages.

        Args:
            m: Shape [2, n_pairs, emb_size_edge].
            rbf: Projected radial basis, shape [n_pairs, emb_size_rbf].
            shape: The edges.
            n_atoms: Number of atoms.

        Returns:
            Shape [n_atoms, emb_size_atom]; zero for an atom without neighbours.
        """
        weighted = (m * self.mlp_rbf(self.scale_sum(rbf))).flatten(0, 1)
        x = weighted.new_zeros(n_atoms, weighted.shape[1]).index_add(0, shape.target, weighted)
        x = self.scale_sum.settle(x, m)
        return self.residuals(self.dense(x))


class OutputBlock(AtomUpdate):
    """An atom update and a linear layer: per-atom energies, shape [n_atoms]."""

    def __init__(self, name: str, size: Sizes, act: nn.Module):
        super().__init__(name, size, act)
        self.energy = linear(size.emb_size_atom, 1)

    def forward(self, m: Tensor, rbf: Tensor, shape: Geometry, n_atoms: int) -> Tensor:
        """See :class:`AtomUpdate`."""
        return self.energy(super().forward(m, rbf, shape, n_atoms)).squeeze(-1)


class InteractionBlock(nn.Module):
    """New messages from triplets, new atoms from messages, and messages from both.

    Args:
        index: Number of the block, from 1, for the scale factors.
        size: Sizes.
        act: Activation.
    """

    def __init__(self, index: int, size: Sizes, act: nn.Module):
        super().__init__()
        n = size.emb_size_edge
        self.dense_ca = Dense(n, n, act)
        self.triplets = TripletInteraction(
            f"TripInteraction_{index}",
            n,
            size.emb_size_trip,
            size.emb_size_rbf,
            size.emb_size_cbf,
            size.emb_size_bil_trip,
            act,
        )
        self.before_skip = residuals(size.num_before_skip, n, act)
        self.after_skip = residuals(size.num_after_skip, n, act)
        self.atom_update = AtomUpdate(f"AtomUpdate_{index}", size, act)
        self.concat = EdgeFeatures(size.emb_size_atom, n, n, act)
        self.after_concat = residuals(size.num_concat, n, act)

    def forward(
        self, h: Tensor, m: Tensor, rbf: Tensor, cbf: Tensor, rbf_atom: Tensor, shape: Geometry
    ) -> tuple[Tensor, Tensor]:
        """Update atoms and messages.

        Args:
            h: Atom features, shape [n_atoms, emb_size_atom].
            m: Messages, shape [2, n_pairs, emb_size_edge].
            rbf: Radial basis for the triplets, shape [n_pairs, emb_size_rbf].
            cbf: Radial part of the circular basis, shape [n_pairs, emb_size_cbf, num_spherical].
            rbf_atom: Radial basis for the atom update, shape [n_pairs, emb_size_rbf].
            shape: Edges and triplets.

        Returns:
            New h and m.
        """
        x = (self.dense_ca(m) + self.triplets(m, rbf, cbf, shape)) * INV_SQRT_2
        m = (m + self.before_skip(x)) * INV_SQRT_2
        m = self.after_skip(m)
        h = (h + self.atom_update(m, rbf_atom, shape, len(h))) * INV_SQRT_2
        m = (m + self.after_concat(self.concat(h, m, shape))) * INV_SQRT_2
        return h, m
