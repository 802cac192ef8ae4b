"""DimeNet++: directional message passing (Gasteiger et al., arXiv:2003.03123 and arXiv:2011.14115).

Messages ``m_ji`` live on directed edges, from source j to target i; ``e(d)`` is the Bessel basis
(2003.03123, eq. 7) and ``a_ln(d, angle)`` the spherical one (eq. 6), both times the envelope
``u(d) / d`` (eq. 8); sigma is the activation.

    m_ji  = sigma(W [h_j, h_i, sigma(W e)])                                     embedding block
    t_ji  = sum_{k != i} (W a(d_kj, angle_kji)) * sigma(W_down (sigma(W m_kj) * W e(d_kj)))
    m_ji <- residual layers of [sigma(W m_ji) + sigma(W_up t_ji)], with a skip  interaction block
    E_i   = sum over blocks of W sigma(W ... W_up sum_j (W e(d_ji)) * m_ji)     output block

Layer for layer the same as ``torch_geometric.nn.models.DimeNetPlusPlus`` (which the tests compare
it with), except that no neighbour is ever dropped and that k differs from i as an *edge*: another
periodic image of i is a neighbour like any other.

The sum over triplets. DimeNet++ put no activation between the layers that embed the spherical
basis, and that basis is ``R_ln(d_kj) P_l(cos angle_kji)``. Their product collapses, for every l, to
one filter per *edge*, and what is left per triplet is a number:

    t_ji = sum_k sum_l P_l(cos angle_kji) * [ (sum_n W_ln R_ln(d_kj)) * x_kj ]

With the edges of each atom side by side this is one batched matrix product, and so are all its
derivatives; no vector per triplet is ever stored. P_l is a polynomial of the cosine, which is a
product of unit vectors: the energy is smooth for straight chains too, where the angle is not.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from dcase.activations import get_activation
from dcase.potentials.graphs.edges import (
    DirectedEdges,
    Neighbourhoods,
    directed_edges,
    legendre,
    neighbourhoods,
)
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.networks.architecture import Architecture, check_sizes
from dcase.potentials.networks.bases import BesselBasis, PolynomialEnvelope
from dcase.potentials.networks.dimenet_blocks import Embedding, Interaction, Output
from dcase.potentials.networks.linear_growth import LinearGrowth, begins_with_a_square
from dcase.potentials.networks.spherical import SphericalBesselBasis


class DimeNetPP(nn.Module):
    """Per-atom energies from an :class:`~dcase.potentials.graphs.graph.AtomicGraph`.

    Args:
        num_elements: Number of element embeddings.
        hidden_channels: Size of the messages.
        out_emb_channels: Size of the atom features in the output blocks.
        int_emb_size: Size of the messages in the sum over triplets.
        basis_emb_size: Size of the embedded bases.
        num_interactions: Number of interaction blocks.
        num_spherical: Number of Legendre polynomials P_l, l = 0, 1, ...
        num_radial: Number of radial functions.
        envelope_exponent: Of the smooth cutoff; its polynomial starts with this power plus 1.
        num_before_skip: Residual layers before the skip connection.
        num_after_skip: Residual layers after it.
        num_output_layers: Hidden layers of each output block.
        cutoff: A.
        activation: Name of the activation; where it goes is said by ``placement``.
        variant: ``"default"``, or ``"paper"``: angles carry no gradient (as in Open Catalyst's
            implementation, which the DC paper used), activations are bare, and initial weights are
            the published ones, zero in the last layer of each output block.
        placement: ``"published"``: the activation is that of the output blocks, all others are
            SiLU. ``"all"``: it is used everywhere; where it begins with a square, as IReLU, the
            default variant has it as :class:`~dcase.potentials.networks.linear_growth.LinearGrowth`
            outside the output blocks (bare, it overflows before the first step).

    Raises:
        OptionError: If a size is not positive.
    """

    def __init__(
        self,
        num_elements: int,
        *,
        hidden_channels: int = 128,
        out_emb_channels: int = 256,
        int_emb_size: int = 64,
        basis_emb_size: int = 8,
        num_interactions: int = 4,
        num_spherical: int = 7,
        num_radial: int = 6,
        envelope_exponent: int = 5,
        num_before_skip: int = 1,
        num_after_skip: int = 2,
        num_output_layers: int = 3,
        cutoff: float = 5.0,
        activation: str = "irelu",
        variant: str = "default",
        placement: str = "published",
    ):
        super().__init__()
        sizes = {
            "hidden_channels": (hidden_channels, 2),
            "out_emb_channels": (out_emb_channels, 2),
            "int_emb_size": (int_emb_size, 2),
            "basis_emb_size": (basis_emb_size, 1),
            "num_interactions": (num_interactions, 0),
            "num_spherical": (num_spherical, 1),
            "num_radial": (num_radial, 1),
            "envelope_exponent": (envelope_exponent, 2),
            "num_before_skip": (num_before_skip, 0),
            "num_after_skip": (num_after_skip, 0),
            "num_output_layers": (num_output_layers, 0),
        }
        check_sizes(sizes, cutoff)
        outer = get_activation(activation)
        inner = get_activation(activation if placement == "all" else "silu")
        if placement == "all" and variant != "paper" and begins_with_a_square(activation):
            inner = LinearGrowth(activation)
        self.cutoff = float(cutoff)
        self.num_spherical = num_spherical
        self.detached_angles = variant == "paper"
        self.envelope = PolynomialEnvelope(cutoff, envelope_exponent + 1)
        self.basis = BesselBasis(cutoff, num_radial)
        # P_l comes with the norm of Y_l0. The published angle is between j->i and k->j, the
        # supplement of the one at j, which gives odd P_l the other sign.
        order = np.arange(num_spherical)
        norms = (-1.0) ** order * np.sqrt((2 * order + 1) / (4 * math.pi))
        self.spherical = SphericalBesselBasis(cutoff, num_spherical, num_radial, norms)
        self.embedding = Embedding(num_elements, hidden_channels, num_radial, inner)
        self.interactions = nn.ModuleList(
            Interaction(
                hidden_channels,
                int_emb_size,
                basis_emb_size,
                num_spherical,
                num_radial,
                num_before_skip,
                num_after_skip,
                inner,
            )
            for _ in range(num_interactions)
        )
        self.outputs = nn.ModuleList(
            Output(hidden_channels, out_emb_channels, num_radial, num_output_layers, outer)
            for _ in range(num_interactions + 1)
        )
        for output in self.outputs:
            if variant == "paper":
                nn.init.zeros_(output.energy.weight)  # type: ignore[union-attr, arg-type]
            else:
                output.stabilize_()  # type: ignore[operator]

    def forward(self, species: Tensor, graph: AtomicGraph) -> Tensor:
        """Per-atom energies in the network's unit.

        Args:
            species: Index of each atom's element, int64, shape [n_atoms].
            graph: The atoms and their pairs.

        Returns:
            Shape [n_atoms].
        """
        edges = directed_edges(graph)
        radial, spherical = self._bases(edges.distances[: len(edges) // 2])
        messages = self.embedding(species, edges, radial)
        energies = self.outputs[0](messages, radial, edges.target, graph.n_atoms)
        if not self.interactions:
            return energies
        near = neighbourhoods(edges.target, graph.n_atoms)
        angular = self._angular(edges, near, messages.dtype)
        opposite = edges.reverse(near.place)
        for interaction, output in zip(self.interactions, self.outputs[1:], strict=True):  # type: ignore[arg-type]
            messages = interaction(messages, radial, spherical, angular, near, opposite)
            energies = energies + output(messages, radial, edges.target, graph.n_atoms)
        return energies

    def _bases(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """``e_n(d)`` [n_pairs, n] and ``R_ln(d)`` [l, n_pairs, n] of the pairs, with envelope."""
        dtype = self.basis.frequencies.dtype
        envelope = self.envelope(distances).unsqueeze(-1)
        # The published e_n are without the norm of eq. 7.
        norm = math.sqrt(self.cutoff**3 / 2)
        radial = self.basis(distances) * (norm * envelope).to(dtype)
        # The published envelope of R_ln is u(x) / x, x in units of the cutoff.
        x = distances.unsqueeze(-1) / self.cutoff
        spherical = self.spherical(distances, dtype) * (envelope / x).to(dtype)
        by_order = spherical.unflatten(1, (self.num_spherical, -1)).transpose(0, 1)
        return radial, by_order.contiguous()

    def _angular(self, edges: DirectedEdges, near: Neighbourhoods, dtype: torch.dtype) -> Tensor:
        """``P_l(cos)`` between the edges into each atom [n_atoms, width, width * num_spherical]."""
        units = edges.unit_vectors()
        if self.detached_angles:
            units = units.detach()
        units = near.gather(units.to(dtype))
        polynomials = legendre(torch.bmm(units, units.transpose(1, 2)), self.num_spherical)
        # An edge makes no angle with itself: k is not i. Empty slots hold no message anyway.
        apart = 1 - torch.eye(near.width, dtype=dtype, device=units.device)
        return (polynomials * apart.unsqueeze(-1)).flatten(2)


ARCHITECTURE = Architecture(
    "dimenet++",
    DimeNetPP,
    sizes={
        # Open Catalyst's DimeNet++, the size of the DC paper's tables.
        "paper": {
            "hidden_channels": 192,
            "out_emb_channels": 192,
            "num_interactions": 3,
            "cutoff": 6.0,
        },
        # As published for small molecules (arXiv:2011.14115 and its configuration file).
        "md17": {
            "hidden_channels": 128,
            "out_emb_channels": 256,
            "num_interactions": 4,
            "cutoff": 5.0,
        },
        "tiny": {
            "hidden_channels": 16,
            "out_emb_channels": 16,
            "int_emb_size": 8,
            "basis_emb_size": 4,
            "num_interactions": 2,
            "num_spherical": 4,
            "num_radial": 4,
            "num_before_skip": 1,
            "num_after_skip": 1,
            "num_output_layers": 1,
            "cutoff": 4.0,
        },
    },
    paper_activation="silu",
    aliases=("dimenetpp", "dimenet_plus_plus"),
    departures=("angles carry no gradient, so forces are not -dE/dx and energy is not conserved",),
    kernel_plan="dcase.potentials.kernels.networks:dimenet",
)
