"""k-fold cross-validation of a training recipe; the folds' potentials together are an ensemble.

Frames are drawn once and cut into k folds, and one more part that no fold sees, the test frames of
the ensemble. Potential m validates on fold m and trains on the other k - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits
from dcase.errors import DataError, OptionError
from dcase.files import check_writable, write_json
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.fit_potential import run_folder
from dcase.potentials.fitting.fold_processes import Job, run_jobs
from dcase.potentials.fitting.recipe import FREE, Recipe
from dcase.potentials.potential import Potential, load_potential
from dcase.runs import Identity, Place, claim, fingerprint
from dcase.training.trainer import Objective
from dcase.units import KCAL_PER_MOL


@dataclass(frozen=True)
class Folds:
    """Which frames are in which fold.

    Attributes:
        parts: Frame indices of every fold, k arrays of int64.
        test: Frames outside all folds, int64, may be empty.
    """

    parts: tuple[np.ndarray, ...]
    test: np.ndarray

    def splits(self, fold: int) -> Splits:
        """Fold ``fold`` to validate on, the others to train on, the rest to test on."""
        train = np.concatenate([p for number, p in enumerate(self.parts) if number != fold])
        return Splits(train=train, val=self.parts[fold], test=self.test)


def make_folds(
    n_frames: int, folds: int, seed: int, *, use: int | None = None, n_test: int | None = None
) -> Folds:
    """Draw folds of equal size (to one frame) at random.

    Args:
        n_frames: Frames there are.
        folds: k, at least 2.
        seed: Of the draw.
        use: How many frames to use for folds and test together; None: all.
        n_test: Frames outside the folds; None: as many as a fold has.

    Raises:
        OptionError: If k is below 2, or a number makes no sense.
        DataError: If there are fewer frames than asked for, or than folds.
    """
    if folds < 2:
        raise OptionError(f"cross-validation needs at least 2 folds, got {folds}")
    if seed < 0:
        raise OptionError(f"seed must not be negative, got {seed}")
    total = n_frames if use is None else use
    if total > n_frames:
        raise DataError(f"{total} frames were asked for, but there are only {n_frames}")
    kept_apart = total // (folds + 1) if n_test is None else n_test
    if kept_apart < 0 or total - kept_apart < folds:
        raise DataError(
            f"{total} frames are too few for {folds} folds and {kept_apart} test frames"
        )
    order = np.random.default_rng(seed).permutation(n_frames)[:total].astype(np.int64)
    return Folds(
        parts=tuple(np.array_split(order[: total - kept_apart], folds)),
        test=order[total - kept_apart :],
    )


@dataclass(frozen=True)
class CrossValidation:
    """What came of a cross-validation.

    Attributes:
        ensemble: Of the folds' potentials; None if it was interrupted.
        report: Plain values; also written beside the checkpoint.
        path: The ensemble's checkpoint.
        folder: Where the folds' own checkpoints are.
        finished: Whether all folds were trained.
    """

    ensemble: Ensemble | None
    report: dict[str, Any]
    path: Path
    folder: Path
    finished: bool


def cross_validation_place(out: str | Path) -> Place:
    """What a cross-validation that writes the ensemble ``out`` keeps, and where."""
    files = ("fold-*.pt", "fold-*.run", "report.json")
    return Place(run_folder(Path(out)), files, results=(Path(out),))


def cross_validate(
    dataset: AtomicDataset,
    folds: Folds,
    recipe: Recipe,
    out: str | Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    device: str | torch.device = "cpu",
    on_fold: Callable[[int, int], None] | None = None,
    on_start: Callable[[Potential, Any], None] | None = None,
    on_step: Callable[[int, Any], None] | None = None,
) -> CrossValidation:
    """Train one potential a fold and write them as one ensemble.

    Every fold starts from weights of its own (seed of the recipe + number of the fold), so that the
    spread of the ensemble is of data and weights both.

    Args:
        dataset: All frames.
        folds: See :func:`make_folds`.
        recipe: Every choice of the training; a time limit is for each fold.
        out: The ensemble's checkpoint; the folds' own go to a folder of the same name with
            ``.run``.
        jobs: Folds trained at the same time, in processes of one thread each.
        resume: Keep finished folds and go on with the others.
        overwrite: Replace an earlier run.
        device: Where to train.
        on_fold: Called with the fold (0, 1, ...) and their number before each is trained.
        on_start: As in :func:`~dcase.potentials.fitting.fit_potential.fit_potential`; with one job
            only.
        on_step: Called with the fold and its progress after steps.

    Returns:
        The ensemble and the report: per fold errors and the loss over validation batches (minimum,
        maximum, mean, std), over all folds their mean and std, and of the test frames errors and
        spread.

    Raises:
        RunError: If there is an earlier run and neither ``resume`` nor ``overwrite`` is given, or
            the earlier run had other frames, folds or another recipe.
        DcaseError: As :func:`~dcase.potentials.fitting.fit_potential.fit_potential`.
    """
    dataset = recipe.loss.seen(dataset)
    out = Path(out)
    folder = run_folder(out)
    check_writable(out, [folder / "fold-1.pt"], stream=False)
    count = len(folds.parts)
    identity = Identity(
        "cross-validate",
        recipe.identity(),
        free=FREE,
        data={
            "frames": dataset.fingerprint(),
            "folds": fingerprint([folds.splits(number).hash() for number in range(count)]),
        },
    )
    with claim(cross_validation_place(out), identity, resume=resume, overwrite=overwrite) as run:
        tasks = [
            Job(
                number=number,
                dataset=dataset,
                splits=folds.splits(number),
                recipe=replace(
                    recipe, training=replace(recipe.training, seed=recipe.training.seed + number)
                ),
                out=folder / f"fold-{number + 1}.pt",
                resume=resume,
                device=str(device),
            )
            for number in range(count)
        ]
        todo = [job for job in tasks if not (resume and job.finished())]
        finished = run_jobs(
            todo, jobs, on_fold=lambda n: on_fold(n, count) if on_fold else None,
            on_start=on_start, on_step=on_step, check=run.check,
        )  # fmt: skip
        if not finished:
            run.finish("interrupted")
            return CrossValidation(None, {}, out, folder, False)
        members = [load_potential(job.out) for job in tasks]
        ensemble = Ensemble([member.to(device) for member in members]).eval()
        report = _report(ensemble, dataset, folds, recipe)  # type: ignore[arg-type]
        ensemble.metadata["cross_validation"] = report
        run.check(now=True)
        ensemble.save(out)
        write_json(folder / "report.json", report)
    return CrossValidation(ensemble, report, out, folder, True)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- report


def batch_losses(
    potential: Potential, dataset: AtomicDataset, recipe: Recipe, batch_size: int
) -> np.ndarray:
    """The training objective on every batch of ``dataset``, in order, in kcal/mol units.

    Lengths in A, energies in kcal/mol, other quantities in their own unit: the label scale is
    undone, so that losses of potentials with different scales can be compared.

    Returns:
        float64, shape [n_batches].
    """
    scale, quantity = potential.scale, potential.quantity
    data = FrameBatches(dataset, potential.cutoff, scale, potential.device, quantity=quantity)
    terms = {
        quantity.key if name == "energy" else name: term
        for name, term in recipe.loss.terms().items()
        if term.weight > 0
        and getattr(dataset, "energies" if name == "energy" else name) is not None
    }
    problem = EnergyForces(
        scale.constant,
        per_atom=recipe.labels.energy_per_atom,
        forces="forces" in terms,
        quantity=quantity,
    )
    objective = Objective(problem, terms)
    factor = scale.constant / (KCAL_PER_MOL if quantity.unit == "eV" else 1.0)
    losses = []
    for batch in data.in_order(batch_size):
        residuals = objective.residuals(potential, batch, training=False)
        total, _ = objective.reduce({name: r.detach() * factor for name, r in residuals.items()})
        losses.append(float(total))
    return np.array(losses)


def statistics(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Minimum, maximum, mean and (population) standard deviation."""
    found = np.asarray(values, dtype=np.float64)
    return {
        "min": float(found.min()),
        "max": float(found.max()),
        "mean": float(found.mean()),
        "std": float(found.std()),
    }


