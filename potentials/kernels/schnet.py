"""SchNets evaluated by a small compiled kernel (``schnet.c``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dcase.potentials.kernels.build import load_library
from dcase.potentials.kernels.compiled import CompiledKernel, Prepared, threads_at_hand
from dcase.potentials.kernels.curve import Curve, fit_curve
from dcase.potentials.kernels.tables import CLOSEST
from dcase.potentials.networks.schnet import Interaction, SchNet
from dcase.potentials.networks.splines import UniformSpline

# In the order of the kernel's enum; others are tabulated.
ACTIVATIONS = ("irelu", "ssp", "softplus", "silu", "tanh", "log_cosh")
REAL = {torch.float32: "float", torch.float64: "double"}
WORTH_SORTING = 500
"""Atoms from which on their order in memory matters: fewer stay in the cache in any order."""
FILTERS_KEPT = 2_000_000
"""Numbers up to which filters by networks are stored between the passes: more leave the cache."""
WORTH_THREADS = 2e7
"""Floating point operations of a call from which on more than one thread saves time."""

_INTEGERS = (
    "atoms", "listed", "hidden", "filters", "layers", "half", "intervals", "kind", "threads",
    "gaussians", "kept",
)  # fmt: skip
_POINTERS = (
    "positions", "atom_of", "list", "offsets", "species", "weights", "table",
    "networks", "centres", "bend", "work", "pairs", "sums", "stretch", "energy", "force", "virial",
    "neighbours", "closest",
)  # fmt: skip


class _Call(ctypes.Structure):
    """The kernel's ``system_call``: the same fields in the same order."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTEGERS),
        *((name, ctypes.c_double) for name in ("cutoff", "spacing", "width")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


class SchNetKernel(CompiledKernel):
    """One SchNet, ready to be evaluated on the CPU without autograd.

    The filters are those of the network, from its table (``filter_knots``) or by its filter
    networks, so that this is the same function of the positions up to rounding. Weights are copied.

    Args:
        network: On the CPU, float32 or float64.
        activation: Its activation; any of the registry.
        table: Filters to use instead of the network's own: spline and coefficients of shape
            [n_intervals + 3, layers * filters]; good beyond
            :data:`~dcase.potentials.kernels.tables.CLOSEST`.
        threads: At most how many; None: as many as torch uses at each call. Small systems use one.

    Raises:
        RuntimeError: If there is no compiled kernel here; see :func:`available`.
        OptionError: If the activation cannot be tabulated.
    """

    def __init__(
        self,
        network: SchNet,
        activation: str,
        table: tuple[UniformSpline, torch.Tensor] | None = None,
        threads: int | None = None,
    ):
        super().__init__()
        self.dtype = network.embedding.weight.dtype
        self.threads = threads
        library = load_library("schnet", REAL[self.dtype])
        if library is None:
            raise RuntimeError("there is no compiled kernel here")
        self.function = library.schnet
        self.function.restype, self.function.argtypes = None, [ctypes.c_void_p]
        self._pair_bytes = int(integer_result(library.size_of_pair)())
        self._pairs_at_a_time = int(integer_result(library.pairs_at_a_time)())
        assert int(integer_result(library.size_of_call)()) == ctypes.sizeof(_Call)
        self._most_threads = int(library.most_threads())
        given = table
        if table is None and network.table is not None:
            table = own_table(network)
        hidden, filters, layers, half = network_shape(network)
        self._weights = packed_weights(network, copy=True)
        self._pointers = pointers(self._weights)
        self._centres = network.basis.centres.numpy().astype(np.float64)
        filter_networks = _filter_weights(network)
        self._networks = filter_networks, pointers(filter_networks)
        self._table: torch.Tensor | None = None
        self.nearest = 0.0 if given is None else CLOSEST
        if table is not None:
            self._table = table[1].detach().to(self.dtype).cpu().contiguous().clone()
        self._curve: Curve | None = None
        if activation in ACTIVATIONS:
            kind = ACTIVATIONS.index(activation)
        else:
            kind, self._curve = len(ACTIVATIONS), fit_curve(activation)
        self._shape: dict[str, Any] = {
            "hidden": hidden, "filters": filters, "layers": layers, "half": half,
            "intervals": 0 if table is None else table[0].n_intervals, "kind": kind,
            "spacing": 0.0 if table is None else table[0].spacing, "cutoff": network.cutoff,
            "gaussians": len(self._centres), "width": network.basis.width,
        }  # fmt: skip
        # REALs of scratch for each atom, and more for each thread
        self._scratch = layers * (filters + hidden) + 2 * hidden + filters + 2 * half
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
        atom_of = np.arange(n)
        if n >= WORTH_SORTING:
            atom_of = spatial_order(positions, self._shape["cutoff"])
            pairs, offsets = _reordered(pairs, offsets, atom_of)
        filters = self._shape["filters"]
        room, kept = n * (self._scratch + threads * filters), False
        if self._table is None:
            room += threads * self._pairs_at_a_time * (2 * self._shape["gaussians"] + 5 * filters)
            every = 2 * self._shape["layers"] * listed * filters
            kept = every <= FILTERS_KEPT
            room += every * kept
        arrays: dict[str, np.ndarray] = {
            **self._system(positions, species, pairs, offsets),
            "atom_of": atom_of,
            "work": np.empty(room, self._numpy),
            "pairs": np.empty(max(listed, 1) * self._pair_bytes, dtype=np.uint8),
            "sums": np.empty(threads * (3 * n + 9)),
            "stretch": np.empty((threads, 3), dtype=np.int64),
            "closest": np.empty(threads),
        }
        call = _Call(
            atoms=n,
            listed=listed,
            threads=threads,
            kept=kept,
            weights=ctypes.cast(self._pointers, ctypes.c_void_p),
            table=None if self._table is None else self._table.data_ptr(),
            networks=ctypes.cast(self._networks[1], ctypes.c_void_p),
            centres=self._centres.ctypes.data,
            bend=None if self._curve is None else self._curve.address,
            **self._shape,
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        return Prepared(self, call, arrays)

    def _threads(self, n_atoms: int, n_pairs: int) -> int:
        s = self._shape
        node = 2 * s["hidden"] * s["filters"] + s["hidden"] ** 2
        pair = 40.0 if self._table is not None else 6.0 * (s["gaussians"] + s["filters"])
        work = s["layers"] * (4.0 * n_atoms * node + n_pairs * pair * s["filters"])
        if work < WORTH_THREADS:
            return 1
        return max(1, min(threads_at_hand(self.threads), self._most_threads, n_atoms))


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


def network_shape(network: SchNet) -> tuple[int, int, int, int]:
    """Sizes as the kernels name them: hidden, filters, layers, half (of the read-out)."""
    blocks: Sequence[Interaction] = list(network.interactions)  # type: ignore[arg-type]
    filters = blocks[0].atom_in.weight.shape[0] if blocks else 0
    return network.embedding.weight.shape[1], filters, len(blocks), network.out_in.weight.shape[0]


@torch.no_grad()
def packed_weights(network: SchNet, *, copy: bool) -> list[torch.Tensor]:
    """The weights of the nodes' network in the kernels' order, contiguous, on the CPU.

    Args:
        network: Of which.
        copy: Also copy what is contiguous as it is, so that it does not change with the network.
    """
    blocks: Sequence[Interaction] = list(network.interactions)  # type: ignore[arg-type]
    weights: list[torch.Tensor] = [network.embedding.weight]
    for block in blocks:
        a, b, c = block.atom_in, block.atom_out, block.update
        weights += [a.weight.T, b.weight.T, b.bias, c.weight.T, c.bias]
        weights += [a.weight, b.weight, c.weight]
    head, out = network.out_in, network.out
    weights += [head.weight.T, head.bias, head.weight, out.weight.reshape(-1), out.bias]
    contiguous = [w.detach().cpu().contiguous() for w in weights]
    return [w.clone() for w in contiguous] if copy else contiguous


@torch.no_grad()
def _filter_weights(network: SchNet) -> list[torch.Tensor]:
    """The weights of the filter networks in the kernel's order, [in, out], copied."""
    weights: list[torch.Tensor] = []
    for block in network.interactions:
        first, last = block.filter_in, block.filter_out  # type: ignore[union-attr]
        weights += [first.weight.T, first.bias, last.weight.T, last.bias]  # type: ignore[union-attr, list-item]
    return [w.detach().cpu().contiguous().clone() for w in weights]


def own_table(network: SchNet) -> tuple[UniformSpline, torch.Tensor]:
    """The network's spline and its coefficients, [n_intervals + 3, layers * filters].

    Raises:
        ValueError: If it has none.
    """
    spline = network.table
    if spline is None:
        raise ValueError("the network has no filter table (filter_knots is 0)")
    with torch.no_grad():
        return spline, network.filter_table()


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


def pointers(tensors: Sequence[torch.Tensor]) -> Any:
    """To each of several tensors, as an array of pointers."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
