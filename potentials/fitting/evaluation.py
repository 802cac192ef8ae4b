"""Errors of a potential on labelled frames."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ase.stress import voigt_6_to_full_3x3_stress

from dcase.data.dataset import AtomicDataset
from dcase.data.held import partly_held
from dcase.errors import ApartWarning, DataError
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.potential import Potential
from dcase.potentials.quantity import ENERGY, Quantity, quantity_of
from dcase.rescaling import LabelScale
from dcase.units import GPA, KCAL_PER_MOL

# "Energy and forces within threshold": OC20 (Chanussot et al., ACS Catal. 11, 6059 (2021)).
EFWT_ENERGY_EV = 0.02
EFWT_FORCE_EV_A = 0.03


@dataclass(frozen=True)
class Evaluation:
    """Predictions beside references, and their errors.

    Attributes:
        metrics: Errors by name; the unit is part of the name.
        energy: Reference and predicted energies in eV, or values of the quantity in its unit, shape
            [2, n_frames], or None.
        forces: Reference and predicted force components along free directions in eV/A, shape
            [2, 3 n_free_atoms] where no atom is held in part, or None.
        n_atoms: Atoms of each frame, shape [n_frames].
        quantity: What ``energy`` holds.
        stress: Reference and predicted components in eV/A^3 of the frames that have a label, all
            nine of each tensor, as errors count them: shape [2, 9 n_labelled], or None.
    """

    metrics: dict[str, Any]
    energy: np.ndarray | None
    forces: np.ndarray | None
    n_atoms: np.ndarray
    quantity: Quantity = ENERGY
    stress: np.ndarray | None = None


def evaluate_potential(
    potential: Potential, dataset: AtomicDataset, *, batch_size: int = 32
) -> Evaluation:
    """MAE and RMSE of energies (per frame and per atom), force components and stress, and EFwT.

    EFwT is the share of frames whose energy error is at most 0.02 eV and whose largest force
    component error is at most 0.03 eV/A. Atoms that ``dataset.fixed`` marks are left out of all
    errors of forces, as the Open Catalyst Project's metrics do, and so are the components along
    directions in which ``dataset.free_axes`` holds an atom; drop the marks to count them.
    Forces and stress are computed only where the frames have some to compare with; errors of stress
    are over the nine components of the tensor, as MACE's and NequIP's are.

    Args:
        potential: Evaluated on its own device, in its own dtype.
        dataset: Labelled frames.
        batch_size: Frames at a time.

    Returns:
        Metrics: ``n_frames``; ``energy_mae_mev``, ``energy_rmse_mev``, ``energy_mae_mev_per_atom``,
        ``energy_rmse_mev_per_atom``, ``energy_mae_kcal_mol``, ``energy_rmse_kcal_mol``;
        ``forces_mae_mev_angstrom``, ``forces_rmse_mev_angstrom``, ``forces_mae_kcal_mol_angstrom``,
        ``forces_rmse_kcal_mol_angstrom``; ``efwt`` when both labels are there; ``n_fixed_atoms``
        where some are left out, ``n_partly_fixed_atoms`` where some of their directions are;
        ``stress_mae_mev_angstrom3``, ``stress_rmse_mev_angstrom3``, ``stress_mae_gpa``,
        ``stress_rmse_gpa`` and ``n_stress_frames``, how many have a label of it. Of a
        quantity that is no energy: ``<name>_mae_<unit>`` and ``<name>_rmse_<unit>``, see
        :func:`value_metrics`.

    Raises:
        DataError: If the frames have no labels, labels of another quantity, or elements the
            potential does not know.
    """
    unknown = sorted(set(dataset.elements) - set(potential.elements))
    if unknown:
        from ase.data import chemical_symbols

        raise DataError(
            f"the data hold {', '.join(chemical_symbols[z] for z in unknown)}, which the potential "
            f"was not trained on (it knows "
            f"{', '.join(chemical_symbols[z] for z in potential.elements)})"
        )
    if dataset.energies is None and dataset.forces is None:
        raise DataError("the frames have neither energies nor forces to compare with")
    quantity = potential.quantity
    if quantity_of(dataset).key != quantity.key:
        raise DataError(
            f"the potential predicts {quantity}, the frames have labels of {quantity_of(dataset)}"
        )
    if not quantity.is_energy:
        dataset = replace(dataset, forces=None, stress=None)
    frames = FrameBatches(dataset, potential.cutoff, LabelScale(), potential.device)
    if frames.apart:
        warnings.warn(frames.apart, ApartWarning, stacklevel=2)
    energies, forces, stress = [], [], []
    with_stress = bool(dataset.stressed.any())
    potential.eval()
    for batch in frames.in_order(batch_size):
        also = {"stress": True} if with_stress else {}
        result = potential(batch.graph, forces=dataset.forces is not None, **also)
        if with_stress:
            stress.append(result["stress"].cpu().numpy())
        energies.append(result[quantity.key].cpu().numpy())
        if dataset.forces is not None:
            forces.append(result["forces"].cpu().numpy())
    predicted_e = np.concatenate(energies)

    metrics: dict[str, Any] = {"n_frames": len(dataset)}
    energy_pair = forces_pair = stress_pair = None
    if dataset.energies is not None:
        error = predicted_e - dataset.energies
        energy_pair = np.stack([dataset.energies, predicted_e])
        metrics |= value_metrics(error, quantity, dataset.n_atoms)
    if dataset.forces is not None and (dataset.directions is None or dataset.directions.any()):
        if dataset.fixed is not None and dataset.fixed.any():
            metrics["n_fixed_atoms"] = int(dataset.fixed.sum())
        if dataset.free_axes is not None:
            metrics["n_partly_fixed_atoms"] = int(partly_held(dataset.free_axes).sum())
        predicted_f = np.concatenate(forces)
        error_f = dataset.free_components(predicted_f - dataset.forces)
        forces_pair = np.stack(
            [dataset.free_components(f).ravel() for f in (dataset.forces, predicted_f)]
        )
        for suffix, factor in (("mev_angstrom", 1e3), ("kcal_mol_angstrom", 1 / KCAL_PER_MOL)):
            metrics[f"forces_mae_{suffix}"] = float(np.abs(error_f).mean() * factor)
            metrics[f"forces_rmse_{suffix}"] = float(np.sqrt((error_f**2).mean()) * factor)
        if dataset.energies is not None:
            wrong = replace(dataset, forces=predicted_f - dataset.forces).largest_free_force()
            largest = np.maximum.reduceat(wrong, dataset.ptr[:-1])
            good = (np.abs(error) <= EFWT_ENERGY_EV) & (largest <= EFWT_FORCE_EV_A)
            metrics["efwt"] = float(good.mean())
    if with_stress:
        assert dataset.stress is not None
        there = dataset.stressed
        voigt = np.stack([dataset.stress[there], np.concatenate(stress)[there]])
        stress_pair = voigt_6_to_full_3x3_stress(voigt).reshape(2, -1)
        error_s = stress_pair[1] - stress_pair[0]
        metrics["n_stress_frames"] = int(there.sum())
        for suffix, factor in (("mev_angstrom3", 1e3), ("gpa", 1 / GPA)):
            metrics[f"stress_mae_{suffix}"] = float(np.abs(error_s).mean() * factor)
            metrics[f"stress_rmse_{suffix}"] = float(np.sqrt((error_s**2).mean()) * factor)
    return Evaluation(metrics, energy_pair, forces_pair, dataset.n_atoms, quantity, stress_pair)


# Units as they are in the names of metrics.
_UNIT_NAMES = {"a0^3": "bohr3", "a0^2": "bohr2", "Debye": "debye", "cal/mol/K": "cal_mol_k"}


def value_metrics(error: np.ndarray, quantity: Quantity, n_atoms: np.ndarray) -> dict[str, float]:
    """MAE and RMSE of energies or of another quantity, the unit in the name.

    Args:
        error: Predicted less reference, in the quantity's unit, shape [n_frames].
        quantity: What it is of.
        n_atoms: Shape [n_frames].

    Returns:
        Of energies ``energy_mae_mev``, ``..._mev_per_atom`` and ``..._kcal_mol``; of other
        quantities in eV ``homo_mae_mev``; else ``mu_mae_debye``, ``alpha_mae_bohr3``,
        ``r2_mae_bohr2``, ``Cv_mae_cal_mol_k``; each with ``rmse`` for ``mae`` too.
    """
    by_unit = {_UNIT_NAMES.get(quantity.unit, quantity.unit): error}
    if quantity.unit == "eV":
        by_unit = {"mev": error * 1e3}
    if quantity.is_energy:
        by_unit |= {"mev_per_atom": error / n_atoms * 1e3, "kcal_mol": error / KCAL_PER_MOL}
    found = {}
    for unit, values in by_unit.items():
        found[f"{quantity.key}_mae_{unit}"] = float(np.abs(values).mean())
        found[f"{quantity.key}_rmse_{unit}"] = float(np.sqrt((values**2).mean()))
    return found


def choose_device(name: str | None) -> torch.device:
    """``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` or None/"auto" (a GPU if there is one).

    Raises:
        OptionError: If there is no such device here.
    """
    from dcase.errors import OptionError

    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)  # type: ignore[arg-type]
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # torch lists every device it was ever built for
            raise OptionError(f"unknown device {name!r}; use cpu, cuda, cuda:1 or mps") from None
        raise OptionError(f"device {name!r} is not available here: {reason}") from None
    return device
