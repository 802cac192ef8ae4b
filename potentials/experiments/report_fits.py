"""The SchNet report's baselines, and its cross-validation: made once, kept in a folder each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits
from dcase.errors import DcaseError, DivergedError
from dcase.files import write_json
from dcase.potentials.experiments.report_published import RHO
from dcase.potentials.experiments.report_runs import Length, report_recipe, tasks_of
from dcase.potentials.experiments.runs import RESULT, Frames, only_maker
from dcase.potentials.fitting.baseline import fit_baseline
from dcase.potentials.fitting.cross_validation import (
    Folds,
    batch_losses,
    cross_validate,
    cross_validation_place,
    make_folds,
    statistics,
)
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.recipe import LossChoice, Recipe
from dcase.potentials.potential import Potential

REPORT_LOSS = LossChoice(energy_weight=RHO, forces_weight=3.0, energy_loss="l2", forces_loss="l2")
"""The report's loss as an objective: 1/n sum_i |dF_i|^2 is 3 times the mean over components."""


@dataclass(frozen=True)
class Fit:
    """A baseline: ``kind`` is ``"pairs"``, or ``"composition"`` for the trivial predictor."""

    frames: Frames
    splits: Splits
    task: str
    kind: str

    @property
    def name(self) -> str:
        """Folder name."""
        content = {
            "frames": self.frames.dataset.fingerprint(),
            "split": self.splits.hash(),
            "task": self.task,
            "kind": self.kind,
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        task = self.task.replace("+", "p")
        return f"{self.frames.system}_baseline-{self.kind}_{task}_{digest[:8]}"


def fit_of(fit: Fit, folder: Path) -> dict[str, Any] | None:
    """What an earlier sitting left of a baseline, or None."""
    return _read(folder / "runs" / fit.name / RESULT)


def perform_fit(fit: Fit, folder: Path) -> dict[str, Any]:
    """Fit a baseline and test it, or return what was found before."""
    found = fit_of(fit, folder)
    if found is not None:
        return found
    place = folder / "runs" / fit.name
    with only_maker(place):
        return _fit_and_test(fit, place)


def _fit_and_test(fit: Fit, place: Path) -> dict[str, Any]:
    data, splits = fit.frames.dataset, fit.splits
    fitted = fit_baseline(
        data.subset(splits.train),
        fit.task,
        kind=fit.kind,
        validation=data.subset(splits.val) if fit.kind == "pairs" else None,
    )
    result = {
        "name": fit.name,
        "system": fit.frames.system,
        "model": fit.kind,
        "label": fit.task,
        "status": "finished",
        "parameters": fitted.num_parameters,
        "n_train": len(splits.train),
        "n_test": len(splits.test),
        "level_of_theory": data.info.level_of_theory,
        "metrics": evaluate_potential(fitted, data.subset(splits.test)).metrics,  # type: ignore[arg-type]
    }
    write_json(place / RESULT, result)
    return result


# ------------------------------------------------------------------------------------------------
# Cross-validation


@dataclass(frozen=True)
class Crossing:
    """A cross-validation of Tables 3 and 4."""

    system: str
    dataset: AtomicDataset
    folds: Folds
    recipe: Recipe

    @property
    def name(self) -> str:
        """Folder name."""
        content = {
            "frames": self.dataset.fingerprint(),
            "folds": [self.folds.splits(n).hash() for n in range(len(self.folds.parts))],
            "recipe": self.recipe.to_dict(),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.system}_folds_{self.recipe.name}_{digest[:8]}"


def plan_crossing(
    frames: Frames, recipe_name: str, steps: int, n_frames: int, folds: int, length: Length
) -> Crossing:
    """Folds of equal size and, apart, as many frames as a fold has; training on energy and forces.

    Args:
        frames: All frames.
        recipe_name: Of every fold.
        steps: Optimiser steps of a fold.
        n_frames: Of all folds together, if there are as many.
        folds: How many.
        length: ``train``: frames of all folds together instead; ``test``: frames apart instead.
    """
    total, wanted = len(frames.dataset), length.train or n_frames
    use = min(total, wanted + (length.test or wanted // folds))
    apart = length.test or use // (folds + 1)
    cut = make_folds(total, folds, length.seed, use=use, n_test=apart)
    task = tasks_of(frames.dataset)[-1]
    n_train = use - apart - len(cut.parts[0])
    recipe = report_recipe(recipe_name, frames.system, task, n_train, steps, length)
    return Crossing(frames.system, frames.dataset, cut, recipe)


def crossing_of(crossing: Crossing, folder: Path) -> dict[str, Any] | None:
    """What an earlier sitting left of a cross-validation, or None."""
    return _read(folder / "runs" / crossing.name / RESULT)


def perform_crossing(
    crossing: Crossing,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    on_fold: Callable[[int, int], None] | None = None,
    on_start: Callable[..., None] | None = None,
    on_step: Callable[..., None] | None = None,
) -> dict[str, Any] | None:
    """Train the folds, or go on with them, or return what was found; None if interrupted.

    Returns:
        The report of :func:`dcase.potentials.fitting.cross_validation.cross_validate`, and with
        every fold ``"report_loss"``: the statistics over validation batches of 32 of the report's
        loss, whatever loss the recipe trains with. If a fold's training diverges, only ``"status"``
        (``"NaN"``) and ``"reason"``.
    """
    found = crossing_of(crossing, folder)
    if found is not None:
        return found
    place = folder / "runs" / crossing.name
    with only_maker(place):
        return _cross(crossing, place, device, on_fold, on_start, on_step)


def _cross(
    crossing: Crossing,
    place: Path,
    device: str | torch.device,
    on_fold: Callable[[int, int], None] | None,
    on_start: Callable[..., None] | None,
    on_step: Callable[..., None] | None,
) -> dict[str, Any] | None:
    try:
        done = cross_validate(
            crossing.dataset,
            crossing.folds,
            crossing.recipe,
            place / "ensemble.pt",
            resume=cross_validation_place(place / "ensemble.pt").resumable(),
            device=device,
            on_fold=on_fold,
            on_start=on_start,
            on_step=on_step,
        )
    except DivergedError as error:
        diverged = {"status": "NaN", "reason": str(error), "system": crossing.system}
        write_json(place / RESULT, diverged)
        return diverged
    if done.ensemble is None:
        return None
    measured = replace(crossing.recipe, loss=_loss_of(crossing.dataset))
    members: list[Potential] = list(done.ensemble.members)  # type: ignore[arg-type]
    rows = []
    for row, potential, part in zip(
        done.report["folds"], members, crossing.folds.parts, strict=True
    ):
        losses = batch_losses(potential, crossing.dataset.subset(part), measured, 32)
        rows.append({**row, "report_loss": statistics(losses)})
    result = {**done.report, "system": crossing.system, "status": "finished", "folds": rows}
    result["training"] = [dict(p.metadata["training"]) for p in members]
    write_json(place / RESULT, result)
    return result


def _loss_of(dataset: AtomicDataset) -> LossChoice:
    """The report's loss; of data without forces, the squared error of the energy."""
    if dataset.forces is not None:
        return REPORT_LOSS
    return replace(REPORT_LOSS, energy_weight=1.0, forces_weight=0.0)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DcaseError(f"{path} is damaged ({error}); delete it to make the run again") from error
    if not isinstance(found, dict) or "status" not in found:
        raise DcaseError(f"{path} is damaged (it is not complete); delete it to make the run again")
    return found
