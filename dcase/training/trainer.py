"""The one training loop: potentials, PINNs and neural DAEs all go through it.

Several processes (``torchrun``, or Lightning Fabric's own launcher) each take a share of every batch;
the gradients are summed with the joint number of residuals as divisor, so the loss is that of one
process with the joint batch.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dcase import checkpoint
from dcase.errors import CheckpointError, OptionError, TrainingError
from dcase.objective import Objective
from dcase.training.ema import WeightAverage
from dcase.training.logs import MetricsLog
from dcase.training.schedule import Schedule
from dcase.training.settings import TrainSettings

STATE_VERSION = 1


class BatchSource(Protocol):
    """Samples that can be had in any batches."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: Tensor) -> Any:
        """The samples ``indices`` as one batch; may have ``describe() -> str`` for messages."""
        ...


@dataclass
class Progress:
    """What a progress display needs; passed after every step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    elapsed: float
    steps_per_second: float
    remaining: float
    lr: float
    loss: float
    validation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        status: ``"finished"``, ``"time limit"``, ``"early stopping"`` or ``"interrupted"``.
        epochs: Epochs completed.
        steps: Optimiser steps done.
        elapsed: Seconds spent training, over all sittings.
        best: Validation metrics of the weights that the model now has, and their epoch.
    """

    status: str
    epochs: int
    steps: int
    elapsed: float
    best: dict[str, float]


