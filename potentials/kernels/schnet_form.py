"""The compiled form of a SchNet potential: when there is one, and with which filters."""

from __future__ import annotations

import copy

import torch

from dcase.errors import OptionError
from dcase.potentials.kernels.atom_kernel import ACTIVATIONS, available
from dcase.potentials.kernels.build import NO_COMPILER
from dcase.potentials.kernels.compiled import PotentialLike
from dcase.potentials.kernels.schnet import SchNetKernel
from dcase.potentials.kernels.tables import CLOSEST
from dcase.potentials.networks.schnet import SchNet
from dcase.potentials.networks.splines import UniformSpline

FILTER_ERROR = 1e-5
"""Largest error of tabulated filters and of their slopes, relative to the largest of these."""
MOST_INTERVALS = 1024


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
    table = tabulated(network, filter_error) if tabulate and network.table is None else None
    return SchNetKernel(network, activation, table)


@torch.no_grad()
def tabulated(network: SchNet, error: float) -> tuple[UniformSpline, torch.Tensor] | None:
    """Splines of the filters of a network without any, fine enough, or None.

    Args:
        network: With ``filter_knots`` 0.
        error: Largest deviation at eight points of every interval beyond :data:`CLOSEST`, relative
            to the largest value, and largest slope of the deviation, relative to the largest slope.

    Returns:
        Spline and coefficients, [n_intervals + 3, layers * filters]; None where
        :data:`MOST_INTERVALS` are not enough.
    """
    network = copy.deepcopy(network).double()
    if not network.interactions:
        return None
    intervals = 128
    while intervals <= MOST_INTERVALS:
        spline = UniformSpline(network.cutoff, intervals)
        values = network._exact_filters(spline.knots, torch.float64)
        coefficients = spline.coefficients(torch.cat(values, dim=1).double())
        points = torch.linspace(0.0, network.cutoff, 8 * intervals + 1, dtype=torch.float64)
        points = points[points > CLOSEST]
        exact = torch.cat(network._exact_filters(points, torch.float64), dim=1)
        deviation = spline(coefficients, spline.locate(points)) - exact
        # Differences of neighbours stand for slopes: the points are that close.
        if all(
            wrong.abs().max() <= error * right.abs().max()
            for wrong, right in ((deviation, exact), (deviation.diff(dim=0), exact.diff(dim=0)))
        ):
            return spline, coefficients
        intervals *= 2
    return None
