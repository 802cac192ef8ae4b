"""HDF5 files, opened and written so that damage is noticed and told in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py

from dcase.errors import DataError, DcaseError
from dcase.files import check_readable, reason


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


def checksummed(shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Options of ``create_dataset`` with which HDF5 checks what it reads.

    Args:
        shape: Of the data, if known; HDF5 can checksum neither single values nor empty arrays.
    """
    return {} if shape is not None and (not shape or 0 in shape) else {"fletcher32": True}
