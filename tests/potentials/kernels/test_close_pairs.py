"""Atoms closer than compiled tables are made for: the potential's own energies and forces."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from potential_models import crystal, ethanol, graph_of, lively

from dcase import DCCalculator
from dcase.md_runs.loop.batch_forces import BatchForces
from dcase.md_runs.loop.compiled_blocks import verlet_blocks
from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.md_runs.replicas import run_replicas
from dcase.md_runs.report.replica_report import write_replica_report
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import run_md
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.kernels.schnet_training import training_kernel
from dcase.potentials.kernels.tables import CLOSEST

FORMS = {
    "schnet, its own splines": ("schnet", {"filter_knots": 48}),
    "schnet, tabulated": ("schnet", {"filter_knots": 0}),
    "cgcnn": ("cgcnn", {}),
    "dimenet++": ("dimenet++", {}),
    "forcenet": ("forcenet", {}),
    "gemnet-t": ("gemnet-t", {}),
}
DISTANCES = (0.01, 0.05, 0.1, 0.13, 0.2, 0.249, 0.251, 0.3, 0.5)

pytestmark = pytest.mark.skipif(
    not available(torch.float64, "edge_network"), reason="no C compiler works here"
)


@pytest.fixture(scope="module", params=FORMS)
def forms(request):
    """A potential, its compiled calculator and the one of PyTorch."""
    architecture, options = FORMS[request.param]
    potential = lively(architecture, "silu", dtype=torch.float64, **options)
    calculators = [
        DCCalculator(potential, dtype="float64", optimize=optimize) for optimize in (True, False)
    ]
    deployed = calculators[0].deployed
    assert deployed is not None
    # Only what is the same function everywhere has no limit.
    assert (deployed.kernels[0].nearest == 0) == (request.param == "schnet, its own splines")
    return potential, *calculators


def squeezed(distance, atoms=None):
    """Ethanol with a hydrogen atom that close to the oxygen atom's one, off all axes."""
    atoms = ethanol() if atoms is None else atoms
    atoms.positions[8] = atoms.positions[3] + distance * np.array([0.48, -0.6, 0.64])
    return atoms


@pytest.mark.physics
@pytest.mark.parametrize("make", [ethanol, crystal])
@pytest.mark.parametrize("distance", DISTANCES)
def test_forces_of_close_atoms_are_the_potentials(forms, distance, make):
    _, compiled, plain = forms
    atoms = squeezed(distance, make())
    results = []
    for calc in (compiled, plain):
        calc.calculate(atoms)
        results.append(calc.results)
    ours, theirs = results
    assert ours.keys() == theirs.keys()
    size = np.abs(theirs["forces"]).max()
    assert np.abs(theirs["forces"][[3, 8]]).max() > 1e-2
    np.testing.assert_allclose(ours["forces"], theirs["forces"], rtol=0, atol=3e-6 * size)
    inner = np.abs(theirs["energies"] - compiled.potential.offsets[atoms.numbers].numpy()).max()
    np.testing.assert_allclose(ours["energies"], theirs["energies"], rtol=0, atol=1e-6 * inner)
    if make is crystal:
        pressed = np.abs(theirs["stress"]).max()
        np.testing.assert_allclose(ours["stress"], theirs["stress"], rtol=0, atol=1e-5 * pressed)


@pytest.mark.physics
@pytest.mark.parametrize("distance", [0.05, 0.13, 0.3])
def test_two_atoms_alone(forms, distance):
    """The force between them against the difference of their energies."""
    _, compiled, _ = forms
    atoms = squeezed(distance)[[3, 8]]
    along = np.array([0.48, -0.6, 0.64])
    compiled.calculate(atoms)
    force = compiled.results["forces"][1] @ along
    energies = []
    step = 1e-3 * distance
    for change in (step, -step):
        moved = atoms.copy()
        moved.positions[1] += change * along
        compiled.calculate(moved)
        energies.append(compiled.results["energy"])
    wanted = (energies[1] - energies[0]) / (2 * step)
    assert force == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert compiled.results["forces"].sum(axis=0) == pytest.approx([0, 0, 0], abs=1e-9)


