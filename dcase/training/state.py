"""The training state: everything that the rest of a run depends on, as one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dcase import checkpoint
from dcase.errors import CheckpointError

if TYPE_CHECKING:
    from dcase.training.trainer import Trainer

STATE_VERSION = 1

# Limits may change between sittings; anything else would make another run of it.
FREE = ("epochs", "time_limit", "checkpoint_every", "early_stopping")


def buffers(model: nn.Module) -> list[Tensor]:
    """The buffers that belong to the weights (a BatchNorm's statistics, not look-up tables)."""
    persistent = model.state_dict().keys()
    return [value for name, value in model.named_buffers() if name in persistent]


def save_state(trainer: Trainer) -> None:
    """Write the state to ``trainer.state_file``."""
    ema = trainer.ema
    content = {
        "identity": trainer.identity,
        "settings": trainer.settings.to_dict(),
        "terms": _terms(trainer),
        "model": {name: value.cpu() for name, value in trainer.model.state_dict().items()},
        "ema": ema.state() if ema else None,
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state(),
        "balance": trainer.balance.state() if trainer.balance else None,
        "epoch": trainer.epoch,
        "batch_in_epoch": trainer.batch_in_epoch,
        "step": trainer.step,
        "elapsed": trainer.elapsed,
        "sums": trainer.sums,
        "losses": trainer.losses,
        "best": trainer.best,
        "best_weights": _to_cpu(trainer.best_weights),
        "best_buffers": _to_cpu(trainer.best_buffers),
        "validations_since_best": trainer.validations_since_best,
        "last_validation": trainer.last_validation,
        "validated_step": trainer.validated_step,
    }
    checkpoint.save(trainer.state_file, "training", STATE_VERSION, content)


def load_state(trainer: Trainer) -> dict[str, Any]:
    """Read the state of ``trainer`` and check that it belongs to the same run.

    Raises:
        CheckpointError: If it cannot be read, or is of another run; the message names what differs.
    """
    state = checkpoint.load(trainer.state_file, "training", STATE_VERSION)
    where = f"{trainer.state_file}: cannot resume"
    now = {"settings": trainer.settings.to_dict(), "identity": trainer.identity}
    for part, values in now.items():
        then = state.get(part)
        if not isinstance(then, dict):
            raise CheckpointError(f"{where}: the file has no {part}")
        for key, value in values.items():
            # What an older dcase did not write yet cannot be compared.
            if key in then and not (part == "settings" and key in FREE):
                difference = _difference(key, then[key], value)
                if difference:
                    raise CheckpointError(
                        f"{where}: {difference}; use the same, or --overwrite to start again"
                    )
    difference = _difference("loss", state.get("terms"), _terms(trainer))
    if difference:
        raise CheckpointError(f"{where}: {difference}")
    return state


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put a loaded state into ``trainer``.

    Raises:
        CheckpointError: If parts are missing or do not fit the model.
    """
    try:
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.ema:
            trainer.ema.load_state(state["ema"])
        trainer.schedule.load_state(state["schedule"])
        if trainer.balance:
            trainer.balance.load_state(state["balance"])
        trainer.epoch, trainer.batch_in_epoch = state["epoch"], state["batch_in_epoch"]
        trainer.step, trainer.elapsed = state["step"], state["elapsed"]
        trainer.sums, trainer.best = dict(state["sums"]), dict(state["best"])
        trainer.losses = dict(state.get("losses", {}))
        trainer.best_weights = _like(state["best_weights"], trainer.model.parameters())
        trainer.best_buffers = _like(state.get("best_buffers"), buffers(trainer.model))
        trainer.validations_since_best = state["validations_since_best"]
        trainer.last_validation = dict(state["last_validation"])
        trainer.validated_step = state.get("validated_step", -1)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{trainer.state_file}: cannot resume: parts are missing or do not fit the model "
            f"({reason})"
        ) from error


def _terms(trainer: Trainer) -> dict[str, list[Any]]:
    return {
        name: [term.weight, term.loss, term.delta] for name, term in trainer.objective.terms.items()
    }


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
