"""GemNet-T: every layer against loops, and the whole network against a plain one with angles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.polynomial import legendre as numpy_legendre
from potential_models import crystal, ethanol, lively

from dcase.activations import get_activation
from dcase.errors import OptionError, PaperVariantWarning
from dcase.md_runs.checks import conformance as checks
from dcase.potentials.graphs.edges import directed_edges, triplets
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.networks.gemnet.blocks import EdgeFeatures
from dcase.potentials.networks.gemnet.layers import (
    PublishedActivation,
    Residual,
    ScaledActivation,
    he_orthogonal_,
    residuals,
)
from dcase.potentials.networks.gemnet.network import ARCHITECTURE
from dcase.potentials.networks.gemnet.triplets import CircularProjection, geometry
from dcase.potentials.networks.registry import create_potential

DTYPE = torch.float64


def _graph(atoms, cutoff):
    return build_graph(
        atoms.numbers, atoms.positions, cutoff, np.array(atoms.cell), np.array(atoms.pbc)
    )


STRUCTURES = {"molecule": ethanol, "crystal": crystal}


@pytest.fixture(params=list(STRUCTURES))
def atoms(request):
    return STRUCTURES[request.param](seed=1)


def _randn(*shape, seed=0):
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------
# Layers


@pytest.mark.parametrize(("n_out", "n_in"), [(64, 64), (16, 48), (96, 32), (1, 40)])
def test_potentials_gemnet_he_orthogonal_rows(n_out, n_in):
    torch.manual_seed(0)
    weight = he_orthogonal_(torch.empty(n_out, n_in, dtype=DTYPE))
    assert weight.mean(1).abs().max() < 1e-12
    assert torch.allclose(weight.var(1), torch.full((n_out,), 1 / n_in, dtype=DTYPE))
    # Rows that no longer see the mean are orthogonal up to it; independent rows are not.
    if 1 < n_out <= n_in:
        cosines = weight @ weight.T / weight.square().sum(1)
        off = cosines[~torch.eye(n_out, dtype=torch.bool)].square().mean().sqrt()
        assert off < 0.4 / math.sqrt(n_in)


QUADRATIC = ["irelu", "log_cosh", "isilu"]


@pytest.mark.parametrize("activation", ["silu", "ssp", "softplus", "sigmoid", *QUADRATIC])
def test_potentials_gemnet_activations_keep_unit_variance_and_zero(activation):
    act = ScaledActivation(activation)
    x = _randn(1000, 300)
    assert float(act(x).square().mean()) == pytest.approx(1.0, abs=0.02)
    zero = torch.zeros(3, 2, dtype=DTYPE, requires_grad=True)
    assert act(zero).abs().max() < 1e-15
    (slope,) = torch.autograd.grad(act(zero).sum(), zero)
    assert slope.min() > 0.1  # there is a linear term


@pytest.mark.parametrize("activation", ["silu", *QUADRATIC])
def test_potentials_gemnet_activations_do_not_grow_faster_than_linearly(activation):
    # d ln Var_out / d ln Var_in: what a deep stack raises to the power of its depth. 2 for IReLU.
    act, x = ScaledActivation(activation), _randn(300, 300)

    def variance(q):
        return float(act(x * math.sqrt(q)).square().mean())

    for q in (0.1, 1.0, 10.0, 1e6):
        slope = math.log(variance(1.01 * q) / variance(0.99 * q)) / math.log(1.01 / 0.99)
        assert 0.9 < slope < 1.25


def test_potentials_gemnet_activation_closed_forms():
    act = ScaledActivation("silu")
    assert act.gain == pytest.approx(1 / 0.6, rel=0.01)
    x = torch.linspace(-4, 4, 80, dtype=DTYPE)
    assert torch.allclose(act(x), act.gain * x / (1 + torch.exp(-x)))
    # IReLU(y + 1) - IReLU(1) is y + y^2/2 above -1 and -1/2 below; y is x over its r.m.s.
    act = ScaledActivation("irelu")
    r = torch.sqrt((x.square().mean() + 0.1) / 1.1)
    y = x / r
    expected = torch.where(y > -1, y + 0.5 * y * y, torch.full_like(y, -0.5))
    assert torch.allclose(act(x), act.gain * r * expected)
    # E[(z + z^2/2)^2] over z > -1 and 1/4 below: by parts with n(1), N(1).
    pdf, cdf = math.exp(-0.5) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    power = (cdf - pdf) + (2 * pdf + pdf) + (3 * cdf - pdf - 3 * pdf) / 4 + (1 - cdf) / 4
    assert act.gain == pytest.approx(1 / math.sqrt(power), rel=1e-6)


def test_potentials_gemnet_residual_keeps_variance():
    torch.manual_seed(0)
    layer = Residual(256, ScaledActivation("silu"))
    x = torch.randn(4000, 256, generator=torch.Generator().manual_seed(1))
    # Skip and branch are independent: (1 + 1) / 2, less what the centred rows of the second weight
    # do not see, the first layer's mean (0.21 / 0.6)^2.
    branch = 1 - (0.2066 / 0.596) ** 2
    expected = (1 + branch) / 2
    assert float(layer(x).detach().square().mean()) == pytest.approx(expected, abs=0.03)


def test_potentials_gemnet_deep_stacks_of_irelu_do_not_explode():
    # 12 residual layers; some inputs are three times as large as others, as edges and atoms are.
    factors = torch.linspace(0.7, 2.1, 64, dtype=DTYPE)
    x = _randn(64, 48) * factors[:, None]

    def growth(act):
        torch.manual_seed(0)
        layers = residuals(12, 48, act).to(DTYPE)
        with torch.no_grad():
            return layers(x).square().mean(1) / x.square().mean(1)

    scaled, silu = growth(ScaledActivation("irelu")), growth(ScaledActivation("silu"))
    assert 0.1 * silu.mean() < scaled.mean() < 10 * silu.mean()
    assert scaled.max() < 10
    # Control: with the right gain alone the large ones explode.
    plain = PublishedActivation("irelu")
    plain.gain = math.sqrt(8 / 3)
    assert not growth(plain).max() < 1e10


def _plain_harmonics(angles, count):
    """Y_l0 of angles, from numpy's Legendre series."""
    values = [
        math.sqrt((2 * order + 1) / (4 * math.pi))
        * numpy_legendre.legval(np.cos(angles), np.eye(count)[order])
        for order in range(count)
    ]
    return np.stack(values, axis=-1)


