"""Energies of isolated atoms: given, found in the data, and exact whatever is learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

from dcase import DCCalculator
from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits
from dcase.errors import DataError, OptionError
from dcase.potentials.fitting.fit_potential import fit_potential
from dcase.potentials.fitting.lone_atoms import choose_e0s, e0s_text
from dcase.potentials.fitting.recipe import load_recipe
from dcase.potentials.networks.registry import ARCHITECTURES

E0 = {1: -0.5, 8: -1.5}


def curve(*atoms):
    """A Morse curve of OH that ends beyond every cutoff, and frames of single atoms."""
    frames, energies, forces = [], [], []
    for d in (0.7, 0.9, 1.0, 1.2, 1.6, 2.2, 3.0, 5.5, 9.0):
        x = np.exp(-2.0 * (d - 0.97))
        frames.append(Atoms("OH", [[0, 0, 0], [0, 0, d]]))
        energies.append(4.4 * ((1 - x) ** 2 - 1) - 2.0)
        pull = 17.6 * x * (1 - x)
        forces += [[0, 0, pull], [0, 0, -pull]]
    for z in atoms:
        frames.append(Atoms([z], [[0, 0, 0]]))
        energies.append(E0[z])
        forces.append([0, 0, 0])
    dataset = AtomicDataset.from_frames(frames)
    return replace(dataset, energies=np.array(energies), forces=np.array(forces, dtype=float))


def fitted(tmp_path, dataset, **changes):
    values = {"model.size": "tiny", "training.epochs": 3, "training.batch_size": 4}
    train = np.delete(np.arange(len(dataset)), 2)
    splits = Splits(train, np.array([2]), np.array([], dtype=int))
    recipe = load_recipe("default", {**values, **changes})
    return fit_potential(dataset, splits, recipe, tmp_path / "p.pt", draw=False).potential


def energy(potential, atoms, optimize=None):
    atoms = atoms.copy()
    atoms.calc = DCCalculator(potential, dtype="float64", optimize=optimize)
    return atoms.get_potential_energy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("energy_weight", [0.01])
def test_an_isolated_atom_has_the_energy_given(tmp_path, architecture, energy_weight):
    given = {"labels.offset": "H=-0.5,O=-1.5", "loss.energy_weight": energy_weight}
    potential = fitted(tmp_path, curve(), **given, **{"model.architecture": architecture})
    for optimize in (None, False):
        for z, e in E0.items():
            assert energy(potential, Atoms([z]), optimize) == pytest.approx(e, abs=1e-6)
        far = Atoms("OHH", [[0, 0, 0], [0, 0, 50.0], [80.0, 0, 0]])
        assert energy(potential, far, optimize) == pytest.approx(-2.5, abs=2e-6)
    assert potential.metadata["isolated_atoms_eV"] == {"H": -0.5, "O": -1.5}


def test_isolated_atoms_of_the_data_are_used(tmp_path):
    potential = fitted(tmp_path, curve(1, 8))
    assert potential.scale.offset == "isolated atoms"
    assert energy(potential, Atoms("O")) == pytest.approx(-1.5, abs=1e-6)
    # As if they were given: they are systems of every batch.
    (tmp_path / "given").mkdir()
    same = fitted(tmp_path / "given", curve(1, 8), **{"labels.offset": "H=-0.5,O=-1.5"})
    near = Atoms("OH", [[0, 0, 0], [0, 0, 1.1]])
    assert energy(potential, near) == energy(same, near)
    assert energy(potential, near) != pytest.approx(-2.0, abs=1e-3)


def test_without_isolated_atoms_offsets_are_fitted(tmp_path):
    potential = fitted(tmp_path, curve(1))
    assert potential.scale.offset == "atomic"


@pytest.mark.parametrize("compiled", [True, False])
def test_training_holds_to_the_given_energies(tmp_path, compiled):
    """The curve is learned with its limit; the compiled gradient learns as PyTorch's does."""
    changes = {
        "labels.offset": "H=-0.5,O=-1.5", "training.epochs": 100, "loss.energy_weight": 1.0,
        "acceleration.compiled": compiled,
    }  # fmt: skip
    dataset = curve()
    potential = fitted(tmp_path, dataset, **changes)
    errors = [energy(potential, f) - e for f, e in zip(dataset, dataset.energies, strict=True)]
    assert np.abs(errors[1:]).max() < 0.5  # of a well 4.4 eV deep
    assert np.abs(errors[-2:]).max() < 2e-3  # the curve's own tail at 5.5 A is 1 meV


def test_what_is_an_isolated_atom():
    frames = [Atoms("H", cell=[2.5] * 3, pbc=True), Atoms("H", cell=[12.0] * 3, pbc=True)]
    dataset = replace(AtomicDataset.from_frames(frames), energies=np.array([-3.0, -0.5]))
    assert choose_e0s("atomic", dataset) == {1: -0.5}  # a crystal is none
    assert choose_e0s("mean", dataset) is None


def test_e0s_are_read(tmp_path):
    assert e0s_text("isolated") == "isolated"
    assert e0s_text("O=-2041.8, H=-13.6") == "H=-13.6,O=-2041.8"
    for text in ("H -13.6\nO -2041.8\n", '{"H": -13.6, "O": -2.0418e3}', "O = -2041.8\nH=-13.6"):
        (tmp_path / "e0s.txt").write_text(text)
        assert e0s_text(str(tmp_path / "e0s.txt")) == "H=-13.6,O=-2041.8"
    for bad in ("H=", "Xy=3", "H=-1 and more"):
        with pytest.raises(OptionError, match="--e0s") as caught:
            e0s_text(bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="--e0s gives no energy of O"):
        choose_e0s("H=-13.6", curve())
    with pytest.raises(DataError, match="no labelled frame of an isolated H, O atom"):
        choose_e0s("isolated", curve())
