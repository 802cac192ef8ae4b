"""The form of a potential that simulations use: compiled, without autograd, the same function.

A SchNet whose filters are splines of the distance (``filter_knots``) is evaluated by a small
compiled kernel (:mod:`dcase.potentials.kernels`): the same arithmetic as in PyTorch but for the
order of sums. Where the filters are not splines, they can be put on some first, as fine as a given
error asks for; forces stay the exact derivatives of the energy, which is then that of the splines.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from dcase.errors import OptionError
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.kernels.schnet import SchNetKernel, available
from dcase.potentials.potential import Potential
from dcase.potentials.schnet import SchNet
from dcase.potentials.spline import UniformSpline

FILTER_ERROR = 1e-5
"""Largest error of a tabulated filter, relative to the largest value of any filter."""
MOST_INTERVALS = 2048
CLOSEST = 0.25
"""A; nearer than atoms come, and there the splines' end condition costs accuracy."""


@dataclass(frozen=True)
class Prediction:
    """Of one system, by every member of an ensemble, or by the one potential there is.

    Attributes:
        energies: eV per atom, float64, shape [k, n_atoms].
        forces: eV/A, float64, shape [k, n_atoms, 3].
        virial: dE/d strain in eV, float64, shape [k, 3, 3].
        neighbours: Of each atom within the cutoff, int64, shape [n_atoms].
    """

    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    neighbours: np.ndarray


@dataclass(frozen=True)
class LoopParts:
    """What a compiled loop of time steps needs of a single potential.

    Attributes:
        kernel: Of its network.
        species: Index of each atom's element, shape [n_atoms].
        scale: eV for one unit of the network.
        offset: Energy beside the network's, of all atoms, eV.
    """

    kernel: SchNetKernel
    species: np.ndarray
    scale: float
    offset: float


class Deployed:
    """A potential or an ensemble in its compiled form; see :func:`deploy`."""

    def __init__(self, members: list[Potential], kernels: list[SchNetKernel]):
        self.members, self.kernels = members, kernels
        self.cutoff = max(member.cutoff for member in members)
        self._scales = [member.scale.constant for member in members]
        self._offsets = [member.offsets.cpu().numpy() for member in members]
        self._species = [member.species_of.cpu().numpy() for member in members]

    def __call__(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None = None,
    ) -> Prediction:
        """Evaluate one system.

        Args:
            numbers: Atomic numbers that all members know, shape [n_atoms].
            positions: A, shape [n_atoms, 3].
            pairs: Half list, int64, shape [2, n_pairs]; pairs beyond the cutoff do no harm.
            offsets: ``shifts @ cell`` in A, shape [n_pairs, 3], or None for a molecule.
        """
        energies, forces, virials = [], [], []
        for kernel, scale, table, species in zip(
            self.kernels, self._scales, self._offsets, self._species, strict=True
        ):
            found = kernel(positions, species[numbers], pairs, offsets)
            energies.append(found.energies * scale + table[numbers])
            forces.append(found.forces * scale)
            virials.append(found.virial * scale)
        return Prediction(np.stack(energies), np.stack(forces), np.stack(virials), found.neighbours)

    def loop_parts(self, numbers: np.ndarray) -> LoopParts | None:
        """For a compiled loop over ``numbers`` [n_atoms]; None for an ensemble."""
        if len(self.kernels) != 1:
            return None
        offset = float(self._offsets[0][numbers].sum())
        return LoopParts(self.kernels[0], self._species[0][numbers], self._scales[0], offset)


def deploy(
    model: Potential | Ensemble, *, tabulate: bool = False, filter_error: float = FILTER_ERROR
) -> Deployed:
    """Compile a potential or an ensemble.

    Args:
        model: On the CPU, float32 or float64.
        tabulate: Put filters on splines where they are none yet; else that is refused.
        filter_error: How exactly: the largest error of a filter between the knots, relative to the
            largest value of any filter.

    Raises:
        OptionError: If it has no compiled form, saying why.
    """
    members: list[Potential] = (
        list(model.members) if isinstance(model, Ensemble) else [model]  # type: ignore[arg-type]
    )
    if any(member.cutoff != members[0].cutoff for member in members):
        raise OptionError("the members have different cutoffs")
    return Deployed(members, [_kernel(member, tabulate, filter_error) for member in members])


def _kernel(potential: Potential, tabulate: bool, filter_error: float) -> SchNetKernel:
    network = potential.network
    activation = potential.hyper_parameters.get("activation", "")
    if not isinstance(network, SchNet):
        raise OptionError(f"{potential.architecture} has no compiled form; SchNet alone has one")
    if potential.device.type != "cpu":
        raise OptionError(
            f"the compiled form runs on the CPU, the potential is on {potential.device}"
        )
    if network.table is None and not tabulate:
        raise OptionError("the filters are no splines (filter_knots is 0)")
    if not available(potential.dtype):
        raise OptionError("no C compiler works here, or the cache folder cannot be written")
    table = tabulated(network, filter_error) if network.table is None else None
    return SchNetKernel(network, activation, table)


@torch.no_grad()
def tabulated(network: SchNet, error: float) -> tuple[UniformSpline, torch.Tensor]:
    """Splines of the filters of a network without any, fine enough.

    Args:
        network: With ``filter_knots`` 0.
        error: Largest deviation at eight points of every interval beyond :data:`CLOSEST`, relative
            to the largest value.

    Returns:
        Spline and coefficients, [n_intervals + 3, layers * filters].

    Raises:
        OptionError: If :data:`MOST_INTERVALS` are not enough.
    """
    network = copy.deepcopy(network).double()
    intervals = 128
    while intervals <= MOST_INTERVALS:
        spline = UniformSpline(network.cutoff, intervals)
        values = network._exact_filters(spline.knots, torch.float64)
        coefficients = spline.coefficients(torch.cat(values, dim=1).double())
        points = torch.linspace(0.0, network.cutoff, 8 * intervals + 1, dtype=torch.float64)
        points = points[points > CLOSEST]
        exact = torch.cat(network._exact_filters(points, torch.float64), dim=1)
        largest = exact.abs().max()
        deviation = (spline(coefficients, spline.locate(points)) - exact).abs().max()
        if deviation <= error * largest:
            return spline, coefficients
        intervals *= 2
    raise OptionError(
        f"{MOST_INTERVALS} knots do not reproduce the filters to {error:g} "
        f"(the error is {float(deviation / largest):.1e})"
    )
