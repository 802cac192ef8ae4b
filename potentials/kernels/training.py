"""Energies and forces of a batch for training on them, with a compiled gradient by the weights.

Training on forces needs the gradient, by the weights, of something that is a gradient by the
positions already. Autograd builds the graph of the first gradient and goes through it backwards.
Here the gradient of ``sum_i gE_i e_i + sum_i gF_i . F_i`` is written out (``schnet_train.c``): the
second sum is a derivative along a known direction, so one forward pass that carries this derivative
along, and one backward pass through it, are enough. The filter networks, which run on the knots of
their table only, have a gradient of their own (:mod:`dcase.potentials.kernels.filter_table`).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dcase.errors import OptionError
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.kernels.build import NO_COMPILER, load_library
from dcase.potentials.kernels.compiled import PotentialLike
from dcase.potentials.kernels.filter_table import FilterTable
from dcase.potentials.kernels.schnet import (
    ACTIVATIONS,
    REAL,
    available,
    integer_result,
    network_shape,
    packed_weights,
    pointer,
    pointers,
)
from dcase.potentials.networks.schnet import SchNet

WORTH_A_THREAD = 5e7
"""Floating point operations of a step for which starting one more thread pays."""


class TrainingKernel:
    """What is the same in every step of training one SchNet.

    Args:
        network: With ``filter_knots``, on the CPU, float32 or float64.
        activation: Its activation, one of :data:`~dcase.potentials.kernels.schnet.ACTIVATIONS`.

    Raises:
        RuntimeError: If there is no compiled kernel here.
        ValueError: If the network has no filter table or another activation.
    """

    def __init__(self, network: SchNet, activation: str):
        if network.table is None or activation not in ACTIVATIONS:
            raise ValueError("the network has no compiled form")
        self.network = network
        self.filter_table = FilterTable(network, activation)
        dtype = network.embedding.weight.dtype
        library = load_library("schnet_train", REAL[dtype])
        if library is None:
            raise RuntimeError("there is no compiled kernel here")
        self.forward, self.backward = library.forward_shares, library.backward_shares
        self.forward.restype = self.backward.restype = None
        self.pair_bytes = int(integer_result(library.size_of_pair)())
        self.size_of_work = integer_result(library.size_of_work)
        assert int(integer_result(library.size_of_share)()) == ctypes.sizeof(_Share)
        self.kind, self.spacing = ACTIVATIONS.index(activation), network.table.spacing
        self.shape = (*network_shape(network), network.table.n_intervals)
        self.dtype = dtype

    def parameters(self) -> list[Tensor]:
        """Weights that the compiled gradient is for, in its order."""
        net = self.network
        found: list[Tensor] = [net.embedding.weight]
        for block in net.interactions:
            a, b, c = block.atom_in, block.atom_out, block.update  # type: ignore[union-attr]
            found += [a.weight, b.weight, b.bias, c.weight, c.bias]  # type: ignore[union-attr, list-item]
        head, out = net.out_in, net.out
        return [*found, head.weight, head.bias, out.weight, out.bias]

    def worth_threads(self, n_atoms: int, n_pairs: int) -> int:
        """Up to how many threads save time with a batch of this size."""
        hidden, filters, layers, _, _ = self.shape
        node = 2 * hidden * filters + hidden**2
        work = layers * (16.0 * n_atoms * node + 150.0 * n_pairs * filters)
        return max(1, int(work / WORTH_A_THREAD))

    def __call__(
        self, species: Tensor, graph: AtomicGraph, *, forces: bool
    ) -> tuple[Tensor, Tensor]:
        """Atom energies [n_atoms] and forces [n_atoms, 3], float64, in the network's unit.

        Differentiable once in the network's weights (not in the positions). Without ``forces``
        these are zeros.
        """
        table = self.filter_table() if self.shape[2] else self.network.filter_table()
        return _EnergiesForces.apply(self, species, graph, forces, table, *self.parameters())


def training_kernel(potential: PotentialLike) -> TrainingKernel:
    """The compiled gradient of a SchNet potential.

    Raises:
        OptionError: If it has none, saying why.
    """
    if reason := why_none(potential):
        raise OptionError(reason)
    assert isinstance(potential.network, SchNet)
    return TrainingKernel(potential.network, potential.hyper_parameters["activation"])


def why_none(potential: PotentialLike) -> str:
    """Why there is no compiled gradient of a potential; empty where there is one."""
    network = potential.network
    activation = potential.hyper_parameters.get("activation", "")
    if not isinstance(network, SchNet):
        return f"{potential.architecture} has no compiled gradient"
    if network.table is None:
        return f"{potential.architecture} without filter_knots has no compiled gradient"
    if activation not in ACTIVATIONS:
        return f"{potential.architecture} with {activation} has no compiled gradient"
    if potential.device.type != "cpu":
        return f"the compiled gradient runs on the CPU, the potential is on {potential.device}"
    if not all(available(potential.dtype, name) for name in ("schnet_train", "filter_table")):
        return NO_COMPILER
    return ""


_POINTERS = (
    "r", "list", "species", "weights", "table", "work", "pairs", "energy", "force", "by_energy",
    "by_force", "gradients", "table_gradient",
)  # fmt: skip


class _Share(ctypes.Structure):
    """The kernel's ``share``: whole systems of a batch, for one thread."""

    _fields_ = (
        ("sizes", ctypes.c_void_p),
        ("spacing", ctypes.c_double),
        ("kind", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


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
        packed = packed_weights(kernel.network, copy=False)
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
            work = torch.empty(int(kernel.size_of_work(pointer(sizes))), dtype=kernel.dtype)
            pair_room = np.empty(max(p1 - p0, 1) * kernel.pair_bytes, dtype=np.uint8)
            room += [sizes, pairs, work, pair_room]
            share.sizes, share.pairs = pointer(sizes), pointer(pair_room)
            share.spacing, share.kind = kernel.spacing, kernel.kind
            share.weights = ctypes.cast(weights_at, ctypes.c_void_p)
            share.r, share.species = _of(vectors[p0:p1]), _of(species[a0:a1])
            share.list, share.table, share.work = _of(pairs), _of(table), _of(work)
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
            gradients = [torch.zeros_like(w) for w in _by_matrix(ctx.packed, kernel.shape[2])]
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
        # Matrices are [in, out] there and [out, in] in torch; the read-out's last one is a row.
        results = [weights[0], *(g.T if g.ndim == 2 else g for g in weights[1:])]
        results[-2] = results[-2].reshape(1, -1)
        return (None, None, None, None, table, *results)


def _by_matrix(packed: list[Tensor], layers: int) -> list[Tensor]:
    """Of the packed weights, those that are there once: without transposed copies."""
    found = packed[:1]
    for layer in range(layers):
        found += packed[1 + 8 * layer : 6 + 8 * layer]
    tail = packed[1 + 8 * layers :]
    return [*found, tail[0], tail[1], tail[3], tail[4]]


def _of(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
