"""Atoms held in place and tags: in datasets, label scales, losses and errors of forces."""

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms, FixBondLength
from oc22_files import slab

from dcase.data.atoms_files import read_atoms
from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.data.md17 import embedded_file
from dcase.data.molecules import get_molecule
from dcase.data.npz import read_npz
from dcase.data.splits import Splits
from dcase.errors import DataError
from dcase.potentials import create_potential
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.fit_potential import fit_potential
from dcase.potentials.fitting.recipe import load_recipe
from dcase.rescaling import LabelScale, fit_label_scale, fit_offsets


@pytest.fixture
def data(tmp_path):
    """Frames with three fixed atoms, none, and all of them."""
    frames = [slab(0, fixed=3), slab(1, "TiO2H", fixed=0), slab(2, fixed=3)]
    frames[1].set_constraint()
    frames[2].set_constraint(FixAtoms(range(7)))
    ase.io.write(tmp_path / "a.traj", frames)
    return read_atoms(tmp_path / "a.traj")


FIXED = [True] * 3 + [False] * 4 + [False] * 4 + [True] * 7


def test_reading_subsets_and_frames_keep_them(data):
    assert data.fixed.tolist() == FIXED
    assert data.tags.tolist() == [0, 0, 0, 1, 1, 1, 2, *[1] * 3, 2, 0, 0, 0, 1, 1, 1, 2]
    other = data.subset([2, 0])
    assert other.fixed.tolist() == FIXED[11:] + FIXED[:7]
    assert other.tags.tolist() == [*data.tags[11:], *data.tags[:7]]
    assert data.frame(0).constraints[0].get_indices().tolist() == [0, 1, 2]
    assert data.frame(1).constraints == []
    assert data.frame(0).get_tags().tolist() == [0, 0, 0, 1, 1, 1, 2]
    again = AtomicDataset.from_frames(list(data))
    np.testing.assert_array_equal(again.fixed, data.fixed)
    np.testing.assert_array_equal(again.tags, data.tags)
    np.testing.assert_array_equal(data.free_forces(), data.forces[~np.array(FIXED)])


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_files_keep_them(tmp_path, data, name):
    ase.io.write(tmp_path / name, list(data))
    again = read_atoms(tmp_path / name)
    np.testing.assert_array_equal(again.fixed, data.fixed)
    np.testing.assert_array_equal(again.tags, data.tags)
    np.testing.assert_allclose(again.forces, data.forces, atol=1e-7)


def test_data_without_them_are_as_they_were():
    md17 = read_npz(embedded_file(get_molecule("ethanol"))).subset(range(3))
    assert md17.fixed is None
    assert md17.tags is None
    assert md17.without_fixed().fingerprint() == md17.fingerprint()
    assert md17.free_forces() is md17.forces
    molecule = AtomicDataset.from_frames([ase.Atoms("H2", constraint=FixBondLength(0, 1))])
    assert molecule.fixed is None
    # From before these arrays existed.
    tiny = AtomicDataset(
        np.array([1, 8]), np.arange(6.0).reshape(2, 3), np.array([0, 2]), np.array([-1.0])
    )
    assert tiny.fingerprint().startswith("9e26d5129f7ddce3")


def test_fingerprints_tell_them_apart(data):
    free = data.without_fixed()
    moved = AtomicDataset.concatenate([free, data], data.info)
    prints = {d.fingerprint() for d in (data, free, moved, moved.without_fixed())}
    assert len(prints) == 4


@pytest.mark.parametrize("name", ["fixed", "tags"])
def test_wrong_shapes_are_refused(name):
    with pytest.raises(DataError, match=name):
        AtomicDataset(
            np.array([1, 8]), np.zeros((2, 3)), np.array([0, 2]), **{name: np.zeros(3, dtype=bool)}
        )


def test_concatenate(data):
    water = AtomicDataset.from_arrays([8, 1, 1], np.eye(3)[None], [-5.0])
    both = AtomicDataset.concatenate([water, data, water], DatasetInfo("both"))
    assert both.n_atoms.tolist() == [3, *data.n_atoms, 3]
    np.testing.assert_array_equal(both.energies, [-5.0, *data.energies, -5.0])
    assert both.forces is None  # water has none
    assert both.pbc.tolist() == [[False] * 3, *[[True] * 3] * 3, [False] * 3]
    np.testing.assert_array_equal(both.cells[1:4], data.cells)
    assert both.fixed.tolist() == [False] * 3 + FIXED + [False] * 3
    assert both.tags.tolist() == [0] * 3 + data.tags.tolist() + [0] * 3
    np.testing.assert_array_equal(both.subset([1, 2, 3]).positions, data.positions)
    assert AtomicDataset.concatenate([data], data.info).fingerprint() == data.fingerprint()
    with pytest.raises(DataError, match="no frames"):
        AtomicDataset.concatenate([], DatasetInfo("none"))


