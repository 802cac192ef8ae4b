"""Units: eV, Angstrom, amu and fs everywhere; kcal/mol only where files and papers use it.

The values are ASE's (CODATA 2014), so that dcase and ASE agree to the last bit.
"""

from __future__ import annotations

from ase import units as _ase

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
}
"""Energy units a file may use, each in eV."""
