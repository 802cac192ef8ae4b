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
from dcase.initialization import stable_variances
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
from dcase.potentials.networks.linear_growth import LinearGrowth, begins_with_a_square
from dcase.potentials.networks.spherical import SphericalBesselBasis


def glorot_orthogonal_(weight: Tensor) -> None:
    """Orthogonal, scaled to Glorot's variance ``2 / (fan_in + fan_out)``, as DimeNet draws it."""
    with torch.no_grad():
        nn.init.orthogonal_(weight)
        weight.mul_(torch.sqrt(2.0 / (sum(weight.shape) * weight.var())))


def _dense(fan_in: int, fan_out: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    glorot_orthogonal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _by_pair(messages: Tensor, values: Tensor) -> Tensor:
    """``messages`` [n_edges, ...] times ``values`` [n_pairs, ...] of the pair of each edge."""
    return (messages.unflatten(0, (2, len(values))) * values).flatten(0, 1)


class Embedding(nn.Module):
    """Messages from the elements at both ends and the distance."""

    def __init__(self, num_elements: int, hidden: int, num_radial: int, act: nn.Module):
        super().__init__()
        self.element = nn.Embedding(num_elements, hidden)
        nn.init.uniform_(self.element.weight, -math.sqrt(3), math.sqrt(3))
        self.radial = nn.Linear(num_radial, hidden)
        self.message = nn.Linear(3 * hidden, hidden)
        self.act = act

    def forward(self, species: Tensor, edges: DirectedEdges, radial: Tensor) -> Tensor:
        """Messages [n_edges, hidden] from the Bessel basis [n_pairs, num_radial]."""
        # One matrix on [h_i, h_j, e] is three matrices, of which two act on elements and one on
        # pairs: none on edges.
        at_target, at_source, at_pair = self.message.weight.chunk(3, dim=1)
        elements = self.element.weight
        pair = nn.functional.linear(
            self.act(self.radial(radial)), at_pair, self.message.bias
        )  # [n_pairs, hidden]
        ends = nn.functional.embedding(species[edges.target], elements @ at_target.T)
        ends = ends + nn.functional.embedding(species[edges.source], elements @ at_source.T)
        return self.act((ends.unflatten(0, (2, len(pair))) + pair).flatten(0, 1))


class Residual(nn.Module):
    """``x + sigma(W sigma(W x))``."""

    def __init__(self, hidden: int, act: nn.Module):
        super().__init__()
        self.first, self.second = _dense(hidden, hidden), _dense(hidden, hidden)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, hidden]."""
        return x + self.act(self.second(self.act(self.first(x))))


class Interaction(nn.Module):
    """Each message meets all others that enter its source."""

    def __init__(
        self,
        hidden: int,
        int_emb: int,
        basis_emb: int,
        num_spherical: int,
        num_radial: int,
        num_before_skip: int,
        num_after_skip: int,
        act: nn.Module,
    ):
        super().__init__()
        self.num_spherical = num_spherical
        self.radial_in = _dense(num_radial, basis_emb, bias=False)
        self.radial_out = _dense(basis_emb, hidden, bias=False)
        self.spherical_in = _dense(num_spherical * num_radial, basis_emb, bias=False)
        self.spherical_out = _dense(basis_emb, int_emb, bias=False)
        self.incoming, self.own = _dense(hidden, hidden), _dense(hidden, hidden)
        self.down = _dense(hidden, int_emb, bias=False)
        self.up = _dense(int_emb, hidden, bias=False)
        self.before_skip = nn.ModuleList(Residual(hidden, act) for _ in range(num_before_skip))
        self.update = _dense(hidden, hidden)
        self.after_skip = nn.ModuleList(Residual(hidden, act) for _ in range(num_after_skip))
        self.act = act

    def filters(self, spherical: Tensor) -> Tensor:
        """``sum_n W_ln R_ln(d)`` [n_pairs, num_spherical, int_emb] from ``R``, l before pairs.

        Args:
            spherical: ``R_ln(d)``, shape [num_spherical, n_pairs, num_radial].
        """
        weight = self.spherical_out.weight @ self.spherical_in.weight
        by_order = weight.view(weight.shape[0], self.num_spherical, -1).permute(1, 2, 0)
        return torch.bmm(spherical, by_order).transpose(0, 1)

    def forward(
        self,
        messages: Tensor,
        radial: Tensor,
        spherical: Tensor,
        angular: Tensor,
        near: Neighbourhoods,
        opposite: Tensor,
    ) -> Tensor:
        """New messages.

        Args:
            messages: Shape [n_edges, hidden].
            radial: Bessel basis, shape [n_pairs, num_radial].
            spherical: Radial part of the spherical basis, [num_spherical, n_pairs, num_radial].
            angular: ``P_l`` between the edges of each atom, 0 between an edge and itself, shape
                [n_atoms, width, width * num_spherical].
            near: The edges into each atom.
            opposite: Slot of the reverse of each edge, shape [n_edges].
        """
        by_distance = nn.functional.linear(radial, self.radial_out.weight @ self.radial_in.weight)
        incoming = _by_pair(self.act(self.incoming(messages)), by_distance)
        incoming = self.act(self.down(incoming))  # [n_edges, int_emb]
        filtered = _by_pair(incoming.unsqueeze(1), self.filters(spherical))
        slots = near.gather(filtered).flatten(1, 2)  # [n_atoms, width * num_spherical, int_emb]
        # Row of the slot of edge i->j: the sum over k->j, which is what the message j->i needs.
        summed = torch.bmm(angular, slots).flatten(0, 1).index_select(0, opposite)
        x = self.act(self.own(messages)) + self.act(self.up(summed))
        for layer in self.before_skip:
            x = layer(x)
        x = messages + self.act(self.update(x))
        for layer in self.after_skip:
            x = layer(x)
        return x


class Output(nn.Module):
    """Per-atom energies from the messages that arrive."""

    def __init__(self, hidden: int, out_emb: int, num_radial: int, num_layers: int, act: nn.Module):
        super().__init__()
        self.radial = _dense(num_radial, hidden, bias=False)
        self.up = _dense(hidden, out_emb, bias=False)
        self.layers = nn.ModuleList(_dense(out_emb, out_emb) for _ in range(num_layers))
        self.energy = _dense(out_emb, 1, bias=False)
        self.act = act

    @torch.no_grad()
    def stabilize_(self) -> None:
        """Initial weights that neither explode nor die whatever the activation is.

        With the published ones (no bias, Glorot's variance) IReLU squares a pre-activation three
        times: atoms with messages above 1 get energies of hundreds, others none. The variances of
        :func:`dcase.initialization.stable_variances` have a fixed point at 1 that attracts from
        below, so the layers are entered well below it (the sum over some 15 neighbours is 1 to 2).
        First predictions are small, but not zero as published: every layer has a gradient from
        the first step.
        """
        sigma_w2, sigma_b2 = stable_variances(self.act)
        self.up.weight.mul_(1 / 3)
        for layer in self.layers:
            layer.weight.mul_(math.sqrt(sigma_w2))  # type: ignore[operator, union-attr]
            nn.init.normal_(layer.bias, std=math.sqrt(sigma_b2))  # type: ignore[arg-type]
        self.energy.weight.mul_(0.1)

    def forward(self, messages: Tensor, radial: Tensor, target: Tensor, n_atoms: int) -> Tensor:
        """Energies [n_atoms] from messages [n_edges, hidden] and basis [n_pairs, num_radial]."""
        weighted = _by_pair(messages, self.radial(radial))
        x = weighted.new_zeros(n_atoms, weighted.shape[1]).index_add(0, target, weighted)
        x = self.up(x)
        for layer in self.layers:
            x = self.act(layer(x))
        return self.energy(x).squeeze(-1)


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
