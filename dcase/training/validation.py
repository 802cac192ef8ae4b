"""Loss and errors of a model on a set of samples."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dcase.objective import LOSSES, Objective
from dcase.training.processes import Processes


class BatchSource(Protocol):
    """Samples that can be had in any batches."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: Tensor) -> Any:
        """The samples ``indices`` as one batch; may have ``describe() -> str`` for messages."""
        ...


def evaluate(
    objective: Objective,
    model: nn.Module,
    data: BatchSource,
    batch_size: int,
    processes: Processes | None = None,
    frames: Tensor | None = None,
) -> dict[str, float]:
    """Loss, and MAE and RMSE of every term in the problem's display unit.

    Args:
        objective: Gives residuals and loss.
        model: Evaluated as it is.
        data: Samples.
        batch_size: Samples at a time (memory only; sums are in float64, so the result does not
            depend on it beyond the model's own rounding).
        processes: Share the work among these; each gets the joint result.
        frames: Indices of some of the samples; None: all.

    Returns:
        ``{"loss": ..., "<term>_mae": ..., "<term>_rmse": ...}``.
    """
    processes = processes or Processes()
    sums = {name: [0.0, 0.0, 0.0, 0.0] for name in objective.terms}  # loss, |r|, r^2, count
    chunks = (torch.arange(len(data)) if frames is None else frames).split(batch_size)
    training = model.training
    model.eval()
    try:
        for chunk in chunks[processes.rank :: processes.world]:
            residuals = objective.residuals(model, data.batch(chunk), training=False)
            for name, term in objective.terms.items():
                r = residuals[name].detach().double()
                one = torch.stack(
                    [LOSSES[term.loss](r, term.delta).sum(), r.abs().sum(), r.square().sum()]
                )
                for index, value in enumerate([*one.tolist(), r.numel()]):
                    sums[name][index] += value
    finally:
        model.train(training)
    flat = processes.sum([value for name in objective.terms for value in sums[name]])
    result = {"loss": 0.0}
    for index, (name, term) in enumerate(objective.terms.items()):
        loss, absolute, square, count = flat[4 * index : 4 * index + 4]
        count = max(count, 1.0)
        factor, _ = objective.problem.display[name]
        result["loss"] += term.weight * loss / count
        result[f"{name}_mae"] = absolute / count * factor
        result[f"{name}_rmse"] = (square / count) ** 0.5 * factor
    return result
