"""DimeNet++ against torch_geometric's, its sum over triplets, and its two variants."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase.build import molecule
from potential_models import crystal, ethanol, lively
from pyg_dimenet import pyg_twin

from dcase.activations import get_activation
from dcase.data.dataset import AtomicDataset
from dcase.errors import OptionError, PaperVariantWarning
from dcase.md_runs.checks import measures
from dcase.md_runs.checks.subject import Subject
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.networks.linear_growth import LinearGrowth, begins_with_a_square
from dcase.potentials.networks.registry import create_potential
from dcase.rescaling import LabelScale


def _batch(frames, cutoff):
    batches = FrameBatches(AtomicDataset.from_frames(frames), cutoff, LabelScale())
    return batches.batch(torch.arange(len(frames))).graph


# PyG's sympy takes ten seconds for the larger one.
@pytest.mark.parametrize("size", ["tiny", pytest.param("md17", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_potentials_dimenet_equals_torch_geometric(dtype, tolerance, size, monkeypatch):
    potential = lively("dimenet++", "silu", size=size, dtype=dtype)
    twin = pyg_twin(potential, monkeypatch)
    graph = _batch([ethanol(0.1), ethanol(0.1, seed=4), molecule("CH3CHO")], potential.cutoff)
    positions = graph.positions.to(dtype).requires_grad_(True)
    theirs = twin(graph.numbers, positions, graph.system).squeeze(1)
    (gradient,) = torch.autograd.grad(theirs.sum(), positions)
    energies, forces = potential.energies_and_forces(graph)
    assert (energies - theirs).abs().max() <= tolerance * energies.abs().max()
    assert (forces + gradient).abs().max() <= 10 * tolerance * forces.abs().max()
    # Control: the tolerance would notice a frequency that is off by one part in 1e3.
    with torch.no_grad():
        twin.rbf.freq[0] *= 1.001
    off = twin(graph.numbers, positions, graph.system).squeeze(1)
    assert (energies - off).abs().max() > tolerance * energies.abs().max()


def _explicit_energy(twin, atoms, cutoff):
    """PyG's layers on edges and triplets found by loops over atoms and images."""
    cell = np.asarray(atoms.cell)
    images = itertools.product(range(-2, 3), repeat=3) if atoms.pbc.any() else [(0, 0, 0)]
    edges = []  # target i, source j, vector from i to j
    for image, i, j in itertools.product(images, range(len(atoms)), range(len(atoms))):
        vector = atoms.positions[j] + np.array(image) @ cell - atoms.positions[i]
        if 0 < np.linalg.norm(vector) < cutoff:
            edges.append((i, j, vector))
    kj, ji, angles = [], [], []
    for a, (_, j, to_j) in enumerate(edges):
        for b, (target, _, to_k) in enumerate(edges):
            if target == j and np.linalg.norm(to_j + to_k) > 1e-6:  # k is not that very image of i
                cosine = to_j @ to_k / np.linalg.norm(to_j) / np.linalg.norm(to_k)
                angles.append(np.arccos(np.clip(cosine, -1, 1)))
                ji.append(a)
                kj.append(b)
    i, j = torch.tensor([e[0] for e in edges]), torch.tensor([e[1] for e in edges])
    distances = torch.tensor([np.linalg.norm(e[2]) for e in edges])
    kj, ji = torch.tensor(kj), torch.tensor(ji)
    with torch.no_grad():
        radial = twin.rbf(distances)
        spherical = twin.sbf(distances, torch.tensor(np.array(angles)), kj)
        x = twin.emb(torch.tensor(atoms.numbers), radial, i, j)
        energy = twin.output_blocks[0](x, radial, i, num_nodes=len(atoms))
        for interaction, output in zip(
            twin.interaction_blocks, twin.output_blocks[1:], strict=True
        ):
            x = interaction(x, radial, spherical, kj, ji)
            energy = energy + output(x, radial, i, num_nodes=len(atoms))
    return energy.squeeze(1), len(kj)


