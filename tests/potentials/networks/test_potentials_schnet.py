"""SchNet against torch_geometric's, its filter table, and its sizes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from ase.build import molecule
from potential_models import ethanol, lively

from dcase.data.dataset import AtomicDataset
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.networks.pair_convolution import pair_convolution
from dcase.potentials.networks.registry import ARCHITECTURES, create_potential
from dcase.rescaling import LabelScale


class AllPairs(torch.nn.Module):
    """PyG's interaction graph without torch_cluster, and without its limit of 32 neighbours."""

    def __init__(self, cutoff):
        super().__init__()
        self.cutoff = cutoff

    def forward(self, pos, batch):
        near = (torch.cdist(pos.detach(), pos.detach()) < self.cutoff) & ~torch.eye(
            len(pos), dtype=torch.bool
        )
        row, col = torch.nonzero(near & (batch[:, None] == batch[None, :])).T
        return torch.stack([row, col]), (pos[row] - pos[col]).norm(dim=-1)


def _pyg_twin(potential):
    """torch_geometric's SchNet with the same weights."""
    from torch_geometric.nn.models import SchNet

    own, h = potential.network, potential.hyper_parameters
    twin = SchNet(
        hidden_channels=h["hidden_channels"],
        num_filters=h["num_filters"],
        num_interactions=h["num_interactions"],
        num_gaussians=h["num_gaussians"],
        cutoff=h["cutoff"],
        interaction_graph=AllPairs(h["cutoff"]),
    ).to(potential.dtype)
    with torch.no_grad():
        twin.embedding.weight[potential.elements] = own.embedding.weight
        for theirs, ours in zip(twin.interactions, own.interactions, strict=True):
            for target, source in (
                (theirs.mlp[0], ours.filter_in), (theirs.mlp[2], ours.filter_out),
                (theirs.conv.lin1, ours.atom_in), (theirs.conv.lin2, ours.atom_out),
                (theirs.lin, ours.update),
            ):  # fmt: skip
                target.load_state_dict(source.state_dict())
        twin.lin1.load_state_dict(own.out_in.state_dict())
        twin.lin2.load_state_dict(own.out.state_dict())
    # PyG rounds its Gaussians, and the ln 2 of its activations, to float32 when it is built.
    for module in twin.modules():
        if hasattr(module, "shift"):
            module.shift = math.log(2.0)
    spacing = h["cutoff"] / (h["num_gaussians"] - 1)
    twin.distance_expansion.offset = (spacing * torch.arange(h["num_gaussians"]).double()).to(
        potential.dtype
    )
    twin.distance_expansion.coeff = -0.5 / spacing**2
    return twin


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_potentials_schnet_equals_torch_geometric(dtype, tolerance):
    potential = lively(activation="ssp", size="md17", dtype=dtype)
    with torch.no_grad():  # torch's softplus drops 2e-9 above 20: keep its arguments below
        for parameter in potential.parameters():
            parameter.mul_(0.8)
    twin = _pyg_twin(potential)
    frames = [ethanol(0.1), ethanol(0.1, seed=4), molecule("CH3CHO")]
    graph = FrameBatches(AtomicDataset.from_frames(frames), potential.cutoff, LabelScale()).batch(
        torch.arange(3)
    )
    positions = graph.graph.positions.to(dtype).requires_grad_(True)
    theirs = twin(graph.graph.numbers, positions, graph.graph.system).squeeze(1)
    (gradient,) = torch.autograd.grad(theirs.sum(), positions)
    energies, forces = potential.energies_and_forces(graph.graph)
    largest = forces.abs().max()
    assert (energies - theirs).abs().max() <= tolerance * energies.abs().max()
    assert (forces + gradient).abs().max() <= tolerance * largest
    # Control: the tolerance would notice a basis that is off by one part in 1e3.
    twin.distance_expansion.coeff *= 1.001
    off = twin(graph.graph.numbers, positions, graph.graph.system).squeeze(1)
    assert (energies - off).abs().max() > tolerance * energies.abs().max()


def test_potentials_pair_convolution_has_all_derivatives():
    """Against sums over pairs; its first, second and third derivatives against differences."""
    pairs = torch.tensor([[0, 0, 1, 2], [1, 2, 2, 3]])
    draw = torch.Generator().manual_seed(0)
    filters, x = (torch.randn(4, 2, dtype=torch.float64, generator=draw) for _ in range(2))
    expected = torch.zeros_like(x)
    for w, (i, j) in zip(filters, pairs.T.tolist(), strict=True):
        expected[i] += w * x[j]
        expected[j] += w * x[i]
    torch.testing.assert_close(pair_convolution(filters, x, pairs), expected)
    filters, x = filters.requires_grad_(), x.requires_grad_()

    def slopes(w, y):
        out = pair_convolution(torch.sin(w), torch.cos(y), pairs).square().sum()
        return torch.autograd.grad(out, (w, y), create_graph=True)

    assert torch.autograd.gradcheck(slopes, (filters, x))
    assert torch.autograd.gradgradcheck(slopes, (filters, x))


def test_potentials_schnet_keeps_every_neighbour():
    # 60 neighbours within the cutoff: PyG would silently keep 32.
    rng = np.random.default_rng(0)
    points = np.array([p for p in itertools.product(range(-2, 3), repeat=3) if any(p)])
    points = points[np.argsort((points**2).sum(1), kind="stable")][:60] * 0.9
    positions = np.concatenate([np.zeros((1, 3)), points + rng.normal(0, 0.02, points.shape)])
    potential = lively(dtype=torch.float64)
    graph = build_graph(np.ones(61, dtype=int), positions, potential.cutoff)
    full = int((graph.pairs == 0).sum())
    assert full == 60
    _, forces = potential.energies_and_forces(graph)
    assert (forces[1:].norm(dim=1) > 0).all()


