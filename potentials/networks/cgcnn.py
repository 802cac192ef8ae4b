"""CGCNN: crystal graph convolutions (Xie and Grossman, PRL 120, 145301 (2018), arXiv:1710.10324).

Open Catalyst's form of it. Notation: ``h_i`` features of atom i, ``e(d)`` Gaussians, ``s`` the
sigmoid, ``g`` softplus, ``fc`` the cutoff envelope, (.) the elementwise product.

    h_i    = Dense(k-hot features of the element)
    z_ij   = BN(W [h_i, h_j, e(d_ij)] + b) = (z'_ij, z''_ij)                            (eq. 5)
    h_i   <- g(h_i + c_i LN(sum_j fc(d_ij) s(z'_ij) (.) g(z''_ij)))                     (eq. 5)
    E      = sum_i Dense(act(Dense(... act(Dense(h_i)))))                               read-out

with ``c_i = tanh(sum_j fc(d_ij))``, a smooth count of neighbours that is 1 from about three on. A
LayerNorm divides out the size of what it gets: without ``c_i`` an atom's last neighbour would leave
at full strength and vanish within the last few tenths of A before the cutoff.

W acts on the three parts separately, ``W z = W_i h_i + W_j h_j + W_e e_ij``: the first two are
taken once an atom and the last once a pair rather than once a direction, and after that an edge
costs additions only.

The published implementation (``variant="paper"``) has neither ``fc`` nor ``c_i``, so that the
energy jumps when a pair crosses the cutoff, and reads the energy of the whole system out of the
mean of ``h_i``, so that two separate molecules do not have the sum of their energies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from dcase.activations import get_activation
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.networks.architecture import Architecture, check_sizes
from dcase.potentials.networks.bases import GaussianBasis, PolynomialEnvelope
from dcase.potentials.networks.element_features import k_hot_features
from dcase.potentials.networks.linear_growth import LinearGrowth, begins_with_a_square


class Convolution(nn.Module):
    """One gated convolution.

    Args:
        channels: Size F of the atom features.
        num_gaussians: Size of the radial basis.
        make_activation: Makes ``g``.
    """

    def __init__(self, channels: int, num_gaussians: int, make_activation: Callable[[], nn.Module]):
        super().__init__()
        # The three column blocks of W.
        self.target = nn.Linear(channels, 2 * channels)
        self.source = nn.Linear(channels, 2 * channels, bias=False)
        self.edge = nn.Linear(num_gaussians, 2 * channels, bias=False)
        self.edge_norm = nn.BatchNorm1d(2 * channels)
        self.gated_act = make_activation()
        self.atom_norm = nn.LayerNorm(channels)
        self.update_act = make_activation()
        # Xavier's range for W as a whole, as published.
        bound = math.sqrt(6.0 / (4 * channels + num_gaussians))
        for block in (self.target, self.source, self.edge):
            nn.init.uniform_(block.weight, -bound, bound)
        nn.init.zeros_(self.target.bias)

    def forward(
        self,
        h: Tensor,
        pairs: Tensor,
        basis: Tensor,
        envelope: Tensor | None,
        settled: Tensor | None = None,
    ) -> Tensor:
        """New features [n_atoms, F].

        Args:
            h: Features, shape [n_atoms, F].
            pairs: Half list, int64, shape [2, n_pairs].
            basis: Gaussians of each pair, shape [n_pairs, num_gaussians].
            envelope: Weight of each pair, shape [n_pairs, 1], or None for 1.
            settled: ``c_i``, shape [n_atoms, 1], or None for 1.
        """
        i, j = pairs
        message = torch.zeros_like(h)
        if len(i):  # else there is nothing that batch statistics could be taken of
            at_target, at_source, on_edge = self.target(h), self.source(h), self.edge(basis)
            z = torch.cat(
                [
                    at_target.index_select(0, i) + at_source.index_select(0, j) + on_edge,
                    at_target.index_select(0, j) + at_source.index_select(0, i) + on_edge,
                ]
            )
            gate, core = self.edge_norm(z).chunk(2, dim=1)
            gated = torch.sigmoid(gate) * self.gated_act(core)
            if envelope is not None:
                gated = gated * torch.cat([envelope, envelope])
            message = message.index_add(0, torch.cat([i, j]), gated)
        message = self.atom_norm(message)
        if settled is not None:
            message = message * settled
        return self.update_act(h + message)


class CGCNN(nn.Module):
    """Per-atom energies from an :class:`~dcase.potentials.graphs.graph.AtomicGraph`.

    Args:
        elements: Atomic numbers, in the order of their index.
        hidden_channels: Size of the atom features.
        num_interactions: Number of convolutions.
        num_gaussians: Number of radial basis functions.
        fc_channels: Size of the read-out's hidden layers.
        num_fc_layers: Number of the read-out's hidden layers.
        cutoff: A.
        activation: Name of the activation of the read-out. The gates keep sigmoid and softplus, as
            in the DC paper.
        variant: ``"paper"``: no envelope at the cutoff, and the read-out of the mean over atoms.
        placement: ``"all"``: the activation also takes the place of both softplus in every
            convolution (one that begins with a square as :class:`LinearGrowth`, but plain in the
            paper variant); the sigmoid stays, being a gate.
        normalization: Keep the BatchNorm on the edges. It is always built; the registry takes it
            out. The LayerNorm after the aggregation stays, as in the DC paper.

    Raises:
        OptionError: If a size is not positive, or an element has no features.
    """

    features: Tensor

    def __init__(
        self,
        elements: list[int],
        *,
        hidden_channels: int = 128,
        num_interactions: int = 3,
        num_gaussians: int = 50,
        fc_channels: int = 128,
        num_fc_layers: int = 2,
        cutoff: float = 5.0,
        activation: str = "irelu",
        variant: str = "default",
        placement: str = "published",
        normalization: bool = False,
    ):
        super().__init__()
        sizes = {
            "hidden_channels": (hidden_channels, 2),
            "num_interactions": (num_interactions, 0),
            "num_gaussians": (num_gaussians, 2),
            "fc_channels": (fc_channels, 1),
            "num_fc_layers": (num_fc_layers, 1),
        }
        check_sizes(sizes, cutoff)
        self.cutoff = float(cutoff)
        self.pools_mean = variant == "paper"
        self.register_buffer("features", k_hot_features(elements), persistent=False)
        self.embedding = nn.Linear(self.features.shape[1], hidden_channels)
        self.basis = GaussianBasis(cutoff, num_gaussians)
        self.envelope = None if variant == "paper" else PolynomialEnvelope(cutoff, 5)
        inside = activation if placement == "all" else "softplus"
        # What begins with a square would square in every convolution, and overflow.
        squares = variant != "paper" and begins_with_a_square(inside)
        inner = partial(LinearGrowth if squares else get_activation, inside)
        self.convolutions = nn.ModuleList(
            Convolution(hidden_channels, num_gaussians, inner) for _ in range(num_interactions)
        )
        widths = [hidden_channels] + [fc_channels] * num_fc_layers
        self.head = nn.Sequential()
        for n_in, n_out in pairwise(widths):
            self.head.append(nn.Linear(n_in, n_out))
            self.head.append(get_activation(activation))
        self.head.append(nn.Linear(fc_channels, 1))

    def forward(self, species: Tensor, graph: AtomicGraph) -> Tensor:
        """Per-atom energies in the network's unit.

        Args:
            species: Index of each atom's element, int64, shape [n_atoms].
            graph: The atoms and their pairs.

        Returns:
            Shape [n_atoms]. In the paper variant the energy is not one of atoms; each gets an equal
            share of its system's.
        """
        h = self.embedding(self.features).index_select(0, species)
        distances = graph.distances()
        basis = self.basis(distances, h.dtype)
        envelope = settled = None
        if self.envelope is not None:
            envelope = self.envelope(distances).to(h.dtype).unsqueeze(-1)
            count = envelope.new_zeros(len(h), 1).index_add(
                0, graph.pairs.flatten(), torch.cat([envelope, envelope])
            )
            settled = torch.tanh(count)
        for convolution in self.convolutions:
            h = convolution(h, graph.pairs, basis, envelope, settled)
        if not self.pools_mean:
            return self.head(h).squeeze(-1)
        n_atoms = torch.bincount(graph.system, minlength=graph.n_systems).to(h.dtype)
        mean = h.new_zeros(graph.n_systems, h.shape[1]).index_add(0, graph.system, h)
        energy = self.head(mean / n_atoms.unsqueeze(-1)).squeeze(-1)
        return (energy / n_atoms).index_select(0, graph.system)


ARCHITECTURE = Architecture(
    "cgcnn",
    CGCNN,
    sizes={
        # Open Catalyst's largest CGCNN, the size of the paper's tables.
        "paper": {
            "hidden_channels": 512,
            "num_interactions": 3,
            "num_gaussians": 100,
            "fc_channels": 128,
            "num_fc_layers": 3,
            "cutoff": 6.0,
        },
        "md17": {
            "hidden_channels": 128,
            "num_interactions": 3,
            "num_gaussians": 50,
            "fc_channels": 128,
            "num_fc_layers": 2,
            "cutoff": 5.0,
        },
        "tiny": {
            "hidden_channels": 16,
            "num_interactions": 2,
            "num_gaussians": 12,
            "fc_channels": 16,
            "num_fc_layers": 2,
            "cutoff": 4.0,
        },
    },
    paper_activation="softplus",
    departures=(
        "the energy jumps when a pair crosses the cutoff (no envelope)",
        "the energy is a mean over atoms, not extensive: separate fragments do not add up",
    ),
    by_elements=True,
    kernel_plan="dcase.potentials.kernels.networks:cgcnn",
)
