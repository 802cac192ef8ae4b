"""Instructions for ``edge_network.c`` and where in memory they find what they work on.

The list runs forwards for the energies and backwards for the gradient. Instructions that follow
each other and go row by row are done together, a few rows at a time. A buffer's memory is given
away as soon as nothing of what is left to come reads it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from dcase.activations.registry import ACTIVATIONS as MODULES
from dcase.errors import OptionError
from dcase.potentials.kernels.atom_kernel import ACTIVATIONS
from dcase.potentials.kernels.curve import Curve, fit_curve
from dcase.potentials.networks.gemnet.layers import FLOOR, PublishedActivation, ScaledActivation
from dcase.potentials.networks.linear_growth import LinearGrowth

ATOMS, PAIRS, EDGES = 0, 1, 2

# In the order of the kernel's enum.
OPERATIONS = (
    "elements", "radial", "dense", "join", "sum", "by_pair", "collect", "count", "scale",
    "triplets_of_source", "triplets_of_target", "gate", "norm", "continuous", "harmonic", "energy",
)  # fmt: skip


class _Bending(ctypes.Structure):
    """The kernel's ``bending``."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("bend", ctypes.c_void_p),
        ("sized", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("gain", "offset", "base", "part")),
    )


class _Step(ctypes.Structure):
    """The kernel's ``step``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("code", "k", "m", "group", "rows", "dst")),
        ("src", ctypes.c_int64 * 3),
        ("aux", ctypes.c_int64 * 3),
        ("gdst", ctypes.c_int64),
        ("gsrc", ctypes.c_int64 * 3),
        ("add", ctypes.c_int64 * 3),
        ("number", ctypes.c_int64 * 3),
        ("w", ctypes.c_void_p * 3),
        ("table", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("act", _Bending),
    )


@dataclass(frozen=True, eq=False)
class Buffer:
    """Rows of numbers that an instruction fills and others read.

    Attributes:
        kind: Of what there is a row: :data:`ATOMS`, :data:`PAIRS` or :data:`EDGES`.
        width: Numbers in a row.
        moves: Whether it depends on positions, so that it has a gradient.
    """

    kind: int
    width: int
    moves: bool = True


@dataclass(frozen=True)
class Instruction:
    """One step of a network.

    Attributes:
        name: One of :data:`OPERATIONS`.
        target: What it fills; None for the energies.
        sources: What it reads.
        kept: What it fills besides, for the way back.
        again: Sources that are read again on the way back.
        number: See the kernel.
        weights: Addresses.
        table: Address.
        scale: See the kernel.
        act: Activation.
        mean_over: The share of the target's columns that the activation's mean is over.
    """

    name: str
    target: Buffer | None
    sources: Sequence[Buffer | None]
    kept: Sequence[Buffer]
    again: Sequence[Buffer]
    number: Sequence[int]
    weights: Sequence[int | None]
    table: int | None
    scale: float
    act: nn.Module | None
    mean_over: float

    @property
    def rows(self) -> int:
        """Kind of the rows that it goes through one by one, or -1."""
        if self.name in ("dense", "sum", "by_pair"):
            assert self.target is not None
            return self.target.kind
        return EDGES if self.name in ("join", "collect") else -1

    @property
    def crosses(self) -> bool:
        """Whether it goes row by row, but looks at the opposite edge."""
        return self.name == "sum" and bool(self.number[0])

    def row_by_row(self, buffer: Buffer) -> bool:
        """Whether, of a buffer of its own, it touches only the row that it is at."""
        if self.crosses and buffer is self.sources[1]:
            return False
        return buffer.kind == self.rows


@dataclass(frozen=True)
class Program:
    """Instructions as the kernel takes them.

    Attributes:
        steps: The kernel's ``step``, one after the other.
        layout: Kind and width of the slots, int64, shape [n_slots, 2].
        kept: What the steps point to.
    """

    steps: Any
    layout: np.ndarray
    kept: Any


def lay_out(instructions: Sequence[Instruction], kept: Sequence[Any]) -> Program:
    """Give every buffer, and the gradient of each, its place.

    Args:
        instructions: In order.
        kept: What they point to.

    Raises:
        OptionError: If an activation has no compiled form.
    """
    groups = _groups(instructions)
    slots, layout = _allocate(_lives(instructions, groups))
    steps = (_Step * len(instructions))()
    curves: dict[str, Curve] = {}
    written: set[Buffer] = set()  # whose gradient somebody has contributed to
    for time in reversed(range(len(instructions))):
        each, step = instructions[time], steps[time]
        _fill(step, each, slots, written)
        _bend(step.act, each.act, curves)
        step.act.part /= each.mean_over
        step.rows, step.group = each.rows, groups[time].start if groups[time] else -1
    return Program(steps, layout, (list(kept), curves))


def _groups(instructions: Sequence[Instruction]) -> list[range]:
    """For each instruction those that are done together with it, row by row; empty for none.

    They follow each other and have rows of the same kind. One that looks at the opposite edge
    begins a group. The others look at other rows of other kinds alone, which nothing in the group
    has as its own.
    """
    groups: list[range] = []
    for time, each in enumerate(instructions):
        begin = time
        if time and not each.crosses and instructions[time - 1].rows == each.rows:
            begin = groups[-1].start
        groups.append(range(begin, time + 1) if each.rows >= 0 else range(0))
        if groups[time]:
            groups[begin:time] = [groups[time]] * (time - begin)
    return groups


_Key = tuple[Buffer, bool]
"""A buffer, or its gradient."""


def _lives(
    instructions: Sequence[Instruction], groups: Sequence[range]
) -> dict[_Key, tuple[int, int]]:
    """First and last use of every buffer and gradient, in instructions there and back."""
    lives: dict[_Key, tuple[int, int]] = {}
    turn = 2 * len(instructions) - 1

    def touch(buffer: Buffer | None, gradient: bool, time: int, *, back: bool) -> None:
        if buffer is None:
            return
        first = last = time
        if groups[time] and not instructions[time].row_by_row(buffer):
            # At any row, while the rest of the group is still at the first.
            first, last = groups[time][0], groups[time][-1]
        if back:
            first, last = turn - last, turn - first
        known = lives.get((buffer, gradient), (first, last))
        lives[buffer, gradient] = min(known[0], first), max(known[1], last)

    for time, each in enumerate(instructions):
        for buffer in (each.target, *each.sources, *each.kept):
            touch(buffer, False, time, back=False)
        for buffer in (*each.kept, *each.again):
            touch(buffer, False, time, back=True)
        for buffer in (each.target, *each.sources):
            if buffer is not None and buffer.moves:
                touch(buffer, True, time, back=True)
    return lives


def _allocate(lives: dict[_Key, tuple[int, int]]) -> tuple[dict[_Key, int], np.ndarray]:
    """A slot for every buffer and gradient; two share one if they are not alive at one time."""
    layout: list[tuple[int, int]] = []
    ends: list[int] = []  # of the last life in each slot
    slots: dict[_Key, int] = {}
    for key, (begin, end) in sorted(lives.items(), key=lambda item: item[1][0]):
        shape = (key[0].kind, key[0].width)
        # The one that was left last is the likeliest to be in the processor's cache.
        free = [n for n, other in enumerate(layout) if other == shape and ends[n] < begin]
        slot = max(free, key=lambda n: ends[n], default=-1)
        if slot < 0:
            slot = len(layout)
            layout.append(shape)
            ends.append(end)
        ends[slot] = end
        slots[key] = slot
    return slots, np.array(layout, dtype=np.int64).reshape(-1, 2)


def _fill(step: _Step, each: Instruction, slots: dict[_Key, int], written: set[Buffer]) -> None:
    step.code = OPERATIONS.index(each.name)
    first = each.sources[0] if each.sources else None
    step.k = 0 if first is None else first.width
    step.m = 0 if each.target is None else each.target.width
    step.dst = step.gdst = -1
    useful = each.target is None or each.target in written
    if each.target is not None:
        step.dst = slots[each.target, False]
        step.gdst = slots[each.target, True] if useful else -1
    for k in range(3):
        source = each.sources[k] if k < len(each.sources) else None
        step.src[k], step.gsrc[k], step.add[k] = -1, -1, 0
        if source is not None:
            step.src[k] = slots[source, False]
            if useful and source.moves:
                step.gsrc[k], step.add[k] = slots[source, True], source in written
                written.add(source)
        step.aux[k] = slots[each.kept[k], False] if k < len(each.kept) else -1
    for k, value in enumerate(each.number):
        step.number[k] = value
    for k, address in enumerate(each.weights):
        step.w[k] = address
    step.table, step.scale = each.table, each.scale


def _bend(bending: _Bending, act: nn.Module | None, curves: dict[str, Curve]) -> None:
    bending.kind, bending.gain = -1, 1.0
    if act is None:
        return
    inner = act
    if isinstance(act, LinearGrowth):
        inner, bending.sized = act.act, 1
        bending.gain, bending.offset, bending.base, bending.part = act.scale, act.at_one, 1, 1
    elif isinstance(act, ScaledActivation):
        inner, bending.sized = act.act, int(act.quadratic)
        bending.gain, bending.offset = act.gain, act.offset
        bending.base, bending.part = FLOOR / (1 + FLOOR), 1 / (1 + FLOOR)
    elif isinstance(act, PublishedActivation):
        inner, bending.gain = act.act, act.gain
    name = activation_name(inner)
    if name in ACTIVATIONS:
        bending.kind = ACTIVATIONS.index(name)
    else:
        if name not in curves:
            curves[name] = fit_curve(name)
        bending.kind, bending.bend = len(ACTIVATIONS), curves[name].address


def activation_name(module: nn.Module) -> str:
    """The registry's name of an activation module.

    Raises:
        OptionError: If it is none of the registry's.
    """
    for name, make in MODULES.items():
        if type(module) is make:
            return name
    raise OptionError(f"there is no compiled form with {type(module).__name__}")


def is_sized(act: nn.Module) -> bool:
    """Whether the activation divides by the size of its row first."""
    return isinstance(act, LinearGrowth) or (isinstance(act, ScaledActivation) and act.quadratic)
