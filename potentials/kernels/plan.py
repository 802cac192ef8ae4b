"""Networks as lists of instructions for ``edge_network.c``.

A :class:`Plan` is written once for a network, by the functions of
:mod:`dcase.potentials.kernels.networks`: every method emits one instruction and returns the buffer
that it fills, with a row for each atom, pair or directed edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcase.potentials.kernels.layout import (
    ATOMS,
    EDGES,
    PAIRS,
    Buffer,
    Instruction,
    Program,
    is_sized,
    lay_out,
)
from dcase.potentials.networks.linear_growth import LinearGrowth


class Plan:
    """A network being written down.

    Args:
        dtype: Of the numbers in buffers and weights.
        vector: Numbers in a register of the processor.
    """

    def __init__(self, dtype: torch.dtype, vector: int):
        self.dtype, self.vector, self._tile = dtype, vector, 2 * vector
        self._instructions: list[Instruction] = []
        self._held: list[Any] = []

    # ------------------------------------------------------------ instructions

    def elements(self, rows: Tensor) -> Buffer:
        """Atoms: the row of their element, of ``rows`` [n_elements, width]."""
        target = Buffer(ATOMS, rows.shape[1], moves=False)
        return self._emit("elements", target, [], weights=[rows])

    def radial(self, table: np.ndarray) -> Buffer:
        """Pairs: splines of the distance, float64 coefficients [n_intervals + 3, width]."""
        target = Buffer(PAIRS, table.shape[1])
        return self._emit(
            "radial", target, [], kept=[target.width], table=table, number=[target.width]
        )

    def dense(
        self,
        x: Buffer,
        weight: Tensor,
        bias: Tensor | None = None,
        act: nn.Module | None = None,
        *,
        skip: Buffer | None = None,
        scale: float = 1.0,
        filled_up: bool = False,
    ) -> Buffer:
        """``act(W x + b)``, or ``scale (act(W x + b) + skip)``.

        Args:
            x: Of which.
            weight: As torch has it, shape [out, in]; or [blocks, out, in] for a diagonal of blocks.
            bias: Shape [blocks * out].
            act: Activation.
            skip: Of the shape of the result.
            scale: With ``skip`` only.
            filled_up: Make the result a whole number of vectors wide, as triplets have to be. What
                reads it needs weights of 0 for what is added; see :meth:`fill_up`.
        """
        features = weight.shape[-2]
        if filled_up:
            weight = self.fill_up(weight.mT).mT
        blocks = weight if weight.ndim == 3 else weight.unsqueeze(0)
        target = Buffer(x.kind, blocks.shape[0] * blocks.shape[1], x.moves)
        assert x.width == blocks.shape[0] * blocks.shape[2]
        assert bias is None or len(blocks) == 1
        there = torch.stack([_panels(block.T, self._tile) for block in blocks])
        back = torch.stack([_panels(block, self._tile) for block in blocks])
        filled = None if bias is None else _panels(bias.unsqueeze(0), self._tile)
        return self._emit(
            "dense", target, [x, skip], act=act, weights=[there, filled, back], scale=scale,
            number=[len(blocks), there[0].numel(), back[0].numel()],
            mean_over=features / blocks.shape[1],
        )  # fmt: skip

    def fill_up(self, weight: Tensor) -> Tensor:
        """Zeros behind ``weight`` [..., n] up to a whole number of vectors."""
        return torch.nn.functional.pad(weight, (0, -weight.shape[-1] % self.vector))

    def join(
        self, at_target: Buffer, at_source: Buffer, own: Buffer, act: nn.Module | None
    ) -> Buffer:
        """Edges: ``act(at_target + at_source + own)``, ``own`` of edges or of pairs."""
        return self._emit("join", Buffer(EDGES, own.width), [at_target, at_source, own], act=act)

    def sum(
        self,
        x: Buffer,
        y: Buffer,
        *,
        scale: float = 1.0,
        opposite: bool = False,
        act: nn.Module | None = None,
    ) -> Buffer:
        """``act(scale (x + y))``, ``y`` of the opposite edge if so asked."""
        return self._emit(
            "sum", Buffer(x.kind, x.width), [x, y], act=act, scale=scale, number=[int(opposite)]
        )

    def by_pair(self, x: Buffer, weight: Buffer) -> Buffer:
        """Edges: ``x`` of the edge times ``weight`` of its pair."""
        return self._emit("by_pair", Buffer(EDGES, x.width), [x, weight], again=[x, weight])

    def collect(self, x: Buffer, weight: Buffer) -> Buffer:
        """Atoms: sum over the edges into them of ``x`` times ``weight`` of the pair."""
        return self._emit("collect", Buffer(ATOMS, x.width), [x, weight], again=[x, weight])

    def count(self, weight: Buffer) -> Buffer:
        """Atoms: ``tanh`` of the sum of ``weight`` [n_pairs, 1] over their pairs."""
        return self._emit("count", Buffer(ATOMS, 1), [weight], kept=[1])

    def scale(self, x: Buffer, factor: Buffer) -> Buffer:
        """Rows of ``x`` times ``factor`` [rows, 1]."""
        return self._emit("scale", Buffer(x.kind, x.width), [x, factor], again=[x, factor])

    def triplets_of_source(self, x: Buffer, filters: Buffer) -> Buffer:
        """DimeNet's sum over triplets; ``filters`` [n_pairs, orders * width]."""
        return self._emit(
            "triplets_of_source", Buffer(EDGES, x.width), [x, filters], again=[x, filters]
        )

    def triplets_of_target(self, x: Buffer, basis: Buffer, orders: int) -> Buffer:
        """GemNet's; ``basis`` [n_pairs, q * orders], the result [n_edges, q * width]."""
        target = Buffer(EDGES, basis.width // orders * x.width)
        return self._emit("triplets_of_target", target, [x, basis], again=[x, basis])

    def gate(self, atoms: Buffer, own: Buffer, envelope: Buffer, act: nn.Module) -> Buffer:
        """CGCNN's gated sum: ``atoms`` [n_atoms, 4 F], ``own`` [n_pairs, 2 F]."""
        kept = [own.width, own.width // 2]
        kept += [own.width] if isinstance(act, LinearGrowth) else []
        return self._emit(
            "gate", Buffer(ATOMS, own.width // 2), [atoms, own, envelope], act=act, kept=kept,
            kept_of=EDGES, again=[envelope],
        )  # fmt: skip

    def norm(self, x: Buffer, layer: nn.LayerNorm) -> Buffer:
        """A layer normalisation."""
        return self._emit(
            "norm", Buffer(x.kind, x.width), [x], kept=[x.width, 1],
            weights=[layer.weight, layer.bias], scale=layer.eps,
        )  # fmt: skip

    def continuous(self, x: Buffer, filters: Buffer, envelope: Buffer, own: Tensor) -> Buffer:
        """ForceNet's convolution; ``own`` [width] weighs the atom itself."""
        return self._emit(
            "continuous", Buffer(ATOMS, x.width), [x, filters, envelope], weights=[own],
            again=[x, filters, envelope],
        )  # fmt: skip

    def harmonic(self, table: np.ndarray, norms: np.ndarray, columns: int, elements: int) -> Buffer:
        """Edges: spherical harmonics times splines that depend on the elements of both ends.

        Args:
            table: Coefficients, [n_intervals + 3, elements of the target, of the source, columns].
            norms: Of the harmonics, shape [degrees, degrees].
            columns: Number of splines.
            elements: Number of elements.
        """
        degrees = len(norms)
        return self._emit(
            "harmonic", Buffer(EDGES, degrees**2 * columns), [],
            table=np.concatenate([table.ravel(), norms.ravel()]),
            number=[degrees, columns, elements],
        )  # fmt: skip

    def energy(self, x: Buffer, weight: Tensor, bias: Tensor | None = None) -> None:
        """Atom energies += ``weight . x + bias``."""
        self._emit("energy", None, [x], weights=[weight.reshape(-1), bias])

    def _emit(
        self,
        name: str,
        target: Buffer | None,
        sources: Sequence[Buffer | None],
        *,
        act: nn.Module | None = None,
        kept: Sequence[int] = (),
        kept_of: int | None = None,
        again: Sequence[Buffer] = (),
        weights: Sequence[Tensor | None] = (),
        table: np.ndarray | None = None,
        number: Sequence[int] = (),
        scale: float = 1.0,
        mean_over: float = 1.0,
    ) -> Any:
        if act is not None and name != "gate":
            assert target is not None
            kept = [target.width] * (3 if is_sized(act) else 1)
        if kept_of is None:
            kept_of = ATOMS if target is None else target.kind
        self._instructions.append(
            Instruction(
                name,
                target,
                list(sources),
                [Buffer(kept_of, width, moves=False) for width in kept],
                list(again),
                list(number),
                [None if w is None else self._hold(w) for w in weights],
                None if table is None else self._hold(table),
                scale,
                act,
                mean_over,
            )
        )
        return target

    def _hold(self, values: Tensor | np.ndarray) -> int:
        """The address of a copy of ``values`` that lives as long as the program."""
        if isinstance(values, Tensor):
            held: Any = values.detach().to("cpu", self.dtype).contiguous().clone()
            self._held.append(held)
            return held.data_ptr()
        array = np.array(values, dtype=np.float64, order="C")
        self._held.append(array)
        return array.ctypes.data

    def finish(self) -> Program:
        """Lay out the buffers; see :func:`dcase.potentials.kernels.layout.lay_out`."""
        return lay_out(self._instructions, self._held)


def _panels(matrix: Tensor, tile: int) -> Tensor:
    """A matrix [k, m] as panels of ``tile`` columns, flat; zeros where columns are missing."""
    k, m = matrix.shape
    wide = torch.nn.functional.pad(matrix, (0, -m % tile))
    return wide.view(k, -1, tile).transpose(0, 1).reshape(-1)