def _report(
    ensemble: Ensemble, dataset: AtomicDataset, folds: Folds, recipe: Recipe
) -> dict[str, Any]:
    rows = []
    members: list[Potential] = list(ensemble.members)  # type: ignore[arg-type]
    for number, potential in enumerate(members):
        held_out = dataset.subset(folds.parts[number])
        errors = evaluate_potential(potential, held_out).metrics
        losses = batch_losses(potential, held_out, recipe, recipe.training.batch_size or 32)
        rows.append({"fold": number + 1, "loss": statistics(losses), **errors})
    keys = [k for k, v in rows[0].items() if isinstance(v, float)]
    unit = "kcal/mol" if ensemble.quantity.unit == "eV" else ensemble.quantity.unit
    with_forces = "" if dataset.forces is None else ", forces in kcal/mol/A"
    report: dict[str, Any] = {
        "n_folds": len(rows),
        "n_frames_fold": [len(part) for part in folds.parts],
        "n_test": len(folds.test),
        "loss_unit": (f"({unit})^2" if recipe.loss.energy_loss == "l2" else unit) + with_forces,
        "spread_unit": unit + with_forces,
        "level_of_theory": dataset.info.level_of_theory,
        "dataset": dataset.info.to_dict(),
        "recipe": recipe.to_dict(),
        "folds": rows,
        "over_folds": {key: statistics([row[key] for row in rows]) for key in keys},
        "warnings": [
            f"fold {number}: {line}"
            for number, member in enumerate(members, 1)
            for line in member.metadata["training"].get("warnings", ())
        ],
    }  # fmt: skip
    if len(folds.test):
        test = dataset.subset(folds.test)
        report["test"] = evaluate_potential(ensemble, test).metrics  # type: ignore[arg-type]
        report["test_of_one"] = {
            key: float(np.mean([metrics[key] for metrics in each]))
            for each in [[evaluate_potential(p, test).metrics for p in members]]
            for key in keys
            if key in each[0]
        }
        report["spread"] = spread(ensemble, test)
    return report


def spread(ensemble: Ensemble, dataset: AtomicDataset, batch_size: int = 32) -> dict[str, Any]:
    """Standard deviations of an ensemble over a set of frames.

    Returns:
        Minimum, maximum, mean and std of ``"energy"`` (kcal/mol; another quantity by its name, in
        its unit) and of ``"forces_x"``, ``"forces_y"``, ``"forces_z"`` (kcal/mol/A), over frames
        or atoms.
    """
    from dcase.rescaling import LabelScale

    frames = FrameBatches(dataset, ensemble.cutoff, LabelScale(), ensemble.device)
    key = ensemble.quantity.key
    energy, forces = [], []
    for batch in frames.in_order(batch_size):
        result = ensemble(batch.graph, forces=dataset.forces is not None)
        energy.append(result[f"{key}_std"].cpu().numpy())
        if "forces_std" in result:
            forces.append(result["forces_std"].cpu().numpy())
    unit = KCAL_PER_MOL if ensemble.quantity.unit == "eV" else 1.0
    found = {key: statistics(np.concatenate(energy) / unit)}
    if forces:
        components = np.concatenate(forces) / KCAL_PER_MOL
        found |= {f"forces_{c}": statistics(components[:, n]) for n, c in enumerate("xyz")}
    return found
