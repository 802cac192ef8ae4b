"""Reference frames whose atoms stand in another order."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from dcase.data.dataset import AtomicDataset
from dcase.data.molecules import structure
from dcase.errors import DataError
from dcase.md_runs.analysis.matching import matched_frames, matching_order
from dcase.md_runs.analysis.stability import bond_stability


def shuffled(atoms: Atoms, seed: int) -> tuple[Atoms, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(atoms))
    return atoms[order], order


@pytest.mark.parametrize("name", ["ethanol", "aspirin", "naphthalene", "paracetamol"])
def test_any_order_is_found_back_with_all_distances(name: str) -> None:
    atoms = structure(name)
    for seed in range(3):
        other, _ = shuffled(atoms, seed)
        order = matching_order(atoms, other)
        assert order is not None
        assert sorted(order) == list(range(len(atoms)))
        back = other[order]
        assert (back.numbers == atoms.numbers).all()
        # Of symmetric atoms the right ones: a rotation or reflection of the molecule, not a swap
        assert np.allclose(back.get_all_distances(), atoms.get_all_distances(), atol=0.02)


def test_the_order_of_atoms_with_the_same_bonds_is_left_alone() -> None:
    atoms = structure("ethanol")
    other = atoms.copy()
    other.rattle(0.05, seed=1)
    assert (matching_order(atoms, other) == np.arange(9)).all()


def test_isomers_and_other_molecules_do_not_match() -> None:
    ethanol = structure("ethanol")
    from ase.build import molecule

    ether = molecule("CH3OCH3")
    assert sorted(ether.numbers) == sorted(ethanol.numbers)
    assert matching_order(ethanol, ether) is None
    assert matching_order(ethanol, structure("malonaldehyde")) is None
    with pytest.raises(DataError, match="with the bonds of the structure"):
        matched_frames(AtomicDataset.from_frames([ether]), ethanol, "ether.xyz")
    with pytest.raises(DataError, match="all in one order"):
        matched_frames(AtomicDataset.from_frames([structure("benzene")]), ethanol, "b.xyz")


def test_reference_lengths_of_a_shuffled_file_are_those_of_the_same_bonds() -> None:
    """The usual ethanol file: heavy atoms in the same places, hydrogens in others."""
    atoms = structure("ethanol")
    order = np.array([0, 1, 2, 8, 7, 6, 5, 4, 3])
    assert (atoms.numbers[order] == atoms.numbers).all()  # elements alone do not tell
    file = AtomicDataset.from_frames([atoms[order]] * 3)
    times, positions = np.arange(5.0), np.tile(atoms.positions, (5, 1, 1))
    wrong = bond_stability(
        times, positions, atoms, reference_positions=file.positions.reshape(3, 9, 3)
    )
    assert wrong.collapsed
    assert wrong.stable_ps == 0.0
    matched, reordered = matched_frames(file, atoms, "ethanol.xyz")
    right = bond_stability(times, positions, atoms, reference_positions=matched)
    assert reordered
    assert not right.collapsed
    assert right.largest_deviation_A < 0.01
