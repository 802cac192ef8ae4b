"""Runs of an experiment: made once, kept, and gone on with where they were stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcase.dae.evaluation import measure, of_model
from dcase.dae.run import train
from dcase.dae.settings import DaeSettings, default_settings
from dcase.dae.systems import system_named
from dcase.dae.task import PairSource
from dcase.dae.trajectories import Trajectory, make_pairs
from dcase.errors import DivergedError, OptionError
from dcase.files import write_json
from dcase.training.progress import Progress
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

    def kept(self, folder: Path, fingerprint: str, history: bool) -> dict[str, Any] | None:
        """The result of an earlier sitting, if it has the same settings and data."""
        found = _read(folder / self.name / "metrics.json")
        if not found or found.get("settings") != self.settings.to_dict():
            return None
        if (found.get("data") or {}).get("fingerprint") != fingerprint:
            return None
        if not history or found["status"] == "diverged":
            return found
        epochs = _read(folder / self.name / HISTORY)
        return {**found, "history": epochs} if epochs else None


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
        OptionError: If the trajectory is too short for one of the runs; before any of them starts.
    """
    fingerprint = trajectory.fingerprint()
    for run in runs:
        _pairs(run, trajectory)
    results: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        result = run.kept(folder, fingerprint, history)
        if on_run:
            on_run(number, run, result is not None)
        if result is None:
            hooks = {"on_start": on_start, "on_step": on_step, "device": device}
            result = _make(run, trajectory, folder / run.name, history, fingerprint, hooks)
        if result is None:
            return None
        results.append({**result, "label": run.label})
        if on_result:
            on_result(results)
    return results


def _pairs(run: DaeRun, trajectory: Trajectory) -> Any:
    s = run.settings
    if s.system != trajectory.system:
        raise OptionError(f"the data are of {trajectory.system}, not of {s.system}")
    counts = s.n_train, s.n_validation, s.n_test
    return make_pairs(trajectory, s.k, *counts, seed=s.seed, split=s.split)


def _make(
    run: DaeRun,
    trajectory: Trajectory,
    target: Path,
    history: bool,
    fingerprint: str,
    hooks: dict[str, Any],
) -> dict[str, Any] | None:
    """Train, or go on with what an interruption left."""
    wanted = run.settings.to_dict()
    begun = (_read(target / "run.json") or {}).get("settings")
    same = begun == wanted and not (target / "metrics.json").exists()
    pairs = _pairs(run, trajectory)
    watch = _Watch(run.settings, trajectory, pairs, target, same) if history else None

    def started(trainer: Trainer) -> None:
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
        failed = {
            "status": "diverged",
            "reason": str(error),
            "settings": wanted,
            "data": {"fingerprint": fingerprint},
        }
        write_json(target / "metrics.json", failed)
        return failed
    if outcome.result.status == "interrupted":
        return None
    return outcome.metrics | ({"history": watch.rows} if watch else {})


class _Watch:
    """Errors and violations at the end of every epoch."""

    def __init__(
        self, settings: DaeSettings, trajectory: Trajectory, pairs: Any, folder: Path, same: bool
    ):
        import torch

        self.system, self.path = system_named(settings.system), folder / HISTORY
        dtype = getattr(torch, settings.dtype)
        self.parts = {"train": pairs.train, "val": pairs.validation}
        self.sources = {
            name: PairSource(trajectory, starts[:WATCHED], pairs.ahead, dtype)
            for name, starts in self.parts.items()
        }
        self.rows: list[dict[str, float]] = (_read(self.path) or []) if same else []
        self.trainer: Any = None

    def begin(self, trainer: Trainer) -> None:
        self.trainer = trainer
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
        # A resume may begin before the last epoch that was seen.
        self.rows = [*(r for r in self.rows if r["epoch"] < epoch), row]
        write_json(self.path, self.rows)


def _read(path: Path) -> Any:
    """The content, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
