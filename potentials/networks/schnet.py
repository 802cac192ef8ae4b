"""SchNet: continuous-filter convolutions (Schuett et al., NeurIPS 2017, arXiv:1706.08566).

Notation: ``h_i`` features of atom i, ``d_ij`` distances, ``e_k`` Gaussians, ``fc`` the cutoff.

    W^l(d)  = fc(d) * Dense(act(Dense(e(d))))             filter network       (eq. 3)
    m_i     = sum_j W^l(d_ij) * (A^l h_j)                 continuous filter    (eq. 2)
    h_i    <- h_i + Dense(act(Dense(m_i)))                interaction block    (fig. 2)
    E       = sum_i Dense(act(Dense(h_i)))                read-out

Layer for layer the same as ``torch_geometric.nn.models.SchNet`` (which the tests compare it with),
except that no neighbour is ever dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcase.activations import get_activation
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.networks.architecture import Architecture, check_sizes
from dcase.potentials.networks.bases import CosineCutoff, GaussianBasis
from dcase.potentials.networks.pair_convolution import pair_convolution
from dcase.potentials.networks.splines import UniformSpline


class Interaction(nn.Module):
    """One interaction block with its filter network."""

    def __init__(self, hidden: int, filters: int, gaussians: int, activation: str):
        super().__init__()
        self.filter_in = nn.Linear(gaussians, filters)
        self.filter_act = get_activation(activation)
        self.filter_out = nn.Linear(filters, filters)
        self.atom_in = nn.Linear(hidden, filters, bias=False)
        self.atom_out = nn.Linear(filters, hidden)
        self.act = get_activation(activation)
        self.update = nn.Linear(hidden, hidden)

    def filters(self, basis: Tensor, envelope: Tensor) -> Tensor:
        """``W(d)`` [n, filters] from the Gaussians [n, gaussians] and the cutoff [n, 1]."""
        return self.filter_out(self.filter_act(self.filter_in(basis))) * envelope

    def forward(self, h: Tensor, pairs: Tensor, filters: Tensor) -> Tensor:
        """The update of ``h`` [n_atoms, hidden] from filters [n_pairs, filters]."""
        message = pair_convolution(filters, self.atom_in(h), pairs)
        return self.update(self.act(self.atom_out(message)))


class SchNet(nn.Module):
    """Per-atom energies from an :class:`~dcase.potentials.graphs.graph.AtomicGraph`.

    Args:
        num_elements: Number of element embeddings.
        hidden_channels: Size of the atom features.
        num_filters: Size of the filters.
        num_interactions: Number of interaction blocks.
        num_gaussians: Number of radial basis functions.
        cutoff: A.
        activation: Name of the activation, used everywhere (filter network, interaction, read-out),
            as the paper's IReLU replacement does.
        filter_knots: Intervals of the C2 cubic splines on which the filters ``fc(d) W(d)`` are
            taken, see :mod:`dcase.potentials.networks.splines`; 0: the filter networks at every
            distance. With splines the filter networks run on the knots only, which halves a
            training step, and the energy is a C2 function of the distances also where the
            activation is only C1.

    Raises:
        OptionError: If a size is not positive.
    """

    def __init__(
        self,
        num_elements: int,
        *,
        hidden_channels: int = 64,
        num_filters: int = 64,
        num_interactions: int = 3,
        num_gaussians: int = 25,
        cutoff: float = 5.0,
        activation: str = "irelu",
        filter_knots: int = 0,
    ):
        super().__init__()
        sizes = {
            "hidden_channels": (hidden_channels, 2),
            "num_filters": (num_filters, 1),
            "num_interactions": (num_interactions, 0),
            "num_gaussians": (num_gaussians, 2),
            "filter_knots": (filter_knots, 0),
        }
        check_sizes(sizes, cutoff)
        self.cutoff = float(cutoff)
        self.embedding = nn.Embedding(num_elements, hidden_channels)
        self.basis = GaussianBasis(cutoff, num_gaussians)
        self.envelope = CosineCutoff(cutoff)
        self.interactions = nn.ModuleList(
            Interaction(hidden_channels, num_filters, num_gaussians, activation)
            for _ in range(num_interactions)
        )
        self.out_in = nn.Linear(hidden_channels, hidden_channels // 2)
        self.out_act = get_activation(activation)
        self.out = nn.Linear(hidden_channels // 2, 1)
        self.table = UniformSpline(cutoff, filter_knots) if filter_knots else None

    def forward(self, species: Tensor, graph: AtomicGraph) -> Tensor:
        """Per-atom energies in the network's unit.

        Args:
            species: Index of each atom's element, int64, shape [n_atoms].
            graph: The atoms and their pairs.

        Returns:
            Shape [n_atoms].
        """
        h = self.embedding(species)
        if self.interactions:
            filters = self._filters(graph.distances(), h.dtype)
        for block, w in zip(self.interactions, filters if self.interactions else (), strict=True):
            h = h + block(h, graph.pairs, w)
        return self.out(self.out_act(self.out_in(h))).squeeze(-1)

    def _filters(self, distances: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Filters of every block, each [n_pairs, num_filters]."""
        if self.table is None:
            return self._exact_filters(distances, dtype)
        at_knots = self._exact_filters(self.table.knots, dtype)
        where = self.table.locate(distances)
        return [self.table(self.table.coefficients(values), where) for values in at_knots]

    def filter_table(self) -> Tensor:
        """Coefficients of the splines of all filters, [filter_knots + 3, blocks * num_filters].

        Differentiable in the weights of the filter networks. Needs ``filter_knots``.
        """
        assert self.table is not None
        dtype = self.embedding.weight.dtype
        if not self.interactions:
            return self.embedding.weight.new_zeros(self.table.n_intervals + 3, 0)
        return self.table.coefficients(
            torch.cat(self._exact_filters(self.table.knots, dtype), dim=1)
        )

    def _exact_filters(self, distances: Tensor, dtype: torch.dtype) -> list[Tensor]:
        basis = self.basis(distances, dtype)
        envelope = self.envelope(distances).to(dtype).unsqueeze(-1)
        return [block.filters(basis, envelope) for block in self.interactions]  # type: ignore[operator, union-attr]


ARCHITECTURE = Architecture(
    "schnet",
    SchNet,
    sizes={
        # Open Catalyst's largest SchNet, the size of the paper's tables.
        "paper": {
            "hidden_channels": 1024,
            "num_filters": 256,
            "num_interactions": 5,
            "num_gaussians": 200,
            "cutoff": 6.0,
        },
        "md17": {
            "hidden_channels": 64,
            "num_filters": 64,
            "num_interactions": 3,
            "num_gaussians": 25,
            "cutoff": 5.0,
        },
        "tiny": {
            "hidden_channels": 16,
            "num_filters": 16,
            "num_interactions": 2,
            "num_gaussians": 12,
            "cutoff": 4.0,
        },
    },
    paper_activation="ssp",
    kernel="dcase.potentials.kernels.schnet_form:compiled",
    stack="dcase.potentials.networks.stacked_schnet:StackedSchNet",
    training_kernel="dcase.potentials.kernels.schnet_training:training_kernel",
)
