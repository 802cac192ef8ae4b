"""GemNet's scale factors: fitted to keep variances, stored, and fitted again when asked."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from potential_models import crystal, ethanol, lively

from dcase import checkpoint
from dcase.data.dataset import AtomicDataset
from dcase.errors import OptionError
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.networks.gemnet import refit_scale_factors
from dcase.potentials.networks.gemnet.layers import ScaledActivation
from dcase.potentials.networks.gemnet.scaling import ScaleFactor, fit_scale_factors, scale_factors
from dcase.potentials.networks.registry import create_potential
from dcase.potentials.potential import load_potential
from dcase.rescaling import LabelScale
from dcase.training.state import STATE_VERSION


def _potential(activation="silu", **options):
    return create_potential(
        "gemnet-t", elements=["H", "C", "O"], size="tiny", num_interactions=2, seed=2,
        activation=activation, **options,
    )  # fmt: skip


def _graphs(potential, n=6, frames=4):
    data = AtomicDataset.from_frames([ethanol(0.1, seed=k) for k in range(n * frames)])
    batches = FrameBatches(data, potential.cutoff, LabelScale())
    return [batch.graph for batch in batches.in_order(frames)]


def _batches(potential, **options):
    return [(potential.species_of[g.numbers], g) for g in _graphs(potential, **options)]


def _factors(potential):
    return {name: float(f.factor) for name, f in scale_factors(potential.network).items()}


def _variance(x):
    return float(x.detach().flatten(0, -2).var(0).mean())


@torch.no_grad()
def _watched_variances(network, batches):
    """Variances before and after each factor's operation, recomputed from hooks on the layers."""
    seen = {}
    order = []

    def record(name):
        def hook(_module, inputs, output):
            seen.setdefault(name, []).append((inputs, output))
            if name not in order:
                order.append(name)

        return hook

    handles = []
    for block in network.blocks:
        trip = block.triplets
        for module in (trip.dense_ba, trip.down, trip.up_ca, block.atom_update.dense):
            handles.append(module.register_forward_hook(record(module)))
        handles.append(block.atom_update.register_forward_hook(record(block.atom_update)))
    for output in network.outputs:
        handles.append(output.register_forward_hook(record(output)))
        handles.append(output.dense.register_forward_hook(record(output.dense)))
    for species, graph in batches:
        network(species, graph)
    for handle in handles:
        handle.remove()

    def joined(module, pick):
        parts = [pick(inputs, output) for inputs, output in seen[module]]
        return _variance(torch.cat([part.flatten(0, -2) for part in parts]))

    found = {}
    for i, block in enumerate(network.blocks, start=1):
        trip = block.triplets
        found[f"TripInteraction_{i}_had_rbf"] = (
            joined(trip.dense_ba, lambda _, out: out), joined(trip.down, lambda x, _: x[0])
        )  # fmt: skip
        found[f"TripInteraction_{i}_sum_cbf"] = (
            joined(trip.down, lambda _, out: out), joined(trip.up_ca, lambda x, _: x[0])
        )  # fmt: skip
        update = block.atom_update
        found[f"AtomUpdate_{i}_sum"] = (
            joined(update, lambda x, _: x[0]), joined(update.dense, lambda x, _: x[0])
        )  # fmt: skip
    for j, output in enumerate(network.outputs):
        found[f"OutBlock_{j}_sum"] = (
            joined(output, lambda x, _: x[0]), joined(output.dense, lambda x, _: x[0])
        )  # fmt: skip
    return found


def test_potentials_gemnet_factors_keep_variances():
    potential = _potential()
    batches = _batches(potential)
    before = _watched_variances(potential.network, batches)
    assert all(float(f.factor) == 1 for f in scale_factors(potential.network).values())
    fitted = potential.network.fit_scale_factors(batches)
    after = _watched_variances(potential.network, batches)
    assert set(fitted) == set(after)
    assert len(fitted) == 3 * 2 + 3
    for name, (wanted, found) in after.items():
        assert found == pytest.approx(wanted, rel=1e-3), name
    # Control: without the factors they are off by far.
    assert any(abs(found / wanted - 1) > 0.5 for wanted, found in before.values())


