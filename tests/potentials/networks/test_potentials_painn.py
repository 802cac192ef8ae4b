"""PaiNN against the paper's equations and SchNetPack's code, and what its vectors are for."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from potential_models import crystal, ethanol, graph_of, lively

from dcase.errors import OptionError, PaperVariantWarning
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.networks.painn import SineBasis
from dcase.potentials.networks.registry import create_potential, resolve_hyper_parameters


def by_the_paper(potential, atoms):
    """Energy of a molecule, atom by atom and neighbour by neighbour, from the paper's equations."""
    net, h = potential.network, potential.hyper_parameters
    width, cutoff, n = h["hidden_channels"], h["cutoff"], len(atoms)
    x = torch.as_tensor(atoms.positions)
    weights = {name: value.detach() for name, value in net.state_dict().items()}

    def silu(z):
        return z / (1 + torch.exp(-z))

    def two_layers(name, z):
        inner = weights[f"{name}.dense.weight"] @ z + weights[f"{name}.dense.bias"]
        return weights[f"{name}.split.weight"] @ silu(inner) + weights[f"{name}.split.bias"]

    def filters(d, block):
        basis = torch.tensor(
            [math.sin(k * math.pi * d / cutoff) / d for k in range(1, h["num_radial"] + 1)],
            dtype=torch.float64,
        )
        value = weights["filters.weight"] @ basis + weights["filters.bias"]
        own = value[3 * width * block : 3 * width * (block + 1)]
        return own * 0.5 * (math.cos(math.pi * d / cutoff) + 1)

    s = [weights["embedding.weight"][potential.species_of[z]] for z in atoms.numbers]
    v = [torch.zeros(3, width, dtype=torch.float64) for _ in range(n)]
    for block in range(h["num_interactions"]):
        new_s, new_v = [row.clone() for row in s], [rows.clone() for rows in v]
        for i in range(n):
            for j in range(n):
                r = x[j] - x[i]
                d = float(r.norm())
                if i == j or d >= cutoff:
                    continue
                part = two_layers(f"messages.{block}", s[j]) * filters(d, block)
                new_s[i] += part[:width]
                for c in range(3):
                    new_v[i][c] += part[width : 2 * width] * r[c] / d
                    new_v[i][c] += part[2 * width :] * v[j][c]
        s, v = new_s, new_v
        mix = weights[f"updates.{block}.mix.weight"]
        for i in range(n):
            by_v = torch.stack([mix[:width] @ v[i][c] for c in range(3)])
            by_u = torch.stack([mix[width:] @ v[i][c] for c in range(3)])
            length = torch.sqrt((by_v**2).sum(0) + net.softening**2)
            a = two_layers(f"updates.{block}", torch.cat([s[i], length]))
            s[i] = s[i] + a[:width] + a[2 * width :] * (by_u * by_v).sum(0)
            v[i] = v[i] + a[width : 2 * width] * by_u
    energy = torch.zeros((), dtype=torch.float64)
    for row in s:
        inner = silu(weights["out_in.weight"] @ row + weights["out_in.bias"])
        energy += (weights["out.weight"] @ inner + weights["out.bias"])[0]
    return float(energy)


def painn(activation="silu", **options):
    return lively("painn", activation, **{"dtype": torch.float64, **options})


@pytest.mark.parametrize("options", [{}, {"num_interactions": 1}, {"num_interactions": 3}], ids=str)
def test_energy_is_that_of_the_papers_equations(options):
    potential = painn(**options)
    graph = graph_of(potential, ethanol())
    found = float(potential.network(potential.species(graph.numbers), graph).sum().detach())
    assert found == pytest.approx(by_the_paper(potential, ethanol()), rel=1e-12)


