"""ForceNet against plain loops; its published defects; rotations: what they do to it, and help."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from potential_models import crystal, ethanol, graph_of, lively, lively_as_trained
from scipy.special import eval_legendre
from torch import nn

from dcase.data.dataset import AtomicDataset
from dcase.errors import OptionError, PaperVariantWarning
from dcase.md_runs.checks.conformance import run_checks
from dcase.normalization import PassThrough
from dcase.potentials.fitting.batches import FrameBatches, RotatedFrames
from dcase.potentials.graphs.rotations import FRAMES, random_rotations, rotation_group
from dcase.potentials.networks.cartesian import SphericalHarmonics
from dcase.potentials.networks.element_features import atomic_radii, continuous_features
from dcase.potentials.networks.registry import build_potential, create_potential
from dcase.rescaling import LabelScale

ELEMENTS = ["H", "C", "O"]


make = partial(lively_as_trained, "forcenet")


def with_frames(potential, frames):
    """The same weights, averaged over a group."""
    options = {**potential.hyper_parameters, "frames": frames}
    other = build_potential(potential.architecture, options, potential.elements)
    other.with_dtype(potential.dtype).load_state_dict(potential.state_dict())
    other.set_scale(potential.scale)
    return other


def predict(potential, atoms):
    result = potential(graph_of(potential, atoms))
    return float(result["energy"]), result["forces"].numpy()


def _harmonics(u):
    """Degrees 0, 1, 2 as they stand in textbooks, with a mean square of 1 on the sphere."""
    x, y, z = u
    second = [x * y, y * z, (3 * z * z - 1) / (2 * math.sqrt(3)), x * z, (x * x - y * y) / 2]
    return np.array(
        [1.0, *(math.sqrt(3) * np.array([y, z, x])), *(math.sqrt(15) * np.array(second))]
    )


def by_loops(potential, atoms):
    """The energy from the formulas, atom by atom and image by image."""
    options = potential.hyper_parameters
    w = {k: v.detach().numpy() for k, v in potential.network.state_dict().items()}
    act = {
        "irelu": lambda x: 0.5 * np.maximum(x, 0) ** 2,
        "silu": lambda x: x / (1 + np.exp(-x)),
    }[options["activation"]]
    paper, cutoff, freqs = options["variant"] == "paper", options["cutoff"], options["num_freqs"]
    gauss = options["basis"] == "gauss"

    def linear(name, x):
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)

    def expand(numbers):
        if gauss:
            centres = np.linspace(0, 1, freqs)
            return np.exp(-0.5 * ((numbers[:, None] - centres) * (freqs - 1)) ** 2).ravel()
        return np.sin(np.asarray(numbers)[:, None] * 1.1 ** np.arange(freqs)).ravel()

    def normed(name, x):
        if f"{name}.weight" not in w:
            return x
        x = (x - w[f"{name}.running_mean"]) / np.sqrt(w[f"{name}.running_var"] + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    numbers = atoms.numbers.tolist()
    radii = atomic_radii(numbers).numpy()
    h = np.array([linear("embedding", expand(p.numpy())) for p in continuous_features(numbers)])
    images = [np.zeros(3)]
    if atoms.pbc.all():
        images = [np.array(n) @ atoms.cell.array for n in np.ndindex(5, 5, 5)]
        images = [image - 2 * atoms.cell.array.sum(0) for image in images]
    for layer in range(options["num_interactions"]):
        name, new = f"interactions.{layer}", h.copy()
        for i in range(len(atoms)):
            own = linear(f"{name}.atom_in", h[i])
            message = w[f"{name}.self_weight"][0] * own
            for j in range(len(atoms)):
                for image in images:
                    r = atoms.positions[j] + image - atoms.positions[i]
                    d = np.linalg.norm(r)
                    if not 1e-9 < d < cutoff:
                        continue
                    scaled = np.array([d, d - radii[j], d - radii[i], d - radii[j] - radii[i]])
                    scaled = scaled / cutoff
                    if paper:
                        scaled = np.maximum(scaled, 1e-3)
                    if gauss:
                        features = expand(np.concatenate([(r / d + 1) / 2, scaled]))
                    else:
                        features = np.outer(_harmonics(r / d), linear("radial", expand(scaled)))
                    x = d / cutoff
                    envelope = 1 - 21 * x**5 + 35 * x**6 - 15 * x**7
                    if paper:
                        envelope = math.cos(0.5 * math.pi * x)
                    first = np.concatenate(
                        [
                            w[f"{name}.{part}.weight"]
                            for part in ("edge_in", "source_in", "target_in")
                        ],
                        axis=1,
                    )
                    edge = linear(f"{name}.edge_embedding", features.ravel())
                    mixed = first @ np.concatenate([edge, h[j], h[i]]) + w[f"{name}.edge_in.bias"]
                    for depth in range(options["depth_mlp_edge"]):
                        mixed = linear(f"{name}.filter_mlp.{2 * depth + 1}", act(mixed))
                    message += mixed * envelope * linear(f"{name}.atom_in", h[j])
            message = linear(f"{name}.update.0", message)
            message = act(normed(f"{name}.update.1", message))
            new[i] = h[i] + linear(f"{name}.update.3", message)
        h = new
    decoded = np.array([act(linear("out_in", row)) for row in h])
    if paper:
        return float(linear("out", decoded.sum(0))[0])
    return float(sum(linear("out", row)[0] for row in decoded))


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "irelu"},
        {"activation": "silu", "basis": "gauss"},
        {"activation": "silu", "variant": "paper", "basis": "gauss"},
        {"activation": "irelu", "variant": "paper", "denormalize": True},
        {"activation": "silu", "denormalize": False},
    ],
    ids=["default", "gauss", "paper", "paper-irelu", "normalized"],
)
@pytest.mark.parametrize("system", ["molecule", "crystal"])
def test_potentials_forcenet_equals_the_formulas(options, system):
    potential = make(**options)
    atoms = ethanol() if system == "molecule" else crystal()
    energy = float(potential.energies(graph_of(potential, atoms)).detach())
    assert energy == pytest.approx(by_loops(potential, atoms), rel=1e-9)


def _dimer(potential, d):
    return predict(potential, Atoms("CC", [[0, 0, 0], [0.3 * d, 0, math.sqrt(0.91) * d]]))


def test_potentials_forcenet_force_jumps_only_as_published():
    def jump(potential, at):
        inside, outside = _dimer(potential, at - 1e-7)[1], _dimer(potential, at + 1e-7)[1]
        return np.abs(inside - outside).max()

    published = make(activation="silu", variant="paper", basis="gauss")
    repaired = make(activation="silu", basis="gauss")
    for potential, found in ((published, True), (repaired, False)):
        size = np.abs(_dimer(potential, 1.6)[1]).max()
        # At the cutoff, and 1e-3 rc beyond the sum of the published radii: an aromatic bond.
        for at in (potential.cutoff, 2 * 0.70 + 1e-3 * potential.cutoff):
            assert (jump(potential, at) > 1e-3 * size) == found
        assert jump(potential, 1.5) < 1e-4 * size  # control: elsewhere it is smooth


def test_potentials_forcenet_read_out_is_extensive_except_as_published():
    one = ethanol()
    two = one + Atoms(one.numbers, one.positions + 100.0)
    for variant, shared in (("default", 0.0), ("paper", 1.0)):
        potential = make(variant=variant, denormalize=True)
        first, both = (
            float(potential.energies(graph_of(potential, atoms)).detach()) for atoms in (one, two)
        )
        bias = float(potential.network.out.bias.detach())
        assert both == pytest.approx(2 * first - shared * bias, rel=1e-10)


def test_potentials_forcenet_denormalization_takes_batch_norm_only():
    kept = create_potential("forcenet", elements=ELEMENTS, size="tiny", denormalize=False).network
    taken = create_potential("forcenet", elements=ELEMENTS, size="tiny").network
    changed = {
        name
        for (name, before), after in zip(kept.named_modules(), taken.modules(), strict=True)
        if type(before) is not type(after)
    }
    assert changed == {f"interactions.{k}.update.1" for k in range(2)}
    assert all(isinstance(taken.get_submodule(name), PassThrough) for name in changed)
    bare = {"depth_mlp_edge": 0, "depth_mlp_node": 0}
    linear = create_potential("forcenet", elements=ELEMENTS, size="tiny", **bare, denormalize=False)
    assert sum(isinstance(m, nn.BatchNorm1d) for m in linear.network.modules()) == 4
    with pytest.warns(PaperVariantWarning, match=r"forcenet, .*slope.*kink.*1\.40 A.*one bias"):
        create_potential("forcenet", elements=ELEMENTS, size="tiny", variant="paper")


def test_potentials_forcenet_refuses_what_it_has_no_features_for():
    for symbols, message in (
        (["H", "Kr"], "no atomic radius for Kr"),
        (["At", "C", "Fr"], "no atomic radius for At, Fr"),
        (["H", "Md"], "no atomic radius for Md"),
    ):
        with pytest.raises(OptionError, match=message):
            create_potential("forcenet", elements=symbols, size="tiny")
    for options, message in (
        ({"basis": "fourier"}, "basis must be one of gauss, sphallmul; got 'fourier'"),
        ({"frames": "pca"}, "frames must be one of none, octahedral, icosahedral"),
        ({"max_n": 0}, "max_n must be at least 1"),
        ({"cutoff": -1.0}, "cutoff must be positive"),
    ):
        with pytest.raises(OptionError, match=message):
            create_potential("forcenet", elements=["H"], size="tiny", **options)


# ------------------------------------------------------------------------------------------------
# Directions and rotations


def test_potentials_spherical_harmonics_obey_the_addition_theorem():
    u = random_rotations(40, torch.Generator().manual_seed(0))[:, 0]
    values = SphericalHarmonics(6)(u)
    cosines = (u @ u.T).numpy()
    for degree in range(7):
        part = values[:, degree**2 : (degree + 1) ** 2].numpy()
        expected = (2 * degree + 1) * eval_legendre(degree, cosines)
        assert np.abs(part @ part.T - expected).max() < 1e-12 * 49
    assert np.allclose(values[0, :9], _harmonics(u[0].numpy()), atol=1e-12)
    pole = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SphericalHarmonics(3), (pole,))


def test_potentials_rotation_groups_are_groups():
    for name, order, first_left in (("octahedral", 24, 4), ("icosahedral", 60, 6)):
        group = rotation_group(name)
        assert group.shape == (order, 3, 3)
        assert torch.allclose(torch.linalg.det(group), torch.ones(order, dtype=torch.float64))
        products = torch.einsum("axy,byz->abxz", group, group).reshape(-1, 1, 9)
        distance = (products - group.reshape(1, order, 9)).abs().amax(-1)
        assert (distance.amin(1) < 1e-9).all()  # closed
        assert ((distance < 1e-9).sum(1) == 1).all()  # and no element twice
        u = random_rotations(5, torch.Generator().manual_seed(1))[:, 0]
        turned = torch.einsum("gxy,py->gpx", group, u).flatten(0, 1)
        mean = SphericalHarmonics(6)(turned).view(order, 5, -1).mean(0)
        left = [k for k in range(7) if mean[:, k**2 : (k + 1) ** 2].abs().max() > 1e-9]
        assert left[0] == 0
        assert left[1] == first_left


@pytest.mark.parametrize("frames", ["octahedral", "icosahedral"])
def test_potentials_forcenet_frames_average_over_the_group(frames):
    bare = make(activation="silu")
    averaged = with_frames(bare, frames)
    atoms = ethanol()
    energies, forces = [], []
    for rotation in rotation_group(frames).numpy():
        energy, force = predict(bare, Atoms(atoms.numbers, atoms.positions @ rotation.T))
        energies.append(energy)
        forces.append(force @ rotation)
    assert np.std(energies) > 1e-3  # control: the bare network is not invariant
    energy, force = predict(averaged, atoms)
    assert energy == pytest.approx(np.mean(energies), rel=1e-12)
    assert np.abs(force - np.mean(forces, axis=0)).max() < 1e-10 * np.abs(force).max()
    # In training it is the network as it is.
    graph = graph_of(bare, atoms)
    assert torch.equal(averaged.train().energies(graph), bare.energies(graph))


def test_potentials_forcenet_frames_in_parts_are_the_same(monkeypatch):
    # Not all orientations of a large batch are in memory at once.
    from dcase.potentials.networks import forcenet

    potential = with_frames(make(activation="silu"), "octahedral")
    graph = graph_of(potential, ethanol())

    def results():
        energies, forces = potential.energies_and_forces(graph, create_graph=True)
        (weight,) = torch.autograd.grad(forces.square().sum(), potential.network.out_in.weight)
        return energies.detach(), forces.detach(), weight

    calls = []
    whole = forcenet.ForceNet._sum_over
    monkeypatch.setattr(
        forcenet.ForceNet,
        "_sum_over",
        lambda self, turns, *rest: calls.append(len(turns)) or whole(self, turns, *rest),
    )
    expected = results()
    assert calls == [24]
    calls.clear()
    monkeypatch.setattr(forcenet, "_PAIRS_AT_ONCE", 7 * graph.pairs.shape[1])
    found = results()
    assert calls[:4] == [7, 7, 7, 3]
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_potentials_forcenet_frames_take_most_of_the_torque_away():
    bare = make(activation="silu")

    def torque(frames):
        potential, squares = with_frames(bare, frames), []
        for seed in range(5):
            atoms = molecule("CH4")  # three equal moments of inertia: no principal axes to go by
            atoms.rattle(0.05, seed=seed)
            forces = predict(potential, Atoms(atoms.numbers, atoms.positions))[1]
            arms = atoms.positions - atoms.positions.mean(0)
            total = np.cross(arms, forces).sum(0)
            squares.append((total**2).sum() / (forces**2).mean())
        return math.sqrt(np.mean(squares))

    none, octahedral, icosahedral = (torque(name) for name in FRAMES)
    assert octahedral < 0.4 * none
    assert icosahedral < 0.6 * octahedral


def test_potentials_forcenet_says_that_it_is_not_invariant(tmp_path):
    from dcase.cli.info import describe

    for architecture, said in (("forcenet", True), ("cgcnn", False)):
        potential = create_potential(architecture, elements=ELEMENTS, size="tiny")
        potential.save(tmp_path / "model.pt")
        caveats = describe(tmp_path / "model.pt")["caveats"]
        assert ("forcenet: not invariant to rotation" in caveats) == said
        assert getattr(potential.network, "rotation_invariant", True) != said


@pytest.mark.slow
def test_potentials_forcenet_is_otherwise_conservative_with_frames():
    results = run_checks(with_frames(make(activation="silu"), "octahedral"), ethanol(0.0))
    assert [r.name for r in results if r.failed] == []
    assert {r.name for r in results if r.by_design} == {"rotation", "mirror", "torque"}


def test_potentials_random_rotations_are_uniform_and_proper():
    rotations = random_rotations(20000, torch.Generator().manual_seed(3))
    eye = torch.eye(3, dtype=torch.float64).expand_as(rotations)
    assert torch.allclose(rotations @ rotations.transpose(1, 2), eye, atol=1e-12)
    assert (torch.linalg.det(rotations) > 0).all()
    # Means of matrix elements and of their products: 0 and delta_ik delta_jl / 3.
    flat = rotations.flatten(1)
    assert flat.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / 20000)
    products = flat.T @ flat / 20000
    assert (products - torch.eye(9, dtype=torch.float64) / 3).abs().max() < 0.02


def test_potentials_augmentation_turns_everything_together():
    frames = [crystal(seed=k) for k in range(6)]
    rng = np.random.default_rng(0)
    data = replace(
        AtomicDataset.from_frames(frames),
        energies=rng.normal(size=6),
        forces=rng.normal(size=(54, 3)),
    )
    plain = FrameBatches(data, 4.0, LabelScale())
    turned = RotatedFrames(plain, seed=5)
    chosen = torch.tensor([4, 1])
    before, after = plain.batch(chosen), turned.batch(chosen)
    # An invariant potential does not notice; forces turn with it.
    potential = lively("schnet", dtype=torch.float64)
    e0, f0 = potential.energies_and_forces(before.graph)
    e1, f1 = potential.energies_and_forces(after.graph)
    assert torch.allclose(e0, e1, rtol=1e-12)
    own = turned.rotations[chosen][after.graph.system]
    assert torch.allclose(f1, torch.einsum("nxy,ny->nx", own, f0), atol=1e-12)
    assert torch.allclose(after.forces, torch.einsum("nxy,ny->nx", own, before.forces))
    assert not torch.allclose(after.forces, before.forces)
    assert torch.equal(after.energies, before.energies)
    # A function of seed, epoch and frame: not of the batch, nor of what was asked before.
    again = RotatedFrames(plain, seed=5)
    again.set_epoch(1)
    assert not torch.equal(again.batch(chosen).graph.positions, after.graph.positions)
    again.set_epoch(0)
    alone = again.batch(torch.tensor([1])).graph.positions
    assert torch.equal(alone, after.graph.positions[after.graph.system == 1])


@pytest.mark.slow
def test_potentials_augmented_training_resumes_exactly(tmp_path):
    from dcase.data.splits import split
    from dcase.potentials.fitting.fit_potential import fit_potential
    from dcase.potentials.fitting.recipe import Recipe

    rng = np.random.default_rng(0)
    data = AtomicDataset.from_frames([ethanol(0.1, seed=k) for k in range(10)])
    data = replace(data, energies=rng.normal(size=10), forces=rng.normal(size=(90, 3)))
    splits = split(len(data), 8, 2, seed=0)

    def train(name, epochs, resume=False, augment=True):
        recipe = Recipe.from_dict(
            {
                "model": {"architecture": "forcenet", "size": "tiny"},
                "data": {"augment_rotations": augment},
                "training": {
                    "epochs": epochs, "batch_size": 4, "lr": 1e-4, "schedule": "constant"
                },
            }
        )  # fmt: skip
        return fit_potential(data, splits, recipe, tmp_path / name, resume=resume).potential

    straight = train("straight.pt", 4).state_dict()
    train("resumed.pt", 2)
    resumed = train("resumed.pt", 4, resume=True).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    plain = train("plain.pt", 4, augment=False).state_dict()
    assert any(not torch.equal(value, plain[name]) for name, value in straight.items())
