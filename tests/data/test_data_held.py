"""Atoms held in part: in any direction, by any of ASE's constraints, in data, losses and errors."""

from dataclasses import replace

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import (
    ExternalForce,
    FixAtoms,
    FixBondLength,
    FixCartesian,
    FixedLine,
    FixedPlane,
    FixScaled,
    Hookean,
)

from dcase.data.atoms_files import read_atoms
from dcase.data.dataset import AtomicDataset
from dcase.data.held import (
    Restraint,
    constraints_of,
    free_axes,
    projectors,
    restraint_energy,
    working_constraints,
)
from dcase.data.npz import read_npz
from dcase.data.splits import Splits
from dcase.data.state import for_extxyz
from dcase.errors import DataError
from dcase.potentials import create_potential
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.fitting.baseline import fit_baseline
from dcase.potentials.fitting.batches import FrameBatches, RotatedFrames
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.fitting.ensemble_evaluation import evaluate_ensemble
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.fit_potential import fit_potential
from dcase.potentials.fitting.recipe import load_recipe
from dcase.rescaling import LabelScale, fit_label_scale

HEXAGONAL = [[4.0, 0, 0], [-2.0, 3.5, 0], [0, 0, 9.0]]

KINDS = {
    "FixAtoms": (FixAtoms([0, 2]), 6),
    "FixCartesian": (FixCartesian([1, 3], (True, False, True)), 4),
    "FixScaled": (FixScaled([0, 1], (False, False, True)), 2),
    "FixedPlane": (FixedPlane([0, 3], (1.0, 2.0, -0.5)), 2),
    "FixedLine": (FixedLine(2, (1.0, -1.0, 3.0)), 2),
}


def ammonia(*constraints, seed=0):
    """Four atoms in a hexagonal cell, with labels that mean nothing."""
    rng = np.random.default_rng(seed)
    positions = np.array([[0, 0, 0], [1.0, 0, 0.1], [-0.4, 0.9, 0], [-0.4, -0.8, 0.2]])
    atoms = ase.Atoms("NH3", positions + rng.normal(0, 0.05, (4, 3)), cell=HEXAGONAL, pbc=True)
    atoms.set_constraint(list(constraints))
    atoms.calc = SinglePointCalculator(
        atoms, energy=-20.0 + rng.normal(), forces=rng.normal(0, 2.0, (4, 3))
    )
    return atoms


@pytest.mark.parametrize("kind", KINDS)
def test_the_projector_is_what_ase_does_to_forces_and_steps(kind):
    constraint, held = KINDS[kind]
    atoms = ammonia(constraint)
    axes = free_axes(atoms)
    assert axes.any(axis=2).sum() == 12 - held == atoms.get_number_of_degrees_of_freedom()
    rows = axes[axes.any(axis=2)]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)
    through = projectors(axes)
    forces = atoms.get_forces(apply_constraint=False)
    np.testing.assert_allclose(
        np.einsum("nij,nj->ni", through, forces), atoms.get_forces(), atol=1e-12
    )
    step, start = np.random.default_rng(1).normal(size=(4, 3)), atoms.positions.copy()
    atoms.set_positions(start + step)
    np.testing.assert_allclose(
        np.einsum("nij,nj->ni", through, step), atoms.positions - start, atol=1e-12
    )


def test_what_several_constraints_leave_is_what_all_of_them_leave():
    """Closed form: two planes leave their line, counted once where they overlap."""
    a, b = np.array([0, 0, 1.0]), np.array([0, 1.0, 1.0]) / np.sqrt(2)
    atoms = ammonia(
        FixedPlane(0, a), FixedPlane(0, b), FixAtoms([1]), FixCartesian(1, (1, 0, 0)),
        FixCartesian(2, (1, 0, 0)), FixCartesian(2, (1, 1, 0)),
    )  # fmt: skip
    axes = free_axes(atoms)
    assert axes.any(axis=2).sum(axis=1).tolist() == [1, 0, 1, 3]
    np.testing.assert_allclose(projectors(axes)[0], np.diag([1.0, 0, 0]), atol=1e-12)
    np.testing.assert_allclose(axes[2], np.diag([0, 0, 1.0]))


def test_nothing_held_is_nothing():
    for constraints in ([], [Hookean(0, 1, 5.0, rt=1.0)], [FixBondLength(0, 1)],
                        [FixCartesian([0, 1], (False, False, False))]):  # fmt: skip
        assert free_axes(ammonia(*constraints)) is None


