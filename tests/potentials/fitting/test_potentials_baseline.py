"""Linear baselines: closed forms, independent least squares, and the laws every potential obeys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule

from dcase.data.dataset import AtomicDataset
from dcase.data.md17 import load_md17
from dcase.errors import DataError, OptionError
from dcase.potentials.fitting.baseline import PARAMETERS, fit_baseline, pair_basis
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.linear_potential import LinearPotential
from dcase.potentials.graphs.graph import build_graph
from dcase.units import KCAL_PER_MOL

SMALL = {"num_parameters": 40, "cutoff": 4.0}
OFFSETS = {1: -13.6, 6: -1029.5, 7: -1485.3, 8: -2041.8}


@pytest.fixture(scope="module")
def ethanol():
    return load_md17("ethanol", "xtb").subset(np.arange(60))


def mixture(count=40, seed=0):
    """Rattled molecules of different composition, without labels, as of QM9."""
    generator = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        name = ("CH4", "H2O", "NH3", "CH3OH", "H2CO", "HCN", "CO2", "N2H4")[number % 8]
        atoms = molecule(name)
        atoms.positions += generator.normal(0.0, 0.05, atoms.positions.shape)
        frames.append(atoms)
    return AtomicDataset.from_frames(frames)


def labelled_by(potential, dataset):
    """The same frames with a potential's own energies and forces."""
    energies, forces = [], []
    for atoms in dataset:
        result = potential(build_graph(atoms.numbers, atoms.positions, potential.cutoff))
        energies.append(float(result["energy"]))
        forces.append(result["forces"].numpy())
    return replace(dataset, energies=np.array(energies), forces=np.concatenate(forces))


def some_pair_potential(elements, seed=1):
    """Random weights on a basis of its own, as a law to be found."""
    basis = pair_basis(list(elements), SMALL["cutoff"], SMALL["num_parameters"])
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(basis.channels, basis.size, generator=generator, dtype=torch.float64)
    return LinearPotential(
        "pairs",
        list(elements),
        offsets={z: OFFSETS[z] for z in elements},
        basis=basis,
        weights=weights,
    )


def mae(potential, dataset):
    metrics = evaluate_potential(potential, dataset).metrics
    return metrics["energy_mae_mev"], metrics["forces_mae_mev_angstrom"]


# ------------------------------------------------------------------------------------------------
# The model


@pytest.mark.physics
@pytest.mark.parametrize("periodic", [False, True])
def test_forces_are_the_slopes_of_the_energy(periodic):
    potential = some_pair_potential((1, 6, 8))
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    if periodic:  # shorter than twice the cutoff: images count too
        atoms.set_cell([[5.1, 0.3, 0.0], [0.4, 4.6, -0.2], [0.0, 0.5, 4.3]])
        atoms.pbc = True

    def energy(positions):
        graph = build_graph(atoms.numbers, positions, 4.0, atoms.cell.array, atoms.pbc)
        return float(potential(graph)["energy"])

    graph = build_graph(atoms.numbers, atoms.positions, 4.0, atoms.cell.array, atoms.pbc)
    result = potential(graph)
    assert float(result["energies"].sum()) == pytest.approx(float(result["energy"]), rel=1e-14)
    numeric, h = np.zeros((len(atoms), 3)), 1e-4
    for atom in range(len(atoms)):
        for axis in range(3):
            step = np.zeros((len(atoms), 3))
            step[atom, axis] = h
            numeric[atom, axis] = (
                energy(atoms.positions - step) - energy(atoms.positions + step)
            ) / (2 * h)
    assert np.abs(numeric).max() > 1.0
    # 1e-12 of 5000 eV over 2e-4 A is the rounding of the difference.
    assert result["forces"].numpy() == pytest.approx(numeric, abs=2e-5)
    assert result["forces"].sum(0).numpy() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.physics
def test_it_ends_smoothly_at_the_cutoff():
    potential = some_pair_potential((1, 8))
    for d, expected in ((3.5, True), (4.0 - 1e-7, False), (4.0, False), (4.5, False)):
        # a graph that reaches further than the cutoff must not matter
        graph = build_graph(np.array([1, 8]), np.array([[0.0, 0, 0], [0, 0, d]]), 5.0)
        result = potential(graph)
        energy = float(result["energy"]) - OFFSETS[1] - OFFSETS[8]
        assert (abs(energy) > 1e-9) == expected
        assert (float(result["forces"].abs().max()) > 1e-5) == expected


