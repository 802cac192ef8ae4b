"""The compiled form: the same numbers as PyTorch, for every shape, and a way without a compiler."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from potential_models import crystal, ethanol, graph_of, lively
from processes import GUARD

from dcase import DCCalculator
from dcase.activations.registry import ACTIVATIONS
from dcase.errors import OptionError
from dcase.potentials.calculator import DCCalculatorError
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.kernels import atom_kernel
from dcase.potentials.kernels import schnet as schnet_kernel
from dcase.potentials.kernels.atom_kernel import available, spatial_order
from dcase.potentials.kernels.curve import fit_curve
from dcase.potentials.kernels.deployed import FILTER_ERROR, deploy
from dcase.potentials.kernels.schnet import SchNetKernel
from dcase.potentials.kernels.schnet_form import tabulated

KNOWN = ("irelu", "ssp", "softplus", "silu", "tanh", "log_cosh")

needs_compiler = pytest.mark.skipif(
    not available(torch.float64), reason="no C compiler works here: nothing to compare"
)


def splined(activation="irelu", **options):
    return lively(activation=activation, dtype=torch.float64, **{"filter_knots": 48, **options})


def predictions(potential, atoms, skin=0.7, **options):
    """Of the compiled form, with pairs that reach beyond the cutoff."""
    graph = build_graph(
        atoms.numbers, atoms.positions, potential.cutoff + skin, atoms.cell.array, atoms.pbc
    )
    offsets = None if graph.shifts is None else graph.shifts.numpy() @ atoms.cell.array
    return potential.deploy(**options)(atoms.numbers, atoms.positions, graph.pairs.numpy(), offsets)


def assert_same(potential, atoms, relative=1e-12, **options):
    graph = graph_of(potential, atoms)
    wanted, found = potential(graph), predictions(potential, atoms, **options)
    forces = wanted["forces"].numpy()
    size = np.abs(forces).max()
    assert size > 1e-3
    np.testing.assert_allclose(found.forces[0], forces, rtol=0, atol=relative * size)
    inner = wanted["energies"].numpy()
    np.testing.assert_allclose(found.energies[0], inner, rtol=0, atol=relative * 1e2 * size)
    counts = torch.bincount(graph.pairs.flatten(), minlength=len(atoms))
    np.testing.assert_array_equal(found.neighbours, counts.numpy())


@needs_compiler
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_deployed_is_the_potential(activation):
    """Every activation of the registry; those that the kernel does not know are tabulated."""
    known = activation in KNOWN
    relative = 1e-12 if known else 1e-7
    assert_same(splined(activation), ethanol(), relative, tabulate=not known)
    periodic = splined(activation, cutoff=5.3)
    pairs = graph_of(periodic, crystal()).pairs
    assert bool((pairs[0] == pairs[1]).any())  # atoms beside their own images
    assert_same(periodic, crystal(), relative, tabulate=not known)


@pytest.mark.physics
@needs_compiler
@pytest.mark.parametrize("activation", ["isilu", "elu", "gelu"])
def test_forces_with_a_tabulated_activation_are_the_derivatives(activation):
    atoms = ethanol()
    potential = splined(activation)
    assert DCCalculator(potential, dtype="float64").deployed is None  # right to 1e-8 only
    assert DCCalculator(potential, dtype="float32").deployed is not None
    atoms.calc = DCCalculator(potential, dtype="float64", optimize=True)
    assert atoms.calc.deployed is not None
    wanted = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), wanted, atol=1e-6 * np.abs(wanted).max())


def test_an_activation_that_cannot_be_tabulated(monkeypatch):
    kink = torch.nn.Softshrink(0.3)  # beside the knots
    monkeypatch.setattr("dcase.potentials.kernels.curve.get_activation", lambda name: kink)
    with pytest.raises(OptionError, match="softshrink cannot be tabulated"):
        fit_curve("softshrink")


@needs_compiler
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("make", [ethanol, crystal])
def test_threads_share_the_work(make, threads):
    atoms, potential = make(), splined(cutoff=5.3)
    graph = build_graph(atoms.numbers, atoms.positions, 6.0, atoms.cell.array, atoms.pbc)
    offsets = None if graph.shifts is None else graph.shifts.numpy() @ atoms.cell.array
    kernel = SchNetKernel(potential.network, "irelu")
    species = potential.species_of[graph.numbers].numpy()
    results = []
    for count in (1, threads, threads):
        prepared = kernel.prepare(atoms.positions, species, graph.pairs.numpy(), offsets, count)
        prepared.positions[:] = atoms.positions
        prepared.evaluate()
        prepared.evaluate()  # nothing is left over from the first time
        results.append(prepared.result)
    for name in ("energies", "forces", "virial", "neighbours"):
        one, some, again = (getattr(result, name) for result in results)
        np.testing.assert_allclose(some, one, rtol=1e-11, atol=1e-12 * np.abs(one).max())
        np.testing.assert_array_equal(again, some)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("make", [ethanol, crystal])
def test_the_order_of_atoms_in_memory_does_not_matter(make, threads, monkeypatch):
    orders = []

    def ordered(positions, length):
        orders.append(spatial_order(positions, length))
        return orders[-1]

    monkeypatch.setattr(atom_kernel, "WORTH_SORTING", 2)
    monkeypatch.setattr(atom_kernel, "spatial_order", ordered)
    monkeypatch.setattr(SchNetKernel, "_threads", lambda *sizes: threads)
    assert_same(splined(cutoff=2.3), make())
    assert sorted(orders[0]) != orders[0].tolist()


def test_spatial_order_keeps_neighbours_together():
    grid = np.stack(np.meshgrid(*[np.arange(16.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    shuffled = grid[np.random.default_rng(0).permutation(len(grid))] - 40.0
    order = spatial_order(shuffled, 1.0)
    assert sorted(order) == list(range(len(grid)))
    steps = np.linalg.norm(np.diff(shuffled[order], axis=0), axis=1)
    assert np.mean(steps) < 2.0  # of 7.6 on average in any order
    assert np.mean(np.linalg.norm(np.diff(shuffled, axis=0), axis=1)) > 5.0


@needs_compiler
def test_small_systems_use_one_thread():
    kernel = SchNetKernel(splined().network, "irelu", threads=4)
    assert kernel._threads(9, 30) == 1
    assert kernel._threads(100_000, 3_000_000) == min(4, kernel._most_threads)


@needs_compiler
@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_channels": 33, "num_filters": 7, "num_interactions": 1},
        {"hidden_channels": 3, "num_filters": 70, "num_interactions": 2},
        {"hidden_channels": 64, "num_filters": 32, "num_interactions": 3, "filter_knots": 1},
        {"hidden_channels": 40, "num_filters": 96, "num_interactions": 2, "cutoff": 2.3},
    ],
    ids=str,
)
def test_deployed_shapes_that_fill_no_tile(shape):
    potential = splined("silu", **shape)
    for count in (9, 5, 2):  # rows of the tile, too
        assert_same(potential, ethanol()[:count])


@needs_compiler
def test_deployed_without_pairs():
    potential = splined()
    lonely = ethanol()[:1]
    found = predictions(potential, lonely)
    wanted = potential(graph_of(potential, lonely))
    assert found.energies[0, 0] == pytest.approx(float(wanted["energies"][0]), rel=1e-13)
    assert not found.forces.any()
    assert list(found.neighbours) == [0]


@needs_compiler
def test_deployed_in_single_precision():
    potential = splined("ssp")
    atoms = crystal()
    exact = predictions(potential, atoms)
    single = predictions(potential.with_dtype(torch.float32), atoms)
    error = np.abs(single.forces - exact.forces).max()
    assert 0 < error < 2e-5 * np.abs(exact.forces).max()
    assert abs((single.energies - exact.energies).sum()) < 1e-4  # of -4000 eV


@needs_compiler
@pytest.mark.physics
@pytest.mark.parametrize("optimize", [True, None])
@pytest.mark.parametrize("knots", [48, 0], ids=["its own splines", "networks or tabulated"])
def test_deployed_forces_are_derivatives(knots, optimize):
    atoms = crystal()
    atoms.calc = DCCalculator(
        splined("silu", filter_knots=knots), dtype="float64", optimize=optimize
    )
    assert atoms.calc.deployed is not None
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=1e-6)
    np.testing.assert_allclose(
        atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-6
    )


@needs_compiler
def test_deployed_far_inputs_stay_finite():
    """Atoms almost on top of each other: activations far out, as the shifted softplus's."""
    potential = splined("ssp")
    atoms = ethanol()
    atoms.positions[1] = atoms.positions[0] + [1e-3, 0, 0]
    with torch.no_grad():
        for weight in potential.network.parameters():
            weight.mul_(12.0)
    found = predictions(potential, atoms)
    assert np.isfinite(found.forces).all()
    wanted = potential(graph_of(potential, atoms))["forces"].numpy()
    np.testing.assert_allclose(found.forces[0], wanted, atol=1e-11 * np.abs(wanted).max())


