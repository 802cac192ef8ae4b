"""Recipes of the SchNet report's tables, of the report's length, and the losses of their runs.

Runs are those of :mod:`dcase.potentials.experiments.runs`: a folder each, kept, gone on with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits
from dcase.files import atomic_path
from dcase.potentials.experiments.protocol import Setting
from dcase.potentials.experiments.report_published import RHO, TASKS, Size
from dcase.potentials.experiments.runs import LOSSES, Frames, Run, perform
from dcase.potentials.fitting.recipe import Recipe, load_recipe
from dcase.training.trainer import Progress
from dcase.units import ENERGY_UNITS, KCAL_PER_MOL

REPORT = "schnet-report"
"""The recipe that keeps to the report's protocol, but for the energy offset."""
TOTAL = "schnet-report-total"
"""The same without the offset: total energies are learned, as in the report. Only known here."""
KNOTS_PER_ANGSTROM = 20
"""Of the splines that the filters of the report's recipe are taken on. They change the filters by
5e-4 of their spread (the Gaussians are 0.1 A wide) and make a step 3 to 4 times faster."""
MOST_STEPS = 1_000_000  # of a run that only its time limit ends


@dataclass(frozen=True)
class Length:
    """How long runs are.

    Attributes:
        epochs: Of every run; None: as many steps as the report makes.
        time_limit: Seconds of training a run. Runs by other recipes than the report's then go on
            until it is up; the report's stop at its number of steps in any case.
        train: Training frames instead of the report's.
        test: Test frames instead of the report's.
        seed: Of splits, weights and orders.
    """

    epochs: int | None = None
    time_limit: float | None = None
    train: int | None = None
    test: int | None = None
    seed: int = 0


def base_recipe(name: str, values: Mapping[str, Any] | None = None) -> Recipe:
    """:func:`dcase.potentials.fitting.recipe.load_recipe`, which does not know :data:`TOTAL`.

    Raises:
        OptionError: As there.
    """
    if name != TOTAL:
        return load_recipe(name, values)
    return replace(load_recipe(REPORT, {**(values or {}), "labels.offset": "none"}), name=TOTAL)


def of_the_report(name: str) -> bool:
    """Whether a recipe is one of the report's."""
    return Path(name).stem in (REPORT, TOTAL)


def recipe_for(name: str, system: str) -> str:
    """``"default"`` is, for QM9, the recipe that ``dcase train qm9`` takes by default."""
    return "qm9" if (name, system) == ("default", "qm9") else name


def report_recipe(
    name: str,
    system: str,
    task: str,
    n_train: int,
    steps: int,
    length: Length,
    size: Size | None = None,
) -> Recipe:
    """The recipe of one run.

    Args:
        name: Of the recipe, or a file.
        system: What it is for, see :func:`recipe_for`.
        task: ``"energy"``, ``"forces"`` or ``"energy+forces"``: the other term has no weight.
        n_train: Training frames, on which the number of epochs depends.
        steps: The report's.
        length: What is to be otherwise.
        size: Blocks and features of a column of Table 1, and of the report's recipe Gaussians and
            range as well, instead of the recipe's.
    """
    name = recipe_for(name, system)
    base = base_recipe(name)
    batch = min(base.training.batch_size or n_train, n_train)
    if length.time_limit is not None and not of_the_report(name):
        steps = MOST_STEPS
    values: dict[str, Any] = {
        "training.epochs": length.epochs or math.ceil(steps / math.ceil(n_train / batch)),
        "training.time_limit": length.time_limit,
        "training.seed": length.seed,
    }
    if task == "energy":
        values |= {"loss.energy_weight": 1.0, "loss.forces_weight": 0.0}
    elif task == "forces":
        values |= {"loss.energy_weight": 0.0}
    if system == "qm9" and of_the_report(name):
        # The network's unit: kcal/mol as for MD17, whose files are in it, rather than Hartree.
        values["labels.rescale"] = KCAL_PER_MOL / ENERGY_UNITS["Hartree"]
    if size is not None:
        values |= {
            "model.num_interactions": size.blocks,
            "model.hidden_channels": size.features,
            "model.num_filters": size.features,
        }
        if of_the_report(name):  # other recipes keep their range
            values |= {"model.num_gaussians": size.gaussians, "model.cutoff": size.reach}
    if of_the_report(name):
        reach = size.reach if size else base.model.hyper_parameters["cutoff"]
        values["acceleration.filter_table"] = round(KNOTS_PER_ANGSTROM * reach)
    return base_recipe(name, values)


