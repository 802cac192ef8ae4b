"""The stress as a term of the objective: against strains, autograd and the compiled gradient."""

from __future__ import annotations

from dataclasses import replace

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.stress import full_3x3_to_voigt_6_stress
from potential_models import lively

from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError, OptionError
from dcase.objective import Objective, Term
from dcase.potentials.fitting.batches import FrameBatches, RotatedFrames
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.lone_atoms import LoneAtoms
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.kernels.forms import training_form
from dcase.rescaling import LabelScale

compiled = pytest.mark.skipif(not available(torch.float64), reason="no C compiler works here")


def crystals(molecule=True) -> list[ase.Atoms]:
    """Strained and rattled, one of a single atom (whose pairs are its own images), left-handed."""
    rng = np.random.default_rng(3)
    frames = []
    for number, cell in enumerate((bulk("Cu"), bulk("Cu", cubic=True), bulk("Cu") * (2, 1, 1))):
        strained = cell.cell.array @ (np.eye(3) + 0.05 * rng.normal(size=(3, 3)))
        if number == 1:
            strained = strained[[1, 0, 2]]
        cell.set_cell(strained, scale_atoms=True)
        cell.positions += 0.1 * rng.normal(size=cell.positions.shape)
        frames.append(cell)
    if molecule:
        frames.insert(1, ase.Atoms("Cu3", [[0, 0, 0], [2.3, 0, 0], [1.0, 2.2, 0.3]]))
    return frames


def labelled(frames: list[ase.Atoms]) -> AtomicDataset:
    """EMT's energies, forces and stress."""
    stress = np.full((len(frames), 6), np.nan)
    energies, forces = [], []
    for number, atoms in enumerate(frames):
        atoms = atoms.copy()
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        if atoms.pbc.any():
            stress[number] = atoms.get_stress()
    plain = AtomicDataset.from_frames(frames)
    return replace(plain, energies=np.array(energies), forces=np.concatenate(forces), stress=stress)


def copper(architecture="schnet", **options):
    fixed = {"elements": [29], "dtype": torch.float64, "cutoff": 4.0}
    if architecture in ("schnet", "painn"):
        fixed["filter_knots"] = 32
    return lively(architecture, "silu", **{**fixed, **options})


def whole(data: AtomicDataset, potential, scale=None):
    frames = FrameBatches(data, potential.cutoff, scale or LabelScale())
    return frames.batch(torch.arange(len(data)))


def residuals(potential, batch, *, kernel=None, volume=1.0, constant=1.0, **options):
    problem = EnergyForces(constant, kernel=kernel, volume=volume, **options)
    return problem.terms(potential, batch, training=True)


@pytest.mark.parametrize("architecture", ["schnet", "painn", "dimenet++"])
def test_the_residual_is_the_energys_slope_by_strain_less_the_label(architecture):
    """Each of the nine components by itself: a swap of yz and xy, or a sign, would show."""
    potential, data = copper(architecture), labelled(crystals())
    constant, volume, h = 0.7, 11.0, 1e-4
    potential.set_scale(LabelScale(constant))
    batch = whole(data, potential, LabelScale(constant))
    found = residuals(potential, batch, constant=constant, volume=volume)["stress"]
    assert found.shape == (3, 3, 3)  # not of the molecule
    for row, frame in enumerate(np.flatnonzero(data.stressed)):
        atoms, slope = data.frame(int(frame)), np.zeros((3, 3))
        for x in range(3):
            for y in range(3):
                energies = []
                for sign in (h, -h):
                    strain = np.eye(3)
                    strain[x, y] += sign / 2
                    strain[y, x] += sign / 2
                    strained = atoms.copy()
                    strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                    graph = whole(AtomicDataset.from_frames([strained]), potential).graph
                    energies.append(float(potential(graph, forces=False)["energy"][0]))
                slope[x, y] = (energies[0] - energies[1]) / (2 * h)
        voigt = full_3x3_to_voigt_6_stress(slope / atoms.get_volume())
        wanted = (voigt - data.stress[frame]) * volume / constant
        own = full_3x3_to_voigt_6_stress(found[row].detach().numpy())
        np.testing.assert_allclose(own, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())


@compiled
@pytest.mark.parametrize("architecture", ["schnet", "painn"])
@pytest.mark.parametrize("alone", [False, True])
def test_the_compiled_gradient_has_the_stress_in_it(architecture, alone):
    potential, data = copper(architecture), labelled(crystals())
    batch = whole(data, potential)
    lone = LoneAtoms((29,)) if alone else None
    objective = {"energy": Term(0.3), "forces": Term(1.0), "stress": Term(5.0)}
    results = []
    for kernel in (None, training_form(potential)[0]):
        problem = EnergyForces(1.0, kernel=kernel, volume=11.0, alone=lone)
        goal = Objective(problem, objective)
        potential.network.zero_grad()
        found = goal.residuals(potential, batch)
        goal.reduce(found)[0].backward()
        grads = {name: p.grad.clone() for name, p in potential.network.named_parameters()}
        results.append((found, grads))
    (wanted, slow), (found, fast) = results
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10)
    for name, gradient in slow.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            fast[name], gradient, rtol=0, atol=1e-9 * scale + 1e-10, msg=name
        )


