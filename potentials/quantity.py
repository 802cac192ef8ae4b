"""What a potential predicts: energies, or another property of whole systems, and how it reads out.

A network gives one number ``e_i`` per atom, the label scale turns it into ``v_i = C e_i + V0[z_i]``
in a physical unit, and the read-out makes the property of it::

    sum      P = sum_i v_i                        extensive: energies, alpha, Cv
    mean     P = sum_i v_i / n                    intensive: orbital energies
    extent   P = sum_i v_i |r_i - r_mass|^2       electronic spatial extent, r_mass: centre of mass
    dipole   P = |sum_i q_i (r_i - r_0)|          q_i = v_i - mean(v): charges, neutral as a whole

``dipole`` and ``extent`` are SchNetPack's ``DipoleMoment(predict_magnitude)`` and
``ElectronicSpatialExtent`` (Schuett et al., JCTC 15, 448 (2019)). SchNetPack likewise makes charges
neutral by taking the same off each atom, and then the dipole does not depend on the origin. All
read-outs but the dipole are linear in ``v``, so that they can be fitted by offsets per element.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from ase.data import atomic_masses
from torch import Tensor

from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError, OptionError
from dcase.potentials.graphs.graph import AtomicGraph

READOUTS = ("sum", "mean", "dipole", "extent")


@dataclass(frozen=True)
class Quantity:
    """A property of whole systems.

    Attributes:
        name: As in ``DatasetInfo.quantity``.
        unit: Of values in memory and in reports.
        readout: How per-atom values make it; see the module text.
        is_energy: Whether it is an energy whose negative gradient are forces.

    Raises:
        OptionError: If there is no such read-out, or an energy is not a sum in eV.
    """

    name: str = "energy"
    unit: str = "eV"
    readout: str = "sum"
    is_energy: bool = True

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise OptionError(f"readout must be one of {', '.join(READOUTS)}; got {self.readout!r}")
        if self.is_energy and (self.readout, self.unit) != ("sum", "eV"):
            raise OptionError(f"{self.name}: an energy is a sum over atoms in eV")

    @property
    def extensive(self) -> bool:
        """Whether that of two systems far apart is the sum of theirs."""
        return self.readout == "sum"

    @property
    def key(self) -> str:
        """Its name among results and loss terms: ``"energy"`` for all energies."""
        return "energy" if self.is_energy else self.name

    @property
    def linear(self) -> bool:
        """Whether it is a weighted sum of the per-atom values."""
        return self.readout != "dipole"

    def __str__(self) -> str:
        """``mu (Debye)``."""
        return f"{self.name} ({self.unit})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Quantity:
        """Inverse of :meth:`to_dict`.

        Raises:
            TypeError: For unknown entries.
            OptionError: For impossible ones.
        """
        return Quantity(**values)

    def read_out(self, values: Tensor, graph: AtomicGraph) -> Tensor:
        """The property of each system.

        Args:
            values: Per-atom values ``v``, shape [n_atoms].
            graph: The atoms.

        Returns:
            Shape [n_systems].
        """
        if self.readout == "sum":
            return graph.sum_over_atoms(values)
        if self.readout == "mean":
            return graph.sum_over_atoms(values) / self._counts(graph, values.dtype)
        system, positions = graph.system, graph.positions.to(values.dtype)
        if self.readout == "extent":
            masses = torch.as_tensor(atomic_masses, dtype=values.dtype, device=values.device)
            weights = masses[graph.numbers]
            from_centre = positions - self._centres(graph, positions, weights)[system]
            return graph.sum_over_atoms(values * from_centre.square().sum(-1))
        ones = torch.ones_like(values)
        mean = graph.sum_over_atoms(values) / self._counts(graph, values.dtype)
        charges = values - mean[system]
        # For neutral charges any origin will do; this one keeps rounding small.
        from_centre = positions - self._centres(graph, positions, ones)[system]
        vectors = values.new_zeros(graph.n_systems, 3)
        vectors = vectors.index_add(0, system, charges.unsqueeze(-1) * from_centre)
        return torch.linalg.vector_norm(vectors, dim=-1)

    @staticmethod
    def _counts(graph: AtomicGraph, dtype: torch.dtype) -> Tensor:
        return torch.bincount(graph.system, minlength=graph.n_systems).to(dtype)

    @staticmethod
    def _centres(graph: AtomicGraph, positions: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean positions, shape [n_systems, 3]."""
        total = positions.new_zeros(graph.n_systems, 3)
        total = total.index_add(0, graph.system, positions * weights.unsqueeze(-1))
        return total / graph.sum_over_atoms(weights).unsqueeze(-1)

    def atom_weights(self, dataset: AtomicDataset) -> np.ndarray | None:
        """The weights ``w`` of ``P = sum_i w_i v_i``, shape [n_atoms_total]; None: all 1.

        Raises:
            OptionError: If it is not linear.
        """
        if not self.linear:
            raise OptionError(f"{self.name} is no weighted sum over atoms")
        if self.readout == "sum":
            return None
        counts = dataset.n_atoms
        if self.readout == "mean":
            return np.repeat(1.0 / counts, counts)
        masses = atomic_masses[dataset.numbers]
        total = np.add.reduceat(masses, dataset.ptr[:-1])
        moments = np.add.reduceat(dataset.positions * masses[:, None], dataset.ptr[:-1])
        centres = np.repeat(moments / total[:, None], counts, axis=0)
        return ((dataset.positions - centres) ** 2).sum(axis=1)


ENERGY = Quantity()

_NAMED = {"energy": ENERGY}
for _name in ("U0", "U", "H", "G"):
    for _key in (_name, f"{_name}_atom"):
        _NAMED[_key] = Quantity(_key)
for _name, _unit, _readout in (
    ("zpve", "eV", "sum"),
    ("alpha", "a0^3", "sum"),
    ("Cv", "cal/mol/K", "sum"),
    ("homo", "eV", "mean"),
    ("lumo", "eV", "mean"),
    ("gap", "eV", "mean"),
    ("mu", "Debye", "dipole"),
    ("r2", "a0^2", "extent"),
):
    _NAMED[_name] = Quantity(_name, _unit, _readout, is_energy=False)

QUANTITIES: dict[str, Quantity] = _NAMED
"""Those of the datasets dcase reads, by name."""


def quantity_of(dataset: AtomicDataset) -> Quantity:
    """What a dataset's ``energies`` are.

    Raises:
        DataError: If it is none of :data:`QUANTITIES`.
    """
    try:
        return QUANTITIES[dataset.info.quantity]
    except KeyError:
        raise DataError(
            f"{dataset.info.name} holds values of {dataset.info.quantity!r}, which dcase does not "
            f"know; it knows {', '.join(QUANTITIES)}"
        ) from None
