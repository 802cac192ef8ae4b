"""Quantities other than energies: read-outs, labels, checkpoints, and what they cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.emt import EMT
from potential_models import lively

from dcase import checkpoint
from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.data.qm9 import TARGETS
from dcase.data.splits import Splits
from dcase.errors import CheckpointError, DataError, OptionError
from dcase.md_runs.analysis.frequency import hessian
from dcase.objective import Objective
from dcase.potentials.ensemble import Ensemble, load_model
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.fitting.evaluation import evaluate_potential, value_metrics
from dcase.potentials.fitting.fit_potential import fit_potential
from dcase.potentials.fitting.recipe import load_recipe
from dcase.potentials.potential import FORMAT_VERSION, load_potential
from dcase.potentials.quantity import ENERGY, QUANTITIES, Quantity, quantity_of
from dcase.rescaling import LabelScale, fit_label_scale, fit_offsets, offset_energies
from dcase.units import KCAL_PER_MOL

MU, R2, HOMO = QUANTITIES["mu"], QUANTITIES["r2"], QUANTITIES["homo"]
FRAMES = [molecule(name) for name in ("H2O", "CH3OH", "CO2", "C2H2")]


def dataset(quantity="energy", values=None, frames=FRAMES):
    values = np.arange(float(len(frames))) if values is None else np.asarray(values)
    info = DatasetInfo("test", quantity=quantity)
    return replace(AtomicDataset.from_frames(frames, info), energies=values)


def graph_of(frames):
    data = AtomicDataset.from_frames(frames)
    return FrameBatches(data, 6.0, LabelScale()).batch(torch.arange(len(data))).graph


def moved(frames, seed=0):
    """The frames turned and shifted, each in its own way."""
    rng = np.random.default_rng(seed)
    found = []
    for atoms in frames:
        copy = atoms.copy()
        copy.rotate(rng.uniform(0, 360), rng.normal(size=3))
        copy.translate(rng.normal(size=3) * 20)
        found.append(copy)
    return found


# ---------------------------------------------------------------------------------- read-outs


def by_hand(readout, values, atoms):
    """The definition, atom by atom."""
    if readout == "sum":
        return sum(values)
    if readout == "mean":
        return sum(values) / len(atoms)
    if readout == "extent":
        centre = atoms.get_center_of_mass()
        return sum(v * np.dot(r - centre, r - centre) for v, r in zip(values, atoms.positions))  # noqa: B905
    charges = np.array(values) - np.mean(values)
    return np.linalg.norm(sum(q * r for q, r in zip(charges, atoms.positions)))  # noqa: B905


@pytest.mark.parametrize("readout", ["sum", "mean", "extent", "dipole"])
def test_read_outs_follow_their_definition(readout):
    graph = graph_of(FRAMES)
    values = torch.randn(graph.n_atoms, dtype=torch.float64, generator=torch.manual_seed(0))
    quantity = Quantity("x", "Debye", readout, is_energy=False)
    found = quantity.read_out(values, graph)
    start = 0
    for number, atoms in enumerate(FRAMES):
        own = values[start : start + len(atoms)].tolist()
        assert float(found[number]) == pytest.approx(by_hand(readout, own, atoms), abs=1e-12)
        start += len(atoms)
    turned = quantity.read_out(values, graph_of(moved(FRAMES)))
    assert torch.allclose(turned, found, atol=1e-10)


def test_dipole_of_two_charges():
    # Charges q and 0 are made q/2 and -q/2: q d / 2, at d = 1.5 A.
    graph = graph_of([Atoms("HF", [[0, 0, 0], [0, 0, 1.5]])])
    found = MU.read_out(torch.tensor([0.8, 0.0], dtype=torch.float64), graph)
    assert float(found[0]) == pytest.approx(0.6)


def test_gradient_of_a_vanishing_dipole_is_finite():
    graph = graph_of([molecule("CO2")])
    charges = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    MU.read_out(charges, graph).sum().backward()
    assert torch.isfinite(charges.grad).all()


def test_extensive_and_intensive():
    """Two copies far apart: the sum doubles, the mean stays, neither depends on the distance."""
    one = molecule("CH3OH")
    two = one + Atoms(one.numbers, one.positions + np.array([50.0, 0, 0]))
    potential = lively()
    for readout, factor in (("sum", 2.0), ("mean", 1.0)):
        potential.quantity = Quantity("x", "Debye", readout, is_energy=False)
        single, pair = (float(potential(graph_of([a]))["x"][0]) for a in (one, two))
        assert pair == pytest.approx(factor * single, rel=1e-6)
    assert ENERGY.extensive
    assert not HOMO.extensive


@pytest.mark.physics
def test_vibrations_of_two_systems_far_apart_are_those_of_each():
    """Energies of the zero point add up, and so does the heat that vibrations take; gaps do not."""
    one = Atoms("Cu3", [[0, 0, 0], [2.3, 0, 0], [1.15, 2.0, 0]])
    two = one + Atoms(one.numbers, one.positions + np.array([40.0, 0, 0]))
    found = {"zpve": [], "Cv": []}
    for atoms in (one, two):
        atoms.calc = EMT()
        mass_weighted = hessian(atoms) / np.sqrt(np.outer(*[np.repeat(atoms.get_masses(), 3)] * 2))
        squares = np.linalg.eigvalsh(mass_weighted)
        quanta = np.sqrt(squares[squares > 1e-6]) * units._hbar * units.J * units.s
        found["zpve"].append(0.5 * quanta.sum())
        heat = quanta / (2 * units.kB * 300.0)
        found["Cv"].append(units.kB * ((heat / np.sinh(heat)) ** 2).sum())
    for name, (single, both) in found.items():
        per_atom = torch.full((6,), single / 3, dtype=torch.float64)
        assert both > single > 0
        assert float(QUANTITIES[name].read_out(per_atom, graph_of([two]))) == pytest.approx(both)
    extensive = {name for name, quantity in QUANTITIES.items() if quantity.extensive}
    assert not extensive & {"homo", "lumo", "gap", "mu", "r2"}


def test_every_target_of_qm9_is_a_quantity_in_the_same_unit():
    for name, target in TARGETS.items():
        assert QUANTITIES[name].unit == target.unit
    assert {n for n, q in QUANTITIES.items() if q.is_energy} == {"energy"} | {
        f"{n}{s}" for n in ("U0", "U", "H", "G") for s in ("", "_atom")
    }
    with pytest.raises(DataError, match="does not know"):
        quantity_of(dataset("colour"))
    with pytest.raises(OptionError, match="an energy is a sum"):
        Quantity("x", "Debye")
    with pytest.raises(OptionError, match="readout must be one of"):
        Quantity("x", "Debye", "product", is_energy=False)


# --------------------------------------------------------------------------------- predictions


def test_what_is_no_energy_has_no_forces():
    potential = lively()
    potential.quantity = MU
    graph = graph_of(FRAMES)
    assert set(potential(graph)) == {"mu"}
    for call in (
        lambda: potential.energies_and_forces(graph),
        lambda: potential(graph, stress=True),
        lambda: EnergyForces(1.0, quantity=MU),
    ):
        with pytest.raises(OptionError, match=r"mu \(Debye\) has no"):
            call()


def test_predictions_are_in_the_unit_of_the_quantity():
    potential = lively()
    graph = graph_of(FRAMES)
    atoms = potential.atom_energies(graph).double().detach()
    potential.set_scale(LabelScale(3.0, {1: 0.5, 6: -1.0, 8: 2.0}))
    offsets = torch.tensor([{1: 0.5, 6: -1.0, 8: 2.0}[int(z)] for z in graph.numbers])
    for quantity in (HOMO, R2, MU):
        potential.quantity = quantity
        expected = quantity.read_out(3.0 * atoms + offsets, graph)
        assert torch.allclose(potential(graph)[quantity.name], expected)


def test_energies_without_forces_are_the_same_and_take_no_gradient(monkeypatch):
    potential, graph = lively(), graph_of(FRAMES)
    both = potential(graph)

    def refuse(*args, **options):
        raise AssertionError("a gradient was taken")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    alone = potential(graph, forces=False)
    assert set(alone) == {"energy", "energies"}
    assert torch.equal(alone["energy"], both["energy"])
    assert torch.equal(alone["energies"], both["energies"])
    # The same in an evaluation of frames that have no forces.
    metrics = evaluate_potential(potential, dataset()).metrics
    expected = np.abs(both["energy"].numpy() - np.arange(4)).mean() * 1e3
    assert metrics["energy_mae_mev"] == pytest.approx(expected)


# -------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("quantity", [HOMO, R2, ENERGY])
def test_offsets_fit_what_is_linear_in_the_elements(quantity):
    """Labels made of one number per element are all offset: nothing is left to learn."""
    truth = {1: 0.7, 6: -2.0, 8: 3.0}
    frames = [molecule(n) for n in ("H2O", "CH3OH", "CO2", "C2H2", "CH4", "CH3CH2OH")]
    data = AtomicDataset.from_frames(frames)
    graph = graph_of(frames)
    per_atom = torch.tensor([truth[int(z)] for z in graph.numbers], dtype=torch.float64)
    data = replace(data, energies=quantity.read_out(per_atom, graph).numpy())
    weights = quantity.atom_weights(data)
    found = fit_offsets(data, "atomic", weights=weights)
    assert found == pytest.approx(truth)
    assert offset_energies(data, found, weights) == pytest.approx(data.energies)
    scale = LabelScale(2.0, found)
    left = FrameBatches(data, 6.0, scale, quantity=quantity).energies
    assert torch.allclose(left, torch.zeros(len(frames), dtype=torch.float64), atol=1e-12)
    mean = fit_offsets(data, "mean", weights=weights)
    total = offset_energies(data, mean, weights).sum()
    assert total == pytest.approx(data.energies.sum())
    assert len(set(mean.values())) == 1


def test_published_energies_of_the_atoms_as_offset():
    data = replace(dataset(), atom_references={1: -13.0, 6: -1030.0, 8: -2040.0, 9: -2700.0})
    scale = fit_label_scale(data, offset="atomref", elements=[9])
    assert scale.offsets == data.atom_references
    assert scale.offset == "atomref"
    with pytest.raises(OptionError, match=r"\[7\]"):
        fit_offsets(data, "atomref", [7])
    with pytest.raises(OptionError, match="use --offset atomic"):
        fit_offsets(dataset(), "atomref")
    assert data.subset([1]).atom_references == data.atom_references


def test_labels_of_another_quantity_are_refused():
    potential = lively()
    potential.quantity = MU
    with pytest.raises(DataError, match=r"predicts mu \(Debye\), the frames have labels of energy"):
        evaluate_potential(potential, dataset())


def test_names_and_units_of_metrics():
    error, atoms = np.array([0.5, -1.5]), np.array([2, 3])
    assert value_metrics(error, MU, atoms) == pytest.approx(
        {"mu_mae_debye": 1.0, "mu_rmse_debye": np.sqrt(1.25)}
    )
    assert value_metrics(error, HOMO, atoms)["homo_mae_mev"] == pytest.approx(1000.0)
    energy = value_metrics(error, QUANTITIES["U0"], atoms)
    assert energy["energy_mae_kcal_mol"] == pytest.approx(1 / KCAL_PER_MOL)
    assert energy["energy_mae_mev_per_atom"] == pytest.approx((250 + 500) / 2)


# ---------------------------------------------------------------------------------- checkpoints


def test_checkpoint_keeps_the_quantity(tmp_path):
    potential = lively()
    potential.quantity = R2
    potential.save(tmp_path / "r2.pt")
    assert load_potential(tmp_path / "r2.pt").quantity == R2
    assert "predicts r2 (a0^2)" in load_potential(tmp_path / "r2.pt").describe()


def test_a_checkpoint_of_before_predicts_energies(tmp_path):
    potential = lively()
    document = potential.to_document()
    del document["quantity"]
    checkpoint.save(tmp_path / "old.pt", "potential", 1, document)
    assert load_potential(tmp_path / "old.pt").quantity == ENERGY
    # One that a dcase of before would take for energies must say that it is newer.
    assert FORMAT_VERSION == 2


def test_files_of_before_are_read_the_same_way_alone_and_in_ensembles(tmp_path):
    ensemble = Ensemble([lively(), lively()])
    document = ensemble.to_document()
    for member in document["members"]:
        del member["quantity"]
        member["format_version"] = 1
    checkpoint.save(tmp_path / "both.pt", "ensemble", 1, document)
    checkpoint.save(tmp_path / "one.pt", "potential", 1, document["members"][0])
    for name in ("both.pt", "one.pt"):
        assert load_model(tmp_path / name).quantity == ENERGY
    document["members"][1]["format_version"] = 99
    checkpoint.save(tmp_path / "newer.pt", "ensemble", 1, document)
    with pytest.raises(CheckpointError, match=r"member 2: format version 99 is newer"):
        load_model(tmp_path / "newer.pt")


def test_a_checkpoint_with_an_impossible_quantity_is_refused(tmp_path):
    document = {**lively().to_document(), "quantity": {"name": "x", "readout": "product"}}
    checkpoint.save(tmp_path / "bad.pt", "potential", FORMAT_VERSION, document)
    with pytest.raises(CheckpointError, match="readout must be one of"):
        load_potential(tmp_path / "bad.pt")


# ------------------------------------------------------------------------------------- training

TINY = {
    "model.size": "tiny",
    "model.filter_knots": 0,
    "training.batch_size": 8,
    "training.lr": 1e-2,
    "training.ema": 0.0,
}


def waters(n=48):
    """Water, bent and stretched."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        angle, a, b = rng.uniform(1.4, 2.4), *rng.uniform(0.8, 1.2, 2)
        found.append(
            Atoms("OHH", [[0, 0, 0], [a, 0, 0], [b * np.cos(angle), b * np.sin(angle), 0]])
        )
    return moved(found)