def test_energies_and_forces_are_those_of_schnetpack():
    """In SchNetPack's environment (make peer-schnetpack), or wherever it is installed."""
    schnetpack = pytest.importorskip("schnetpack")
    from schnetpack import properties

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaperVariantWarning)
        potential = painn(size="md17", variant="paper")
    own, h = potential.network, potential.hyper_parameters
    twin = schnetpack.representation.PaiNN(
        n_atom_basis=h["hidden_channels"],
        n_interactions=h["num_interactions"],
        radial_basis=schnetpack.nn.BesselRBF(h["num_radial"], h["cutoff"]),
        cutoff_fn=schnetpack.nn.CosineCutoff(h["cutoff"]),
        activation=torch.nn.functional.silu,
        epsilon=own.softening**2,
    ).double()
    with torch.no_grad():
        twin.embedding.weight[potential.elements] = own.embedding.weight
        twin.filter_net.load_state_dict(own.filters.state_dict())
        for theirs, ours in zip(twin.interactions, own.messages, strict=True):
            theirs.interatomic_context_net[0].load_state_dict(ours.dense.state_dict())
            theirs.interatomic_context_net[1].load_state_dict(ours.split.state_dict())
        for theirs, ours in zip(twin.mixing, own.updates, strict=True):
            theirs.mu_channel_mix.load_state_dict(ours.mix.state_dict())
            theirs.intraatomic_context_net[0].load_state_dict(ours.dense.state_dict())
            theirs.intraatomic_context_net[1].load_state_dict(ours.split.state_dict())
    # float64 frequencies: theirs are rounded to float32 when they are made
    n = torch.arange(1, h["num_radial"] + 1, dtype=torch.float64)
    twin.radial_basis.freqs = n * math.pi / h["cutoff"]
    graph = graph_of(potential, ethanol())
    x = graph.positions.clone().requires_grad_(True)
    i, j = torch.cat([graph.pairs, graph.pairs.flip(0)], dim=1)
    out = twin(
        {
            properties.Z: graph.numbers,
            properties.idx_i: i,
            properties.idx_j: j,
            properties.Rij: x[j] - x[i],
        }
    )
    scalar = out["scalar_representation"]
    wanted = own.out(own.out_act(own.out_in(scalar))).sum()
    (gradient,) = torch.autograd.grad(wanted, x)
    energies, forces = potential.energies_and_forces(graph)
    torch.testing.assert_close(energies.sum(), wanted, rtol=1e-10, atol=0)
    torch.testing.assert_close(forces, -gradient, rtol=0, atol=1e-10 * float(gradient.abs().max()))


def test_basis_is_the_papers_and_regular_at_zero():
    basis = SineBasis(5.0, 4)
    d = torch.tensor([0.0, 1e-9, 1.3, 5.0], dtype=torch.float64)
    n = torch.arange(1, 5, dtype=torch.float64)
    found = basis(d)
    torch.testing.assert_close(found[2], torch.sin(n * math.pi * 1.3 / 5.0) / 1.3)
    torch.testing.assert_close(found[0], n * math.pi / 5.0)  # the limit
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[3], torch.zeros(4, dtype=torch.float64), atol=1e-15, rtol=0)


def test_filters_on_splines_converge_to_the_formula():
    """With the fourth power of the spacing, as cubic splines do."""
    exact = painn()
    d = torch.linspace(0.6, 3.9, 301, dtype=torch.float64)
    wanted = exact.network.exact_filters(d, torch.float64)
    errors = []
    for knots in (64, 128, 256):
        splined = painn(filter_knots=knots)
        splined.network.load_state_dict(exact.network.state_dict())
        error = splined.network._filters(d, torch.float64) - wanted
        errors.append(float(error.detach().abs().max()))
    assert errors[0] < 1e-3 * float(wanted.detach().abs().max())
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.25)


def test_what_the_filters_table_holds_is_the_spline_of_the_formula():
    potential = painn(filter_knots=40)
    net = potential.network
    at_knots = net.exact_filters(net.table.knots, torch.float64)
    torch.testing.assert_close(net.filter_table(), net.table.coefficients(at_knots))


def bent(angle, distance=1.1):
    """Three atoms, the outer two at one distance from the middle one."""
    c, s = math.cos(angle), math.sin(angle)
    return Atoms("OHH", distance * np.array([[0, 0, 0], [1, 0, 0], [c, s, 0]]))


@pytest.mark.physics
def test_vectors_see_angles_that_no_distance_shows():
    """Neighbours beyond each other's cutoff: only the directions to them differ."""
    potential = painn(num_interactions=1, cutoff=1.5)

    def energies(angle):
        atoms = bent(angle)
        graph = graph_of(potential, atoms)
        assert graph.pairs.shape[1] == 2
        return potential(graph)["energies"]

    wide, wider = energies(1.9), energies(2.6)
    assert abs(float(wide[0] - wider[0])) > 1e-3  # of the middle atom
    torch.testing.assert_close(wide[1:], wider[1:], rtol=0, atol=1e-10)
    schnet = lively(activation="ssp", dtype=torch.float64, num_interactions=1, cutoff=1.5)
    blind = [schnet(graph_of(schnet, bent(angle)))["energies"] for angle in (1.9, 2.6)]
    torch.testing.assert_close(*blind, rtol=0, atol=1e-10)


