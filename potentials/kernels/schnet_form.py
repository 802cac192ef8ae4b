"""The compiled form of a SchNet potential: when there is one, and with which filters."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from dcase.activations.registry import get_activation
from dcase.errors import OptionError
from dcase.potentials.kernels.atom_kernel import ACTIVATIONS, available
from dcase.potentials.kernels.build import NO_COMPILER
from dcase.potentials.kernels.compiled import PotentialLike
from dcase.potentials.kernels.pieces import Pieces, fit_pieces, sign_changes
from dcase.potentials.kernels.schnet import SchNetKernel
from dcase.potentials.kernels.tables import CLOSEST
from dcase.potentials.networks.schnet import SchNet

FILTER_ERROR = 1e-6
"""Largest error of tabulated filters and of their slopes, relative to the largest of these."""
_KINK = 1e-4


def compiled(potential: PotentialLike, tabulate: bool, filter_error: float) -> SchNetKernel:
    """The kernel of a SchNet potential.

    Arguments as of :func:`dcase.potentials.kernels.deployed.deploy`.

    Raises:
        OptionError: If it has no compiled form, saying why.
    """
    network = potential.network
    if not isinstance(network, SchNet):  # a network of one's own under SchNet's name
        raise OptionError(f"there is no compiled form of {type(network).__name__}")
    if not available(potential.dtype):
        raise OptionError(NO_COMPILER)
    activation = potential.hyper_parameters.get("activation", "")
    if potential.dtype == torch.float64 and activation not in ACTIVATIONS and not tabulate:
        raise OptionError(f"float64 resolves the error of {activation} as piecewise cubics")
    if not tabulate or network.table is not None or not network.interactions:
        return SchNetKernel(network, activation)
    pieces = tabulated(network, filter_error, kinks=bends_sharply(activation))
    kernel = SchNetKernel(network, activation, pieces)
    if pieces is None:
        kernel.note = f"filters by their networks: no cubics are within {filter_error:g} of them"
    else:
        kernel.note = (
            f"filters by {len(pieces)} cubics, within {pieces.value_error:.0e} of the largest and "
            f"{pieces.slope_error:.0e} of the largest slope"
        )
    return kernel


def bends_sharply(activation: str) -> bool:
    """Whether the curvature of an activation, by name, jumps at 0."""
    x = torch.tensor([-_KINK, 0.0, _KINK], dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        y = get_activation(activation).double()(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
    return bool((slope[2] - 2 * slope[1] + slope[0]).abs() > 0.1 * _KINK)


@torch.no_grad()
def tabulated(network: SchNet, error: float, *, kinks: bool) -> Pieces | None:
    """Cubics for the filters of a network without splines, or None where there are none.

    Args:
        network: With ``filter_knots`` 0.
        error: Largest deviation of values and slopes, as of :func:`.pieces.fit_pieces`.
        kinks: Whether to put knots where inputs of the activation go through zero.
    """
    network = copy.deepcopy(network).double()

    def basis(distances: torch.Tensor) -> torch.Tensor:
        return network.basis(distances, torch.float64)

    def filters(distances: torch.Tensor) -> torch.Tensor:
        return torch.cat(network._exact_filters(distances, torch.float64), dim=1)

    def with_slopes(distances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.func.jvp(filters, (distances,), (torch.ones_like(distances),))
        return found[0], found[1]

    places = np.empty(0)
    if kinks:
        inputs: list[Any] = [block.filter_in for block in network.interactions]
        weight = torch.cat([layer.weight for layer in inputs])
        bias = torch.cat([layer.bias for layer in inputs])
        places = sign_changes(basis, weight, bias, CLOSEST, network.cutoff)
    return fit_pieces(with_slopes, places, CLOSEST, network.cutoff, error)
