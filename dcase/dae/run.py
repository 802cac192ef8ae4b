"""A run as a folder: settings, trained network, metrics, pictures.

==================  ================================================================================
file                what
==================  ================================================================================
``run.json``        the record (:mod:`dcase.runs`): settings, fingerprint of the data, how it stands
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
from dataclasses import dataclass, replace
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
from dcase.errors import CheckpointError, DataError, DcaseError, DivergedError, RunError
from dcase.files import write_json
from dcase.objective import Objective
from dcase.runs import FINISHED, INTERRUPTED, RECORD, Identity, Place, Run, claim, fingerprint
from dcase.training.progress import Progress, TrainResult
from dcase.training.trainer import Trainer
from dcase.versions import versions

VERSION = 2
"""Raised when the same weights would give another network; a test holds what they give now."""

KIND = "dae train"
FREE = ("epochs", "time_limit", "cpu_limit")  # what a resume may change
FILES = (
    "metrics.json", "model.pt", "state.pt", "metrics.csv", "history.json", "training.png",
    "snapshots.png", "errors.png", "violations.png", "rollout.png",
)  # fmt: skip


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
class DaeOutcome:
    """How a run ended.

    Attributes:
        metrics: Content of ``metrics.json``; empty if interrupted.
        result: The trainer's word.
        was_finished: Whether there was nothing to do.
    """

    metrics: dict[str, Any]
    result: TrainResult
    was_finished: bool = False


def place_of(folder: str | Path) -> Place:
    """Where a run keeps its files."""
    return Place(Path(folder), files=FILES, empty=True)


def identity_of(settings: DaeSettings, trajectory: Trajectory, pairs: Pairs) -> Identity:
    """What makes a run the run it is."""
    samples = (pairs.train, pairs.validation, pairs.test, pairs.ahead)
    data = fingerprint(trajectory.fingerprint(), *samples)
    return Identity(KIND, settings.to_dict(), free=FREE, data=data, version=VERSION)


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
) -> DaeOutcome:
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

    Returns:
        A run that was finished before is left as it is, and gives what it gave.

    Raises:
        RunError: See :func:`dcase.runs.claim`; the folder then is as it was.
        DivergedError: If the loss becomes NaN.
    """
    place, system = place_of(out), system_named(settings.system)
    identity = identity_of(settings, trajectory, pairs)
    before: dict[str, Any] = {}

    def check(record: dict[str, Any]) -> None:
        before.update(record)
        done = (finished_metrics(place.folder, record) or {}).get("epochs", 0)
        if settings.epochs < done:
            raise RunError(
                f"cannot resume {place.folder}: it is finished after {done} epochs, which a resume "
                "cannot make fewer; --overwrite starts again"
            )

    with claim(place, identity, resume=resume, overwrite=overwrite, check=check) as run:
        kept = _kept(place.folder, before, identity)
        if kept is not None:
            run.finish()
            return kept
        sources = {
            name: PairSource(
                trajectory,
                getattr(pairs, name),
                pairs.ahead,
                getattr(torch, settings.dtype),
                device,
            )
            for name in ("train", "validation", "test")
        }
        scales = _scales(sources["train"], settings)
        model = build_model(settings, scales).to(device)
        task = DaeTask(system, settings.method_settings(), settings.velocity_weight)
        trainer = Trainer(
            model,
            Objective(task, task.objective_terms()),
            sources["train"],
            sources["validation"],
            settings.train_settings(),
            place.folder,
            identity={k: v for k, v in settings.to_dict().items() if k not in FREE}
            | {"data": identity.data},
            on_step=_watched(run, on_step),
        )
        if on_start:
            on_start(trainer)
        result = _fit(trainer, run, resume)
        if result.status == "interrupted":
            run.finish(INTERRUPTED)
            return DaeOutcome({}, result)
        run.check(now=True)
        save_model(place.folder / "model.pt", model, settings, scales)
        metrics = {
            **compare(model, sources["test"], system, settings),
            "status": result.status,
            "epochs": result.epochs,
            "steps": result.steps,
            "elapsed_s": result.elapsed,
            "cpu_s": result.cpu,
            "warnings": list(result.warnings),
            "best": result.best,
            "parameters": sum(p.numel() for p in model.parameters()),
            "settings": settings.to_dict(),
            "data": {"fingerprint": trajectory.fingerprint(), "settings": trajectory.settings},
        }
        run.check(now=True)
        write_json(place.folder / "metrics.json", metrics)
        if pictures:
            from dcase.dae import plots

            plots.draw_run(place.folder, model, sources["test"], settings, trajectory)
    return DaeOutcome(metrics, result)


def _scales(some: PairSource, settings: DaeSettings) -> dict[str, float]:
    arrays = [t.cpu().numpy() for t in (some.r, some.v, some.v_later)]
    return measure_scales(arrays[0], arrays[1], arrays[2], settings.duration)


def _watched(run: Run, on_step: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    """Stop in the step in which the folder went away, before the trainer would make it anew."""

    def step(progress: Progress) -> None:
        run.check(now=True)
        if on_step:
            on_step(progress)

    return step


def _fit(trainer: Trainer, run: Run, resume: bool) -> TrainResult:
    try:
        return trainer.fit(resume=resume)
    except DivergedError as error:
        run.note(diverged=str(error))
        raise
    except DcaseError:
        run.check(now=True)  # a folder that went away says more than a file that is missing
        raise


def finished_metrics(folder: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """``metrics.json`` of a run that its record calls finished, if it is there and whole."""
    if record.get("status") != FINISHED:
        return None
    try:
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _kept(folder: Path, record: dict[str, Any], identity: Identity) -> DaeOutcome | None:
    """What a finished run gave; None where there is more to do."""
    metrics = finished_metrics(folder, record)
    if metrics is None or record["identity"] != identity.to_dict():
        return None
    try:
        load_model(folder / "model.pt")
        numbers = [metrics[name] for name in ("status", "epochs", "steps", "elapsed_s", "best")]
    except (CheckpointError, KeyError):  # lost or damaged: made again of the training state
        return None
    result = replace(TrainResult(*numbers), cpu=metrics.get("cpu_s", 0.0))
    return DaeOutcome(metrics, result, was_finished=True)


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
        "versions": versions(),
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
    """Settings of a run; of one made before there was one record for all, too.

    Raises:
        DataError: If the folder holds no run.
    """
    path = Path(folder) / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "identity" not in content:
            return DaeSettings.from_dict(content["settings"])
        if content["kind"] != KIND:
            kind = content["kind"]
            raise DataError(f"{folder} is a run of `dcase {kind}`, not of `dcase {KIND}`")
        return DaeSettings.from_dict(content["identity"]["settings"])
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder}: no run of `dcase {KIND}` (there is no {RECORD})") from None
    except DataError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged, or not of `dcase {KIND}` ({error})") from error
