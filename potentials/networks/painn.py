"""PaiNN, the polarizable atom interaction network (Schuett et al., ICML 2021, arXiv:2102.03150).

Every atom has scalar features ``s_i`` and vector features ``v_i`` (one vector for each feature),
which turn with the molecule, so that angles need no triplets. ``r_ij = x_j - x_i``:

    W(d)       = fc(d) (A e(d) + b),  e_n(d) = sin(n pi d / rc) / d         filters    (sec. 3.1)
    phi(s)     = Dense(act(Dense(s)))                                       of 3 parts
    ds_i       = sum_j phi_s(s_j) W_s(d_ij)                                 message    (eq. 7)
    dv_i       = sum_j v_j phi_vv(s_j) W_vv(d_ij)                           message    (eq. 8)
               + sum_j phi_vs(s_j) W_vs(d_ij) r_ij / d_ij
    a(s, v)    = Dense(act(Dense([s, |V v|])))                              of 3 parts
    ds_i       = a_ss + a_sv <U v_i, V v_i>                                 update     (eq. 9)
    dv_i       = a_vv U v_i                                                 update     (eq. 10)
    E          = sum_i Dense(act(Dense(s_i)))                               read-out

A half list of pairs: both directions of a pair share their filters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dcase.activations import get_activation
from dcase.errors import OptionError
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.networks.architecture import Architecture, check_sizes
from dcase.potentials.networks.bases import CosineCutoff
from dcase.potentials.networks.float64_buffers import ExactBuffers
from dcase.potentials.networks.splines import UniformSpline

ORIGINAL_ACTIVATION, PUBLISHED_SOFTENING = "silu", 1e-4


class SineBasis(nn.Module):
    """``e_n(d) = sin(n pi d / rc) / d`` for n = 1, 2, ..., of fixed frequencies.

    Source: PaiNN, sec. 3.1; DimeNet (arXiv:2003.03123), eq. 7, but for a constant.

    Args:
        cutoff: A.
        num_radial: Number of functions.
    """

    def __init__(self, cutoff: float, num_radial: int):
        super().__init__()
        self.cutoff, self.num_radial = cutoff, num_radial

    def forward(self, distances: Tensor) -> Tensor:
        """Map distances [...] in A to [..., num_radial] of their dtype; also at 0."""
        n = torch.arange(1, self.num_radial + 1, dtype=distances.dtype, device=distances.device)
        # torch.sinc(x) = sin(pi x) / (pi x)
        return torch.sinc(distances.unsqueeze(-1) * (n / self.cutoff)) * (
            n * (math.pi / self.cutoff)
        )


class Message(nn.Module):
    """What atoms send to their neighbours."""

    def __init__(self, hidden: int, activation: str):
        super().__init__()
        self.hidden = hidden
        self.dense = _dense(hidden, hidden)
        self.act = get_activation(activation)
        self.split = _dense(hidden, 3 * hidden, (hidden, hidden))

    def phi(self, s: Tensor) -> Tensor:
        """What an atom sends, before the filters; [n_atoms, 3 hidden] from [n_atoms, hidden]."""
        return self.split(self.act(self.dense(s)))

    def forward(
        self, s: Tensor, v: Tensor, filters: Tensor, towards: Tensor, ends: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The messages' sums ``ds`` [n_atoms, hidden] and ``dv`` [n_atoms, 3, hidden].

        Args:
            s: Scalar features, [n_atoms, hidden].
            v: Vector features, [n_atoms, 3, hidden].
            filters: ``W``, [n_edges, 3 hidden].
            towards: Unit vectors from the receiver to the sender, [n_edges, 3].
            ends: Receiver and sender of each edge, int64, [n_edges] each.
        """
        receiver, sender = ends
        to_s, along, to_v = (self.phi(s).index_select(0, sender) * filters).split(
            self.hidden, dim=-1
        )
        sent = towards.unsqueeze(-1) * along.unsqueeze(1)
        sent = sent + v.index_select(0, sender) * to_v.unsqueeze(1)
        ds = torch.zeros_like(s).index_add(0, receiver, to_s)
        return ds, torch.zeros_like(v).index_add(0, receiver, sent)


