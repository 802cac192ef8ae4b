"""The compiled gradient of PaiNN (``painn_train.c``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dcase.potentials.kernels.compiled import PotentialLike
from dcase.potentials.kernels.painn import dense_layers, network_shape
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
        self.layers = dense_layers(network)
        super().__init__(network, activation, "painn_train", shape, *options)

    def parameters(self) -> list[Tensor]:
        """Weights that the compiled gradient is for, in its order."""
        found: list[Tensor] = [self.network.embedding.weight]
        for layer in self.layers:
            found += [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        return found

    def packed(self) -> tuple[list[int], Any]:
        """All weights but those of the filters; matrices [in, out] and [out, in]."""
        weights = [layer.weight.contiguous() for layer in self.layers]
        flipped, owner = self.transposed(weights[:-1])
        biases = [0 if layer.bias is None else layer.bias.data_ptr() for layer in self.layers]
        own = [weight.data_ptr() for weight in weights]
        found = [self.network.embedding.weight.data_ptr()]
        for first in range(0, len(own) - 2, 5):
            for layer in range(first, first + 5):
                found += [flipped[layer], biases[layer]] if biases[layer] else [flipped[layer]]
            found += own[first : first + 5]
        found += [flipped[-1], biases[-2], own[-2], own[-1], biases[-1]]
        return found, (weights, owner)

    def like_gradients(self) -> list[Tensor]:
        """Of the shape of the weights."""
        return self.parameters()

    def by_parameter(self, gradients: list[Tensor]) -> list[Tensor]:
        """As they are."""
        return gradients

    def table(self) -> Tensor:
        """Coefficients of the filters, [intervals + 3, blocks * 3 * hidden]."""
        layer, basis = self.network.filters, self.network.basis_table.to(self.dtype)
        return _Table.apply(basis, layer.weight, layer.bias)

    def operations(self, n_atoms: int, n_pairs: int) -> float:
        """Of a step, roughly."""
        hidden, layers = self.shape[:2]
        return layers * (14.0 * 15 * n_atoms * hidden**2 + 700.0 * n_pairs * hidden)


class _Table(torch.autograd.Function):
    """``filter_table()`` of the network, in fewer steps than autograd's."""

    @staticmethod
    def forward(ctx: Any, basis: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.basis = basis
        return basis @ torch.cat([weight, bias.unsqueeze(1)], 1).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        found = ctx.basis.T @ grads[0]
        return None, found[:-1].T.contiguous(), found[-1]


def training_kernel(potential: PotentialLike) -> PaiNNTraining:
    """The compiled gradient of a PaiNN potential.

    Raises:
        OptionError: If it has none, saying why.
    """
    network = potential.network
    check_trainable(potential, PaiNN, ("painn_train",))
    assert isinstance(network, PaiNN)
    return PaiNNTraining(network, potential.hyper_parameters["activation"])
