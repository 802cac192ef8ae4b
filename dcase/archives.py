"""Zip archives (checkpoints, npz files): whole by their checksums, or one line says why not."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import numpy as np

from dcase.errors import DataError, DcaseError
from dcase.files import check_readable, reason

_LOCAL = struct.Struct("<26xHH")  # of a record: what ends with the sizes of its name and extra
_IS_FOLDER = 0x10
_BETWEEN = (0, 12, 16, 20, 24)  # bytes of a descriptor, which may follow a record


def damage(path: str | os.PathLike[str]) -> str:
    """What is wrong with a zip archive, by the checksums of all of its records; "" if nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            if not _side_by_side(archive):
                return "its list of records does not fit them"
            record = archive.testzip()
    except Exception as error:  # zipfile and zlib raise many types for damaged archives
        return reason(error)[:160]
    return f"the checksum of {record[:80]!r} is wrong" if record else ""


def holds_only(path: str | os.PathLike[str], ending: str) -> bool:
    """Whether the names of all records of a whole archive end so."""
    with zipfile.ZipFile(path) as archive:
        return all(name.endswith(ending) for name in archive.namelist())


def check_archive(path: str | os.PathLike[str]) -> None:
    """Refuse a damaged archive.

    Raises:
        ValueError: If there is :func:`damage`.
        OSError: If it cannot be read.
    """
    os.close(os.open(path, os.O_RDONLY))
    wrong = damage(path)
    if wrong:
        raise ValueError(wrong)


def _side_by_side(archive: zipfile.ZipFile) -> bool:
    """Whether the records of an archive fill it: none is hidden or cut, which no checksum tells."""
    file = archive.fp
    assert file is not None
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            return False
        if info.external_attr & _IS_FOLDER:  # for which torch's reader makes up the content
            return False
        file.seek(info.header_offset)
        header = file.read(_LOCAL.size)
        if info.header_offset - end not in _BETWEEN or len(header) < _LOCAL.size:
            return False
        size_of_name, size_of_extra = _LOCAL.unpack(header)
        end = info.header_offset + _LOCAL.size + size_of_name + size_of_extra + info.compress_size
    return archive.start_dir - end in _BETWEEN


def read_arrays(
    path: str | os.PathLike[str],
    error: type[DcaseError] = DataError,
    instead: str = "delete it, it is made anew",
) -> dict[str, np.ndarray]:
    """All arrays of an npz file that dcase wrote; nothing in it is executed.

    Args:
        path: The file.
        error: Raised with one line.
        instead: What to do where the file is of no use.

    Raises:
        DcaseError: If it cannot be read, is damaged, or holds pickled objects.
    """
    path = Path(path)
    check_readable(path, error)
    wrong = damage(path)
    if wrong:
        raise error(f"{path} is damaged ({wrong}); {instead}")
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as failure:  # so does numpy for what the checksums say nothing about
        raise error(f"{path} is damaged ({reason(failure)[:160]}); {instead}") from failure