def plan_run(
    frames: Frames,
    splits: Splits,
    recipe_name: str,
    task: str,
    steps: int,
    length: Length,
    size: tuple[str, Size] | None = None,
) -> Run:
    """One run of a table; ``size``: a column of Table 1 with its name."""
    recipe = report_recipe(
        recipe_name, frames.system, task, len(splits.train), steps, length, size and size[1]
    )
    label = task if size is None else f"{task}-{size[0].lower()}"
    setting = Setting(Path(recipe_name).stem, recipe.name)
    return Run(recipe.model.architecture, setting, frames, splits, recipe, label)


def tasks_of(dataset: AtomicDataset) -> tuple[str, ...]:
    """What can be learned from a data set."""
    return TASKS if dataset.forces is not None else TASKS[:1]


def report_loss(metrics: Mapping[str, Any]) -> float | None:
    """The report's loss, ``0.01 (E - Ê)^2 + 1/n sum_i |F_i - F̂_i|^2``, mean over test frames.

    Args:
        metrics: From :func:`dcase.potentials.fitting.evaluation.evaluate_potential`, of frames with
            the same number of atoms (as of MD17's molecules and ISO17).

    Returns:
        In kcal/mol and kcal/mol/A, squared; None where a label is missing.
    """
    energy = metrics.get("energy_rmse_kcal_mol")
    forces = metrics.get("forces_rmse_kcal_mol_angstrom")
    if energy is None or forces is None:
        return None
    return RHO * energy**2 + 3.0 * forces**2


# ------------------------------------------------------------------------------------------------
# Losses step by step, for Figures 1 and 2


def losses_file(run: Run, folder: Path) -> Path:
    """Where the training losses of a run are: steps and losses in kcal/mol units, [n, 2]."""
    return folder / "runs" / run.name / LOSSES


def perform_recorded(
    run: Run,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    on_start: Callable[..., None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> dict[str, Any] | None:
    """:func:`dcase.potentials.experiments.runs.perform`, and the loss of every step in a file."""
    losses = StepLosses(losses_file(run, folder))
    factor = 1.0

    def start(potential: Any, trainer: Any) -> None:
        nonlocal factor
        power = 1 if run.recipe.loss.energy_loss == "l1" else 2
        factor = (potential.scale.constant / KCAL_PER_MOL) ** power
        # Else the steps before the state that a resume goes on from would be lost by a kill.
        trainer.before_save = losses.save
        if on_start:
            on_start(potential, trainer)

    def step(progress: Progress) -> None:
        losses.add(progress.step, progress.loss * factor)
        if on_step:
            on_step(progress)

    return perform(
        run, folder, device=device, on_start=start, on_step=step, on_diverged=losses.save
    )


class StepLosses:
    """The training loss of every step, kept beside the run.

    Args:
        path: ``.npy`` file; what an interrupted run left there is gone on with.
    """

    def __init__(self, path: Path):
        self.path = path
        self.values: list[tuple[float, float]] = []
        if path.exists():
            self.values = [(float(a), float(b)) for a, b in np.load(path)]

    def add(self, step: int, loss: float) -> None:
        """After a step; steps that a resumed run makes again replace what they were."""
        while self.values and self.values[-1][0] >= step:
            self.values.pop()
        self.values.append((float(step), loss))

    def save(self) -> None:
        """Write them, if there are any."""
        if self.values:
            with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
                np.save(file, np.array(self.values, dtype=np.float64))
