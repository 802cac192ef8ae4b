"""Several processes that train as one: sums of gradients and numbers, and common decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dcase.errors import DcaseError

T = TypeVar("T")


class Processes:
    """The processes of a run; alone, every method returns what it is given.

    Args:
        fabric: A launched ``lightning_fabric.Fabric``, or None for one process.
    """

    def __init__(self, fabric: Any = None):
        self.fabric = fabric if fabric is not None and fabric.world_size > 1 else None
        self.rank: int = self.fabric.global_rank if self.fabric else 0
        self.world: int = self.fabric.world_size if self.fabric else 1

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all processes, the same everywhere."""
        if self.fabric is None:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        return self.fabric.all_reduce(tensor, reduce_op="sum").tolist()

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.fabric is None:
            return tensor
        return self.fabric.all_reduce(tensor, reduce_op="sum").to(tensor.device)

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the first process, which alone calls it.

        Raises:
            DcaseError: In every process, if ``make`` raises one.
        """
        if self.fabric is None:
            return make()
        result: Any = None
        if self.rank == 0:
            try:
                result = make()
            except DcaseError as error:  # the others wait: they must hear of it
                result = error
        result = self.fabric.broadcast(result)
        if isinstance(result, DcaseError):
            raise result
        return result

    def gather(self, value: T) -> list[T]:
        """The value of every process."""
        if self.fabric is None:
            return [value]
        return [self.fabric.broadcast(value, src=rank) for rank in range(self.world)]

    def share_weights(self, model: nn.Module) -> None:
        """Give every process the first one's weights."""
        if self.fabric is not None:
            mine = {name: value.cpu() for name, value in model.state_dict().items()}
            model.load_state_dict(self.from_first(lambda: mine))

    def sum_gradients(
        self, parameters: Sequence[Tensor], numbers: Sequence[Tensor]
    ) -> list[Tensor]:
        """Sum the gradients in place, and ``numbers`` (scalars) with them; return the sums.

        A parameter without gradient in every process stays without, so that an optimiser skips it
        as it does in one process.
        """
        if self.fabric is None:
            return list(numbers)
        device = parameters[0].device
        present = [float(p.grad is not None) for p in parameters]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # One message: in small models the latency of each costs more than its length.
        flat = torch.cat(
            [
                *(part.flatten() for part in parts),
                torch.tensor(present, device=device),
                *(number.detach().to(device).reshape(1) for number in numbers),
            ]
        )
        flat = self.fabric.all_reduce(flat, reduce_op="sum").to(device)
        *sums, presents, totals = flat.split(
            [*(p.numel() for p in parameters), len(parameters), len(numbers)]
        )
        for p, total, count in zip(parameters, sums, presents.tolist(), strict=True):
            p.grad = total.view_as(p).to(p.dtype) if count else None
        return list(totals)
