"""Label rescaling and energy offsets, kept outside the network in float64.

A network predicts ``e = (E - E_offset) / C``. ``C`` sets the network's unit for energies *and*
forces (one constant, so that ``F = -dE/dx`` stays true), ``E_offset`` sums per-element energies.

Aspirin's total energy is about -17638 eV, where one float32 step is 2 meV: without an offset that
is the floor of any float32 network, with or without ``C``. The paper subtracts nothing;
``fit_label_scale(..., rescale="paper", offset="none")`` is its letter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dcase.data.dataset import AtomicDataset
from dcase.data.label_check import good_frames
from dcase.errors import DataError, OptionError
from dcase.units import ENERGY_UNITS

RESCALES = ("forces", "paper", "none")
OFFSETS = ("atomic", "mean", "atomref", "none")


@dataclass(frozen=True)
class LabelScale:
    """Maps between physical labels (eV, eV/A) and the network's unit.

    Attributes:
        constant: C, eV per network unit.
        offsets: Offset energy per atom in eV by atomic number (float64, exact); missing means 0.
        rescale: The rule that gave ``constant``.
        offset: The rule that gave ``offsets``.
    """

    constant: float = 1.0
    offsets: dict[int, float] = field(default_factory=dict)
    rescale: str = "none"
    offset: str = "none"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.constant) and self.constant > 0):
            raise OptionError(f"the label scale must be a positive number, got {self.constant}")
        if not all(math.isfinite(energy) for energy in self.offsets.values()):
            raise OptionError("the energy offsets hold NaN or infinite values")

    def table(self) -> Tensor:
        """Offsets as a float64 look-up table over atomic numbers, shape [119]."""
        table = torch.zeros(119, dtype=torch.float64)
        for z, energy in self.offsets.items():
            table[z] = energy
        return table

    def to_dict(self) -> dict[str, object]:
        """Plain values for a checkpoint."""
        return {
            "constant": self.constant,
            "offsets": dict(self.offsets),
            "rescale": self.rescale,
            "offset": self.offset,
        }

    @staticmethod
    def from_dict(values: dict) -> LabelScale:
        """Inverse of :meth:`to_dict`."""
        return LabelScale(
            constant=float(values["constant"]),
            offsets={int(z): float(e) for z, e in values["offsets"].items()},
            rescale=str(values["rescale"]),
            offset=str(values["offset"]),
        )


def paper_constant(*labels: np.ndarray | None) -> float:
    """The paper's C (Eq. 4): the smallest power of ten with every ``|label| / C <= 1``.

    As printed the equation has no maximum (any larger C qualifies too); the smallest is what the
    paper uses: 1e6 for MD17 in kcal/mol.

    Args:
        labels: Arrays of energies and forces in the dataset's own unit; None is skipped.
    """
    largest = max(
        (float(np.abs(values).max()) for values in labels if values is not None and values.size),
        default=0.0,
    )
    if largest == 0.0:
        return 1.0
    power = math.ceil(math.log10(largest))
    while 10.0 ** (power - 1) >= largest:  # log10 may be a rounding error too high or low
        power -= 1
    while 10.0**power < largest:
        power += 1
    return 10.0**power


def fit_offsets(
    dataset: AtomicDataset,
    offset: str,
    elements: Sequence[int] = (),
    weights: np.ndarray | None = None,
) -> dict[int, float]:
    """Per-element offset energies in eV.

    ``"mean"``: the mean energy per atom, the same for every element. ``"atomic"``: least squares of
    the total energies on the composition; where compositions do not determine it, as for a single
    molecule, the solution nearest to the mean energy per atom. ``"atomref"``: the published
    energies of the free atoms, where the dataset has them.

    Args:
        dataset: The training frames.
        offset: The rule.
        elements: Atomic numbers that may occur later; those that the training frames do not hold
            get the mean energy per atom.
        weights: For other quantities than energies: by how much an atom's offset counts, shape
            [n_atoms_total]; None: all 1.

    Raises:
        OptionError: If ``offset`` is not one of "atomic", "mean", "atomref", "none", or is
            "atomref" and the dataset has no such energies.
        DataError: If the dataset has no energies.
    """
    if offset not in OFFSETS:
        raise OptionError(f"offset must be one of {', '.join(OFFSETS)}; got {offset!r}")
    if offset == "none":
        return {}
    if dataset.energies is None:
        raise DataError(
            "an energy offset needs energies; use --offset none to train on forces only"
        )
    if offset == "atomref":
        return _references(dataset, elements)
    ones = np.ones(len(dataset.numbers)) if weights is None else weights
    per_atom = float(dataset.energies.sum() / ones.sum())
    others = dict.fromkeys((z for z in elements if z not in dataset.elements), per_atom)
    if offset == "mean":
        return dict.fromkeys(dataset.elements, per_atom) | others
    present = dataset.elements
    frame_of_atom = np.repeat(np.arange(len(dataset)), dataset.n_atoms)
    counts = np.zeros((len(dataset), len(present)))
    np.add.at(counts, (frame_of_atom, np.searchsorted(present, dataset.numbers)), ones)
    rest = dataset.energies - per_atom * counts.sum(axis=1)
    solution, *_ = np.linalg.lstsq(counts, rest, rcond=1e-8)
    return dict(zip(present, (per_atom + float(e) for e in solution), strict=True)) | others


def _references(dataset: AtomicDataset, elements: Sequence[int]) -> dict[int, float]:
    if dataset.atom_references is None:
        raise OptionError(
            f"{dataset.info.name} comes without energies of free atoms; use --offset atomic"
        )
    wanted = sorted({*dataset.elements, *elements})
    missing = [z for z in wanted if z not in dataset.atom_references]
    if missing:
        raise OptionError(f"no energy of a free atom is known for atomic numbers {missing}")
    return {z: dataset.atom_references[z] for z in wanted}


def fit_label_scale(
    dataset: AtomicDataset,
    *,
    rescale: str | float = "forces",
    offset: str = "atomic",
    elements: Sequence[int] = (),
    weights: np.ndarray | None = None,
) -> LabelScale:
    """The label scale of a training set.

    Args:
        dataset: The training frames.
        rescale: ``"forces"``: C is the RMS of the force components in eV/A (the network sees forces
            of unit variance), or where there are none, the standard deviation of the energies
            less their offsets; ``"paper"``: the paper's power of ten, in the dataset's own unit,
            from the raw labels; ``"none"``: 1 in the dataset's own unit; or a number in that unit.
            Forces on atoms that are held in place do not count, nor (but for ``"paper"``) do frames
            whose labels are outliers (:func:`dcase.data.label_check.good_frames`).
        offset: See :func:`fit_offsets`.
        elements: See :func:`fit_offsets`.
        weights: See :func:`fit_offsets`.

    Raises:
        OptionError: For an unknown rule.
        DataError: If a label that the rule needs is missing.
    """
    # Labels that are no energies (Debye, ...) are in the file's unit already.
    unit = ENERGY_UNITS.get(dataset.info.label_unit, 1.0)
    if rescale != "paper" and dataset.info.quantity == "energy":
        # One unconverged calculation would set the scale of all others.
        good = good_frames(dataset)
        if not good.all():
            elements = sorted({*elements, *dataset.elements})
            weights = None if weights is None else weights[np.repeat(good, dataset.n_atoms)]
            dataset = dataset.subset(np.flatnonzero(good))
    offsets = fit_offsets(dataset, offset, elements, weights)
    forces = dataset.free_forces()
    if isinstance(rescale, str) and rescale not in RESCALES:
        try:
            rescale = float(rescale)
        except ValueError:
            raise OptionError(
                f"rescale must be a number or one of {', '.join(RESCALES)}; got {rescale!r}"
            ) from None
    if not isinstance(rescale, str):
        return LabelScale(float(rescale) * unit, offsets, "number", offset)
    if rescale == "none":
        return LabelScale(unit, offsets, rescale, offset)
    if rescale == "paper":
        energies = None if dataset.energies is None else dataset.energies / unit
        forces = None if forces is None else forces / unit
        return LabelScale(paper_constant(energies, forces) * unit, offsets, rescale, offset)
    if forces is not None and forces.size:
        constant = float(np.sqrt(np.mean(forces**2)))
    elif dataset.energies is not None:
        constant = float(np.std(dataset.energies - offset_energies(dataset, offsets, weights)))
    else:
        raise DataError("the dataset has neither energies nor forces")
    return LabelScale(constant if constant > 0 else 1.0, offsets, rescale, offset)


def offset_energies(
    dataset: AtomicDataset, offsets: dict[int, float], weights: np.ndarray | None = None
) -> np.ndarray:
    """The offset energy of every frame in eV, float64, shape [n_frames].

    Args:
        dataset: The frames.
        offsets: By atomic number.
        weights: See :func:`fit_offsets`.
    """
    table = np.zeros(119)
    for z, energy in offsets.items():
        table[z] = energy
    values = table[dataset.numbers]
    return np.add.reduceat(values if weights is None else values * weights, dataset.ptr[:-1])
