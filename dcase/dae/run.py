"""A run as a folder: settings, trained network, metrics, pictures.

==================  ================================================================================
file                what
==================  ================================================================================
``run.json``        settings and the fingerprint of the data
``model.pt``        the trained network
``metrics.json``    errors and violations on the test samples, beside those of simple predictors
``metrics.csv``     training, epoch by epoch
``*.png``           pictures
``state.pt``        what a resume needs
==================  ================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcase import checkpoint
from dcase.dae.build import build_model, measure_scales
from dcase.dae.evaluation import constant_velocity, identity, measure, of_model
from dcase.dae.methods import ConstrainedNetwork
from dcase.dae.settings import DaeSettings
from dcase.dae.systems import System, system_named
from dcase.dae.task import DaeTask, PairSource
from dcase.dae.trajectories import Pairs, Trajectory, load_or_make, make_pairs
from dcase.errors import CheckpointError, DataError, OptionError
from dcase.files import write_json
from dcase.objective import Objective
from dcase.training.progress import Progress, TrainResult
from dcase.training.trainer import Trainer

VERSION = 2
"""Raised when the same weights would give another network; a test holds what they give now."""

FREE = ("epochs", "time_limit")  # what a resume may change


def load_data(
    settings: DaeSettings,
    file: str | Path | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Trajectory, Pairs]:
    """The trajectory (from ``file``, or made and cached) and the pairs of a run.

    Raises:
        DataError: If the file cannot be used, or has another time step.
        OptionError: If the trajectory is too short.
    """
    trajectory = load_or_make(settings.system, path=file, progress=progress)
    system_named(settings.system).check(trajectory)
    pairs = make_pairs(
        trajectory,
        settings.k,
        settings.n_train,
        settings.n_validation,
        settings.n_test,
        seed=settings.seed,
        split=settings.split,
    )
    return trajectory, pairs


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its metrics (empty if interrupted), and the trainer's word."""

    metrics: dict[str, Any]
    result: TrainResult


