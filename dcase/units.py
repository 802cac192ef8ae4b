"""Units: eV, Angstrom, amu and fs everywhere; others only where files and papers use them.

The values are ASE's (CODATA 2014), so that dcase and ASE agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ase import units as _ase

from dcase.errors import OptionError

KCAL_PER_MOL: float = _ase.kcal / _ase.mol
"""One kcal/mol in eV (0.0433641)."""

FS: float = _ase.fs
"""One femtosecond in ASE's time unit, Angstrom * sqrt(amu / eV)."""

KB: float = _ase.kB
"""Boltzmann's constant in eV/K."""

ENERGY_UNITS: dict[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": _ase.kJ / _ase.mol,
    "Hartree": _ase.Hartree,
    "Ry": _ase.Rydberg,
}
"""Energy units a file may use, each in eV."""

LENGTH_UNITS: dict[str, float] = {"A": 1.0, "Bohr": _ase.Bohr, "nm": 10.0}
"""Length units a file may use, each in Angstrom."""

_OTHER_NAMES = {
    "ha": "Hartree", "eh": "Hartree", "rydberg": "Ry", "angstrom": "A", "angstroms": "A",
    "ang": "A", "å": "A", "a0": "Bohr", "au": "Bohr", "a.u.": "Bohr",
}  # fmt: skip


def unit_name(text: str, known: Mapping[str, float]) -> str:
    """A unit's name as ``known`` has it; case does not matter.

    Raises:
        OptionError: If it is none of them.
    """
    wanted = text.strip().lower()
    wanted = _OTHER_NAMES.get(wanted, wanted).lower()
    for name in known:
        if name.lower() == wanted:
            return name
    raise OptionError(f"unknown unit {text!r}; known are {', '.join(known)}")


@dataclass(frozen=True)
class Units:
    """Units of the numbers in a file.

    Attributes:
        energy: A name of :data:`ENERGY_UNITS`.
        length: A name of :data:`LENGTH_UNITS`; of positions and cells.
        forces: ``"ENERGY/LENGTH"``; ``""``: energy over length, as above. With a minus in front, as
            in ``"-Hartree/Bohr"``, the file holds gradients.

    Raises:
        OptionError: For an unknown unit.
    """

    energy: str = "eV"
    length: str = "A"
    forces: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", unit_name(self.energy, ENERGY_UNITS))
        object.__setattr__(self, "length", unit_name(self.length, LENGTH_UNITS))
        _ = self.forces_eV_A

    @property
    def energy_eV(self) -> float:
        """One unit of energy in eV."""
        return ENERGY_UNITS[self.energy]

    @property
    def length_A(self) -> float:
        """One unit of length in Angstrom."""
        return LENGTH_UNITS[self.length]

    @property
    def forces_eV_A(self) -> float:
        """One unit of force in eV/A; negative for gradients."""
        text = self.forces.strip()
        sign, text = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
        if not text:
            return sign * self.energy_eV / self.length_A
        energy, slash, length = text.rpartition("/")
        if not slash:
            raise OptionError(f"a unit of forces is ENERGY/LENGTH, e.g. Hartree/Bohr; got {text!r}")
        energy = unit_name(energy, ENERGY_UNITS)
        return sign * ENERGY_UNITS[energy] / LENGTH_UNITS[unit_name(length, LENGTH_UNITS)]