def test_potentials_gemnet_sum_over_triplets(atoms):
    graph = _graph(atoms, 3.5)
    edges = directed_edges(graph)
    shape = geometry(edges, graph, 5, DTYPE)
    x = _randn(len(edges), 3)
    found = shape.sum_over_triplets(x)
    unit = edges.unit_vectors().numpy()
    expected = np.zeros((len(edges), 5, 3))
    for ca in range(len(edges)):
        for ba in range(len(edges)):
            if ba != ca and edges.target[ba] == edges.target[ca]:
                angle = math.acos(np.clip(unit[ca] @ unit[ba], -1, 1))
                expected[ca] += _plain_harmonics(angle, 5)[:, None] * x[ba].numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    if graph.shifts is not None:  # two images of one atom are two neighbours of each other
        into = [tuple(p) for p in torch.stack([edges.source, edges.target]).T.tolist()]
        assert len(set(into)) < len(into)


def test_potentials_gemnet_circular_projection():
    layer = CircularProjection(num_radial=4, num_spherical=3, emb_size=2).to(DTYPE)
    radial = _randn(5, 4)
    weight = layer.weight.detach().view(2, 3, 4)
    expected = torch.einsum("cln,pn->pcl", weight, radial)
    assert torch.allclose(layer(radial), expected)


