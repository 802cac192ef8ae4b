"""The compiled form of CGCNN, DimeNet++, ForceNet and GemNet-T against PyTorch and autograd."""

from __future__ import annotations

import pickle
import threading
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from potential_models import crystal, ethanol, graph_of, lively, lively_as_trained

from dcase import DCCalculator
from dcase.errors import OptionError, PaperVariantWarning
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.kernels import layout
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.kernels.deployed import deploy
from dcase.potentials.kernels.layout import EDGES, OPERATIONS
from dcase.potentials.kernels.tables import coefficients, fine_enough

ARCHITECTURES = ("cgcnn", "dimenet++", "forcenet", "gemnet-t")

pytestmark = pytest.mark.skipif(
    not available(torch.float64, "edge_network"), reason="no C compiler works here"
)


def exact(architecture, **options):
    return lively(architecture, dtype=torch.float64, **options)


def pairs_of(potential, atoms, skin=0.7):
    """Pairs that reach beyond the cutoff, and the vectors between their cells."""
    graph = build_graph(
        atoms.numbers, atoms.positions, potential.cutoff + skin, atoms.cell.array, atoms.pbc
    )
    offsets = None if graph.shifts is None else graph.shifts.numpy() @ atoms.cell.array
    return graph.pairs.numpy(), offsets


def predict(potential, atoms):
    return deploy(potential, tabulate=True)(
        atoms.numbers, atoms.positions, *pairs_of(potential, atoms)
    )


def assert_same(potential, atoms, energies=1e-7, forces=2e-6):
    """Relative to the largest; the splines are good to 1e-8, their derivatives to 1e-6."""
    graph = graph_of(potential, atoms)
    wanted, found = potential(graph), predict(potential, atoms)
    offsets = potential.offsets[graph.numbers].numpy()
    ours, theirs = found.energies[0] - offsets, wanted["energies"].numpy() - offsets
    assert np.abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=energies * np.abs(theirs).max())
    size = np.abs(wanted["forces"].numpy()).max()
    assert size > 1e-2
    np.testing.assert_allclose(
        found.forces[0], wanted["forces"].numpy(), rtol=0, atol=forces * size
    )
    counts = torch.bincount(graph.pairs.flatten(), minlength=len(atoms))
    np.testing.assert_array_equal(found.neighbours, counts.numpy())


# One of each way to evaluate an activation: by a formula, by a table, and by formulas with a square
# at the origin, which some places divide by the size of their features.
@pytest.mark.parametrize("activation", ["silu", "isilu", "irelu"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_is_the_potential(architecture, activation):
    potential = exact(architecture, activation=activation)
    for atoms in (ethanol(), crystal()):
        assert_same(potential, atoms)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_with_atoms_beside_their_own_images(architecture):
    potential = exact(architecture, activation="ssp", cutoff=5.3)
    pairs = graph_of(potential, crystal()).pairs
    assert bool((pairs[0] == pairs[1]).any())
    assert_same(potential, crystal())


@pytest.mark.parametrize("activation", ["irelu", "ssp", "silu"])
@pytest.mark.parametrize("architecture", ["cgcnn", "dimenet++", "gemnet-t"])
def test_compiled_with_the_activation_everywhere(architecture, activation):
    assert_same(exact(architecture, activation=activation, placement="all"), ethanol())


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("cgcnn", {"hidden_channels": 13, "num_gaussians": 7, "fc_channels": 5}),
        ("cgcnn", {"hidden_channels": 70, "num_fc_layers": 1, "num_interactions": 1}),
        ("dimenet++", {"num_interactions": 0}),
        ("dimenet++", {"int_emb_size": 19, "num_spherical": 9, "hidden_channels": 37}),
        ("dimenet++", {"num_before_skip": 0, "num_after_skip": 0, "num_output_layers": 0}),
        ("dimenet++", {"num_spherical": 1, "num_radial": 1, "out_emb_channels": 21}),
        ("forcenet", {"max_n": 1, "hidden_channels": 33}),
        ("forcenet", {"max_n": 5, "depth_mlp_node": 0, "depth_mlp_edge": 1}),
        ("forcenet", {"depth_mlp_edge": 0, "depth_mlp_node": 2}),
        ("gemnet-t", {"emb_size_trip": 11, "emb_size_cbf": 3, "num_spherical": 9}),
        ("gemnet-t", {"emb_size_edge": 37, "emb_size_atom": 21, "num_concat": 0, "num_atom": 0}),
        ("gemnet-t", {"num_interactions": 2, "num_before_skip": 0, "num_after_skip": 0}),
        ("gemnet-t", {"num_interactions": 3, "emb_size_bil_trip": 5}),
    ],
    ids=str,
)
def test_compiled_shapes_that_fill_no_vector(architecture, options):
    potential = exact(architecture, activation="silu", **options)
    for atoms in (ethanol(), ethanol()[:2]):
        assert_same(potential, atoms)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("cgcnn", {"denormalize": False}),
        ("forcenet", {"denormalize": False}),
        ("gemnet-t", {"variant": "paper"}),
        ("gemnet-t", {"variant": "paper", "activation": "softplus"}),
        ("gemnet-t", {"radial_basis": "gaussian", "num_gaussians": 24}),
    ],
    ids=str,
)
def test_compiled_variants(architecture, options):
    assert_same(lively_as_trained(architecture, **options), ethanol())


