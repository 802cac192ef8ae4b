"""The training state: everything that the rest of a run depends on, as one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcase import checkpoint
from dcase.errors import CheckpointError
from dcase.objective import Objective
from dcase.training.balance import Balance
from dcase.training.ema import WeightAverage
from dcase.training.schedule import Schedule
from dcase.training.settings import LIMITS, TrainSettings

STATE_VERSION = 1


def buffers(model: nn.Module) -> list[Tensor]:
    """The buffers that belong to the weights (a BatchNorm's statistics, not look-up tables)."""
    persistent = model.state_dict().keys()
    return [value for name, value in model.named_buffers() if name in persistent]


@dataclass
class TrainState:
    """Where a run stands: what the trainer counts and keeps from step to step.

    The names are those of the file's entries.

    Attributes:
        epoch: Epochs completed.
        batch_in_epoch: Batches done of the present epoch.
        step: Optimiser steps done.
        elapsed: Seconds, over all sittings.
        cpu: CPU seconds likewise, of all threads and processes.
        costs: Wall and CPU seconds that preparations took (``"prepared"``), and that a step and the
            evaluation of a frame take (``"step"``, ``"frame"``).
        validation_frames: That a validation takes, where that was to be decided; else 0.
        sums: Of the losses of the present epoch's batches, by name.
        losses: Of the last step, by name.
        best: Validation metrics of the best weights so far, and their epoch.
        best_weights: Of the model's parameters, or None where none were validated.
        best_buffers: Likewise, of :func:`buffers`.
        validations_since_best: Validations without improvement.
        last_validation: Metrics by the names of the log's columns.
        validated_step: The step after which that was; -1: none.
    """

    epoch: int = 0
    batch_in_epoch: int = 0
    step: int = 0
    elapsed: float = 0.0
    cpu: float = 0.0
    costs: dict[str, list[float]] = field(default_factory=dict)
    validation_frames: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_weights: list[Tensor] | None = None
    best_buffers: list[Tensor] | None = None
    validations_since_best: int = 0
    last_validation: dict[str, float] = field(default_factory=dict)
    validated_step: int = -1


@dataclass(frozen=True)
class Parts:
    """What of a run has a state of its own; ``ema`` and ``balance`` are None where not in use."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: WeightAverage | None
    balance: Balance | None


def origin(
    identity: dict[str, Any], settings: TrainSettings, objective: Objective
) -> dict[str, Any]:
    """What must agree between the sittings of a run, as plain values."""
    terms = {name: [t.weight, t.loss, t.delta] for name, t in objective.terms.items()}
    return {"identity": identity, "settings": settings.to_dict(), "terms": terms}


def save_state(file: Path, run: dict[str, Any], parts: Parts, state: TrainState) -> None:
    """Write the state of the run whose :func:`origin` is ``run`` to ``file``."""
    ema, balance = parts.ema, parts.balance
    content = {
        **run,
        "model": {name: value.cpu() for name, value in parts.model.state_dict().items()},
        "ema": ema.state() if ema else None,
        "optimizer": parts.optimizer.state_dict(),
        "schedule": parts.schedule.state(),
        "balance": balance.state() if balance else None,
        **vars(state),
        "best_weights": _to_cpu(state.best_weights),
        "best_buffers": _to_cpu(state.best_buffers),
    }
    checkpoint.save(file, "training", STATE_VERSION, content)


def load_state(file: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Read a state and check that it is one of the run whose :func:`origin` is ``run``.

    Raises:
        CheckpointError: If it cannot be read, or is of another run; the message names what differs.
    """
    saved = checkpoint.load(file, "training", STATE_VERSION)
    where = f"{file}: cannot resume"
    for part in ("settings", "identity"):
        then = saved.get(part)
        if not isinstance(then, dict):
            raise CheckpointError(f"{where}: the file has no {part}")
        for key, value in run[part].items():
            # What an older dcase did not write yet cannot be compared.
            if key in then and not (part == "settings" and key in LIMITS):
                difference = _difference(key, then[key], value)
                if difference:
                    raise CheckpointError(
                        f"{where}: {difference}; use the same, or --overwrite to start again"
                    )
    difference = _difference("loss", saved.get("terms"), run["terms"])
    if difference:
        raise CheckpointError(f"{where}: {difference}")
    return saved


def restore(file: Path, saved: dict[str, Any], parts: Parts) -> TrainState:
    """Put what :func:`load_state` read from ``file`` into ``parts``; returns the rest of it.

    Raises:
        CheckpointError: If parts are missing or do not fit the model.
    """
    try:
        parts.model.load_state_dict(saved["model"])
        parts.optimizer.load_state_dict(saved["optimizer"])
        if parts.ema:
            parts.ema.load_state(saved["ema"])
        parts.schedule.load_state(saved["schedule"])
        if parts.balance:
            parts.balance.load_state(saved["balance"])
        return TrainState(
            epoch=saved["epoch"],
            batch_in_epoch=saved["batch_in_epoch"],
            step=saved["step"],
            elapsed=saved["elapsed"],
            cpu=saved.get("cpu", saved["elapsed"]),  # an older dcase did not count them
            costs={name: list(pair) for name, pair in saved.get("costs", {}).items()},
            validation_frames=saved.get("validation_frames", 0),
            sums=dict(saved["sums"]),
            losses=dict(saved.get("losses", {})),
            best=dict(saved["best"]),
            best_weights=_like(saved["best_weights"], parts.model.parameters()),
            best_buffers=_like(saved.get("best_buffers"), buffers(parts.model)),
            validations_since_best=saved["validations_since_best"],
            last_validation=dict(saved["last_validation"]),
            validated_step=saved.get("validated_step", -1),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{file}: cannot resume: parts are missing or do not fit the model ({reason})"
        ) from error


def _to_cpu(tensors: list[Tensor] | None) -> list[Tensor] | None:
    return None if tensors is None else [t.cpu() for t in tensors]


def _like(tensors: list[Tensor] | None, models: Any) -> list[Tensor] | None:
    if tensors is None:
        return None
    return [t.to(m.device, copy=True) for t, m in zip(tensors, models, strict=True)]


def _difference(name: str, then: Any, now: Any) -> str:
    """The first difference of two plain values in words, or ""; of dicts, that of one entry."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*now, *(k for k in then if k not in now)]:
            found = _difference(f"{name} {key}", then.get(key), now.get(key))
            if found:
                return found
        return ""
    if isinstance(then, torch.Tensor) or isinstance(now, torch.Tensor):
        same = isinstance(then, Tensor) and isinstance(now, Tensor) and torch.equal(then, now)
        return "" if same else f"{name} differs"
    return "" if then == now else f"{name} was {then!r}, now {now!r}"
