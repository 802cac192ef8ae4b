"""The pages of an LMDB file, read one by one and believed only as far as they fit together.

The library lmdb maps the file into memory and follows whatever page numbers it finds: one wrong
bit, or a file cut short while it is open, ends the process with a bus error. Only reading is
needed here, and the format is simple (all numbers little-endian): two meta pages, the newer of
which names the root of a B-tree; branch pages lead to leaf pages; a value is in its leaf, or on
pages of its own. What does not fit is a :class:`~dcase.errors.DataError`.

Format: lmdb.h and mdb.c of LMDB 0.9 (``MDB_DATA_VERSION`` 1), as written by 64-bit machines.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dcase.errors import DataError
from dcase.files import check_readable, reason

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper (or: pages in a row, u32)
_META = struct.Struct("<IIQQ")  # magic, version, address, size of the map
_TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf, overflow pages, entries, root
_NODE = struct.Struct("<HHHH")  # low and high half of size or page, flags, size of the key
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_KINDS = {_BRANCH: "branch", _LEAF: "leaf", _OVERFLOW: "overflow"}
_IN_OWN_PAGES = 1
_EMPTY = 2**64 - 1
_KEPT_PAGES = 256


@dataclass(frozen=True)
class _Page:
    """Keys of a branch or leaf page, and for each a page number or what is needed for its value."""

    keys: list[bytes]
    children: list[int]
    values: list[tuple[int, int, int]]  # flags, offset in the file, size


class LmdbPages:
    """An LMDB file open for reading; close it, or use it in a ``with``.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be read, is no LMDB file, of another version, cut short, or its
            tree is damaged. Every page of the tree is looked at, but none of the values.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        check_readable(self.path)
        self._file = open(self.path, "rb")  # noqa: SIM115
        self._pages: dict[int, _Page] = {}
        self._owners: dict[int, bytes] = {}
        try:
            self._read_meta()
            self._walk()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LmdbPages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of entries."""
        return self._entries

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None.

        Raises:
            DataError: If the pages on the way to it are damaged.
        """
        if self._root == _EMPTY:
            return None
        number = self._root
        for _ in range(self._depth - 1):
            page = self._page(number, _BRANCH)
            # The first key of a branch page stands for everything before the second.
            number = page.children[bisect_right(page.keys, key, lo=1) - 1]
        page = self._page(number, _LEAF)
        place = bisect_right(page.keys, key) - 1
        if place < 0 or page.keys[place] != key:
            return None
        flags, start, size = page.values[place]
        if flags == 0:
            return self._bytes(start, size)
        if flags != _IN_OWN_PAGES:
            raise self._damaged(f"{key!r} is no plain entry")
        (first,) = struct.unpack("<Q", self._bytes(start, 8))
        if self._owners.setdefault(first, key) != key:
            raise self._damaged(f"{key!r} and {self._owners[first]!r} are said to be one entry")
        return self._own_pages(first, size)

    def __iter__(self) -> Iterator[bytes]:
        """All keys in order."""
        for number in self._leaves():
            yield from self._page(number, _LEAF).keys

    # --------------------------------------------------------------------------------- reading

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.path}: damaged: {what}; fetch it again")

    def _bytes(self, start: int, size: int) -> bytes:
        try:
            found = os.pread(self._file.fileno(), size, start)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {reason(error)}") from error
        if len(found) < size:
            have = os.fstat(self._file.fileno()).st_size
            raise DataError(
                f"{self.path}: truncated ({have} of at least {start + size} bytes); fetch it again"
            )
        return found

    def _read_meta(self) -> None:
        metas = []
        start = 0
        if os.pread(self._file.fileno(), 4, _HEADER.size) != _MAGIC.to_bytes(4, "little"):
            raise DataError(f"{self.path}: not an LMDB file, or damaged")
        for _ in range(2):
            head = self._bytes(start, _HEADER.size + _META.size + 2 * _TREE.size + 16)
            magic, version, _, _ = _META.unpack_from(head, _HEADER.size)
            if magic != _MAGIC or version != _VERSION:
                raise self._damaged(f"format {version} where {_VERSION} should be")
            trees = _HEADER.size + _META.size
            size_of_page = _TREE.unpack_from(head, trees)[0]
            if size_of_page not in {2**n for n in range(9, 17)} or start not in (0, size_of_page):
                raise self._damaged(f"pages of {size_of_page} bytes")
            tree = _TREE.unpack_from(head, trees + _TREE.size)
            last, transaction = struct.unpack_from("<QQ", head, trees + 2 * _TREE.size)
            metas.append((transaction, last, tree))
            self._size = start = size_of_page
        _, self._last, tree = max(metas)
        _, flags, self._depth, branches, leaves, overflow, self._entries, self._root = tree
        if flags:
            raise DataError(f"{self.path}: an LMDB file of another kind (flags {flags})")
        self._counts = {_BRANCH: branches, _LEAF: leaves, _OVERFLOW: overflow}
        have, wanted = os.fstat(self._file.fileno()).st_size, (self._last + 1) * self._size
        if have < wanted:
            raise DataError(f"{self.path}: truncated ({have} of {wanted} bytes); fetch it again")

    def _walk(self) -> None:
        """Look at every page of the tree once."""
        if sum(self._counts.values()) > self._last - 1:
            raise self._damaged("more pages in the tree than in the file")
        entries = sum(self._number_of_keys(number, _LEAF) for number in self._leaves())
        if entries != self._entries:
            raise self._damaged(f"{entries} entries where {self._entries} should be")

    def _leaves(self) -> Iterator[int]:
        """Numbers of the leaf pages in order, each page of the tree once."""
        if self._root == _EMPTY:
            return
        seen: set[int] = set()
        found = {_BRANCH: 0, _LEAF: 0}
        # Deepest last: a stack of (page, how many levels are below it).
        stack = [(self._root, self._depth - 1)]
        while stack:
            number, below = stack.pop()
            if number in seen or below < 0:
                raise self._damaged(f"page {number} is in the tree twice")
            seen.add(number)
            kind = _BRANCH if below else _LEAF
            found[kind] += 1
            if found[kind] > self._counts[kind]:
                raise self._damaged(f"more than {self._counts[kind]} {_KINDS[kind]} pages")
            if kind == _LEAF:
                yield number
            else:
                children = self._page(number, _BRANCH).children
                stack += [(child, below - 1) for child in reversed(children)]
        if found[_BRANCH] != self._counts[_BRANCH] or found[_LEAF] != self._counts[_LEAF]:
            raise self._damaged("pages of the tree are missing")

    def _head(self, content: bytes, number: int, kind: int) -> int:
        """Check the header of a page; returns the number of its keys, or of pages in a row."""
        written, _, flags, lower, upper = _HEADER.unpack_from(content)
        if written != number or flags != kind:
            raise self._damaged(f"page {number} is not the {_KINDS[kind]} page it should be")
        if kind == _OVERFLOW:
            return lower | upper << 16
        if not _HEADER.size < lower <= upper <= self._size or lower % 2:
            raise self._damaged(f"page {number} has impossible borders")
        return (lower - _HEADER.size) // 2

    def _number_of_keys(self, number: int, kind: int) -> int:
        return self._head(self._bytes(self._start(number), _HEADER.size), number, kind)

    def _start(self, number: int) -> int:
        if not 2 <= number <= self._last:
            raise self._damaged(f"it refers to a page {number} of {self._last + 1}")
        return number * self._size

    def _page(self, number: int, kind: int) -> _Page:
        if number in self._pages:
            return self._pages[number]
        start = self._start(number)
        content = self._bytes(start, self._size)
        count = self._head(content, number, kind)
        upper = _HEADER.unpack_from(content)[4]
        keys, children, values, spans = [], [], [], []
        for place in struct.unpack_from(f"<{count}H", content, _HEADER.size):
            if not upper <= place <= self._size - _NODE.size:
                raise self._damaged(f"an entry of page {number} lies outside of it")
            low, high, flags, size_of_key = _NODE.unpack_from(content, place)
            end = place + _NODE.size + size_of_key
            keys.append(content[place + _NODE.size : end])
            if kind == _BRANCH:
                children.append(low | high << 16 | flags << 32)
                size = 0
            else:
                size = low | high << 16
                values.append((flags, start + end, size))
            end += 8 if flags == _IN_OWN_PAGES and kind == _LEAF else size
            spans.append((place, end + end % 2))
        spans.sort()
        # Entries lie side by side, at even places, up to the end of the page.
        if [upper, *(end for _, end in spans)] != [*(start for start, _ in spans), self._size]:
            raise self._damaged(f"the entries of page {number} overlap or leave gaps")
        ordered = keys[1:] if kind == _BRANCH else keys
        if any(a >= b for a, b in pairwise(ordered)):
            raise self._damaged(f"the keys of page {number} are out of order")
        if len(self._pages) >= _KEPT_PAGES:
            self._pages.clear()
        page = self._pages[number] = _Page(keys, children, values)
        return page

    def _own_pages(self, first: int, size: int) -> bytes:
        """A value on pages of its own."""
        start = self._start(first)
        pages = self._head(self._bytes(start, _HEADER.size), first, _OVERFLOW)
        # A value that takes the place of a longer one keeps its pages.
        if pages * self._size < _HEADER.size + size or first + pages > self._last + 1:
            raise self._damaged(f"{size} bytes are said to be on {pages} pages")
        return self._bytes(start + _HEADER.size, size)
