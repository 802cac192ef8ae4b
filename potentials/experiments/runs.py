"""One training run after another, each in a folder of its own, none of them made twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits
from dcase.errors import DcaseError, DivergedError
from dcase.files import atomic_path, write_json
from dcase.locks import only_writer
from dcase.potentials.experiments.protocol import Protocol, Setting
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.fit_potential import fit_potential, training_place
from dcase.potentials.fitting.recipe import Recipe
from dcase.training.trainer import Progress
from dcase.units import KCAL_PER_MOL

RESULT, SPLIT, LOSSES = "result.json", "split.npz", "losses.npy"
"""Files of a run beside its potential; the last only for figures that show the loss of steps."""


@dataclass(frozen=True)
class Frames:
    """The frames of one system.

    Attributes:
        system: Molecule, or ``"oc22"``.
        dataset: To train on, validate on, and test on where there is no ``test``.
        test: Test frames from another file, or None.
        splits: A split that comes with the data; None: the protocol's.
        test_name: What the test frames are, where that needs saying.
    """

    system: str
    dataset: AtomicDataset
    test: AtomicDataset | None = None
    splits: Splits | None = None
    test_name: str = ""


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        model: Registry name.
        setting: Which switches are on.
        frames: What it learns from.
        splits: Which of the frames are used for what.
        recipe: Everything else.
        label: What distinguishes it within a figure (``"beta=10"``), or ``""``.
    """

    model: str
    setting: Setting
    frames: Frames
    splits: Splits
    recipe: Recipe
    label: str = ""

    @cached_property  # it reads every frame
    def identity(self) -> str:
        """Digest of all that determines the result, but the machine."""
        plain = Recipe().to_dict()
        # What is at its default stays out: an option added later does not make runs strangers.
        recipe = {
            table: {key: value for key, value in entries.items() if value != plain[table][key]}
            for table, entries in self.recipe.to_dict().items()
            if isinstance(entries, dict)
        }
        test = self.frames.test
        content = {
            "recipe": recipe,
            "frames": self.frames.dataset.fingerprint(),
            "split": self.splits.hash(),
            "test": None if test is None else test.fingerprint(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Folder name: readable, and of its own for every protocol."""
        parts = [self.frames.system, self.model, self.setting.name]
        if self.label:
            parts.append(self.label.replace("=", ""))
        return "_".join([*parts, self.identity[:8]]).replace("+", "p")


def plan(
    protocol: Protocol,
    frames: Frames,
    model: str,
    setting: Setting,
    *,
    forces_weight: float | None = None,
    n_train: int | None = None,
    label: str = "",
) -> Run:
    """A run with its split (that of the frames, where they have one) and its recipe."""
    splits = frames.splits or protocol.split(
        len(frames.dataset), own_test=frames.test is not None, n_train=n_train
    )
    recipe = protocol.recipe_of(
        model,
        setting,
        len(splits.train),
        forces_weight=forces_weight,
        oc22=frames.system == "oc22",
    )
    return Run(model, setting, frames, splits, recipe, label)


def result_of(run: Run, folder: Path) -> dict[str, Any] | None:
    """What an earlier sitting left, or None."""
    path = folder / "runs" / run.name / RESULT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("identity") != run.identity:
            raise ValueError("it is not of this run")
        if not isinstance(found.get("metrics"), dict) or "status" not in found:
            raise ValueError("it is not complete")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DcaseError(f"{path} is damaged ({error}); delete it to make the run again") from error


def perform(
    run: Run,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    on_start: Callable[..., None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_diverged: Callable[[], None] | None = None,
) -> dict[str, Any] | None:
    """Train and test, or go on where an earlier sitting stopped, or return what it found.

    A run whose loss becomes NaN is a result as well: its errors are NaN.

    Args:
        run: What to do.
        folder: Of the experiment; the run gets ``runs/NAME`` in it.
        device: Where to train.
        on_start: Passed to :func:`dcase.potentials.fitting.fit_potential.fit_potential`.
        on_step: The same.
        on_diverged: Called if the loss became NaN, before that is written down as the result.

    Returns:
        The content of ``result.json``, or None if it was interrupted.
    """
    found = result_of(run, folder)
    if found is not None:
        return found
    place = folder / "runs" / run.name
    with only_maker(place):
        return _train_and_test(run, place, device, on_start, on_step, on_diverged)


@contextmanager
def only_maker(place: Path) -> Iterator[None]:
    """Be the only process that makes the run in a folder; what kills have left of its files goes.

    Raises:
        RunError: If another process is making it, or the folder cannot be written to.
    """
    with only_writer(place / RESULT, beside=[place / SPLIT, place / LOSSES]):
        yield


def _train_and_test(
    run: Run,
    place: Path,
    device: str | torch.device,
    on_start: Callable[..., None] | None,
    on_step: Callable[[Progress], None] | None,
    on_diverged: Callable[[], None] | None,
) -> dict[str, Any] | None:
    out = place / "potential.pt"
    result: dict[str, Any] = {
        "name": run.name,
        "system": run.frames.system,
        "model": run.model,
        "setting": run.setting.name,
        "label": run.label,
        "identity": run.identity,
        "n_train": len(run.splits.train),
        "n_val": len(run.splits.val),
        "recipe": run.recipe.to_dict(),
        "test_name": run.frames.test_name,
        "level_of_theory": run.frames.dataset.info.level_of_theory,
    }
    tested = run.frames.test or run.frames.dataset.subset(run.splits.test)
    result["n_test"] = len(tested)
    resume = training_place(out).resumable()
    try:
        fitted = fit_potential(
            run.frames.dataset,
            run.splits,
            run.recipe,
            out,
            resume=resume,
            overwrite=not resume,
            device=device,
            draw=False,
            on_start=on_start,
            on_step=on_step,
        )
    except DivergedError as error:
        result |= {"status": "NaN", "reason": str(error), "metrics": {}}
        if on_diverged:
            on_diverged()
    else:
        if fitted.result.status == "interrupted":
            return None
        result |= {
            "status": fitted.result.status,
            "parameters": sum(p.numel() for p in fitted.potential.parameters()),
            "epochs": fitted.result.epochs,
            "steps": fitted.result.steps,
            "seconds": fitted.result.elapsed,
            "best_epoch": fitted.result.best.get("epoch"),
            "label_constant_eV": fitted.potential.scale.constant,
            "metrics": evaluate_potential(fitted.potential, tested).metrics,
            "device": str(fitted.potential.device),
        }
    _save_split(run.splits, place / SPLIT)
    write_json(place / RESULT, result)
    return result


def trivial_errors(run: Run) -> dict[str, float]:
    """Errors of predicting the mean training energy and no force, kcal/mol and kcal/mol/A (MAE).

    Any model worse than this has learned nothing of the quantity. Where compositions differ, the
    energy is the least-squares sum of atomic energies.
    """
    from dcase.rescaling import fit_offsets, offset_energies

    train = run.frames.dataset.subset(run.splits.train)
    tested = run.frames.test or run.frames.dataset.subset(run.splits.test)
    errors = {}
    if train.energies is not None and tested.energies is not None:
        guess = offset_energies(tested, fit_offsets(train, "atomic"))
        errors["energy"] = float(np.abs(tested.energies - guess).mean() / KCAL_PER_MOL)
    if tested.forces is not None:
        errors["forces"] = float(np.abs(tested.free_components(tested.forces)).mean())
        errors["forces"] /= KCAL_PER_MOL
    return errors


def _save_split(splits: Splits, path: Path) -> None:
    """Which frames were used for what, for anyone who wants to repeat it elsewhere."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, train=splits.train, val=splits.val, test=splits.test)
