"""The blocks of DimeNet++, in the notation of :mod:`dcase.potentials.networks.dimenet`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dcase.initialization import stable_variances
from dcase.potentials.graphs.edges import (
    DirectedEdges,
    Neighbourhoods,
)


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