def point_charge_dipole(atoms):
    return np.linalg.norm(np.array([-0.8, 0.4, 0.4]) @ atoms.positions) * 4.8


@pytest.mark.parametrize("name", ["mu", "r2", "homo"])
def test_training_on_what_is_no_energy(tmp_path, name):
    """A dipole of fixed charges, an extent, a mean: all learned to a fraction of their spread."""
    frames = waters()
    graph = graph_of(frames)
    per_atom = torch.tensor([-1.0, 0.6, 0.6], dtype=torch.float64).repeat(len(frames))
    stretch = torch.zeros(graph.n_atoms, dtype=torch.float64)
    stretch.index_add_(0, graph.pairs[0], graph.distances())
    values = {
        "mu": [point_charge_dipole(a) for a in frames],
        "r2": R2.read_out(per_atom * (1 + stretch), graph),
        "homo": HOMO.read_out(per_atom * (1 + stretch), graph),
    }[name]
    data = dataset(name, values, frames)
    splits = Splits(np.arange(40), np.arange(40, 48), [])
    recipe = load_recipe(
        "default",
        {**TINY, "training.epochs": 30, "loss.forces_weight": 0.0, "loss.energy_weight": 1.0},
    )
    fit = fit_potential(data, splits, recipe, tmp_path / "a.pt")
    metrics = fit.report["validation"]
    key = next(k for k in metrics if k.startswith(f"{name}_rmse"))
    factor = 1e3 if name == "homo" else 1.0
    assert metrics[key] < 0.5 * np.std(data.energies[40:]) * factor
    assert fit.report["quantity"]["name"] == name
    assert load_potential(tmp_path / "a.pt").quantity == QUANTITIES[name]