@pytest.mark.parametrize("atoms", [ethanol(0.1), crystal()], ids=["molecule", "crystal"])
def test_potentials_dimenet_sum_over_triplets_by_loops(atoms, monkeypatch):
    # The cell is shorter than twice the cutoff: an atom is its own neighbour, and another image of
    # i counts as k.
    potential = lively("dimenet++", "silu", dtype=torch.float64)
    assert not atoms.pbc.any() or atoms.cell.lengths().min() < 2 * potential.cutoff
    twin = pyg_twin(potential, monkeypatch)
    graph = build_graph(
        atoms.numbers, atoms.positions, potential.cutoff, atoms.cell.array, atoms.pbc
    )
    own = potential.atom_energies(graph).detach()
    expected, n_triplets = _explicit_energy(twin, atoms, potential.cutoff)
    assert n_triplets > 300
    assert torch.allclose(own, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_potentials_dimenet_is_smooth_for_a_straight_chain():
    # At 180 degrees the angle has a kink and PyG's force is not defined; the cosine has none.
    potential = lively("dimenet++", "silu", elements=["C", "O"], dtype=torch.float64)
    bends = np.linspace(-1e-3, 1e-3, 5)

    def force(bend):
        positions = np.array([[-1.16, 0, 0], [0, bend, 0], [1.16, 0, 0]])
        return potential(build_graph(np.array([8, 6, 8]), positions, potential.cutoff))["forces"][
            1, 1
        ].item()

    forces = np.array([force(b) for b in bends])
    assert np.isfinite(forces).all()
    assert abs(forces[2]) < 1e-12  # by symmetry
    stiffness = forces / np.where(bends == 0, 1, bends)
    assert abs(stiffness[0]) > 1e-3
    assert np.allclose(stiffness[[1, 3, 4]], stiffness[0], rtol=1e-4)


def _force_error(potential):
    """Of the forces along directions against energy differences, relative to their norm."""
    subject = Subject(potential, ethanol(0.0), "float64", None)
    return measures.force_directions(subject)[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::dcase.errors.PaperVariantWarning")
def test_potentials_dimenet_paper_variant_detaches_the_angle():
    default = lively("dimenet++", "silu", dtype=torch.float64)
    with pytest.warns(PaperVariantWarning, match="angles carry no gradient"):
        paper = lively("dimenet++", "silu", dtype=torch.float64, variant="paper")
    paper.load_state_dict(default.state_dict())
    paper.set_scale(default.scale)
    assert _force_error(default) < 1e-8
    assert _force_error(paper) > 0.01
    # The energy is the same; only its gradient is not: rotations do no harm, the angle does.
    graph = _batch([ethanol(0.1)], default.cutoff)
    assert torch.equal(default(graph)["energy"], paper(graph)["energy"])
    # With two atoms there is no angle, and the distance keeps its gradient.
    graph = build_graph(np.array([6, 8]), np.array([[0.0, 0, 0], [0, 0, 1.2]]), default.cutoff)
    forces = default(graph)["forces"]
    assert torch.equal(forces, paper(graph)["forces"])
    assert forces.abs().max() > 1e-3


def test_potentials_dimenet_paper_variant_starts_from_zero():
    with pytest.warns(PaperVariantWarning):
        potential = create_potential("dimenet++", elements=["H"], size="tiny", variant="paper")
    assert all((output.energy.weight == 0).all() for output in potential.network.outputs)


def test_potentials_dimenet_draws_glorot_orthogonal_weights():
    potential = create_potential("dimenet++", elements=["H"], size="md17", num_interactions=1)
    block = potential.network.interactions[0]
    for weight in (block.own.weight, block.down.weight, block.spherical_in.weight):
        weight = weight.detach()
        rows, columns = weight.shape
        assert weight.var() == pytest.approx(2 / (rows + columns), rel=1e-4)
        gram = weight @ weight.T if rows <= columns else weight.T @ weight
        off = gram - torch.diag(gram.diagonal())
        assert off.abs().max() < 1e-5 * gram.diagonal().mean()
        assert gram.diagonal().std() < 1e-5 * gram.diagonal().mean()


def test_potentials_dimenet_without_triplets_or_pairs():
    potential = lively("dimenet++", dtype=torch.float64)
    alone = build_graph(np.array([6]), np.zeros((1, 3)), potential.cutoff)
    result = potential(alone)
    assert result["energy"].isfinite().all()
    assert (result["forces"] == 0).all()
    # Two lone atoms: twice one, whatever the element was.
    apart = build_graph(np.array([6, 6]), np.array([[0.0, 0, 0], [0, 0, 9.0]]), potential.cutoff)
    assert torch.allclose(potential(apart)["energy"], 2 * result["energy"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"hidden_channels": 1}, "hidden_channels must be at least 2"),
        ({"num_spherical": 0}, "num_spherical must be at least 1"),
        ({"num_radial": 0}, "num_radial must be at least 1"),
        ({"num_interactions": -1}, "num_interactions must be at least 0"),
        ({"envelope_exponent": 1}, "envelope_exponent must be at least 2"),
        ({"cutoff": -1.0}, "cutoff must be positive"),
    ],
)
def test_potentials_dimenet_refuses_impossible_sizes(options, match):
    with pytest.raises(OptionError, match=match):
        create_potential("dimenet++", elements=["H"], size="tiny", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_interactions": 0},
        {"num_spherical": 1, "num_radial": 1},
        {"num_before_skip": 0, "num_after_skip": 0, "num_output_layers": 0},
    ],
)
def test_potentials_dimenet_smallest_sizes(options):
    potential = lively("dimenet++", "silu", dtype=torch.float64, **options)
    assert _force_error(potential) < 1e-8


