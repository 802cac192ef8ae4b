"""Trainings that differ in one choice or a few, each with several seeds, side by side.

Every variant sees the same frames: seed s draws one split, and all variants train, validate and are
tested on it. So differences can be taken seed by seed, in which what the split does cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits
from dcase.errors import DataError, OptionError
from dcase.files import write_json
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.fold_processes import Job, run_jobs
from dcase.potentials.fitting.recipe import FREE, Recipe
from dcase.potentials.potential import load_potential
from dcase.runs import Identity, Place, claim

ERRORS = ("forces_mae_mev_angstrom", "energy_mae_mev")


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        report: Plain values; also in ``compare.json``.
        folder: With the checkpoint of every training.
        finished: Whether all were trained.
    """

    report: dict[str, Any]
    folder: Path
    finished: bool


def comparison_place(folder: str | Path) -> Place:
    """What a comparison keeps, and where."""
    return Place(Path(folder), ("*_seed*.pt", "*_seed*.run", "compare.json"))


def compare(
    dataset: AtomicDataset,
    splits: Sequence[Splits],
    recipes: Mapping[str, Recipe],
    out: str | Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    on_run: Callable[[str, int], None] | None = None,
    on_step: Callable[[str, int, Any], None] | None = None,
) -> Comparison:
    """Train every variant once for every split, and compare errors on the test frames.

    Args:
        dataset: All frames.
        splits: One a seed; all of them with test frames.
        recipes: Variants by name; the first is what others are compared with. The seed of the
            recipe plus the number of the split is that of a training.
        out: Folder.
        jobs: Trainings at a time, in processes of one thread each.
        resume: Keep finished trainings and go on with the others.
        overwrite: Replace an earlier comparison.
        device: Where to train.
        on_run: Called with variant and number of the split before each training.
        on_step: Called with these and the progress.

    Returns:
        The report: of every variant the errors of each seed, mean, standard deviation (k - 1), and
        mean and standard error of the differences to the first variant, seed by seed.

    Raises:
        OptionError: If there are fewer than two variants.
        DataError: Without test frames.
        RunError: If there is another comparison, or one and neither flag is given.
    """
    if len(recipes) < 2:
        raise OptionError("a comparison needs at least two variants")
    if any(not len(one.test) for one in splits):
        raise DataError("no frames are left to test on; train on fewer")
    folder, names = Path(out), list(recipes)
    identity = Identity(
        "compare",
        {"variants": {name: recipe.identity() for name, recipe in recipes.items()}},
        free=tuple(f"variants.{name}.{free}" for name in names for free in FREE),
        data={
            "frames": dataset.fingerprint(),
            **{f"split {n}": one.hash() for n, one in enumerate(splits)},
        },
    )
    with claim(comparison_place(folder), identity, resume=resume, overwrite=overwrite) as run:
        tasks: list[Job] = []
        for number, one in enumerate(splits):  # seed by seed: what there is can be compared
            for name, recipe in recipes.items():
                seed = recipe.training.seed + number
                file = folder / f"{names.index(name) + 1}_seed{seed}.pt"
                own = replace(recipe, training=replace(recipe.training, seed=seed))
                where = (len(tasks), dataset, one, own, file, resume, device)
                tasks.append(Job(*where))
        of = [(name, number) for number in range(len(splits)) for name in names]
        finished = run_jobs(
            [job for job in tasks if not (resume and job.finished())],
            jobs,
            on_fold=lambda n: on_run(*of[n]) if on_run else None,
            on_step=lambda n, progress: on_step(*of[n], progress) if on_step else None,
            check=run.check,
        )
        if not finished:
            run.finish("interrupted")
            return Comparison({}, folder, False)
        report = _report(dataset, tasks, of, recipes)
        run.check(now=True)
        write_json(folder / "compare.json", report)
    return Comparison(report, folder, True)


def _report(
    dataset: AtomicDataset,
    tasks: Sequence[Job],
    of: Sequence[tuple[str, int]],
    recipes: Mapping[str, Recipe],
) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for job, (name, _) in zip(tasks, of, strict=True):
        potential = load_potential(job.out).to(job.device)
        metrics = evaluate_potential(potential, dataset.subset(job.splits.test)).metrics
        training = potential.metadata["training"]
        row = rows.setdefault(
            name,
            {
                "network": potential.describe(),
                "recipe": recipes[name].to_dict(),
                "checkpoints": [],
                "cpu_seconds": [],
                "seeds": [],
            },
        )
        row["checkpoints"].append(job.out.name)
        row["cpu_seconds"].append(training["cpu_seconds"])
        row["seeds"].append(job.recipe.training.seed)
        for key in ERRORS:
            if key in metrics:
                row.setdefault(key, []).append(metrics[key])
    first = next(iter(rows.values()))
    for row in rows.values():
        for key in ERRORS:
            if key in row:
                row[f"{key}_over_seeds"] = spread_of(row[key])
                row[f"{key}_difference"] = difference(row[key], first[key])
    return {
        "level_of_theory": dataset.info.level_of_theory,
        "n_train": len(tasks[0].splits.train),
        "n_test": len(tasks[0].splits.test),
        "variants": rows,
    }


def spread_of(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, and standard deviation with k - 1 (None of a single value)."""
    found = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(found.mean()),
        "std": float(found.std(ddof=1)) if len(found) > 1 else None,
    }


def difference(values: Sequence[float], others: Sequence[float]) -> dict[str, float | None]:
    """Mean of the differences, pair by pair, and its standard error (None of a single pair)."""
    found = spread_of(np.asarray(values) - np.asarray(others))
    std = found["std"]
    return {"mean": found["mean"], "error": None if std is None else std / len(values) ** 0.5}
