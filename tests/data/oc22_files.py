"""Slabs with made-up labels, and files of them as the Open Catalyst Project publishes."""

import io
import pickle

import ase
import lmdb
import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from torch_geometric.data import Data


def slab(seed, symbols="Ti2O4H", fixed=3):
    """Atoms in a cell, tagged, the first ones held in place, with labels."""
    rng = np.random.default_rng(seed)
    n = len(ase.Atoms(symbols))
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)[:n] * 2.0
    cell = [[4.5, 0, 0], [0.5, 4.25, 0], [0, 0, 12]]
    atoms = ase.Atoms(symbols, grid + rng.normal(0, 0.1, (n, 3)), cell=cell, pbc=True)
    atoms.set_tags([0] * fixed + [1] * (n - fixed - 1) + [2])
    atoms.set_constraint(FixAtoms(range(fixed)))
    # As precise as the published files, which are float32.
    atoms.positions = atoms.positions.astype(np.float32)
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=-100.0 - 8.0 * n + rng.normal(),
        forces=rng.normal(0, 0.3, (n, 3)).astype(np.float32).astype(float),
    )
    return atoms


def fields(atoms, number=0, **more):
    """The fields of a published frame."""
    held = np.zeros(len(atoms))
    for constraint in atoms.constraints:
        held[constraint.get_indices()] = 1.0
    return {
        "pos": torch.tensor(atoms.positions, dtype=torch.float32),
        "cell": torch.tensor(atoms.cell.array, dtype=torch.float32)[None],
        "atomic_numbers": torch.tensor(atoms.numbers, dtype=torch.float32),
        "natoms": len(atoms),
        "tags": torch.tensor(atoms.get_tags()),
        "fixed": torch.tensor(held, dtype=torch.float32),
        "sid": number,
        "fid": 7,
        "nads": 1,
        "y": atoms.get_potential_energy(),
        "force": torch.tensor(atoms.get_forces(apply_constraint=False), dtype=torch.float32),
        **more,
    }


def pyg(atoms, number=0, **more):
    """A published frame: the pickle of a real ``torch_geometric.data.Data``."""
    return pickle.dumps(Data(**fields(atoms, number, oc22=1, **more)), protocol=-1)


class _OldPickler(pickle._Pickler):
    """Pickles a dict as version 1 of PyTorch Geometric did a Data: attributes in ``__dict__``."""

    def dump_fields(self, values):
        unused = ("x", "edge_index", "edge_attr", "normal", "face")
        self.write(pickle.PROTO + bytes([self.proto]))
        self.save_global(Data)
        self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        self.save({**dict.fromkeys(unused), **values})
        self.write(pickle.BUILD + pickle.STOP)


def old_pyg(atoms, number=0, **more):
    """A frame as version 1 of PyTorch Geometric pickled it, which version 2 cannot use."""
    buffer = io.BytesIO()
    _OldPickler(buffer, 3).dump_fields(fields(atoms, number, **more))
    return buffer.getvalue()


def write_lmdb(path, blobs, length=True):
    """An LMDB shard of frames."""
    environment = lmdb.open(str(path), map_size=2**24, subdir=False, meminit=False)
    with environment.begin(write=True) as transaction:
        for number, blob in enumerate(blobs):
            transaction.put(str(number).encode("ascii"), blob)
        if length:
            transaction.put(b"length", pickle.dumps(len(blobs), protocol=-1))
    environment.sync()
    environment.close()
    lock = path.with_name(path.name + "-lock")
    assert lock.exists()  # as in the published folders: not a file of frames
    return path
