"""Relax a structure, say whether it converged, and look for imaginary modes."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.optimize import BFGS, FIRE, LBFGS

from dcase.data.held import (
    describe_constraints,
    restraint_energy,
    restraints,
    working_constraints,
)
from dcase.data.state import MODEL_KEY, bare, for_extxyz
from dcase.errors import OptionError, RunError, SimulationError
from dcase.files import atomic_path, write_json
from dcase.md_runs.analysis.frequency import check_harmonic, harmonic_frequencies
from dcase.md_runs.files.identity import run_identity
from dcase.md_runs.files.provenance import describe_calculator
from dcase.potentials.electrons import electrons_line
from dcase.runs import Place, Run, claim
from dcase.versions import versions

OPTIMIZERS: dict[str, Any] = {"lbfgs": LBFGS, "bfgs": BFGS, "fire": FIRE}

IMAGINARY_CM = 20.0
"""An imaginary wavenumber above this means a saddle point; below, the sign is noise."""

DIVERGED_EV_A = 1e6
"""A force above this means the atoms have run into each other."""


@dataclass(frozen=True)
class RelaxResult:
    """What came of a relaxation.

    Attributes:
        atoms: The relaxed structure, with the potential's own energy and forces attached: those of
            restraints and what constraints do to forces are not in them.
        converged: Whether the largest force is below ``fmax``.
        status: One sentence.
        steps: Optimizer steps taken.
        energy_before_eV: What is minimised: the potential's energy and that of restraints, eV.
        energy_after_eV: eV.
        fmax_before_eV_A: Largest force (and, with ``cell``, cell gradient), eV/A.
        fmax_after_eV_A: The same afterwards.
        restraint_energy_eV: The part of ``energy_after_eV`` that restraints add, eV.
        frequencies_cm: Harmonic wavenumbers in cm^-1, imaginary ones negative; None if not asked.
        imaginary_modes: How many are imaginary by more than 20 cm^-1; None if not asked.
        out: Folder of the files; None if nothing was written.
    """

    atoms: Atoms
    converged: bool
    status: str
    steps: int
    energy_before_eV: float
    energy_after_eV: float
    fmax_before_eV_A: float
    fmax_after_eV_A: float
    restraint_energy_eV: float = 0.0
    frequencies_cm: tuple[float, ...] | None = None
    imaginary_modes: int | None = None
    out: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the structure, as plain values, for ``relax.json``."""
        found = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("atoms", "out")
        }
        found["frequencies_cm"] = list(self.frequencies_cm) if self.frequencies_cm else None
        return found


