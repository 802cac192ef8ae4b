"""Several SchNets of one shape evaluated together, by stacked weights and without double backward.

For members m = 1..k the node features are kept as one tensor [k, n_atoms, hidden], and every dense
layer is one batched matrix product. Filters depend on distances alone; with ``filter_knots`` they
are cubic splines whose coefficients are constants of the trained network, so the filters of all
layers and members are one weighted sum of table rows, and their slopes another.

What is differentiated by autograd is the node network with respect to the filters. The chain rule
of the rest is written out: ``dE_m/dd_p = sum_l sum_f (dE_m/dW_lpf) W'_lpf``, which gives each
member's own forces from one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcase.activations import get_activation
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.networks.float64_buffers import ExactBuffers
from dcase.potentials.networks.pair_convolution import pair_convolution
from dcase.potentials.networks.schnet import Interaction, SchNet


class _StackedLinear(nn.Module):
    """k dense layers as one batched product."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        # [k, in, out] and [k, 1, out]
        self.register_buffer("weight", torch.stack([x.weight.detach().T for x in layers]))
        biases = [x.bias.detach() for x in layers if x.bias is not None]
        self.register_buffer("bias", torch.stack(biases)[:, None] if biases else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map [k, n, in] to [k, n, out]."""
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


class _StackedInteraction(nn.Module):
    """One interaction block of every member."""

    def __init__(self, blocks: Sequence[Interaction], activation: str):
        super().__init__()
        self.filter_in = _StackedLinear([b.filter_in for b in blocks])
        self.filter_act = get_activation(activation)
        self.filter_out = _StackedLinear([b.filter_out for b in blocks])
        self.atom_in = _StackedLinear([b.atom_in for b in blocks])
        self.atom_out = _StackedLinear([b.atom_out for b in blocks])
        self.act = get_activation(activation)
        self.update = _StackedLinear([b.update for b in blocks])

    def filters(self, basis: Tensor, envelope: Tensor) -> Tensor:
        """``W(d)`` [k, n, filters] from Gaussians [k, n, gaussians] and cutoff [k, n, 1]."""
        return self.filter_out(self.filter_act(self.filter_in(basis))) * envelope

    def forward(self, h: Tensor, pairs: Tensor, filters: Tensor) -> Tensor:
        """The update of ``h`` [k, n_atoms, hidden] from filters [n_pairs, k * n_filters]."""
        k, n_atoms, _ = h.shape
        x = self.atom_in(h).transpose(0, 1).flatten(1)  # [n_atoms, k * n_filters]
        message = pair_convolution(filters, x, pairs).view(n_atoms, k, -1).transpose(0, 1)
        return self.update(self.act(self.atom_out(message)))


class StackedSchNet(ExactBuffers):
    """Energies and slopes of k SchNets that differ in their weights only.

    The weights are copied: later changes of the networks do not reach it.

    Args:
        networks: At least one; all built from the same hyper-parameters.
        activation: Of all of them.

    Raises:
        ValueError: If the networks differ in shape.
    """

    table: Tensor | None

    def __init__(self, networks: Sequence[SchNet], activation: str):
        super().__init__()
        first = networks[0]
        shapes = [{n: tuple(v.shape) for n, v in x.state_dict().items()} for x in networks]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError("networks of different shapes cannot be stacked")
        self.members = len(networks)
        self.cutoff = first.cutoff
        self.basis, self.envelope, self.spline = first.basis, first.envelope, first.table
        self.register_buffer(
            "embedding", torch.stack([x.embedding.weight.detach() for x in networks])
        )
        blocks: list[list[Interaction]] = [list(x.interactions) for x in networks]  # type: ignore[arg-type]
        self.interactions = nn.ModuleList(
            _StackedInteraction(layer, activation) for layer in zip(*blocks, strict=True)
        )
        self.out_in = _StackedLinear([x.out_in for x in networks])
        self.out_act = get_activation(activation)
        self.out = _StackedLinear([x.out for x in networks])
        self.register_buffer("table", None, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.embedding.dtype  # type: ignore[union-attr, return-value]

    def _apply(self, fn, recurse: bool = True) -> StackedSchNet:
        self.table = None  # of the former dtype and device
        super()._apply(fn, recurse)
        return self

    def forward(self, species: Tensor, graph: AtomicGraph) -> tuple[Tensor, Tensor]:
        """Per-atom energies and the slopes of the total energies along every distance.

        Args:
            species: Index of each atom's element, int64, shape [n_atoms].
            graph: The atoms and their pairs.

        Returns:
            ``e`` [k, n_atoms] and ``dE/dd`` [k, n_pairs], both in the networks' unit and dtype,
            detached.
        """
        distances = graph.distances().detach()
        if not self.interactions:
            return self._nodes(species, graph.pairs, []), distances.new_zeros(
                self.members, len(distances), dtype=self.dtype
            )
        with torch.inference_mode(False), torch.enable_grad():
            if self.spline is None:
                energies, slopes = self._exact(species, graph.pairs, distances)
            else:
                energies, slopes = self._splined(species, graph.pairs, distances)
        return energies.detach(), slopes.detach()

    def _splined(self, species: Tensor, pairs: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
        assert self.spline is not None
        if self.table is None:
            self.table = self._coefficients()
        where = self.spline.locate(distances)

        def rows(order: int) -> list[Tensor]:  # of every layer, [n_pairs, k * n_filters]
            all_layers = nn.functional.embedding_bag(
                where.rows,
                self.table,  # type: ignore[arg-type]
                per_sample_weights=where.weights(order, self.dtype),
                mode="sum",
            )
            return list(all_layers.chunk(len(self.interactions), dim=1))

        with torch.no_grad():
            values, derivatives = rows(0), rows(1)
        leaves = [value.requires_grad_(True) for value in values]
        energies = self._nodes(species, pairs, leaves)
        gradients = torch.autograd.grad(energies.sum(), leaves)
        with torch.no_grad():
            slopes = torch.zeros_like(distances, dtype=self.dtype).expand(self.members, -1).T
            for gradient, derivative in zip(gradients, derivatives, strict=True):
                product = (gradient * derivative).unflatten(1, (self.members, -1))
                slopes = slopes + product.sum(-1)
        return energies, slopes.T

    @torch.no_grad()
    def _coefficients(self) -> Tensor:
        """Spline coefficients of all layers and members, [n_rows, layers * k * n_filters]."""
        assert self.spline is not None
        values = self._filters(self.spline.knots.expand(self.members, -1))
        return self.spline.coefficients(torch.cat(values, dim=1))

    def _filters(self, distances: Tensor) -> list[Tensor]:
        """``W(d)`` of every layer, [n, k * n_filters], at distances [k, n] of each member."""
        basis = self.basis(distances, self.dtype)
        envelope = self.envelope(distances).to(self.dtype).unsqueeze(-1)
        return [
            block.filters(basis, envelope).transpose(0, 1).flatten(1)  # type: ignore[operator, union-attr]
            for block in self.interactions
        ]

    def _exact(self, species: Tensor, pairs: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
        own = distances.expand(self.members, -1).clone().requires_grad_(True)
        energies = self._nodes(species, pairs, self._filters(own))
        (slopes,) = torch.autograd.grad(energies.sum(), own)
        return energies, slopes.to(self.dtype)

    def _nodes(self, species: Tensor, pairs: Tensor, filters: Sequence[Tensor]) -> Tensor:
        h = self.embedding.index_select(1, species)  # type: ignore[union-attr, operator]
        for block, w in zip(self.interactions, filters, strict=True):
            h = h + block(h, pairs, w)
        return self.out(self.out_act(self.out_in(h))).squeeze(-1)