def test_potentials_gemnet_factors_hold_for_other_frames():
    potential = _potential()
    batches = _batches(potential, n=12)
    potential.network.fit_scale_factors(batches[:6])
    for name, (wanted, found) in _watched_variances(potential.network, batches[6:]).items():
        assert found == pytest.approx(wanted, rel=0.25), name


def test_potentials_gemnet_fit_is_deterministic_and_starts_afresh():
    first, second = _potential(), _potential()
    torch.rand(3)
    wanted = first.network.fit_scale_factors(_batches(first))
    batches = _batches(second)
    second.network.fit_scale_factors(batches[:1])
    state = torch.get_rng_state()
    assert second.network.fit_scale_factors(batches) == wanted
    assert torch.equal(torch.get_rng_state(), state)
    # Batches are one sample, however they are cut.
    whole = _potential()
    assert whole.network.fit_scale_factors(_batches(whole, n=1, frames=24)) == pytest.approx(wanted)


def test_potentials_gemnet_factors_are_saved_and_loaded(tmp_path):
    potential = _potential()
    potential.network.fit_scale_factors(_batches(potential))
    potential.save(tmp_path / "model.pt")
    loaded = load_potential(tmp_path / "model.pt")
    assert _factors(loaded) == _factors(potential)
    assert all(f.fitted == 1 for f in scale_factors(loaded.network).values())
    graph = _graphs(potential)[0]
    assert torch.equal(loaded(graph)["forces"], potential(graph)["forces"])
    assert all(f.fitted == 0 for f in scale_factors(_potential().network).values())


def test_potentials_gemnet_refit_after_a_change_of_activation():
    potential = _potential()
    graphs = _graphs(potential)
    first = refit_scale_factors(potential, graphs)
    assert refit_scale_factors(potential, graphs) == first
    act = ScaledActivation("irelu")
    for module in potential.network.modules():
        if hasattr(module, "act") and not isinstance(module, ScaledActivation):
            module.act = act
    second = refit_scale_factors(potential, graphs)
    assert max(abs(second[k] / first[k] - 1) for k in first) > 0.05
    for name, (wanted, found) in _watched_variances(
        potential.network, [(potential.species_of[g.numbers], g) for g in graphs]
    ).items():
        assert found == pytest.approx(wanted, rel=1e-3), name


def test_potentials_gemnet_refit_refuses_what_has_no_factors():
    with pytest.raises(OptionError, match="a schnet potential has no scale factors to fit"):
        refit_scale_factors(create_potential("schnet", elements=["H"], size="tiny"), [])
    with pytest.raises(OptionError, match="at least one batch"):
        refit_scale_factors(_potential(), [])


@pytest.mark.filterwarnings("ignore::dcase.errors.PaperVariantWarning")
def test_potentials_gemnet_paper_variant_keeps_its_factors():
    potential = _potential(variant="paper")
    before = _factors(potential)
    assert potential.network.fit_scale_factors(_batches(potential)) == before == _factors(potential)


def test_potentials_gemnet_fit_needs_no_variance():
    # One edge pair of equal atoms: all features alike. Nothing to fit, and nothing broken.
    potential = _potential()
    graph = build_graph(np.array([1, 1]), np.array([[0, 0, 0], [0.8, 0, 0]]), potential.cutoff)
    factors = refit_scale_factors(potential, [graph])
    assert all(np.isfinite(value) and value > 0 for value in factors.values())
    lone = build_graph(np.array([1]), np.zeros((1, 3)), potential.cutoff)
    assert set(refit_scale_factors(potential, [lone]).values()) == {1.0}


def test_potentials_gemnet_fit_joins_periodic_batches():
    potential = _potential()
    graphs = []
    for seed in range(2):
        atoms = crystal(seed=seed)
        graphs.append(
            build_graph(
                atoms.numbers, atoms.positions, potential.cutoff, np.array(atoms.cell), atoms.pbc
            )
        )
    both = refit_scale_factors(potential, graphs)
    data = AtomicDataset.from_frames([crystal(seed=seed) for seed in range(2)])
    batch = FrameBatches(data, potential.cutoff, LabelScale()).batch(torch.arange(2)).graph
    assert refit_scale_factors(potential, [batch]) == pytest.approx(both)