@needs_compiler
def test_calculator_chooses_the_compiled_form_where_it_is_exact():
    exact = splined()
    assert DCCalculator(exact).deployed is not None
    assert DCCalculator(exact, optimize=False).deployed is None
    networks = DCCalculator(splined(filter_knots=0))  # filters by their networks: exact as well
    assert networks.deployed is not None
    assert networks.deployed.kernels[0]._table is None
    with pytest.raises(OptionError, match="optimize=True: .* basis 'gauss'"):
        DCCalculator(lively("forcenet", basis="gauss"), optimize=True)
    again = pickle.loads(pickle.dumps(DCCalculator(exact)))
    assert again.deployed is not None
    assert DCCalculator(exact, optimize=False).copy().deployed is None


@needs_compiler
@pytest.mark.parametrize("count", [1, 3])
def test_calculator_gives_the_same_with_and_without(count):
    members = [splined(seed=n) for n in range(count)]
    model = members[0] if count == 1 else Ensemble(members)
    for atoms in (ethanol(), crystal()):
        results = []
        for optimize in (True, False):
            calc = DCCalculator(model, dtype="float64", optimize=optimize)
            calc.calculate(atoms)
            results.append(calc.results)
        assert results[0].keys() == results[1].keys()
        for key, value in results[0].items():
            size = np.abs(results[1]["forces"]).max()
            np.testing.assert_allclose(
                value, results[1][key], rtol=0, atol=1e-10 * size, err_msg=key
            )


