"""HDF5 files carry a checksum behind their end, compared before anything of them is parsed."""

import h5py
import numpy as np
import pytest

from dcase import hdf5
from dcase.errors import DataError, DcaseError, SimulationError


def made(path):
    with hdf5.created(path) as file:
        file["x"] = np.arange(100.0)
        file.attrs["text"] = "words of variable length"
    return path


def test_what_was_written_is_read_by_everybody(tmp_path):
    path = made(tmp_path / "a.h5")
    for opened in (hdf5.opened, h5py.File):
        with opened(path) as file:
            assert np.array_equal(file["x"], np.arange(100.0))
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_every_changed_byte_is_noticed_before_hdf5_sees_it(tmp_path, monkeypatch):
    path = made(tmp_path / "a.h5")
    content = path.read_bytes()
    monkeypatch.setattr(h5py, "is_hdf5", lambda _: pytest.fail("it was parsed"))
    for place in range(0, len(content) - 80, 97):
        damaged = bytearray(content)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(SimulationError, match="changed since it was written; make it again"):
            hdf5.opened(path, SimulationError, "make it again").__enter__()


def test_files_of_others_have_no_checksum_and_are_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    with hdf5.opened(tmp_path / "a.h5") as file:
        assert file["x"][()] == 1


@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
def test_a_file_cut_short_is_told(tmp_path, share):
    path = made(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[: int(share * (path.stat().st_size - 78))])
    with pytest.raises(DataError, match="cut short|damaged"), hdf5.opened(path) as file:
        np.asarray(file["x"])


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), KeyError("'gone'"), UnicodeDecodeError("utf-8", b"", 0, 1, "x")]
)
def test_what_goes_wrong_while_it_is_open_is_one_line(tmp_path, error):
    with (
        pytest.raises(DataError, match=r"a\.h5 is damaged \(.*\)") as caught,
        hdf5.opened(made(tmp_path / "a.h5")),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_an_error_of_ours_and_a_failed_write_go_through(tmp_path):
    path = made(tmp_path / "a.h5")
    with pytest.raises(SimulationError, match="^mine$"), hdf5.opened(path):
        raise SimulationError("mine")
    before = path.read_bytes()
    with pytest.raises(DcaseError, match="mine"), hdf5.created(path):
        raise SimulationError("mine")
    assert path.read_bytes() == before
