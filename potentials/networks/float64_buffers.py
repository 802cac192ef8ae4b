"""Constants that stay float64 whatever the network's dtype is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ExactBuffers(nn.Module):
    """A module whose own float64 buffers survive ``.to(float32)``, ``.half()`` and back unrounded.

    They still move between devices.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> ExactBuffers:
        exact = {
            n: b for n, b in self._buffers.items() if b is not None and b.dtype == torch.float64
        }
        super()._apply(fn, recurse)
        for name, value in exact.items():
            moved = self._buffers[name]
            assert moved is not None
            if moved.dtype != torch.float64:
                self._buffers[name] = value.to(moved.device)
        return self
