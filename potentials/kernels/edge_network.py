"""Networks of atoms, pairs and edges, evaluated by a small compiled kernel (``edge_network.c``)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from dcase.potentials.kernels.atom_kernel import REAL, integer_result
from dcase.potentials.kernels.build import load_library
from dcase.potentials.kernels.compiled import CompiledKernel, Prepared, threads_at_hand
from dcase.potentials.kernels.layout import OPERATIONS
from dcase.potentials.kernels.networks import Written, write
from dcase.potentials.kernels.plan import Plan
from dcase.potentials.kernels.tables import CLOSEST

_VECTOR = 16  # numbers; no kernel's vectors are longer
_CHUNK = 24  # the kernel's
WORTH_THREADS = 2e9
"""Floating point operations of a call from which on more than one thread saves time."""
_THREADS_ROOM = 64 * 2**20
"""Bytes: a system that needs more has memory of its own, others share what a thread keeps."""

_INTEGERS = ("atoms", "listed", "steps", "slots", "intervals", "threads", "orders")
_LENGTHS = ("cutoff", "spacing")
_GIVEN = ("positions", "offsets", "list", "species", "program", "layout", "norms", "base")
_ROOM = (
    "room", "angular", "angular_gradient", "scratch", "first", "into", "place", "pairs", "energy",
    "force", "virial", "neighbours", "closest",
)  # fmt: skip


class _Call(ctypes.Structure):
    """The kernel's ``evaluation``: the same fields in the same order."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTEGERS),
        *((name, ctypes.c_double) for name in _LENGTHS),
        *((name, ctypes.c_void_p) for name in _GIVEN),
        ("parts", ctypes.c_int64 * 3),
        *((name, ctypes.c_void_p) for name in _ROOM),
    )


class EdgeNetworkKernel(CompiledKernel):
    """A CGCNN, DimeNet++, ForceNet or GemNet-T, ready to be evaluated on the CPU without autograd.

    The same function of the positions as the network's own, but for rounding and for radial
    functions that are splines of an error of 1e-8 (:mod:`dcase.potentials.kernels.tables`). Weights
    are copied.

    Args:
        network: In evaluation mode, on the CPU, float32 or float64.
        planner: Of its architecture (``kernel_plan``).

    Raises:
        RuntimeError: If there is no compiled kernel here; see
            :func:`dcase.potentials.kernels.schnet.available`.
        OptionError: If this network has no compiled form, saying why.
    """

    def __init__(self, network: nn.Module, planner: Callable[[Any, Plan], Written]):
        super().__init__()
        self.dtype = next(network.parameters()).dtype
        library = load_library("edge_network", REAL[self.dtype])
        if library is None:
            raise RuntimeError("there is no compiled kernel here")
        self.function = library.edge_network
        self.function.restype, self.function.argtypes = None, [ctypes.c_void_p]
        self._most_threads = int(library.most_threads())
        self._pair_bytes = int(integer_result(library.size_of_pair)())
        assert int(integer_result(library.size_of_call)()) == ctypes.sizeof(_Call)
        self._vector = int(integer_result(library.width_of_vector)())
        self._written = write(network, planner, self.dtype, self._vector)
        step = self._written.program.steps
        assert int(integer_result(library.size_of_step)()) * len(step) == ctypes.sizeof(step)
        self.nearest = CLOSEST
        self._cutoff = float(network.cutoff)  # type: ignore[arg-type]
        self._numpy = np.float32 if self.dtype == torch.float32 else np.float64

    def _make(
        self,
        positions: np.ndarray,
        species: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None,
        threads: int,
    ) -> Prepared:
        n, listed = len(species), pairs.shape[1]
        program, orders = self._written.program, len(self._written.norms)
        counts = np.bincount(pairs.ravel(), minlength=n)
        rows = np.array([n, listed, 2 * listed])[program.layout[:, 0]]
        parts = [
            _up(int((rows * program.layout[:, 1] + _VECTOR).sum())),
            int((counts * orders * _up(counts)).sum()),
            self._scratch(int(counts.max(initial=0))),
        ]
        arrays: dict[str, np.ndarray] = {
            **self._system(positions, species, pairs, offsets),
            "layout": program.layout,
            "norms": self._written.norms,
            "base": np.empty(len(program.layout), dtype=np.uintp),
            "first": np.empty(n + 1, dtype=np.int64),
            "into": np.empty(max(2 * listed, 1), dtype=np.int64),
            "place": np.empty(n + 1, dtype=np.int64),
            "pairs": np.empty(max(listed, 1) * self._pair_bytes, dtype=np.uint8),
        }
        numbers = parts[0] + 2 * parts[1] + threads * parts[2]
        if numbers * self.dtype.itemsize > _THREADS_ROOM:
            arrays["room"] = np.empty(numbers, dtype=self._numpy)
        call = _Call(
            atoms=n,
            listed=listed,
            steps=len(program.steps),
            slots=len(program.layout),
            intervals=self._written.intervals,
            threads=threads,
            orders=orders,
            cutoff=self._cutoff,
            spacing=self._cutoff / self._written.intervals,
            program=ctypes.addressof(program.steps),
            parts=(ctypes.c_int64 * 3)(*parts),
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        return Prepared(self, call, arrays)

    def _threads(self, n_atoms: int, n_pairs: int) -> int:
        rows = (n_atoms, n_pairs, 2 * n_pairs)
        work = sum(
            4.0 * rows[step.rows] * step.k * step.m / step.number[0]
            for step in self._written.program.steps
            if OPERATIONS[step.code] == "dense"
        )
        if work < WORTH_THREADS:
            return 1
        return max(1, min(threads_at_hand(), self._most_threads))

    def _scratch(self, neighbours: int) -> int:
        """Numbers of room for what one instruction works on: a chunk of rows, or an atom's edges.

        ``neighbours`` is the largest number of them.
        """
        layout, orders = self._written.program.layout, len(self._written.norms)
        widest = int(layout[:, 1].max(initial=1))
        return widest * (6 * _CHUNK + (2 * orders + 3) * _up(neighbours) + 4 * _VECTOR)


def _up(count: Any) -> Any:
    """The next multiple of the vectors' length."""
    return -(-count // _VECTOR) * _VECTOR
