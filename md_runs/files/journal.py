"""Append-only files of float64 rows: what a killed run leaves behind is whole, or known not to be.

HDF5 keeps its index in memory while it writes; a process killed at the wrong moment leaves a file
that cannot be opened, with everything that was in it. So a run writes its rows here, raw and in
order, and the HDF5 file is made from them when the run ends (or afterwards, by ``recover``).

Beside the rows lie their checksums (``series.f64.sum``): one entry for each flush, which says how
many rows there are after it and the CRC-32 of those that it has added. A kill can leave rows
without an entry, or half an entry, at the end: they are not counted. Anything else that does not
fit was changed by somebody or something else, and is refused.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcase.errors import DcaseError, SimulationError
from dcase.files import atomic_path

_ENTRY = struct.Struct("<QII")  # rows in all, CRC-32 of the new ones, CRC-32 of the entry so far
_SUMMED = struct.Struct("<QI")
CHUNK_BYTES = 1 << 24
"""Read at a time to check a sum."""


def sums_of(path: Path) -> Path:
    """Where the checksums of a journal are."""
    return path.with_name(f"{path.name}.sum")


@dataclass(frozen=True)
class _State:
    """What is in the files, and what is not yet.

    Replaced as a whole, so that an interrupt (a second Ctrl-C) leaves the old one or the new one.
    """

    rows: int
    entries: int
    chain: int  # CRC-32 of all entries
    pending: list[np.ndarray]


class Journal:
    """Rows of ``width`` float64 numbers in a file.

    Args:
        path: File, made if missing.
        width: Numbers per row.
        rows: Rows to keep; what lies after them is cut off.

    Raises:
        DcaseError: If the file cannot be opened.
        SimulationError: If it has fewer rows, or they were changed.
    """

    def __init__(self, path: Path, width: int, rows: int = 0) -> None:
        self.path, self.width = path, width
        self._row_bytes = 8 * width
        sums = read_sums(path, width, rows) if rows else []
        self._handles: list[int] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handles.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            kept = [entry for entry in sums if entry[0] <= rows]
            whole = kept[-1][0] if kept else 0
            if whole < rows:  # an entry that goes on beyond them: sum up its part
                kept.append((rows, _sum_of_rows(self._handles[0], width, whole, rows)))
            block, chain = _entries(kept, 0)
            # The sums first: rows without one are no harm.
            with atomic_path(sums_of(path)) as temporary:
                temporary.write_bytes(block)
            self._handles.append(os.open(sums_of(path), os.O_RDWR | os.O_CLOEXEC))
            os.ftruncate(self._handles[0], rows * self._row_bytes)
        except OSError as error:
            self.close()
            raise DcaseError(f"cannot write {path}: {error.strerror or error}") from error
        self._state = _State(rows, len(kept), chain, [])

    @property
    def rows(self) -> int:
        """Rows in the file."""
        return self._state.rows

    def append(self, rows: np.ndarray) -> None:
        """Remember ``(width,)`` or ``(n, width)`` numbers until the next ``flush`` writes them."""
        block = np.array(rows, dtype="<f8").reshape(-1, self.width)
        if len(block):  # no entry for nothing
            self._state.pending.append(block)

    def __len__(self) -> int:
        """Rows so far, pending ones included."""
        return self.rows + sum(len(rows) for rows in self._state.pending)

    def flush(self) -> int:
        """Write and sync what is pending.

        The position is computed, not inherited, so that an interrupted flush can be repeated.

        Returns:
            Rows in the file.

        Raises:
            DcaseError: If the disk is full or gone.
        """
        state = self._state
        if state.pending:
            block = np.concatenate(state.pending).tobytes()
            rows = state.rows + len(block) // self._row_bytes
            entry, chain = _entries([(rows, zlib.crc32(block))], state.chain)
            try:
                _write(self._handles[0], block, state.rows * self._row_bytes)
                os.fsync(self._handles[0])
                _write(self._handles[1], entry, state.entries * _ENTRY.size)
                os.fsync(self._handles[1])
            except OSError as error:
                raise DcaseError(f"cannot write {self.path}: {error.strerror or error}") from error
            self._state = _State(rows, state.entries + 1, chain, [])
        return self.rows

    def close(self) -> None:
        """Close the files; pending rows are dropped."""
        handles, self._handles = self._handles, []
        for handle in handles:
            os.close(handle)


def _write(handle: int, block: bytes, offset: int) -> None:
    view = memoryview(block)
    while view:
        done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done


def _entries(sums: list[tuple[int, int]], chain: int) -> tuple[bytes, int]:
    """Entries as bytes, each with the checksum of all before it and itself, and the last sum."""
    blocks = []
    for rows, crc in sums:
        block = _SUMMED.pack(rows, crc)
        chain = zlib.crc32(block, chain)
        blocks.append(block + struct.pack("<I", chain))
    return b"".join(blocks), chain


def _sum_of_rows(handle: int, width: int, first: int, last: int) -> int:
    """CRC-32 of the rows ``first`` to ``last``; of fewer where the file ends before."""
    crc, offset, end = 0, 8 * width * first, 8 * width * last
    while offset < end:
        block = os.pread(handle, min(CHUNK_BYTES, end - offset), offset)
        if not block:
            break
        crc, offset = zlib.crc32(block, crc), offset + len(block)
    return crc


def read_sums(
    path: Path, width: int, rows: int | None = None, *, beyond: bool = False
) -> list[tuple[int, int]]:
    """The entries of a journal: rows in all and checksum, each compared with the rows themselves.

    Args:
        path: Of the journal.
        width: Numbers per row.
        rows: Of its checkpoint, which must be there; None: all that there are.
        beyond: Also the entries after those, as far as they are sound: a kill may have left others.

    Raises:
        DcaseError: If a file cannot be read.
        SimulationError: If an entry or the rows that it counts were changed, or rows are missing.
    """
    try:
        stored = sums_of(path).read_bytes()
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DcaseError(
            f"cannot read {error.filename or path}: {error.strerror or error}"
        ) from error
    found: list[tuple[int, int]] = []
    chain, sound = 0, 0
    try:
        size = os.fstat(handle).st_size
        for place in range(0, len(stored) - _ENTRY.size + 1, _ENTRY.size):
            enough = rows is not None and sound >= rows
            if enough and not beyond:
                break
            last, crc, own = _ENTRY.unpack_from(stored, place)
            chain = zlib.crc32(stored[place : place + _SUMMED.size], chain)
            whole = last >= sound and last * 8 * width <= size and own == chain
            if not whole or _sum_of_rows(handle, width, sound, last) != crc:
                if enough:
                    break
                raise _damaged(path, sound, last if own == chain else None)
            found.append((last, crc))
            sound = last
    except OSError as error:
        raise DcaseError(f"cannot read {path}: {error.strerror or error}") from error
    finally:
        os.close(handle)
    if rows is not None and sound < rows:
        raise _damaged(path, sound, rows)
    return found


def _damaged(path: Path, sound: int, last: int | None) -> SimulationError:
    which = f"rows {sound} to {last}" if last is not None else f"what follows row {sound}"
    return SimulationError(
        f"{path} is damaged: {which} were changed or are missing since the run wrote them (the "
        f"{sound} before are sound); restore it from a copy, go by the trajectory file that the "
        "run wrote when it last ended, or begin again with --overwrite"
    )


def read_rows(
    path: Path, width: int, rows: int | None = None, *, checked: bool = True
) -> np.ndarray:
    """All rows of a journal that are accounted for, ``(rows, width)``, mapped rather than read.

    Args:
        path: Of the journal.
        width: Numbers per row.
        rows: How many there must be, of a run that was killed: more are read as far as they are
            sound. None: all must be.
        checked: Compare them with their checksums; else take all whole rows (of a run of a dcase
            that wrote none).

    Raises:
        DcaseError: If a file is missing.
        SimulationError: If rows were changed.
    """
    if checked:
        sums = read_sums(path, width, rows, beyond=True)
        count = sums[-1][0] if sums else 0
    else:
        try:
            count = path.stat().st_size // (8 * width)
        except OSError as error:
            raise DcaseError(f"cannot read {path}: {error.strerror or error}") from error
    if count == 0:
        return np.zeros((0, width))
    return np.memmap(path, dtype="<f8", mode="r", shape=(count, width))


def row_blocks(rows: np.ndarray, size: int = 8192) -> Iterator[tuple[int, np.ndarray]]:
    """Rows some at a time, each block with the number of its first row.

    Rows from :func:`read_rows` are mapped anew for every block: pages once read would otherwise
    stay with the process for as long as the map does, and count as its memory.
    """
    for first in range(0, len(rows), size):
        count = min(size, len(rows) - first)
        if isinstance(rows, np.memmap) and rows.filename is not None:
            offset = rows.offset + first * rows.shape[1] * rows.itemsize
            shape = (count, rows.shape[1])
            mapped = np.memmap(rows.filename, rows.dtype, "r", offset, shape)
            yield first, np.array(mapped)
        else:
            yield first, rows[first : first + count]
