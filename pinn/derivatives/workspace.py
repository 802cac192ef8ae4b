"""Memory that lasts from one training step to the next."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_KEPT = 4


class Workspace:
    """Memory that is used again from step to step.

    What a step saves for its backward pass is tens of megabytes; fresh from the operating system
    each time, its pages would cost as much as the arithmetic. Copies of a workspace are empty.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def lend(self, numel: int, like: Tensor) -> Lease:
        """At least that many numbers, of the dtype and on the device of ``like``."""
        fitting = [
            t
            for t in self._free
            if t.numel() >= numel and t.dtype == like.dtype and t.device == like.device
        ]
        if not fitting:
            self._free.clear()  # too small, all of them: let them go
            return Lease(self, like.new_empty(numel))
        tensor = min(fitting, key=torch.Tensor.numel)
        self._free = [t for t in self._free if t is not tensor]
        return Lease(self, tensor)

    def take_back(self, tensor: Tensor) -> None:
        """Keep it for later; of many (graphs that wait for their backward pass) only some."""
        if len(self._free) < _KEPT:
            self._free.append(tensor)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Workspace, ()


class Lease:
    """Flat memory that goes back when nothing refers to the lease any more."""

    def __init__(self, owner: Workspace, tensor: Tensor) -> None:
        self.tensor, self._owner, self._used = tensor, owner, 0

    def array(self, *shape: int) -> Tensor:
        """The next part of it."""
        numel = math.prod(shape)
        part = self.tensor[self._used : self._used + numel].view(shape)
        self._used += numel
        return part

    def rewind(self) -> None:
        """Hand out the same parts again."""
        self._used = 0

    def __del__(self) -> None:
        self._owner.take_back(self.tensor)