def test_potentials_gemnet_fit_stops_at_enough_edges(monkeypatch):
    from dcase.potentials.networks.gemnet import scaling

    potential = _potential()
    batches = _batches(potential)
    edges = 2 * batches[0][1].pairs.shape[1]
    monkeypatch.setattr(scaling, "_ENOUGH_EDGES", 2.5 * edges)
    limited = fit_scale_factors(potential.network, batches)
    assert limited == fit_scale_factors(potential.network, batches[:2])
    monkeypatch.setattr(scaling, "_ENOUGH_EDGES", 1)
    assert fit_scale_factors(potential.network, batches) == fit_scale_factors(
        potential.network, batches[:1]
    )


def test_potentials_gemnet_factor_formula():
    factor = ScaleFactor("X_1_sum")
    generator = torch.Generator().manual_seed(0)
    reference, result = torch.randn(5000, 4, generator=generator), torch.randn(5000, 2) * 4 + 7
    assert factor.settle(result, reference) is result  # not while in use
    factor.fitting = True
    scaled = factor.settle(result, reference)
    expected = (reference.var(0).mean() / result.var(0).mean()).sqrt()
    assert float(factor.factor) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(scaled, result * expected)
    copied = copy.deepcopy(factor)
    assert float(copied.factor) == float(factor.factor)


def test_potentials_gemnet_training_fits_once_and_resumes_with_the_same(tmp_path):
    from dcase.data.splits import Splits
    from dcase.potentials.fitting.fit_potential import fit_potential
    from dcase.potentials.fitting.recipe import load_recipe

    rng = np.random.default_rng(0)
    frames = [ethanol(0.1, seed=k) for k in range(12)]
    data = AtomicDataset.from_frames(frames)
    data = type(data)(
        **{
            **vars(data),
            "energies": rng.normal(0, 0.1, 12) - 4200.0,
            "forces": rng.normal(size=data.positions.shape),
        }
    )
    splits = Splits(np.arange(8), np.arange(8, 12), np.arange(0))
    choices = {"model.architecture": "gemnet-t", "model.size": "tiny", "training.batch_size": 4}
    recipe = load_recipe("default", {**choices, "training.epochs": 2})
    seen = []
    first = fit_potential(
        data, splits, recipe, tmp_path / "a.pt",
        on_start=lambda potential, _trainer: seen.append(_factors(potential)),
    )  # fmt: skip
    assert all(value != 1.0 for value in seen[0].values())
    assert _factors(first.potential) == seen[0] == _factors(load_potential(tmp_path / "a.pt"))
    # Other factors in the state must win over those a resumed run fits at its start.
    longer = load_recipe("default", {**choices, "training.epochs": 4})
    state_file = first.folder / "state.pt"
    state = checkpoint.load(state_file, "training", STATE_VERSION)
    name = "network.blocks.0.atom_update.scale_sum.factor"
    state["model"][name] = state["model"][name] * 1.5
    state["best_buffers"] = None
    checkpoint.save(state_file, "training", STATE_VERSION, state)
    resumed = fit_potential(data, splits, longer, tmp_path / "a.pt", resume=True)
    assert resumed.result.epochs == 4
    changed = _factors(resumed.potential)
    wrong = {name for name in changed if changed[name] != seen[0][name]}
    assert wrong <= {"AtomUpdate_1_sum"}
    assert changed["AtomUpdate_1_sum"] == pytest.approx(1.5 * seen[0]["AtomUpdate_1_sum"])


@pytest.mark.parametrize("placement", ["published", pytest.param("all", marks=pytest.mark.slow)])
def test_potentials_gemnet_learns_forces_with_irelu(placement):
    # Labels of another potential; IReLU everywhere, as published, ended in NaN (DC paper, table 7).
    teacher = lively("gemnet-t", "silu")
    student = _potential("irelu", placement=placement)
    student.network.fit_scale_factors(_batches(student))
    graph = _graphs(student, n=1, frames=8)[0]
    _, forces = teacher.energies_and_forces(graph)
    forces = forces.detach() / forces.detach().std()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10)
        _, found = student.energies_and_forces(graph, create_graph=True)
        loss = (found - forces).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert max(losses[30:]) < 2 * losses[0]
    assert losses[-1] < 0.3 * losses[0]
