"""Train a potential: dataset and recipe in, checkpoint out."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dcase import checkpoint
from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits
from dcase.errors import DataError, OptionError
from dcase.files import check_writable, write_json
from dcase.objective import Objective
from dcase.potentials.create import create_potential
from dcase.potentials.fitting.batches import FrameBatches, RotatedFrames
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.recipe import Recipe
from dcase.potentials.networks.architecture import hook
from dcase.potentials.networks.registry import get_architecture
from dcase.potentials.potential import Potential
from dcase.potentials.quantity import ENERGY, quantity_of
from dcase.rescaling import fit_label_scale, fit_offsets
from dcase.training.trainer import Progress, Trainer, TrainResult


@dataclass(frozen=True)
class FitResult:
    """What a training run left behind.

    Attributes:
        potential: With the best weights.
        path: The checkpoint.
        folder: Training state, metrics.csv and report.json.
        result: How the run ended.
        report: The content of report.json.
    """

    potential: Potential
    path: Path
    folder: Path
    result: TrainResult
    report: dict[str, Any]


def run_folder(out: Path) -> Path:
    """Where the side files of checkpoint ``out`` go: ``aspirin.pt`` -> ``aspirin.run``."""
    return out.with_suffix(".run")


def fit_potential(
    dataset: AtomicDataset,
    splits: Splits,
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str | torch.device = "cpu",
    fabric: Any = None,
    tensorboard: bool = False,
    on_start: Callable[[Potential, Trainer], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Train a potential and write it to ``out``.

    Where only the forces are trained on, the energies' constant, which forces do not determine, is
    fitted to the training energies in the end.

    Args:
        dataset: All frames; what their ``energies`` are (``info.quantity``) decides what the
            potential predicts. It knows their elements, also those of frames that are not trained
            on (whose offset is then the mean energy per atom).
        splits: Which of them train, validate and test.
        recipe: Every choice of the run.
        out: The checkpoint to write; side files go to a folder of the same name with ``.run``.
        resume: Go on from the state in that folder, if there is one.
        overwrite: Replace an existing checkpoint.
        device: Where to train.
        fabric: A launched Lightning Fabric for several processes.
        tensorboard: Also write TensorBoard events.
        on_start: Called once with the potential and the trainer.
        on_step: Called after every step with the progress.

    Returns:
        The trained potential and where everything is.

    Raises:
        OptionError: If ``out`` exists and neither ``resume`` nor ``overwrite`` is given.
        DcaseError: If ``out`` or its folder cannot be written.
        DataError: If a label that the loss needs is missing.
        TrainingError: If training diverges.
    """
    out = Path(out)
    folder = run_folder(out)
    if not recipe.loss.free_atoms:
        dataset = dataset.without_fixed()
    if not (resume or overwrite) and (out.exists() or (folder / "state.pt").exists()):
        raise OptionError(
            f"{out if out.exists() else folder} exists; use --resume to go on, --overwrite to "
            "start again, or --out for another name"
        )
    if resume and not overwrite and out.exists() and not (folder / "state.pt").exists():
        raise OptionError(
            f"{folder} holds no training state to resume, and {out} exists; use --overwrite to "
            "start again, or --out for another name"
        )
    check_writable(out, [folder / "state.pt"], stream=False)
    quantity = quantity_of(dataset)
    if not quantity.is_energy:
        dataset = replace(dataset, forces=None)
    terms = recipe.loss.terms()
    if dataset.energies is None and terms["energy"].weight > 0:
        raise DataError(
            "the dataset has no energies; set --energy-weight 0 to train on forces only"
        )
    if dataset.forces is None and terms["forces"].weight > 0:
        raise DataError(
            "the dataset has no forces; set --forces-weight 0 to train on energies only"
        )
    terms = {
        quantity.key if name == "energy" else name: term
        for name, term in terms.items()
        if (dataset.energies if name == "energy" else dataset.forces) is not None
    }

    train = dataset.subset(splits.train)
    rescale, offset = recipe.labels.rescale, recipe.labels.offset
    if dataset.energies is None or not quantity.linear:
        offset = "none"
    weights = None if offset == "none" else quantity.atom_weights(train)
    scale = fit_label_scale(
        train, rescale=rescale, offset=offset, elements=dataset.elements, weights=weights
    )
    potential = create_potential(
        recipe.model.architecture,
        elements=dataset.elements,
        size=recipe.model.size,
        activation=recipe.model.activation,
        variant=recipe.model.variant,
        placement=recipe.model.placement,
        denormalize=recipe.model.denormalize,
        seed=recipe.training.seed,
        **_hyper_parameters(recipe),
    ).to(device)
    potential.set_scale(scale)
    potential.quantity = quantity

    data = FrameBatches(train, potential.cutoff, scale, device, splits.train, quantity)
    validation = None
    if len(splits.val):
        held_out = dataset.subset(splits.val)
        validation = FrameBatches(held_out, potential.cutoff, scale, device, splits.val, quantity)
    _initialize(potential, data, recipe)

    problem = EnergyForces(
        scale.constant,
        per_atom=recipe.labels.energy_per_atom,
        forces="forces" in terms and terms["forces"].weight > 0,
        quantity=quantity,
        kernel=training_kernel(potential) if recipe.acceleration.compiled else None,
    )
    if not problem.forces:
        terms.pop("forces", None)
    trainer = Trainer(
        potential,
        Objective(problem, terms),
        RotatedFrames(data, recipe.training.seed) if recipe.data.augment_rotations else data,
        validation,
        recipe.training,
        folder,
        identity={
            "dataset": dataset.fingerprint(),
            "split": splits.hash(),
            "architecture": potential.architecture,
            "hyper_parameters": potential.hyper_parameters,
            "scale": scale.to_dict(),
            "energy_per_atom": recipe.labels.energy_per_atom,
            "augment_rotations": recipe.data.augment_rotations,
            **({} if quantity == ENERGY else {"quantity": quantity.to_dict()}),
        },
        fabric=fabric,
        on_step=on_step,
        tensorboard=tensorboard,
    )
    if on_start:
        on_start(potential, trainer)
    started = time.time()
    result = trainer.fit(resume=resume)
    potential.eval()
    if recipe.loss.energy_weight == 0 and result.status != "interrupted":
        _fit_constant(potential, train, dataset.elements)

    report = _report(potential, dataset, splits, recipe, result, trainer, started)
    potential.metadata = {
        "dataset": {**dataset.info.to_dict(), "frames": len(dataset)},
        "split": {"n_train": len(splits.train), "n_val": len(splits.val), "hash": splits.hash()},
        "recipe": recipe.to_dict(),
        "training": {
            "status": result.status,
            "epochs": result.epochs,
            "steps": result.steps,
            "seconds": result.elapsed,
        },
        "metrics": report["validation"],
    }
    if trainer.rank == 0 and result.status != "interrupted":
        potential.save(out)
        write_json(folder / "report.json", report)
    return FitResult(potential, out, folder, result, report)


