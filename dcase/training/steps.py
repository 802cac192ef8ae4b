"""What an optimiser does in one step of the trainer.

:func:`descend` is that of Adam and its like: one gradient, one step. :func:`search` is an iteration
of a quasi-Newton method, which evaluates the loss as often as its line search asks for. Both go
through :func:`evaluate`; with several processes every evaluation is a joint one, so that all see
the same numbers and decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dcase.errors import DivergedError
from dcase.training.quasi_newton import QuasiNewton

if TYPE_CHECKING:
    from dcase.training.trainer import Trainer


class Evaluation(NamedTuple):
    """Loss and terms at the present weights; their gradients are in the parameters.

    ``joint``: over all processes; ``local``: this one's share. ``limit_share``: of the time limit
    that is used; ``interrupted``: whether anyone was.
    """

    joint: list[Tensor]
    local: list[Tensor]
    limit_share: float
    interrupted: bool


class Outcome(NamedTuple):
    """Losses by name, share of the time limit used, whether anyone was interrupted."""

    losses: dict[str, float]
    limit_share: float
    interrupted: bool


def descend(trainer: Trainer, batch: Any) -> Outcome:
    """A step down the gradient; the losses are those before it.

    Raises:
        DivergedError: If loss or gradient are not finite.
    """
    settings, optimizer = trainer.settings, trainer.optimizer
    due = trainer.balance is not None and trainer.balance.due(trainer.step)
    found = evaluate(trainer, batch, due)
    losses, norm = guard(trainer, found, batch)
    progress = max(trainer.step / (settings.epochs * trainer.steps_per_epoch), found.limit_share)
    lr = trainer.schedule.lr(trainer.step, progress)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)
    if 0 < settings.clip_norm < norm:
        gradients = [p.grad for p in trainer.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, settings.clip_norm / norm)
    if settings.clip_value > 0:
        torch.nn.utils.clip_grad_value_(trainer.parameters, settings.clip_value)
    optimizer.step()
    return Outcome(losses, found.limit_share, found.interrupted)


def search(trainer: Trainer, batch: Any) -> Outcome:
    """An iteration of quasi-Newton; the losses are those after it.

    Raises:
        DivergedError: If loss or gradient are not finite where it starts.
    """
    optimizer = trainer.optimizer
    assert isinstance(optimizer, QuasiNewton)
    starts = trainer.fresh or not optimizer.kept  # then the first evaluation is where it starts
    balance = trainer.balance is not None and trainer.balance.due(trainer.step)
    seen: list[tuple[dict[str, float], Evaluation]] = []

    def closure() -> float:
        first = starts and not seen
        found = evaluate(trainer, batch, first and balance)
        if first:
            losses, _ = guard(trainer, found, batch)
        else:  # the line search steps back from what is not finite
            losses = _named(trainer, torch.stack(found.joint).tolist())
        seen.append((losses, found))
        return losses["loss"]

    optimizer.step(closure, fresh=trainer.fresh)
    losses = trainer.losses if optimizer.accepted is None else seen[optimizer.accepted][0]
    if seen:
        last = seen[-1][1]
        return Outcome(losses, last.limit_share, last.interrupted)
    _, limit_share, interrupted = agree(trainer, {})
    return Outcome(losses, limit_share, interrupted)


def evaluate(trainer: Trainer, batch: Any, balance: bool) -> Evaluation:
    """Loss and gradient on the joint batch.

    Args:
        trainer: Whose model and objective.
        batch: This process's share, or None.
        balance: Set the weights of the terms anew before.
    """
    objective, parameters = trainer.objective, trainer.parameters
    residuals = {} if batch is None else objective.residuals(trainer.model, batch)
    counts, limit_share, interrupted = agree(trainer, residuals)
    factors = None
    if trainer.balance is not None:
        if balance:
            trainer.balance.update(residuals, counts, parameters, trainer.step, trainer.processes)
        factors = trainer.balance.factors

    trainer.optimizer.zero_grad()
    values = [torch.zeros(())] * (1 + len(counts))
    if residuals:
        total, terms = objective.reduce(residuals, counts, factors)
        if total.requires_grad:
            total.backward()
        values = [total.detach(), *(value.detach() for value in terms.values())]
    joint = trainer.processes.sum_gradients(parameters, values)
    return Evaluation(joint, values, limit_share, interrupted)


def agree(trainer: Trainer, residuals: dict[str, Tensor]) -> tuple[dict[str, float], float, bool]:
    """Joint residual counts, share of the time limit used, whether anyone was interrupted."""
    names = list(trainer.objective.terms)
    counts = [float(residuals[n].numel()) if residuals else 0.0 for n in names]
    limit = trainer.settings.time_limit
    # The first process has the clock.
    share = trainer.elapsed / limit if limit and trainer.rank == 0 else 0.0
    pressed = float(trainer.interrupted)
    *counts, share, pressed = trainer.processes.sum([*counts, share, pressed])
    return dict(zip(names, counts, strict=True)), share, pressed > 0


def guard(trainer: Trainer, found: Evaluation, batch: Any) -> tuple[dict[str, float], float]:
    """Losses by name, and the gradient's norm; all of them finite.

    Raises:
        DivergedError: If one is not; in every process, with the first bad term and the samples.
    """
    gradients = [p.grad for p in trainer.parameters if p.grad is not None]
    with torch.no_grad():
        norm = found.joint[0].new_zeros(())
        if gradients:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        numbers = torch.stack([*found.joint, norm]).tolist()  # one transfer from a GPU
    if all(map(math.isfinite, numbers)):
        return _named(trainer, numbers[:-1]), numbers[-1]

    names = [*trainer.objective.terms, "gradient"]
    bad = next((n for n, v in zip(names, numbers[1:], strict=True) if not math.isfinite(v)), "")
    mine = batch.describe() if hasattr(batch, "describe") else ""
    guilty = not all(math.isfinite(float(value)) for value in found.local)
    told = trainer.processes.gather((guilty, mine))
    blamed = [text for was, text in told if text and (was or not any(g for g, _ in told))]
    where = f" ({'; '.join(blamed)})" if blamed else ""
    raise DivergedError(
        f"the {bad or 'loss'} became NaN or infinite in epoch {trainer.epoch + 1}, batch "
        f"{trainer.batch_in_epoch + 1}{where}; try a lower --lr, --clip-norm, or check these "
        "labels"
    )


def _named(trainer: Trainer, values: Sequence[float]) -> dict[str, float]:
    return dict(zip(["loss", *trainer.objective.terms], values, strict=True))
