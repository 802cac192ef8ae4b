"""PaiNNs evaluated by a small compiled kernel (``painn.c``)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import nn

from dcase.errors import OptionError
from dcase.potentials.kernels.atom_kernel import (
    ACTIVATIONS,
    AtomicSystem,
    AtomKernel,
    available,
    integer_result,
    kind_of,
    pointers,
)
from dcase.potentials.kernels.build import NO_COMPILER
from dcase.potentials.kernels.compiled import PotentialLike
from dcase.potentials.kernels.tables import CLOSEST, coefficients, fine_enough
from dcase.potentials.networks.painn import PaiNN
from dcase.potentials.networks.splines import UniformSpline

_POINTERS = ("weights", "elements", "table", "bend", "head_bend", "work")


class _Call(ctypes.Structure):
    """The kernel's ``system_call``: the same fields in the same order."""

    _fields_ = (
        ("system", AtomicSystem),
        *((name, ctypes.c_int64) for name in ("hidden", "layers", "half", "kind", "head")),
        ("softening", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


class PaiNNKernel(AtomKernel):
    """One PaiNN, ready to be evaluated on the CPU without autograd.

    With ``filter_knots`` the same function of the positions up to rounding. Without, the filters
    are splines of an error of 1e-8 (:mod:`dcase.potentials.kernels.tables`). Weights are copied.

    Args:
        network: On the CPU, float32 or float64.
        activation: Its activation; any of the registry.
        threads: At most how many; None: as many as torch uses at each call. Small systems use one.

    Raises:
        RuntimeError: If there is no compiled kernel here.
        OptionError: If the activation or the filters cannot be tabulated.
    """

    def __init__(self, network: PaiNN, activation: str, threads: int | None = None):
        dtype = network.embedding.weight.dtype
        table = own_table(network)
        inner = network.inner_activation
        super().__init__("painn", _Call, dtype, inner, network.cutoff, table, threads)
        self._numbers_of_atom = integer_result(self.library.numbers_of_atom)
        self.nearest = 0.0 if network.table is not None else CLOSEST
        weights, elements = packed_weights(network, copy=True), _first_phi(network)
        at = pointers(weights)
        self._kept_alive = weights, elements, at
        self._sizes = network_shape(network)
        head, self._head_curve = kind_of(activation)
        self._fields: dict[str, Any] = {
            **dict(zip(("hidden", "layers", "half"), self._sizes, strict=True)),
            "softening": network.softening,
            "head": head,
            "head_bend": None if self._head_curve is None else self._head_curve.address,
            "weights": ctypes.cast(at, ctypes.c_void_p),
            "elements": elements.data_ptr(),
        }

    def _network(self, n_atoms: int, listed: int, threads: int) -> tuple[int, dict[str, Any]]:
        sizes = (ctypes.c_int64(size) for size in (*self._sizes, threads))
        return n_atoms * int(self._numbers_of_atom(*sizes)), self._fields

    def _operations(self, n_atoms: int, n_pairs: int) -> float:
        hidden, layers, _ = self._sizes
        return layers * (4.0 * 15 * n_atoms * hidden**2 + 200.0 * n_pairs * hidden)


def compiled(potential: PotentialLike, tabulate: bool, filter_error: float) -> PaiNNKernel:
    """The kernel of a PaiNN potential.

    Arguments as of :func:`dcase.potentials.kernels.deployed.deploy`.

    Raises:
        OptionError: If it has no compiled form, saying why.
    """
    network = potential.network
    if not isinstance(network, PaiNN):  # a network of one's own under PaiNN's name
        raise OptionError(f"there is no compiled form of {type(network).__name__}")
    if not available(potential.dtype, "painn"):
        raise OptionError(NO_COMPILER)
    activation = potential.hyper_parameters.get("activation", "")
    if potential.dtype == torch.float64 and not tabulate:
        for name in (activation, network.inner_activation):
            if name not in ACTIVATIONS:
                raise OptionError(f"float64 resolves the error of {name} as piecewise cubics")
        if network.table is None:
            raise OptionError("float64 resolves the error of the radial functions' splines")
    return PaiNNKernel(network, activation)


@torch.no_grad()
def own_table(network: PaiNN) -> tuple[UniformSpline, torch.Tensor]:
    """Spline and coefficients of the filters, [n_intervals + 3, blocks * 3 * hidden].

    The network's own, or (without ``filter_knots``) fine ones of its formula.
    """
    if network.table is not None:
        return network.table, network.filter_table()
    layer = network.filters

    def filters(d: torch.Tensor) -> torch.Tensor:
        values = network.basis(d) @ layer.weight.double().T + layer.bias.double()
        return values * network.envelope(d).unsqueeze(-1)

    intervals = fine_enough(filters, network.cutoff)
    table = coefficients(filters, network.cutoff, intervals)
    return UniformSpline(network.cutoff, intervals), torch.from_numpy(table)


@torch.no_grad()
def _first_phi(network: PaiNN) -> torch.Tensor:
    """What the first block's atoms send, which depends on their elements only."""
    message: Any = network.messages[0]
    return message.phi(network.embedding.weight).contiguous()


def network_shape(network: PaiNN) -> tuple[int, int, int]:
    """Sizes as the kernels name them: hidden, blocks, half (of the read-out)."""
    return network.hidden, len(network.messages), network.out_in.weight.shape[0]


def dense_layers(network: PaiNN) -> list[nn.Linear]:
    """All but those of the filters, in the kernels' order."""
    found: list[nn.Linear] = []
    for message, update in zip(network.messages, network.updates, strict=True):
        found += [message.dense, message.split]  # type: ignore[list-item]
        found += [update.mix, update.dense, update.split]  # type: ignore[list-item]
    return [*found, network.out_in, network.out]


@torch.no_grad()
def packed_weights(network: PaiNN, *, copy: bool) -> list[torch.Tensor]:
    """The weights in the kernels' order, contiguous, on the CPU; matrices [in, out] and [out, in].

    Args:
        network: Of which.
        copy: Also copy what is contiguous as it is, so that it does not change with the network.
    """
    weights: list[torch.Tensor] = [network.embedding.weight]
    layers = dense_layers(network)
    for block in range(len(network.messages)):
        own = layers[5 * block : 5 * block + 5]
        for layer in own:
            weights += [layer.weight.T] if layer.bias is None else [layer.weight.T, layer.bias]
        weights += [layer.weight for layer in own]
    head, out = layers[-2:]
    weights += [head.weight.T, head.bias, head.weight, out.weight.reshape(-1), out.bias]
    contiguous = [w.detach().cpu().contiguous() for w in weights]
    return [w.clone() for w in contiguous] if copy else contiguous