# ---------------------------------------------------------------------- scale, loss and errors


def test_the_label_scale_leaves_their_forces_out(data):
    forces = data.forces[~np.array(FIXED)]
    assert fit_label_scale(data).constant == pytest.approx(np.sqrt((forces**2).mean()))
    spoiled = data.forces.copy()
    spoiled[np.array(FIXED)] = 1e5
    loud = AtomicDataset(
        data.numbers, data.positions, data.ptr, data.energies, spoiled, data.cells, data.pbc,
        fixed=data.fixed,
    )  # fmt: skip
    for rule in ("forces", "paper"):
        constants = {fit_label_scale(d, rescale=rule, offset="mean").constant for d in (loud, data)}
        assert len(constants) == 1
    assert fit_label_scale(loud.without_fixed()).constant > 1e4


@pytest.fixture
def potential(data):
    return create_potential("schnet", size="tiny", elements=data.elements, seed=0)


def test_residuals_and_their_count(data, potential):
    problem = EnergyForces(1.0)
    for dataset, atoms in ((data, ~np.array(FIXED)), (data.without_fixed(), np.full(18, True))):
        frames = FrameBatches(dataset, potential.cutoff, LabelScale())
        batch = next(iter(frames.in_order(3)))
        found = problem.terms(potential, batch, training=True)["forces"].detach()
        _, forces = potential.energies_and_forces(batch.graph)
        expected = (forces.detach().numpy() - data.forces)[atoms]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_errors_are_over_free_atoms(data, potential):
    outcome = evaluate_potential(potential, data)
    every = evaluate_potential(potential, data.without_fixed())
    free = np.repeat(~np.array(FIXED), 3)
    error = np.abs(every.forces[1] - every.forces[0]) * 1e3
    assert outcome.metrics["forces_mae_mev_angstrom"] == pytest.approx(error[free].mean())
    assert every.metrics["forces_mae_mev_angstrom"] == pytest.approx(error.mean())
    assert outcome.metrics["energy_mae_mev"] == every.metrics["energy_mae_mev"]
    assert outcome.metrics["n_fixed_atoms"] == 10
    assert "n_fixed_atoms" not in every.metrics
    np.testing.assert_array_equal(outcome.forces, every.forces[:, free])


def test_within_threshold_looks_at_free_atoms_only(data, potential):
    """Labels that are the prediction, but for what fixed atoms feel."""
    every = evaluate_potential(potential, data.without_fixed())
    forces = every.forces[1].reshape(-1, 3) + 9.0 * np.array(FIXED)[:, None]
    exact = AtomicDataset(
        data.numbers, data.positions, data.ptr, every.energy[1], forces, data.cells, data.pbc,
        fixed=data.fixed,
    )  # fmt: skip
    assert evaluate_potential(potential, exact).metrics["efwt"] == 1.0
    assert evaluate_potential(potential, exact.without_fixed()).metrics["efwt"] == pytest.approx(
        1 / 3
    )


def test_frames_of_fixed_atoms_only_have_energy_errors(data, potential):
    metrics = evaluate_potential(potential, data.subset([2])).metrics
    assert "energy_mae_mev" in metrics
    assert "forces_mae_mev_angstrom" not in metrics