def train(
    settings: DaeSettings,
    out: str | Path,
    *,
    trajectory: Trajectory,
    pairs: Pairs,
    resume: bool = False,
    overwrite: bool = False,
    pictures: bool = True,
    device: torch.device | str = "cpu",
    on_start: Callable[[Trainer], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Train and evaluate; the result is in the folder.

    Args:
        settings: What to train, and how.
        out: The run's folder.
        trajectory: From :func:`load_data`.
        pairs: From :func:`load_data`.
        resume: Go on with a run that was stopped.
        overwrite: Replace a run that is there.
        pictures: Draw.
        device: To train on.
        on_start: Called with the trainer before its first step.
        on_step: Called after every step.

    Raises:
        OptionError: If the folder holds a run and neither ``resume`` nor ``overwrite`` is given, or
            there is nothing to resume.
        DivergedError: If the loss becomes NaN.
    """
    folder, system = Path(out), system_named(settings.system)
    fingerprint = trajectory.fingerprint()
    _prepare(folder, settings, fingerprint, resume, overwrite)
    sources = {
        name: PairSource(
            trajectory, getattr(pairs, name), pairs.ahead, getattr(torch, settings.dtype), device
        )
        for name in ("train", "validation", "test")
    }
    some = sources["train"]
    arrays = [t.cpu().numpy() for t in (some.r, some.v, some.v_later)]
    scales = measure_scales(arrays[0], arrays[1], arrays[2], settings.duration)
    model = build_model(settings, scales).to(device)
    task = DaeTask(system, settings.method_settings(), settings.velocity_weight)
    identity_of_run = settings.to_dict() | {"data": fingerprint}
    for free in FREE:
        del identity_of_run[free]
    trainer = Trainer(
        model,
        Objective(task, task.objective_terms()),
        sources["train"],
        sources["validation"],
        settings.train_settings(),
        folder,
        identity=identity_of_run,
        on_step=on_step,
    )
    if on_start:
        on_start(trainer)
    result = trainer.fit(resume=resume)
    if result.status == "interrupted":
        return Outcome({}, result)
    save_model(folder / "model.pt", model, settings, scales)
    metrics = {
        **compare(model, sources["test"], system, settings),
        "status": result.status,
        "epochs": result.epochs,
        "steps": result.steps,
        "elapsed_s": result.elapsed,
        "best": result.best,
        "parameters": sum(p.numel() for p in model.parameters()),
        "settings": settings.to_dict(),
        "data": {"fingerprint": fingerprint, "settings": trajectory.settings},
    }
    write_json(folder / "metrics.json", metrics)
    if pictures:
        from dcase.dae import plots

        plots.draw_run(folder, model, sources["test"], settings, trajectory)
    return Outcome(metrics, result)


def compare(
    model: ConstrainedNetwork, test: PairSource, system: System, settings: DaeSettings
) -> dict[str, Any]:
    """Errors of a network on test samples, and of the identity and constant velocity."""
    model.eval()
    constraint = model.constraint
    found: dict[str, Any] = {"system": system.name, "method": settings.method}
    found |= measure(of_model(model), test, constraint, system)
    simple = {"identity": identity, "constant_velocity": constant_velocity(settings.duration)}
    for name, predictor in simple.items():
        found[name] = measure(predictor, test, constraint, system)
    found["units"] = {
        system.mae: f"{system.error}; mean Euclidean norm over "
        + ("bodies" if system.name == "pendulum" else "atoms"),
        "violation": system.length,
    }
    found["tolerance"] = settings.tolerance or constraint.tolerance
    return found


def _prepare(
    folder: Path, settings: DaeSettings, fingerprint: str, resume: bool, overwrite: bool
) -> None:
    record = folder / "run.json"
    if resume:
        if not record.exists():
            raise OptionError(f"nothing to resume: there is no run in {folder}")
        begun = _record(folder)
        if begun.get("version") != VERSION:
            raise OptionError(
                f"cannot resume: {folder} was begun by an earlier version of dcase with another "
                "parametrisation; --overwrite starts again"
            )
        then, now = read_settings(folder).to_dict(), settings.to_dict()
        for name in now:
            if name not in FREE and then[name] != now[name]:
                raise OptionError(
                    f"cannot resume: {name} was {then[name]!r}, now {now[name]!r}; use the same, "
                    "or --overwrite to start again"
                )
        if begun.get("data") != fingerprint:
            raise OptionError(
                f"cannot resume: {folder} was begun with another trajectory; give the file of that "
                "one (--data), or --overwrite to start again"
            )
    elif folder.exists() and any(folder.iterdir()) and not overwrite:
        raise OptionError(f"{folder} is not empty; give --overwrite, --resume or another --out")
    if overwrite and folder.exists():
        # An old result or state must not outlive its run.
        for name in ("metrics.json", "model.pt", "state.pt"):
            (folder / name).unlink(missing_ok=True)
    content = {"version": VERSION, "settings": settings.to_dict(), "data": fingerprint}
    write_json(record, content)


# ------------------------------------------------------------------------------------------------
# Coming back to a run


def save_model(
    path: str | Path, model: ConstrainedNetwork, settings: DaeSettings, scales: dict[str, float]
) -> None:
    """Write a checkpoint."""
    content = {
        "settings": settings.to_dict(),
        "scales": scales,
        "weights": {k: t.detach().cpu() for k, t in model.state_dict().items()},
        "versions": checkpoint.versions(),
    }
    checkpoint.save(path, "dae", VERSION, content)


def load_model(path: str | Path) -> tuple[ConstrainedNetwork, DaeSettings]:
    """A trained network, ready to use.

    Raises:
        CheckpointError: If the file is missing, damaged, holds something else, or was written by a
            version of dcase whose networks were other functions of their weights.
    """

    def refuse(_: dict[str, Any]) -> None:
        raise CheckpointError(
            f"{path}: trained by an earlier version of dcase, with another parametrisation of the "
            "network; train it again"
        )

    content = checkpoint.load(path, "dae", VERSION, dict.fromkeys(range(VERSION), refuse))
    try:
        settings = DaeSettings.from_dict(content["settings"])
        model = build_model(settings, content["scales"])
        model.load_state_dict(content["weights"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: does not fit the network it names: damaged, or of another version of dcase; "
            f"train it again ({reason})"
        ) from error
    return model.eval(), settings


def read_settings(folder: str | Path) -> DaeSettings:
    """Settings of a run.

    Raises:
        DataError: If the folder holds no run.
    """
    content = _record(folder)
    try:
        return DaeSettings.from_dict(content["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{Path(folder) / 'run.json'}: damaged, or not of `dcase dae train` ({error})"
        ) from error


def _record(folder: str | Path) -> dict[str, Any]:
    """``run.json``; raises :class:`DataError`."""
    path = Path(folder) / "run.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder}: no run of `dcase dae train` (there is no run.json)") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged, or not of `dcase dae train` ({error})") from error
    return content if isinstance(content, dict) else {}
