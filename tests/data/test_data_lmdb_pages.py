"""LMDB files read page by page: the same as the library, and damage never ends the process."""

import random
import struct

import lmdb
import pytest

from dcase.data.lmdb_pages import LmdbPages
from dcase.errors import DataError


def written(path, entries, deleted=(), steps=1):
    """A file that the library wrote, in ``steps`` transactions, some entries deleted again."""
    environment = lmdb.open(str(path), map_size=2**26, subdir=False)
    items = list(entries.items())
    for step in range(steps):
        with environment.begin(write=True) as transaction:
            for key, value in items[step::steps]:
                transaction.put(key, value)
    with environment.begin(write=True) as transaction:
        for key in deleted:
            transaction.delete(key)
    environment.close()
    return path


def small_entries(seed, count, largest):
    rng = random.Random(seed)
    return {b"%d" % n: rng.randbytes(rng.randrange(largest)) for n in range(count)}


@pytest.mark.parametrize(
    ("count", "largest", "deleted", "steps"),
    [
        (0, 1, 0, 1),
        (1, 10, 0, 1),
        (3, 9000, 0, 1),  # values on pages of their own
        (400, 60, 0, 1),  # branch pages
        (3000, 300, 1000, 7),  # deeper, with pages freed and used again
        (200, 3000, 50, 50),
    ],
)
def test_entries_are_those_the_library_wrote(tmp_path, count, largest, deleted, steps):
    entries = small_entries(count, count, largest)
    gone = random.Random(1).sample(sorted(entries), deleted)
    path = written(tmp_path / "a.lmdb", entries, gone, steps)
    left = {key: value for key, value in entries.items() if key not in gone}
    with LmdbPages(path) as pages:
        assert len(pages) == len(left)
        assert list(pages) == sorted(left)
        assert {key: pages.get(key) for key in entries} == {key: left.get(key) for key in entries}
        assert pages.get(b"") is pages.get(b"~") is pages.get(b"0x") is None


def test_tables_within_the_table_and_sorted_duplicates_are_no_entries(tmp_path):
    environment = lmdb.open(str(tmp_path / "a.lmdb"), map_size=2**20, subdir=False, max_dbs=2)
    inner = environment.open_db(b"inner")
    with environment.begin(write=True) as transaction:
        transaction.put(b"0", b"plain")
        transaction.put(b"k", b"v", db=inner)
    environment.close()
    with LmdbPages(tmp_path / "a.lmdb") as pages:
        assert pages.get(b"0") == b"plain"
        with pytest.raises(DataError, match="no plain entry"):
            pages.get(b"inner")


def everything(path):
    with LmdbPages(path) as pages:
        return {key: pages.get(key) for key in pages}


def outcome(path):
    """What there is in a file, or the one line that says why not."""
    try:
        return everything(path)
    except DataError as error:
        line = str(error)
    assert "\n" not in line
    assert str(path) in line
    return line


def test_single_wrong_bytes_are_told_or_are_in_a_value(tmp_path):
    """LMDB has no checksums: a wrong byte in a value or a key cannot be noticed; others are."""
    entries = small_entries(5, 40, 4000)
    path = written(tmp_path / "a.lmdb", entries, steps=3)
    whole = path.read_bytes()
    rng = random.Random(2)
    told = 0
    # The first bytes of every page hold what the tree is made of.
    places = [start + k for start in range(0, len(whole), 4096) for k in range(0, 80, 5)]
    for place in [*places, *(rng.randrange(len(whole)) for _ in range(200))]:
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(bytes([whole[place] ^ 1 << rng.randrange(8)]))
        found = outcome(path)
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(whole[place : place + 1])
        if isinstance(found, str):
            told += 1
            continue
        assert len(found) <= len(entries)
        assert all(
            len(value) == len(entries[key]) for key, value in found.items() if key in entries
        )
    assert told > 100


@pytest.mark.parametrize("seed", range(40))
def test_truncated_and_overwritten_files_are_told(tmp_path, seed):
    rng = random.Random(seed)
    entries = small_entries(6, 60, 2000)
    path = written(tmp_path / "a.lmdb", entries)
    content = bytearray(path.read_bytes())
    if seed % 2:
        content = content[: rng.randrange(1, len(content) - 4096)]
    else:
        start = rng.randrange(len(content))
        content[start : start + 3000] = rng.randbytes(len(content[start : start + 3000]))
    path.write_bytes(content)
    found = outcome(path)
    assert isinstance(found, str) or found.keys() == entries.keys()
    if seed % 2:
        assert isinstance(found, str)


def test_a_file_cut_short_while_it_is_open_is_told(tmp_path):
    path = written(tmp_path / "a.lmdb", small_entries(7, 50, 5000))
    with LmdbPages(path) as pages:
        keys = list(pages)
        with open(path, "r+b") as file:
            file.truncate(9000)
        with pytest.raises(DataError, match="truncated"):
            [pages.get(key) for key in keys]


def test_circles_and_shared_pages_are_told(tmp_path):
    path = written(tmp_path / "a.lmdb", small_entries(8, 600, 60))
    content = bytearray(path.read_bytes())
    branch = next(
        start
        for start in range(8192, len(content), 4096)
        if struct.unpack_from("<H", content, start + 10)[0] == 1
    )
    first, second = struct.unpack_from("<HH", content, branch + 16)
    for child in (branch // 4096, struct.unpack_from("<H", content, branch + second)[0]):
        damaged = bytearray(content)
        struct.pack_into("<H", damaged, branch + first, child)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged: .*(twice|should be)"):
            everything(path)


def test_two_entries_cannot_share_a_value(tmp_path):
    path = written(tmp_path / "a.lmdb", {b"0": b"x" * 5000, b"1": b"y" * 5000})
    content = bytearray(path.read_bytes())
    leaf = next(
        start
        for start in range(8192, len(content), 4096)
        if struct.unpack_from("<H", content, start + 10)[0] == 2
    )
    first, second = struct.unpack_from("<HH", content, leaf + 16)
    content[leaf + second + 9 : leaf + second + 17] = content[leaf + first + 9 : leaf + first + 17]
    path.write_bytes(content)
    with pytest.raises(DataError, match="said to be one entry"):
        everything(path)


@pytest.mark.parametrize("seed", range(3))
def test_files_with_a_long_past(tmp_path, seed):
    """Entries written, replaced by longer and shorter ones, and deleted in many transactions."""
    rng = random.Random(seed)
    path, reference = tmp_path / "a.lmdb", {}
    environment = lmdb.open(str(path), map_size=2**28, subdir=False, sync=False)
    for _ in range(25):
        with environment.begin(write=True) as transaction:
            for _ in range(rng.randrange(1, 300)):
                long = rng.random() < 0.3
                key = rng.randbytes(rng.randrange(1, 400)) if long else b"%d" % rng.randrange(2000)
                if rng.random() < 0.35:
                    transaction.delete(key)
                    reference.pop(key, None)
                else:
                    value = rng.randbytes(rng.choice([3, 50, 500, 2500, 9000]))
                    transaction.put(key, value)
                    reference[key] = value
    environment.close()
    assert everything(path) == reference