@compiled
@pytest.mark.parametrize("architecture", ["schnet", "painn"])
@pytest.mark.parametrize("forces", [False, True])
def test_the_gradient_of_the_stress_by_differences(architecture, forces):
    potential, data = copper(architecture), labelled(crystals())
    if not forces:
        data = replace(data, forces=None)
    batch = whole(data, potential)
    terms = {"energy": Term(0.0), "stress": Term(1.0)} | ({"forces": Term(0.1)} if forces else {})
    kernel = training_form(potential)[0]
    goal = Objective(EnergyForces(1.0, kernel=kernel, volume=11.0, forces=forces), terms)

    def loss():
        return goal.reduce(goal.residuals(potential, batch))[0]

    potential.network.zero_grad()
    loss().backward()
    generator = torch.Generator().manual_seed(1)
    for name, p in potential.network.named_parameters():
        direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        values, h = [], 1e-5
        for step in (h, -2 * h):
            with torch.no_grad():
                p += step * direction
            values.append(float(loss().detach()))
        with torch.no_grad():
            p += h * direction
        slope = (values[0] - values[1]) / (2 * h)
        assert float((p.grad * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def test_a_batch_without_labels_of_stress_has_no_residuals_of_it():
    potential, data = copper(), labelled(crystals())
    frames = FrameBatches(data, potential.cutoff, LabelScale())
    found = residuals(potential, frames.batch(torch.tensor([1])))
    assert found["stress"].shape == (0, 3, 3)
    total, _ = Objective(
        EnergyForces(1.0, volume=1.0), {"energy": Term(1.0), "stress": Term(1.0)}
    ).reduce({k: found[k] for k in ("energy", "stress")})
    total.backward()
    assert all(
        torch.isfinite(p.grad).all() for p in potential.network.parameters() if p.grad is not None
    )


def test_turned_frames_have_turned_stress():
    """Of an invariant network: the residuals' norm is the same however a frame is turned."""
    potential, data = copper(), labelled(crystals())
    plain = whole(data, potential)
    turning = RotatedFrames(FrameBatches(data, potential.cutoff, LabelScale()), 5)
    turned = turning.batch(torch.arange(len(data)))
    assert not torch.allclose(plain.stress[0], turned.stress[0])
    norms = [
        residuals(potential, b)["stress"].detach().square().sum(dim=(1, 2)) for b in (plain, turned)
    ]
    torch.testing.assert_close(*norms)


def test_errors_of_stress_are_those_of_the_calculator():
    from dcase.potentials.calculator import DCCalculator

    potential, data = copper(), labelled(crystals())
    outcome = evaluate_potential(potential, data, batch_size=3)
    errors = []
    for frame in np.flatnonzero(data.stressed):
        atoms = data.frame(int(frame))
        label = atoms.get_stress(voigt=False)
        atoms.calc = DCCalculator(potential)
        errors.append(atoms.get_stress(voigt=False) - label)
    error = np.array(errors)
    metrics = outcome.metrics
    assert metrics["n_stress_frames"] == 3
    assert metrics["stress_mae_mev_angstrom3"] == pytest.approx(1e3 * np.abs(error).mean())
    rmse = np.sqrt((error**2).mean())
    assert metrics["stress_rmse_mev_angstrom3"] == pytest.approx(1e3 * rmse)
    assert metrics["stress_rmse_gpa"] == pytest.approx(160.21766 * rmse)
    assert outcome.stress.shape == (2, 27)
    error = np.abs(outcome.stress[1] - outcome.stress[0]).mean()  # the picture's, and the table's
    assert error * 1e3 == pytest.approx(outcome.metrics["stress_mae_mev_angstrom3"])
    # As training shows it.
    potential.set_scale(LabelScale())
    metrics = evaluate_potential(potential, data).metrics
    found = residuals(potential, whole(data, potential), volume=11.0)["stress"]
    shown = EnergyForces(1.0, volume=11.0).display["stress"]
    assert shown[1] == "meV/A^3"
    assert float(found.detach().abs().mean()) * shown[0] == pytest.approx(
        metrics["stress_mae_mev_angstrom3"], rel=1e-6
    )


def test_what_is_no_energy_has_no_stress():
    from dcase.potentials.quantity import QUANTITIES

    other = next(q for q in QUANTITIES.values() if not q.is_energy)
    with pytest.raises(OptionError, match="no stress"):
        EnergyForces(1.0, forces=False, quantity=other, volume=1.0)


def test_frames_say_what_has_no_stress():
    data = labelled(crystals())
    assert data.stressed.tolist() == [True, False, True, True]
    assert "stress" not in data.frame(1).calc.results
    with pytest.raises(DataError, match="frame 1 has a stress, but is not periodic"):
        replace(data, stress=np.zeros((4, 6)))
    some = data.stress.copy()
    some[2, 3] = np.nan
    with pytest.raises(DataError, match="stress of frame 2 is NaN"):
        replace(data, stress=some)
    other = replace(data, stress=np.where(np.isnan(data.stress), np.nan, -data.stress))
    assert other.fingerprint() != data.fingerprint()
    molecule = replace(data.subset([1]), stress=None, cells=None, pbc=None)
    both = AtomicDataset.concatenate([data.subset([0]), molecule], data.info)
    assert both.stressed.tolist() == [True, False]
    unlabelled = replace(data.subset([2]), stress=None)
    assert AtomicDataset.concatenate([data, unlabelled], data.info).stress is None
