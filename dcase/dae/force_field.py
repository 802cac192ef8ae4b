"""Flexible TIP3P water in the open, in plain NumPy: energies, forces, and an ASE calculator.

    ============================================  ==============================================
    term                                          parameters
    ============================================  ==============================================
    ``k_b (r - r_0)^2`` per O-H bond              450 kcal/mol/A^2, 0.9572 A
    or ``D (1 - exp(-a (r - r_0)))^2`` (Morse)    116.09 kcal/mol, ``a = sqrt(k_b / D)``
    ``k_theta (theta - theta_0)^2`` per angle     55 kcal/mol/rad^2, 104.52 degrees
    ``q_i q_j / r`` between molecules             O -0.834 e, H 0.417 e
    ``eps ((R/r)^12 - 2 (R/r)^6)`` between        O 0.1521 kcal/mol, R/2 1.7682 A;
    molecules, Lorentz-Berthelot                  H 0.0460 kcal/mol, R/2 0.2245 A
    ============================================  ==============================================

The parameters are CHARMM's TIP3P (Jorgensen et al., J. Chem. Phys. 79, 926 (1983); MacKerell et
al., J. Phys. Chem. B 102, 3586 (1998)) with its bond and angle terms kept instead of SHAKE; the
depth of the Morse form is that of q-TIP4P/F (Habershon et al., J. Chem. Phys. 131, 024501 (2009)),
its curvature that of the harmonic bond. It stands in for the field of Praprotnik and Janezic (J.
Chem. Phys. 122, 174103 (2005)) that the Neural DAE paper used, whose data are not to be had.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes

from dcase.errors import DataError, OptionError
from dcase.units import KCAL_PER_MOL

BOND_CONSTANT = 450.0 * KCAL_PER_MOL
"""eV/A^2, without the factor 1/2."""
BOND_LENGTH = 0.9572
"""A."""
ANGLE_CONSTANT = 55.0 * KCAL_PER_MOL
"""eV/rad^2, without the factor 1/2."""
ANGLE = math.radians(104.52)
"""rad."""
MORSE_DEPTH = 116.09 * KCAL_PER_MOL
"""eV."""
CHARGES = (-0.834, 0.417, 0.417)
"""Elementary charges, in the order O, H, H."""
WELL_DEPTHS = tuple(eps * KCAL_PER_MOL for eps in (0.1521, 0.046, 0.046))
"""eV."""
HALF_MINIMA = (1.7682, 0.2245, 0.2245)
"""Half the distance of the Lennard-Jones minimum, A."""
COULOMB = units.Hartree * units.Bohr
"""e^2 / (4 pi eps_0), eV A."""

SPECIES = (8, 1, 1)
"""Atomic numbers within a molecule; files and calculator demand this order."""


class WaterForces:
    """Energy and forces of ``molecules`` waters in the order O, H, H, O, H, H, ...

    All pairs, no cutoff, no periodic images; atoms of one molecule see each other only through
    bonds and angle. The work arrays are kept between calls: use one object per thread.

    Args:
        molecules: How many.
        bond: ``"harmonic"`` or ``"morse"``.

    Raises:
        OptionError: For another bond or no molecules.
    """

    def __init__(self, molecules: int, bond: str = "harmonic"):
        if molecules < 1:
            raise OptionError(f"there must be at least one molecule, got {molecules}")
        if bond not in ("harmonic", "morse"):
            raise OptionError(f"bond must be harmonic or morse, got {bond!r}")
        self.molecules, self.bond = molecules, bond
        n = 3 * molecules
        charges, depths, halves = (
            np.tile(values, molecules) for values in (CHARGES, WELL_DEPTHS, HALF_MINIMA)
        )
        other = np.kron(1.0 - np.eye(molecules), np.ones((3, 3)))  # 0 within a molecule
        depth = np.sqrt(np.outer(depths, depths)) * other
        sixth = np.add.outer(halves, halves) ** 6
        self._charge = COULOMB * np.outer(charges, charges) * other
        self._repulsion = depth * sixth**2  # A in A / r^12 - B / r^6
        self._attraction = 2.0 * depth * sixth
        self._unit = np.eye(n)
        self._apart = np.empty((3, n, n))
        self._work = np.empty((5, n, n))

    def energy_forces(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Potential energy in eV and forces ``[N, 3]`` in eV/A at ``positions [N, 3]`` in A."""
        energy, forces = self._between(positions)
        bonds, bend = self._within(positions, forces)
        return energy + bonds + bend, forces

    def _between(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Coulomb and Lennard-Jones between molecules."""
        apart = self._apart
        columns = np.ascontiguousarray(positions.T)
        np.subtract(columns[:, :, None], columns[:, None, :], out=apart)
        inverse2, inverse6, coulomb, scratch, dispersion = self._work
        # 1 on the diagonal, where every coefficient is 0.
        np.einsum("cij,cij->ij", apart, apart, out=inverse2)
        inverse2 += self._unit
        np.divide(1.0, inverse2, out=inverse2)
        np.sqrt(inverse2, out=coulomb)
        coulomb *= self._charge
        np.multiply(inverse2, inverse2, out=inverse6)
        inverse6 *= inverse2
        np.multiply(self._attraction, inverse6, out=dispersion)
        np.multiply(self._repulsion, inverse6, out=scratch)
        scratch *= inverse6
        # Each pair is there twice.
        energy = 0.5 * float(coulomb.sum() + scratch.sum() - dispersion.sum())
        # -dE/dr / r = (q/r + 12 A/r^12 - 6 B/r^6) / r^2
        scratch *= 2.0
        scratch -= dispersion
        scratch *= 6.0
        scratch += coulomb
        scratch *= inverse2
        return energy, np.einsum("ij,cij->ic", scratch, apart)

    def _within(self, positions: np.ndarray, forces: np.ndarray) -> tuple[float, float]:
        """Bonds and angles; their forces are added to ``forces``."""
        sites = positions.reshape(-1, 3, 3)
        bonds = sites[:, 1:] - sites[:, :1]  # [m, 2, 3], from O to H
        lengths = np.sqrt(np.einsum("mbc,mbc->mb", bonds, bonds))
        along = bonds / lengths[:, :, None]
        stretch = lengths - BOND_LENGTH
        if self.bond == "harmonic":
            energies = BOND_CONSTANT * stretch**2
            slopes = 2.0 * BOND_CONSTANT * stretch
        else:
            width = math.sqrt(BOND_CONSTANT / MORSE_DEPTH)
            decay = np.exp(-width * stretch)
            energies = MORSE_DEPTH * (1.0 - decay) ** 2
            slopes = 2.0 * MORSE_DEPTH * width * decay * (1.0 - decay)
        # The angle from both sine and cosine: accurate also when the molecule is nearly straight.
        cosine = np.einsum("mc,mc->m", along[:, 0], along[:, 1])
        across = along[:, ::-1] - cosine[:, None, None] * along  # normal to its bond, |.| = sine
        sine = np.sqrt(np.einsum("mc,mc->m", across[:, 0], across[:, 0]))
        opening = np.arctan2(sine, cosine) - ANGLE
        # d theta / d r_H = -across / (sine * length)
        torque = 2.0 * ANGLE_CONSTANT * opening / np.maximum(sine, 1e-12)
        pulls = torque[:, None, None] * across / lengths[:, :, None] - slopes[:, :, None] * along
        shaped = forces.reshape(-1, 3, 3)
        shaped[:, 1:] += pulls
        shaped[:, 0] -= pulls.sum(axis=1)
        return float(energies.sum()), ANGLE_CONSTANT * float(opening @ opening)


class FlexibleWater(Calculator):
    """The force field of this module as an ASE calculator (eV, eV/A), without periodic boundaries.

    The atoms must come as O, H, H, O, H, H, ..., each oxygen followed by its own hydrogens.

    Args:
        bond: ``"harmonic"`` or ``"morse"``.

    Raises:
        DataError: From a calculation, if the atoms are no waters in this order, or are periodic.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, bond: str = "harmonic", **options: Any):
        super().__init__(**options)
        self._forces = WaterForces(1, bond)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy", "forces"),
        system_changes: Any = tuple(all_changes),
    ) -> None:
        """Energy and forces of ``atoms``."""
        super().calculate(atoms, properties, system_changes)
        waters: Any = self.atoms  # the copy that ASE keeps
        check_water(waters)
        molecules = len(waters) // 3
        if molecules != self._forces.molecules:
            self._forces = WaterForces(molecules, self._forces.bond)
        energy, forces = self._forces.energy_forces(waters.positions)
        self.results = {"energy": energy, "forces": forces}


def check_water(atoms: Atoms) -> None:
    """Raise a DataError unless ``atoms`` are isolated waters in the order O, H, H."""
    numbers = atoms.get_atomic_numbers()
    if len(numbers) == 0 or len(numbers) % 3:
        raise DataError(f"water has three atoms per molecule, but there are {len(numbers)} atoms")
    wrong = np.flatnonzero(numbers.reshape(-1, 3) != np.array(SPECIES))
    if len(wrong):
        raise DataError(
            f"atom {wrong[0]} is {atoms.symbols[wrong[0]]}: the force field is for water only, "
            "its atoms in the order O, H, H, O, H, H"
        )
    if np.any(atoms.pbc):
        raise DataError(
            "the flexible water force field has no periodic boundaries; set atoms.pbc = False"
        )
    sites = atoms.positions.reshape(-1, 3, 3)
    longest = np.linalg.norm(sites[:, 1:] - sites[:, :1], axis=-1).max(axis=1)
    if longest.max() > 2.0 or not np.isfinite(longest.max()):
        raise DataError(
            f"an O-H bond of molecule {int(longest.argmax())} is {longest.max():.3g} A long; each "
            "oxygen must be followed by its own two hydrogens"
        )
