"""Error metrics of known errors: labels are a potential's own predictions, off by so much."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from potential_models import ethanol, graph_of, lively

from dcase.data.dataset import AtomicDataset
from dcase.potentials.fitting.batches import FrameBatches, RotatedFrames
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.rescaling import LabelScale
from dcase.units import KCAL_PER_MOL


@pytest.fixture(scope="module")
def potential():
    return lively(dtype=torch.float64)


@pytest.fixture(scope="module")
def exact(potential):
    """Ethanol twice and a smaller fragment of it, labelled by the potential."""
    frames = [ethanol(seed=1), ethanol(seed=2), ethanol(seed=3)[:5]]
    results = [potential(graph_of(potential, atoms)) for atoms in frames]
    return AtomicDataset(
        numbers=np.concatenate([atoms.numbers for atoms in frames]),
        positions=np.concatenate([atoms.positions for atoms in frames]),
        ptr=np.array([0, 9, 18, 23]),
        energies=np.array([float(r["energy"][0]) for r in results]),
        forces=np.concatenate([r["forces"].detach().numpy() for r in results]),
    )


def off(dataset, energies, atom, forces):
    """Labels off by ``energies`` (eV) of the frames and ``forces`` (eV/A) of one atom."""
    changed = dataset.forces.copy()
    changed[atom] += forces
    return replace(dataset, energies=dataset.energies + energies, forces=changed)


@pytest.mark.parametrize(
    ("energy", "force", "within"),
    [
        (0.0, (0.0, 0.0, 0.0), 3),
        (0.019, (0.029, 0.0, 0.0), 3),
        (0.0, (0.025, -0.025, 0.025), 3),  # each component counts, not their norm
        (0.0, (0.0, 0.031, 0.0), 2),  # and not their mean
        (0.0, (0.0, 0.0, -0.031), 2),
        (0.021, (0.0, 0.0, 0.0), 2),
        (-0.021, (0.0, 0.0, 0.0), 2),
    ],
)
def test_efwt_goes_by_the_largest_component_and_the_energy(potential, exact, energy, force, within):
    # Within 0.02 eV and 0.03 eV/A, as the Open Catalyst Project counts.
    data = off(exact, np.array([0.0, energy, 0.0]), 12, force)
    assert evaluate_potential(potential, data).metrics["efwt"] == pytest.approx(within / 3)


def test_held_atoms_count_in_nothing(potential, exact):
    held = np.zeros(23, dtype=bool)
    held[12] = True
    data = replace(off(exact, np.zeros(3), 12, (5.0, 0.0, 0.0)), fixed=held)
    found = evaluate_potential(potential, data).metrics
    assert found["efwt"] == 1.0
    assert found["n_fixed_atoms"] == 1
    assert found["forces_mae_mev_angstrom"] < 1e-6


def test_errors_are_in_the_units_they_are_named_after(potential, exact):
    errors = np.array([0.9, -1.8, 1.0])
    data = off(exact, errors, 3, (0.0, 6.9, 0.0))
    found = evaluate_potential(potential, data).metrics
    per_atom = np.array([0.1, 0.2, 0.2])
    assert found["energy_mae_mev"] == pytest.approx(1e3 * np.abs(errors).mean())
    assert found["energy_mae_mev_per_atom"] == pytest.approx(1e3 * per_atom.mean())
    assert found["energy_rmse_mev_per_atom"] == pytest.approx(1e3 * np.sqrt((per_atom**2).mean()))
    assert found["energy_mae_kcal_mol"] == pytest.approx(np.abs(errors).mean() / KCAL_PER_MOL)
    assert found["forces_mae_mev_angstrom"] == pytest.approx(1e3 * 6.9 / 69)
    assert found["forces_rmse_mev_angstrom"] == pytest.approx(1e3 * 6.9 / np.sqrt(69))


def test_energies_per_atom_are_of_each_systems_own_atoms(potential, exact):
    data = off(exact, np.array([-0.9, 1.8, 1.0]), 0, (0.0, 0.0, 0.0))
    frames = FrameBatches(data, potential.cutoff, potential.scale)
    batch = frames.batch(torch.arange(3))
    constant = potential.scale.constant
    terms = EnergyForces(constant, per_atom=True).terms(potential, batch, training=False)
    wanted = -np.array([-0.1, 0.2, 0.2]) / constant
    np.testing.assert_allclose(terms["energy"].detach().numpy(), wanted, rtol=1e-6)


def test_rotated_frames_are_the_same_physics(potential, exact):
    frames = FrameBatches(exact, potential.cutoff, LabelScale())
    rotated = RotatedFrames(frames, seed=3)
    seen = []
    for epoch in (0, 1, 0):
        rotated.set_epoch(epoch)
        batch = rotated.batch(torch.arange(3))
        seen.append(batch.graph.positions)
        found = potential(batch.graph)
        # Forces turn with the atoms; energies stay.
        np.testing.assert_allclose(found["forces"].detach(), batch.forces, atol=1e-9)
        np.testing.assert_allclose(found["energy"].detach(), batch.energies, atol=1e-9)
    assert torch.equal(seen[0], seen[2])
    assert (seen[0] - seen[1]).abs().max() > 0.1  # each epoch turns anew


def test_cells_turn_with_their_atoms(potential, exact):
    cell = np.array([[5.1, 0.3, 0.0], [0.4, 4.6, -0.2], [0.0, 0.5, 4.3]])
    one = exact.subset([0])
    periodic = replace(one, cells=cell[None], pbc=np.ones((1, 3), dtype=bool))
    frames = FrameBatches(periodic, potential.cutoff, LabelScale())
    plain = frames.batch(torch.arange(1)).graph
    turned = RotatedFrames(frames, seed=3).batch(torch.arange(1)).graph
    assert (turned.positions - plain.positions).abs().max() > 0.1
    torch.testing.assert_close(turned.distances(), plain.distances(), rtol=1e-12, atol=1e-12)