class Trainer:
    """Fits a model to an objective.

    Args:
        model: Already on its device.
        objective: Terms, weights and losses.
        train_data: Training samples.
        validation_data: Validation samples, or None (then the last weights are kept).
        settings: See :class:`TrainSettings`.
        folder: Where the training state and logs go.
        identity: Plain values that must agree for a resume (dataset fingerprint, architecture...).
        fabric: A launched ``lightning_fabric.Fabric`` for several processes, or None.
        on_step: Called with a :class:`Progress` after every step.
        on_state: Called after each save of the training state (for tests and displays).
        tensorboard: Also write TensorBoard events (needs the extra).
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
        self.model, self.objective, self.settings = model, objective, settings
        self.train_data, self.validation_data = train_data, validation_data
        self.folder = Path(folder)
        self.identity = dict(identity or {})
        self.fabric = fabric if fabric is not None and fabric.world_size > 1 else None
        self.rank = self.fabric.global_rank if self.fabric else 0
        self.world = self.fabric.world_size if self.fabric else 1
        self.on_step, self.on_state = on_step, on_state

        self.parameters = [p for p in model.parameters() if p.requires_grad]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
        self.optimizer = kind(
            self.parameters, lr=settings.lr, weight_decay=settings.weight_decay,
            betas=(settings.beta1, settings.beta2), eps=settings.eps, amsgrad=settings.amsgrad,
            foreach=True,
        )
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
        self.best: dict[str, float] = {}
        self.best_weights: list[Tensor] | None = None
        self.validations_since_best = 0
        self.last_validation: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._interrupted = threading.Event()

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
        """Train to the end of the settings, a limit, or Ctrl-C; leave the best weights in the model.

        Args:
            resume: Go on from :attr:`state_file` if it exists (a run that was never saved starts
                from the beginning).

        Raises:
            TrainingError: If the loss or a gradient becomes NaN or infinite (the state on disk
                stays at the last good save).
            CheckpointError: If the state on disk belongs to another run.
        """
        if resume and self.state_file.exists():
            self._load_state()
        elif self.log:
            self.log.start()
        status = "finished"
        self.model.train()
        self._started = time.monotonic() - self.elapsed
        self._saved = time.monotonic()
        self._rate = (time.monotonic(), self.step)
        with self._interruptible():
            while self.epoch < self.settings.epochs:
                stopped = self._run_epoch()
                if stopped:
                    status = stopped
                    break
                if self._early():
                    status = "early stopping"
                    break
        self._clock()
        if status != "interrupted" and self.batch_in_epoch:  # a time limit within an epoch
            self._validate()
        self._save_state()
        self._adopt_best()
        return TrainResult(status, self.epoch, self.step, self.elapsed, dict(self.best))

    def _run_epoch(self) -> str | None:
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
        if self.log:
            means = {f"train_{k}": v / self.steps_per_epoch for k, v in self._sums.items()}
            self.log.write(
                {"epoch": self.epoch, "step": self.step, "elapsed_s": self.elapsed,
                 "lr": self.optimizer.param_groups[0]["lr"], **means, **self.last_validation}
            )
        self._sums = {}

    def _order(self, epoch: int) -> Tensor:
        """The order of the samples: a function of seed and epoch, so that a resume needs no state."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.train_data), generator=generator)

    def _step(self, indices: Tensor) -> str | None:
        """One optimiser step; returns why to stop, if so."""
        self._clock()
        mine = indices[self.rank :: self.world]
        residuals: dict[str, Tensor] = {}
        batch = None
        if len(mine):
            batch = self.train_data.batch(mine)
            residuals = self.objective.residuals(self.model, batch)
        counts, limit_share, interrupted = self._agree(residuals)
        self.optimizer.zero_grad()
        values: dict[str, Tensor] = {}
        total = torch.zeros(())
        if residuals:
            total, values = self.objective.reduce(residuals, counts)
            total.backward()
        report = self._joint_gradient(total, values)
        self._guard(report, batch)

        progress = max(self.step / (self.settings.epochs * self.steps_per_epoch), limit_share)
        lr = self.schedule.lr(self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()
        if self.ema:
            self.ema.update()
        self.step += 1
        for name, value in report.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if self.on_step:
            self.on_step(self._progress(lr, report["loss"]))
        if interrupted:
            return "interrupted"
        return "time limit" if limit_share >= 1.0 else None

    # ------------------------------------------------- several processes as one

    def _agree(self, residuals: dict[str, Tensor]) -> tuple[dict[str, float], float, bool]:
        """Joint residual counts, share of the time limit used, and whether anyone was interrupted."""
        names = list(self.objective.terms)
        counts = [float(residuals[n].numel()) if residuals else 0.0 for n in names]
        limit = self.settings.time_limit
        share = self.elapsed / limit if limit else 0.0
        interrupted = self._interrupted.is_set()
        if self.fabric:
            summed = torch.tensor([*counts, float(interrupted)], dtype=torch.float64)
            *counts, anyone = self.fabric.all_reduce(summed, reduce_op="sum").tolist()
            share = float(self.fabric.broadcast(share))
            interrupted = anyone > 0
        return dict(zip(names, counts, strict=True)), share, interrupted

    def _joint_gradient(self, total: Tensor, values: dict[str, Tensor]) -> dict[str, float]:
        """Sum the gradients over processes in place; return the joint loss and terms."""
        names = ["loss", *self.objective.terms]
        numbers = torch.stack(
            [total.detach().double().cpu(),
             *(values[n].detach().double().cpu() if values else torch.zeros(()).double()
               for n in self.objective.terms)]
        )
        if self.fabric:
            for p in self.parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            flat = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
            flat = self.fabric.all_reduce(flat, reduce_op="sum")
            for p, g in zip(
                self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True
            ):
                p.grad = g.view_as(p).clone()
            numbers = self.fabric.all_reduce(numbers, reduce_op="sum")
        return dict(zip(names, numbers.tolist(), strict=True))

    def _guard(self, report: dict[str, float], batch: Any) -> None:
        bad = next((n for n in (*self.objective.terms, "loss")
                    if not abs(report[n]) < float("inf")), None)
        if bad is None:
            norm = nn.utils.get_total_norm(
                [p.grad for p in self.parameters if p.grad is not None]
            )
            if torch.isfinite(norm):
                return
            bad = "gradient"
        where = f" ({batch.describe()})" if hasattr(batch, "describe") else ""
        raise TrainingError(
            f"the {bad} became NaN or infinite in epoch {self.epoch + 1}, batch "
            f"{self.batch_in_epoch + 1}{where}; try a lower --lr, --clip-norm, or check these labels"
        )

    # ------------------------------------------------------------- validation

    def _validate(self) -> None:
        self.last_validation = {}
        if self.validation_data is None:
            self.best = {"epoch": float(self.epoch)}
            return
        with self.ema.applied() if self.ema else nullcontext():
            metrics = evaluate(self.objective, self.model, self.validation_data,
                               max(self.batch_size, 32))
            if self.fabric:
                metrics = self.fabric.broadcast(metrics)
            self.last_validation = {f"val_{k}": v for k, v in metrics.items()}
            self.schedule.validated(metrics["loss"])
            if not self.best or metrics["loss"] < self.best["val_loss"]:
                self.best = {"epoch": float(self.epoch), **self.last_validation}
                self.best_weights = [p.detach().clone() for p in self.model.parameters()]
                self.validations_since_best = 0
            else:
                self.validations_since_best += 1

    def _early(self) -> bool:
        patience = self.settings.early_stopping
        return bool(patience) and self.validations_since_best >= patience

    @torch.no_grad()
    def _adopt_best(self) -> None:
        weights = self.best_weights
        if weights is None:
            weights = self.ema.average if self.ema else None
        if weights is not None:
            for p, w in zip(self.model.parameters(), weights, strict=True):
                p.copy_(w)

    # ------------------------------------------------------------ stop and go on

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C (or SIGTERM) ends the run after the current step; a second one at once."""
        self._interrupted.clear()

        def stop(signum: int, frame: Any) -> None:
            if self._interrupted.is_set():
                raise KeyboardInterrupt
            self._interrupted.set()

        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    stack.callback(signal.signal, number, signal.signal(number, stop))
            yield

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
            epoch=self.epoch + 1, epochs=self.settings.epochs, step=self.step, steps=steps,
            elapsed=self.elapsed, steps_per_second=rate, remaining=remaining, lr=lr, loss=loss,
            validation=self.last_validation,
        )

    def _save_state(self) -> None:
        """Everything that the rest of the run depends on."""
        self._clock()
        if self.rank == 0:
            checkpoint.save(self.state_file, "training", STATE_VERSION, {
                "identity": self.identity,
                "settings": self.settings.to_dict(),
                "terms": {n: [t.weight, t.loss, t.delta] for n, t in self.objective.terms.items()},
                "model": {k: v.cpu() for k, v in self.model.state_dict().items()},
                "ema": self.ema.state() if self.ema else None,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state(),
                "epoch": self.epoch,
                "batch_in_epoch": self.batch_in_epoch,
                "step": self.step,
                "elapsed": self.elapsed,
                "sums": self._sums,
                "best": self.best,
                "best_weights": None if self.best_weights is None
                else [w.cpu() for w in self.best_weights],
                "validations_since_best": self.validations_since_best,
                "last_validation": self.last_validation,
            })
        self._saved = time.monotonic()
        if self.on_state:
            self.on_state()

    def _load_state(self) -> None:
        state = checkpoint.load(self.state_file, "training", STATE_VERSION)
        where = f"{self.state_file}: cannot resume"
        for key, value in self.identity.items():
            if state["identity"].get(key) != value:
                raise CheckpointError(
                    f"{where}: {key} differs ({state['identity'].get(key)!r} then, {value!r} now)"
                )
        # Limits may change between sittings; anything else would make another run of it.
        free = {"epochs", "time_limit", "checkpoint_every", "early_stopping"}
        now = self.settings.to_dict()
        for key, value in state["settings"].items():
            if key not in free and now[key] != value:
                raise CheckpointError(f"{where}: {key} was {value!r}, now {now[key]!r}")
        terms = {n: [t.weight, t.loss, t.delta] for n, t in self.objective.terms.items()}
        if state["terms"] != terms:
            raise CheckpointError(f"{where}: the loss was {state['terms']}, now {terms}")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise OptionError(f"{where}: the model is not the same") from error
        if self.ema:
            self.ema.load_state(state["ema"])
        self.schedule.load_state(state["schedule"])
        self.epoch, self.batch_in_epoch = state["epoch"], state["batch_in_epoch"]
        self.step, self.elapsed = state["step"], state["elapsed"]
        self._sums, self.best = dict(state["sums"]), dict(state["best"])
        if state["best_weights"] is not None:
            self.best_weights = [
                w.to(p.device)
                for w, p in zip(state["best_weights"], self.model.parameters(), strict=True)
            ]
        self.validations_since_best = state["validations_since_best"]
        self.last_validation = dict(state["last_validation"])
        if self.log:
            self.log.cut_after(self.epoch)


def evaluate(
    objective: Objective, model: nn.Module, data: BatchSource, batch_size: int
) -> dict[str, float]:
    """Loss, and MAE and RMSE of every term in the problem's display unit.

    Args:
        objective: Gives residuals and loss.
        model: Evaluated as it is.
        data: Samples.
        batch_size: Samples at a time (memory only; the result does not depend on it).

    Returns:
        ``{"loss": ..., "<term>_mae": ..., "<term>_rmse": ...}``.
    """
    loss: dict[str, float] = {}
    absolute: dict[str, float] = {}
    square: dict[str, float] = {}
    count: dict[str, int] = {}
    training = model.training
    model.eval()
    for chunk in torch.arange(len(data)).split(batch_size):
        residuals = objective.residuals(model, data.batch(chunk), training=False)
        residuals = {name: r.detach() for name, r in residuals.items()}
        _, values = objective.reduce(residuals)
        for name, r in residuals.items():
            n = r.numel()
            loss[name] = loss.get(name, 0.0) + float(values[name]) * n
            absolute[name] = absolute.get(name, 0.0) + float(r.double().abs().sum())
            square[name] = square.get(name, 0.0) + float(r.double().square().sum())
            count[name] = count.get(name, 0) + n
    model.train(training)
    result = {"loss": sum(t.weight * loss[n] / count[n] for n, t in objective.terms.items())}
    for name in objective.terms:
        factor, _ = objective.problem.display[name]
        result[f"{name}_mae"] = absolute[name] / count[name] * factor
        result[f"{name}_rmse"] = (square[name] / count[name]) ** 0.5 * factor
    return result
