"""Runs of an experiment: made once, kept, and gone on with where they were stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcase import checkpoint
from dcase.dae.evaluation import measure, of_model
from dcase.dae.run import finished_metrics, identity_of, train
from dcase.dae.settings import DaeSettings, default_settings
from dcase.dae.systems import system_named
from dcase.dae.task import PairSource
from dcase.dae.trajectories import Trajectory, make_pairs
from dcase.errors import CheckpointError, DivergedError, RunError
from dcase.files import write_json
from dcase.runs import FAILED, FINISHED, read_record
from dcase.training.progress import Progress
from dcase.training.state import STATE_VERSION
from dcase.training.trainer import Trainer

WATCHED = 100  # samples that errors are followed on, epoch by epoch
HISTORY = "history.json"
OURS = ("mechanical", "molecular")  # networks that come in one size


@dataclass(frozen=True)
class DaeRun:
    """One training of an experiment.

    Attributes:
        label: Its row in tables, its line in figures; runs that differ in the seed share it.
        settings: Of its training.
    """

    label: str
    settings: DaeSettings

    @property
    def name(self) -> str:
        """Of its folder: what experiments vary."""
        s = self.settings
        network = s.network if s.network in OURS else f"{s.network}-{s.size}"
        strength = ""
        if s.method == "penalty":
            strength = f"-gamma{s.gamma:g}"
        elif s.method == "auxiliary":
            strength = f"-eta{s.eta:g}"
        return f"{s.system}-k{s.k}-n{s.n_train}-{network}-{s.method}{strength}-s{s.seed}"

    def kept(self, folder: Path, trajectory: Trajectory, history: bool) -> dict[str, Any] | None:
        """The result of an earlier sitting, if it has the same settings and data."""
        record = self.record(folder, trajectory)
        if record is None:
            return None
        if record["status"] == FAILED and record.get("diverged"):
            return self.diverged(record["diverged"], trajectory)
        found = finished_metrics(folder / self.name, record)
        if not found or not history:
            return found
        rows = _followed(folder / self.name, found["epochs"])
        return None if rows is None else {**found, "history": rows}

    def record(self, folder: Path, trajectory: Trajectory) -> dict[str, Any] | None:
        """That of the run in the folder, if it is this one; its length counts, too."""
        try:
            record = read_record(folder / self.name)
        except RunError:
            return None
        identity = identity_of(self.settings, trajectory, _pairs(self, trajectory))
        return record if record["identity"] == identity.to_dict() else None

    def diverged(self, reason: str, trajectory: Trajectory) -> dict[str, Any]:
        """The result of a run that came to no end."""
        return {
            "status": "diverged",
            "reason": reason,
            "settings": self.settings.to_dict(),
            "data": {"fingerprint": trajectory.fingerprint()},
        }


def experiment_settings(
    system: str,
    method: str,
    network: str,
    size: str,
    *,
    epochs: int | None = None,
    time_limit: float | None = None,
    **changes: Any,
) -> DaeSettings:
    """Settings of a run of a table or figure.

    Args:
        system: ``"pendulum"`` or ``"water"``.
        method: Of :class:`~dcase.dae.settings.DaeSettings`.
        network: Likewise.
        size: Likewise.
        epochs: None: the default's.
        time_limit: Seconds.
        changes: Other settings.
    """
    settings = default_settings(system, network, "small" if network in OURS else size)
    if method == "manifold":  # not of the paper, so it need not project as the paper does
        changes = {
            "projection": "newton",
            "projection_gradient": "implicit",
            "projection_iterations": 100,
            **changes,
        }
    if epochs is not None:
        changes["epochs"] = epochs
    return settings.changed(method=method, time_limit=time_limit, **changes)


def perform(
    runs: Sequence[DaeRun],
    trajectory: Trajectory,
    folder: Path,
    *,
    history: bool = False,
    device: Any = "cpu",
    on_run: Callable[[int, DaeRun, bool], object] | None = None,
    on_start: Callable[[Trainer], object] | None = None,
    on_step: Callable[[Progress], object] | None = None,
    on_result: Callable[[list[dict[str, Any]]], object] | None = None,
) -> list[dict[str, Any]] | None:
    """Make all runs that are not there yet.

    Args:
        runs: What to do.
        trajectory: Of all of them.
        folder: Gets a folder for each run.
        history: Also follow error and violation epoch by epoch, on training and validation samples,
            into ``history.json``.
        device: To train on.
        on_run: Called before each, with its number and whether it is kept from before.
        on_start: Called with the trainer of each run that is made.
        on_step: Called after every step.
        on_result: Called with the results so far, after each run.

    Returns:
        ``metrics.json`` of each with ``label`` (and ``history``), or None if interrupted. A run
        that diverged has ``status`` "diverged", ``reason``, and no errors.

    Raises:
        DataError: If the trajectory is of another system or time step.
        OptionError: If the trajectory is too short for one of the runs; before any of them starts.
    """
    for run in runs:
        _pairs(run, trajectory)
    results: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        result = run.kept(folder, trajectory, history)
        if on_run:
            on_run(number, run, result is not None)
        stopped = False
        if result is None:
            hooks = {"on_start": on_start, "on_step": on_step, "device": device}
            result, stopped = _make(run, trajectory, folder, history, hooks)
        if result is not None:
            results.append({**result, "label": run.label})
            if on_result:
                on_result(results)
        if stopped:
            return None
    return results


def _pairs(run: DaeRun, trajectory: Trajectory) -> Any:
    s = run.settings
    system_named(s.system).check(trajectory)
    counts = s.n_train, s.n_validation, s.n_test
    return make_pairs(trajectory, s.k, *counts, seed=s.seed, split=s.split)


def _make(
    run: DaeRun,
    trajectory: Trajectory,
    folder: Path,
    history: bool,
    hooks: dict[str, Any],
) -> tuple[dict[str, Any] | None, bool]:
    """Train, or go on with what an interruption left.

    Returns:
        The result, or None for an unfinished run, and whether Ctrl-C was pressed: maybe in the last
        step of the run, which then is finished, but not the experiment.
    """
    target = folder / run.name
    record = run.record(folder, trajectory)
    stopped = record is not None and record["status"] != FINISHED
    done = _epochs_done(target) if stopped else None
    rows = [] if done is None else _followed(target, done) if history else []
    same = done is not None and rows is not None
    pairs = _pairs(run, trajectory)
    watch = _Watch(run.settings, trajectory, pairs, target, rows or []) if history else None

    trainers: list[Trainer] = []

    def started(trainer: Trainer) -> None:
        trainers.append(trainer)
        if watch:
            watch.begin(trainer)
        if hooks["on_start"]:
            hooks["on_start"](trainer)

    def stepped(progress: Progress) -> None:
        if hooks["on_step"]:
            hooks["on_step"](progress)
        if watch:
            watch.step(progress)

    try:
        outcome = train(
            run.settings,
            target,
            trajectory=trajectory,
            pairs=pairs,
            resume=same,
            overwrite=not same,
            pictures=False,
            device=hooks["device"],
            on_start=started,
            on_step=stepped,
        )
    except DivergedError as error:
        return run.diverged(str(error), trajectory), trainers[0].interrupted
    if outcome.result.status == "interrupted":
        return None, True
    found = outcome.metrics | ({"history": watch.rows} if watch else {})
    return found, trainers[0].interrupted


def _epochs_done(folder: Path) -> int | None:
    """Whole epochs in the state of a run that was stopped, or None if it cannot be gone on with."""
    try:
        return int(checkpoint.load(folder / "state.pt", "training", STATE_VERSION)["epoch"])
    except (CheckpointError, KeyError, TypeError):
        return None


def _followed(folder: Path, epochs: int) -> list[dict[str, Any]] | None:
    """Rows of the history up to ``epochs``, or None if one is missing.

    Some are where a table, which follows nothing, has made a part of the run; there may be more
    than asked for after a kill, as the state is saved less often than a row is written.
    """
    rows = _read(folder / HISTORY)
    if not isinstance(rows, list):
        return None
    kept = [row for row in rows if row["epoch"] <= epochs]
    return kept if [row["epoch"] for row in kept] == list(range(1, epochs + 1)) else None


class _Watch:
    """Errors and violations at the end of every epoch."""

    def __init__(
        self,
        settings: DaeSettings,
        trajectory: Trajectory,
        pairs: Any,
        folder: Path,
        rows: list[dict[str, Any]],
    ):
        import torch

        self.system, self.path = system_named(settings.system), folder / HISTORY
        dtype = getattr(torch, settings.dtype)
        self.parts = {"train": pairs.train, "val": pairs.validation}
        self.sources = {
            name: PairSource(trajectory, starts[:WATCHED], pairs.ahead, dtype)
            for name, starts in self.parts.items()
        }
        self.rows = rows
        self.trainer: Any = None

    def begin(self, trainer: Trainer) -> None:
        self.trainer = trainer
        write_json(self.path, self.rows)
        device = trainer.parameters[0].device
        for source in self.sources.values():
            for name in ("r", "v", "r_later", "v_later"):
                setattr(source, name, getattr(source, name).to(device))

    def step(self, progress: Progress) -> None:
        epoch, rest = divmod(progress.step, self.trainer.steps_per_epoch)
        if rest:
            return
        model = self.trainer.model
        model.eval()
        row: dict[str, float] = {"epoch": epoch}
        for name, source in self.sources.items():
            found = measure(of_model(model), source, model.constraint, self.system)
            for key in (self.system.mae, "mean_violation", "max_violation"):
                row[f"{name}_{key}"] = found[key]
        model.train()
        self.rows.append(row)
        write_json(self.path, self.rows)


def _read(path: Path) -> Any:
    """The content, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
