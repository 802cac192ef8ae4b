"""The ASE calculator contract, as ASE tests its own calculators, and clear errors."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.io.trajectory import Trajectory
from ase.optimize import BFGS
from potential_models import crystal, ethanol, graph_of, lively

from dcase import DCCalculator
from dcase.errors import CheckpointError, DcaseError, OptionError
from dcase.md_runs.loop.compiled_blocks import verlet_blocks
from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.potentials.calculator import DCCalculatorError
from dcase.potentials.ensemble import Ensemble


@pytest.fixture(scope="module")
def potential():
    return lively(activation="silu", dtype=torch.float64)


@pytest.fixture
def calc(potential):
    return DCCalculator(potential, dtype="float64")


class Counting(DCCalculator):
    """Counts evaluations."""

    calls = 0

    def calculate(self, *args, **kwargs):
        self.calls += 1
        super().calculate(*args, **kwargs)


def _with(atoms, calc):
    atoms.calc = calc
    return atoms


def test_potentials_calculator_energies_and_types(calc, potential):
    atoms = _with(ethanol(), calc)
    energy = atoms.get_potential_energy()
    assert type(energy) is float
    assert atoms.get_potential_energy(force_consistent=True) == energy
    energies = atoms.get_potential_energies()
    assert energies.shape == (9,)
    assert energies.sum() == pytest.approx(energy, rel=1e-14)
    forces = atoms.get_forces()
    assert (forces.shape, forces.dtype, forces.flags.c_contiguous) == ((9, 3), np.float64, True)
    assert np.abs(forces.sum(axis=0)).max() < 1e-12
    # C e + offsets: the unit of the network and its offsets are applied, once.
    from dcase.potentials.graphs.graph import build_graph

    graph = build_graph(atoms.numbers, atoms.positions, potential.cutoff)
    own, _ = potential.energies_and_forces(graph)
    offset = sum(potential.scale.offsets[z] for z in atoms.numbers)
    assert energy == pytest.approx(float(own.detach()) * potential.scale.constant + offset)


@pytest.mark.physics
def test_potentials_calculator_forces_are_ases_finite_differences(calc):
    atoms = _with(ethanol(), calc)
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=1e-6)


@pytest.mark.physics
def test_potentials_calculator_stress_is_ases_finite_difference(calc):
    # Sign (tension positive), unit (eV/A^3) and Voigt order, on a cell without any symmetry.
    atoms = _with(crystal(), calc)
    stress = atoms.get_stress()
    assert stress.shape == (6,)
    assert len(np.unique(np.round(np.abs(stress), 6))) == 6  # no component could stand for another
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5), atol=1e-7)
    pressure = -stress[:3].mean()
    volumes, energies = [], []
    for strain in (-1e-4, 1e-4):
        scaled = crystal()
        scaled.set_cell(scaled.cell.array * (1 + strain), scale_atoms=True)
        volumes.append(scaled.get_volume())
        energies.append(_with(scaled, calc).get_potential_energy())
    assert pressure == pytest.approx(-np.diff(energies)[0] / np.diff(volumes)[0], rel=1e-4)
    full = stress[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), full, rtol=0, atol=1e-14)


@pytest.mark.parametrize("cell", [None, [[5.1, 0.3, 0.0], [0.4, 4.6, -0.2], [0.0, 0.0, 0.0]]])
def test_potentials_calculator_has_no_stress_without_three_vectors(calc, cell):
    atoms = crystal()
    atoms.cell, atoms.pbc = cell or np.zeros((3, 3)), (cell is not None, cell is not None, False)
    atoms.calc = calc
    for _ in range(2):
        with pytest.raises(PropertyNotImplementedError, match="needs three lattice vectors"):
            atoms.get_stress()
        assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError):
        calc.calculate(atoms, ["stress"])
    with pytest.raises(PropertyNotImplementedError):
        calc.get_property("dipole", atoms)


def test_potentials_calculator_evaluates_once_per_structure(potential):
    calc = Counting(potential)
    atoms = _with(crystal(), calc)
    atoms.get_potential_energy()
    atoms.get_forces()
    atoms.get_stress()
    atoms.get_potential_energies()
    atoms.get_potential_energy(force_consistent=True)
    crystal().calc = calc
    assert calc.calls == 1
    atoms.set_initial_charges(np.ones(9))
    atoms.set_initial_magnetic_moments(np.ones(9))
    atoms.get_forces()
    assert calc.calls == 1  # neither matters to the energy


@pytest.mark.parametrize("change", ["positions", "cell", "numbers", "pbc"])
def test_potentials_calculator_notices_a_change(potential, change):
    calc = Counting(potential, dtype="float64")
    atoms = _with(crystal(), calc)
    before = atoms.get_potential_energy(), atoms.get_forces()
    if change == "positions":
        atoms.positions[3, 1] += 1e-9
    elif change == "cell":
        atoms.set_cell(atoms.cell.array * 1.001)
    elif change == "numbers":
        atoms.numbers[[0, 8]] = atoms.numbers[[8, 0]]
    else:
        atoms.pbc = (True, True, False)
    after = atoms.get_potential_energy(), atoms.get_forces()
    assert calc.calls == 2
    fresh = _with(atoms.copy(), DCCalculator(potential, dtype="float64", skin=0.0))
    assert after[0] == pytest.approx(fresh.get_potential_energy(), abs=1e-10)
    np.testing.assert_allclose(after[1], fresh.get_forces(), atol=1e-11)
    assert not np.array_equal(before[1], after[1])


def test_potentials_calculator_keeps_its_list_only_within_the_skin(potential):
    calc = DCCalculator(potential, skin=0.5)
    atoms = _with(crystal(), calc)
    atoms.get_potential_energy()
    kept = calc._list
    atoms.positions[0] += [0.2, 0.0, 0.0]
    atoms.get_potential_energy()
    assert calc._list is kept
    atoms.positions[0] += [0.06, 0.0, 0.0]
    atoms.get_potential_energy()
    assert calc._list is not kept
    kept = calc._list
    atoms.positions[0] += atoms.cell.array[0]  # the same structure, but the images are others
    atoms.get_potential_energy()
    assert calc._list is not kept


def test_potentials_calculator_lists_all_pairs_of_a_small_molecule(potential):
    """Atoms that come from beyond the cutoff and the skin are seen all the same."""
    calc = DCCalculator(potential, dtype="float64", skin=0.1)
    atoms = _with(ethanol(), calc)
    far = atoms.copy()
    far.positions[-1] += 50.0
    calc.allow_isolated = True
    calc.calculate(far)
    kept = calc._list
    energy = atoms.get_potential_energy()
    assert calc._list is kept
    fresh = _with(ethanol(), DCCalculator(potential, dtype="float64", skin=0.1))
    assert energy == pytest.approx(fresh.get_potential_energy(), abs=1e-12)


def test_potentials_calculator_results_are_copies(calc):
    atoms = _with(crystal(), calc)
    for get in (atoms.get_forces, atoms.get_stress, atoms.get_potential_energies):
        value = get()
        expected = value.copy()
        value[:] = 7.0
        np.testing.assert_array_equal(get(), expected)
    held = atoms.get_forces()
    expected = held.copy()
    atoms.positions[0] += 0.1
    assert not np.array_equal(atoms.get_forces(), expected)
    np.testing.assert_array_equal(held, expected)


def test_potentials_calculator_accepts_a_partial_change(calc):
    atoms = ethanol()
    calc.calculate(atoms, system_changes=["positions"])
    first = calc.results["energy"]
    atoms.positions[0] += 0.1
    calc.calculate(atoms, system_changes=["positions"])
    assert calc.results["energy"] != first
    assert set(calc.results) == {"energy", "free_energy", "energies", "forces"}
    calc.calculate(crystal())
    assert "stress" in calc.results
    calc.calculate(atoms)
    assert "stress" not in calc.results  # nothing stale is kept
    atoms.positions[0, 0] = np.nan
    with pytest.raises(DCCalculatorError):
        calc.calculate(atoms)
    assert calc.results == {}


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle", "atoms"])
def test_potentials_calculator_copies_are_equal_and_independent(tmp_path, how):
    potential = lively()
    potential.save(tmp_path / "m.pt")
    calc = DCCalculator(
        tmp_path / "m.pt", dtype="float64", skin=0.3, allow_isolated=True, device="cpu"
    )
    atoms = _with(crystal(), calc)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    other = {
        "copy": lambda: calc.copy(),
        "deepcopy": lambda: copy.deepcopy(calc),
        "pickle": lambda: pickle.loads(pickle.dumps(calc)),
        "atoms": lambda: pickle.loads(pickle.dumps(atoms)).calc,
    }[how]()
    for name in ("dtype", "skin", "allow_isolated", "use_cache", "device", "model_path"):
        assert getattr(other, name) == getattr(calc, name), name
    twin = _with(crystal(), other)
    assert twin.get_potential_energy() == energy
    np.testing.assert_array_equal(twin.get_forces(), forces)
    with torch.no_grad():
        for weight in other.potential.parameters():
            weight.add_(1.0)
    fresh = _with(crystal(), calc)
    calc.reset()
    assert fresh.get_potential_energy() == energy


def test_potentials_calculator_does_not_change_the_potential_it_is_given():
    potential = lively()
    calc = DCCalculator(potential, dtype="float64")
    assert potential.dtype == torch.float32
    assert all(p.requires_grad for p in potential.parameters())
    assert calc.potential.dtype == torch.float64


def test_potentials_calculators_of_both_dtypes_side_by_side(potential):
    default = torch.get_default_dtype()
    single, double = (DCCalculator(potential, dtype=d) for d in ("float32", "float64"))
    a, b = _with(ethanol(), single), _with(ethanol(), double)
    reference = b.get_forces()
    for _ in range(3):
        for atoms in (a, b):
            atoms.positions += 0.01
        f32, f64 = a.get_forces(), b.get_forces()
        assert torch.get_default_dtype() == default
        # float32 is really float32, and close.
        assert 1e-9 < np.abs(f32 - f64).max() < 1e-4
        np.testing.assert_allclose(f64, reference, atol=1e-10)


@pytest.mark.parametrize("torch_default", [torch.float32, torch.float64])
def test_potentials_calculator_does_not_depend_on_the_default_dtype(potential, torch_default):
    expected = _with(ethanol(), DCCalculator(potential)).get_forces()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch_default)
    try:
        found = _with(ethanol(), DCCalculator(potential)).get_forces()
        assert torch.get_default_dtype() == torch_default
    finally:
        torch.set_default_dtype(before)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_potentials_calculator_has_forces_where_gradients_are_off(calc, context):
    expected = _with(crystal(), calc.copy())
    with context():
        atoms = _with(crystal(), calc)
        forces, stress = atoms.get_forces(), atoms.get_stress()
    np.testing.assert_array_equal(forces, expected.get_forces())
    np.testing.assert_array_equal(stress, expected.get_stress())
    assert np.abs(forces).max() > 0.1
    assert np.abs(stress).max() > 1e-4


def test_potentials_energies_and_forces_under_no_grad(potential):
    from dcase.potentials.graphs.graph import build_graph

    atoms = ethanol()
    graph = build_graph(atoms.numbers, atoms.positions, potential.cutoff)
    _, expected = potential.energies_and_forces(graph)
    with torch.no_grad():
        _, forces = potential.energies_and_forces(graph)
    assert torch.equal(forces, expected)
    assert forces.abs().max() > 0


def test_potentials_calculator_is_written_to_trajectories(calc, tmp_path):
    atoms = _with(crystal(), calc)
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    with Trajectory(str(tmp_path / "t.traj"), "w", atoms) as trajectory:
        trajectory.write()
    ase.io.write(tmp_path / "t.extxyz", atoms)
    for name, atol in (("t.traj", 0.0), ("t.extxyz", 1e-7)):
        read = ase.io.read(tmp_path / name)
        assert read.get_potential_energy() == pytest.approx(energy, rel=1e-12)
        np.testing.assert_allclose(read.get_forces(), forces, atol=atol)
        np.testing.assert_allclose(read.get_stress(), stress, atol=atol)
    assert calc.todict()["dtype"] == "float64"


@pytest.mark.physics
def test_potentials_calculator_relaxes(calc):
    # Two atoms in a periodic cell: the untrained potential does not bind a molecule, but here the
    # energy has a minimum, whatever the weights.
    atoms = Atoms("CO", [[0.1, 0.0, 0.2], [1.6, 1.3, 1.0]], cell=[3.4, 3.0, 3.2], pbc=True)
    atoms.calc = calc
    before = atoms.get_potential_energy()
    assert np.abs(atoms.get_forces()).max() > 0.1
    assert BFGS(atoms, logfile=None).run(fmax=1e-3, steps=200)
    assert atoms.get_potential_energy() < before
    minimum = atoms.get_potential_energy()
    for direction in np.random.default_rng(0).normal(size=(10, 3)):
        moved = atoms.copy()
        moved.positions[1] += 0.05 * direction / np.linalg.norm(direction)
        assert _with(moved, calc).get_potential_energy() > minimum - 1e-5


def _broken(kind):
    atoms = ethanol()
    if kind == "element":
        atoms.numbers[2] = 26
    elif kind == "nan":
        atoms.positions[5, 2] = np.nan
    elif kind == "infinite":
        atoms.positions[5, 2] = np.inf
    elif kind == "coincident":
        atoms.positions[5] = atoms.positions[4]
    elif kind == "empty":
        atoms = Atoms()
    elif kind == "cell":
        atoms.pbc = True
    return atoms


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("element", "not trained on Fe; it knows H, C, O"),
        ("nan", "position of atom 5 is NaN"),
        ("infinite", "position of atom 5 is NaN or infinite"),
        ("coincident", "atoms 4 and 5 are in the same place"),
        ("empty", "there are no atoms"),
        ("cell", "cell with a volume"),
    ],
)
def test_potentials_calculator_says_what_is_wrong(calc, kind, message):
    for _ in range(2):  # the second time nothing may be answered from a cache either
        with pytest.raises(DcaseError, match=message) as caught:
            _with(_broken(kind), calc).get_potential_energy()
        assert "\n" not in str(caught.value)
    assert np.isfinite(_with(ethanol(), calc).get_potential_energy())  # and it still works


def test_potentials_calculator_notices_what_goes_wrong_later(calc):
    atoms = _with(ethanol(), calc)
    atoms.get_potential_energy()
    atoms.positions[0, 0] = np.nan
    with pytest.raises(DCCalculatorError, match="atom 0 is NaN"):
        atoms.get_forces()
    atoms.positions = ethanol().positions
    atoms.numbers[0] = 92
    with pytest.raises(DCCalculatorError, match="not trained on U"):
        atoms.get_forces()


def test_potentials_calculator_refuses_isolated_atoms_on_request(potential):
    atoms = ethanol()
    atoms.positions[4] += 30.0
    atoms.calc = DCCalculator(potential, dtype="float64", allow_isolated=False)
    with pytest.raises(DCCalculatorError, match="atom 4 .* has no neighbour within the cutoff"):
        atoms.get_forces()


def test_potentials_calculator_refuses_bad_options(potential, tmp_path):
    with pytest.raises(OptionError, match="dtype must be one of float32, float64"):
        DCCalculator(potential, dtype="float16")
    with pytest.raises(OptionError, match="skin must not be negative"):
        DCCalculator(potential, skin=-0.1)
    with pytest.raises(OptionError, match="unknown device 'warp'; use cpu"):
        DCCalculator(potential, device="warp")
    with pytest.raises(CheckpointError, match="no such file"):
        DCCalculator(tmp_path / "nothing.pt")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_potentials_calculator_on_a_gpu_equals_the_cpu(potential):
    cpu, gpu = (DCCalculator(potential, dtype="float64", device=d) for d in ("cpu", "cuda"))
    a, b = _with(crystal(), cpu), _with(crystal(), gpu)
    assert b.get_potential_energy() == pytest.approx(a.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(b.get_forces(), a.get_forces(), atol=1e-9)
    np.testing.assert_allclose(b.get_stress(), a.get_stress(), atol=1e-9)


@pytest.mark.parametrize("optimize", [None, False])
@pytest.mark.parametrize("forces_first", [False, True])
def test_threads_that_share_a_calculator_get_their_own_results(potential, optimize, forces_first):
    """At every turn all ask at once, each about its own frame."""
    calc = DCCalculator(potential, dtype="float64", optimize=optimize)
    count, turns = 8, 6
    frames = [[ethanol(seed=100 * k + turn) for turn in range(turns)] for k in range(count)]
    wanted = []
    for row in frames:
        for atoms in row:
            calc.calculate(atoms)
            wanted.append((calc.results["energy"], calc.results["forces"].copy()))
    calc.forget()
    barrier = threading.Barrier(count)
    wrong = []

    def ask(k):
        for turn, atoms in enumerate(frames[k]):
            atoms.calc = calc
            energy, forces = wanted[k * turns + turn]
            barrier.wait()
            for name in ("forces", "energy") if forces_first else ("energy", "forces"):
                if name == "energy":
                    same = atoms.get_potential_energy() == pytest.approx(energy, rel=1e-12)
                else:
                    same = np.abs(atoms.get_forces() - forces).max() < 1e-9
                if not same:
                    wrong.append((k, turn, name))

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(ask, range(count)))
    assert wrong == []


def test_threads_are_answered_one_at_a_time(potential):
    """The second waits until the first has its result in hands, not only until it is computed."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(DCCalculator):
        def calculate(self, atoms=None, *args, **kwargs):
            super().calculate(atoms, *args, **kwargs)
            if atoms is first:
                inside.set()
                go_on.wait(10)

    calc = Slow(potential, dtype="float64")
    first, second = ethanol(seed=1), ethanol(seed=2)
    first.calc = second.calc = calc
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first.get_potential_energy)
        assert inside.wait(10)
        two = pool.submit(second.get_potential_energy)
        assert not two.done()
        go_on.set()
        energies = [one.result(), two.result()]
    for atoms, energy in zip((first, second), energies, strict=True):
        alone = DCCalculator(potential, dtype="float64")
        alone.calculate(atoms)
        assert energy == pytest.approx(alone.results["energy"], rel=1e-12)