def test_the_default_has_the_reports_number_of_parameters():
    # 1160 = 15 pairs of H, C, N, O, F times 77 + 5 atomic energies
    for elements, expected in (([1, 6, 7, 8, 9], 1160), ([1, 6, 8], 1161), ([1, 6], 1160)):
        basis = pair_basis(elements, 6.0, PARAMETERS)
        assert basis.columns + len(elements) == expected


def test_every_pair_of_elements_has_weights_of_its_own():
    basis = pair_basis([1, 6, 7, 8], 4.0, 100)
    species = torch.arange(4)
    channels = basis.channel(species[:, None], species[None, :])
    assert torch.equal(channels, channels.T)
    assert sorted(set(channels.flatten().tolist())) == list(range(basis.channels))


# ------------------------------------------------------------------------------------------------
# The fit


@pytest.mark.parametrize("target", ["energy", "forces", "energy+forces"])
def test_a_law_of_the_models_own_form_is_found(target):
    law = some_pair_potential((1, 6, 7, 8))
    train = labelled_by(law, mixture(160))
    unseen = labelled_by(law, mixture(24, seed=9))
    trivial = mae(fit_baseline(train, kind="composition"), unseen)
    errors = mae(fit_baseline(train, target, **SMALL), unseen)
    assert errors[1] < 1e-3 * trivial[1]
    # Energies alone say nothing of functions that no frame of the training set reaches.
    assert errors[0] < (1e-3 if "energy" in target else 1e-2) * trivial[0]


@pytest.mark.parametrize("target", ["energy", "forces", "energy+forces"])
def test_the_weights_are_those_of_plain_least_squares(ethanol, target):
    """The same ridge regression from a design matrix made column by column, with E0 in it."""
    train, ridge, rho = ethanol.subset(np.arange(12)), 1e-3, 0.3
    fitted = fit_baseline(train, target, ridge=ridge, energy_weight=rho, **SMALL)
    basis = fitted.basis
    graphs = [build_graph(a.numbers, a.positions, basis.cutoff) for a in train]
    columns_e, columns_f = [], []
    for k in range(basis.columns):
        weights = torch.zeros(basis.columns, dtype=torch.float64)
        weights[k] = 1.0
        one = replace(fitted, offsets={}, weights=weights.view(basis.channels, basis.size))
        results = [one(graph) for graph in graphs]
        columns_e.append([float(r["energy"]) for r in results])
        columns_f.append(np.concatenate([r["forces"].numpy().ravel() for r in results]))
    energy_rows, force_rows = np.array(columns_e).T, np.array(columns_f).T
    # One molecule: composition can only shift all energies alike, so centring frees E0.
    energy_rows = energy_rows - energy_rows.mean(0)
    energies = train.energies - train.energies.mean()
    n, n_atoms = len(train), train.n_atoms[0]
    weight_e = {"energy": 1.0, "forces": 0.0, "energy+forces": rho}[target] / n
    weight_f = 0.0 if target == "energy" else 1.0 / (n * n_atoms)
    design = np.concatenate(
        [
            energy_rows * np.sqrt(weight_e),
            force_rows * np.sqrt(weight_f),
            np.eye(basis.columns) * np.sqrt(ridge),
        ]
    )
    labels = np.concatenate(
        [
            energies * np.sqrt(weight_e),
            train.forces.ravel() * np.sqrt(weight_f),
            np.zeros(basis.columns),
        ]
    )
    expected = np.linalg.lstsq(design, labels, rcond=None)[0]
    assert np.abs(expected).max() > 1e-3
    assert fitted.weights.numpy().ravel() == pytest.approx(
        expected, rel=1e-6, abs=1e-8 * np.abs(expected).max()
    )
    # Whatever the target, no shift of the atomic energies would fit the energies better.
    error = [float(fitted(g)["energy"]) - e for g, e in zip(graphs, train.energies, strict=True)]
    assert np.mean(error) == pytest.approx(0.0, abs=1e-8)