@needs_compiler
@pytest.mark.parametrize("activation", ["ssp", "silu", "irelu", "iselu", "iclipped_relu"])
def test_tabulated_filters_change_forces_as_little_as_was_asked_for(activation):
    potential = splined(activation, filter_knots=0)
    atoms = ethanol()
    exact = potential(graph_of(potential, atoms))["forces"].numpy()
    graph = graph_of(potential, atoms)
    errors = []
    for wanted in (1e-3, FILTER_ERROR):
        deployed = deploy(potential, tabulate=True, filter_error=wanted)
        assert deployed.kernels[0]._table is not None
        found = deployed(atoms.numbers, atoms.positions, graph.pairs.numpy())
        errors.append(np.abs(found.forces[0] - exact).max() / np.abs(exact).max())
    assert 1e-12 < errors[1] < 10 * FILTER_ERROR
    assert errors[1] < errors[0]


@needs_compiler
@pytest.mark.physics
@pytest.mark.parametrize("error", [1e-2, FILTER_ERROR])
def test_forces_of_tabulated_kinks_are_derivatives_however_coarse(error):
    """Of the energy that is evaluated; IReLU's kinks and all knots are among the distances."""
    potential = splined("irelu", filter_knots=0)
    deployed = deploy(potential, tabulate=True, filter_error=error)
    knots = deployed.kernels[0]._knots
    atoms = Atoms("CHO", [(0, 0, 0), (1.0, 0, 0), (0, 1.1, 0)])
    pairs = graph_of(potential, atoms).pairs.numpy()
    step = 1e-5
    for along in np.linspace(0.3, 3.95, 60).tolist() + knots[5:-5:20].tolist():
        found = []
        for moved in (-step, 0.0, step):
            atoms.positions[1, 0] = along + moved
            found.append(deployed(atoms.numbers, atoms.positions, pairs))
        slope = (found[2].energies.sum() - found[0].energies.sum()) / (2 * step)
        assert found[1].forces[0, 1, 0] == pytest.approx(-slope, rel=2e-5, abs=2e-6), along


