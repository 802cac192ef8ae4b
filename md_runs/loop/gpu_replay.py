"""Functions recorded once and replayed: a CUDA graph, or the function itself for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WARM_UP = 3
"""Runs before a recording, as torch documents: libraries set themselves up in the first ones."""


class EagerRunner:
    """Calls a function as it is.

    Args:
        function: Works on fixed tensors.
        device: Where they are.
    """

    def __init__(self, function: Callable[[], None], device: torch.device | None = None):
        self._function = function

    def __call__(self) -> None:
        """Call it."""
        self._function()


class CudaGraphRunner:
    """Records a function as a CUDA graph, and replays it when called.

    Args:
        function: Works on fixed tensors of one GPU and never waits for it (:func:`needs_host`).
        device: The GPU; None: the current one.

    Raises:
        RuntimeError: If it cannot be recorded.
    """

    def __init__(self, function: Callable[[], None], device: torch.device | None = None):
        self._function = function  # the recording holds addresses: keep the tensors alive
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph, stream=stream):
                function()

    def __call__(self) -> None:
        """Replay the recording."""
        self._graph.replay()


Runner = type[EagerRunner] | type[CudaGraphRunner]


class _NeedsHost(Exception):
    """An operation that a CUDA graph cannot hold; the message is its name."""


class _Watcher(TorchDispatchMode):
    """Lets nothing pass that waits for the device, has a shape that data decide, or is copied.

    Operations on the CPU are the same ones, so that a GPU is not needed to find out.
    """

    forbidden = (
        *("_linalg_check_errors", "_local_scalar_dense", "_unique", "_unique2", "bincount"),
        *("equal", "is_nonzero", "lift_fresh", "masked_select", "nonzero"),
        *("unique_consecutive", "unique_dim"),
    )
    masks = (torch.bool, torch.uint8)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        bad = name in self.forbidden
        if name in ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"):
            bad = any(i is not None and i.dtype in self.masks for i in args[1])
        elif name == "repeat_interleave":
            bad = kwargs.get("output_size") is None
        elif name == "copy_":
            bad = args[0].device != args[1].device
        elif name == "_to_copy":
            bad = torch.device(kwargs.get("device") or args[0].device) != args[0].device
        if bad:
            raise _NeedsHost(name)
        return func(*args, **kwargs)


def needs_host(function: Callable[[], Any]) -> str:
    """The first operation of ``function`` that a CUDA graph cannot hold, or "" if there is none."""
    try:
        with _Watcher():
            function()
    except _NeedsHost as found:
        return str(found)
    return ""