def test_the_ridge_is_the_best_on_the_validation_frames(ethanol):
    train, held_out = ethanol.subset(np.arange(40)), ethanol.subset(np.arange(40, 60))

    def loss(potential):
        outcome = evaluate_potential(potential, held_out)
        return np.mean((outcome.energy[1] - outcome.energy[0]) ** 2)

    chosen = fit_baseline(train, validation=held_out, **SMALL)
    losses = [
        loss(fit_baseline(train, ridge=chosen.ridge * factor, **SMALL))
        for factor in (1e-3, 1e-1, 1.0, 10.0, 1e3)
    ]
    assert loss(chosen) == pytest.approx(losses[2], rel=1e-6)
    assert min(losses) >= losses[2] * (1 - 1e-6)
    assert losses[4] > 1.05 * losses[2]  # it matters


def test_baselines_in_order_of_what_they_know(ethanol):
    train, test = ethanol.subset(np.arange(50)), ethanol.subset(np.arange(50, 60))
    zero = float(np.abs(test.forces).mean() / KCAL_PER_MOL)
    mean = evaluate_potential(fit_baseline(train, kind="mean"), test).metrics
    guess = np.abs(test.energies - train.energies.mean()).mean() / KCAL_PER_MOL
    assert mean["energy_mae_kcal_mol"] == pytest.approx(guess, rel=1e-9)
    assert mean["forces_mae_kcal_mol_angstrom"] == pytest.approx(zero)
    # A single molecule has a single composition.
    composition = evaluate_potential(fit_baseline(train, kind="composition"), test).metrics
    assert composition["energy_mae_kcal_mol"] == pytest.approx(guess, rel=1e-6)
    pairs = evaluate_potential(fit_baseline(train, "forces", **SMALL), test).metrics
    assert pairs["forces_mae_kcal_mol_angstrom"] < 0.6 * zero


def test_molecules_of_many_compositions():
    dataset = mixture(80)
    counts = np.stack([np.add.reduceat(dataset.numbers == z, dataset.ptr[:-1]) for z in OFFSETS], 1)
    energies = counts @ np.array(list(OFFSETS.values()))
    train = replace(dataset, energies=energies)
    composition = fit_baseline(train, kind="composition")
    assert composition.offsets == pytest.approx(OFFSETS, rel=1e-9)
    mean = evaluate_potential(fit_baseline(train, kind="mean"), train).metrics
    assert mean["energy_mae_mev"] == pytest.approx(np.abs(energies - energies.mean()).mean() * 1e3)
    # What composition explains is not shrunk, and leaves nothing for the pairs.
    pairs = fit_baseline(train, ridge=1.0, **SMALL)
    assert pairs.offsets == pytest.approx(OFFSETS, rel=1e-9)
    assert evaluate_potential(pairs, train).metrics["energy_mae_mev"] < 1e-6


@pytest.mark.parametrize(("name", "readout"), [("gap", "mean"), ("r2", "extent"), ("alpha", "sum")])
def test_other_quantities_read_out_as_potentials_do(name, readout):
    law = some_pair_potential((1, 6, 7, 8))
    dataset = mixture(160)
    info = replace(dataset.info, quantity=name)
    values = []
    for atoms in dataset:
        v = law(build_graph(atoms.numbers, atoms.positions, 4.0))["energies"].numpy()
        from_centre = atoms.positions - atoms.get_center_of_mass()
        weights = {
            "sum": np.ones(len(atoms)),
            "mean": np.full(len(atoms), 1 / len(atoms)),
            "extent": (from_centre**2).sum(1),
        }[readout]
        values.append(v @ weights)
    train = replace(dataset, energies=np.array(values), info=info)
    fitted = fit_baseline(train, **SMALL)
    outcome = evaluate_potential(fitted, train)
    assert fitted.quantity.readout == readout
    error = outcome.energy[1] - outcome.energy[0]
    known = evaluate_potential(fit_baseline(train, kind="composition"), train).energy
    # A tenth of the frames had no part in the fit.
    assert np.abs(error).mean() < 0.02 * np.abs(known[1] - known[0]).mean()


