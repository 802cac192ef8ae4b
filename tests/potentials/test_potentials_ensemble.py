"""Ensembles: members exactly themselves, means conservative, spreads by their definition."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from potential_models import crystal, ethanol, graph_of, lively

from dcase import DCCalculator
from dcase.errors import CheckpointError, OptionError
from dcase.potentials.ensemble import Ensemble, load_model
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.networks.stacked_schnet import StackedSchNet


def members(count: int = 3, **options):
    return [lively(dtype=torch.float64, force=1.0 + n, seed=n, **options) for n in range(count)]


@pytest.fixture(scope="module", params=[0, 64], ids=["exact filters", "splines"])
def three(request):
    return members(activation="silu", filter_knots=request.param)


def two_systems(potential) -> AtomicGraph:
    """Ethanol twice, rattled differently, as one batch."""
    one, two = graph_of(potential, ethanol(seed=1)), graph_of(potential, ethanol(seed=2))
    return AtomicGraph(
        numbers=torch.cat([one.numbers, two.numbers]),
        positions=torch.cat([one.positions, two.positions]),
        system=torch.cat([one.system, two.system + 1]),
        n_systems=2,
        pairs=torch.cat([one.pairs, two.pairs + one.n_atoms], dim=1),
    )


def assert_like_members(ensemble, graph, stress=False):
    found = ensemble.members_forward(graph, stress=stress)
    wanted = [member(graph, stress=stress) for member in ensemble.members]
    assert set(found) == set(wanted[0])
    for name, values in found.items():
        expected = torch.stack([w[name] for w in wanted])
        size = expected.abs().max()
        assert size > 0
        torch.testing.assert_close(values, expected, rtol=0, atol=float(size) * 1e-12, msg=name)


def test_ensemble_stacked_members_are_the_members(three):
    ensemble = Ensemble(three)
    assert ensemble._can_stack()
    assert_like_members(ensemble, two_systems(three[0]))
    assert isinstance(ensemble._stack, StackedSchNet)


def test_ensemble_stacked_stress_is_that_of_the_members(three):
    assert_like_members(Ensemble(three), graph_of(three[0], crystal()), stress=True)


def test_ensemble_of_other_shapes_goes_one_by_one():
    mixed = [*members(2), lively("dimenet++", dtype=torch.float64), lively(dtype=torch.float64,
             hidden_channels=8)]  # fmt: skip
    ensemble = Ensemble(mixed)
    assert not ensemble._can_stack()
    graph = graph_of(max(mixed, key=lambda m: m.cutoff), ethanol())
    found = ensemble(graph)
    forces = []
    for member in mixed:
        own = graph_of(member, ethanol())  # pairs up to its own cutoff, which is smaller
        forces.append(member(own)["forces"])
    torch.testing.assert_close(found["forces"], torch.stack(forces).mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found["forces_std"], torch.stack(forces).std(0), rtol=0, atol=1e-12)


def test_ensemble_mean_and_std_by_numpy(three):
    graph = two_systems(three[0])
    result = Ensemble(three)(graph)
    energy = np.stack([m(graph)["energy"].numpy() for m in three])
    forces = np.stack([m(graph)["forces"].numpy() for m in three])
    np.testing.assert_allclose(result["energy"], energy.mean(0), rtol=1e-14)
    np.testing.assert_allclose(result["energy_std"], energy.std(0, ddof=1), rtol=1e-7)
    np.testing.assert_allclose(result["forces_std"], forces.std(0, ddof=1), rtol=1e-7)
    assert result["energy_std"].min() > 1e-3


@pytest.mark.physics
def test_ensemble_forces_and_stress_are_derivatives_of_the_mean(three):
    atoms = crystal()
    atoms.calc = DCCalculator(Ensemble(three), dtype="float64")
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=2e-6)
    np.testing.assert_allclose(
        atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-6
    )


def test_ensemble_float32_energies_keep_their_offset(three):
    """The spread of energies of -4000 eV is not rounded to float32's steps."""
    graph = two_systems(three[0])
    exact = Ensemble(three)(graph)
    single = Ensemble([copy.deepcopy(m) for m in three]).with_dtype(torch.float32)(graph)
    assert single["energy_std"].dtype == torch.float64
    np.testing.assert_allclose(single["energy_std"], exact["energy_std"], rtol=1e-4)
    np.testing.assert_allclose(single["forces_std"], exact["forces_std"], rtol=1e-3, atol=1e-4)


