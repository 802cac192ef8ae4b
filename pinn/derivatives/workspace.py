"""Memory that lasts from one training step to the next, in blocks of points.

What a step keeps for its backward pass is tens of megabytes: fresh from the operating system each
time, its pages would cost as much as the arithmetic. And a view of a tensor costs as much as a
short operation, so that they are made once, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

#: Rows (points times channels) in a block: about 2/3 MB at width 40 in float32.
BLOCK_ROWS = 4096
_KEPT = 6

_T = TypeVar("_T")
_B = TypeVar("_B", bound="Block")


class Block(Protocol):
    """Arrays for some of the points; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    where: slice


Arrays = Sequence[Tensor]


class Workspace:
    """Lends what was made before for the same key. Copies of a workspace are empty."""

    def __init__(self) -> None:
        self._free: list[tuple[Hashable, Any]] = []

    def lend(self, key: Hashable, make: Callable[[], _T]) -> Lease[_T]:
        """Something free with that key, or a new one."""
        for i, (k, item) in enumerate(self._free):
            if k == key:
                del self._free[i]
                return Lease(self, key, item)
        return Lease(self, key, make())

    def take_back(self, key: Hashable, item: Any) -> None:
        """Keep it for later; the one that was longest unused makes room."""
        self._free.append((key, item))
        del self._free[:-_KEPT]

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Workspace, ()


class Lease(Generic[_T]):
    """Holds an item; it goes back when nothing refers to the lease any more."""

    def __init__(self, owner: Workspace, key: Hashable, item: _T) -> None:
        self.item, self._owner, self._key = item, owner, key

    def __del__(self) -> None:
        self._owner.take_back(self._key, self.item)


def blocks_of(n: int, channels: int, device: torch.device) -> list[tuple[int, int]]:
    """First point and number of points of each block, the largest first."""
    if n == 0:
        return []
    limit = n
    if device.type == "cpu":  # elsewhere no cache to fit into, but launches to pay for
        limit = max(1, BLOCK_ROWS * torch.get_num_threads() // channels)
    size = -(-n // -(-n // limit))
    return [(start, min(size, n - start)) for start in range(0, n, size)]


def state_of(points: Tensor) -> tuple[Hashable, ...]:
    """What arrays for these points [..., N, n_in] depend on."""
    return (
        points.shape[-2],
        points.dtype,
        points.device,
        torch.get_num_threads(),
        torch.is_inference_mode_enabled(),  # its tensors cannot be written to outside
    )


def same_arrays(
    make: Callable[[slice, int], _B], wheres: list[tuple[int, int]], keep: bool
) -> list[_B]:
    """The blocks; where nothing is to be kept, those of one size share their arrays.

    Args:
        make: From the points and their number; a dataclass with a field ``where``.
        wheres: From :func:`blocks_of`.
        keep: Whether each block needs arrays of its own.
    """
    blocks: list[_B] = []
    for start, m in wheres:
        where = slice(start, start + m)
        last = wheres[len(blocks) - 1][1] if blocks else -1
        again = not keep and m == last
        blocks.append(replace(blocks[-1], where=where) if again else make(where, m))
    return blocks


class Stack:
    """An array [slots, n, width] with its views.

    Attributes:
        parts: Its slots.
        rest: Channels 1 to C - 1.
        firsts: Channels 1 to k, the first derivatives.
        rows: All channels, [C n, width].
        value_rows: Channel 0 of these.
        rest_rows: The others.
        value_columns: Transposed.
        rest_columns: Transposed.
    """

    __slots__ = (
        "firsts",
        "parts",
        "rest",
        "rest_columns",
        "rest_rows",
        "rows",
        "value_columns",
        "value_rows",
    )

    def __init__(self, array: Tensor, channels: int, firsts: int) -> None:
        self.parts = array.unbind(0)
        self.rest = array[1:channels]
        self.firsts = array[1 : firsts + 1]
        n, width = array.shape[1:]
        self.rows = array[:channels].view(channels * n, width)
        self.value_rows, self.rest_rows = self.rows[:n], self.rows[n:]
        self.value_columns, self.rest_columns = self.value_rows.T, self.rest_rows.T


def carve(memory: Tensor, *sizes: tuple[int, ...]) -> list[Tensor]:
    """Arrays of those shapes, one after the other in flat memory."""
    lengths = [math.prod(size) for size in sizes]
    parts = memory[: sum(lengths)].split(lengths)
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]
