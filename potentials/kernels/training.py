"""Energies and forces of a batch for training on them, with a compiled gradient by the weights.

Training on forces needs the gradient, by the weights, of something that is a gradient by the
positions already. Autograd builds the graph of the first gradient and goes through it backwards.
Here the gradient of ``sum_i gE_i e_i + sum_i gF_i . F_i`` is written out (``schnet_train.c``,
``painn_train.c``): the second sum is a derivative along a known direction, so one forward pass that
carries this derivative along, and one backward pass through it, are enough.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dcase.errors import OptionError
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.kernels.atom_kernel import (
    ACTIVATIONS,
    REAL,
    available,
    integer_result,
    pointer,
    pointers,
)
from dcase.potentials.kernels.build import NO_COMPILER, load_library
from dcase.potentials.kernels.compiled import PotentialLike
from dcase.potentials.networks.splines import UniformSpline

WORTH_A_THREAD = 5e7
"""Floating point operations of a step for which starting one more thread pays."""


class TrainingKernel(ABC):
    """What is the same in every step of training one network.

    Args:
        network: With a table of filters, on the CPU, float32 or float64.
        activation: Its activation, one of :data:`~dcase.potentials.kernels.schnet.ACTIVATIONS`.
        library: Name of the C source.
        shape: Sizes of the network as the C source wants them after atoms and pairs.
        softening: Of the C source's ``share``.
        inner: The activation before the read-out, where that is another one.

    Raises:
        RuntimeError: If there is no compiled kernel here.
        ValueError: If the network has no filter table or another activation.
    """

    network: Any

    def __init__(
        self,
        network: nn.Module,
        activation: str,
        library: str,
        shape: tuple[int, ...],
        softening: float = 0.0,
        inner: str | None = None,
    ):
        spline = network.table
        activations = (inner or activation, activation)
        if not isinstance(spline, UniformSpline) or not set(activations) <= set(ACTIVATIONS):
            raise ValueError("the network has no compiled form")
        self.network = network
        self.dtype: torch.dtype = network.embedding.weight.dtype  # type: ignore[union-attr, assignment]
        loaded = load_library(library, REAL[self.dtype])
        if loaded is None:
            raise RuntimeError("there is no compiled kernel here")
        self.forward, self.backward = loaded.forward_shares, loaded.backward_shares
        self.forward.restype = self.backward.restype = None
        self.pair_bytes = int(integer_result(loaded.size_of_pair)())
        self.size_of_work = integer_result(loaded.size_of_work)
        assert int(integer_result(loaded.size_of_share)()) == ctypes.sizeof(_Share)
        self.kind, self.head = (ACTIVATIONS.index(name) for name in activations)
        self.spacing, self.softening = spline.spacing, softening
        self.shape = shape
        self.rooms = _Rooms()

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Weights that the compiled gradient is for."""

    @abstractmethod
    def packed(self) -> list[Tensor]:
        """The weights as the C source takes them, contiguous; views or copies, without gradient."""

    @abstractmethod
    def gradients(self, packed: list[Tensor]) -> list[Tensor]:
        """Zeros that the gradients are added to, as the C source takes them."""

    @abstractmethod
    def by_parameter(self, gradients: list[Tensor]) -> list[Tensor]:
        """Gradients as the C source leaves them, in the order and shape of :meth:`parameters`."""

    @abstractmethod
    def table(self) -> Tensor:
        """Coefficients of the filters, differentiable in the weights of the filters."""

    @abstractmethod
    def operations(self, n_atoms: int, n_pairs: int) -> float:
        """Of a step, roughly."""

    def worth_threads(self, n_atoms: int, n_pairs: int) -> int:
        """Up to how many threads save time with a batch of this size."""
        return max(1, int(self.operations(n_atoms, n_pairs) / WORTH_A_THREAD))

    def __call__(
        self, species: Tensor, graph: AtomicGraph, *, forces: bool
    ) -> tuple[Tensor, Tensor]:
        """Atom energies [n_atoms] and forces [n_atoms, 3], float64, in the network's unit.

        Differentiable once in the network's weights (not in the positions). Without ``forces``
        these are zeros.
        """
        return _EnergiesForces.apply(self, species, graph, forces, self.table(), *self.parameters())


def check_trainable(
    potential: PotentialLike, kind: type[nn.Module], libraries: tuple[str, ...]
) -> None:
    """Whether there is a compiled gradient of a potential.

    Args:
        potential: Any.
        kind: The network that there is one for.
        libraries: C sources that are needed.

    Raises:
        OptionError: If there is none, saying why.
    """
    network, name = potential.network, potential.architecture
    activation = potential.hyper_parameters.get("activation", "")
    if not isinstance(network, kind):
        raise OptionError(f"{name} has no compiled gradient")
    if network.table is None:
        raise OptionError(f"{name} without filter_knots has no compiled gradient")
    if activation not in ACTIVATIONS:
        raise OptionError(f"{name} with {activation} has no compiled gradient")
    if potential.device.type != "cpu":
        raise OptionError(
            f"the compiled gradient runs on the CPU, the potential is on {potential.device}"
        )
    if not all(available(potential.dtype, library) for library in libraries):
        raise OptionError(NO_COMPILER)


