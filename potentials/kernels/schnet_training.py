"""The compiled gradient of SchNet (``schnet_train.c``).

The filter networks, which run on the knots of their table only, have a gradient of their own
(:mod:`dcase.potentials.kernels.filter_table`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dcase.potentials.kernels.compiled import PotentialLike
from dcase.potentials.kernels.filter_table import FilterTable
from dcase.potentials.kernels.schnet import network_shape, packed_weights
from dcase.potentials.kernels.training import TrainingKernel, check_trainable
from dcase.potentials.networks.schnet import SchNet


class SchNetTraining(TrainingKernel):
    """Of a SchNet with ``filter_knots``; see :class:`TrainingKernel`."""

    network: SchNet

    def __init__(self, network: SchNet, activation: str):
        if network.table is None:
            raise ValueError("the network has no compiled form")
        shape = (*network_shape(network), network.table.n_intervals)
        super().__init__(network, activation, "schnet_train", shape)
        self.filter_table = FilterTable(network, activation)

    def parameters(self) -> list[Tensor]:
        """Weights that the compiled gradient is for, in its order."""
        net = self.network
        found: list[Tensor] = [net.embedding.weight]
        for block in net.interactions:
            a, b, c = block.atom_in, block.atom_out, block.update  # type: ignore[union-attr]
            found += [a.weight, b.weight, b.bias, c.weight, c.bias]  # type: ignore[union-attr, list-item]
        head, out = net.out_in, net.out
        return [*found, head.weight, head.bias, out.weight, out.bias]

    def packed(self) -> tuple[list[int], Any]:
        """The weights of the nodes' network."""
        weights = packed_weights(self.network, copy=False)
        return [weight.data_ptr() for weight in weights], weights

    def like_gradients(self) -> list[Tensor]:
        """Matrices are [in, out] there."""
        embedding, *others = self.parameters()
        return [embedding, *(w.T if w.ndim == 2 else w for w in others)]

    def by_parameter(self, gradients: list[Tensor]) -> list[Tensor]:
        """Matrices are [out, in] in torch."""
        return [gradients[0], *(g.T if g.ndim == 2 else g for g in gradients[1:])]

    def table(self) -> Tensor:
        """Coefficients of the filters, [intervals + 3, layers * filters]."""
        return self.filter_table() if self.shape[2] else self.network.filter_table()

    def operations(self, n_atoms: int, n_pairs: int) -> float:
        """Of a step, roughly."""
        hidden, filters, layers, _, _ = self.shape
        node = 2 * hidden * filters + hidden**2
        return layers * (16.0 * n_atoms * node + 150.0 * n_pairs * filters)


def training_kernel(potential: PotentialLike) -> SchNetTraining:
    """The compiled gradient of a SchNet potential.

    Raises:
        OptionError: If it has none, saying why.
    """
    check_trainable(potential, SchNet, ("schnet_train", "filter_table"))
    assert isinstance(potential.network, SchNet)
    return SchNetTraining(potential.network, potential.hyper_parameters["activation"])
