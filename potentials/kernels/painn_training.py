"""The compiled gradient of PaiNN (``painn_train.c``)."""

from __future__ import annotations

from torch import Tensor

from dcase.potentials.kernels.compiled import PotentialLike
from dcase.potentials.kernels.painn import (
    dense_layers,
    network_shape,
    packed_weights,
)
from dcase.potentials.kernels.training import TrainingKernel, check_trainable
from dcase.potentials.networks.painn import PaiNN


class PaiNNTraining(TrainingKernel):
    """Of a PaiNN with ``filter_knots``; see :class:`TrainingKernel`."""

    network: PaiNN

    def __init__(self, network: PaiNN, activation: str):
        if network.table is None:
            raise ValueError("the network has no compiled form")
        shape = (*network_shape(network), len(network.embedding.weight), network.table.n_intervals)
        options = network.softening, network.inner_activation
        super().__init__(network, activation, "painn_train", shape, *options)

    def parameters(self) -> list[Tensor]:
        """Weights that the compiled gradient is for, in its order."""
        found: list[Tensor] = [self.network.embedding.weight]
        for layer in dense_layers(self.network):
            found += [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        return found

    def packed(self) -> list[Tensor]:
        """All weights but those of the filters."""
        return packed_weights(self.network, copy=False)

    def like_gradients(self, packed: list[Tensor]) -> list[Tensor]:
        """Of the shape of the weights."""
        return self.parameters()

    def by_parameter(self, gradients: list[Tensor]) -> list[Tensor]:
        """As they are."""
        return gradients

    def table(self) -> Tensor:
        """Coefficients of the filters, [intervals + 3, blocks * 3 * hidden]."""
        return self.network.filter_table()

    def operations(self, n_atoms: int, n_pairs: int) -> float:
        """Of a step, roughly."""
        hidden, layers = self.shape[:2]
        return layers * (14.0 * 15 * n_atoms * hidden**2 + 700.0 * n_pairs * hidden)


def training_kernel(potential: PotentialLike) -> PaiNNTraining:
    """The compiled gradient of a PaiNN potential.

    Raises:
        OptionError: If it has none, saying why.
    """
    network = potential.network
    check_trainable(potential, PaiNN, ("painn_train",))
    assert isinstance(network, PaiNN)
    return PaiNNTraining(network, potential.hyper_parameters["activation"])