@pytest.mark.physics
def test_vector_features_turn_with_the_molecule():
    potential = painn()
    net, atoms = potential.network, ethanol()
    kept = []
    for update in net.updates:
        update.register_forward_hook(lambda module, given, out: kept.append((given, out)))
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))  # may be a reflection
    for positions in (atoms.positions, atoms.positions @ turn.T):
        graph = build_graph(atoms.numbers, positions, potential.cutoff)
        net(potential.species(graph.numbers), graph)
    half = len(kept) // 2
    turn = torch.as_tensor(turn)
    for before, after in zip(kept[:half], kept[half:], strict=True):
        for (s, v), (turned_s, turned_v) in zip(before, after, strict=True):
            torch.testing.assert_close(turned_s, s, rtol=0, atol=1e-11)
            wanted = torch.einsum("xc,ncf->nxf", turn, v)
            torch.testing.assert_close(turned_v, wanted, rtol=0, atol=1e-11)
    assert float(kept[-1][0][1].detach().abs().max()) > 0.1


@pytest.mark.physics
def test_force_constants_where_vectors_vanish_by_symmetry():
    """In the middle of a linear molecule vectors are zero, and their lengths have a cusp there.

    On the scale of a vibration the curvature is one number; the published variant's is hundreds of
    times too large within 1e-4 A of the middle.
    """
    x = np.array([[0, 0, 0], [1.2, 0, 0], [-1.2, 0, 0.0]])

    def curvature(potential, h):
        forces = []
        for sign in (1, -1):
            moved = x.copy()
            moved[0, 1] += sign * h
            graph = build_graph(np.array([6, 8, 8]), moved, potential.cutoff)
            forces.append(float(potential.energies_and_forces(graph)[1][0, 1]))
        return -(forces[0] - forces[1]) / (2 * h)

    default = painn()
    assert curvature(default, 1e-5) == pytest.approx(curvature(default, 1e-2), rel=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaperVariantWarning)
        published = painn(variant="paper")
    assert abs(curvature(published, 1e-5)) > 50 * abs(curvature(published, 1e-2))


def test_own_images_and_images_of_others_count_like_atoms():
    """A cell and its doubling have the same energy for each atom."""
    potential, atoms = painn(cutoff=5.3), crystal()
    graph = graph_of(potential, atoms)
    assert bool((graph.pairs[0] == graph.pairs[1]).any())
    one = potential(graph)["energies"].sum()
    two = potential(graph_of(potential, atoms.repeat((2, 1, 1))))["energies"].sum()
    torch.testing.assert_close(two, 2 * one, rtol=1e-12, atol=0)


def test_sizes():
    """The md17 size has the paper's layers with 64 features; large is the paper's, with 128."""
    counts = {}
    for size in ("md17", "large"):
        potential = create_potential("painn", elements=[1, 6, 8], size=size, activation="silu")
        counts[size] = sum(p.numel() for p in potential.network.parameters())
        assert resolve_hyper_parameters("painn", size, {})["num_interactions"] == 3

    def expected(f, blocks=3, radial=20, elements=3):
        dense = lambda i, o: i * o + o  # noqa: E731
        block = dense(f, f) + dense(f, 3 * f) + 2 * f * f + dense(2 * f, f) + dense(f, 3 * f)
        return (
            elements * f + dense(radial, 3 * f * blocks) + blocks * block
            + dense(f, f // 2) + dense(f // 2, 1)
        )  # fmt: skip

    assert counts == {"md17": expected(64), "large": expected(128)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_channels": 1}, "hidden_channels must be at least 2"),
        ({"num_interactions": 0}, "num_interactions must be at least 1"),
        ({"num_radial": 0}, "num_radial must be at least 1"),
        ({"softening": 0.0}, "softening must be positive"),
        ({"softening": math.nan}, "softening must be a finite number"),
        ({"cutoff": -1.0}, "cutoff must be positive"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        create_potential("painn", elements=[1], size="tiny", **options)