@needs_compiler
def test_beside_every_knot_the_cubic_is_the_right_one():
    potential = splined("irelu", filter_knots=0)
    exact = deploy(potential)
    deployed = deploy(potential, tabulate=True, filter_error=1e-8)
    atoms = Atoms("CO", [(0, 0, 0), (1.0, 0, 0)])
    pairs, off = graph_of(potential, atoms).pairs.numpy(), []
    for knot in deployed.kernels[0]._knots[1:-1]:
        for beside in (-1e-4, 1e-4):
            atoms.positions[1, 0] = knot + beside
            forces = [
                form(atoms.numbers, atoms.positions, pairs).forces for form in (deployed, exact)
            ]
            off.append((np.abs(forces[0] - forces[1]).max(), np.abs(forces[1]).max()))
    wrong, size = np.array(off).T
    assert len(off) > 500
    assert wrong.max() < 1e-7 * size.max()


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tabulated_kinks_in_a_crystal(dtype, threads, monkeypatch):
    """Energies, forces and virial; in float32 no further off than rounding makes them."""
    monkeypatch.setattr(SchNetKernel, "_threads", lambda *sizes: threads)
    potential = splined("irelu", filter_knots=0, cutoff=5.3, num_filters=7)
    atoms = crystal()
    graph = graph_of(potential, atoms)
    offsets = graph.shifts.numpy() @ atoms.cell.array
    exact = deploy(potential)(atoms.numbers, atoms.positions, graph.pairs.numpy(), offsets)
    deployed = deploy(potential.with_dtype(dtype), tabulate=True, filter_error=1e-7)
    found = deployed(atoms.numbers, atoms.positions, graph.pairs.numpy(), offsets)
    close = 1e-6 if dtype == torch.float64 else 1e-5
    for name in ("energies", "forces", "virial"):
        wanted = getattr(exact, name)
        size = 1.0 if name == "energies" else np.abs(wanted).max()
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=0, atol=close * size)


@needs_compiler
def test_filters_that_no_table_reproduces_are_evaluated_by_their_networks():
    """ReLU's slopes jump: nothing continuous reproduces them."""
    potential = splined("relu", filter_knots=0)
    calculator = DCCalculator(potential, dtype="float64", optimize=True)
    assert calculator.deployed.kernels[0]._table is None
    assert calculator.form.endswith("filters by their networks: no cubics are within 1e-06 of them")
    atoms, graph = ethanol(), graph_of(potential, ethanol())
    exact = potential(graph)["forces"].numpy()
    found = calculator.deployed(atoms.numbers, atoms.positions, graph.pairs.numpy()).forces[0]
    np.testing.assert_allclose(found, exact, atol=1e-7 * np.abs(exact).max())


@needs_compiler
def test_the_form_says_how_close_tabulated_filters_are():
    kinked, smooth = (
        splined(name, filter_knots=0, seed=k) for k, name in enumerate(("irelu", "ssp"))
    )
    line = DCCalculator(kinked, optimize=True).form
    words = r"filters by (\d+) cubics, within (.*) of the largest and (.*) of the largest slope"
    found = re.search(rf"^compiled \(C, .*\) - {words}$", line)
    pieces = tabulated(kinked.network, FILTER_ERROR, kinks=True)
    assert int(found[1]) == len(pieces)
    for number, worst in ((2, pieces.value_error), (3, pieces.slope_error)):
        assert float(found[number]) == pytest.approx(worst, rel=0.5)
        assert worst <= FILTER_ERROR
    both = DCCalculator(Ensemble([kinked, smooth]), optimize=True).form
    assert both.count("filters by") == 2
    assert "filters" not in DCCalculator(kinked).form


