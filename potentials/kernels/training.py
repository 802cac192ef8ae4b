"""Energies and forces of a batch for training on them, with a compiled gradient by the weights.

Training on forces needs the gradient, by the weights, of something that is a gradient by the
positions already. Autograd builds the graph of the first gradient and goes through it backwards.
Here the gradient of ``sum_i gE_i e_i + sum_i gF_i . F_i`` is written out (``schnet_train.c``,
``painn_train.c``): the second sum is a derivative along a known direction, so one forward pass that
carries this derivative along, and one backward pass through it, are enough. Whatever else depends
on the derivatives by the pairs' vectors (the stress) is a further part of that direction.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors
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

BYTES_OF_A_SHARE = 3e6
"""What a thread works on at a time, where a batch can be cut: more of it stays in the processor's
caches from one layer to the next."""


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
        self._flip = loaded.flip
        self.forward.restype = self.backward.restype = self._flip.restype = None
        self.pair_bytes = int(integer_result(loaded.size_of_pair)())
        self.size_of_work = integer_result(loaded.size_of_work)
        assert int(integer_result(loaded.size_of_share)()) == ctypes.sizeof(_Share)
        self.kind, self.head = (ACTIVATIONS.index(name) for name in activations)
        self.spacing, self.softening = spline.spacing, softening
        self.shape = shape
        self.rooms = _Rooms()
        self._gradients: tuple[list[Tensor], np.ndarray] | None = None

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Weights that the compiled gradient is for."""

    @abstractmethod
    def packed(self) -> tuple[list[int], Any]:
        """Addresses of the weights as the C source takes them, and who owns what is there."""

    @abstractmethod
    def like_gradients(self) -> list[Tensor]:
        """Any tensors of the gradients' shapes, as the C source leaves them."""

    @abstractmethod
    def by_parameter(self, gradients: list[Tensor]) -> list[Tensor]:
        """Gradients as the C source leaves them, in the order and shape of :meth:`parameters`."""

    @abstractmethod
    def table(self) -> Tensor:
        """Coefficients of the filters, differentiable in the weights of the filters."""

    @abstractmethod
    def operations(self, n_atoms: int, n_pairs: int) -> float:
        """Of a step, roughly."""

    def transposed(self, matrices: list[Tensor]) -> tuple[list[int], Tensor]:
        """Addresses of the transposed matrices, copies in the memory that comes with them."""
        shapes = np.array([matrix.shape for matrix in matrices])
        ends = np.cumsum([0, *shapes.prod(1)])
        copies = torch.empty(int(ends[-1]), dtype=self.dtype)
        self._flip(
            ctypes.c_int64(len(shapes)),
            pointer(shapes),
            pointers(matrices),
            ctypes.c_void_p(copies.data_ptr()),
        )
        return (copies.data_ptr() + copies.element_size() * ends[:-1]).tolist(), copies

    def gradients(self, table: Tensor) -> tuple[list[Tensor], np.ndarray]:
        """Tensors like those of a table's gradient and of the weights', and where they begin.

        In one block; the last place is its end.
        """
        if self._gradients is None:
            like = [w.detach().to("meta") for w in (table, *self.like_gradients())]
            self._gradients = like, np.cumsum([0, *(w.numel() for w in like)])
        return self._gradients

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
        energies, forces_, _ = self._apply(species, graph, forces, False)
        return energies, forces_

    def with_pulls(self, species: Tensor, graph: AtomicGraph) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and the derivatives of the energy by the pairs' vectors, [n_pairs, 3]."""
        return self._apply(species, graph, True, True)

    def _apply(
        self, species: Tensor, graph: AtomicGraph, forces: bool, pulls: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        options = forces, pulls, self.table()
        return _EnergiesForces.apply(self, species, graph, *options, *self.parameters())


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
    "r", "list", "species", "weights", "table", "work", "pairs", "energy", "force", "pull",
    "by_energy", "by_force", "by_pull", "gradients", "table_gradient",
)  # fmt: skip


