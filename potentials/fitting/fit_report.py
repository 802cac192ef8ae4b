"""What a training leaves beside its checkpoint: report, errors on test frames, a picture."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.recipe import Recipe
from dcase.potentials.fitting.trained_frames import keys_of
from dcase.potentials.potential import Potential
from dcase.potentials.quantity import ENERGY, Quantity
from dcase.training.budget import spread
from dcase.training.logs import read_metrics
from dcase.training.progress import TrainResult
from dcase.versions import versions

FIGURE = "training.png"
NOTHING_LEARNED = 0.97
"""Share of the forces' own size that an error is at least, where nothing was learned."""
TestFrames = AtomicDataset | np.ndarray


def report_of(
    potential: Potential,
    dataset: AtomicDataset,
    splits: Splits,
    recipe: Recipe,
    result: TrainResult,
    *,
    processes: int,
    started: float,
    form: str,
) -> dict[str, Any]:
    """The content of report.json, without errors on test frames.

    Args:
        potential: With the best weights; evaluated on the validation frames, if it was finished.
        dataset: All frames, as the loss sees them.
        splits: Which is which.
        recipe: Every choice of the run.
        result: How it ended.
        processes: That trained together.
        started: When, as seconds since 1970.
        form: How the gradients were made (:func:`dcase.potentials.kernels.forms.form_of_training`).
    """
    validation: dict[str, Any] = {}
    told = list(result.warnings)
    if len(splits.val) and result.status != "interrupted":  # Ctrl-C should not wait for this
        some = splits.val
        if result.validation_frames:
            some = some[spread(len(some), result.validation_frames).numpy()]
        frames = dataset.subset(some)
        validation = evaluate_potential(potential, frames).metrics
        told += _nothing_learned(validation, frames, recipe, result.steps)
    return {
        "status": result.status,
        "model": potential.describe(),
        "dataset": {
            **dataset.info.to_dict(),
            "frames": len(dataset),
            "fingerprint": dataset.fingerprint(),
        },
        "level_of_theory": dataset.info.level_of_theory,
        "n_train": len(splits.train),
        "n_val": len(splits.val),
        "split_hash": splits.hash(),
        "recipe": recipe.to_dict(),
        "label_scale": potential.scale.to_dict(),
        "quantity": potential.quantity.to_dict(),
        "epochs": result.epochs,
        "steps": result.steps,
        "training_time_s": result.elapsed,
        "training_cpu_s": result.cpu,
        "warnings": told,
        "best_epoch": result.best.get("epoch"),
        "validation": validation,
        "device": str(potential.device),
        "form": form,
        "processes": processes,
        "machine": platform.platform(),
        "started_unix": started,
        "versions": versions(),
    }


def _nothing_learned(
    errors: Mapping[str, Any], frames: AtomicDataset, recipe: Recipe, steps: int
) -> list[str]:
    """A line, where predicting no forces at all would be as good after so many steps."""
    error = errors.get("forces_mae_mev_angstrom")
    if error is None or recipe.loss.forces_weight == 0 or steps < 200:
        return []
    assert frames.forces is not None
    size = 1e3 * float(np.abs(frames.free_components(frames.forces)).mean())
    if error < NOTHING_LEARNED * size:
        return []
    return [
        f"nothing was learned: the forces' error of {error:.3g} meV/A is that of predicting none "
        f"({size:.3g}); try a lower --lr (it was {recipe.training.lr:g}), --warmup-steps 200, or "
        "dcase data check"
    ]


def metadata_of(
    dataset: AtomicDataset,
    splits: Splits,
    recipe: Recipe,
    result: TrainResult,
    report: Mapping[str, Any],
) -> dict[str, Any]:
    """What a checkpoint says of where it comes from."""
    return {
        "dataset": {**dataset.info.to_dict(), "frames": len(dataset)},
        "electrons": dataset.electrons(),
        "split": {
            "n_train": len(splits.train),
            "n_val": len(splits.val),
            "hash": splits.hash(),
            "train_keys": keys_of(dataset, splits.train),
        },
        "recipe": recipe.to_dict(),
        "training": {
            "status": result.status,
            "epochs": result.epochs,
            "steps": result.steps,
            "seconds": result.elapsed,
            "cpu_seconds": result.cpu,
            "warnings": report["warnings"],
        },
        "metrics": report["validation"],
    }


def errors_on(
    potential: Potential, dataset: AtomicDataset, tests: Mapping[str, TestFrames]
) -> dict[str, dict[str, Any]]:
    """Errors on sets of test frames as entries of report.json.

    Args:
        potential: Trained.
        dataset: All frames, as the loss sees them.
        tests: Frames, or indices of the dataset's, by what they are.

    Returns:
        ``"test"``, of the first set, and ``"test_NAME"`` of the others, each with its ``"set"``.
    """
    found = {}
    for number, (name, which) in enumerate(tests.items()):
        frames = dataset.subset(which) if isinstance(which, np.ndarray) else which
        key = "test" if number == 0 else f"test_{name.replace(' ', '_')}"
        found[key] = {"set": name, **evaluate_potential(potential, frames).metrics}
    return found


def write_training_figure(folder: Path, quantity: Quantity = ENERGY) -> str | None:
    """Validation errors against epochs as ``training.png`` in a run's folder.

    Args:
        folder: Of the run.
        quantity: What was learned.

    Returns:
        The file's name, or None where there was no validation to draw.
    """
    unit = "meV" if quantity.unit == "eV" else quantity.unit
    rows = read_metrics(folder / "metrics.csv")
    panels = []
    for term, label in (
        ("forces", "force MAE (meV/Å)"),
        ("stress", "stress MAE (meV/Å³)"),
        (quantity.key, f"{quantity.key} MAE ({unit})"),
    ):
        key = f"val_{term}_mae"
        points = [(r["epoch"], r[key]) for r in rows if key in r]
        if len(points) > 1:
            panels.append((label, term, points))
    if not panels:
        return None
    from matplotlib.ticker import FormatStrFormatter

    from dcase import plotting

    figure, axes = plotting.new_figure(1, len(panels), (3.6 * len(panels), 3.2))
    colors = {"forces": plotting.BLUE, "stress": plotting.GREEN, quantity.key: plotting.ORANGE}
    for ax, (label, term, points) in zip(axes, panels, strict=True):
        color = colors[term]
        ax.plot(*zip(*points, strict=True), color=color, linewidth=1.2)
        if plotting.log_scale(ax):
            for axis_format in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
                axis_format(FormatStrFormatter("%g"))
        ax.set_xlabel("epoch")
        ax.set_ylabel("validation " + label)
    plotting.save(figure, folder / FIGURE)
    return FIGURE