def test_scale_factors_of_gemnet_are_in_the_compiled_form():
    potential = exact("gemnet-t")
    for n, module in enumerate(potential.network.modules()):
        if hasattr(module, "fitted"):
            module.factor.fill_(0.7 + 0.01 * (n % 40))
    assert_same(potential, ethanol())


@pytest.mark.physics
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_forces_are_derivatives(architecture):
    atoms = crystal()
    potential = exact(architecture, activation="silu")
    atoms.calc = DCCalculator(potential, dtype="float64", optimize=True)
    assert atoms.calc.deployed is not None
    size = np.abs(atoms.get_forces()).max()
    numerical = calculate_numerical_forces(atoms, eps=2e-5)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=1e-6 * max(size, 1.0))
    np.testing.assert_allclose(
        atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-6
    )


@pytest.mark.physics
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_energy_is_smooth_where_a_pair_leaves(architecture):
    """The jump of the energy, and of the force, as a pair crosses the cutoff."""
    potential = exact(architecture, activation="silu")
    deployed = deploy(potential, tabulate=True)
    atoms = ethanol()[:3]
    energies, forces = [], []
    for beyond in (-1e-7, 1e-7):
        atoms.positions = [[0, 0, 0], [1.1, 0.3, 0], [potential.cutoff + beyond, 0, 0]]
        pairs = np.array([[0, 0, 1], [1, 2, 2]])
        found = deployed(atoms.numbers, atoms.positions, pairs)
        energies.append(found.energies[0].sum())
        forces.append(found.forces[0])
        assert found.neighbours[0] == (2 if beyond < 0 else 1)
    assert abs(energies[1] - energies[0]) < 1e-6
    assert np.abs(forces[1] - forces[0]).max() < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_in_single_precision(architecture):
    potential = exact(architecture, activation="silu")
    reference = potential(graph_of(potential, crystal()))
    single = predict(potential.with_dtype(torch.float32), crystal())
    forces = reference["forces"].numpy()
    error = np.abs(single.forces[0] - forces).max()
    assert 0 < error < 2e-5 * np.abs(forces).max()
    assert abs(single.energies.sum() - float(reference["energy"])) < 1e-4  # of -4000 eV


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_without_pairs(architecture):
    potential = exact(architecture)
    for atoms in (ethanol()[:1], Atoms("HO", [[0, 0, 0], [0, 0, potential.cutoff + 0.1]])):
        found = predict(potential, atoms)
        wanted = potential(graph_of(potential, atoms))["energies"].numpy()
        np.testing.assert_allclose(found.energies[0], wanted, rtol=1e-12)
        assert not found.forces.any()
        assert not found.neighbours.any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_copies_of_a_system_in_one_call(architecture):
    """As replicas are evaluated; and nothing of one call is left for the next."""
    potential = exact(architecture)
    deployed = deploy(potential, tabulate=True)
    copies = [ethanol(seed=seed) for seed in range(3)]
    lists = [pairs_of(potential, atoms)[0] for atoms in copies]
    alone = [
        deployed(a.numbers, a.positions, pairs) for a, pairs in zip(copies, lists, strict=True)
    ]
    together = deployed(
        np.concatenate([a.numbers for a in copies]),
        np.concatenate([a.positions for a in copies]),
        np.concatenate([pairs + 9 * k for k, pairs in enumerate(lists)], axis=1),
    )
    forces = np.concatenate([p.forces for p in alone], axis=1)
    np.testing.assert_allclose(together.forces, forces, atol=1e-11 * np.abs(forces).max())
    energies = np.concatenate([p.energies for p in alone], axis=1)
    np.testing.assert_allclose(together.energies, energies, rtol=1e-13)
    again = deployed(copies[0].numbers, copies[0].positions, lists[0])
    np.testing.assert_array_equal(again.forces, alone[0].forces)
    np.testing.assert_array_equal(again.energies, alone[0].energies)