def test_forces_alone_still_give_energies(tmp_path):
    """The constant that forces leave open is fitted to the training energies, by element."""
    frames = [
        a for w, m in zip(waters(8), moved([molecule("CH3OH")] * 8), strict=True) for a in (w, m)
    ]
    rng = np.random.default_rng(1)
    data = AtomicDataset.from_frames(frames)
    data = replace(
        data,
        energies=np.array([-2080.0, -3150.0] * 8) + rng.normal(size=16),
        forces=rng.normal(size=data.positions.shape),
    )
    splits = Splits(np.arange(12), np.arange(12, 16), [])
    forces_only = {**TINY, "training.epochs": 2, "loss.energy_weight": 0.0}
    for rule in ("atomic", "none"):
        recipe = load_recipe("default", {**forces_only, "labels.offset": rule})
        fit = fit_potential(data, splits, recipe, tmp_path / f"{rule}.pt")
        energy = evaluate_potential(
            load_potential(tmp_path / f"{rule}.pt"), data.subset(splits.train)
        )
        reference, predicted = energy.energy
        error = predicted - reference
        # Least squares: no error on average over the frames of either composition.
        assert error[0::2].mean() == pytest.approx(0, abs=1e-6)
        assert error[1::2].mean() == pytest.approx(0, abs=1e-6)
        assert np.abs(error).max() < 10
        assert fit.report["label_scale"] == fit.potential.scale.to_dict()


