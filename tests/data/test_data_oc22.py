"""OC22 and OC20: LMDB shards as published, ASE files, and the folders they come in."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from oc22_files import old_pyg, pyg, slab, write_lmdb

from dcase.data.atoms_files import read_atoms
from dcase.data.lmdb_frames import OC20_THEORY, OC22_THEORY, LmdbFile, read_lmdb
from dcase.data.oc22 import load_oc22
from dcase.errors import DataError, OptionError

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"the real OC20 and OC22 frames: not in {REAL}"
)


def same_frame(one, other):
    assert one.get_chemical_formula("reduce") == other.get_chemical_formula("reduce")
    np.testing.assert_allclose(one.positions, other.positions, atol=1e-6)
    np.testing.assert_allclose(one.cell.array, other.cell.array, atol=1e-6)
    np.testing.assert_array_equal(one.pbc, other.pbc)
    np.testing.assert_array_equal(one.get_tags(), other.get_tags())
    assert one.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-9)
    for constrained in (True, False):  # also that the same atoms are held in place
        np.testing.assert_allclose(
            one.get_forces(apply_constraint=constrained),
            other.get_forces(apply_constraint=constrained),
            atol=1e-7,
        )


@pytest.fixture
def published(tmp_path):
    """A folder as OC22 is published: shards of frames in train, val_id and val_ood."""
    sizes = {"train": (7, 5, 8), "val_id": (4,), "val_ood": (3, 3)}
    seed = 0
    for name, shards in sizes.items():
        (tmp_path / name).mkdir()
        for number, count in enumerate(shards):
            blobs = [pyg(slab(seed + i), seed + i) for i in range(count)]
            write_lmdb(tmp_path / name / f"data.{number:04d}.lmdb", blobs)
            seed += count
        (tmp_path / name / "00.txt").write_text("not a file of frames\n")
        np.savez(tmp_path / name / "metadata.npz", natoms=np.ones(3))
    return tmp_path


def seeds(data, indices):
    """Which ``slab(seed)`` frames are, by their energies."""
    table = {round(slab(seed).get_potential_energy(), 9): seed for seed in range(40)}
    return [table[round(float(data.energies[i]), 9)] for i in indices]


# --------------------------------------------------------------------------------------- a file


@pytest.mark.parametrize("make", [pyg, old_pyg], ids=["PyG 2", "PyG 1"])
@pytest.mark.parametrize("length", [True, False])
def test_a_published_shard(tmp_path, make, length):
    slabs = [slab(0), slab(1, "TiO2H"), slab(2, "Zr3O4")]
    file = write_lmdb(tmp_path / "data.0000.lmdb", [make(a) for a in slabs], length)
    data = read_lmdb(file)
    assert len(data) == 3
    for got, expected in zip(data, slabs, strict=True):
        same_frame(got, expected)
    assert data.info.level_of_theory == (OC22_THEORY if make is pyg else "unknown")
    assert (data.info.label_unit, data.info.source) == ("eV", str(file))


def test_only_chosen_frames_are_read(tmp_path):
    blobs = [pyg(slab(i)) for i in range(6)]
    blobs[0] = blobs[3] = b"damaged"
    file = write_lmdb(tmp_path / "a.lmdb", blobs)
    data = read_lmdb(file, [4, 1])
    assert seeds(data, range(2)) == [4, 1]
    with pytest.raises(DataError, match=r"a\.lmdb: entry 3: damaged"):
        read_lmdb(file, [1, 3])
    assert data.info.sha256 != read_lmdb(file, [4, 2]).info.sha256
    assert data.info.sha256 == read_lmdb(file, [4, 1]).info.sha256


def test_keys_with_gaps(tmp_path):
    import lmdb

    environment = lmdb.open(str(tmp_path / "a.lmdb"), map_size=2**22, subdir=False)
    with environment.begin(write=True) as transaction:
        for key in (2, 10, 3):
            transaction.put(b"%d" % key, pyg(slab(key)))
        transaction.put(b"metadata", b"of someone's own")
    environment.close()
    assert seeds(read_lmdb(tmp_path / "a.lmdb"), range(3)) == [2, 3, 10]


def test_variants_of_fields(tmp_path):
    atoms = slab(0)
    n = len(atoms)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
    blob = old_pyg(
        atoms,
        y=None,
        energy=torch.tensor([energy], dtype=torch.float64),
        force=None,
        forces=torch.tensor(forces),
        atomic_numbers=torch.tensor(atoms.numbers),
        cell=torch.tensor(atoms.cell.array, dtype=torch.float32),
        tags=None,
        fixed=torch.zeros(n),
        oc22=0,
    )
    molecule = old_pyg(atoms, cell=None, oc22=0)
    data = read_lmdb(write_lmdb(tmp_path / "a.lmdb", [blob, molecule]))
    np.testing.assert_allclose(data.energies, energy)
    np.testing.assert_allclose(data.forces[:n], forces)
    assert data.pbc.tolist() == [[True] * 3, [False] * 3]
    assert data.tags[:n].tolist() == [0] * n
    assert not data.fixed[:n].any()
    assert data.fixed[n:].any()
    assert data.info.level_of_theory == OC20_THEORY


def test_periodic_directions_and_marks_are_as_the_file_says(tmp_path):
    atoms = slab(0)
    n = len(atoms)
    held = torch.tensor([0.0, 2.0, 0.0, -1.0] + [0.0] * (n - 4))
    blob = old_pyg(atoms, pbc=torch.tensor([True, True, False]), fixed=held)
    data = read_lmdb(write_lmdb(tmp_path / "a.lmdb", [blob]))
    assert data.pbc.tolist() == [[True, True, False]]
    assert np.flatnonzero(data.fixed).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": None}, "has no energy (y or energy); it holds"),
        ({"force": None}, "has no forces (force or forces); it holds"),
        ({"y": float("nan")}, "energy is NaN or infinite"),
        ({"force": torch.full((7, 3), torch.inf)}, "forces is NaN or infinite"),
        ({"force": torch.ones(3, 7)}, "'force' has shape (3, 7), expected (7, 3)"),
        ({"pos": None}, "has no pos"),
        ({"pos": "text"}, "'pos' does not hold numbers"),
        ({"atomic_numbers": None}, "has no usable atomic_numbers"),
        ({"atomic_numbers": torch.full((7,), torch.nan)}, "has no usable atomic_numbers"),
        ({"cell": torch.zeros(1, 3, 3)}, "its cell has no volume"),
        ({"tags": torch.ones(6)}, "'tags' has shape (6,), expected (7,)"),
    ],
)
def test_frames_that_will_not_do(tmp_path, change, message):
    file = write_lmdb(tmp_path / "a.lmdb", [pyg(slab(0)), old_pyg(slab(1), **change)])
    with pytest.raises(DataError) as caught:
        read_lmdb(file)
    assert f"{file}: entry 1: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_nobody_needs_may_be_missing(tmp_path):
    file = write_lmdb(tmp_path / "a.lmdb", [pyg(slab(0)), old_pyg(slab(1), y=None, oc22=1)])
    data = read_lmdb(file, need=["forces"])
    assert data.energies is None
    assert data.forces.shape == (14, 3)


def test_frames_of_both_datasets_do_not_mix(tmp_path):
    file = write_lmdb(tmp_path / "a.lmdb", [pyg(slab(0)), old_pyg(slab(1), oc22=0)])
    with pytest.raises(DataError, match="mixes"):
        read_lmdb(file)


def test_files_that_are_none(tmp_path):
    whole = write_lmdb(tmp_path / "a.lmdb", [pyg(slab(i)) for i in range(30)]).read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "truncated"),
        (whole[:100], "truncated"),
        (b"", "is empty"),
        (b"<html>log in</html>" * 1000, "not an LMDB file"),
    ):
        (tmp_path / "b.lmdb").write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            LmdbFile(tmp_path / "b.lmdb")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        LmdbFile(tmp_path / "c.lmdb")
    with pytest.raises(DataError, match="has no frames"):
        LmdbFile(write_lmdb(tmp_path / "d.lmdb", []))
    with pytest.raises(DataError, match="empty selection"):
        read_lmdb(tmp_path / "a.lmdb", [])


# --------------------------------------------------------------------------------------- folders


def test_published_folders(published):
    found = load_oc22(published)
    data, splits = found.dataset, found.splits
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [20, 4, 6]
    assert seeds(data, splits.train) == list(range(20))
    assert seeds(data, splits.val) == list(range(20, 24))
    assert seeds(data, splits.test) == list(range(24, 30))
    assert found.test_name == "out of domain: val_ood"
    assert data.info.level_of_theory == OC22_THEORY
    assert data.fixed.sum() == 3 * 30
    for i, atoms in enumerate(data):
        same_frame(atoms, slab(i))


def test_draws_are_seeded_and_nested(published):
    def draw(n_train, seed=0, **more):
        found = load_oc22(published, n_train=n_train, n_val=2, n_test=2, seed=seed, **more)
        parts = (found.splits.train, found.splits.val, found.splits.test)
        return [seeds(found.dataset, part) for part in parts]

    first = draw(6)
    assert first == draw(6)
    assert first[0] == sorted(set(first[0]))
    assert set(first[0]) < set(range(20))
    assert set(first[0]) < set(draw(12)[0])
    assert first[1:] == draw(12)[1:]
    assert first[0] != draw(6, seed=1)[0]
    assert len(draw(0.5)[0]) == 10
    fingerprints = {
        load_oc22(published, n_train=6, n_val=2, n_test=2, seed=s).dataset.fingerprint()
        for s in (0, 0, 1)
    }
    assert len(fingerprints) == 2


def test_validation_is_split_off_where_it_has_no_folder(published):
    (published / "val_id").rename(published / "elsewhere")
    (published / "val_ood").rename(published / "elsewhere_2")
    found = load_oc22(published)
    assert (len(found.splits.train), len(found.splits.val), len(found.splits.test)) == (19, 1, 0)
    assert found.test_name == ""
    found = load_oc22(published, n_train=10, n_val=3, test_rest=True)
    assert (len(found.splits.train), len(found.splits.val), len(found.splits.test)) == (10, 3, 7)
    assert sorted(seeds(found.dataset, range(20))) == list(range(20))  # no frame twice
    assert "rest" in found.test_name
    found = load_oc22(published, n_train=10, n_val=3, n_test=2, test_rest=True)
    assert len(found.splits.test) == 2
    assert len(load_oc22(published, n_train=10).splits.val) == 1


def test_numbers_of_frames(published):
    found = load_oc22(published, n_val=0, n_test=0)
    assert (len(found.splits.val), len(found.splits.test)) == (0, 0)
    assert len(found.dataset) == 20
    assert len(load_oc22(published, n_train=3).splits.val) == 3  # not more than train
    with pytest.raises(DataError, match=r"train: 21 training .* there are only 20"):
        load_oc22(published, n_train=21)
    with pytest.raises(DataError, match=r"val_ood: 7 .* there are only 6"):
        load_oc22(published, n_test=7)
    with pytest.raises(OptionError, match="no frames to train on"):
        load_oc22(published, n_train=0)


@pytest.mark.parametrize("name", ["all.extxyz", "all.traj", "all.db"])
def test_ase_files(tmp_path, name):
    slabs = [slab(i) for i in range(10)]
    ase.io.write(tmp_path / name, slabs)
    for source in (tmp_path, tmp_path / name):
        found = load_oc22(source, n_train=7, n_val=3)
        assert (len(found.splits.train), len(found.splits.val)) == (7, 3)
        for atoms, seed in zip(found.dataset, seeds(found.dataset, range(10)), strict=True):
            same_frame(atoms, slab(seed))


def test_lmdb_and_ase_files_together(tmp_path):
    for name in ("train", "val", "test"):
        (tmp_path / name).mkdir()
    write_lmdb(tmp_path / "train" / "a.lmdb", [pyg(slab(i)) for i in range(4)])
    ase.io.write(tmp_path / "train" / "b.extxyz", [slab(i) for i in range(4, 6)])
    ase.io.write(tmp_path / "val" / "c.traj", [slab(6)])
    ase.io.write(tmp_path / "test" / "d.db", [slab(i, "Hf2O4H") for i in (7, 8)])
    with pytest.raises(
        DataError, match=r"mixes labels of PBE\+U \(OC22\) and unknown, .* --theory"
    ):
        load_oc22(tmp_path)
    with pytest.raises(DataError, match="mixes labels of PBE and PBE"):
        load_oc22(tmp_path, theory="PBE")
    found = load_oc22(tmp_path, theory=OC22_THEORY)
    assert seeds(found.dataset, found.splits.train) == list(range(6))
    assert seeds(found.dataset, found.splits.val) == [6]
    assert found.test_name == "test"
    # Elements of all frames, also of those only tested on.
    assert found.dataset.elements == [1, 8, 22, 72]
    assert found.dataset.fixed.sum() == 3 * 9
    assert found.dataset.info.level_of_theory == OC22_THEORY


def test_level_of_theory(tmp_path):
    for name, theory in (
        ("mine.extxyz", "unknown"),
        ("OC22_some.extxyz", OC22_THEORY),
        ("some-oc20.extxyz", OC20_THEORY),
        ("oc20_oc22.extxyz", "unknown"),
    ):
        ase.io.write(tmp_path / name, [slab(0), slab(1)])
        assert load_oc22(tmp_path / name).dataset.info.level_of_theory == theory
    given = load_oc22(tmp_path / "mine.extxyz", theory="PBE").dataset
    assert given.info.level_of_theory == "PBE"


def test_frames_with_huge_forces_are_left_out_of_training_only(tmp_path):
    slabs = [slab(i) for i in range(6)]
    slabs[1].calc.results["forces"][5] = 80.0  # a free atom
    slabs[2].calc.results["forces"][0] = 80.0  # a fixed one
    for name in ("train", "val_ood"):
        (tmp_path / name).mkdir()
        ase.io.write(tmp_path / name / "a.extxyz", slabs)
    lines = []
    found = load_oc22(tmp_path, n_val=0, notify=lines.append)
    assert seeds(found.dataset, found.splits.train) == [0, 2, 3, 4, 5]
    assert seeds(found.dataset, found.splits.test) == [0, 1, 2, 3, 4, 5]
    assert len(lines) == 1
    assert "1 of 6 frames for training left out: forces of up to 80 eV/A" in lines[0]
    assert len(load_oc22(tmp_path, n_val=0, max_force=90).splits.train) == 6
    with pytest.raises(DataError, match="raise --max-force"):
        load_oc22(tmp_path, n_val=0, max_force=1e-6)
    with pytest.raises(OptionError, match="max_force"):
        load_oc22(tmp_path, max_force=0.0)


def test_sources_that_will_not_do(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load_oc22(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no frames to train on; it must hold .* holds nothing"):
        load_oc22(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DataError, match=r"it holds a\.txt"):
        load_oc22(tmp_path)
    with pytest.raises(DataError, match="nor a folder of such files"):
        load_oc22(tmp_path / "a.txt")


# ------------------------------------------------------------------------------------ real frames


@needs_real
@pytest.mark.data
@pytest.mark.parametrize("name", ["oc22_train16", "oc22_val16"])
def test_real_oc22_frames_through_a_published_shard(tmp_path, name):
    frames = ase.io.read(REAL / "oc22" / f"{name}.extxyz", ":")
    data = read_lmdb(write_lmdb(tmp_path / "data.0000.lmdb", [pyg(a) for a in frames]))
    direct = read_atoms(REAL / "oc22" / f"{name}.extxyz")
    np.testing.assert_array_equal(data.numbers, direct.numbers)
    np.testing.assert_allclose(data.positions, direct.positions, atol=1e-5)
    np.testing.assert_allclose(data.cells, direct.cells, atol=1e-5)
    np.testing.assert_allclose(data.forces, direct.forces, atol=1e-6)
    np.testing.assert_array_equal(data.energies, direct.energies)
    np.testing.assert_array_equal(data.tags, direct.tags)
    assert data.n_atoms.max() > 100


@needs_real
@pytest.mark.data
def test_real_oc20_relaxations():
    found = load_oc22(REAL / "oc20", n_train=40, n_val=10)
    data = found.dataset
    assert (len(found.splits.train), len(found.splits.val)) == (40, 10)
    assert data.info.level_of_theory == OC20_THEORY
    assert 0.3 < data.fixed.mean() < 0.9
    assert data.pbc.all()