def _loss(potential, batch):
    problem = EnergyForces(1.0)
    terms = problem.terms(potential, batch, training=True)
    return terms["energy"].square().mean() + terms["forces"].square().mean()


def _labelled(potential, n=4):
    frames = [ethanol(0.1, seed=k) for k in range(n)]
    data = AtomicDataset.from_frames(frames)
    batches = FrameBatches(data, potential.cutoff, LabelScale())
    batch = batches.batch(torch.arange(n))
    generator = torch.Generator().manual_seed(0)
    energies, forces = potential.energies_and_forces(batch.graph)
    noise = torch.randn(forces.shape, generator=generator, dtype=torch.float64)
    return type(batch)(
        batch.graph, energies.detach() + 1.0, (forces + forces.std() * noise).detach(), batch.frames
    )


def _gradient(potential, batch):
    gradients = torch.autograd.grad(
        _loss(potential, batch), list(potential.parameters()), allow_unused=True
    )
    return torch.cat([g.flatten() for g in gradients if g is not None])


def _with_knots(potential, n):
    """The same weights, filters on splines."""
    from dcase.potentials.networks.registry import build_potential

    hyper_parameters = {**potential.hyper_parameters, "filter_knots": n}
    other = build_potential(potential.architecture, hyper_parameters, potential.elements)
    other.with_dtype(potential.dtype).load_state_dict(potential.state_dict())
    other.set_scale(potential.scale)
    return other


@pytest.mark.parametrize("activation", ["irelu", "silu"])
def test_potentials_filter_table_gives_the_exact_training_gradient(activation):
    potential = lively(activation=activation, size="md17", dtype=torch.float64).train()
    batch = _labelled(potential)
    exact = _gradient(potential, batch)
    errors = {}
    for n in (32, 128, 256):
        gradient = _gradient(_with_knots(potential, n), batch)
        errors[n] = float((gradient - exact).norm() / exact.norm())
    assert errors[128] < 1e-2
    # The error falls as the grid is refined: it is interpolation, not a wrong derivative.
    assert errors[256] < 0.5 * errors[128]
    assert errors[32] > 10 * errors[256]
    assert errors[256] > 0


def test_potentials_filter_table_is_part_of_the_potential(tmp_path):
    from dcase.potentials.potential import load_potential

    potential = lively(dtype=torch.float64)
    graph = _labelled(potential).graph
    exact = potential(graph)["forces"]
    tabulated = _with_knots(potential, 24)
    forces = tabulated(graph)["forces"]
    assert not torch.equal(forces, exact)
    assert torch.equal(tabulated.train()(graph)["forces"], forces)
    tabulated.save(tmp_path / "model.pt")
    assert torch.equal(load_potential(tmp_path / "model.pt")(graph)["forces"], forces)


def test_potentials_filter_table_forces_are_the_gradient_of_its_energy():
    potential = _with_knots(lively(activation="silu", dtype=torch.float64), 40)
    graph = _labelled(potential, 1).graph
    forces = potential(graph)["forces"].numpy()
    direction = np.random.default_rng(0).normal(size=forces.shape)
    h = 1e-3

    def energy(t):
        moved = build_graph(
            graph.numbers.numpy(), graph.positions.numpy() + t * direction, potential.cutoff
        )
        return float(potential(moved)["energy"][0])

    slope = (8 * (energy(h) - energy(-h)) - energy(2 * h) + energy(-2 * h)) / (12 * h)
    assert slope == pytest.approx(-(forces * direction).sum(), rel=1e-6)


def test_potentials_filter_table_takes_the_kinks_of_irelu_filters_away():
    # With one interaction and a linear read-out the only kinks left are those of the filters: the
    # force on a pair, differentiated once more, jumps for exact IReLU filters and not for splines.
    def roughness(knots):
        potential = create_potential(
            "schnet", elements=["H"], size="tiny", num_interactions=1, filter_knots=knots, seed=1
        ).with_dtype(torch.float64)
        distances = torch.linspace(0.8, 3.6, 20001, dtype=torch.float64, requires_grad=True)
        (filters,) = potential.network._filters(distances, torch.float64)
        (slope,) = torch.autograd.grad(filters.sum(), distances, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), distances)
        return float(curvature.diff().abs().max() / curvature.abs().max())

    assert roughness(64) < 0.01 < 0.1 < roughness(0)


@pytest.mark.parametrize(
    ("architecture", "size"), [(a.name, s) for a in ARCHITECTURES.values() for s in a.sizes]
)
def test_potentials_every_size_builds_and_evaluates(architecture, size):
    potential = create_potential(architecture, elements=["H", "C", "O"], size=size)
    atoms = ethanol()
    graph = build_graph(atoms.numbers, atoms.positions, potential.cutoff)
    result = potential(graph)
    assert torch.isfinite(result["energy"]).all()
    assert result["forces"].abs().max() > 0
    for name, value in ARCHITECTURES[architecture].sizes[size].items():
        assert potential.hyper_parameters[name] == value


def test_potentials_paper_schnet_has_the_size_of_open_catalyst():
    # 3 elements x 1024 in the embedding; OCP's own has 100.
    potential = create_potential(elements=["H", "C", "O"], size="paper", activation="irelu")
    h, f, g, blocks = 1024, 256, 200, 5
    block = (g * f + f) + (f * f + f) + h * f + (f * h + h) + (h * h + h)
    expected = 3 * h + blocks * block + (h * (h // 2) + h // 2) + (h // 2 + 1)
    assert sum(p.numel() for p in potential.parameters()) == expected
    assert potential.cutoff == 6.0
