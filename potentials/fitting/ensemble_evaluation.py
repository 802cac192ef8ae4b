"""Errors of an ensemble on labelled frames, beside the uncertainty it claimed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dcase.data.dataset import AtomicDataset
from dcase.data.held import std_along
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.fitting.calibration import Calibration, calibrate, rank_correlation
from dcase.potentials.fitting.evaluation import Evaluation, evaluate_potential
from dcase.potentials.graphs.graph import AtomicGraph


@dataclass(frozen=True)
class Uncertainty:
    """Errors and standard deviations of one quantity.

    Attributes:
        error: Prediction less reference, eV [n_frames] or eV/A [n_free_atoms, 3]; where atoms are
            held in part [n_free_components].
        std: Standard deviation over the members, the same shape and unit.
        unit: ``"eV"``, ``"eV/A"``, or that of a quantity that is no energy.
        calibration: Of all elements of the two.
        spearman_per_atom: Of the lengths of the force vectors; None for energies.
        spearman_per_frame: Of the longest force vector of each frame (the standard deviation's is
            the uncertainty that selection and ``dcase md`` go by); None for energies.
    """

    error: np.ndarray
    std: np.ndarray
    unit: str
    calibration: Calibration
    spearman_per_atom: float | None = None
    spearman_per_frame: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: those of the calibration in :attr:`unit`, and the rank correlations."""
        content = {"unit": self.unit, **self.calibration.to_dict()}
        if self.spearman_per_atom is not None:
            content["spearman_per_atom"] = self.spearman_per_atom
            content["spearman_per_frame"] = self.spearman_per_frame
        return content


@dataclass(frozen=True)
class EnsembleEvaluation:
    """What :func:`evaluate_ensemble` finds.

    Attributes:
        evaluation: Errors of the mean prediction.
        energy: Uncertainty of the energies (or of the quantity the ensemble predicts), or None
            where there are no labels.
        forces: Uncertainty of the forces on atoms not held in place, or None.
    """

    evaluation: Evaluation
    energy: Uncertainty | None
    forces: Uncertainty | None

    def by_name(self) -> dict[str, Uncertainty]:
        """Those there are, as ``"energy"`` (or the name of the quantity) and ``"forces"``."""
        both = {self.evaluation.quantity.key: self.energy, "forces": self.forces}
        return {name: found for name, found in both.items() if found is not None}


def evaluate_ensemble(
    ensemble: Ensemble, dataset: AtomicDataset, *, batch_size: int = 32
) -> EnsembleEvaluation:
    """Errors of the mean, and how they compare with the standard deviations, in one pass.

    Args:
        ensemble: Evaluated on its own device, in its own dtype.
        dataset: Labelled frames.
        batch_size: Frames at a time.

    Raises:
        DataError: If the frames have no labels, or elements the ensemble does not know.
    """
    recorder = _Recorder(ensemble, forces=dataset.forces is not None)
    evaluation = evaluate_potential(recorder, dataset, batch_size=batch_size)  # type: ignore[arg-type]
    energy = forces = None
    if evaluation.energy is not None:
        reference, predicted = evaluation.energy
        quantity = evaluation.quantity
        std = np.concatenate(recorder.stds[f"{quantity.key}_std"])
        calibration = calibrate(reference, predicted, std)
        energy = Uncertainty(predicted - reference, std, quantity.unit, calibration)
    if evaluation.forces is not None:
        std = _along_free(dataset, np.concatenate(recorder.stds["forces_std"]))
        reference, predicted = evaluation.forces
        forces = _of_forces(dataset, reference, predicted, std)
    return EnsembleEvaluation(evaluation, energy, forces)


def _along_free(dataset: AtomicDataset, std: np.ndarray) -> np.ndarray:
    """Standard deviations [n_atoms, 3] along x, y, z as those along free directions, flat."""
    if dataset.free_axes is not None and (axes := dataset.directions) is not None:
        return std_along(axes, std)[axes.any(axis=2)]
    return dataset.free_components(std).ravel()


def _of_forces(
    dataset: AtomicDataset, reference: np.ndarray, predicted: np.ndarray, std: np.ndarray
) -> Uncertainty:
    """Of components along free directions in eV/A, shape [n_components]."""
    error = predicted - reference
    axes = dataset.directions
    free = np.ones((len(dataset.numbers), 3), bool)
    if axes is not None:
        free = np.any(axes, axis=2)
    some = np.any(free, axis=1)
    frame = np.repeat(np.arange(len(dataset)), dataset.n_atoms)[some]
    lengths = []
    for values in (error, std):
        vectors = np.zeros(free.shape)
        vectors[free] = values
        lengths.append(np.linalg.norm(vectors[some], axis=1))
    first = np.flatnonzero(np.diff(frame, prepend=-1))  # first atom of each frame that has any
    shape = (-1,) if dataset.free_axes is not None else (-1, 3)
    return Uncertainty(
        error.reshape(shape),
        std.reshape(shape),
        "eV/A",
        calibrate(*(v.reshape(shape) for v in (reference, predicted, std))),
        rank_correlation(*lengths),
        rank_correlation(*(np.maximum.reduceat(values, first) for values in lengths)),
    )


class _Recorder:
    """An ensemble that keeps the standard deviations it is asked for, batch by batch."""

    def __init__(self, ensemble: Ensemble, *, forces: bool):
        self._ensemble, self._forces = ensemble, forces
        self.stds: dict[str, list[np.ndarray]] = defaultdict(list)

    def __call__(self, graph: AtomicGraph, *, stress: bool = False, **_: bool) -> dict[str, Tensor]:
        result = self._ensemble(graph, forces=self._forces, stress=stress)
        for name, values in result.items():
            if name.endswith("_std"):
                self.stds[name].append(values.cpu().numpy())
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ensemble, name)
