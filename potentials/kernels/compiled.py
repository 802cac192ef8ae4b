"""What compiled kernels of potentials have in common: results, room for a system, checks."""

from __future__ import annotations

import ctypes
import os
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dcase.potentials.quantity import Quantity
from dcase.rescaling import LabelScale


class PotentialLike(Protocol):
    """What of a :class:`~dcase.potentials.potential.Potential` compiled forms are made of."""

    network: nn.Module
    architecture: str
    hyper_parameters: dict[str, Any]
    quantity: Quantity
    scale: LabelScale
    offsets: Tensor
    species_of: Tensor

    @property
    def cutoff(self) -> float:
        """A."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the network."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...


class EnsembleLike(Protocol):
    """Several potentials (an :class:`~dcase.potentials.ensemble.Ensemble`)."""

    members: nn.ModuleList


@dataclass(frozen=True)
class KernelResult:
    """What a kernel computes, in the network's unit.

    Attributes:
        energies: Per atom, float64, shape [n_atoms].
        forces: Per A, float64, shape [n_atoms, 3].
        virial: dE/d strain, float64, shape [3, 3].
        neighbours: Number of neighbours within the cutoff, int64, shape [n_atoms].
        closest: Shortest distance of a pair, A, first of an array; infinite without pairs.
    """

    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    neighbours: np.ndarray
    closest: np.ndarray = field(default_factory=lambda: np.full(1, np.inf))


class Prepared:
    """One system with a list of pairs, ready to be evaluated at any positions.

    Nothing is allocated by an evaluation. For one thread at a time.

    Attributes:
        positions: A, float64, shape [n_atoms, 3]; to be filled in before :meth:`evaluate`.
        result: Overwritten by every evaluation.
        function: Address of the compiled function.
        argument: Address of what it is to be called with.
    """

    def __init__(self, kernel: Any, call: ctypes.Structure, arrays: dict[str, np.ndarray]):
        self._kernel, self._call, self._arrays = kernel, call, arrays  # kept alive
        self.positions = arrays["positions"]
        self.result = KernelResult(
            *(arrays[name] for name in ("energy", "force", "virial", "neighbours", "closest"))
        )
        self._function = kernel.function
        self.function = ctypes.cast(self._function, ctypes.c_void_p)
        self.argument = ctypes.c_void_p(ctypes.addressof(call))

    def evaluate(self) -> None:
        """Compute :attr:`result` at :attr:`positions`."""
        self._function(self.argument)


class CompiledKernel(ABC):
    """A network that is evaluated by a compiled function.

    Attributes:
        function: The compiled function; takes the address of a structure.
        nearest: A; with pairs that are closer than this it is not the network: its tables are not
            made for that. 0: it always is.
        note: What there is to say of how close it is to the network, in a few words.
    """

    function: Any
    nearest: float = 0.0
    note: str = ""

    def __init__(self) -> None:
        self._last: tuple[tuple[Any, ...], Prepared] | None = None
        self._lock = threading.Lock()

    def __call__(
        self,
        positions: np.ndarray,
        species: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None = None,
    ) -> KernelResult:
        """Evaluate one system.

        Args:
            positions: A, shape [n_atoms, 3].
            species: Index of each atom's element, int64, shape [n_atoms].
            pairs: Half list, int64, shape [2, n_pairs]; pairs beyond the cutoff are left out. It
                and the offsets must not be changed in place between calls.
            offsets: ``shifts @ cell`` in A, shape [n_pairs, 3], or None for a molecule.

        Raises:
            ValueError: If the arrays do not fit together.
        """
        with self._lock:
            prepared = self.prepared(positions, species, pairs, offsets)
            prepared.positions[:] = positions
            prepared.evaluate()
            r = prepared.result
            return KernelResult(
                r.energies.copy(),
                r.forces.copy(),
                r.virial.copy(),
                r.neighbours.copy(),
                r.closest.copy(),
            )

    def prepared(
        self,
        positions: np.ndarray,
        species: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None = None,
    ) -> Prepared:
        """As :meth:`prepare`, or what the last call has made, if these are the same arrays."""
        threads = self._threads(len(species), pairs.shape[1])
        if self._last is not None:
            known, prepared = self._last
            if (
                known[1] is pairs
                and known[2] is offsets
                and known[3] == threads
                and np.array_equal(known[0], species)
            ):
                return prepared
        self._last = None  # room for one at a time
        prepared = self.prepare(positions, species, pairs, offsets, threads)
        self._last = (np.array(species), pairs, offsets, threads), prepared
        return prepared

    def taken(
        self,
        positions: np.ndarray,
        species: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None = None,
    ) -> Prepared:
        """As :meth:`prepared`, but nobody else gets it afterwards."""
        with self._lock:
            prepared = self.prepared(positions, species, pairs, offsets)
            self._last = None
            return prepared

    def prepare(
        self,
        positions: np.ndarray,
        species: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None = None,
        threads: int | None = None,
    ) -> Prepared:
        """Room and arguments for evaluations with one list of pairs.

        Args:
            positions: Where the atoms are now; those of evaluations may differ.
            species: As of :meth:`__call__`, and not to be changed afterwards.
            pairs: Likewise.
            offsets: Likewise.
            threads: How many; None: as many as are worth their while.

        Raises:
            ValueError: If the arrays do not fit together.
        """
        n, listed = len(species), pairs.shape[1]
        if np.shape(positions) != (n, 3) or (offsets is not None and len(offsets) != listed):
            raise ValueError("positions, species, pairs and offsets do not fit together")
        if listed and not (pairs.min() >= 0 and pairs.max() < n):
            raise ValueError(f"the pairs are of atoms that are not there: there are {n}")
        if n and species.min() < 0:
            raise ValueError("the network does not know all of the elements")
        return self._make(positions, species, pairs, offsets, threads or self._threads(n, listed))

    @staticmethod
    def _system(
        positions: np.ndarray, species: np.ndarray, pairs: np.ndarray, offsets: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """What describes the system, and room for the results, by the names of the C structures."""
        n = len(species)
        arrays: dict[str, np.ndarray] = {
            "positions": np.array(positions, dtype=np.float64),
            "species": np.ascontiguousarray(species, dtype=np.int64),
            "list": np.ascontiguousarray(pairs, dtype=np.int64),
            "energy": np.empty(n),
            "force": np.empty((n, 3)),
            "virial": np.empty((3, 3)),
            "neighbours": np.empty(n, dtype=np.int64),
            "closest": np.empty(1),
        }
        if offsets is not None:
            arrays["offsets"] = np.ascontiguousarray(offsets, dtype=np.float64)
        return arrays

    @abstractmethod
    def _make(
        self,
        positions: np.ndarray,
        species: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None,
        threads: int,
    ) -> Prepared:
        """As :meth:`prepare`, of arrays that fit together."""

    @abstractmethod
    def _threads(self, n_atoms: int, n_pairs: int) -> int:
        """Threads that are worth their while for a system of this size."""


_forked = threading.Event()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked.set)


def threads_at_hand(wanted: int | None = None) -> int:
    """``wanted``, or as many as torch uses; one in a forked process, where OpenMP would hang."""
    return 1 if _forked.is_set() else wanted or torch.get_num_threads()
