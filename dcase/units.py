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

GPA: float = _ase.GPa
"""One GPa in eV/A^3 (0.00624151)."""

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

STRESS_UNITS: dict[str, float] = {
    "eV/A^3": 1.0,
    "GPa": GPA,
    "kbar": GPA / 10,
    "Hartree/Bohr^3": _ase.Hartree / _ase.Bohr**3,
}
"""Units of stress a file may use, each in eV/A^3."""

_OTHER_NAMES = {
    "ha": "Hartree", "eh": "Hartree", "rydberg": "Ry", "angstrom": "A", "angstroms": "A",
    "ev/ang^3": "eV/A^3", "kb": "kbar",
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
        stress: A name of :data:`STRESS_UNITS`; ``""``: energy over length cubed, as above. With a
            minus in front, as in ``"-kbar"`` (VASP's OUTCAR), the file's stress is positive where
            the crystal is compressed.

    Raises:
        OptionError: For an unknown unit.
    """

    energy: str = "eV"
    length: str = "A"
    forces: str = ""
    stress: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", unit_name(self.energy, ENERGY_UNITS))
        object.__setattr__(self, "length", unit_name(self.length, LENGTH_UNITS))
        _ = self.forces_eV_A
        _ = self.stress_eV_A3

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
        sign, text = _signed(self.forces)
        if not text:
            return sign * self.energy_eV / self.length_A
        energy, slash, length = text.rpartition("/")
        if not slash:
            raise OptionError(f"a unit of forces is ENERGY/LENGTH, e.g. Hartree/Bohr; got {text!r}")
        energy = unit_name(energy, ENERGY_UNITS)
        return sign * ENERGY_UNITS[energy] / LENGTH_UNITS[unit_name(length, LENGTH_UNITS)]

    @property
    def stress_eV_A3(self) -> float:
        """One unit of stress in eV/A^3; negative where compression is positive in the file."""
        sign, text = _signed(self.stress)
        if not text:
            return sign * self.energy_eV / self.length_A**3
        return sign * STRESS_UNITS[unit_name(text, STRESS_UNITS)]


def _signed(text: str) -> tuple[float, str]:
    """-1 and the rest, where a unit has a minus in front."""
    text = text.strip()
    return (-1.0, text[1:].strip()) if text.startswith("-") else (1.0, text)
