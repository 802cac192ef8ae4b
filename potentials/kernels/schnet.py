"""SchNets evaluated by a small compiled kernel (``schnet.c``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dcase.potentials.kernels.atom_kernel import (
    AtomicSystem,
    AtomKernel,
    integer_result,
    pointers,
)
from dcase.potentials.kernels.pieces import Pieces
from dcase.potentials.networks.schnet import Interaction, SchNet
from dcase.potentials.networks.splines import UniformSpline

FILTERS_KEPT = 2_000_000
"""Numbers up to which filters by networks are stored between the passes: more leave the cache."""

_INTEGERS = ("hidden", "filters", "layers", "half", "kind", "gaussians", "kept")
_POINTERS = ("weights", "table", "networks", "centres", "bend", "work")


class _Call(ctypes.Structure):
    """The kernel's ``system_call``: the same fields in the same order."""

    _fields_ = (
        ("system", AtomicSystem),
        *((name, ctypes.c_int64) for name in _INTEGERS),
        ("width", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


class SchNetKernel(AtomKernel):
    """One SchNet, ready to be evaluated on the CPU without autograd.

    The filters are those of the network, from its table (``filter_knots``) or by its filter
    networks, so that this is the same function of the positions up to rounding. Weights are copied.

    Args:
        network: On the CPU, float32 or float64.
        activation: Its activation; any of the registry.
        pieces: Filters of all layers [layers * filters] to use instead of those of the filter
            networks, right beyond their first knot.
        threads: At most how many; None: as many as torch uses at each call. Small systems use one.

    Raises:
        RuntimeError: If there is no compiled kernel here.
        OptionError: If the activation cannot be tabulated.
    """

    def __init__(
        self,
        network: SchNet,
        activation: str,
        pieces: Pieces | None = None,
        threads: int | None = None,
    ):
        table = None if network.table is None else own_table(network)
        dtype = network.embedding.weight.dtype
        super().__init__("schnet", _Call, dtype, activation, network.cutoff, table, threads)
        self._pairs_at_a_time = int(integer_result(self.library.pairs_at_a_time)())
        hidden, filters, layers, half = network_shape(network)
        self._knots = np.empty(0)  # where they are uneven
        if pieces is not None:
            n, self._knots, self._begins = len(pieces), pieces.knots, pieces.bins()
            layered = pieces.coefficients.view(n, 4, layers, filters).permute(2, 0, 1, 3)
            self._table = layered.to(dtype).contiguous()
            self.nearest = float(self._knots[0])
            self._grid |= {
                "intervals": n,
                "spacing": (float(self._knots[-1]) - self.nearest) / n,
                "knots": self._knots.ctypes.data,
                "begins": self._begins.ctypes.data,
            }
        self._centres = network.basis.centres.numpy().astype(np.float64)
        weights, networks = packed_weights(network, copy=True), _filter_weights(network)
        at = pointers(weights), pointers(networks)
        self._kept_alive = weights, networks, at
        self._shape = {
            "hidden": hidden, "filters": filters, "layers": layers, "half": half,
            "gaussians": len(self._centres),
        }  # fmt: skip
        self._fields: dict[str, Any] = {
            **self._shape,
            "width": network.basis.width,
            "weights": ctypes.cast(at[0], ctypes.c_void_p),
            "networks": ctypes.cast(at[1], ctypes.c_void_p),
            "centres": self._centres.ctypes.data,
        }

    def _network(self, n_atoms: int, listed: int, threads: int) -> tuple[int, dict[str, Any]]:
        hidden, filters, layers, half, gaussians = self._shape.values()
        of_atom = layers * (filters + hidden) + 2 * hidden + filters + 2 * half
        numbers, kept = n_atoms * (of_atom + threads * filters), False
        if self._table is None:
            numbers += threads * self._pairs_at_a_time * (2 * gaussians + 5 * filters)
            every = 2 * layers * listed * filters
            kept = every <= FILTERS_KEPT
            numbers += every * kept
        return numbers, {**self._fields, "kept": kept}

    def _operations(self, n_atoms: int, n_pairs: int) -> float:
        hidden, filters, layers, _, gaussians = self._shape.values()
        node = 2 * hidden * filters + hidden**2
        pair = 40.0 if self._table is not None else 6.0 * (gaussians + filters)
        return layers * (4.0 * n_atoms * node + n_pairs * pair * filters)


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