def test_a_skewed_cell_leaves_the_lattice_vectors_that_are_not_held():
    atoms = ammonia(FixScaled(0, (True, False, True)), FixScaled(1, (False, True, False)))
    through = projectors(free_axes(atoms))
    along = np.array([-2.0, 3.5, 0]) / np.linalg.norm([-2.0, 3.5, 0])
    np.testing.assert_allclose(through[0], np.outer(along, along), atol=1e-12)
    np.testing.assert_allclose(through[1], np.diag([1.0, 0, 1.0]), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_constraints_from_directions_leave_the_same(kind):
    atoms = ammonia(KINDS[kind][0])
    again = atoms.copy()
    again.set_constraint(constraints_of(free_axes(atoms)))
    np.testing.assert_allclose(projectors(free_axes(again)), projectors(free_axes(atoms)))


def test_working_constraints_project_where_those_of_ase_do_not():
    """Tilted planes one after the other, and lattice vectors that are not at right angles."""
    for constraints in (
        [FixedPlane(0, (0, 0, 1)), FixedPlane(0, (0, 1, 1))],
        [FixScaled([0, 1], (True, False, False))],
        [FixCartesian(i, (True, False, True)) for i in range(4)] * 3,
    ):
        atoms = ammonia(*constraints)
        through = projectors(free_axes(atoms))
        wanted = np.einsum("nij,nj->ni", through, atoms.get_forces(apply_constraint=False))
        atoms.set_constraint(working_constraints(atoms))
        np.testing.assert_allclose(atoms.get_forces(), wanted, atol=1e-12)
        assert len(atoms.constraints) <= 2
    plain = ammonia(FixAtoms([0]), FixedPlane(1, (1, 1, 0)))
    assert working_constraints(plain) == plain.constraints


def test_restraints_come_first_and_leave_momenta_alone():
    atoms = ammonia(FixAtoms([0]), Hookean(0, 1, 5.0, rt=0.5), ExternalForce(1, 2, 0.3))
    energy = restraint_energy(atoms)
    plain = atoms.get_potential_energy(apply_constraint=False)
    assert energy == pytest.approx(atoms.get_potential_energy() - plain)
    atoms.set_constraint(working_constraints(atoms))
    assert restraint_energy(atoms) == pytest.approx(energy)
    assert (atoms.get_forces()[0] == 0).all()  # however the restraint pulls at it
    momenta = np.ones((4, 3))
    atoms.set_momenta(momenta)
    np.testing.assert_array_equal(atoms.get_momenta()[1:], momenta[1:])
    assert isinstance(atoms.constraints[1], Restraint)
    assert restraint_energy(atoms.copy()) == pytest.approx(energy)


# --------------------------------------------------------------------------- in datasets


@pytest.fixture
def data(tmp_path):
    """Every kind in a frame of its own, and a frame of free atoms."""
    frames = [ammonia(c, seed=k) for k, (c, _) in enumerate(KINDS.values())]
    frames.append(ammonia(seed=9))
    ase.io.write(tmp_path / "a.traj", frames)
    return read_atoms(tmp_path / "a.traj")


N_HELD = sum(held for _, held in KINDS.values())


def test_reading_subsets_frames_and_sums_keep_them(data):
    assert data.fixed.sum() == 2
    assert data.directions.any(axis=2).sum() == 3 * 24 - N_HELD
    assert data.subset([5]).directions.any(axis=2).all()
    again = AtomicDataset.from_frames(list(data))
    np.testing.assert_allclose(
        projectors(again.directions), projectors(data.directions), atol=1e-12
    )
    np.testing.assert_array_equal(again.fixed, data.fixed)
    free = data.without_fixed()
    assert free.directions is None
    both = AtomicDataset.concatenate([free, data], data.info)
    np.testing.assert_array_equal(both.directions[24:], data.directions)
    assert both.directions[:24].any(axis=2).all()
    prints = [d.fingerprint() for d in (data, free, replace(data, free_axes=None), both)]
    assert len(set(prints)) == 4


@pytest.mark.parametrize("name", ["a.extxyz", "a.db", "a.traj"])
def test_files_keep_components(tmp_path, name):
    """An own file's forces are the potential's, whatever holds the atoms."""
    frames = [ammonia(FixAtoms([0]), FixCartesian([1, 2], (False, True, True)))]
    ase.io.write(tmp_path / name, frames)
    found = read_atoms(tmp_path / name)
    assert found.fixed.tolist() == [True, False, False, False]
    assert found.directions.any(axis=2)[1].tolist() == [True, False, False]
    wanted = frames[0].calc.results["forces"]
    np.testing.assert_allclose(found.forces, wanted, atol=1e-7)
    np.testing.assert_allclose(found.frame(0).get_forces(apply_constraint=False), wanted, atol=1e-7)
    assert np.abs(found.frame(0).get_forces()[0]).max() == 0.0


def spoiled(data, size=50.0):
    """The same with other forces along held directions, and there alone."""
    held = np.eye(3) - projectors(data.directions)
    extra = np.random.default_rng(3).normal(0, size, data.forces.shape)
    return replace(data, forces=data.forces + np.einsum("nij,nj->ni", held, extra))


def free_components(data, vectors):
    """By the definition: what the directions see, one atom after the other."""
    return np.array(
        [row @ v for axes, v in zip(data.directions, vectors, strict=True) for row in axes
         if row.any()]
    )  # fmt: skip


def test_scale_and_largest_forces_are_those_along_free_directions(data):
    loud = spoiled(data)
    wanted = free_components(data, data.forces)
    assert len(wanted) == 3 * 24 - N_HELD
    np.testing.assert_allclose(loud.free_forces(), wanted, atol=1e-10)
    constant = np.sqrt(np.mean(wanted**2))
    for frames in (data, loud):
        assert fit_label_scale(frames).constant == pytest.approx(constant)
        pulled = np.einsum("nij,nj->ni", projectors(data.directions), data.forces)
        np.testing.assert_allclose(
            frames.largest_free_force(), np.abs(pulled).max(axis=1), atol=1e-10
        )
    assert fit_label_scale(loud.without_fixed()).constant > 4.0 * constant


@pytest.fixture
def potential(data):
    return create_potential("schnet", size="tiny", elements=data.elements, seed=0)


def test_residuals_are_components_along_free_directions(data, potential):
    batches = FrameBatches(spoiled(data), potential.cutoff, LabelScale())
    batch = next(iter(batches.in_order(6)))
    found = EnergyForces(1.0).terms(potential, batch, training=True)["forces"].detach().numpy()
    _, forces = potential.energies_and_forces(batch.graph)
    wanted = free_components(data, forces.detach().numpy() - data.forces)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_turned_frames_turn_their_directions(data):
    """Components along free directions are what they were, in whatever frame."""
    plain = FrameBatches(data, 4.0, LabelScale())
    every = torch.arange(6)
    turned = RotatedFrames(plain, seed=1).batch(every)
    batch = plain.batch(every)
    assert (turned.forces - batch.forces).abs().max() > 0.1
    torch.testing.assert_close(
        turned.free_components(turned.forces), batch.free_components(batch.forces)
    )


def test_errors_are_those_along_free_directions(data, potential):
    loud = evaluate_potential(potential, spoiled(data))
    every = evaluate_potential(potential, data.without_fixed())
    error = every.forces.reshape(2, -1, 3)
    error = free_components(data, error[1] - error[0])
    assert loud.metrics["forces_mae_mev_angstrom"] == pytest.approx(1e3 * np.abs(error).mean())
    assert loud.metrics["forces_rmse_mev_angstrom"] == pytest.approx(
        1e3 * np.sqrt((error**2).mean())
    )
    assert loud.metrics["n_fixed_atoms"] == 2
    assert loud.metrics["n_partly_fixed_atoms"] == 7
    assert "n_partly_fixed_atoms" not in every.metrics
    exact = replace(data, energies=every.energy[1], forces=every.forces[1].reshape(-1, 3))
    assert evaluate_potential(potential, spoiled(exact)).metrics["efwt"] == 1.0
    assert evaluate_potential(potential, spoiled(exact).without_fixed()).metrics["efwt"] < 0.5


def test_uncertainties_are_those_along_free_directions(data):
    members = [create_potential("schnet", size="tiny", elements=[1, 7], seed=s) for s in (0, 1)]
    ensemble = Ensemble(members)
    loud = evaluate_ensemble(ensemble, spoiled(data))
    clean = evaluate_ensemble(ensemble, data)
    every = evaluate_ensemble(ensemble, data.without_fixed())
    np.testing.assert_allclose(loud.forces.error, clean.forces.error, atol=1e-4)
    np.testing.assert_allclose(loud.forces.std, clean.forces.std)
    wanted = free_components(data, every.forces.error)
    np.testing.assert_allclose(clean.forces.error, wanted, atol=1e-5)
    aligned = data.subset([0, 1, 2, 5])  # there the standard deviations are those along x, y, z
    kept = evaluate_ensemble(ensemble, aligned)
    free = aligned.directions.any(axis=2)
    plain = evaluate_ensemble(ensemble, aligned.without_fixed())
    np.testing.assert_allclose(kept.forces.std, plain.forces.std[free])


def test_training_and_baseline_do_not_see_held_components(tmp_path, data):
    splits = Splits(np.arange(4), np.array([4, 5]), np.arange(0))

    def trained(frames, free_atoms=True):
        recipe = load_recipe(
            "default",
            # Few steps of SOAP make much of a gradient's rounding.
            {"model.size": "tiny", "training.epochs": 2, "training.batch_size": 2,
             "training.optimizer": "adam", "loss.free_atoms": free_atoms},
        )  # fmt: skip
        fit = fit_potential(frames, splits, recipe, tmp_path / "a.pt", overwrite=True)
        return torch.cat([w.detach().flatten() for w in fit.potential.network.parameters()])

    weights, loud = trained(data), trained(spoiled(data))
    torch.testing.assert_close(loud, weights, rtol=1e-4, atol=1e-5)
    assert (trained(spoiled(data), free_atoms=False) - weights).abs().max() > 1e-3
    energies = [
        fit_baseline(frames, "energy+forces", validation=frames) for frames in (data, spoiled(data))
    ]
    found = [evaluate_potential(p, data).energy[1] for p in energies]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.physics
def test_forces_in_files_are_minus_the_gradient_for_held_atoms_too(tmp_path):
    """EMT copper with a held layer: what is read is what finite differences say."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.05, seed=2)
    atoms.calc = EMT()
    atoms.set_constraint([FixAtoms([0]), FixedPlane([1], (1, 1, 0))])
    atoms.get_forces()
    ase.io.write(tmp_path / "a.extxyz", atoms)
    found = read_atoms(tmp_path / "a.extxyz").forces
    probe = atoms.copy()
    probe.set_constraint()
    probe.calc = EMT()
    wanted = np.array([[numerical_force(probe, a, k) for k in range(3)] for a in range(3)])
    np.testing.assert_allclose(found[:3], wanted, atol=1e-5)


def numerical_force(atoms, a, k, d=1e-4):
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[a, k] += sign * d
        moved.calc = EMT()
        energies.append(moved.get_potential_energy())
    return -(energies[0] - energies[1]) / (2 * d)


def test_extxyz_files_of_our_own_keep_tilted_directions(tmp_path):
    atoms = ammonia(FixAtoms([0]), FixedPlane([1], (1, 2, 0.5)), FixedLine([2], (1, 1, 1)))
    ase.io.write(tmp_path / "a.extxyz", for_extxyz(atoms))
    found = read_atoms(tmp_path / "a.extxyz")
    for axes in (found.directions, free_axes(found.frame(0))):
        np.testing.assert_allclose(projectors(axes), projectors(free_axes(atoms)), atol=1e-12)


# ----------------------------------------------------------------------------------- .npz


def npz(path, **more):
    rng = np.random.default_rng(0)
    np.savez(
        path, z=[7, 1, 1, 1], R=rng.normal(size=(2, 4, 3)) * 3, E=[1.0, 2.0],
        F=rng.normal(size=(2, 4, 3)), **more,
    )  # fmt: skip
    return read_npz(path)


def test_npz_files_say_which_atoms_and_components_are_held(tmp_path):
    path = tmp_path / "a.npz"
    assert npz(path).directions is None
    assert npz(path, fixed=[0, 0, 0, 0]).directions is None
    whole = npz(path, fixed=np.array([True, False, False, True]))
    assert whole.fixed.tolist() == [True, False, False, True] * 2
    assert whole.free_axes is None
    each = npz(path, fixed=[[1, 0, 0, 0], [0, 0, 1, 0]])
    assert each.fixed.tolist() == [True, *[False] * 5, True, False]
    mask = np.zeros((4, 3), bool)
    mask[0], mask[2, 1] = True, True
    parts = npz(path, fixed=mask)
    assert parts.fixed.tolist() == [True, False, False, False] * 2
    np.testing.assert_array_equal(parts.directions.any(axis=2), np.tile(~mask, (2, 1)))
    assert parts.frame(0).get_number_of_degrees_of_freedom() == 8
    tilted = free_axes(ammonia(FixedPlane([1], (1, 1, 0)), FixAtoms([2])))
    again = npz(path, free_axes=tilted)
    np.testing.assert_allclose(again.directions, np.tile(tilted, (2, 1, 1)))
    assert again.fixed.sum() == 2


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"fixed": np.zeros(5)}, "'fixed' does not fit 2 frames of 4 atoms"),
        ({"fixed": np.zeros((4, 2))}, "'fixed' does not fit"),
        ({"free_axes": np.tile(np.eye(3), (3, 1, 1))}, "'free_axes' does not fit"),
        ({"free_axes": 2 * np.tile(np.eye(3), (4, 1, 1))}, "must hold orthonormal rows"),
        ({"free_axes": np.ones((4, 3))}, "'free_axes' does not fit"),
        ({"fixed": np.array(["a"] * 4)}, "'fixed' holds"),
    ],
)
def test_npz_marks_that_fit_nothing_are_one_line(tmp_path, held, words):
    with pytest.raises(DataError, match=words) as error:
        npz(tmp_path / "a.npz", **held)
    assert "\n" not in str(error.value)