def test_threads_do_not_meet():
    """Each evaluates a system of its own, with the one kernel, in room of its own."""
    potential = exact("gemnet-t")
    deployed = deploy(potential, tabulate=True)
    systems = [ethanol(seed=1), crystal(seed=2)]
    species = potential.species_of.numpy()
    prepared = []
    for atoms in systems:
        pairs, offsets = pairs_of(potential, atoms)
        prepared.append(
            deployed.kernels[0].prepare(atoms.positions, species[atoms.numbers], pairs, offsets)
        )
    for each in prepared:
        each.evaluate()
    wanted = [each.result.forces.copy() for each in prepared]
    differences = [1.0, 1.0]

    def work(k):
        worst = 0.0
        for _ in range(50):
            prepared[k].result.forces[:] = 0
            prepared[k].evaluate()
            worst = max(worst, np.abs(prepared[k].result.forces - wanted[k]).max())
        differences[k] = worst

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differences == [0.0, 0.0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_more_threads_give_the_same(architecture):
    potential = exact(architecture)
    atoms = crystal().repeat((2, 1, 1))
    (kernel,) = deploy(potential, tabulate=True).kernels
    species = potential.species_of.numpy()[atoms.numbers]
    found = []
    for threads in (1, 3):
        prepared = kernel.prepare(atoms.positions, species, *pairs_of(potential, atoms), threads)
        prepared.evaluate()
        found.append(prepared.result)
    assert found[0].forces.any()
    np.testing.assert_array_equal(found[1].forces, found[0].forces)
    np.testing.assert_array_equal(found[1].energies, found[0].energies)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_large_systems_have_room_of_their_own(architecture, monkeypatch):
    potential = exact(architecture)
    atoms = crystal()
    shared = predict(potential, atoms)
    monkeypatch.setattr("dcase.potentials.kernels.edge_network._THREADS_ROOM", 0)
    own = predict(potential, atoms)
    np.testing.assert_array_equal(own.forces, shared.forces)


def test_calculator_takes_the_compiled_form_where_splines_are_below_rounding():
    potential = lively("cgcnn")
    calc = DCCalculator(potential)
    assert calc.deployed is not None
    assert DCCalculator(potential, dtype="float64").deployed is None
    assert DCCalculator(potential, dtype="float64", optimize=True).deployed is not None
    assert DCCalculator(potential, optimize=False).deployed is None
    assert pickle.loads(pickle.dumps(calc)).deployed is not None
    results = []
    for optimize in (None, False):
        atoms = crystal()
        atoms.calc = DCCalculator(potential, optimize=optimize)
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_has_no_compiled_form_runs_in_pytorch(architecture, monkeypatch):
    potential = lively(architecture)
    monkeypatch.setattr("dcase.potentials.kernels.atom_kernel.load_library", lambda *names: None)
    assert DCCalculator(potential).deployed is None
    with pytest.raises(OptionError, match="no C compiler"):
        DCCalculator(potential, optimize=True)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("cgcnn", {"variant": "paper"}, "paper variant"),
        ("dimenet++", {"variant": "paper"}, "paper variant"),
        ("forcenet", {"variant": "paper"}, "paper variant"),
        ("forcenet", {"basis": "gauss"}, "gauss"),
        ("forcenet", {"frames": "octahedral"}, "frames"),
        ("forcenet", {"depth_mlp_edge": 0, "denormalize": False}, "normalization"),
    ],
)
def test_networks_without_a_compiled_form(architecture, options, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaperVariantWarning)
        potential = lively(architecture, **options)
        assert DCCalculator(potential).deployed is None
    with pytest.raises(OptionError, match=message):
        deploy(potential, tabulate=True)


def test_tables_reproduce_functions_and_their_slopes():
    def waves(d):
        return torch.stack([torch.sin(3 * d), torch.exp(-d), d], dim=1)

    intervals = fine_enough(waves, 5.0)
    table = coefficients(waves, 5.0, intervals)
    h = 5.0 / intervals
    d = np.linspace(0.3, 5.0, 1001)[:-1]
    row = (d / h).astype(int)
    t = d / h - row
    o = 1 - t
    weights = np.stack([o**3, 3 * t**3 - 6 * t**2 + 4, 3 * o**3 - 6 * o**2 + 4, t**3]) / 6
    slopes = np.stack([-(o**2), 3 * t**2 - 4 * t, 4 * o - 3 * o**2, t**2]) / (2 * h)
    rows = np.stack([table[row + k] for k in range(4)])
    values = waves(torch.from_numpy(d)).numpy()
    np.testing.assert_allclose((weights[..., None] * rows).sum(0), values, atol=2e-8)
    wanted = np.stack([3 * np.cos(3 * d), -np.exp(-d), np.ones_like(d)], axis=1)
    np.testing.assert_allclose((slopes[..., None] * rows).sum(0), wanted, atol=1e-5)
    with pytest.raises(OptionError, match="do not reproduce"):
        fine_enough(lambda d: (d - 1.2345).abs().unsqueeze(1), 5.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_buffers_that_share_memory_are_not_alive_together(architecture, monkeypatch):
    """The lives of all that was put into one slot, as the layout itself sees them."""
    seen = []
    allocate = layout._allocate

    def record(lives):
        slots, table = allocate(lives)
        seen.append((lives, slots, table))
        return slots, table

    monkeypatch.setattr(layout, "_allocate", record)
    deployed = deploy(exact(architecture), tabulate=True)
    ((lives, slots, table),) = seen
    assert len(table) < len(slots)  # some do share
    by_slot = {}
    for key, slot in slots.items():
        assert (key[0].kind, key[0].width) == tuple(table[slot])
        by_slot.setdefault(slot, []).append(lives[key])
    for found in by_slot.values():
        found.sort()
        assert all(a[1] < b[0] for a, b in pairwise(found))
    # A whole chain of dense layers goes through a few rows at a time.
    steps = deployed.kernels[0]._written.program.steps
    groups = [s.group for s in steps if s.rows == EDGES and s.code == OPERATIONS.index("dense")]
    assert architecture == "cgcnn" or max(groups.count(g) for g in set(groups)) > 1