class Update(nn.Module):
    """What an atom makes of its own features."""

    def __init__(self, hidden: int, activation: str, softening: float):
        super().__init__()
        self.hidden, self.softening = hidden, softening
        self.mix = _dense(hidden, 2 * hidden, (hidden, hidden), bias=False)  # V and U
        self.dense = _dense(2 * hidden, hidden, (hidden, hidden))
        self.act = get_activation(activation)
        self.split = _dense(hidden, 3 * hidden, (hidden, hidden))

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``ds`` [n_atoms, hidden] and ``dv`` [n_atoms, 3, hidden], of features of this shape."""
        by_v, by_u = self.mix(v).split(self.hidden, dim=-1)
        length = (by_v.square().sum(1) + self.softening**2).sqrt()
        a_ss, a_vv, a_sv = self.split(self.act(self.dense(torch.cat([s, length], -1)))).split(
            self.hidden, dim=-1
        )
        return a_ss + a_sv * (by_u * by_v).sum(1), a_vv.unsqueeze(1) * by_u


class PaiNN(ExactBuffers):
    """Per-atom energies from an :class:`~dcase.potentials.graphs.graph.AtomicGraph`.

    Args:
        num_elements: Number of element embeddings.
        hidden_channels: Size of the atom features, scalar and vector.
        num_interactions: Number of blocks of a message and an update.
        num_radial: Number of radial basis functions.
        cutoff: A.
        activation: Name of the activation.
        filter_knots: Intervals of the C2 cubic splines on which the filters ``fc(d) W(d)`` are
            taken (see :mod:`dcase.potentials.networks.splines`); 0: the formula at every distance.
            The compiled gradient needs splines.
        softening: The length of a vector feature is ``|x| = sqrt(x^2 + softening^2)``. Where a
            vector vanishes, as it does by symmetry in linear molecules and in crystals, a length
            has a cusp, and the force constants there are those of the cusp.
        placement: ``"published"``: the activation is the read-out's, and messages and updates have
            SiLU, as the DC paper does it with its networks of directions; ``"all"``: everywhere.
        variant: ``"paper"``: lengths rounded off over 1e-4 only, as in the original code.

    Raises:
        OptionError: If a size is not positive.
    """

    basis_table: Tensor

    def __init__(
        self,
        num_elements: int,
        *,
        hidden_channels: int = 64,
        num_interactions: int = 3,
        num_radial: int = 20,
        cutoff: float = 5.0,
        activation: str = "silu",
        filter_knots: int = 0,
        softening: float = 1.0,
        placement: str = "published",
        variant: str = "default",
    ):
        super().__init__()
        sizes = {
            "hidden_channels": (hidden_channels, 2),
            "num_interactions": (num_interactions, 1),
            "num_radial": (num_radial, 1),
            "filter_knots": (filter_knots, 0),
        }
        check_sizes(sizes, cutoff)
        if not 0 < softening < math.inf:
            raise OptionError(f"softening must be positive, got {softening}")
        self.cutoff, self.hidden = float(cutoff), hidden_channels
        self.softening = PUBLISHED_SOFTENING if variant == "paper" else float(softening)
        inner = activation if placement == "all" else ORIGINAL_ACTIVATION
        self.inner_activation = inner
        self.embedding = nn.Embedding(num_elements, hidden_channels)
        self.basis = SineBasis(cutoff, num_radial)
        self.envelope = CosineCutoff(cutoff)
        self.filters = _dense(
            num_radial,
            num_interactions * 3 * hidden_channels,
            (3 * hidden_channels, num_radial),
        )
        self.messages = nn.ModuleList(
            Message(hidden_channels, inner) for _ in range(num_interactions)
        )
        self.updates = nn.ModuleList(
            Update(hidden_channels, self.inner_activation, self.softening)
            for _ in range(num_interactions)
        )
        self.out_in = _dense(hidden_channels, hidden_channels // 2)
        self.out_act = get_activation(activation)
        self.out = _dense(hidden_channels // 2, 1)
        self.table = UniformSpline(cutoff, filter_knots) if filter_knots else None
        if self.table is not None:
            # Splines of fc e_n, and last of fc: the filters are linear in them.
            knots = self.table.knots
            basis = torch.cat([self.basis(knots), torch.ones_like(knots).unsqueeze(-1)], -1)
            basis = self.table.coefficients(basis * self.envelope(knots).unsqueeze(-1))
            self.register_buffer("basis_table", basis, persistent=False)

    def forward(self, species: Tensor, graph: AtomicGraph) -> Tensor:
        """Per-atom energies in the network's unit.

        Args:
            species: Index of each atom's element, int64, shape [n_atoms].
            graph: The atoms and their pairs.

        Returns:
            Shape [n_atoms].
        """
        s = self.embedding(species)
        v = s.new_zeros(len(s), 3, self.hidden)
        r = graph.vectors()
        d = torch.linalg.vector_norm(r, dim=1)
        u = (r / d.unsqueeze(-1)).to(s.dtype)
        towards, w = torch.cat([u, -u]), self._filters(d, s.dtype)
        i, j = graph.pairs
        ends = (torch.cat([i, j]), torch.cat([j, i]))
        filters = torch.cat([w, w]).split(3 * self.hidden, dim=-1)
        for message, update, own in zip(self.messages, self.updates, filters, strict=True):
            ds, dv = message(s, v, own, towards, ends)
            s, v = s + ds, v + dv
            ds, dv = update(s, v)
            s, v = s + ds, v + dv
        return self.out(self.out_act(self.out_in(s))).squeeze(-1)

    def _filters(self, distances: Tensor, dtype: torch.dtype) -> Tensor:
        """Filters of all blocks, [n_pairs, blocks * 3 * hidden]."""
        if self.table is None:
            return self.exact_filters(distances, dtype)
        return self.table(self.filter_table(), self.table.locate(distances))

    def exact_filters(self, distances: Tensor, dtype: torch.dtype) -> Tensor:
        """Likewise, by the formula; [n, blocks * 3 * hidden]."""
        basis = self.basis(distances).to(dtype)
        return self.filters(basis) * self.envelope(distances).to(dtype).unsqueeze(-1)

    def filter_table(self) -> Tensor:
        """Coefficients of the splines of all filters, [filter_knots + 3, blocks * 3 * hidden].

        Differentiable in the filters' weights. Needs ``filter_knots``.
        """
        layer, basis = self.filters, self.basis_table.to(self.embedding.weight.dtype)
        return torch.addmm(basis[:, -1:] * layer.bias, basis[:, :-1], layer.weight.T)


def _dense(
    inputs: int, outputs: int, block: tuple[int, int] | None = None, bias: bool = True
) -> nn.Linear:
    """A dense layer with the weights of the original code: Glorot's, and no bias to begin with.

    Args:
        inputs: Features it takes.
        outputs: Features it gives.
        block: Where in- or outputs are several sets of features, the shape of the weights between
            two sets: SOAP has a basis for each of them.
        bias: Whether it has one.
    """
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if block:
        layer.weight.block_shape = block  # type: ignore[attr-defined]
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


ARCHITECTURE = Architecture(
    "painn",
    PaiNN,
    sizes={
        "large": {"hidden_channels": 128, "num_interactions": 3},
        "md17": {"hidden_channels": 64, "num_interactions": 3},
        "tiny": {
            "hidden_channels": 16,
            "num_interactions": 2,
            "num_radial": 8,
            "cutoff": 4.0,
        },
    },
    paper_activation=ORIGINAL_ACTIVATION,
    departures=(
        "the length of a vector feature has a cusp where the vector vanishes, as it does by "
        "symmetry, and force constants there are wrong",
    ),
    kernel="dcase.potentials.kernels.painn:compiled",
    training_kernel="dcase.potentials.kernels.painn_training:training_kernel",
)