def test_ensemble_dtype_change_reaches_the_stack(three):
    ensemble = Ensemble([copy.deepcopy(m) for m in three])
    graph = two_systems(three[0])
    exact = ensemble(graph)["forces"]
    rounded = ensemble.with_dtype(torch.float32)(graph)["forces"]
    assert 0 < (exact - rounded).abs().max() < 1e-3
    again = ensemble.with_dtype(torch.float64)(graph)["forces"]
    assert (exact - again).abs().max() < 1e-3  # weights were rounded, arithmetic is not
    with torch.no_grad():
        for weight in ensemble.members[0].network.parameters():
            weight.mul_(1.5)
    ensemble.eval()  # says that weights may have changed
    assert (ensemble(graph)["forces"] - again).abs().max() > 1e-2


def test_ensemble_atoms_without_neighbours():
    potentials = members()
    atoms = ethanol()[:1]
    atoms.calc = DCCalculator(Ensemble(potentials), dtype="float64")
    assert np.abs(atoms.get_forces()).max() == 0
    assert atoms.calc.results["energy_std"] > 0


def test_calculator_reports_the_spread(tmp_path, three):
    atoms = ethanol()
    atoms.calc = DCCalculator(Ensemble(three), dtype="float64")
    atoms.get_potential_energy()
    results = atoms.calc.results
    assert isinstance(results["energy_std"], float)
    assert results["forces_std"].shape == (9, 3)
    assert atoms.calc.get_property("forces_std", atoms) is not None
    single = DCCalculator(three[0], dtype="float64")
    with pytest.raises(PropertyNotImplementedError):
        single.get_property("forces_std", atoms)
    for other in (atoms.calc.copy(), pickle.loads(pickle.dumps(atoms.calc))):
        np.testing.assert_array_equal(
            other.get_property("forces_std", atoms), results["forces_std"]
        )


def test_checkpoint_of_an_ensemble(tmp_path, three):
    ensemble = Ensemble(three, {"note": "three"})
    ensemble.save(tmp_path / "three.pt")
    again = load_model(tmp_path / "three.pt")
    assert isinstance(again, Ensemble)
    assert again.metadata == {"note": "three"}
    graph = two_systems(three[0])
    for name, value in ensemble(graph).items():
        torch.testing.assert_close(again(graph)[name], value, rtol=0, atol=0)
    atoms = ethanol()
    atoms.calc = DCCalculator(tmp_path / "three.pt", dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(
        float(ensemble(graph_of(three[0], atoms))["energy"][0]), abs=1e-9
    )


def test_several_files_are_an_ensemble(tmp_path, three):
    paths = [tmp_path / f"{n}.pt" for n in range(3)]
    for path, member in zip(paths, three, strict=True):
        member.save(path)
    Ensemble(three[:2]).save(tmp_path / "two.pt")
    assert len(load_model(paths)) == 3
    assert len(load_model([tmp_path / "two.pt", paths[2]])) == 3
    assert not isinstance(load_model(paths[:1]), Ensemble)
    calc = DCCalculator(paths, dtype="float64")
    assert calc.model_path == ", ".join(map(str, paths))
    calc.calculate(ethanol())
    assert "forces_std" in calc.results


def test_a_single_potential_is_asked_for(tmp_path, three):
    from dcase.potentials.potential import load_potential

    Ensemble(three).save(tmp_path / "three.pt")
    with pytest.raises(CheckpointError, match="holds an ensemble, not a potential"):
        load_potential(tmp_path / "three.pt")


def test_ensemble_refuses_what_does_not_go_together(three):
    with pytest.raises(OptionError, match="at least two"):
        Ensemble(three[:1])
    with pytest.raises(OptionError, match="no element in common"):
        Ensemble([three[0], lively(elements=["N"])])
    other = copy.deepcopy(three[1])
    other.metadata = {"dataset": {"level_of_theory": "PBE"}}
    with pytest.raises(OptionError, match="different levels of theory"):
        Ensemble([three[0], other])


def test_ensemble_damaged_member(tmp_path, three):
    from dcase import checkpoint

    document = Ensemble(three).to_document()
    del document["members"][1]["weights"]
    checkpoint.save(tmp_path / "bad.pt", "ensemble", 1, document)
    with pytest.raises(CheckpointError, match="member 2"):
        load_model(tmp_path / "bad.pt")
