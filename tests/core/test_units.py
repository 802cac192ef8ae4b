"""Units against the numbers that define them (CODATA 2014), not against where they come from."""

import pytest

from dcase.units import ENERGY_UNITS, FS, KB, KCAL_PER_MOL

ELEMENTARY_CHARGE, AVOGADRO = 1.6021766208e-19, 6.022140857e23
AMU, BOLTZMANN = 1.660539040e-27, 1.38064852e-23


@pytest.mark.parametrize(
    ("unit", "joule"),
    [
        ("eV", ELEMENTARY_CHARGE),
        ("meV", ELEMENTARY_CHARGE / 1e3),
        ("kJ/mol", 1e3 / AVOGADRO),
        ("kcal/mol", 4184.0 / AVOGADRO),
        ("Hartree", 4.359744650e-18),
        ("Ry", 2.179872325e-18),
    ],
)
def test_energy_units(unit, joule):
    assert ENERGY_UNITS[unit] == pytest.approx(joule / ELEMENTARY_CHARGE, rel=1e-7)


def test_there_is_no_further_energy_unit():
    assert set(ENERGY_UNITS) == {"eV", "meV", "kJ/mol", "kcal/mol", "Hartree", "Ry"}


def test_other_units():
    assert pytest.approx(0.0433641, rel=1e-6) == KCAL_PER_MOL
    assert pytest.approx(BOLTZMANN / ELEMENTARY_CHARGE, rel=1e-6) == KB
    # A * sqrt(amu / eV) in fs.
    assert pytest.approx(1e-5 * (ELEMENTARY_CHARGE / AMU) ** 0.5, rel=1e-6) == FS