def test_the_report_s_objective():
    """``rho |E - E'|^2 + 1/n sum_i |F_i - F'_i|^2`` in kcal/mol with rho = 0.01, frame by frame."""
    recipe = load_recipe("schnet-report")
    potential = lively(elements=["H", "O"])
    frames = waters(6)
    rng = np.random.default_rng(2)
    data = AtomicDataset.from_frames(frames, DatasetInfo("md17", label_unit="kcal/mol"))
    data = replace(data, energies=rng.normal(size=6), forces=rng.normal(size=data.positions.shape))
    scale = fit_label_scale(data, rescale=recipe.labels.rescale, offset="none")
    potential.set_scale(scale)
    objective = Objective(EnergyForces(scale.constant), recipe.loss.terms())
    batch = FrameBatches(data, potential.cutoff, scale).batch(torch.arange(6))
    loss, _ = objective.reduce(objective.residuals(potential, batch))
    expected = 0.0
    for f in range(6):
        one = potential(graph_of([frames[f]]))
        energy = (float(one["energy"][0]) - data.energies[f]) / KCAL_PER_MOL
        forces = (one["forces"].numpy() - data.forces[3 * f : 3 * f + 3]) / KCAL_PER_MOL
        expected += 0.01 * energy**2 + sum(np.dot(d, d) for d in forces) / 3
    assert float(loss.detach()) == pytest.approx(expected / 6, rel=1e-5)
    assert scale.constant == pytest.approx(KCAL_PER_MOL)


def test_the_report_s_network_has_its_number_of_weights():
    from dcase.potentials.networks.registry import create_potential

    recipe = load_recipe("schnet-report")
    potential = create_potential(
        recipe.model.architecture, elements=["H", "C", "O"], size=recipe.model.size,
        activation=recipe.model.activation, filter_knots=0, **recipe.model.hyper_parameters,
    )  # fmt: skip
    count = sum(p.numel() for p in potential.parameters())
    table = potential.network.embedding.weight.numel()
    # The report: 116 225, which is ours with a table of 100 elements and with a bias in the first
    # layer of each of the three interactions (PyTorch Geometric's SchNet, and ours, have none).
    assert count - table + 100 * 64 + 3 * 64 == 116_225
