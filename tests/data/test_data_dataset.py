"""Frames of a dataset keep what is theirs, whichever are taken and in whatever order."""

import numpy as np
import pytest
from ase.constraints import FixAtoms
from oc22_files import slab

from dcase.data.dataset import AtomicDataset

SYMBOLS = ("Ti2O4H", "TiO2H", "Zr3O4")


def made():
    """Three slabs that differ in all that a frame can have, and their stress."""
    frames = []
    for number, symbols in enumerate(SYMBOLS):
        atoms = slab(number, symbols)
        atoms.set_cell(atoms.cell.array * (1.0 + 0.1 * number))
        atoms.pbc = [True, number > 0, number > 1]
        atoms.set_tags((np.arange(len(atoms)) + number) % 3)
        atoms.set_constraint(FixAtoms([number, number + 1]))
        frames.append(atoms)
    return frames, np.arange(18.0).reshape(3, 6)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0], [1], [2, 2, 1]])
def test_frames_taken_in_any_order_keep_what_is_theirs(order):
    frames, stress = made()
    structures = AtomicDataset.from_frames(frames)
    data = AtomicDataset(
        **{
            **{name: getattr(structures, name) for name in structures.__dataclass_fields__},
            "energies": np.array([1.0, 2.0, 3.0]),
            "forces": structures.positions * 2.0,
            "stress": stress,
        }
    )
    taken = data.subset(order)
    assert len(taken) == len(order)
    own = np.split(structures.fixed, structures.ptr[1:-1])
    np.testing.assert_array_equal(taken.fixed, np.concatenate([own[number] for number in order]))
    for number, found in zip(order, taken, strict=True):
        atoms = frames[number]
        assert found.numbers.tolist() == atoms.numbers.tolist()
        np.testing.assert_array_equal(found.positions, atoms.positions)
        np.testing.assert_array_equal(found.cell.array, atoms.cell.array)
        assert found.pbc.tolist() == atoms.pbc.tolist()
        assert found.get_tags().tolist() == atoms.get_tags().tolist()
        held = found.constraints[0].get_indices()
        assert held.tolist() == atoms.constraints[0].get_indices().tolist()
        assert found.get_potential_energy() == number + 1.0
        forces = found.get_forces(apply_constraint=False)
        np.testing.assert_array_equal(forces, 2.0 * atoms.positions)
        np.testing.assert_array_equal(found.get_stress(apply_constraint=False), stress[number])


@pytest.mark.parametrize("change", ["cells", "pbc", "tags", "fixed", "positions", "numbers"])
def test_datasets_that_differ_have_fingerprints_that_differ(change):
    one, two = (AtomicDataset.from_frames(made()[0]) for _ in range(2))
    assert one.fingerprint() == two.fingerprint()
    values = getattr(two, change)
    values[0] = ~values[0] if values.dtype == bool else values[0] + 1
    assert one.fingerprint() != two.fingerprint()
