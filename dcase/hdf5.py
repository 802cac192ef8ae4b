"""HDF5 files, opened and written so that damage is noticed and told in one line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from dcase.errors import DataError, DcaseError
from dcase.files import atomic_path, check_readable, reason

_MARK = b"\ndcase-sha256:"


@contextmanager
def opened(
    path: str | os.PathLike[str], error: type[DcaseError] = DataError, instead: str = ""
) -> Iterator[h5py.File]:
    """An HDF5 file open for reading; damage found while it is open is reported in one line.

    Args:
        path: The file.
        error: Raised with one line.
        instead: What to do where the file is of no use, ``"fetch it again"``.

    Raises:
        DcaseError: If it is missing, cannot be read, is not HDF5, cut short or damaged.
    """
    check_readable(path, error)
    instead = instead and f"; {instead}"
    try:
        if _is_changed(path):
            raise error(f"{path} is damaged: it has changed since it was written{instead}")
        if not h5py.is_hdf5(path):
            raise error(f"{path} is not an HDF5 file ({os.stat(path).st_size} bytes){instead}")
        with h5py.File(path, "r") as file:
            yield file
    except DcaseError:
        raise
    except MemoryError as failure:
        raise error(f"{path} is damaged: it claims to hold more than fits{instead}") from failure
    # What h5py raises for damage depends on where it is: also ValueError, UnicodeDecodeError.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as failure:
        text = reason(failure).strip("'\"")
        if "truncated" in text:
            raise error(
                f"{path} is cut short ({os.stat(path).st_size} bytes){instead}"
            ) from failure
        raise error(f"{path} is damaged ({text[:160]}){instead}") from failure


@contextmanager
def created(target: str | os.PathLike[str], data_bytes: int = 0) -> Iterator[h5py.File]:
    """A new HDF5 file that replaces ``target`` when the block ends, with a checksum behind it.

    HDF5 ignores what follows its own end; :func:`opened` compares it before anything is parsed, as
    a damaged file can have the library read wrong numbers, loop without end, or crash.

    On a full disk HDF5 not only fails, but leaves objects that crash the process when they are
    freed; so the room is asked for before.

    Args:
        target: The file.
        data_bytes: Of all that will be put into it; 0: unknown, few.

    Raises:
        DcaseError: If the file cannot be written.
    """
    with atomic_path(target) as temporary:
        _ask_for_room(temporary, data_bytes)
        try:
            with h5py.File(temporary, "w") as file:
                yield file
        except RuntimeError as error:  # another was faster to fill the disk
            raise OSError(reason(error)) from error
        with open(temporary, "r+b") as plain:
            digest = hashlib.file_digest(plain, "sha256").hexdigest()
            plain.seek(0, os.SEEK_END)
            plain.write(_MARK + digest.encode())


ROOM = 1 << 16
"""What an HDF5 file takes besides its data, roughly, bytes."""


def _ask_for_room(path: Path, data_bytes: int) -> None:
    """See whether the disk takes so much; raises OSError if not."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, data_bytes + data_bytes // 50 + ROOM)
            os.ftruncate(file.fileno(), 0)


def _is_changed(path: str | os.PathLike[str]) -> bool:
    """Whether a file has a checksum behind it, which is not that of what is before it."""
    length = len(_MARK) + 64
    with open(path, "rb") as file:
        left = max(0, file.seek(0, os.SEEK_END) - length)
        file.seek(left)
        end = file.read()
        if not end.startswith(_MARK):
            return False
        file.seek(0)
        digest = hashlib.sha256()
        while block := file.read(min(left, 1 << 20)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest().encode() != end[len(_MARK) :]
