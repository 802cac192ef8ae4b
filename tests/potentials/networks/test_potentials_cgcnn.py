"""CGCNN against torch_geometric's CGConv and plain loops; what is wrong with it as published."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from potential_models import crystal, ethanol, graph_of, lively, lively_as_trained
from torch import nn

from dcase.data.dataset import AtomicDataset
from dcase.errors import OptionError, PaperVariantWarning
from dcase.normalization import PassThrough
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.networks.element_features import k_hot_features
from dcase.potentials.networks.registry import create_potential
from dcase.rescaling import LabelScale

ELEMENTS = ["H", "C", "O"]


make = partial(lively_as_trained, "cgcnn")


def test_potentials_cgcnn_convolution_equals_torch_geometric():
    from torch_geometric.nn import CGConv

    potential = make(activation="softplus", variant="paper", denormalize=True)
    own = potential.network.convolutions[0]
    size, gaussians = own.source.weight.shape[1], own.edge.weight.shape[1]
    theirs = CGConv(size, dim=gaussians).double()
    weight = torch.cat([own.target.weight, own.source.weight, own.edge.weight], dim=1)
    with torch.no_grad():
        for linear, half in ((theirs.lin_f, slice(0, size)), (theirs.lin_s, slice(size, None))):
            linear.weight.copy_(weight[half])
            linear.bias.copy_(own.target.bias[half])
    graph = graph_of(potential, crystal())
    data, h = graph.to_pyg(), torch.randn(graph.n_atoms, size, dtype=torch.float64)
    basis = potential.network.basis(graph.distances())
    expected = theirs(h, data.edge_index, torch.cat([basis, basis])) - h
    seen = {}
    own.atom_norm.register_forward_hook(lambda module, given, out: seen.update(message=given[0]))
    own(h, graph.pairs, basis, None)
    assert (seen["message"] - expected).abs().max() < 1e-10 * expected.abs().max()


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _softplus(x):
    return np.logaddexp(0, x)


ACTIVATIONS = {
    "irelu": lambda x: 0.5 * np.maximum(x, 0) ** 2,
    "softplus": _softplus,
    "silu": lambda x: x * _sigmoid(x),
}


def by_loops(potential, atoms):
    """The energy from the formulas, atom by atom and image by image."""
    options = potential.hyper_parameters
    w = {k: v.detach().numpy() for k, v in potential.network.state_dict().items()}
    act = ACTIVATIONS[options["activation"]]
    inside = act if options["placement"] == "all" else _softplus
    paper, cutoff = options["variant"] == "paper", options["cutoff"]
    centres = np.linspace(0, cutoff, options["num_gaussians"])
    h = k_hot_features(atoms.numbers.tolist()).numpy() @ w["embedding.weight"].T
    h = h + w["embedding.bias"]
    images = [np.zeros(3)]
    if atoms.pbc.all():
        images = [np.array(n) @ atoms.cell.array for n in np.ndindex(5, 5, 5)]
        images = [image - 2 * atoms.cell.array.sum(0) for image in images]
    for layer in range(options["num_interactions"]):
        part = {
            k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"convolutions.{layer}")
        }
        new = np.zeros_like(h)
        for i in range(len(atoms)):
            message, count = np.zeros(h.shape[1]), 0.0
            for j in range(len(atoms)):
                for image in images:
                    d = np.linalg.norm(atoms.positions[j] + image - atoms.positions[i])
                    if not 1e-9 < d < cutoff:
                        continue
                    e = np.exp(-0.5 * ((d - centres) / (centres[1] - centres[0])) ** 2)
                    full = np.concatenate(
                        [part["target.weight"], part["source.weight"], part["edge.weight"]], axis=1
                    )
                    z = full @ np.concatenate([h[i], h[j], e]) + part["target.bias"]
                    if "edge_norm.weight" in part:
                        z = (z - part["edge_norm.running_mean"]) / np.sqrt(
                            part["edge_norm.running_var"] + 1e-5
                        ) * part["edge_norm.weight"] + part["edge_norm.bias"]
                    gate, core = np.split(z, 2)
                    x = d / cutoff
                    envelope = 1.0 if paper else 1 - 21 * x**5 + 35 * x**6 - 15 * x**7
                    message += _sigmoid(gate) * inside(core) * envelope
                    count += envelope
            centred = message - message.mean()
            normed = centred / math.sqrt((centred**2).mean() + 1e-5)
            normed = normed * part["atom_norm.weight"] + part["atom_norm.bias"]
            new[i] = inside(h[i] + normed * (1.0 if paper else math.tanh(count)))
        h = new
    if paper:
        h = h.mean(0, keepdims=True)
    last = 2 * options["num_fc_layers"]
    for layer in range(0, last, 2):
        h = act(h @ w[f"head.{layer}.weight"].T + w[f"head.{layer}.bias"])
    return float((h @ w[f"head.{last}.weight"].T + w[f"head.{last}.bias"]).sum())


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "irelu"},
        {"activation": "silu", "placement": "all"},
        {"activation": "softplus", "variant": "paper"},
        {"activation": "irelu", "denormalize": False},
    ],
    ids=["default", "all", "paper", "normalized"],
)
@pytest.mark.parametrize("system", ["molecule", "crystal"])
def test_potentials_cgcnn_equals_the_formulas(options, system):
    potential = make(**options)
    atoms = ethanol() if system == "molecule" else crystal()
    energy = float(potential.energies(graph_of(potential, atoms)).detach())
    assert energy == pytest.approx(by_loops(potential, atoms), rel=1e-10)


def test_potentials_cgcnn_energy_jumps_at_the_cutoff_only_as_published():
    def jump(variant):
        potential = make(activation="softplus", variant=variant)

        def energy(d):
            return float(
                potential(graph_of(potential, Atoms("CO", [[0, 0, 0], [0, 0, d]])))["energy"]
            )

        far = potential.cutoff
        return abs(energy(far - 1e-7) - energy(far + 1e-7)), abs(energy(1.2) - energy(far + 1))

    jumped, depth = jump("paper")
    assert jumped > 1e-3 * depth
    smooth, depth = jump("default")
    assert smooth < 1e-12 * max(1.0, depth)


def test_potentials_cgcnn_energy_is_extensive_except_as_published():
    one = ethanol()
    two = one + Atoms(one.numbers, one.positions + 100.0)
    for variant, factor in (("default", 2.0), ("paper", 1.0)):
        potential = make(variant=variant)
        energies = [
            float(potential.energies(graph_of(potential, atoms)).detach()) for atoms in (one, two)
        ]
        assert energies[1] == pytest.approx(factor * energies[0], rel=1e-10)


def test_potentials_cgcnn_denormalization_takes_batch_norm_only():
    kept = create_potential("cgcnn", elements=ELEMENTS, size="tiny", denormalize=False).network
    taken = create_potential("cgcnn", elements=ELEMENTS, size="tiny").network
    changed = {
        name
        for (name, before), after in zip(kept.named_modules(), taken.modules(), strict=True)
        if type(before) is not type(after)
    }
    assert changed == {f"convolutions.{k}.edge_norm" for k in range(2)}
    assert all(isinstance(taken.get_submodule(name), PassThrough) for name in changed)
    assert sum(isinstance(m, nn.LayerNorm) for m in taken.modules()) == 2
    with pytest.warns(PaperVariantWarning, match=r"cgcnn, .*: the energy jumps .* not extensive"):
        paper = create_potential("cgcnn", elements=ELEMENTS, size="tiny", variant="paper").network
    assert sum(isinstance(m, nn.BatchNorm1d) for m in paper.modules()) == 2


def test_potentials_cgcnn_activation_goes_where_the_paper_put_it():
    def names(placement):
        network = create_potential(
            "cgcnn", elements=ELEMENTS, size="tiny", placement=placement
        ).network
        return {
            n: type(m).__name__ for n, m in network.named_modules() if "act" in n or "head." in n
        }

    published, everywhere = names("published"), names("all")
    assert [published[f"head.{k}"] for k in (1, 3)] == ["IReLU", "IReLU"]
    assert published["convolutions.0.gated_act"] == "Softplus"
    assert published["convolutions.1.update_act"] == "Softplus"
    assert {n for n in published if published[n] != everywhere[n]} == {
        f"convolutions.{k}.{act}" for k in range(2) for act in ("gated_act", "update_act")
    }


def test_potentials_cgcnn_of_the_paper_has_the_size_of_open_catalyst():
    potential = create_potential("cgcnn", elements=ELEMENTS, size="paper", denormalize=False)
    f, g, n = 512, 100, 128
    convolution = (2 * f + g) * 2 * f + 2 * f + 2 * (2 * f) + 2 * f
    head = (f * n + n) + 2 * (n * n + n) + (n + 1)
    expected = (92 * f + f) + 3 * convolution + head
    assert sum(p.numel() for p in potential.parameters()) == expected


def test_potentials_cgcnn_element_features():
    hydrogen, carbon, thorium = k_hot_features([1, 6, 90])
    # Bins as in the published table: group, period, ..., block, volume.
    assert torch.nonzero(hydrogen).flatten().tolist() == [1, 19, 30, 36, 46, 64, 73, 78, 86]
    assert torch.nonzero(carbon).flatten().tolist() == [14, 20, 31, 38, 49, 63, 74, 79, 82]
    assert thorium.shape == (92,)
    # Every element up to Fm: one bin of the period, block and number of valence electrons.
    table = k_hot_features(range(1, 101))
    for start, bins in ((19, 7), (46, 12), (78, 4)):
        assert (table[:, start : start + bins].sum(1) == 1).all()
    with pytest.raises(OptionError, match="no element features for Md: it knows H to Fm"):
        create_potential("cgcnn", elements=["H", "Md"], size="tiny")
    for name, value in (("fc_channels", 0), ("num_fc_layers", 0), ("hidden_channels", 1)):
        with pytest.raises(OptionError, match=f"{name} must be at least"):
            create_potential("cgcnn", elements=["H"], size="tiny", **{name: value})


# ------------------------------------------------------------------------------------------------
# Batch normalisation and training on derivatives; ForceNet's goes through the same code


@pytest.mark.parametrize("architecture", ["cgcnn", "forcenet"])
def test_potentials_batch_norm_differentiates_twice_in_training(architecture):
    potential = lively(architecture, "silu", dtype=torch.float64, denormalize=False).train()
    frames = AtomicDataset.from_frames([ethanol(0.1, seed=k) for k in range(3)])
    batch = FrameBatches(frames, potential.cutoff, LabelScale()).batch(torch.arange(3))
    weight = torch.randn(batch.graph.n_atoms, 3, dtype=torch.float64)

    def loss(create_graph):
        energies, forces = potential.energies_and_forces(batch.graph, create_graph=create_graph)
        return energies.sum() + (weight * forces).sum()

    parameters = list(potential.parameters())
    gradients = torch.autograd.grad(loss(True), parameters, allow_unused=True)
    directions = [
        torch.randn_like(p) * p.detach().std(correction=0).clamp(min=0.1) for p in parameters
    ]
    expected = sum(
        float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None
    )
    starts, slopes = [p.detach().clone() for p in parameters], []

    def moved(t):
        with torch.no_grad():
            for p, start, d in zip(parameters, starts, directions, strict=True):
                p.copy_(start + t * d)
        return float(loss(False).detach())

    for t in (1e-4, 1e-5):
        slopes.append((8 * (moved(t) - moved(-t)) - moved(2 * t) + moved(-2 * t)) / (12 * t))
    assert min(abs(s / expected - 1) for s in slopes) < 1e-6


@pytest.mark.parametrize("architecture", ["cgcnn", "forcenet"])
def test_potentials_batch_norm_couples_a_batch_in_training_only(architecture):
    potential = create_potential(
        architecture, elements=ELEMENTS, size="tiny", denormalize=False
    ).with_dtype(torch.float64)
    frames = AtomicDataset.from_frames([ethanol(0.1), ethanol(0.3, seed=4)])
    batches = FrameBatches(frames, potential.cutoff, LabelScale())
    both, one = (batches.batch(torch.arange(n)).graph for n in (2, 1))
    potential.train()
    assert (
        abs(float(potential.energies(both)[0].detach() - potential.energies(one)[0].detach()))
        > 1e-6
    )
    norm = next(m for m in potential.network.modules() if isinstance(m, nn.BatchNorm1d))
    assert int(norm.num_batches_tracked) == 2
    potential.eval()
    assert float(potential.energies(both)[0].detach()) == pytest.approx(
        float(potential.energies(one)[0].detach()), rel=1e-12
    )
    assert int(norm.num_batches_tracked) == 2
    # An atom without neighbours has no edges that statistics could be taken of.
    potential.train()
    lonely = build_graph(np.array([1]), np.zeros((1, 3)), potential.cutoff)
    if architecture == "cgcnn":
        assert torch.isfinite(potential.energies(lonely)).all()


@pytest.mark.parametrize("architecture", ["cgcnn", "forcenet"])
def test_potentials_batch_norm_statistics_survive_a_resume(architecture, tmp_path):
    from dcase.data.splits import split
    from dcase.potentials.fitting.fit_potential import fit_potential
    from dcase.potentials.fitting.recipe import Recipe
    from dcase.potentials.potential import load_potential

    rng = np.random.default_rng(0)
    data = AtomicDataset.from_frames([ethanol(0.1, seed=k) for k in range(10)])
    data = replace(data, energies=rng.normal(size=10), forces=rng.normal(size=(90, 3)))
    splits = split(len(data), 8, 2, seed=0)

    def train(name, epochs, resume=False):
        recipe = Recipe.from_dict(
            {
                "model": {"architecture": architecture, "size": "tiny", "denormalize": False},
                "training": {
                    "epochs": epochs, "batch_size": 4, "lr": 1e-4, "schedule": "constant",
                    "ema": 0.9, "clip_norm": 1.0,
                },
            }
        )  # fmt: skip
        result = fit_potential(data, splits, recipe, tmp_path / name, resume=resume)
        # With the average of the weights the running statistics make a sane evaluation.
        assert math.isfinite(result.result.best["val_loss"])
        return load_potential(tmp_path / name).network.state_dict()

    straight = train("straight.pt", 4)
    train("resumed.pt", 2)
    resumed = train("resumed.pt", 4, resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    statistics = [v for name, v in straight.items() if name.endswith("running_mean")]
    assert statistics
    assert all(v.abs().max() > 0 for v in statistics)


def test_irelu_everywhere_stays_finite_and_learns():
    """Plain IReLU squares in every convolution: fresh forces of 1e12, NaN in the first step."""
    molecule = ethanol()
    graph = build_graph(molecule.numbers, molecule.positions, 5.0)
    sizes = {}
    for variant in ("default", "paper"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            potential = create_potential(
                "cgcnn", elements=["H", "C", "O"], placement="all", variant=variant
            )
        _, forces = potential.energies_and_forces(graph)
        sizes[variant] = float(forces.square().mean().sqrt())
    assert sizes["default"] < 1e2
    assert not sizes["paper"] < 1e6  # to the letter
    potential = create_potential("cgcnn", elements=["H", "C", "O"], placement="all")
    optimizer = torch.optim.Adam(potential.parameters(), lr=2e-3)
    target, losses = torch.randn(graph.n_atoms, 3, generator=torch.Generator().manual_seed(0)), []
    for _ in range(30):
        _, forces = potential.energies_and_forces(graph, create_graph=True)
        loss = (forces - target).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_the_last_neighbour_leaves_gently():
    """LayerNorm divides out the envelope: without a count of neighbours CO ends in a cliff."""

    def largest_force(potential, low, high):
        forces = []
        for d in np.linspace(low, high, 40):
            graph = build_graph(np.array([6, 8]), np.array([[0.0, 0, 0], [0, 0, d]]), 5.0)
            forces.append(float(potential.energies_and_forces(graph)[1].abs().max()))
        return max(forces)

    ratios = []
    for seed in range(4):
        potential = create_potential("cgcnn", elements=["C", "O"], activation="silu", seed=seed)
        near, far = (largest_force(potential, *r) for r in ((1.0, 3.0), (3.75, 5.0)))
        ratios.append(far / near)
    assert np.mean(ratios) < 0.6, ratios