def test_loops_in_threads_share_a_calculator(potential):
    """Two simulations of the same molecule: one list of pairs holds for both."""
    calc = DCCalculator(lively(filter_knots=48, dtype=torch.float64), dtype="float64")
    if calc.deployed is None:
        pytest.skip("no C compiler works here: there is no compiled loop")
    loops, states = [], []
    for seed in (1, 2):
        atoms = ethanol(seed=seed)
        atoms.calc = calc
        loops.append(verlet_blocks(atoms, 0.2, BlowUpWatch(atoms, None, 1e12), 27))
        states.append((atoms.positions.copy(), np.zeros((9, 3)), atoms.get_forces()))
    alone = [loop.advance(*state, 40) for loop, state in zip(loops, states, strict=True)]
    barrier = threading.Barrier(2)

    def run(k):
        barrier.wait()
        return [loops[k].advance(*states[k], 40).positions[-1] for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        for block, ends in zip(alone, pool.map(run, range(2)), strict=True):
            for end in ends:
                np.testing.assert_array_equal(end, block.positions[-1])


UNKNOWN = {
    "another element": (79, "Au"),
    "the dummy element": (0, "atomic number 0"),
    "negative": (-1, "atomic number -1"),
    # The tables are indexed with it: from the end, -113 is carbon.
    "negative that is carbon from the end": (-113, "atomic number -113"),
    "beyond the table": (119, "atomic number 119"),
    "far beyond the table": (10**9, "atomic number 1000000000"),
}


@pytest.mark.parametrize(("number", "name"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_elements_are_named_by_every_method(potential, number, name):
    graph = graph_of(potential, ethanol())
    numbers = graph.numbers.clone()
    numbers[4] = number
    graph = replace(graph, numbers=numbers)
    message = f"^the potential was not trained on {name}; it knows H, C, O$"
    ensemble = Ensemble([lively(activation="silu", seed=seed) for seed in (1, 2)])
    calls = {
        "forward": lambda: potential(graph),
        "energies alone": lambda: potential(graph, forces=False),
        "atom_energies": lambda: potential.atom_energies(graph),
        "energies": lambda: potential.energies(graph),
        "energies_and_forces": lambda: potential.energies_and_forces(graph),
        "species": lambda: potential.species(numbers),
        "ensemble": lambda: ensemble(graph),
        "ensemble, energies alone": lambda: ensemble(graph, forces=False),
    }
    for call in calls.values():
        with pytest.raises(OptionError, match=message):
            call()
    for optimize in (None, False):
        calc = DCCalculator(potential, optimize=optimize)
        atoms = ethanol()
        if -(2**31) <= number < 2**31:
            atoms.numbers[4] = number
            with pytest.raises(DCCalculatorError, match=message):
                calc.calculate(atoms)
        if calc.deployed is not None:
            with pytest.raises(OptionError, match=message):
                calc.deployed(numbers.numpy(), ethanol().positions, graph.pairs.numpy())


def test_known_elements_have_the_index_of_their_place(potential):
    found = potential.species(torch.tensor([[1, 6], [8, 1]]))
    assert found.tolist() == [[0, 1], [2, 0]]
    assert potential.species(torch.empty(0, dtype=torch.int64)).tolist() == []


def test_numbers_beyond_the_table_are_not_its_last_element():
    potential = lively(elements=["H", "C", "O", "Og"], filter_knots=16)
    graph = graph_of(potential, ethanol())
    assert potential.species(torch.tensor([118])).tolist() == [3]
    numbers = graph.numbers.clone()
    numbers[2] = 119
    message = "not trained on atomic number 119; it knows H, C, O, Og"
    with pytest.raises(OptionError, match=message):
        potential(replace(graph, numbers=numbers))
    calc = DCCalculator(potential)
    if calc.deployed is not None:
        with pytest.raises(OptionError, match=message):
            calc.deployed(numbers.numpy(), ethanol().positions, graph.pairs.numpy())
