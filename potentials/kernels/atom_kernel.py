"""Kernels that go through rows of atoms and a half list of pairs (``system.h``)."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from typing import Any

import numpy as np
import torch

from dcase.potentials.kernels.build import load_library
from dcase.potentials.kernels.compiled import CompiledKernel, Prepared, threads_at_hand
from dcase.potentials.kernels.curve import Curve, fit_curve
from dcase.potentials.networks.splines import UniformSpline

# In the order of the kernels' enum; others are tabulated.
ACTIVATIONS = ("irelu", "ssp", "softplus", "silu", "tanh", "log_cosh")
REAL = {torch.float32: "float", torch.float64: "double"}
WORTH_SORTING = 500
"""Atoms from which on their order in memory matters: fewer stay in the cache in any order."""
WORTH_THREADS = 2e7
"""Floating point operations of a call from which on more than one thread saves time."""

_POINTERS = (
    "positions", "atom_of", "list", "offsets", "species", "pairs", "sums", "stretch", "energy",
    "force", "virial", "neighbours", "closest",
)  # fmt: skip


class AtomicSystem(ctypes.Structure):
    """The kernels' ``atomic_system``: the same fields in the same order."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("atoms", "listed", "threads", "intervals")),
        *((name, ctypes.c_double) for name in ("cutoff", "spacing")),
        *((name, ctypes.c_void_p) for name in ("knots", "begins", *_POINTERS)),
    )


class AtomKernel(CompiledKernel):
    """A kernel whose call begins with an :class:`AtomicSystem`.

    Args:
        source: Name of the C source, and of its function.
        call: The structure that the function takes.
        dtype: Of the network.
        activation: Any of the registry.
        cutoff: A.
        table: Filters: spline and coefficients of shape [n_intervals + 3, columns], copied; None:
            there are none.
        threads: At most how many; None: as many as torch uses at each call. Small systems use one.

    Raises:
        RuntimeError: If there is no compiled kernel here; see :func:`available`.
        OptionError: If the activation cannot be tabulated.
    """

    def __init__(
        self,
        source: str,
        call: type[ctypes.Structure],
        dtype: torch.dtype,
        activation: str,
        cutoff: float,
        table: tuple[UniformSpline, torch.Tensor] | None,
        threads: int | None = None,
    ):
        super().__init__()
        self.dtype, self.threads, self._call = dtype, threads, call
        library = load_library(source, REAL[dtype])
        if library is None:
            raise RuntimeError("there is no compiled kernel here")
        self.library = library
        self.function = getattr(library, source)
        self.function.restype, self.function.argtypes = None, [ctypes.c_void_p]
        self._pair_bytes = int(integer_result(library.size_of_pair)())
        assert int(integer_result(library.size_of_call)()) == ctypes.sizeof(call)
        self._most_threads = int(library.most_threads())
        self._table: torch.Tensor | None = None
        if table is not None:
            self._table = table[1].detach().to(dtype).cpu().contiguous().clone()
        self._kind, self._curve = kind_of(activation)
        self._grid: dict[str, Any] = {
            "cutoff": cutoff,
            "intervals": 0 if table is None else table[0].n_intervals,
            "spacing": 0.0 if table is None else table[0].spacing,
        }
        self._numpy = np.float32 if dtype == torch.float32 else np.float64

    @abstractmethod
    def _network(self, n_atoms: int, listed: int, threads: int) -> tuple[int, dict[str, Any]]:
        """Numbers of scratch that a system needs, and the network's fields of the call."""

    @abstractmethod
    def _operations(self, n_atoms: int, n_pairs: int) -> float:
        """Of a call, roughly."""

    def _make(
        self,
        positions: np.ndarray,
        species: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None,
        threads: int,
    ) -> Prepared:
        n, listed = len(species), pairs.shape[1]
        atom_of = np.arange(n)
        if n >= WORTH_SORTING:
            atom_of = spatial_order(positions, self._grid["cutoff"])
            pairs, offsets = _reordered(pairs, offsets, atom_of)
        numbers, fields = self._network(n, listed, threads)
        arrays: dict[str, np.ndarray] = {
            **self._system(positions, species, pairs, offsets),
            "atom_of": atom_of,
            "pairs": np.empty(max(listed, 1) * self._pair_bytes, dtype=np.uint8),
            "sums": np.empty(threads * (3 * n + 9)),
            "stretch": np.empty((threads, 3), dtype=np.int64),
            "closest": np.empty(threads),
        }
        system = AtomicSystem(
            atoms=n,
            listed=listed,
            threads=threads,
            **self._grid,
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        work = np.empty(numbers, self._numpy)
        call = self._call(
            system=system,
            work=work.ctypes.data,
            kind=self._kind,
            bend=None if self._curve is None else self._curve.address,
            table=None if self._table is None else self._table.data_ptr(),
            **fields,
        )
        return Prepared(self, call, {**arrays, "work": work})

    def _threads(self, n_atoms: int, n_pairs: int) -> int:
        if self._operations(n_atoms, n_pairs) < WORTH_THREADS:
            return 1
        return max(1, min(threads_at_hand(self.threads), self._most_threads, n_atoms))


def kind_of(activation: str) -> tuple[int, Curve | None]:
    """An activation as the kernels take it: its number, and its curve where they do not know it.

    Raises:
        OptionError: If it cannot be tabulated.
    """
    if activation in ACTIVATIONS:
        return ACTIVATIONS.index(activation), None
    return len(ACTIVATIONS), fit_curve(activation)


def spatial_order(positions: np.ndarray, length: float) -> np.ndarray:
    """Atoms along Morton's curve through boxes of a given length: neighbours in space come close.

    Args:
        positions: A, shape [n_atoms, 3].
        length: Edge of a box, A.

    Returns:
        Atom at each place, int64, shape [n_atoms].
    """
    boxes = ((positions - positions.min(axis=0)) / length).astype(np.int64)
    key = np.zeros(len(positions), dtype=np.int64)
    for bit in range(21):  # 3 x 21 bits; boxes that far out are only out of order
        for axis in range(3):
            key |= ((boxes[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(key, kind="stable")


def _reordered(
    pairs: np.ndarray, offsets: np.ndarray | None, atom_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pairs of places instead of atoms, sorted, and their offsets."""
    place = np.empty_like(atom_of)
    place[atom_of] = np.arange(len(atom_of))
    pairs = place[pairs]
    order = np.argsort(pairs[0] * len(atom_of) + pairs[1], kind="stable")
    return pairs[:, order], None if offsets is None else offsets[order]


def available(dtype: torch.dtype, name: str = "schnet") -> bool:
    """Whether there is a compiled kernel here (it is compiled at the first question)."""
    return dtype in REAL and load_library(name, REAL[dtype]) is not None


def integer_result(function: Any) -> Any:
    """A function of the library that returns an integer."""
    function.restype = ctypes.c_int64
    return function


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """To the first element of a contiguous array."""
    return ctypes.c_void_p(array.ctypes.data)


def pointers(tensors: Any) -> Any:
    """To each of several tensors, as an array of pointers."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
