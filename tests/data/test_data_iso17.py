"""ISO17 in the published form: ASE databases, lists of rows, an archive."""

import io
import tarfile

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect

from dcase.data import iso17
from dcase.data.iso17 import count_rows, find_iso17, load_iso17, read_iso17, read_rows
from dcase.errors import DataError, OptionError

SYMBOLS = "C7O2H10"


def write_database(path, n, seed, *, forces=True, energy=True):
    """``n`` frames as ISO17 has them; frame f's energy is ``-100 seed - f`` eV."""
    rng = np.random.default_rng(seed)
    with connect(path) as database:
        for f in range(n):
            atoms = Atoms(SYMBOLS, positions=rng.normal(scale=3.0, size=(19, 3)))
            database.write(
                atoms,
                **({"total_energy": -100.0 * seed - f} if energy else {}),
                data={"atomic_forces": rng.normal(size=(19, 3))} if forces else {},
            )


@pytest.fixture
def folder(tmp_path):
    here = tmp_path / "iso17"
    here.mkdir()
    write_database(here / "reference.db", 20, 1)
    write_database(here / "test_within.db", 6, 2)
    write_database(here / "test_other.db", 5, 3)
    (here / "train_ids.txt").write_text("\n".join(str(i) for i in range(1, 16)) + "\n")
    (here / "validation_ids.txt").write_text("16\n17\n18\n")
    return here


def load(folder, **options):
    return load_iso17(folder, progress=False, **options)


def test_published_split(folder):
    found = load(folder)
    data, splits = found.dataset, found.splits
    # The lists count from 1: rows 1 to 15 train, whose energies are -100 to -114.
    assert sorted(data.energies[splits.train]) == sorted(-100.0 - np.arange(15))
    assert sorted(data.energies[splits.val]) == [-117.0, -116.0, -115.0]
    assert sorted(data.energies[splits.test]) == sorted(-200.0 - np.arange(6))
    assert found.test_name == "known isomers"
    ((name, other),) = found.further.items()
    assert name == "unknown isomers"
    assert sorted(other.energies) == sorted(-300.0 - np.arange(5))
    assert data.info.level_of_theory == "PBE+vdW-TS"
    assert data.elements == [1, 6, 8]


def test_labels_and_positions_are_those_of_the_row(folder):
    found = load(folder, n_train=3, n_val=1, n_test=2)
    with connect(folder / "reference.db") as database:
        for f in range(4):
            row = database.get(id=int(-99 - found.dataset.energies[f]))
            frame = found.dataset.frame(f)
            assert np.array_equal(frame.positions, row.positions)
            assert np.array_equal(frame.get_forces(), row.data["atomic_forces"])
            assert np.array_equal(frame.numbers, row.numbers)


def test_only_the_rows_drawn_are_decoded_and_once_only(folder, monkeypatch):
    from ase.db.core import Database

    asked = []
    plain = Database.get
    monkeypatch.setattr(
        Database, "get", lambda self, **kw: (asked.append(kw["id"]), plain(self, **kw))[1]
    )
    first = load(folder, n_train=4, n_val=2, n_test=1)
    assert len(asked) == 4 + 2 + 1 + 1
    second = load(folder, n_train=4, n_val=2, n_test=1)
    assert len(asked) == 8
    assert second.dataset.fingerprint() == first.dataset.fingerprint()
    # Another file under the same name is read anew.
    (folder / "reference.db").unlink()
    write_database(folder / "reference.db", 20, 9)
    third = load(folder, n_train=4, n_val=2, n_test=1)
    assert third.dataset.fingerprint() != first.dataset.fingerprint()


def test_larger_draws_contain_smaller_ones(folder):
    few, more = (set(load(folder, n_train=n, seed=5).dataset.energies[:n]) for n in (4, 9))
    assert few < more
    assert few != set(load(folder, n_train=4, seed=6).dataset.energies[:4])


def test_without_lists_the_reference_is_split(folder):
    (folder / "train_ids.txt").unlink()
    found = load(folder.parent)  # the folder above will do
    assert len(found.splits.train) == 19
    assert len(found.splits.val) == 1
    alone = load(folder / "reference.db", n_train=0.5, n_val=4)
    assert (len(alone.splits.train), len(alone.splits.val), len(alone.splits.test)) == (10, 4, 0)
    assert alone.test_name == ""
    assert not alone.further
    assert len(set(alone.dataset.energies)) == 14


def test_frames_of_a_part_for_cross_validation(folder):
    whole = read_iso17(folder, progress=False)
    assert whole.energies.tolist() == (-100.0 - np.arange(20)).tolist()
    some = read_iso17(folder, "other", n_frames=3, seed=1, progress=False)
    assert len(some) == 3
    assert some.energies.max() <= -300
    with pytest.raises(OptionError, match="part must be one of"):
        read_iso17(folder, "eq")
    with pytest.raises(DataError, match="only 20"):
        read_iso17(folder, n_frames=21, progress=False)


def test_labels_that_are_missing(tmp_path):
    write_database(tmp_path / "a.db", 5, 1, forces=False)
    with pytest.raises(DataError, match=r"a\.db: row 3 has no atomic_forces"):
        read_rows(tmp_path / "a.db", np.array([2, 4]), progress=False)
    energies_only = read_rows(tmp_path / "a.db", np.array([2, 4]), need=("energy",), progress=False)
    assert energies_only.forces is None
    assert energies_only.energies.tolist() == [-102.0, -104.0]
    write_database(tmp_path / "b.db", 3, 1, energy=False)
    with pytest.raises(DataError, match="row 1 has no total_energy"):
        read_rows(tmp_path / "b.db", np.array([0]), progress=False)


def test_what_is_not_iso17_is_one_line(tmp_path):
    (tmp_path / "reference.db").write_bytes(b"<html>log in</html>" * 100)
    for call in (
        lambda: count_rows(tmp_path / "reference.db"),
        lambda: load(tmp_path),
        lambda: load(tmp_path / "nothing"),
        lambda: read_rows(tmp_path / "reference.db", np.array([0]), progress=False),
    ):
        with pytest.raises(DataError) as caught:
            call()
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no reference\.db"):
        load(tmp_path / "empty")
    write_database(tmp_path / "a.db", 2, 1)
    with pytest.raises(DataError, match="has no row 3"):
        read_rows(tmp_path / "a.db", np.array([2]), progress=False)


def test_lists_that_are_none(folder):
    (folder / "train_ids.txt").write_text("one two")
    with pytest.raises(DataError, match=r"train_ids\.txt is not a list"):
        load(folder)
    (folder / "train_ids.txt").write_text("0 1 2")
    with pytest.raises(DataError, match="start at 1"):
        load(folder)


def test_download_goes_on_and_is_kept(folder, server, monkeypatch, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        # Of a size at which an interrupted download has something to go on from.
        (folder / "readme").write_bytes(np.random.default_rng(0).bytes(400_000))
        tar.add(folder, arcname="iso17")
    server.files["/iso17.tar.gz"] = buffer.getvalue()
    monkeypatch.setattr(iso17, "URL", server.url("/iso17.tar.gz"))
    server.drops = 1
    found = load("auto", cache_dir=tmp_path / "cache", n_train=5, n_val=2)
    assert any("Range" in headers for _, headers in server.requests)
    assert found.dataset.fingerprint() == load(folder, n_train=5, n_val=2).dataset.fingerprint()
    asked = len(server.requests)
    assert find_iso17(cache_dir=tmp_path / "cache", progress=False).other.is_file()
    assert len(server.requests) == asked
