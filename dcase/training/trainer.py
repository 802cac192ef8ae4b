"""The one training loop: potentials, PINNs and neural DAEs all go through it.

A step: residuals -> loss -> gradient -> (sum over processes) -> guard -> clip -> optimiser -> EMA
(:mod:`dcase.training.steps`).

Several processes (``torchrun``, or Lightning Fabric's own launcher) each take a share of every
batch; the gradients are summed with the joint number of residuals as divisor, so the loss is that
of one process with the joint batch.

A resumed run goes on exactly where its state was saved: the order of the samples is a function of
seed and epoch, and all else that the future depends on is in the state
(:mod:`dcase.training.state`). Randomness within a model (dropout) would not be; use none.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcase.errors import OptionError
from dcase.files import remove_leftovers
from dcase.interrupt import interruptible
from dcase.objective import Objective
from dcase.runs import Run
from dcase.training.budget import Budget, Seconds, now, spread
from dcase.training.ema import WeightAverage
from dcase.training.logs import MetricsLog
from dcase.training.processes import Processes
from dcase.training.progress import Pace, Progress, TrainResult
from dcase.training.quasi_newton import QuasiNewton
from dcase.training.settings import TrainSettings
from dcase.training.state import (
    Parts,
    TrainState,
    buffers,
    load_state,
    origin,
    restore,
    save_state,
)
from dcase.training.steps import Stepper
from dcase.training.validation import BatchSource, evaluate

__all__ = ["BatchSource", "Progress", "TrainResult", "Trainer", "evaluate"]


class Trainer:
    """Fits a model to an objective. A trainer fits once; to go on, make another and resume.

    Args:
        model: Already on its device.
        objective: Terms, weights and losses.
        train_data: Training samples; may have ``set_epoch(epoch)``, for samples that are a function
            of the epoch too (augmentation, resampling). It may return False where they are those of
            the epoch before; a quasi-Newton method then saves an evaluation.
        validation_data: Validation samples, or None (then the last weights are kept).
        settings: See :class:`TrainSettings`.
        folder: Where the training state and logs go.
        identity: Plain values that must agree for a resume (dataset fingerprint, architecture...).
        fabric: A launched ``lightning_fabric.Fabric`` for several processes, or None.
        on_step: Called with a :class:`Progress` after every step.
        on_state: Called after each save of the training state (for tests and displays).
        tensorboard: Also write TensorBoard events (needs the extra).
        clock: As :func:`dcase.training.budget.now`.
        prepared: Seconds that were spent on this training already, within its limits.
        evaluations: How often the validation samples are evaluated in the end, within the limits:
            once by the trainer, and by the caller.
        after: Samples that the caller evaluates then, beside these.

    Attributes:
        claimed: The run that ``folder`` was claimed for, or None; training stops where the folder
            goes away.
        before_save: Called before each save of the training state: for what must have reached the
            disk when a resume goes on from there.

    Raises:
        OptionError: If there are no samples, a setting needs validation samples and there are none,
            or the optimizer cannot take this model.
        MissingExtraError: If TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        train_data: BatchSource,
        validation_data: BatchSource | None,
        settings: TrainSettings,
        folder: Path,
        *,
        identity: dict[str, Any] | None = None,
        fabric: Any = None,
        on_step: Callable[[Progress], None] | None = None,
        on_state: Callable[[], None] | None = None,
        tensorboard: bool = False,
        clock: Callable[[], Seconds] = now,
        prepared: Seconds | None = None,
        evaluations: int = 1,
        after: int = 0,
    ):
        if len(train_data) == 0:
            raise OptionError("there are no samples to train on")
        if validation_data is not None and len(validation_data) == 0:
            validation_data = None
        if validation_data is None and (settings.schedule == "plateau" or settings.early_stopping):
            what = "early_stopping" if settings.early_stopping else "the plateau schedule"
            raise OptionError(f"{what} needs validation samples, and there are none")
        self.model, self.objective, self.settings = model, objective, settings
        self.train_data, self.validation_data = train_data, validation_data
        self.folder = Path(folder)
        self.identity = dict(identity or {})
        self.processes = Processes(fabric)
        self.rank, self.world = self.processes.rank, self.processes.world
        self.on_step, self.on_state = on_step, on_state
        self.claimed: Run | None = None
        self.before_save: Callable[[], None] | None = None

        self.processes.share_weights(model)
        self.batch_size = min(settings.batch_size or len(train_data), len(train_data))
        self.steps_per_epoch = -(-len(train_data) // self.batch_size)
        self.budget = Budget(
            settings, self.processes, clock=clock, prepared=prepared,
            frames=0 if validation_data is None else len(validation_data),
            evaluations=evaluations, after=after,
        )  # fmt: skip
        steps = (self.steps_per_epoch, self.processes, lambda: self.interrupted)
        self.stepper = Stepper(model, objective, settings, *steps, lambda: self.budget.share)
        self.parameters, self.balance = self.stepper.parameters, self.stepper.balance
        self.optimizer, self.schedule = self.stepper.optimizer, self.stepper.schedule
        self.ema = WeightAverage(model, settings.ema) if settings.ema > 0 else None
        self.state = TrainState()
        self.log = None
        if self.rank == 0:
            self.log = MetricsLog(self.folder, self._columns(), tensorboard=tensorboard)

        self.fresh = True  # whether the next batch is another than the last
        self._stop = threading.Event()

    def _columns(self) -> list[str]:
        terms = list(self.objective.terms)
        columns = ["epoch", "step", "elapsed_s", "lr", *(f"train_{n}" for n in ["loss", *terms])]
        if self.balance:
            columns += [f"weight_{n}" for n in terms]
        if self.validation_data is not None:
            columns += ["val_loss", *(f"val_{n}_{m}" for n in terms for m in ("mae", "rmse"))]
        return columns

    @property
    def state_file(self) -> Path:
        """The training state, for resuming."""
        return self.folder / "state.pt"

    @property
    def losses(self) -> dict[str, float]:
        """Losses of the last step by name: ``"loss"`` and the terms."""
        return self.state.losses

    @property
    def term_weights(self) -> dict[str, float]:
        """The present weight of every term: the objective's, times the factor of the balance."""
        factors = self.balance.factors if self.balance else {}
        return {n: t.weight * factors.get(n, 1.0) for n, t in self.objective.terms.items()}

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed in this process."""
        return self._stop.is_set()

    # ---------------------------------------------------------------- the loop

    def fit(self, *, resume: bool = False) -> TrainResult:
        """Train to the end, a limit, or Ctrl-C; leave the best weights in the model.

        On a resume ``epochs``, ``time_limit``, ``cpu_limit``, ``early_stopping`` and
        ``checkpoint_every`` may differ from before, which shortens or extends the run. A schedule
        that depends on progress (cosine, exponential; a warm-up of more than a tenth of the run)
        then goes on as if the new length had been the plan from the start: when a finished cosine
        run is extended, its learning rate jumps up from its end to where the longer cosine is at
        that step.

        Args:
            resume: Go on from :attr:`state_file` if it exists (a run that was never saved starts
                from the beginning). Otherwise a state there is deleted.

        Raises:
            TrainingError: If the loss or a gradient becomes NaN or infinite (the state on disk
                stays at the last good save).
            CheckpointError: If the state on disk belongs to another run.
        """
        saved = self.processes.from_first(lambda: self._prepare(resume))
        if saved is not None:
            self.state = restore(self.state_file, saved, self._parts())
        self.model.train()
        self.budget.begin(self.state)
        self._saved = time.monotonic()
        self._pace = Pace(self.state)
        try:
            with interruptible(signal.SIGINT, signal.SIGTERM) as self._stop:
                status = self._run()
                if status != "interrupted" and self.state.batch_in_epoch:  # a limit within an epoch
                    self._validate()
                    self._write_row()
                self.budget.settle()
                self._save_state()
        finally:
            if self.log:
                self.log.close()
        self._adopt_best()
        end = self.state
        best, losses = dict(end.best), dict(end.losses)
        few = end.validation_frames if end.validation_frames < self.budget.frames else 0
        said = tuple(self.budget.warnings(status, self.steps_per_epoch))
        return TrainResult(
            status, end.epoch, end.step, end.elapsed, best, losses, end.cpu, few, said
        )

    def _prepare(self, resume: bool) -> dict[str, Any] | None:
        """The state to go on from, or None after clearing the folder for a new run."""
        assert self.log is not None
        remove_leftovers(self.state_file)
        if resume and self.state_file.exists():
            saved = load_state(self.state_file, self._origin())
            self.log.cut_after(saved["epoch"])
            return saved
        # Else a kill before the first save would leave the old run's state to be resumed.
        self.state_file.unlink(missing_ok=True)
        self.log.start()
        return None

    def _run(self) -> str:
        state = self.state
        while state.epoch < self.settings.epochs:
            # Before the resume already, or by the validation of the epoch before.
            if state.step > 0 and self.budget.over():
                return "time limit"
            if self._converged():
                return "converged"
            if self._early():
                return "early stopping"
            stopped = self._run_epoch()
            if stopped and state.epoch < self.settings.epochs:
                return stopped
        return "finished"

    def _run_epoch(self) -> str | None:
        set_epoch = getattr(self.train_data, "set_epoch", None)
        changed = set_epoch is not None and set_epoch(self.state.epoch) is not False
        self.fresh = changed or self.steps_per_epoch > 1
        order = self._order(self.state.epoch)
        for number, chunk in enumerate(order.split(self.batch_size)):
            if number < self.state.batch_in_epoch:  # done before the resume
                continue
            stop = self._step(chunk)
            self.state.batch_in_epoch = number + 1
            if self.state.batch_in_epoch == self.steps_per_epoch:
                self._end_epoch(stop)
            if stop:
                return stop
            if time.monotonic() - self._saved > self.settings.checkpoint_every:
                self._save_state()
        return None

    def _end_epoch(self, stop: str | None) -> None:
        state = self.state
        state.epoch += 1
        state.batch_in_epoch = 0
        self.budget.tick()
        # Not at an interruption: the run goes on as if there had been none.
        last = state.epoch == self.settings.epochs or stop in ("time limit", "converged")
        due = state.epoch % self.settings.validate_every == 0
        if last or (due and self.budget.room_for_validation()):
            self._validate()
        self._write_row()
        state.sums = {}

    def _write_row(self) -> None:
        """Log the epoch that ends here, or the part of it that a limit left."""
        if self.log is None:
            return
        state = self.state
        batches = state.batch_in_epoch or self.steps_per_epoch
        row = {f"train_{name}": value / batches for name, value in state.sums.items()}
        if state.validated_step == state.step:
            row |= state.last_validation
        row |= {"step": state.step, "elapsed_s": state.elapsed}
        if self.balance:
            row |= {f"weight_{name}": weight for name, weight in self.term_weights.items()}
        self.log.write(
            {"epoch": self._epochs_done(), "lr": self.optimizer.param_groups[0]["lr"], **row}
        )

    def _epochs_done(self) -> float:
        """Whole epochs as an int, for the log."""
        if not self.state.batch_in_epoch:
            return self.state.epoch
        return self.state.epoch + self.state.batch_in_epoch / self.steps_per_epoch

    def _order(self, epoch: int) -> Tensor:
        """The order of the samples: a function of seed and epoch, which needs no saved state."""
        if self.settings.quasi_newton and self.steps_per_epoch == 1:
            return torch.arange(len(self.train_data))  # always the same sum, to the last bit
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.train_data), generator=generator)

    def _step(self, indices: Tensor) -> str | None:
        """One optimiser step; returns why to stop, if so."""
        self.budget.tick()
        mine = indices[self.rank :: self.world]
        # A process may be left without samples in the last batch.
        batch = self.train_data.batch(mine) if len(mine) else None
        state = self.state
        done = self.stepper.advance(batch, state, fresh=self.fresh)
        state.losses = done.losses
        if self.ema:
            self.ema.update()
        state.step += 1
        for name, value in state.losses.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        if self.claimed:
            self.claimed.check()
        self.budget.stepped()
        if not self.budget.measured():
            self._measure()
        over = self.budget.over()
        if self.on_step:
            lr = self.optimizer.param_groups[0]["lr"]
            told = (lr, self.budget.forecast(self.steps_per_epoch))
            self.on_step(self._pace.progress(state, self.settings, self.steps_per_epoch, *told))
        if done.interrupted:
            return "interrupted"
        if over:
            return "time limit"
        return "converged" if self._converged() else None

    def _converged(self) -> bool:
        """Whether the loss is small enough, or quasi-Newton at its end on samples that stay."""
        if self.state.losses and self.state.losses["loss"] < self.settings.target_loss:
            return True
        fixed = self.steps_per_epoch == 1 and not hasattr(self.train_data, "set_epoch")
        return fixed and isinstance(self.optimizer, QuasiNewton) and self.optimizer.stalled

    # ------------------------------------------------------------- validation

    def _validate(self) -> None:
        """Validate the weights that would be kept (once a step), and keep them if they are best."""
        state = self.state
        if state.validated_step == state.step:
            return
        state.validated_step = state.step
        state.last_validation = {}
        if self.validation_data is None:
            state.best = {"epoch": float(self._epochs_done())}
            return
        with self.ema.applied() if self.ema else nullcontext():
            metrics = self._evaluated(self.budget.validated())
            state.last_validation = {f"val_{k}": v for k, v in metrics.items()}
            self.schedule.validated(metrics["loss"])
            # A loss of NaN is never the best.
            if metrics["loss"] < state.best.get("val_loss", math.inf):
                state.best = {"epoch": float(self._epochs_done()), **state.last_validation}
                state.best_weights = [p.detach().clone() for p in self.model.parameters()]
                state.best_buffers = [b.detach().clone() for b in buffers(self.model)]
                state.validations_since_best = 0
            else:
                state.validations_since_best += 1

    def _evaluated(self, count: int) -> dict[str, float]:
        """Errors on so many validation samples, evenly spread."""
        assert self.validation_data is not None
        began, some = self.budget.clock(), spread(len(self.validation_data), count)
        size = max(-(-self.batch_size // self.world), 32)
        found = evaluate(
            self.objective, self.model, self.validation_data, size, self.processes, some
        )
        self.budget.evaluated(count, began)
        return found

    def _measure(self) -> None:
        """Find out what a validation takes, before there is one."""
        few = min(self.batch_size, self.budget.frames)
        self._evaluated(few)
        # The first one takes longer, which matters where it is short.
        slow = self.budget.state.costs["frame"][0] * few > 0.5
        if not self.processes.from_first(lambda: slow):
            self._evaluated(few)
        self.budget.decide_validation()

    def _early(self) -> bool:
        patience = self.settings.early_stopping
        return bool(patience) and self.state.validations_since_best >= patience

    @torch.no_grad()
    def _adopt_best(self) -> None:
        weights = self.state.best_weights
        if weights is None and self.ema:
            weights = self.ema.average
        if weights is not None:
            for p, w in zip(self.model.parameters(), weights, strict=True):
                p.copy_(w)
        if self.state.best_buffers is not None:
            for b, w in zip(buffers(self.model), self.state.best_buffers, strict=True):
                b.copy_(w)

    # ------------------------------------------------------------------- the state

    def _origin(self) -> dict[str, Any]:
        return origin(self.identity, self.settings, self.objective)

    def _parts(self) -> Parts:
        steps = self.stepper
        return Parts(self.model, steps.optimizer, steps.schedule, self.ema, self.balance)

    def _save_state(self) -> None:
        self.budget.tick()
        if self.claimed:
            self.claimed.check(now=True)
        if self.rank == 0:
            if self.before_save:
                self.before_save()
            save_state(self.state_file, self._origin(), self._parts(), self.state)
        self._saved = time.monotonic()
        if self.on_state:
            self.on_state()