def test_potentials_gemnet_edge_features_are_a_dense_layer_of_the_concatenation(atoms):
    graph = _graph(atoms, 3.5)
    edges = directed_edges(graph)
    shape = geometry(edges, graph, 1, DTYPE)
    layer = EdgeFeatures(4, 3, 6, ScaledActivation("silu")).to(DTYPE)
    h, x = _randn(len(atoms), 4), _randn(2, len(edges) // 2, 3, seed=1)
    both = torch.cat([h[edges.source], h[edges.target], x.flatten(0, 1)], dim=1)
    expected = layer.act(both @ layer.weight.T)
    assert torch.allclose(layer(h, x, shape).flatten(0, 1), expected)


# ------------------------------------------------------------------------------------------------
# The network against one with a list of triplets


def _reference_energies(network, species, graph, radial_basis):
    """Per-atom energies, edge by edge and triplet by triplet, with arc cosines."""
    edges = directed_edges(graph)
    source, target, d = edges.source, edges.target, edges.distances
    half = len(edges) // 2
    swap = (torch.arange(len(edges)) + half) % len(edges)
    unit = edges.vectors / d[:, None]
    ba, ca = triplets(edges, graph.n_atoms)
    angle = torch.acos((unit[ba] * unit[ca]).sum(1))
    n_spherical = network.num_spherical
    x = torch.cos(angle)
    polynomials = [torch.ones_like(x), x, (3 * x**2 - 1) / 2, (5 * x**3 - 3 * x) / 2]
    spherical = torch.stack(
        [
            math.sqrt((2 * order + 1) / (4 * math.pi)) * polynomials[order]
            for order in range(n_spherical)
        ],
        dim=1,
    )
    scaled = d / network.cutoff
    envelope = 1 - 21 * scaled**5 + 35 * scaled**6 - 15 * scaled**7
    if radial_basis == "bessel":
        n = network.basis.frequencies
        basis = math.sqrt(2 / network.cutoff**3) * torch.sin(n * scaled[:, None]) / scaled[:, None]
    else:
        mu = torch.linspace(0, 1, network.basis.centres.numel(), dtype=DTYPE)
        basis = torch.exp(-0.5 * ((scaled[:, None] - mu) / (mu[1] - mu[0])) ** 2)
    rbf = basis * envelope[:, None]

    def dense(layer, value):
        return layer.act(value @ layer.linear.weight.T)

    def residual(layers, value):
        for layer in layers:
            value = (value + dense(layer.second, dense(layer.first, value))) / math.sqrt(2)
        return value

    def into_atoms(block, m, down):
        weighted = m * (rbf @ down.weight.T @ block.mlp_rbf.weight.T)
        total = torch.zeros(graph.n_atoms, m.shape[1], dtype=DTYPE)
        for e in range(len(edges)):
            total[target[e]] = total[target[e]] + weighted[e]
        return residual(block.residuals, dense(block.dense, total * block.scale_sum.factor))

    def triplet_part(block, m):
        y = dense(block.dense_ba, m)
        y = y * (rbf @ network.rbf_triplets.weight.T @ block.mlp_rbf.weight.T)
        y = dense(block.down, y * block.scale_rbf.factor)
        n_cbf = network.cbf_triplets.emb_size
        weight = network.cbf_triplets.weight.view(n_cbf, n_spherical, -1)
        circular = torch.einsum("cln,tn,tl->tc", weight, rbf[ca], spherical)
        kernel = block.bilinear.weight.view(-1, n_cbf, y.shape[1])
        each = torch.einsum("oci,tc,ti->to", kernel, circular, y[ba])
        total = torch.zeros(len(edges), each.shape[1], dtype=DTYPE).index_add(0, ca, each)
        total = total * block.scale_cbf.factor
        return (dense(block.up_ca, total) + dense(block.up_ac, total)[swap]) / math.sqrt(2)

    def features(layer, h, value):
        both = torch.cat([h[source], h[target], value], dim=1)
        return layer.act(both @ layer.weight.T)

    h = network.embedding(species)
    m = features(network.edges, h, rbf)
    energies = network.outputs[0].energy(into_atoms(network.outputs[0], m, network.rbf_output))
    for block, output in zip(network.blocks, network.outputs[1:], strict=True):
        new = (dense(block.dense_ca, m) + triplet_part(block.triplets, m)) / math.sqrt(2)
        m = (m + residual(block.before_skip, new)) / math.sqrt(2)
        m = residual(block.after_skip, m)
        h = (h + into_atoms(block.atom_update, m, network.rbf_atoms)) / math.sqrt(2)
        m = (m + residual(block.after_concat, features(block.concat, h, m))) / math.sqrt(2)
        energies = energies + output.energy(into_atoms(output, m, network.rbf_output))
    return energies.squeeze(1)


@pytest.mark.parametrize("radial_basis", ["bessel", "gaussian"])
@pytest.mark.parametrize("placement", ["published", "all"])
def test_potentials_gemnet_equals_a_plain_list_of_triplets(atoms, radial_basis, placement):
    potential = lively(
        "gemnet-t", dtype=DTYPE, radial_basis=radial_basis, num_gaussians=9, placement=placement,
        num_interactions=2, num_before_skip=2, num_after_skip=0,
    )  # fmt: skip
    with torch.no_grad():
        for k, factor in enumerate(potential.network.modules()):
            if hasattr(factor, "factor"):
                factor.factor.fill_(0.7 + 0.05 * k)
    graph = _graph(atoms, potential.cutoff)
    positions = graph.positions.clone().requires_grad_(True)
    graph = type(graph)(**{**vars(graph), "positions": positions})
    species = potential.species_of[graph.numbers]
    found = potential.network(species, graph)
    expected = _reference_energies(potential.network, species, graph, radial_basis)
    size = expected.abs().max()
    assert (found - expected).abs().max() < 1e-11 * size
    (ours,) = torch.autograd.grad(found.sum(), positions)
    (theirs,) = torch.autograd.grad(expected.sum(), positions)
    assert (ours - theirs).abs().max() < 1e-9 * theirs.abs().max()


def test_potentials_gemnet_straight_angles_are_smooth():
    # Acetylene: 180 degrees at both carbons, where an arc cosine has no derivative.
    atoms = Atoms("HCCH", positions=[[0, 0, -1.66], [0, 0, -0.6], [0, 0, 0.6], [0, 0, 1.66]])
    potential = lively("gemnet-t", "silu", dtype=DTYPE, elements=["H", "C"])
    graph = _graph(atoms, potential.cutoff)
    graph = type(graph)(**{**vars(graph), "positions": graph.positions.requires_grad_(True)})
    energy = potential.energies(graph).sum()
    (gradient,) = torch.autograd.grad(energy, graph.positions, create_graph=True)
    assert gradient[:, :2].abs().max() < 1e-12  # by symmetry
    # The bend's force constant, which training and vibrations need: finite, and as by differences.
    (row,) = torch.autograd.grad(gradient[0, 0], graph.positions)

    def force(step):
        moved = graph.positions.detach().clone()
        moved[0, 0] += step
        moved = type(graph)(**{**vars(graph), "positions": moved.requires_grad_(True)})
        return torch.autograd.grad(potential.energies(moved).sum(), moved.positions)[0][0, 0]

    assert float(row[0, 0]) == pytest.approx(float(force(1e-4) - force(-1e-4)) / 2e-4, rel=1e-5)


def test_potentials_gemnet_keeps_every_neighbour_and_triplet():
    # 60 neighbours: the published code keeps 50.
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(60, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    positions = np.concatenate([np.zeros((1, 3)), directions * rng.uniform(2.0, 3.0, (60, 1))])
    potential = lively("gemnet-t", "silu", dtype=DTYPE)
    graph = build_graph(np.ones(61, dtype=int), positions, potential.cutoff)
    alone = lively("gemnet-t", "silu", dtype=DTYPE).network
    shape = geometry(directed_edges(graph), graph, 2, DTYPE)
    assert shape.near.width == 60
    species = torch.zeros(61, dtype=torch.int64)
    graph = type(graph)(**{**vars(graph), "positions": graph.positions.requires_grad_(True)})
    (gradient,) = torch.autograd.grad(alone(species, graph)[0], graph.positions)
    assert (gradient[1:].norm(dim=1) > 0).all()  # the first atom's energy feels all of them


@pytest.mark.parametrize("placement", ["published", "all"])
@pytest.mark.parametrize("activation", ["softplus", "sigmoid", "irelu"])
def test_potentials_gemnet_edges_vanish_at_the_cutoff(activation, placement):
    # Activations that are not 0 at 0 would let an edge into the sum over triplets at full weight.
    potential = lively("gemnet-t", activation, dtype=DTYPE, placement=placement)
    atoms = Atoms("CHO", positions=[[0, 0, 0], [1.1, 0, 0], [0, 0, 0]])
    energies = []
    for step in (-1e-4, 1e-4):
        atoms.positions[2] = [0, potential.cutoff + step, 0]
        atoms.positions[2, 0] = 0.3 * step  # H stays beyond the cutoff of O's other neighbours
        energies.append(float(potential(_graph(atoms, potential.cutoff))["energy"][0]))
    assert abs(energies[1] - energies[0]) < 1e-9
    atoms.positions[2] = [0, potential.cutoff - 1.0, 0]
    inside = float(potential(_graph(atoms, potential.cutoff))["energy"][0])
    assert abs(inside - energies[1]) > 1e-5  # control: inside it does count


def test_potentials_gemnet_lone_atoms_have_no_energy():
    potential = lively("gemnet-t", "softplus", dtype=DTYPE, placement="all")
    lone = _graph(Atoms("H"), potential.cutoff)
    assert potential.atom_energies(lone).tolist() == [0.0]
    far = Atoms("HOH", positions=[[0, 0, 0], [1, 0, 0], [50, 0, 0]])
    energies = potential.atom_energies(_graph(far, potential.cutoff))
    assert energies[2] == 0
    assert energies[0] != 0


def test_potentials_gemnet_lone_atoms_are_the_same_alone_and_beside_others():
    # Published activations that are not 0 at 0 give an atom that no message reaches an energy.
    with pytest.warns(PaperVariantWarning):
        potential = lively("gemnet-t", "softplus", dtype=DTYPE, variant="paper")
    alone = potential.atom_energies(_graph(Atoms("H"), potential.cutoff)).tolist()
    far = Atoms("HOH", positions=[[0, 0, 0], [1, 0, 0], [50, 0, 0]])
    beside = potential.atom_energies(_graph(far, potential.cutoff)).tolist()
    assert alone[0] != 0
    assert beside[2] == pytest.approx(alone[0], rel=1e-12)
    energies, forces = potential.energies_and_forces(_graph(Atoms("H"), potential.cutoff))
    assert energies.shape == (1,)
    assert forces.tolist() == [[0.0, 0.0, 0.0]]


def test_potentials_gemnet_relu_is_no_square():
    act = ScaledActivation("relu")
    assert act.gain == pytest.approx(math.sqrt(2.0))
    assert torch.equal(act(torch.tensor([-2.0, 0.0, 1.0])), torch.tensor([0.0, 0.0, act.gain]))


@pytest.mark.physics
@pytest.mark.slow
def test_potentials_gemnet_conforms_on_a_crystal_with_irelu_everywhere():
    results = checks.run_checks(lively("gemnet-t", placement="all"), crystal())
    assert [r for r in results if not r.passed] == [], checks.format_table(results)


# ------------------------------------------------------------------------------------------------
# Options


def test_potentials_gemnet_placement():
    def names(placement, variant="default"):
        network = create_potential(
            "gemnet-t", elements=["H"], size="tiny", placement=placement, variant=variant
        ).network
        inner = type(network.blocks[0].dense_ca.act.act), type(network.edges.act.act)
        return {*inner}, type(network.outputs[0].dense.act.act)

    irelu, silu = (type(get_activation(name)) for name in ("irelu", "silu"))
    assert names("published") == ({silu}, irelu)
    assert names("all") == ({irelu}, irelu)


def test_potentials_gemnet_paper_variant_is_the_published_one():
    with pytest.warns(PaperVariantWarning, match="scale factors fitted on OC20"):
        potential = create_potential("gemnet-t", elements=["H"], size="tiny", variant="paper")
    network = potential.network
    # Open Catalyst's gemnet-dT.json.
    assert float(network.blocks[0].triplets.scale_rbf.factor) == pytest.approx(18.873615)
    assert float(network.outputs[1].scale_sum.factor) == pytest.approx(1.1077653)
    x = torch.tensor([2.0])
    assert float(network.outputs[0].dense.act(x)) == pytest.approx(2.0)  # 0.5 * 2^2, no gain
    silu = 2 / (1 + math.exp(-2))
    assert float(network.edges.act(x)) == pytest.approx(silu / 0.6)


@pytest.mark.slow
def test_potentials_gemnet_paper_size():
    potential = create_potential("gemnet-t", elements=["H", "C", "O"], size="paper")
    a = e = 512
    trip = bil = 64
    rbf = cbf = 16
    n, spherical = 128, 7
    shared = 3 * n * rbf + spherical * n * cbf + 3 * a + (2 * a + n) * e
    update = rbf * e + e * a + 3 * 2 * a * a
    output = update + a
    triplet = e * e + rbf * e + e * trip + cbf * trip * bil + 2 * bil * e
    block = e * e + triplet + (1 + 2) * 2 * e * e + update + (2 * a + e) * e + 2 * e * e
    expected = shared + 4 * output + 3 * block
    assert sum(p.numel() for p in potential.parameters()) == expected
    assert potential.cutoff == 6.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"emb_size_trip": 0}, "emb_size_trip must be at least 1, got 0"),
        ({"num_interactions": -1}, "num_interactions must be at least 0, got -1"),
        ({"num_gaussians": 1}, "num_gaussians must be at least 2"),
        ({"envelope_exponent": 1}, "envelope_exponent must be at least 2"),
        ({"num_spherical": 0}, "num_spherical must be at least 1"),
        ({"cutoff": 0.0}, "cutoff must be positive"),
        ({"radial_basis": "fourier"}, "radial_basis must be bessel or gaussian, got 'fourier'"),
    ],
)
def test_potentials_gemnet_impossible_values_are_refused(options, match):
    with pytest.raises(OptionError, match=match) as caught:
        create_potential("gemnet-t", elements=["H"], size="tiny", **options)
    assert "\n" not in str(caught.value)


def test_potentials_gemnet_names():
    for name in ("gemnet-t", "gemnet", "gemnet_t", "GemNet"):
        potential = create_potential(name, elements=["H"], size="tiny", activation="original")
        assert potential.architecture == "gemnet-t"
        assert potential.hyper_parameters["activation"] == "silu"
    assert set(ARCHITECTURE.sizes) == {"paper", "md17", "tiny"}