def relax(
    atoms: Atoms,
    *,
    fmax: float = 0.01,
    steps: int = 500,
    optimizer: str = "lbfgs",
    cell: bool = False,
    vibrations: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    notify: Callable[[str], None] | None = None,
) -> RelaxResult:
    """Move atoms downhill until no force exceeds ``fmax``.

    Args:
        atoms: With a calculator; left unchanged.
        fmax: Largest force allowed, eV/A.
        steps: Optimizer steps at most.
        optimizer: ``lbfgs``, ``bfgs`` or ``fire``.
        cell: Relax the cell in its periodic directions too (exponential filter); needs a stress.
        vibrations: Compute harmonic wavenumbers at the end (6N force calls).
        out: Folder for ``relaxed.extxyz``, ``relaxation.extxyz`` (every step) and ``relax.json``.
        overwrite: Replace an earlier result in ``out``.
        progress: Called with steps done and the most there can be.
        notify: Called with one line at the end, and with warnings.

    Raises:
        OptionError: For an impossible option, or no calculator.
        SimulationError: If the first forces are not finite, or ``out`` holds a result.
    """
    if optimizer.lower() not in OPTIMIZERS:
        raise OptionError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {optimizer!r}")
    if not (math.isfinite(fmax) and fmax > 0.0):
        raise OptionError(f"fmax must be a number > 0 eV/A, not {fmax!r}")
    if steps < 0:
        raise OptionError(f"steps must be >= 0, not {steps}")
    if atoms.calc is None:
        raise OptionError("the structure has no calculator: set atoms.calc before relax")
    if cell:
        _cell_mask(atoms)
    if cell and "stress" not in getattr(atoms.calc, "implemented_properties", ()):
        raise OptionError("relaxing the cell needs a stress, which this potential does not have")
    if vibrations:
        check_harmonic(atoms)
    options = {"fmax": fmax, "optimizer": optimizer.lower(), "cell": cell, "vibrations": vibrations}
    clean = bare(atoms)
    clean.calc = atoms.calc
    clean.info[MODEL_KEY] = str(describe_calculator(atoms.calc)["model"])
    search = _Search(clean, options, steps, progress)  # looks at the first forces
    if notify is not None and atoms.constraints:
        notify(f"constraints: {describe_constraints(atoms)}")
    if out is None:
        result = search.run(None)
    else:
        place = Place(Path(out), files=FILES, goes_on=False)
        identity = run_identity("relax", atoms, {**options, "steps": steps})
        run = claim(place, identity, overwrite=overwrite)
        try:
            result = search.run(place.folder, run)
            _write(place.folder, result, search, {**options, "steps": steps})
            run.finish()
        except RunError:  # the folder went away, and is not made again
            raise
        except BaseException:
            place.clear()  # nothing of it is of use, and it should not be in the way
            place.record.unlink(missing_ok=True)
            raise
        finally:
            run.release()
            with contextlib.suppress(OSError):
                if not any(place.folder.iterdir()):
                    place.folder.rmdir()
    if notify is not None:
        notify(result.status)
    return result


FILES = ("relaxed.extxyz", "relaxation.extxyz", "relax.json")
"""What a relaxation leaves in its folder."""