@needs_compiler
@pytest.mark.parametrize("kept", [0, 10**9])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("activation", ["irelu", "silu"])
def test_filter_networks(activation, threads, kept, monkeypatch):
    """In shares of pairs, stored between the passes or not."""
    monkeypatch.setattr(schnet_kernel, "FILTERS_KEPT", kept)
    monkeypatch.setattr(SchNetKernel, "_threads", lambda *sizes: threads)
    for atoms in (ethanol(), crystal()):
        assert_same(splined(activation, filter_knots=0, cutoff=5.3, num_gaussians=9), atoms)
        assert_same(splined(activation, filter_knots=0, num_filters=7, cutoff=3.1), atoms)


@needs_compiler
def test_what_does_not_fit_is_refused():
    """The C code indexes with what it is given."""
    potential, atoms = splined(), ethanol()
    pairs = graph_of(potential, atoms).pairs.numpy()
    deployed = potential.deploy()
    for wrong in (pairs + 3, pairs - 1):
        with pytest.raises(ValueError, match="not there"):
            deployed(atoms.numbers, atoms.positions, wrong)
    with pytest.raises(ValueError, match="fit together"):
        deployed(atoms.numbers, atoms.positions[:5], pairs)
    with pytest.raises(OptionError, match="not trained on"):
        deployed(np.full(len(atoms), 79), atoms.positions, pairs)
    lost = atoms.positions.copy()
    lost[3, 1] = np.nan
    with pytest.raises(OptionError, match="NaN"):
        deployed(atoms.numbers, lost, pairs)


@needs_compiler
def test_threads_of_python_do_not_mix_their_results():
    potential, atoms = splined(), ethanol()
    pairs = graph_of(potential, atoms).pairs.numpy()
    deployed = potential.deploy()
    places = [atoms.positions, atoms.positions * 1.05]
    wanted = [deployed(atoms.numbers, x, pairs).energies.sum() for x in places]

    def energies(which):
        return {deployed(atoms.numbers, places[which], pairs).energies.sum() for _ in range(500)}

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(energies, (0, 1))) == [{wanted[0]}, {wanted[1]}]


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_does_not_wait_for_threads_it_has_not(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
from ase.build import bulk
from potential_models import lively
from dcase import DCCalculator
torch.set_num_threads(2)
atoms = bulk("C", cubic=True) * (3, 3, 3)
atoms.rattle(0.05, seed=0)
atoms.calc = DCCalculator(lively(filter_knots=48, size="md17"))
before = atoms.get_forces()
assert atoms.calc.deployed.kernels[0]._last[1]._call.system.threads == 2
child = os.fork()
if child == 0:
    atoms.positions[0, 0] += 1e-9
    os._exit(int(abs(atoms.get_forces() - before).max() > 1e-3 * abs(before).max()))
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=GUARD, check=False)
    assert done.returncode == 0


@needs_compiler
def test_atoms_on_top_of_each_other_are_an_error():
    atoms = ethanol()
    atoms.positions[1] = atoms.positions[0]
    atoms.calc = DCCalculator(splined())
    with pytest.raises(DCCalculatorError, match="atoms 0 and 1 are in the same place"):
        atoms.get_forces()


def test_calculator_without_a_compiler(monkeypatch):
    monkeypatch.setattr("dcase.potentials.kernels.atom_kernel.load_library", lambda *names: None)
    calc = DCCalculator(splined())
    assert calc.deployed is None
    calc.calculate(ethanol())
    assert np.isfinite(calc.results["energy"])
    with pytest.raises(OptionError, match="no C compiler"):
        DCCalculator(splined(), optimize=True)


@needs_compiler
def test_kernel_leaves_the_processor_alone():
    """-ffast-math would flush subnormal numbers to zero in the whole process, numpy's as well."""
    code = (
        "import torch, numpy as np\n"
        "from dcase.potentials.kernels.atom_kernel import available\n"
        "assert available(torch.float32) and available(torch.float64)\n"
        "assert np.float64(5e-324) * 1.0 != 0 and np.float32(1e-45) * np.float32(1) != 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
