"""SchNets with tabulated filters, evaluated by a small compiled kernel (``schnet.c``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dcase.potentials.kernels.build import load_library
from dcase.potentials.schnet import Interaction, SchNet
from dcase.potentials.spline import UniformSpline

# In the order of the kernel's enum.
ACTIVATIONS = ("irelu", "ssp", "softplus", "silu", "tanh", "log_cosh")
_REAL = {torch.float32: "float", torch.float64: "double"}


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
        library = load_library("schnet", _REAL[self.dtype])
        if library is None:
            raise RuntimeError("there is no compiled kernel here")
        self._call = library.schnet
        self._call.restype = None
        self._pair_bytes = int(_integer_result(library.size_of_pair)())
        self._kind = ctypes.c_int(ACTIVATIONS.index(activation))
        spline, coefficients = own_table(network) if table is None else table
        blocks: Sequence[Interaction] = list(network.interactions)  # type: ignore[arg-type]
        self.hidden = network.embedding.weight.shape[1]
        self.filters = blocks[0].atom_in.weight.shape[0] if blocks else 0
        self.half = network.out_in.weight.shape[0]
        self.layers = len(blocks)
        weights = [network.embedding.weight]
        for block in blocks:
            a, b, c = block.atom_in, block.atom_out, block.update
            weights += [a.weight.T, b.weight.T, b.bias, c.weight.T, c.bias]
            weights += [a.weight, b.weight, c.weight]
        head, out = network.out_in, network.out
        weights += [head.weight.T, head.bias, head.weight, out.weight.reshape(-1), out.bias]
        self._weights = [w.detach().cpu().contiguous().clone() for w in weights]
        self._pointers = (ctypes.c_void_p * len(weights))(*(w.data_ptr() for w in self._weights))
        self._table = coefficients.detach().to(self.dtype).cpu().contiguous().clone()
        self._lengths = np.array([network.cutoff, spline.spacing])
        self._intervals = spline.n_intervals
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
        sizes = np.array(
            [n, listed, self.hidden, self.filters, self.layers, self.half, self._intervals]
        )
        if self._room is None or self._room[0] != (n, listed):
            layer = self.filters + self.hidden
            atom = self.layers * layer + 2 * layer + 2 * self.half
            self._room = (
                (n, listed),
                np.empty(n * atom, dtype=self._numpy),
                np.empty(max(listed, 1) * self._pair_bytes, dtype=np.uint8),
            )
        _, work, room = self._room
        result = Evaluation(np.empty(n), np.empty((n, 3)), np.empty((3, 3)), np.empty(n, np.int64))
        self._call(
            _pointer(sizes),
            _pointer(self._lengths),
            self._kind,
            _pointer(positions),
            _pointer(pairs),
            None if offsets is None else _pointer(offsets),
            _pointer(species),
            self._pointers,
            ctypes.c_void_p(self._table.data_ptr()),
            _pointer(work),
            _pointer(room),
            _pointer(result.energies),
            _pointer(result.forces),
            _pointer(result.virial),
            _pointer(result.neighbours),
        )
        return result


def own_table(network: SchNet) -> tuple[UniformSpline, torch.Tensor]:
    """The network's spline and its coefficients, [n_intervals + 3, layers * filters].

    Raises:
        ValueError: If it has none.
    """
    spline = network.table
    if spline is None:
        raise ValueError("the network has no filter table (filter_knots is 0)")
    with torch.no_grad():
        values = network._exact_filters(spline.knots, network.embedding.weight.dtype)
        if not values:
            return spline, network.embedding.weight.new_zeros(spline.n_intervals + 3, 0)
        return spline, spline.coefficients(torch.cat(values, dim=1))


def available(dtype: torch.dtype) -> bool:
    """Whether there is a compiled kernel here (it is compiled at the first question)."""
    return dtype in _REAL and load_library("schnet", _REAL[dtype]) is not None


def _integer_result(function):
    function.restype = ctypes.c_int64
    return function


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