@pytest.mark.parametrize("activation", ["irelu", "isilu", "log_cosh", "issp"])
def test_potentials_linear_growth(activation):
    layer = LinearGrowth(activation).double()
    x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_(True)
    # Near zero it is about x / 2, as SiLU; far out it is homogeneous: no power of x but the one.
    ratio = (layer(1e-7 * x) / (1e-7 * x)).detach()
    assert 0.4 < ratio.mean() < 0.7
    assert ratio.std() < 1e-5
    assert torch.allclose(layer(1e6 * x) / 1e6, layer(1e8 * x) / 1e8, rtol=1e-6)
    bare = get_activation(activation)
    assert bare(1e-6 * x).abs().max() < 1e-11
    many = torch.randn(1, 200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    silu = torch.nn.functional.silu(many).square().mean()
    assert layer(many).square().mean() == pytest.approx(float(silu), rel=0.03)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)
    assert begins_with_a_square(activation)


def test_potentials_linear_growth_is_for_activations_that_begin_with_a_square():
    assert not any(begins_with_a_square(name) for name in ("silu", "ssp", "tanh", "gelu", "relu"))
    potential = create_potential("dimenet++", elements=["H"], placement="all", activation="ssp")
    assert not any(isinstance(m, LinearGrowth) for m in potential.modules())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::dcase.errors.PaperVariantWarning")
@pytest.mark.parametrize("activation", ["irelu", "isilu", "log_cosh"])
def test_potentials_dimenet_with_squares_everywhere_starts_at_moderate_size(activation):
    # Bare, the squares overflow even float64, before the first training step. The default's forces
    # are small against labels of unit variance, but not zero.
    graph = _batch([ethanol(0.1)], 5.0)
    options = {"elements": ["H", "C", "O"], "activation": activation, "placement": "all"}
    bare = create_potential("dimenet++", variant="paper", **options).with_dtype(torch.float64)
    assert activation != "irelu" or not bare.energies(graph).isfinite().any()
    _, forces = create_potential("dimenet++", **options).energies_and_forces(graph)
    assert 1e-3 < forces.square().mean().sqrt() < 1