class _Search:
    """The way downhill, with all its structures."""

    def __init__(
        self,
        atoms: Atoms,
        options: dict[str, Any],
        steps: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.work = atoms.copy()
        self.work.calc = self.calc = atoms.calc
        self.exact = not options["cell"]  # else FixScaled goes with the cell
        self.work.set_constraint(working_constraints(self.work, exact=self.exact))
        self.own = atoms.copy().constraints
        self.options, self.steps, self.progress = options, steps, progress
        self.target: Any = self.work
        if options["cell"]:
            self.target = FrechetCellFilter(self.work, mask=_cell_mask(self.work))
        self.energy, self.force = _energy(self.work), _largest(self.target)
        if not (math.isfinite(self.energy) and math.isfinite(self.force)):
            raise SimulationError(
                "the energy or forces of the structure are not finite numbers: check the structure"
            )
        self.images = [self._frozen()]

    def run(self, folder: Path | None, claimed: Run | None = None) -> RelaxResult:
        """Follow it to the end."""
        fmax = self.options["fmax"]
        done, trouble = self._descend(fmax, claimed)
        force_after, energy_after = _largest(self.target), _energy(self.work)
        converged = not trouble and force_after <= fmax
        status = trouble or (
            f"converged in {done} steps"
            if converged
            else f"NOT converged after {done} steps: largest force {force_after:.3g} eV/A, "
            f"asked for {fmax:g}"
        )
        modes: tuple[float, ...] | None = None
        imaginary: int | None = None
        if self.options["vibrations"] and not trouble:
            self.work.calc = self.calc
            modes = tuple(float(v) for v in harmonic_frequencies(self.work))
            imaginary = sum(v < -IMAGINARY_CM for v in modes)
            if imaginary:
                status += f"; {imaginary} imaginary mode{'s' * (imaginary > 1)}: not a minimum"
        restraint = restraint_energy(self.work)
        if restraints(self.work):
            status += f"; energies include {restraint:.4g} eV of restraints"
        return RelaxResult(
            atoms=self.images[-1],
            converged=converged,
            status=status,
            steps=done,
            energy_before_eV=self.energy,
            energy_after_eV=energy_after,
            fmax_before_eV_A=self.force,
            fmax_after_eV_A=force_after,
            restraint_energy_eV=restraint,
            frequencies_cm=modes,
            imaginary_modes=imaginary,
            out=folder,
        )

    def _descend(self, fmax: float, claimed: Run | None) -> tuple[int, str]:
        """Optimizer steps done, and what went wrong, or ""."""
        search = OPTIMIZERS[self.options["optimizer"]](self.target, logfile=None)
        done = 0
        with contextlib.closing(search) if hasattr(search, "close") else contextlib.nullcontext():
            while done < self.steps and _largest(self.target) > fmax:
                if claimed is not None:
                    claimed.check()
                search.step()
                done += 1
                force = _largest(self.target)
                finite = math.isfinite(force) and math.isfinite(_energy(self.work))
                if not (finite and force < DIVERGED_EV_A):
                    self.work = self.images[-1].copy()
                    self.work.calc = self.images[-1].calc
                    self.work.set_constraint(working_constraints(self.work, exact=self.exact))
                    self.target = self.work
                    return done, f"diverged at step {done}: the result is the structure before it"
                self.images.append(self._frozen())
                if self.progress is not None:
                    self.progress(done, self.steps)
        return done, ""

    def _frozen(self) -> Atoms:
        """A copy with the constraints given, and the potential's own results as numbers.

        Neither restraints nor constraints are in these: the copy's constraints add them again.
        """
        atoms, image = self.work, self.work.copy()
        image.set_constraint(copy.deepcopy(self.own))
        results: dict[str, Any] = {
            "energy": float(atoms.get_potential_energy(apply_constraint=False)),
            "forces": atoms.get_forces(apply_constraint=False),
        }
        if "stress" in getattr(atoms.calc, "implemented_properties", ()) and np.all(atoms.pbc):
            results["stress"] = atoms.get_stress(apply_constraint=False)
        image.calc = SinglePointCalculator(image, **results)
        return image


def _write(folder: Path, result: RelaxResult, search: _Search, options: dict[str, Any]) -> None:
    line = electrons_line(getattr(search.calc, "potential", None), result.atoms)
    with atomic_path(folder / "relaxation.extxyz") as path:
        write(path, [for_extxyz(one) for one in search.images], format="extxyz")
    with atomic_path(folder / "relaxed.extxyz") as path:
        write(path, for_extxyz(result.atoms), format="extxyz")
    write_json(
        folder / "relax.json",
        {
            **result.to_dict(),
            **describe_calculator(search.calc),
            "warnings": [line] if line else [],
            "options": options,
            "versions": versions(),
        },
    )


def _cell_mask(atoms: Atoms) -> np.ndarray | None:
    """Which components of the strain the cell relaxes in, bool, shape [3, 3]; None: all.

    Those between periodic directions: the energy of a slab does not depend on its vacuum.

    Raises:
        OptionError: If nothing is periodic, the cell lacks a vector, or the periodic vectors are
            not along or at right angles to the axes x, y and z.
    """
    if not atoms.pbc.any():
        raise OptionError("relaxing the cell needs periodic boundaries in some direction")
    if atoms.cell.rank < 3:
        raise OptionError(
            "relaxing the cell needs three lattice vectors: give the direction that is not "
            "periodic one, as with atoms.center(vacuum=10, axis=2)"
        )
    if atoms.pbc.all():
        return None
    vectors = atoms.cell.array[atoms.pbc]
    projector = np.linalg.pinv(vectors) @ vectors
    along = np.diag(projector) > 0.5
    if not np.allclose(projector, np.diag(along), rtol=0, atol=1e-6):
        raise OptionError(
            "relaxing the cell of a slab or wire needs its periodic vectors in the plane of two "
            "of the axes x, y, z, or along one: turn the structure"
        )
    return np.logical_and.outer(along, along)


def _energy(atoms: Atoms) -> float:
    return float(atoms.get_potential_energy())


def _largest(target: Any) -> float:
    """Largest force on an atom (and largest row of the cell's gradient), eV/A."""
    return float(np.sqrt((target.get_forces() ** 2).sum(axis=1).max()))
