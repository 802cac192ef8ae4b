"""The one training loop: potentials, PINNs and neural DAEs all go through it.

A step: residuals -> loss -> gradient -> (sum over processes) -> guard -> clip -> optimiser -> EMA.

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

from dcase.errors import DivergedError, OptionError
from dcase.files import remove_leftovers
from dcase.interrupt import interruptible
from dcase.objective import Objective
from dcase.training import state
from dcase.training.ema import WeightAverage
from dcase.training.logs import MetricsLog
from dcase.training.processes import Processes
from dcase.training.progress import Progress, TrainResult
from dcase.training.schedule import Schedule
from dcase.training.settings import TrainSettings
from dcase.training.validation import BatchSource, evaluate

__all__ = ["BatchSource", "Progress", "TrainResult", "Trainer", "evaluate"]


class Trainer:
    """Fits a model to an objective. A trainer fits once; to go on, make another and resume.

    Args:
        model: Already on its device.
        objective: Terms, weights and losses.
        train_data: Training samples; may have ``set_epoch(epoch)``, for samples that are a function
            of the epoch too (augmentation).
        validation_data: Validation samples, or None (then the last weights are kept).
        settings: See :class:`TrainSettings`.
        folder: Where the training state and logs go.
        identity: Plain values that must agree for a resume (dataset fingerprint, architecture...).
        fabric: A launched ``lightning_fabric.Fabric`` for several processes, or None.
        on_step: Called with a :class:`Progress` after every step.
        on_state: Called after each save of the training state (for tests and displays).
        tensorboard: Also write TensorBoard events (needs the extra).

    Raises:
        OptionError: If there are no samples, or a setting needs validation samples and there are
            none.
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

        self.processes.share_weights(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(settings, self.parameters)
        self.schedule = Schedule(settings)
        self.ema = WeightAverage(model, settings.ema) if settings.ema > 0 else None
        self.log = None
        if self.rank == 0:
            self.log = MetricsLog(self.folder, self._columns(), tensorboard=tensorboard)

        self.batch_size = min(settings.batch_size or len(train_data), len(train_data))
        self.steps_per_epoch = -(-len(train_data) // self.batch_size)
        self.epoch = 0  # epochs completed
        self.batch_in_epoch = 0  # batches done of the current epoch
        self.step = 0
        self.elapsed = 0.0
        self.sums: dict[str, float] = {}  # of the losses of the current epoch's batches
        self.best: dict[str, float] = {}
        self.best_weights: list[Tensor] | None = None
        self.best_buffers: list[Tensor] | None = None
        self.validations_since_best = 0
        self.last_validation: dict[str, float] = {}
        self.validated_step = -1
        self._stop = threading.Event()

    def _columns(self) -> list[str]:
        terms = list(self.objective.terms)
        columns = ["epoch", "step", "elapsed_s", "lr", *(f"train_{n}" for n in ["loss", *terms])]
        if self.validation_data is not None:
            columns += ["val_loss", *(f"val_{n}_{m}" for n in terms for m in ("mae", "rmse"))]
        return columns

    @property
    def state_file(self) -> Path:
        """The training state, for resuming."""
        return self.folder / "state.pt"

    # ---------------------------------------------------------------- the loop

    def fit(self, *, resume: bool = False) -> TrainResult:
        """Train to the end, a limit, or Ctrl-C; leave the best weights in the model.

        On a resume ``epochs``, ``time_limit``, ``early_stopping`` and ``checkpoint_every`` may
        differ from before, which shortens or extends the run. A schedule that depends on progress
        (cosine, exponential) then goes on as if the new length had been the plan from the start:
        when a finished cosine run is extended, its learning rate jumps up from its end to where the
        longer cosine is at that step.

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
            state.restore(self, saved)
        self.model.train()
        self._started = time.monotonic() - self.elapsed
        self._saved = time.monotonic()
        self._rate = (time.monotonic(), self.step)
        try:
            with interruptible(signal.SIGINT, signal.SIGTERM) as self._stop:
                status = self._run()
                self._clock()
                if status != "interrupted" and self.batch_in_epoch:  # a limit within an epoch
                    self._validate()
                    self._write_row()
                self._save_state()
        finally:
            if self.log:
                self.log.close()
        self._adopt_best()
        return TrainResult(status, self.epoch, self.step, self.elapsed, dict(self.best))

    def _prepare(self, resume: bool) -> dict[str, Any] | None:
        """The state to go on from, or None after clearing the folder for a new run."""
        assert self.log is not None
        remove_leftovers(self.state_file)
        if resume and self.state_file.exists():
            saved = state.load_state(self)
            self.log.cut_after(saved["epoch"])
            return saved
        # Else a kill before the first save would leave the old run's state to be resumed.
        self.state_file.unlink(missing_ok=True)
        self.log.start()
        return None

    def _run(self) -> str:
        limit = self.settings.time_limit
        used_up = limit is not None and self.step > 0 and self.elapsed >= limit  # before the resume
        while self.epoch < self.settings.epochs:
            if used_up:
                return "time limit"
            if self._early():
                return "early stopping"
            stopped = self._run_epoch()
            if stopped and self.epoch < self.settings.epochs:
                return stopped
        return "finished"

    def _run_epoch(self) -> str | None:
        set_epoch = getattr(self.train_data, "set_epoch", None)
        if set_epoch is not None:  # samples that change from epoch to epoch
            set_epoch(self.epoch)
        order = self._order(self.epoch)
        for number, chunk in enumerate(order.split(self.batch_size)):
            if number < self.batch_in_epoch:  # done before the resume
                continue
            stop = self._step(chunk)
            self.batch_in_epoch = number + 1
            if self.batch_in_epoch == self.steps_per_epoch:
                self._end_epoch()
            if stop:
                return stop
            if time.monotonic() - self._saved > self.settings.checkpoint_every:
                self._save_state()
        return None

    def _end_epoch(self) -> None:
        self.epoch += 1
        self.batch_in_epoch = 0
        self._clock()
        last = self.epoch == self.settings.epochs
        if self.epoch % self.settings.validate_every == 0 or last:
            self._validate()
        self._write_row()
        self.sums = {}

    def _write_row(self) -> None:
        """Log the epoch that ends here, or the part of it that a limit left."""
        if self.log is None:
            return
        batches = self.batch_in_epoch or self.steps_per_epoch
        row = {f"train_{name}": value / batches for name, value in self.sums.items()}
        if self.validated_step == self.step:
            row |= self.last_validation
        row |= {"step": self.step, "elapsed_s": self.elapsed}
        self.log.write(
            {"epoch": self._epochs_done(), "lr": self.optimizer.param_groups[0]["lr"], **row}
        )

    def _epochs_done(self) -> float:
        """Whole epochs as an int, for the log."""
        if not self.batch_in_epoch:
            return self.epoch
        return self.epoch + self.batch_in_epoch / self.steps_per_epoch

    def _order(self, epoch: int) -> Tensor:
        """The order of the samples: a function of seed and epoch, which needs no saved state."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.train_data), generator=generator)

    def _step(self, indices: Tensor) -> str | None:
        """One optimiser step; returns why to stop, if so."""
        self._clock()
        mine = indices[self.rank :: self.world]
        residuals: dict[str, Tensor] = {}
        batch = None
        if len(mine):  # a process may be left without samples in the last batch
            batch = self.train_data.batch(mine)
            residuals = self.objective.residuals(self.model, batch)
        counts, limit_share, interrupted = self._agree(residuals)

        self.optimizer.zero_grad()
        values = [torch.zeros(())] * (1 + len(counts))
        if residuals:
            total, terms = self.objective.reduce(residuals, counts)
            if total.requires_grad:
                total.backward()
            values = [total.detach(), *(value.detach() for value in terms.values())]
        joint = self.processes.sum_gradients(self.parameters, values)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        report, norm = self._guard(joint, gradients, values, batch)

        progress = max(self.step / (self.settings.epochs * self.steps_per_epoch), limit_share)
        lr = self.schedule.lr(self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if 0 < self.settings.clip_norm < norm:
            torch._foreach_mul_(gradients, self.settings.clip_norm / norm)
        self.optimizer.step()
        if self.ema:
            self.ema.update()
        self.step += 1
        for name, value in report.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.on_step:
            self.on_step(self._progress(lr, report["loss"]))
        if interrupted:
            return "interrupted"
        return "time limit" if limit_share >= 1.0 else None

    def _agree(self, residuals: dict[str, Tensor]) -> tuple[dict[str, float], float, bool]:
        """Joint residual counts, share of the time limit used, whether anyone was interrupted."""
        names = list(self.objective.terms)
        counts = [float(residuals[n].numel()) if residuals else 0.0 for n in names]
        limit = self.settings.time_limit
        # The first process has the clock.
        share = self.elapsed / limit if limit and self.rank == 0 else 0.0
        *counts, share, pressed = self.processes.sum([*counts, share, float(self._stop.is_set())])
        return dict(zip(names, counts, strict=True)), share, pressed > 0

    def _guard(
        self, joint: list[Tensor], gradients: list[Tensor], local: list[Tensor], batch: Any
    ) -> tuple[dict[str, float], float]:
        """Losses by name, and the gradient's norm; all of them finite.

        Raises:
            DivergedError: If one is not; in every process.
        """
        with torch.no_grad():
            norm = joint[0].new_zeros(())
            if gradients:
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            numbers = torch.stack([*joint, norm]).tolist()  # one transfer from a GPU
        if all(map(math.isfinite, numbers)):
            return dict(zip(["loss", *self.objective.terms], numbers, strict=False)), numbers[-1]

        names = [*self.objective.terms, "gradient"]
        bad = next((n for n, v in zip(names, numbers[1:], strict=True) if not math.isfinite(v)), "")
        mine = batch.describe() if hasattr(batch, "describe") else ""
        guilty = not all(math.isfinite(float(value)) for value in local)
        found = self.processes.gather((guilty, mine))
        blamed = [text for was, text in found if text and (was or not any(g for g, _ in found))]
        where = f" ({'; '.join(blamed)})" if blamed else ""
        raise DivergedError(
            f"the {bad or 'loss'} became NaN or infinite in epoch {self.epoch + 1}, batch "
            f"{self.batch_in_epoch + 1}{where}; try a lower --lr, --clip-norm, or check these "
            "labels"
        )

    # ------------------------------------------------------------- validation

    def _validate(self) -> None:
        """Validate the weights that would be kept (once a step), and keep them if they are best."""
        if self.validated_step == self.step:
            return
        self.validated_step = self.step
        self.last_validation = {}
        if self.validation_data is None:
            self.best = {"epoch": float(self._epochs_done())}
            return
        with self.ema.applied() if self.ema else nullcontext():
            metrics = evaluate(
                self.objective,
                self.model,
                self.validation_data,
                max(-(-self.batch_size // self.world), 32),
                self.processes,
            )
            self.last_validation = {f"val_{k}": v for k, v in metrics.items()}
            self.schedule.validated(metrics["loss"])
            # A loss of NaN is never the best.
            if metrics["loss"] < self.best.get("val_loss", math.inf):
                self.best = {"epoch": float(self._epochs_done()), **self.last_validation}
                self.best_weights = [p.detach().clone() for p in self.model.parameters()]
                self.best_buffers = [b.detach().clone() for b in state.buffers(self.model)]
                self.validations_since_best = 0
            else:
                self.validations_since_best += 1

    def _early(self) -> bool:
        patience = self.settings.early_stopping
        return bool(patience) and self.validations_since_best >= patience

    @torch.no_grad()
    def _adopt_best(self) -> None:
        weights = self.best_weights
        if weights is None and self.ema:
            weights = self.ema.average
        if weights is not None:
            for p, w in zip(self.model.parameters(), weights, strict=True):
                p.copy_(w)
        if self.best_buffers is not None:
            for b, w in zip(state.buffers(self.model), self.best_buffers, strict=True):
                b.copy_(w)

    # ------------------------------------------------------------ clock and state

    def _clock(self) -> None:
        self.elapsed = time.monotonic() - self._started

    def _progress(self, lr: float, loss: float) -> Progress:
        now = time.monotonic()
        since, at = self._rate
        rate = (self.step - at) / max(now - since, 1e-9)
        steps = self.settings.epochs * self.steps_per_epoch
        remaining = (steps - self.step) / max(rate, 1e-9)
        if self.settings.time_limit:
            remaining = min(remaining, max(self.settings.time_limit - self.elapsed, 0.0))
        return Progress(
            epoch=self.epoch + 1,
            epochs=self.settings.epochs,
            step=self.step,
            steps=steps,
            elapsed=self.elapsed,
            steps_per_second=rate,
            remaining=remaining,
            lr=lr,
            loss=loss,
            validation=self.last_validation,
        )

    def _save_state(self) -> None:
        self._clock()
        if self.rank == 0:
            state.save_state(self)
        self._saved = time.monotonic()
        if self.on_state:
            self.on_state()


def _optimizer(settings: TrainSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    # On small models Adam takes a good part of a step; fused it takes a third of "foreach".
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return kind(
        parameters,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        amsgrad=settings.amsgrad,
        fused=True if fused else None,
        foreach=None if fused else True,
    )
