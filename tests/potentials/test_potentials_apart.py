"""Atoms out of reach of all others: far fragments are the sum of their parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from potential_models import ethanol, lively

from dcase import DCCalculator
from dcase.data.dataset import AtomicDataset
from dcase.potentials.calculator import DCCalculatorError
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.kernels.forms import training_form
from dcase.potentials.networks.registry import ARCHITECTURES

KNOTS = {"schnet": {"filter_knots": 48}}


def _model(architecture, seed=3, dtype=torch.float64):
    return lively(architecture, seed=seed, dtype=dtype, **KNOTS.get(architecture, {}))


def _parts():
    left = ethanol()
    water = Atoms("OH2", [[0.0, 0.0, 0.0], [0.0, 0.8, 0.6], [0.0, -0.8, 0.6]])
    parts = [left, Atoms("H"), water, Atoms("O")]
    for k, part in enumerate(parts):
        part.positions += [0.0, 30.0 * k, -200.0 * k]
    return parts


def _evaluated(atoms, model, **options):
    atoms = atoms.copy()
    atoms.calc = DCCalculator(model, dtype="float64", **options)
    return atoms.get_potential_energy(), atoms.get_forces()


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_far_fragments_are_the_sum_of_their_parts(architecture, optimize, periodic):
    model = _model(architecture)
    parts = _parts()
    together = sum(parts[1:], parts[0].copy())
    if periodic:
        for atoms in (*parts, together):
            atoms.cell, atoms.pbc = [100.0, 150.0, 900.0], True
    energy, forces = _evaluated(together, model, optimize=optimize)
    single = [_evaluated(part, model, optimize=optimize) for part in parts]
    assert energy == pytest.approx(sum(e for e, _ in single), rel=1e-12)
    np.testing.assert_allclose(forces, np.concatenate([f for _, f in single]), atol=1e-9)
    assert not forces[[9, 13]].any()
    assert np.abs(forces).max() > 0.1


def test_far_fragments_of_an_ensemble():
    models = [_model("schnet", seed) for seed in (3, 4)]
    ensemble = Ensemble(models)
    parts = _parts()
    together = sum(parts[1:], parts[0].copy())
    for optimize in (None, False):
        energy, _ = _evaluated(together, ensemble, optimize=optimize)
        members = [_evaluated(together, model, optimize=optimize)[0] for model in models]
        pieces = [_evaluated(part, ensemble, optimize=optimize)[0] for part in parts]
        assert energy == pytest.approx(np.mean(members), rel=1e-13)
        assert energy == pytest.approx(sum(pieces), rel=1e-13)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_sees_far_fragments_as_their_sum(architecture):
    """In batches, also by the compiled gradient where there is one."""
    model = _model(architecture)
    parts = _parts()
    together = sum(parts[1:], parts[0].copy())
    dataset = AtomicDataset.from_frames([*parts, together])
    batch = FrameBatches(dataset, model.cutoff, model.scale).batch(torch.arange(5))
    energies, forces = model.energies_and_forces(batch.graph)
    found = [energies]
    kernel, _ = training_form(model)
    if kernel is not None:
        atoms, own = kernel(model.species(batch.graph.numbers), batch.graph, forces=True)
        found.append(batch.graph.sum_over_atoms(atoms))
        torch.testing.assert_close(own, forces, rtol=0, atol=1e-9)
    for values in found:
        torch.testing.assert_close(values[4], values[:4].sum(), rtol=1e-12, atol=1e-10)
    assert (architecture == "schnet") == (len(found) == 2)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_atoms_in_the_same_place_are_named_in_both_forms(architecture, optimize):
    atoms = ethanol()
    atoms.calc = DCCalculator(_model(architecture), dtype="float64", optimize=optimize)
    for gap in (0.0, 1e-12):
        atoms.positions[5] = atoms.positions[4] + [gap, 0.0, 0.0]
        with pytest.raises(DCCalculatorError, match="atoms 4 and 5 are in the same place"):
            atoms.get_potential_energy()
    atoms.positions[5] += [0.5, 0.0, 0.0]
    assert np.isfinite(atoms.get_forces()).all()