def test_copies_beside_close_atoms_keep_their_results(forms):
    """In a batch of copies, as replicas are, to the last bit; and the close ones are right."""
    _, compiled, plain = forms
    atoms = crystal()
    apart = np.stack([atoms.positions, atoms.positions + 0.01, atoms.positions - 0.02])
    close = apart.copy()
    close[1] = squeezed(0.1, crystal()).positions
    found = []
    for positions in (apart, close):
        batch = BatchForces(compiled, atoms.numbers, atoms.cell.array, atoms.pbc)
        found.append(batch(positions, np.arange(3)))
    (energies, forces), (their_energies, their_forces) = found
    np.testing.assert_array_equal(their_energies[[0, 2]], energies[[0, 2]])
    np.testing.assert_array_equal(their_forces[[0, 2]], forces[[0, 2]])
    atoms.positions[:] = close[1]
    plain.calculate(atoms)
    size = np.abs(plain.results["forces"]).max()
    np.testing.assert_allclose(their_forces[1], plain.results["forces"], rtol=0, atol=3e-6 * size)
    assert their_energies[1] == pytest.approx(plain.results["energy"], rel=1e-8)


def test_the_virial_of_several_systems_is_of_all(forms):
    potential, compiled, _ = forms
    systems = [ethanol(), squeezed(0.1), squeezed(0.05, ethanol(seed=1)), ethanol(seed=2)]
    deployed, virial, forces = compiled.deployed, 0.0, []
    for atoms in systems:
        pairs = graph_of(potential, atoms).pairs.numpy()
        alone = deployed(atoms.numbers, atoms.positions, pairs)
        virial = virial + alone.virial
        forces.append(alone.forces)
    together = deployed(
        np.concatenate([a.numbers for a in systems]),
        np.concatenate([a.positions for a in systems]),
        np.concatenate(
            [graph_of(potential, a).pairs.numpy() + 9 * k for k, a in enumerate(systems)], axis=1
        ),
    )
    size = np.abs(virial).max()
    np.testing.assert_allclose(together.virial, virial, rtol=0, atol=1e-10 * size)
    forces = np.concatenate(forces, axis=1)
    np.testing.assert_allclose(together.forces, forces, atol=1e-10 * np.abs(forces).max())


def test_ensembles_of_close_atoms():
    members = [
        lively(name, "silu", dtype=torch.float64, cutoff=4.0) for name in ("cgcnn", "gemnet-t")
    ]
    results = []
    for optimize in (True, False):
        calc = DCCalculator(Ensemble(members), dtype="float64", optimize=optimize)
        assert (calc.deployed is not None) == optimize
        calc.calculate(squeezed(0.1))
        results.append(calc.results)
    size = np.abs(results[1]["forces"]).max()
    for key in ("forces", "forces_std"):
        np.testing.assert_allclose(results[0][key], results[1][key], rtol=0, atol=3e-6 * size)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_thread_looks_for_close_pairs(threads):
    potential = lively(filter_knots=0, activation="silu", dtype=torch.float64)
    (kernel,) = potential.deploy(tabulate=True).kernels
    species = potential.species_of.numpy()[crystal().numbers]
    for i, j in ((3, 8), (0, 1), (7, 6)):
        atoms = crystal()
        atoms.positions[j] = atoms.positions[i] + [0.07, 0, 0.07]
        graph = graph_of(potential, atoms)
        offsets = graph.shifts.numpy() @ atoms.cell.array
        prepared = kernel.prepare(atoms.positions, species, graph.pairs.numpy(), offsets, threads)
        prepared.evaluate()
        assert prepared.result.closest[0] == pytest.approx(0.07 * np.sqrt(2))


def test_weights_of_the_compiled_form_do_not_change_with_the_potential():
    """Also where it is evaluated in PyTorch."""
    potential = lively("gemnet-t", dtype=torch.float64)
    deployed = potential.deploy(tabulate=True)
    atoms = squeezed(0.1)
    pairs = graph_of(potential, atoms).pairs.numpy()
    before = deployed(atoms.numbers, atoms.positions, pairs)
    with torch.no_grad():
        for weight in potential.network.parameters():
            weight.mul_(1.1)
    after = deployed(atoms.numbers, atoms.positions, pairs)
    np.testing.assert_array_equal(after.forces, before.forces)


@pytest.mark.physics
@pytest.mark.parametrize("distance", [0.05, 0.13, 0.3])
def test_training_on_close_atoms(distance):
    """The filter table and the compiled gradient against autograd's."""
    potential = lively(filter_knots=48, activation="silu", dtype=torch.float64)
    kernel = training_kernel(potential)
    graph = graph_of(potential, squeezed(distance))
    energies, forces = kernel(potential.species_of[graph.numbers], graph, forces=True)
    by_autograd = potential.energies_and_forces(graph, create_graph=True)
    wanted = by_autograd[1].detach()
    assert float((forces.detach() - wanted).abs().max()) < 1e-10 * float(wanted.abs().max())
    parameters = list(potential.network.parameters())
    losses = [e.sum() + f.square().sum() for e, f in ((energies, forces), by_autograd)]
    found, wanted = (torch.autograd.grad(x, parameters, allow_unused=True) for x in losses)
    for ours, theirs in zip(found, wanted, strict=True):
        if theirs is not None and theirs.numel():
            assert float((ours - theirs).abs().max()) <= 1e-9 * float(theirs.abs().max()) + 1e-12