def _hyper_parameters(recipe: Recipe) -> dict[str, Any]:
    """The model's own, and the filter table where the architecture has one."""
    found = dict(recipe.model.hyper_parameters)
    if "filter_knots" in get_architecture(recipe.model.architecture).hyper_parameters():
        found.setdefault("filter_knots", recipe.acceleration.filter_table)
    return found


def training_kernel(potential: Potential) -> Any:
    """The compiled gradient that the architecture brings, or None."""
    make = get_architecture(potential.architecture).training_kernel
    return None if make is None else hook(make)(potential)


def _fit_constant(potential: Potential, train: AtomicDataset, elements: list[int]) -> None:
    """Shift the energies to those of the training frames, by a constant per element.

    Forces do not determine it. It is the least-squares one (:func:`dcase.rescaling.fit_offsets`).
    """
    if train.energies is None or not potential.quantity.is_energy:
        return
    pair = evaluate_potential(potential, replace(train, forces=None)).energy
    assert pair is not None
    missing = fit_offsets(replace(train, energies=pair[0] - pair[1]), "atomic", elements)
    offsets = potential.scale.offsets
    potential.set_scale(
        replace(potential.scale, offsets={z: offsets.get(z, 0.0) + e for z, e in missing.items()})
    )


def _initialize(potential: Potential, data: FrameBatches, recipe: Recipe) -> None:
    _draw(potential, data, recipe)
    # GemNet's scale factors are measured on its own initial weights, hence last.
    fit_scale_factors = getattr(potential.network, "fit_scale_factors", None)
    if fit_scale_factors is not None:
        graphs = [batch.graph for batch in islice(data.in_order(16), 16)]
        fit_scale_factors([(potential.species(g.numbers), g) for g in graphs])


def _draw(potential: Potential, data: FrameBatches, recipe: Recipe) -> None:
    """Weights that depend on the data."""
    if recipe.model.initialization == "default":
        return
    if recipe.model.initialization != "lsuv":
        raise OptionError(
            f"initialization must be default or lsuv, got {recipe.model.initialization!r}"
        )
    from dcase.initialization import lsuv_

    batch = data.batch(torch.arange(min(32, len(data))))
    lsuv_(potential.network, lambda: potential.atom_energies(batch.graph))


def _report(
    potential: Potential,
    dataset: AtomicDataset,
    splits: Splits,
    recipe: Recipe,
    result: TrainResult,
    trainer: Trainer,
    started: float,
) -> dict[str, Any]:
    """The content of report.json."""
    validation: dict[str, Any] = {}
    if len(splits.val) and result.status != "interrupted":  # Ctrl-C should not wait for this
        validation = evaluate_potential(potential, dataset.subset(splits.val)).metrics
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
        "best_epoch": result.best.get("epoch"),
        "validation": validation,
        "device": str(potential.device),
        "processes": trainer.world,
        "machine": platform.platform(),
        "started_unix": started,
        "versions": checkpoint.versions(),
    }