_POINTERS = (
    "r", "list", "species", "weights", "table", "work", "pairs", "energy", "force", "by_energy",
    "by_force", "gradients", "table_gradient",
)  # fmt: skip


class _Share(ctypes.Structure):
    """The kernels' ``share``: whole systems of a batch, for one thread."""

    _fields_ = (
        ("sizes", ctypes.c_void_p),
        ("spacing", ctypes.c_double),
        ("softening", ctypes.c_double),
        ("kind", ctypes.c_int64),
        ("head", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


class _Rooms:
    """Memory for batches, used again: to get some MB from the system in every step takes time."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, size: int, dtype: torch.dtype) -> _Room:
        """Room for at least ``size`` numbers; free again when nobody holds it any more."""
        while self._free:
            memory = self._free.pop()
            if len(memory) >= size:
                return _Room(self._free, memory)
        return _Room(self._free, torch.empty(size, dtype=dtype))


class _Room:
    def __init__(self, free: list[Tensor], memory: Tensor):
        self._free, self.memory = free, memory

    def __del__(self) -> None:
        self._free.append(self.memory)


def _cuts(kernel: TrainingKernel, graph: AtomicGraph) -> list[tuple[int, int, int, int]]:
    """First and last atom, and pair, of as many shares as there are threads for the batch.

    Cut between systems; one share where atoms or pairs are not in the order of systems.
    """
    n, count = graph.n_atoms, graph.pairs.shape[1]
    threads = min(torch.get_num_threads(), graph.n_systems, kernel.worth_threads(n, count))
    atoms, pairs = [0, n], [0, count]
    if threads > 1:
        system = graph.system
        of_pair = system[graph.pairs[0]]
        if bool((system.diff() >= 0).all()) and bool((of_pair.diff() >= 0).all()):
            at = torch.stack([system[n * t // threads] for t in range(1, threads)])
            atoms = [0, *torch.searchsorted(system, at).tolist(), n]
            pairs = [0, *torch.searchsorted(of_pair, at).tolist(), count]
    cuts = zip(atoms, atoms[1:], pairs, pairs[1:], strict=False)
    return [cut for cut in cuts if cut[1] > cut[0]]


class _EnergiesForces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernel: TrainingKernel,
        species: Tensor,
        graph: AtomicGraph,
        forces: bool,
        table: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        packed = kernel.packed()
        weights_at = pointers(packed)
        table = table.detach().contiguous()
        energy = torch.empty(len(species), dtype=torch.float64)
        force = torch.zeros(len(species), 3, dtype=torch.float64)
        vectors, species = graph.vectors().detach().contiguous(), species.contiguous()
        cuts = _cuts(kernel, graph)
        shares = (_Share * len(cuts))()
        room: list[Any] = [packed, weights_at, table, vectors, species]  # kept alive by ctx
        for share, (a0, a1, p0, p1) in zip(shares, cuts, strict=True):
            sizes = np.array([a1 - a0, p1 - p0, *kernel.shape])
            pairs = (graph.pairs[:, p0:p1] - a0).contiguous()
            work = kernel.rooms.take(int(kernel.size_of_work(pointer(sizes))), kernel.dtype)
            pair_room = np.empty(max(p1 - p0, 1) * kernel.pair_bytes, dtype=np.uint8)
            room += [sizes, pairs, work, pair_room]
            share.sizes, share.pairs = pointer(sizes), pointer(pair_room)
            share.spacing, share.softening = kernel.spacing, kernel.softening
            share.kind, share.head = kernel.kind, kernel.head
            share.weights = ctypes.cast(weights_at, ctypes.c_void_p)
            share.r, share.species = _of(vectors[p0:p1]), _of(species[a0:a1])
            share.list, share.table, share.work = _of(pairs), _of(table), _of(work.memory)
            share.energy = _of(energy[a0:a1])
            share.force = _of(force[a0:a1]) if forces else None
        kernel.forward(ctypes.c_int64(len(shares)), shares)
        ctx.kernel, ctx.forces, ctx.shares, ctx.cuts, ctx.room = kernel, forces, shares, cuts, room
        ctx.packed, ctx.table = packed, table
        ctx.set_materialize_grads(False)
        return energy, force

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        by_energy, by_force = grads
        kernel, shares = ctx.kernel, ctx.shares
        by_energy = torch.zeros(ctx.cuts[-1][1]) if by_energy is None else by_energy
        by_energy = by_energy.double().contiguous()
        by_force = None if by_force is None or not ctx.forces else by_force.double().contiguous()
        found: list[list[Tensor]] = []  # of each share: the table's, and the weights'
        kept = []
        for share, (a0, a1, _, _) in zip(shares, ctx.cuts, strict=True):
            gradients = kernel.gradients(ctx.packed)
            found.append([torch.zeros_like(ctx.table), *gradients])
            kept.append(pointers(gradients))
            share.gradients = ctypes.cast(kept[-1], ctypes.c_void_p)
            share.table_gradient = _of(found[-1][0])
            share.by_energy = _of(by_energy[a0:a1])
            share.by_force = None if by_force is None else _of(by_force[a0:a1])
        kernel.backward(ctypes.c_int64(len(shares)), shares)
        first, *others = found
        for other in others:
            torch._foreach_add_(first, other)
        table, *weights = first
        return (None, None, None, None, table, *kernel.by_parameter(weights))


def _of(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
