"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of a model's parameters, ``a <- d a + (1 - d) p``.

    Early on the decay is ``(1 + n) / (10 + n)`` where that is smaller, so that the average does not
    remember the random start (the usual warm-up of TensorFlow's ExponentialMovingAverage).

    Args:
        model: Whose parameters to average.
        decay: In [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.parameters: list[Tensor] = list(model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the current parameters in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self.parameters, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for p, a in zip(self.parameters, self.average, strict=True):
            p_old = p.detach().clone()
            p.copy_(a)
            a.copy_(p_old)

    def state(self) -> dict[str, object]:
        """For a training state."""
        return {"updates": self.updates, "average": [a.cpu().clone() for a in self.average]}

    def load_state(self, state: dict) -> None:
        """Inverse of :meth:`state`."""
        self.updates = int(state["updates"])
        for a, value in zip(self.average, state["average"], strict=True):
            assert isinstance(value, Tensor)
            a.copy_(value)
