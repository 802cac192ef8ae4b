"""What the conformance checks share: the potential, its structures, its scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from dcase.md_runs.checks.structures import crystal_of
from dcase.potentials.calculator import DCCalculator
from dcase.potentials.graphs.graph import AtomicGraph, build_graph
from dcase.potentials.potential import Potential, potential_from_document

# Of the finite differences in Angstrom (also relative changes of parameters, and strains).
_STEPS = {
    # The smallest are for IReLU: a network of many kinks has one inside any larger step.
    "float64": (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6),
    "float32": (1e-1, 3e-2, 1e-2),
}


class Skip(Exception):
    """Raised by a check that does not apply; the message says why."""


class Predicted(NamedTuple):
    """What a potential says about one structure."""

    energy: float  # eV
    energies: np.ndarray  # eV, [n_atoms]
    forces: np.ndarray  # eV/A, [n_atoms, 3]
    stress: np.ndarray | None  # eV/A^3, [6]


class Subject:
    """The potential under test, the structures it is tested on, and its scales.

    Attributes:
        potential: A copy, in the dtype and on the device of the test.
        given: The structure, rattled, as periodic as it came.
        molecule: The same atoms without periodicity.
        crystal: The same atoms, periodic in three directions.
        force_scale: Root mean square force component of ``given``, eV/A.
        energy_scale: F x 1 A + the network's root mean square energy per atom, eV.
    """

    def __init__(self, potential: Potential, atoms: Atoms, dtype: str, device: str | None):
        self.source, self.dtype = potential, dtype
        calculator = self.calculator(device=device, skin=0.0)
        self.potential, self.device = calculator.potential, calculator.device
        self.given = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        self.given.rattle(0.05, rng=self.rng())
        calculator.get_potential_energy(self.given)  # unknown elements, NaN, ... : one clear error
        self.molecule = Atoms(self.given.numbers, self.given.positions)
        self.crystal = self.given.copy() if self.given.pbc.all() else crystal_of(self.molecule)
        reference = self(self.given)
        rms = float(np.sqrt(np.mean(reference.forces**2)))
        self.force_scale = rms if rms > 0 else 1.0
        own = reference.energies - self.potential.offsets.cpu().numpy()[self.given.numbers]
        self.energy_scale = self.force_scale + float(np.sqrt(np.mean(own**2)))

    @staticmethod
    def rng(seed: int = 0) -> np.random.Generator:
        """A generator of its own for every use."""
        return np.random.default_rng([seed, 20231002])

    def calculator(self, **options: Any) -> DCCalculator:
        """A fresh calculator of the potential under test; it evaluates isolated atoms too."""
        settings = {"dtype": self.dtype, "device": getattr(self, "device", None), **options}
        return DCCalculator(self.source, allow_isolated=True, **settings)

    def graph(self, atoms: Atoms) -> AtomicGraph:
        """The graph of ``atoms``, from a fresh search, on the device."""
        return build_graph(
            atoms.numbers, atoms.positions, self.potential.cutoff, atoms.cell.array, atoms.pbc
        ).to(self.device)

    def __call__(self, atoms: Atoms, *, stress: bool = False) -> Predicted:
        """Evaluate with a fresh neighbour list."""
        result = self.potential(self.graph(atoms), stress=stress)
        numpy = {name: value.cpu().numpy() for name, value in result.items()}
        return Predicted(
            float(numpy["energy"][0]),
            numpy["energies"],
            numpy["forces"],
            numpy["stress"][0] if stress else None,
        )

    def error(self, found: Predicted, energy: float, forces: np.ndarray) -> float:
        """The larger of the errors of energy and forces, in units of their scales."""
        return max(
            abs(found.energy - energy) / self.energy_scale,
            float(np.abs(found.forces - forces).max()) / self.force_scale,
        )

    def best_step(
        self, function: Callable[[int, float], float], expected: np.ndarray, scale: float
    ) -> tuple[float, str]:
        """The error of ``expected[k] = d function(k, t)/dt`` at t = 0, with the best step.

        Fourth order: ``f' = [8 (f(h) - f(-h)) - (f(2h) - f(-2h))] / 12 h + O(h^4)``.
        """
        errors = {}
        for h in _STEPS[self.dtype]:
            slopes = [
                (
                    8 * (function(k, h) - function(k, -h))
                    - (function(k, 2 * h) - function(k, -2 * h))
                )
                / (12 * h)
                for k in range(len(expected))
            ]
            errors[h] = float(np.abs(np.array(slopes) - expected).max()) / scale
        best = min(errors, key=lambda h: errors[h])
        return errors[best], f"{len(expected)} derivatives, best step {best:g}"


def displaced(atoms: Atoms, displacement: np.ndarray) -> Atoms:
    """A copy moved by ``displacement``, A, broadcast to shape [n_atoms, 3]."""
    moved = atoms.copy()
    moved.positions += displacement
    return moved


def orthogonal(rng: np.random.Generator, determinant: int) -> np.ndarray:
    """A random orthogonal matrix [3, 3] of determinant 1 or -1."""
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * (determinant * np.sign(np.linalg.det(q)))


def copy_potential(potential: Potential) -> Potential:
    """An independent copy on the same device, its parameters free to move."""
    return potential_from_document(potential.to_document(), "potential").to(potential.device)
