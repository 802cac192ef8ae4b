"""What an optimiser does in one step of the trainer.

:meth:`Stepper.descend` is that of Adam and its like: one gradient, one step. :meth:`Stepper.search`
is an iteration of a quasi-Newton method, which evaluates the loss as often as its line search asks
for. Both go
through one evaluation; with several processes every evaluation is a joint one, so that all see the
same numbers and decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcase.errors import DivergedError
from dcase.objective import Objective
from dcase.training.balance import Balance
from dcase.training.optimizers import make_optimizer
from dcase.training.processes import Processes
from dcase.training.quasi_newton import QuasiNewton
from dcase.training.schedule import Schedule
from dcase.training.settings import TrainSettings
from dcase.training.state import TrainState


class LossAndGradient(NamedTuple):
    """Loss and terms at the present weights; their gradients are in the parameters.

    ``joint``: over all processes; ``local``: this one's share. ``interrupted``: whether anyone was.
    """

    joint: list[Tensor]
    local: list[Tensor]
    interrupted: bool


class StepOutcome(NamedTuple):
    """Losses by name, whether anyone was interrupted."""

    losses: dict[str, float]
    interrupted: bool


class Stepper:
    """Takes the steps of one run.

    Args:
        model: Already on its device.
        objective: Terms, weights and losses.
        settings: Name the optimiser, the schedule and the rest.
        steps_per_epoch: Of the run.
        processes: Those that train together.
        interrupted: Whether Ctrl-C was pressed in this process.
        limit_share: Share of the run that is done by its limits of time.

    Attributes:
        parameters: Of the model, those that are trained.
        optimizer: Of these.
        schedule: Of its learning rate.
        balance: Of the terms' weights, or None.

    Raises:
        OptionError: If the optimizer cannot take this model.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: TrainSettings,
        steps_per_epoch: int,
        processes: Processes,
        interrupted: Callable[[], bool],
        limit_share: Callable[[], float],
    ):
        self.model, self.objective, self.settings = model, objective, settings
        self.steps_per_epoch, self.processes = steps_per_epoch, processes
        self._interrupted, self._limit_share = interrupted, limit_share
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(settings, self.parameters)
        self.schedule = Schedule(settings)
        self.balance = Balance(settings, objective) if settings.balance != "none" else None

    def advance(self, batch: Any, state: TrainState, *, fresh: bool) -> StepOutcome:
        """One step.

        Args:
            batch: This process's share, or None.
            state: Where the run stands; not changed.
            fresh: Whether the batch is another than the last.

        Raises:
            DivergedError: If loss or gradient are not finite.
        """
        if isinstance(self.optimizer, QuasiNewton):
            return self.search(self.optimizer, batch, state, fresh)
        return self.descend(batch, state)

    def descend(self, batch: Any, state: TrainState) -> StepOutcome:
        """A step down the gradient; the losses are those before it.

        Raises:
            DivergedError: If loss or gradient are not finite.
        """
        settings = self.settings
        due = self.balance is not None and self.balance.due(state.step)
        found = self._evaluate(batch, state, due)
        losses, norm = self._guard(found, batch, state)
        progress = max(state.step / (settings.epochs * self.steps_per_epoch), self._limit_share())
        lr = self.schedule.lr(state.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)
        if 0 < settings.clip_norm < norm:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            torch._foreach_mul_(gradients, settings.clip_norm / norm)
        if settings.clip_value > 0:
            torch.nn.utils.clip_grad_value_(self.parameters, settings.clip_value)
        self.optimizer.step()
        return StepOutcome(losses, found.interrupted)

    def search(
        self, optimizer: QuasiNewton, batch: Any, state: TrainState, fresh: bool
    ) -> StepOutcome:
        """An iteration of quasi-Newton; the losses are those after it.

        Raises:
            DivergedError: If loss or gradient are not finite where it starts.
        """
        starts = fresh or not optimizer.kept  # then the first evaluation is where it starts
        balance = self.balance is not None and self.balance.due(state.step)
        seen: list[tuple[dict[str, float], LossAndGradient]] = []

        def closure() -> float:
            first = starts and not seen
            found = self._evaluate(batch, state, first and balance)
            if first:
                losses, _ = self._guard(found, batch, state)
            else:  # the line search steps back from what is not finite
                losses = self._named(torch.stack(found.joint).tolist())
            seen.append((losses, found))
            return losses["loss"]

        optimizer.step(closure, fresh=fresh)
        losses = state.losses if optimizer.accepted is None else seen[optimizer.accepted][0]
        if seen:
            return StepOutcome(losses, seen[-1][1].interrupted)
        _, interrupted = self._agree({})
        return StepOutcome(losses, interrupted)

    def _evaluate(self, batch: Any, state: TrainState, balance: bool) -> LossAndGradient:
        """Loss and gradient on the joint batch.

        Args:
            batch: This process's share, or None.
            state: Where the run stands.
            balance: Set the weights of the terms anew before.
        """
        objective, parameters = self.objective, self.parameters
        residuals = {} if batch is None else objective.residuals(self.model, batch)
        counts, interrupted = self._agree(residuals)
        factors = None
        if self.balance is not None:
            if balance:
                self.balance.update(residuals, counts, parameters, state.step, self.processes)
            factors = self.balance.factors

        self.optimizer.zero_grad()
        values = [torch.zeros(())] * (1 + len(counts))
        if residuals:
            total, terms = objective.reduce(residuals, counts, factors)
            if total.requires_grad:
                total.backward()
            values = [total.detach(), *(value.detach() for value in terms.values())]
        joint = self.processes.sum_gradients(parameters, values)
        return LossAndGradient(joint, values, interrupted)

    def _agree(self, residuals: dict[str, Tensor]) -> tuple[dict[str, float], bool]:
        """Joint residual counts, whether anyone was interrupted."""
        names = list(self.objective.terms)
        counts = [float(residuals[n].numel()) if residuals else 0.0 for n in names]
        *counts, pressed = self.processes.sum([*counts, float(self._interrupted())])
        return dict(zip(names, counts, strict=True)), pressed > 0

    def _guard(
        self, found: LossAndGradient, batch: Any, state: TrainState
    ) -> tuple[dict[str, float], float]:
        """Losses by name, and the gradient's norm; all of them finite.

        Raises:
            DivergedError: If one is not; in every process, with the first bad term and the samples.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        with torch.no_grad():
            norm = found.joint[0].new_zeros(())
            if gradients:
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            numbers = torch.stack([*found.joint, norm]).tolist()  # one transfer from a GPU
        if all(map(math.isfinite, numbers)):
            return self._named(numbers[:-1]), numbers[-1]

        names = [*self.objective.terms, "gradient"]
        bad = next((n for n, v in zip(names, numbers[1:], strict=True) if not math.isfinite(v)), "")
        mine = batch.describe() if hasattr(batch, "describe") else ""
        guilty = not all(math.isfinite(float(value)) for value in found.local)
        told = self.processes.gather((guilty, mine))
        blamed = [text for was, text in told if text and (was or not any(g for g, _ in told))]
        where = f" ({'; '.join(blamed)})" if blamed else ""
        raise DivergedError(
            f"the {bad or 'loss'} became NaN or infinite in epoch {state.epoch + 1}, batch "
            f"{state.batch_in_epoch + 1}{where}; try a lower --lr, --clip-norm, or check these "
            "labels"
        )

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        return dict(zip(["loss", *self.objective.terms], values, strict=True))