def collision(architecture, options):
    """A hydrogen atom thrown at another, so that they meet within a few steps."""
    potential = lively(architecture, "silu", dtype=torch.float64, **options)
    atoms = squeezed(0.6)
    towards = atoms.positions[3] - atoms.positions[8]
    momenta = np.zeros((9, 3))
    momenta[8] = 8.0 * towards
    atoms.set_momenta(momenta)
    return potential, atoms


@pytest.mark.physics
@pytest.mark.parametrize("name", [name for name in FORMS if "own" not in name])
def test_the_compiled_loop_stops_before_atoms_are_too_close(name):
    potential, atoms = collision(*FORMS[name])
    calc = atoms.calc = DCCalculator(potential, dtype="float64", optimize=True)
    loop = verlet_blocks(atoms, 0.5, BlowUpWatch(atoms, None, 1e12), 27)
    block = loop.advance(atoms.positions, atoms.get_momenta(), atoms.get_forces(), 200)
    distances = np.linalg.norm(block.positions[:, 8] - block.positions[:, 3], axis=1)
    assert 0 < len(block) < 200
    assert distances.min() >= CLOSEST
    # It goes on from the last step that it has done, as if there had been no further one.
    last = atoms.copy()
    last.positions[:] = block.positions[-1]
    calc.calculate(last)
    np.testing.assert_allclose(block.forces, calc.results["forces"], rtol=1e-9, atol=1e-9)
    next_ = loop.advance(block.positions[-1], block.momenta[-1], block.forces, 200)
    assert len(next_) == 0


@pytest.mark.physics
@pytest.mark.parametrize("name", ["schnet, tabulated", "cgcnn", "forcenet", "gemnet-t"])
def test_a_run_through_a_collision_is_the_potentials(name, tmp_path):
    """Compiled before and after, in PyTorch while the atoms are close."""
    potential, atoms = collision(*FORMS[name])
    settings = MDSettings(
        steps=12, equilibrate=0, timestep_fs=0.25, keep_momenta=True, log_every=1, traj_every=1,
        checkpoint_every=12, force_timestep=True, bond_stretch_A=None, max_temperature_K=1e12,
    )  # fmt: skip
    ends = []
    for optimize in (True, False):
        atoms.calc = DCCalculator(
            potential, dtype="float64", optimize=optimize, allow_isolated=True
        )
        result = run_md(atoms, settings, tmp_path / str(optimize))
        ends.append((result.atoms.positions, result.atoms.get_momenta()))
    distance = np.linalg.norm(ends[1][0][8] - ends[1][0][3])
    assert distance != pytest.approx(0.6, abs=0.1)
    for ours, theirs in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.physics
@pytest.mark.parametrize("name", ["schnet, tabulated", "cgcnn"])
def test_replicas_of_close_atoms_are_the_potentials(name, tmp_path):
    """From 0.02 A on, in blocks of the compiled loop as soon as the atoms are apart."""
    potential = collision(*FORMS[name])[0]
    settings = MDSettings(
        steps=16, equilibrate=0, timestep_fs=0.2, temperature_K=2e4, log_every=1, traj_every=1,
        checkpoint_every=16, force_timestep=True, bond_stretch_A=None, max_temperature_K=1e12,
    )  # fmt: skip
    found = []
    for optimize in (True, False):
        atoms = squeezed(0.02)
        atoms.calc = DCCalculator(
            potential, dtype="float64", optimize=optimize, allow_isolated=True
        )
        folder = tmp_path / str(optimize)
        write_replica_report(folder, run_replicas(atoms, settings, 2, folder))
        with h5py.File(folder / "replicas.h5") as file:
            found.append({name: file[name][()] for name in ("positions", "potential_energy")})
    ours, theirs = found
    distances = np.linalg.norm(theirs["positions"][:, :, 8] - theirs["positions"][:, :, 3], axis=2)
    assert distances.min() < 0.1
    assert distances.max() > CLOSEST
    np.testing.assert_allclose(ours["positions"], theirs["positions"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        ours["potential_energy"], theirs["potential_energy"], rtol=0, atol=1e-4
    )