def test_training_heeds_the_recipe(tmp_path, data):
    """What fixed atoms feel changes nothing, unless it is asked to."""
    loud = data.forces.copy()
    loud[np.array(FIXED)] += 3.0
    spoiled = AtomicDataset(
        data.numbers, data.positions, data.ptr, data.energies, loud, data.cells, data.pbc,
        fixed=data.fixed, tags=data.tags,
    )  # fmt: skip
    clean = AtomicDataset(
        data.numbers, data.positions, data.ptr, data.energies, data.forces, data.cells, data.pbc,
        fixed=data.fixed, tags=data.tags,
    )  # fmt: skip
    splits = Splits(np.arange(2), np.array([2]), np.arange(0))

    def trained(frames, free_atoms):
        recipe = load_recipe(
            "default",
            {
                "model.size": "tiny",
                "training.epochs": 2,
                "training.batch_size": 2,
                "loss.free_atoms": free_atoms,
            },
        )
        out = tmp_path / "a.pt"
        fit = fit_potential(frames, splits, recipe, out, overwrite=True)
        return fit.report, [w.clone() for w in fit.potential.network.parameters()]

    report, weights = trained(clean, True)
    _, same = trained(spoiled, True)
    assert all((a == b).all() for a, b in zip(weights, same, strict=True))
    assert report["recipe"]["loss"]["free_atoms"] is True
    _, other = trained(spoiled, False)
    assert any((a != b).any() for a, b in zip(weights, other, strict=True))


# ----------------------------------------------------------------- elements nobody trained on


def test_offset_of_elements_without_training_frames(data):
    train = data.subset([0, 1])
    per_atom = train.energies.sum() / train.n_atoms.sum()
    for rule in ("atomic", "mean"):
        offsets = fit_offsets(train, rule, [1, 8, 22, 72])
        assert sorted(offsets) == [1, 8, 22, 72]
        assert offsets[72] == pytest.approx(per_atom)
        plain = fit_offsets(train, rule)
        assert {z: offsets[z] for z in plain} == plain
    assert fit_offsets(train, "none", [72]) == {}


def test_a_potential_knows_the_elements_of_all_frames(tmp_path):
    frames = [slab(0), slab(1), slab(2, "Hf2O4H")]
    ase.io.write(tmp_path / "a.traj", frames)
    data = read_atoms(tmp_path / "a.traj")
    splits = Splits(np.array([0]), np.array([1]), np.array([2]))
    recipe = load_recipe("default", {"model.size": "tiny", "training.epochs": 1})
    fit = fit_potential(data, splits, recipe, tmp_path / "a.pt")
    assert fit.potential.elements == [1, 8, 22, 72]
    metrics = evaluate_potential(fit.potential, data.subset([2])).metrics
    # A guess, but not one that is an atomic energy off for each of two atoms.
    assert metrics["energy_mae_mev_per_atom"] < 2000.0


def test_many_elements_in_few_frames_do_not_make_wild_offsets():
    """More elements than frames: the solution nearest to the mean energy per atom."""
    rng = np.random.default_rng(0)
    true = rng.uniform(-12.0, -1.0, 119)
    frames, energies = [], []
    for _ in range(16):
        kinds = rng.choice(np.arange(1, 90), 3, replace=False)
        atoms = ase.Atoms(rng.choice([*kinds, 8, 8], 60))
        frames.append(atoms)
        energies.append(true[atoms.numbers].sum() + rng.normal(0, 3.0))
    data = AtomicDataset.from_frames(frames)
    data = AtomicDataset(data.numbers, data.positions, data.ptr, np.array(energies))
    assert len(data.elements) > len(data)
    offsets = np.array(list(fit_offsets(data, "atomic").values()))
    assert offsets.min() > -16.0
    assert offsets.max() < 3.0


def test_batches_of_periodic_frames_are_the_frames(data, potential):
    """Pairs across the cell's faces, also of atoms that lie cells away."""
    moved = data.positions + np.repeat(
        [[0, 0, 0], [40, 0, -7], [-300, 9, 0]], data.n_atoms, axis=0
    ) @ np.diag([4.5, 4.25, 12.0])
    moved[3] += 1000 * data.cells[0][0]
    shifted = AtomicDataset(data.numbers, moved, data.ptr, cells=data.cells, pbc=data.pbc)
    batch = next(iter(FrameBatches(shifted, 5.0, LabelScale()).in_order(3)))
    lengths = batch.graph.distances().sort().values.numpy()
    for periodic in (data, shifted):
        each = [
            FrameBatches(periodic.subset([f]), 5.0, LabelScale()).batch(torch.tensor([0]))
            for f in range(3)
        ]
        alone = np.sort(np.concatenate([one.graph.distances().numpy() for one in each]))
        assert alone.shape == lengths.shape
        np.testing.assert_allclose(alone, lengths, atol=1e-9)
    assert batch.graph.shifts.dtype == torch.float64
    assert batch.graph.shifts.abs().max() > 900
