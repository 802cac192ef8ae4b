"""Stress of crystals, slabs, wires and molecules as ASE counts it, by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_stress
from ase.calculators.lj import LennardJones
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import BFGS
from potential_models import crystal, lively

from dcase import DCCalculator
from dcase.errors import OptionError
from dcase.md_runs.relax import relax
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.networks.registry import ARCHITECTURES

_PBC = {
    "crystal": (True, True, True),
    "slab": (True, True, False),
    "wire": (False, True, False),
    "molecule in a box": (False, False, False),
}


def _atoms(kind, *, left_handed=False):
    atoms = crystal()
    atoms.pbc = _PBC[kind]
    atoms.positions += [0.0, 0.0, 40.0]  # nobody says that a slab is inside its cell
    if left_handed:
        atoms.cell = atoms.cell.array[[1, 0, 2]]
        atoms.pbc = atoms.pbc[[1, 0, 2]]
    return atoms


@pytest.fixture(scope="module")
def potentials():
    return {
        name: lively(name, **({"filter_knots": 48} if name == "schnet" else {})).with_dtype(
            torch.float64
        )
        for name in ARCHITECTURES
    }


@pytest.mark.physics
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("schnet", kind) for kind in _PBC] + [(name, "slab") for name in list(ARCHITECTURES)[1:]],
)
def test_stress_is_the_finite_difference(potentials, architecture, kind, optimize):
    atoms = _atoms(kind)
    atoms.calc = DCCalculator(potentials[architecture], dtype="float64", optimize=optimize)
    stress = atoms.get_stress()
    size = np.abs(stress).max()
    assert size > 1e-4
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(stress, numerical, rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("kind", ["slab", "molecule in a box"])
def test_stress_of_an_ensemble_and_of_left_handed_cells(potentials, kind):
    members = [lively(seed=s, dtype=torch.float64, filter_knots=48) for s in (3, 4)]
    for optimize in (None, False):
        separate = []
        for potential in (*members, Ensemble(members)):
            found = []
            for left_handed in (False, True):
                atoms = _atoms(kind, left_handed=left_handed)
                atoms.calc = DCCalculator(potential, dtype="float64", optimize=optimize)
                found.append((atoms.get_stress(), atoms.get_forces()))
            for one, other in zip(*found, strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)
            separate.append(found[0][0])
        np.testing.assert_allclose(separate[2], (separate[0] + separate[1]) / 2, atol=1e-12)


def test_volume_is_ases_convention(potentials):
    """As ASE's own calculators have it: the whole cell's volume, and dE/d strain of a molecule."""
    slab = _atoms("slab")
    slab.calc = DCCalculator(potentials["schnet"], dtype="float64")
    thin = slab.get_stress()
    slab.cell[2] *= 2.0  # twice the vacuum
    np.testing.assert_allclose(slab.get_stress(), thin / 2, rtol=1e-9, atol=1e-12)
    for kind, pbc in _PBC.items():  # and ASE tells the stress of each kind, as we do
        atoms = _atoms(kind)
        atoms.calc = LennardJones(sigma=0.8, rc=3.0)
        expected = calculate_numerical_stress(atoms, eps=1e-6)
        np.testing.assert_allclose(atoms.get_stress(), expected, atol=1e-5 * np.abs(expected).max())
        assert tuple(atoms.pbc) == pbc


def _copper():
    potential = lively("schnet", elements=["Cu"], filter_knots=48, dtype=torch.float64)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms, potential


@pytest.mark.physics
@pytest.mark.parametrize("cell_filter", [FrechetCellFilter, UnitCellFilter])
def test_cell_filters_with_masks(cell_filter):
    atoms, potential = _copper()
    atoms.pbc = (True, True, False)
    atoms.calc = DCCalculator(potential, dtype="float64")
    start = atoms.get_potential_energy()
    third = atoms.cell.array[2].copy()
    target = cell_filter(atoms, mask=[1, 1, 0, 0, 0, 1])
    before = np.abs(target.get_forces()).max()
    BFGS(target, logfile=None).run(fmax=0.05 * before, steps=40)
    assert atoms.get_potential_energy() < start
    np.testing.assert_allclose(atoms.cell.array[2], third, atol=1e-9)
    assert np.abs(target.get_forces()).max() < before


@pytest.mark.physics
def test_relax_changes_the_cell_in_periodic_directions_only():
    atoms, potential = _copper()
    atoms.pbc = (True, True, False)
    atoms.calc = DCCalculator(potential, dtype="float64")
    result = relax(atoms, fmax=1e-3, steps=15, cell=True)
    change = result.atoms.cell.array - atoms.cell.array
    assert np.abs(change[:2, :2]).max() > 1e-4
    assert np.abs(change[2]).max() < 1e-9
    assert np.abs(change[:, 2]).max() < 1e-9
    assert result.energy_after_eV < result.energy_before_eV


@pytest.mark.parametrize(
    ("pbc", "turned", "vectors", "words"),
    [
        (False, 0, 3, "periodic boundaries in some direction"),
        ((1, 1, 0), 0, 2, "needs three lattice vectors"),
        ((1, 1, 0), 20, 3, "turn the structure"),
    ],
)
def test_relax_refuses_cells_that_it_cannot_change(pbc, turned, vectors, words):
    atoms, potential = _copper()
    atoms.cell.array[vectors:] = 0.0
    atoms.pbc = pbc
    atoms.rotate(turned, "x", rotate_cell=True)
    atoms.calc = DCCalculator(potential)
    with pytest.raises(OptionError, match=words):
        relax(atoms, cell=True)