def test_the_dipole_has_no_baseline_but_the_mean():
    dataset = mixture(16)
    train = replace(dataset, energies=np.arange(16.0), info=replace(dataset.info, quantity="mu"))
    mean = evaluate_potential(fit_baseline(train, kind="mean"), train).metrics
    assert mean["mu_mae_debye"] == pytest.approx(4.0)
    with pytest.raises(OptionError, match="its only baseline is the mean"):
        fit_baseline(train, kind="composition")


def test_fixed_atoms_have_no_part_in_the_fit(ethanol):
    train = ethanol.subset(np.arange(20))
    fixed = np.tile(np.arange(9) < 3, 20)
    spoilt = np.where(fixed[:, None], 1e3, train.forces)
    one = fit_baseline(replace(train, fixed=fixed), "forces", ridge=1e-3, **SMALL)
    two = fit_baseline(replace(train, forces=spoilt, fixed=fixed), "forces", ridge=1e-3, **SMALL)
    assert torch.equal(one.weights, two.weights)
    free = fit_baseline(replace(train, forces=spoilt), "forces", ridge=1e-3, **SMALL)
    assert not torch.allclose(one.weights, free.weights)


def test_frames_without_energies(ethanol):
    train = replace(ethanol, energies=None)
    fitted = fit_baseline(train, "forces", **SMALL)
    assert set(fitted.offsets.values()) == {0.0}
    assert "energy_mae_mev" not in evaluate_potential(fitted, train).metrics
    for kind in ("mean", "composition"):
        metrics = evaluate_potential(fit_baseline(train, "forces", kind=kind), train).metrics
        assert metrics["forces_mae_mev_angstrom"] == pytest.approx(
            np.abs(train.forces).mean() * 1e3
        )


def test_an_element_that_only_validation_frames_hold():
    law = some_pair_potential((1, 6, 7, 8))
    dataset = labelled_by(law, mixture(40))
    nitrogen = np.array([(a.numbers == 7).any() for a in dataset])
    train = dataset.subset(np.flatnonzero(~nitrogen))
    rest = dataset.subset(np.flatnonzero(nitrogen))
    alone = fit_baseline(train, ridge=1e-6, **SMALL)
    both = fit_baseline(train, validation=rest, ridge=1e-6, num_parameters=64, cutoff=4.0)
    assert alone.elements == [1, 6, 8]
    assert both.elements == [1, 6, 7, 8]
    assert both.basis.size == alone.basis.size == 6
    # What is fitted is the same, and pairs with nitrogen have no weight.
    assert mae(both, train) == pytest.approx(mae(alone, train), rel=1e-6)
    of_nitrogen = both.basis.channel(torch.tensor(2), torch.arange(4))
    assert float(both.weights[of_nitrogen].abs().max()) < 1e-9 * float(both.weights.abs().max())


@pytest.mark.parametrize(
    ("change", "options", "error", "reason"),
    [
        ({}, {"kind": "median"}, OptionError, "kind must be one of mean, composition, pairs"),
        ({}, {"target": "force"}, OptionError, "target must be one of"),
        ({}, {"cutoff": 0.0}, OptionError, "the cutoff must be at least 1 A"),
        ({}, {"ridge": 0.0}, OptionError, "the ridge must be positive, got 0.0"),
        ({}, {"energy_weight": -1.0}, OptionError, "the energy weight must be positive"),
        ({}, {"num_parameters": 0}, OptionError, "at least one parameter"),
        ({"energies": None}, {}, DataError, "has no energies"),
        ({"energies": None, "forces": None}, {"kind": "mean"}, DataError, "has no energies"),
        ({"forces": None}, {"target": "energy+forces"}, DataError, "has no forces"),
    ],
)
def test_refused(ethanol, change, options, error, reason):
    with pytest.raises(error, match=reason):
        fit_baseline(replace(ethanol, **change), **options)


def test_one_frame_needs_a_ridge(ethanol):
    with pytest.raises(DataError, match="give a ridge"):
        fit_baseline(ethanol.subset([0]))
    fitted = fit_baseline(ethanol.subset([0]), ridge=1.0, **SMALL)
    assert mae(fitted, ethanol.subset([0]))[0] == pytest.approx(0.0, abs=1e-6)