class _Share(ctypes.Structure):
    """The kernels' ``share``: whole systems of a batch."""

    _fields_ = (
        ("sizes", ctypes.c_void_p),
        ("first", ctypes.c_int64),
        ("apart", ctypes.c_int64),
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


_Cut = tuple[int, int, int, int]
"""First and last atom, and pair, of a share."""


def _cuts(kernel: TrainingKernel, graph: AtomicGraph) -> list[list[_Cut]]:
    """The shares of as many threads as there are for the batch.

    Cut between systems; one share where atoms or pairs are not in the order of systems.
    """
    n, count = graph.n_atoms, graph.pairs.shape[1]
    threads = min(torch.get_num_threads(), graph.n_systems, kernel.worth_threads(n, count))
    size = int(kernel.size_of_work(pointer(np.array([n, count, *kernel.shape]))))
    of_thread = round(size * kernel.dtype.itemsize / BYTES_OF_A_SHARE / threads)
    shares = threads * max(1, min(of_thread, -(-graph.n_systems // threads)))
    if shares > 1:
        system = graph.system.numpy()
        of_pair = system[graph.pairs[0].numpy()]
        if (np.diff(system) >= 0).all() and (np.diff(of_pair) >= 0).all():
            at = [system[n * k // shares] for k in range(1, shares)]
            atoms = [0, *np.searchsorted(system, at).tolist(), n]
            pairs = [0, *np.searchsorted(of_pair, at).tolist(), count]
            cuts = list(zip(atoms, atoms[1:], pairs, pairs[1:], strict=False))
            own = shares // threads
            found = [
                [cut for cut in cuts[own * t : own * (t + 1)] if cut[1] > cut[0]]
                for t in range(threads)
            ]
            return [share for share in found if share]
    return [[(0, n, 0, count)]]


class _Batch:
    """What the C source is given of a batch, and all memory that it points to."""

    def __init__(
        self, kernel: TrainingKernel, species: Tensor, graph: AtomicGraph, table: Tensor
    ) -> None:
        self.kernel, self.table = kernel, table
        addresses, owners = kernel.packed()
        self.weights = np.array(addresses)
        cuts = _cuts(kernel, graph)
        self.cuts = [cut for own in cuts for cut in own]
        self.firsts = np.cumsum([0, *(len(own) for own in cuts)])  # share of each thread
        vectors, pairs = graph.vectors().detach().contiguous(), graph.pairs.contiguous()
        species = species.contiguous()
        self.sizes = np.array([[a1 - a0, p1 - p0, *kernel.shape] for a0, a1, p0, p1 in self.cuts])
        self.kept_alive = owners, vectors, pairs, species
        number = table.element_size()
        ends = [0]  # in the room: of each share's numbers, and of its pairs
        for own in self.sizes:
            work = int(kernel.size_of_work(pointer(own)))
            for size in (work, -(-int(own[1]) * kernel.pair_bytes // number)):
                ends.append(ends[-1] + -(-size // 16) * 16)
        self.room = kernel.rooms.take(ends[-1], kernel.dtype)
        self.shares = (_Share * len(self.cuts))()
        for k, (share, (a0, _, p0, _)) in enumerate(zip(self.shares, self.cuts, strict=True)):
            share.sizes = self.sizes[k].ctypes.data
            share.first, share.apart = a0, pairs.shape[1]
            share.spacing, share.softening = kernel.spacing, kernel.softening
            share.kind, share.head = kernel.kind, kernel.head
            share.weights = self.weights.ctypes.data
            share.r, share.list = vectors.data_ptr() + 24 * p0, pairs.data_ptr() + 8 * p0
            share.species, share.table = species.data_ptr() + 8 * a0, table.data_ptr()
            share.work = self.room.memory.data_ptr() + number * ends[2 * k]
            share.pairs = self.room.memory.data_ptr() + number * ends[2 * k + 1]

    def run(self, function: Any) -> None:
        """``forward`` or ``backward`` of all shares."""
        threads = ctypes.c_int64(len(self.firsts) - 1)
        function(threads, pointer(self.firsts), self.shares)

    def forward(self, forces: bool, pulls: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Energies, forces, and derivatives by the pairs' vectors (none without ``pulls``)."""
        n = self.cuts[-1][1]
        energy = torch.empty(n, dtype=torch.float64)
        force = torch.zeros(n, 3, dtype=torch.float64)
        pull = torch.zeros(self.cuts[-1][3] if pulls else 0, 3, dtype=torch.float64)
        for share, (a0, _, p0, _) in zip(self.shares, self.cuts, strict=True):
            share.energy = energy.data_ptr() + 8 * a0
            share.force = force.data_ptr() + 24 * a0 if forces else None
            share.pull = pull.data_ptr() + 24 * p0 if pulls else None
        self.run(self.kernel.forward)
        return energy, force, pull

    def backward(
        self, by_energy: Tensor, by_force: Tensor | None, by_pull: Tensor | None
    ) -> list[Tensor]:
        """Gradients by the table and by the weights as the C source leaves them."""
        like, ends = self.kernel.gradients(self.table)
        found = torch.zeros(len(self.firsts) - 1, int(ends[-1]), dtype=self.kernel.dtype)
        at = found.data_ptr() + found.element_size() * (
            ends[:-1] + ends[-1] * np.arange(len(found))[:, None]
        )
        for thread, (begin, end) in enumerate(zip(self.firsts, self.firsts[1:], strict=False)):
            for k in range(begin, end):
                share, (first, _, pair, _) = self.shares[k], self.cuts[k]
                share.table_gradient = int(at[thread, 0])
                share.gradients = at[thread, 1:].ctypes.data
                share.by_energy = by_energy.data_ptr() + 8 * first
                share.by_force = None if by_force is None else by_force.data_ptr() + 24 * first
                share.by_pull = None if by_pull is None else by_pull.data_ptr() + 24 * pair
        self.run(self.kernel.backward)
        for other in found[1:]:
            found[0] += other
        return list(_unflatten_dense_tensors(found[0], like))


class _EnergiesForces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernel: TrainingKernel,
        species: Tensor,
        graph: AtomicGraph,
        forces: bool,
        pulls: bool,
        table: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.batch, ctx.forces = _Batch(kernel, species, graph, table.detach().contiguous()), forces
        ctx.set_materialize_grads(False)
        ctx.pulls = pulls
        found: tuple[Tensor, Tensor, Tensor] = ctx.batch.forward(forces, pulls)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        by_energy, by_force, by_pull = grads
        batch: _Batch = ctx.batch
        by_energy = torch.zeros(batch.cuts[-1][1]) if by_energy is None else by_energy
        by_force = None if by_force is None or not ctx.forces else by_force.double().contiguous()
        by_pull = None if by_pull is None or not ctx.pulls else by_pull.double().contiguous()
        table, *weights = batch.backward(by_energy.double().contiguous(), by_force, by_pull)
        return (None, None, None, None, None, table, *batch.kernel.by_parameter(weights))
