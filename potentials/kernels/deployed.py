"""The form of a potential that simulations use: compiled, without autograd, the same function.

SchNet is evaluated by a small compiled kernel (:mod:`dcase.potentials.kernels`): the same
arithmetic as in PyTorch but for the order of sums. It is fastest where the filters are splines of
the distance (``filter_knots``). Where they are not, they can be put on cubics between knots that
reproduce values and slopes to a given error (:mod:`.pieces`); forces are the exact derivatives of
the energy that is evaluated, in any case.

The other architectures have a kernel in common, to which a network is a list of instructions. Their
radial functions are put on splines that reproduce them to 1e-8: less than float32 resolves. Where
atoms come closer than these are made for, PyTorch evaluates (:mod:`.close_pairs`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dcase.errors import OptionError
from dcase.potentials.elements import unknown_elements
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.kernels.build import NO_COMPILER
from dcase.potentials.kernels.close_pairs import ExactNetwork
from dcase.potentials.kernels.compiled import CompiledKernel, EnsembleLike, PotentialLike
from dcase.potentials.kernels.edge_network import EdgeNetworkKernel
from dcase.potentials.kernels.schnet_form import FILTER_ERROR
from dcase.potentials.networks.architecture import hook
from dcase.potentials.networks.registry import get_architecture


@dataclass(frozen=True)
class MemberPredictions:
    """Of one system, by every member of an ensemble, or by the one potential there is.

    Attributes:
        energies: eV per atom, float64, shape [k, n_atoms].
        forces: eV/A, float64, shape [k, n_atoms, 3].
        virial: dE/d strain in eV, float64, shape [k, 3, 3].
        neighbours: Of each atom within the cutoff, int64, shape [n_atoms].
        closest: Shortest distance of a pair, A; infinite without pairs.
    """

    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    neighbours: np.ndarray
    closest: float = np.inf


@dataclass(frozen=True)
class LoopParts:
    """What a compiled loop of time steps needs of one potential.

    Attributes:
        kernel: Of its network.
        species: Index of each atom's element, shape [n_atoms].
        scale: eV for one unit of the network.
        offset: Energy beside the network's, of all atoms, eV.
    """

    kernel: CompiledKernel
    species: np.ndarray
    scale: float
    offset: float


class Deployed:
    """A potential or an ensemble in its compiled form; see :func:`deploy`."""

    def __init__(self, members: list[PotentialLike], kernels: list[CompiledKernel]):
        self.members, self.kernels = members, kernels
        self.cutoff = max(member.cutoff for member in members)
        self._scales = [member.scale.constant for member in members]
        self._offsets = [member.offsets.cpu().numpy() for member in members]
        self._species = [member.species_of.cpu().numpy() for member in members]
        # Of the time when the kernels copied the weights.
        self._networks = [
            ExactNetwork(member) if getattr(kernel, "nearest", 0.0) > 0 else None
            for member, kernel in zip(members, kernels, strict=True)
        ]

    def __call__(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None = None,
    ) -> MemberPredictions:
        """Evaluate one system.

        Args:
            numbers: Atomic numbers that all members know, shape [n_atoms].
            positions: A, shape [n_atoms, 3].
            pairs: Half list, int64, shape [2, n_pairs]; pairs beyond the cutoff do no harm. Not
                to be changed in place between calls.
            offsets: ``shifts @ cell`` in A, shape [n_pairs, 3], or None for a molecule. Likewise.

        Raises:
            OptionError: For positions that are no numbers, and for unknown elements.
            ValueError: If the arrays do not fit together.
        """
        if not np.isfinite(positions).all():
            raise OptionError("positions are NaN or infinite")
        for species in self._species:
            inside = np.clip(numbers, 0, len(species) - 1)
            if (inside != numbers).any() or (species[inside] < 0).any():
                raise OptionError(unknown_elements(numbers, np.flatnonzero(species >= 0)))
        energies, forces, virials = [], [], []
        system = (positions, pairs, offsets)
        for kernel, exact, scale, table, species in zip(
            self.kernels, self._networks, self._scales, self._offsets, self._species, strict=True
        ):
            found = kernel(positions, species[numbers], pairs, offsets)
            if exact is not None and found.closest[0] < kernel.nearest:
                found = exact.where_close(found, kernel, species[numbers], *system)
            energies.append(found.energies * scale + table[numbers])
            forces.append(found.forces * scale)
            virials.append(found.virial * scale)
        return MemberPredictions(
            np.stack(energies),
            np.stack(forces),
            np.stack(virials),
            found.neighbours,
            float(np.ravel(found.closest)[0]),
        )

    @property
    def note(self) -> str:
        """What there is to say of how close it is to the potential; "" if nothing."""
        return "; ".join(dict.fromkeys(kernel.note for kernel in self.kernels if kernel.note))

    def loop_parts(self, numbers: np.ndarray) -> list[LoopParts]:
        """For a compiled loop over ``numbers`` [n_atoms]; of every member."""
        return [
            LoopParts(kernel, species[numbers], scale, float(table[numbers].sum()))
            for kernel, species, scale, table in zip(
                self.kernels, self._species, self._scales, self._offsets, strict=True
            )
        ]


def deploy(
    model: PotentialLike | EnsembleLike,
    *,
    tabulate: bool = False,
    filter_error: float = FILTER_ERROR,
) -> Deployed:
    """Compile a potential or an ensemble.

    Args:
        model: On the CPU, float32 or float64.
        tabulate: Put filters that are no splines on cubics where that can be done to
            ``filter_error``, which makes it several times faster, and radial functions of other
            architectures also in float64.
        filter_error: Largest error of filters between the knots, relative to the largest value of
            any filter, and of their slopes, likewise.

    Raises:
        OptionError: If it has no compiled form, saying why.
    """
    members = list(getattr(model, "members", [model]))
    for member in members:
        if not member.quantity.is_energy:
            raise OptionError(f"the potential predicts {member.quantity}, which has no forces")
    if any(member.cutoff != members[0].cutoff for member in members):
        raise OptionError("the members have different cutoffs")
    return Deployed(members, [_kernel(member, tabulate, filter_error) for member in members])


def _kernel(potential: PotentialLike, tabulate: bool, filter_error: float) -> CompiledKernel:
    if potential.device.type != "cpu":
        raise OptionError(
            f"the compiled form runs on the CPU, the potential is on {potential.device}"
        )
    architecture = get_architecture(potential.architecture)
    if architecture.kernel is not None:
        return hook(architecture.kernel)(potential, tabulate, filter_error)
    if architecture.kernel_plan is None:
        raise OptionError(f"there is no compiled form of {architecture.name}")
    if potential.dtype == torch.float64 and not tabulate:
        raise OptionError("float64 resolves the error of the radial functions' splines")
    if not available(potential.dtype, "edge_network"):
        raise OptionError(NO_COMPILER)
    return EdgeNetworkKernel(potential.network, hook(architecture.kernel_plan))
