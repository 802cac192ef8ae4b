"""Append-only files of float64 rows: what a killed run leaves behind is whole.

HDF5 keeps its index in memory while it writes; a process killed at the wrong moment leaves a file
that cannot be opened, with everything that was in it. So a run writes its rows here, raw and in
order, and the HDF5 file is made from them when the run ends (or afterwards, by ``recover``). The
worst that a kill can do to an append-only file is an incomplete last row, which is never read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dcase.errors import DcaseError, SimulationError


class Journal:
    """Rows of ``width`` float64 numbers in a file.

    Args:
        path: File, made if missing.
        width: Numbers per row.
        rows: Rows to keep; what lies after them is cut off.

    Raises:
        DcaseError: If the file cannot be opened.
        SimulationError: If it has fewer rows.
    """

    def __init__(self, path: Path, width: int, rows: int = 0) -> None:
        self.path, self.width, self.rows = path, width, rows
        self._pending: list[np.ndarray] = []
        self._row_bytes = 8 * width
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
            size = os.fstat(self._file.fileno()).st_size
            if size < rows * self._row_bytes:
                self._file.close()
                raise SimulationError(f"{path} is shorter than its checkpoint says: it was changed")
            self._file.truncate(rows * self._row_bytes)
        except OSError as error:
            raise DcaseError(f"cannot write {path}: {error.strerror or error}") from error

    def append(self, rows: np.ndarray) -> None:
        """Remember ``(width,)`` or ``(n, width)`` numbers until the next ``flush`` writes them."""
        self._pending.append(np.array(rows, dtype="<f8").reshape(-1, self.width))

    def __len__(self) -> int:
        """Rows so far, pending ones included."""
        return self.rows + sum(len(rows) for rows in self._pending)

    def flush(self) -> int:
        """Write and sync what is pending.

        The position is computed, not inherited, so that an interrupted flush can be repeated.

        Returns:
            Rows in the file.

        Raises:
            DcaseError: If the disk is full or gone.
        """
        if self._pending:
            block = np.concatenate(self._pending)
            try:
                self._file.seek(self.rows * self._row_bytes)
                self._file.write(block.tobytes())
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise DcaseError(f"cannot write {self.path}: {error.strerror or error}") from error
            self.rows += len(block)
            self._pending.clear()
        return self.rows

    def close(self) -> None:
        """Close the file; pending rows are dropped."""
        self._file.close()


def read_rows(path: Path, width: int) -> np.ndarray:
    """All whole rows of a journal, ``(rows, width)``, mapped rather than read.

    Raises:
        DcaseError: If the file is missing.
    """
    try:
        rows = path.stat().st_size // (8 * width)
    except OSError as error:
        raise DcaseError(f"cannot read {path}: {error.strerror or error}") from error
    if rows == 0:
        return np.zeros((0, width))
    return np.memmap(path, dtype="<f8", mode="r", shape=(rows, width))
