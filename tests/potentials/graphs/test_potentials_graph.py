"""Half neighbour lists against brute force, and batches against single graphs."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from potential_models import crystal, ethanol, lively
from scipy.spatial import cKDTree

from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError
from dcase.potentials.calculator import DCCalculator
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.graphs.graph import build_graph, half_neighbour_list
from dcase.rescaling import LabelScale


def _brute_force(positions, cutoff, cell, pbc):
    """Every pair and image once, and the distances, from a sum over all images that can matter."""
    # A plane spacing bounds how many cells away an image within reach can be.
    reach = cutoff + np.linalg.norm(np.ptp(positions, axis=0))
    spacing = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    counts = [int(np.ceil(reach / s)) if p else 0 for s, p in zip(spacing, pbc, strict=True)]
    found = {}
    for shift in itertools.product(*[range(-c, c + 1) for c in counts]):
        r = positions[None] + np.array(shift) @ cell - positions[:, None]
        d = np.linalg.norm(r, axis=2)
        for i, j in np.argwhere(d < cutoff):
            if i < j or (i == j and shift > (0, 0, 0)):
                found[(i, j, *shift)] = d[i, j]
    return found


_CELLS = {
    "cubic": np.diag([6.0, 6.0, 6.0]),
    "triclinic": np.array([[5.0, 0.4, -0.6], [1.8, 4.5, 0.3], [-1.1, 1.3, 5.5]]),
    "tiny": np.array([[2.1, 0.2, 0.0], [0.5, 1.9, 0.3], [-0.4, 0.2, 2.4]]),
    "left-handed": np.array([[0.0, 5.0, 0.4], [5.5, 0.0, 0.3], [0.2, 0.6, 4.8]]),
}


@pytest.mark.parametrize("pbc", list(itertools.product([0, 1], repeat=3))[1:], ids=str)
@pytest.mark.parametrize("cell", list(_CELLS))
def test_potentials_half_list_equals_brute_force(cell, pbc):
    vectors = _CELLS[cell]
    rng = np.random.default_rng(0)
    positions = rng.uniform(-4, 9, (7, 3))  # many outside the cell
    cutoff = 3.9
    pairs, shifts = half_neighbour_list(positions, cutoff, vectors, np.array(pbc, dtype=bool))
    expected = _brute_force(positions, cutoff, vectors, pbc)
    found = [(int(i), int(j), *map(int, s)) for (i, j), s in zip(pairs.T, shifts, strict=True)]
    assert len(found) == len(set(found))
    canonical = {
        key if key[0] <= key[1] else (key[1], key[0], -key[2], -key[3], -key[4]) for key in found
    }
    assert canonical == set(expected)
    graph = build_graph(np.ones(7, dtype=int), positions, cutoff, vectors, np.array(pbc, bool))
    distances = [expected[key] for key in found]
    np.testing.assert_allclose(graph.distances(), distances, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_atoms", [1, 2, 150, 200, 201, 500])
def test_potentials_half_list_of_molecules(n_atoms):
    positions = np.random.default_rng(n_atoms).uniform(-6, 6, (n_atoms, 3)) + 50.0
    pairs, shifts = half_neighbour_list(positions, 3.0)
    assert shifts is None
    assert (pairs[0] < pairs[1]).all()
    found = set(map(tuple, pairs.T.tolist()))
    assert len(found) == pairs.shape[1]
    assert found == cKDTree(positions).query_pairs(3.0)


def test_potentials_a_slab_needs_no_third_vector():
    slab = fcc111("Cu", (2, 2, 3), a=3.6)  # ASE leaves the vector that is not periodic at zero
    assert not slab.cell.array[2].any()
    pairs, shifts = half_neighbour_list(slab.positions, 4.0, slab.cell.array, slab.pbc)
    boxed = slab.copy()
    boxed.center(vacuum=10.0, axis=2)
    expected, _ = half_neighbour_list(boxed.positions, 4.0, boxed.cell.array, boxed.pbc)
    assert pairs.shape == expected.shape
    assert pairs.shape[1] > 12
    assert not shifts[:, 2].any()


@pytest.mark.parametrize(
    "cell", [np.zeros((3, 3)), np.ones((3, 3)), np.full((3, 3), np.nan), np.diag([3.0, 0.0, 3.0])]
)
def test_potentials_a_cell_without_volume_is_refused(cell):
    with pytest.raises(DataError, match="cell with a volume") as caught:
        half_neighbour_list(ethanol().positions, 4.0, cell, np.ones(3, dtype=bool))
    assert "\n" not in str(caught.value)


def test_potentials_order_of_pairs_is_fixed_by_geometry():
    atoms = crystal()
    one, other = (
        half_neighbour_list(atoms.positions.copy(), 4.0, atoms.cell.array.copy(), atoms.pbc)
        for _ in range(2)
    )
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


def test_potentials_batches_equal_single_graphs():
    frames = [crystal(), ethanol(), crystal(seed=3)[:6], ethanol(seed=5)[:3]]
    batches = FrameBatches(AtomicDataset.from_frames(frames), 4.0, LabelScale())
    order = [2, 0, 3, 1, 0]
    batch = batches.batch(torch.tensor(order)).graph
    assert batch.n_systems == len(order)
    start = 0
    for k, f in enumerate(order):
        frame = frames[f]
        single = build_graph(frame.numbers, frame.positions, 4.0, frame.cell.array, frame.pbc)
        stop = start + len(frame)
        assert (batch.system[start:stop] == k).all()
        assert torch.equal(batch.numbers[start:stop], single.numbers)
        assert torch.equal(batch.positions[start:stop], single.positions)
        mine = (batch.pairs[0] >= start) & (batch.pairs[0] < stop)
        assert torch.equal(batch.pairs[:, mine] - start, single.pairs)
        torch.testing.assert_close(batch.distances()[mine], single.distances(), rtol=0, atol=1e-13)
        start = stop
    assert start == batch.n_atoms


def test_potentials_batches_scale_labels_exactly():
    dataset = AtomicDataset.from_arrays(
        ethanol().numbers,
        np.stack([ethanol().positions, ethanol(seed=2).positions]),
        energies=np.array([-4209.5, -4210.25]),
        forces=np.random.default_rng(0).normal(size=(2, 9, 3)),
    )
    scale = LabelScale(0.5, {1: -13.5, 6: -1029.25, 8: -2041.75})
    batch = FrameBatches(dataset, 4.0, scale).batch(torch.tensor([1]))
    offset = 6 * -13.5 + 2 * -1029.25 - 2041.75
    assert float(batch.energies[0]) == (-4210.25 - offset) / 0.5
    assert np.array_equal(batch.forces.numpy(), dataset.forces[9:] * 2.0)


def test_potentials_batches_say_where_most_atoms_are_alone():
    def apart(*frames):
        return FrameBatches(AtomicDataset.from_frames(frames), 4.0, LabelScale()).apart

    far, spread, atom = ethanol(), ethanol(), Atoms("H")
    far.positions[4] += 50.0
    spread.positions *= 100.0
    assert apart(ethanol(), far) == ""
    assert apart(atom, atom, far) == ""  # an atom has nobody to be apart from
    assert apart(ethanol(), far, spread, spread) == (
        "19 of 36 atoms have no neighbour within 4 A (the first is atom 4 of frame 1); are the "
        "positions in Angstrom?"
    )


def test_potentials_batches_name_atoms_in_the_same_place():
    twice = ethanol()
    twice.positions[5] = twice.positions[4]
    with pytest.raises(DataError, match="frame 1: atoms 4 and 5 are in the same place"):
        FrameBatches(AtomicDataset.from_frames([ethanol(), twice]), 4.0, LabelScale())
    cell = crystal()
    cell.positions[7] = cell.positions[2] + cell.cell.array[1]  # through the boundary
    with pytest.raises(DataError, match="frame 0: atoms 2 and 7 are in the same place"):
        FrameBatches(AtomicDataset.from_frames([cell]), 4.0, LabelScale())


@pytest.mark.physics
def test_potentials_a_crystal_is_the_same_in_every_cell():
    # One fcc crystal: primitive cell (1 atom, much smaller than the cutoff), cube, supercell.
    potential = lively(elements=["Al", "H"], dtype=torch.float64)
    calculator = DCCalculator(potential, dtype="float64")
    energies = []
    for atoms in (
        bulk("Al", "fcc", a=4.05),
        bulk("Al", "fcc", a=4.05, cubic=True),
        bulk("Al", "fcc", a=4.05).repeat((3, 2, 4)),
    ):
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy() / len(atoms))
        assert np.abs(atoms.get_forces()).max() < 1e-12
    assert np.ptp(energies) < 1e-12
    strained = bulk("Al", "fcc", a=4.10)
    strained.calc = calculator
    assert abs(strained.get_potential_energy() - energies[0]) > 1e-4


def test_potentials_wrapping_atoms_changes_nothing():
    potential = lively(dtype=torch.float64)
    inside, outside = crystal(), crystal()
    inside.wrap()
    outside.positions += np.array([[2, -1, 3]]) @ outside.cell.array
    for atoms in (inside, outside):
        atoms.calc = DCCalculator(potential, dtype="float64")
    assert inside.get_potential_energy() == pytest.approx(outside.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(inside.get_forces(), outside.get_forces(), atol=1e-9)
    np.testing.assert_allclose(inside.get_stress(), outside.get_stress(), atol=1e-9)


def test_potentials_pyg_data_has_both_directions():
    atoms = crystal()
    graph = build_graph(atoms.numbers, atoms.positions, 4.0, atoms.cell.array, atoms.pbc)
    data = graph.to_pyg()
    source, target = data.edge_index
    assert data.edge_index.shape[1] == 2 * graph.pairs.shape[1]
    r = data.pos[source] - data.pos[target] + data.shifts @ data.cell[0]
    d = graph.distances()
    torch.testing.assert_close(r.norm(dim=1), torch.cat([d, d]))
    assert data.z.tolist() == Atoms(atoms).numbers.tolist()


_SPARSE = {
    "cubic": np.diag([900.0, 800.0, 1000.0]),
    "left-handed": np.array([[0.0, 700.0, 40.0], [800.0, 0.0, 30.0], [20.0, 60.0, 900.0]]),
    "skewed": np.array([[900.0, 0.0, 0.0], [895.0, 90.0, 0.0], [0.0, 0.0, 1000.0]]),
    "tiny in one direction": np.array([[2.3, 0.3, 0.0], [0.0, 2000.0, 0.0], [0.0, 100.0, 2000.0]]),
}


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 0), (1, 0, 1)], ids=str)
@pytest.mark.parametrize("cell", list(_SPARSE))
def test_potentials_half_list_in_a_cell_that_is_mostly_empty(cell, pbc, monkeypatch):
    vectors, pbc = _SPARSE[cell], np.array(pbc, dtype=bool)
    monkeypatch.setattr("dcase.boxes.BOXES", 0)
    rng = np.random.default_rng(1)
    clusters = [
        rng.uniform(-3, 3, (6, 3)) + rng.integers(-2, 3, 3) * pbc @ vectors + rng.integers(0, 2, 3)
        for _ in range(3)
    ]
    positions = np.concatenate(clusters)
    cutoff = 3.9
    pairs, shifts = half_neighbour_list(positions, cutoff, vectors, pbc)
    found = [(int(i), int(j), *map(int, s)) for (i, j), s in zip(pairs.T, shifts, strict=True)]
    assert len(found) == len(set(found)) > 40
    # By the search in boxes, of atoms that are not far from each other.
    near = positions - np.round(positions @ np.linalg.inv(vectors) * pbc) @ vectors
    monkeypatch.setattr("dcase.boxes.BOXES", 10**9)
    expected, _ = half_neighbour_list(
        near, cutoff, vectors / 20 if pbc.sum() == 0 else vectors, pbc
    )
    graph = build_graph(np.ones(18, dtype=int), positions, cutoff, vectors, pbc)
    assert pairs.shape == expected.shape
    assert sorted(map(tuple, np.sort(pairs.T, axis=1).tolist())) == sorted(
        map(tuple, np.sort(expected.T, axis=1).tolist())
    )
    assert float(graph.distances().max()) < cutoff


@pytest.mark.parametrize("apart", [1e4, 1e5, 1e7])
@pytest.mark.parametrize("periodic", [False, True])
def test_potentials_memory_of_the_search_does_not_grow_with_empty_space(apart, periodic):
    molecule = np.random.default_rng(2).uniform(-3, 3, (30, 3))
    places = np.arange(11)[:, None] * np.array([apart, 0.7 * apart, 0.3 * apart])
    positions = (places[:, None] + molecule).reshape(-1, 3)
    own, _ = half_neighbour_list(molecule, 4.0)
    cell, pbc = (np.eye(3) * 40 * apart, np.ones(3, bool)) if periodic else (None, None)
    tracemalloc.start()
    pairs, _ = half_neighbour_list(positions, 4.0, cell, pbc)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    expected = np.concatenate([own + 30 * k for k in range(11)], axis=1)
    assert set(map(tuple, np.sort(pairs, axis=0).T.tolist())) == set(
        map(tuple, expected.T.tolist())
    )


@pytest.mark.parametrize("up", [-1000.0, -30.0, 55.0, 4000.0])
def test_potentials_a_slab_far_outside_its_cell_keeps_its_pairs(up):
    slab = fcc111("Cu", (2, 2, 3), a=3.6, vacuum=6.0)
    slab.pbc = (True, True, False)
    found = [
        half_neighbour_list(slab.positions + np.array([0, 0, z]), 4.0, slab.cell.array, slab.pbc)
        for z in (0.0, up)
    ]
    (expected, shifts), (moved, moved_shifts) = (
        (pairs[:, order], shifts[order])
        for pairs, shifts in found
        for order in [np.lexsort((*shifts.T, *pairs))]
    )
    assert np.array_equal(expected, moved)
    assert np.array_equal(shifts, moved_shifts)
