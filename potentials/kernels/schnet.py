"""SchNets with tabulated filters, evaluated by a small compiled kernel (``schnet.c``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dcase.potentials.kernels.build import load_library
from dcase.potentials.schnet import Interaction, SchNet
from dcase.potentials.spline import UniformSpline

# In the order of the kernel's enum.
ACTIVATIONS = ("irelu", "ssp", "softplus", "silu", "tanh", "log_cosh")
REAL = {torch.float32: "float", torch.float64: "double"}


@dataclass(frozen=True)
class Evaluation:
    """What the kernel computes, in the network's unit.

    Attributes:
        energies: Per atom, float64, shape [n_atoms].
        forces: Per A, float64, shape [n_atoms, 3].
        virial: dE/d strain, float64, shape [3, 3].
        neighbours: Number of neighbours within the cutoff, int64, shape [n_atoms].
    """

    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    neighbours: np.ndarray


class SchNetKernel:
    """One SchNet, ready to be evaluated on the CPU without autograd.

    The filters are those of the network's own table (``filter_knots``), so that this is the same
    function of the positions up to rounding. Weights are copied.

    Args:
        network: With ``filter_knots``, on the CPU, float32 or float64.
        activation: Its activation, one of :data:`ACTIVATIONS`.
        table: Filters to use instead of the network's own: spline and coefficients of shape
            [n_intervals + 3, layers * filters].

    Raises:
        RuntimeError: If there is no compiled kernel here; see :func:`available`.
    """

    def __init__(
        self,
        network: SchNet,
        activation: str,
        table: tuple[UniformSpline, torch.Tensor] | None = None,
    ):
        self.dtype = network.embedding.weight.dtype
        library = load_library("schnet", REAL[self.dtype])
        if library is None:
            raise RuntimeError("there is no compiled kernel here")
        self._call = library.schnet
        self._call.restype = None
        self._pair_bytes = int(integer_result(library.size_of_pair)())
        self._kind = ctypes.c_int(ACTIVATIONS.index(activation))
        spline, coefficients = own_table(network) if table is None else table
        hidden, filters, layers, half = network_shape(network)
        # REALs of scratch for each atom
        self._scratch = layers * (filters + hidden) + 2 * (filters + hidden) + 2 * half
        self._weights = packed_weights(network, copy=True)
        self._pointers = pointers(self._weights)
        self._table = coefficients.detach().to(self.dtype).cpu().contiguous().clone()
        self._lengths = np.array([network.cutoff, spline.spacing])
        self._shape = (hidden, filters, layers, half, spline.n_intervals)
        self._numpy = np.float32 if self.dtype == torch.float32 else np.float64
        self._room: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None

    def __call__(
        self,
        positions: np.ndarray,
        species: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None = None,
    ) -> Evaluation:
        """Evaluate one system.

        Args:
            positions: A, shape [n_atoms, 3].
            species: Index of each atom's element, int64, shape [n_atoms].
            pairs: Half list, int64, shape [2, n_pairs]; pairs beyond the cutoff are left out.
            offsets: ``shifts @ cell`` in A, shape [n_pairs, 3], or None for a molecule.
        """
        n, listed = len(species), pairs.shape[1]
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        species = np.ascontiguousarray(species, dtype=np.int64)
        pairs = np.ascontiguousarray(pairs, dtype=np.int64)
        if offsets is not None:
            offsets = np.ascontiguousarray(offsets, dtype=np.float64)
        if positions.shape != (n, 3) or (offsets is not None and offsets.shape != (listed, 3)):
            raise ValueError("positions, species, pairs and offsets do not fit together")
        sizes = np.array([n, listed, *self._shape])
        if self._room is None or self._room[0] != (n, listed):
            self._room = (
                (n, listed),
                np.empty(n * self._scratch, dtype=self._numpy),
                np.empty(max(listed, 1) * self._pair_bytes, dtype=np.uint8),
            )
        _, work, room = self._room
        result = Evaluation(np.empty(n), np.empty((n, 3)), np.empty((3, 3)), np.empty(n, np.int64))
        self._call(
            pointer(sizes),
            pointer(self._lengths),
            self._kind,
            pointer(positions),
            pointer(pairs),
            None if offsets is None else pointer(offsets),
            pointer(species),
            self._pointers,
            ctypes.c_void_p(self._table.data_ptr()),
            pointer(work),
            pointer(room),
            pointer(result.energies),
            pointer(result.forces),
            pointer(result.virial),
            pointer(result.neighbours),
        )
        return result


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
