"""Compiled forms in cells smaller than the cutoff: forces and virial against differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from potential_models import ethanol, lively

from dcase import DCCalculator
from dcase.errors import OptionError
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.kernels import atom_kernel
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.kernels.deployed import deploy
from dcase.potentials.kernels.painn import PaiNNKernel
from dcase.potentials.kernels.schnet import SchNetKernel

FORMS = {
    "schnet, its own splines": ("schnet", {"filter_knots": 48}),
    "schnet, by its networks": ("schnet", {"filter_knots": 0}),
    "schnet, tabulated": ("schnet", {"filter_knots": 0}),
    "painn, its own splines": ("painn", {"filter_knots": 48}),
    "painn, tabulated": ("painn", {}),
    "cgcnn": ("cgcnn", {}),
    "dimenet++": ("dimenet++", {}),
    "forcenet": ("forcenet", {}),
    "gemnet-t": ("gemnet-t", {}),
}
KERNELS = {"schnet": SchNetKernel, "painn": PaiNNKernel}
PERIODIC = {
    "x": (True, False, False),
    "y": (False, True, False),
    "xz": (True, False, True),
    "xyz": (True, True, True),
}
CELL = np.array([[3.1, 0.35, -0.2], [0.4, 3.4, 0.3], [-0.25, 0.5, 2.9]])
CUTOFF = 4.2

pytestmark = pytest.mark.skipif(
    not available(torch.float64, "edge_network"), reason="no C compiler works here"
)


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    architecture, options = FORMS[request.param]
    potential = lively(architecture, "silu", dtype=torch.float64, cutoff=CUTOFF, **options)
    return potential, deploy(potential, tabulate="network" not in request.param)


def small(pbc, alone=False):
    """Three atoms, or one, whose images are within the cutoff."""
    atoms = Atoms("OHC", [[0, 0, 0], [0.8, 0.5, 0.3], [-0.6, 1.1, 1.4]])[: 1 if alone else 3]
    atoms.set_cell(CELL)
    atoms.pbc = pbc
    return atoms


def listed(atoms, skin=0.3):
    graph = build_graph(atoms.numbers, atoms.positions, CUTOFF + skin, atoms.cell.array, atoms.pbc)
    pairs = graph.pairs.numpy()
    assert (pairs[0] == pairs[1]).any()
    return pairs, graph.shifts.numpy() @ atoms.cell.array


def energy(deployed, atoms, positions, pairs, offsets):
    return deployed(atoms.numbers, positions, pairs, offsets).energies[0].sum()


@pytest.mark.physics
@pytest.mark.parametrize("alone", [False, True], ids=["three atoms", "one atom"])
@pytest.mark.parametrize("pbc", PERIODIC.values(), ids=PERIODIC)
def test_virial_is_the_derivative_by_strain(form, pbc, alone):
    _, deployed = form
    atoms = small(pbc, alone)
    pairs, offsets = listed(atoms)
    found = deployed(atoms.numbers, atoms.positions, pairs, offsets)
    wanted, h = np.zeros((3, 3)), 1e-5
    for a in range(3):
        for b in range(a + 1):
            e = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += 0.5 * sign * h
                strain[b, a] += 0.5 * sign * h
                e.append(energy(deployed, atoms, atoms.positions @ strain, pairs, offsets @ strain))
            wanted[a, b] = wanted[b, a] = (e[0] - e[1]) / (2 * h)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(
        found.virial[0], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max() + 1e-6
    )


@pytest.mark.physics
@pytest.mark.parametrize("pbc", PERIODIC.values(), ids=PERIODIC)
def test_forces_are_the_derivative_by_positions(form, pbc):
    _, deployed = form
    atoms = small(pbc)
    pairs, offsets = listed(atoms)
    found = deployed(atoms.numbers, atoms.positions, pairs, offsets).forces[0]
    wanted, h = np.zeros((3, 3)), 1e-5
    for a in range(3):
        for x in range(3):
            e = []
            for sign in (1, -1):
                moved = atoms.positions.copy()
                moved[a, x] += sign * h
                e.append(energy(deployed, atoms, moved, pairs, offsets))
            wanted[a, x] = -(e[0] - e[1]) / (2 * h)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max() + 1e-6)


@pytest.mark.parametrize("pbc", PERIODIC.values(), ids=PERIODIC)
@pytest.mark.parametrize("alone", [False, True], ids=["three atoms", "one atom"])
def test_energies_and_neighbours_are_the_potentials(form, pbc, alone):
    potential, deployed = form
    atoms = small(pbc, alone)
    found = deployed(atoms.numbers, atoms.positions, *listed(atoms))
    graph = build_graph(atoms.numbers, atoms.positions, CUTOFF, atoms.cell.array, atoms.pbc)
    wanted = potential(graph)
    offsets = potential.offsets[graph.numbers].numpy()
    size = np.abs(wanted["energies"].numpy() - offsets).max()
    # Tabulated filters are right to 1e-5.
    np.testing.assert_allclose(found.energies[0], wanted["energies"], rtol=0, atol=3e-5 * size)
    counts = torch.bincount(graph.pairs.flatten(), minlength=len(atoms))
    np.testing.assert_array_equal(found.neighbours, counts.numpy())


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize(("architecture", "knots"), [("schnet", 48), ("schnet", 0), ("painn", 48)])
def test_threads_share_own_images(architecture, knots, threads):
    """Stretches of the list of pairs of one atom, and of atoms in another order in memory."""
    potential = lively(architecture, "silu", filter_knots=knots, dtype=torch.float64, cutoff=CUTOFF)
    kernel = KERNELS[architecture](potential.network, "silu")
    atoms = small((True, True, True)).repeat((2, 1, 1))
    species = potential.species_of.numpy()[atoms.numbers]
    pairs, offsets = listed(atoms)
    results = []
    for count in (1, threads):
        prepared = kernel.prepare(atoms.positions, species, pairs, offsets, count)
        prepared.evaluate()
        results.append(prepared.result)
    for name in ("energies", "forces", "virial", "neighbours", "closest"):
        one, some = (np.array(getattr(result, name)) for result in results)
        if name == "closest":
            one, some = one[:1], some[:1]
        np.testing.assert_allclose(some, one, rtol=1e-11, atol=1e-12 * np.abs(one).max())


@pytest.mark.parametrize("architecture", KERNELS)
def test_own_images_of_sorted_atoms(architecture, monkeypatch):
    potential = lively(architecture, "silu", filter_knots=48, dtype=torch.float64, cutoff=CUTOFF)
    atoms = small((True, True, True)).repeat((2, 2, 1))
    pairs, offsets = listed(atoms)
    found = []
    for at_least in (10**9, 2):
        monkeypatch.setattr(atom_kernel, "WORTH_SORTING", at_least)
        found.append(deploy(potential)(atoms.numbers, atoms.positions, pairs, offsets))
    for name in ("energies", "forces", "virial"):
        one, other = getattr(found[0], name), getattr(found[1], name)
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-11 * np.abs(one).max())


UNLIKE = {
    "architectures": [("schnet", {"filter_knots": 48}), ("cgcnn", {}), ("gemnet-t", {})],
    "sizes": [
        ("cgcnn", {"hidden_channels": 13}),
        ("cgcnn", {"num_interactions": 1}),
        ("forcenet", {}),
    ],
    "elements": [("schnet", {"elements": ["H", "C", "N", "O"]}), ("dimenet++", {})],
}


@pytest.mark.physics
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("kind", UNLIKE)
def test_ensembles_of_unlike_members(kind, periodic):
    members = [
        lively(
            name, "silu", dtype=torch.float64, cutoff=CUTOFF, seed=k + 3, force=1.0 + k, **options
        )
        for k, (name, options) in enumerate(UNLIKE[kind])
    ]
    atoms = small((True, True, True)) if periodic else ethanol()
    results = []
    for optimize in (True, False):
        calc = DCCalculator(Ensemble(members), dtype="float64", optimize=optimize)
        assert (calc.deployed is not None) == optimize
        calc.calculate(atoms)
        results.append(calc.results)
    alone = []
    for member in members:
        calc = DCCalculator(member, dtype="float64", optimize=False)
        calc.calculate(atoms)
        alone.append(calc.results)
    for found in results:
        assert ("stress" in found) == periodic
        for name in ("energy", "energies", "forces", *(["stress"] if periodic else [])):
            values = np.stack([one[name] for one in alone])
            size = np.ptp(values, axis=0).max()
            atol = 1e-5 * size
            np.testing.assert_allclose(found[name], values.mean(0), rtol=0, atol=atol)
            if f"{name}_std" in found:
                np.testing.assert_allclose(
                    found[f"{name}_std"], values.std(0, ddof=1), rtol=0, atol=atol
                )
    assert {"energy_std", "forces_std"} <= set(results[0])


def test_ensembles_of_unlike_cutoffs_are_evaluated_in_pytorch():
    """Each member with the pairs inside its own cutoff."""
    members = [
        lively(name, "silu", dtype=torch.float64, cutoff=cutoff)
        for name, cutoff in (("schnet", 2.6), ("cgcnn", CUTOFF))
    ]
    calc = DCCalculator(Ensemble(members), dtype="float64")
    assert calc.deployed is None
    with pytest.raises(OptionError, match="different cutoffs"):
        DCCalculator(Ensemble(members), optimize=True)
    atoms = small((True, True, True))
    calc.calculate(atoms)
    alone = []
    for member in members:
        one = DCCalculator(member, dtype="float64", optimize=False)
        one.calculate(atoms)
        alone.append(one.results)
    for name in ("energy", "forces", "stress"):
        values = np.stack([one[name] for one in alone])
        np.testing.assert_allclose(calc.results[name], values.mean(0), rtol=1e-9, atol=1e-9)
