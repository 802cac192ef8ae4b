"""Damage of zip archives that neither zipfile nor torch notices."""

import struct
import zipfile

import numpy as np
import pytest
import torch

from dcase import checkpoint
from dcase.archives import damage, read_arrays
from dcase.errors import CheckpointError, DataError

CENTRAL = b"PK\x01\x02"


def entries(content):
    """Where the list of records has its entries."""
    found, start = [], content.find(CENTRAL)
    while start >= 0:
        found.append(start)
        start = content.find(CENTRAL, start + 1)
    return found


def saved(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, "test", 1, {"x": torch.arange(8.0), "y": torch.ones(8)})
    return path, bytearray(path.read_bytes())


def test_whole_archives_are_whole(tmp_path):
    path, _ = saved(tmp_path)
    assert damage(path) == ""
    np.savez(tmp_path / "a.npz", a=np.arange(3), b=1.0)
    np.savez_compressed(tmp_path / "b.npz", a=np.arange(3), b="text")
    assert damage(tmp_path / "a.npz") == damage(tmp_path / "b.npz") == ""
    assert read_arrays(tmp_path / "a.npz")["a"].tolist() == [0, 1, 2]


def test_a_record_marked_as_a_folder_is_not_read_as_zeros(tmp_path):
    """torch.load takes such a record's content from memory that nobody has written."""
    path, content = saved(tmp_path)
    for start in entries(content):
        damaged = bytearray(content)
        damaged[start + 38] |= 0x10
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged: its list of records"):
            checkpoint.load(path, "test", 1)


def test_records_hidden_by_a_comment_are_missed(tmp_path):
    """A comment said to be as long as the next entry hides that record."""
    path = tmp_path / "a.npz"
    np.savez(path, E=np.zeros(3), e_unit="eV")
    content = bytearray(path.read_bytes())
    first, second = entries(content)
    length = content.find(b"PK\x05\x06") - second
    struct.pack_into("<H", content, first + 32, length)
    path.write_bytes(content)
    assert zipfile.ZipFile(path).namelist() == ["E.npy"]
    with pytest.raises(DataError, match="its list of records"):
        read_arrays(path)


def test_a_shorter_size_is_not_believed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, E=np.arange(30.0))
    content = bytearray(path.read_bytes())
    start = entries(content)[0]
    size = struct.unpack_from("<I", content, start + 24)[0]
    struct.pack_into("<I", content, start + 24, size - 8)
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_arrays(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_wrong_byte_and_a_missing_end_are_told(tmp_path, share):
    path, content = saved(tmp_path)
    damaged = bytearray(content)
    place = content.find(struct.pack("<8f", *range(8)))
    damaged[place + int(32 * share)] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged: the checksum of"):
        checkpoint.load(path, "test", 1)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoint.load(path, "test", 1)
    assert damage(path)


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="damaged .*allow_pickle"):
        read_arrays(tmp_path / "a.npz")
