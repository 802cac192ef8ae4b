"""Train a potential: dataset and recipe in, checkpoint out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits
from dcase.errors import DataError, OptionError, RunError
from dcase.files import check_writable, write_json
from dcase.objective import Objective, Term
from dcase.own_code import is_own
from dcase.potentials.create import create_potential
from dcase.potentials.fitting.batches import FrameBatches, RotatedFrames
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.fit_report import (
    TestFrames,
    errors_on,
    metadata_of,
    report_of,
    write_training_figure,
)
from dcase.potentials.fitting.lone_atoms import LoneAtoms, choose_e0s, settle
from dcase.potentials.fitting.recipe import FREE, Recipe
from dcase.potentials.kernels.forms import form_of_training, training_form
from dcase.potentials.networks.registry import find_architecture
from dcase.potentials.potential import Potential
from dcase.potentials.quantity import ENERGY, Quantity, quantity_of
from dcase.rescaling import LabelScale, fit_label_scale, fit_offsets, offset_energies
from dcase.runs import Identity, Place, claim
from dcase.training.budget import Seconds, now
from dcase.training.processes import Processes
from dcase.training.trainer import Progress, Trainer, TrainResult


@dataclass(frozen=True)
class FitResult:
    """What a training run left behind.

    Attributes:
        potential: With the best weights.
        path: The checkpoint.
        folder: Training state, metrics.csv, report.json and the picture.
        result: How the run ended.
        report: The content of report.json.
        figure: Name of the picture in the folder; None where there is none.
    """

    potential: Potential
    path: Path
    folder: Path
    result: TrainResult
    report: dict[str, Any]
    figure: str | None = None


def run_folder(out: Path) -> Path:
    """Where the side files of checkpoint ``out`` go: ``aspirin.pt`` -> ``aspirin.run``."""
    return out.with_suffix(".run")


def training_place(out: str | Path) -> Place:
    """What a training that writes the checkpoint ``out`` keeps, and where."""
    files = ("state.pt", "metrics.csv", "report.json", "training.png", "events.out.tfevents.*")
    return Place(run_folder(Path(out)), files, results=(Path(out),))


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
    tests: Mapping[str, TestFrames] | None = None,
    draw: bool = True,
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
        resume: Go on with the run in that folder, which must be this one (see
            :mod:`dcase.runs`); only the limits of its length may have changed.
        overwrite: Replace an existing run.
        device: Where to train.
        fabric: A launched Lightning Fabric for several processes.
        tensorboard: Also write TensorBoard events.
        tests: Frames to test on in the end, or their indices, by what they are; their errors go
            into the report, those of the first set as ``"test"``, others as ``"test_NAME"``.
        draw: Draw the validation errors (``training.png``).
        on_start: Called once with the potential and the trainer.
        on_step: Called after every step with the progress.

    Returns:
        The trained potential and where everything is.

    Raises:
        RunError: If there is a run and neither ``resume`` nor ``overwrite`` is given, nothing to
            resume, a run of other settings or data, or another process is at work there.
        DcaseError: If ``out`` or its folder cannot be written.
        DataError: If a label that the loss needs is missing.
        TrainingError: If training diverges.
    """
    out, place = Path(out), training_place(out)
    started, begun = time.time(), now()
    check_writable(out, [place.folder / "state.pt"], stream=False)
    whole = dataset
    dataset, quantity, terms = _labels(dataset, recipe)
    e0s = choose_e0s(recipe.labels.offset, dataset) if quantity.is_energy else None
    train = dataset.subset(splits.train)
    potential = _new_potential(train, dataset.elements, recipe, quantity, e0s).to(device)
    chosen = recipe.identity()
    chosen["model"]["hyper_parameters"] = potential.hyper_parameters  # all of them
    if is_own(recipe.model.architecture):
        chosen["model"]["architecture"] = potential.architecture
    identity = Identity(
        "train",
        {**chosen, "quantity": quantity.to_dict()},
        free=FREE,
        data={"frames": dataset.fingerprint(), "split": splits.hash()},
    )
    processes = Processes(fabric)
    # Made before anything is written or replaced: much of what can be wrong shows here.
    trainer = _trainer(
        potential, dataset, splits, recipe, terms, place.folder,
        begun=begun, fabric=fabric, on_step=on_step, tensorboard=tensorboard,
    )  # fmt: skip
    kernel = getattr(trainer.objective.problem, "kernel", None)
    form = form_of_training(potential, kernel, recipe.acceleration.compiled)

    def take() -> None:
        trainer.claimed = claim(
            place, identity, resume=resume, overwrite=overwrite, check=lambda _: _has_state(place)
        )

    processes.from_first(take)  # one process for all of them
    run = trainer.claimed
    with run or nullcontext():
        if on_start:
            on_start(potential, trainer)
        result = trainer.fit(resume=resume)
        potential.eval()
        if e0s is not None:
            settle(potential)
        elif _needs_constant(recipe, potential.scale) and result.status != "interrupted":
            _fit_constant(potential, dataset.subset(splits.train), dataset.elements)
        report = report_of(
            potential, dataset, splits, recipe, result,
            processes=trainer.world, started=started, form=form,
        )  # fmt: skip
        potential.metadata = metadata_of(dataset, splits, recipe, result, report)
        if e0s is not None:
            potential.metadata["isolated_atoms_eV"] = {
                chemical_symbols[z]: e for z, e in e0s.items()
            }
        figure = None
        if run is not None:
            if result.status != "interrupted":
                run.check(now=True)
                potential.save(out)
                write_json(place.folder / "report.json", report)
                figure = write_training_figure(place.folder, quantity) if draw else None
                if tests:
                    report |= errors_on(potential, recipe.loss.seen(whole), tests)
                    write_json(place.folder / "report.json", report)
            run.finish(result.status)
    return FitResult(potential, out, place.folder, result, report, figure)


def _labels(
    dataset: AtomicDataset, recipe: Recipe
) -> tuple[AtomicDataset, Quantity, dict[str, Term]]:
    """The frames with what is trained on, what that is, and the terms of the loss.

    Raises:
        DataError: If a label that the loss needs is missing.
    """
    dataset = recipe.loss.seen(dataset)
    quantity = quantity_of(dataset)
    if not quantity.is_energy:
        dataset = replace(dataset, forces=None, stress=None)
    terms = recipe.loss.terms()
    if dataset.energies is None and terms["energy"].weight > 0:
        raise DataError(
            "the dataset has no energies; set --energy-weight 0 to train on forces only"
        )
    if dataset.forces is None and terms["forces"].weight > 0:
        raise DataError(
            "the dataset has no forces; set --forces-weight 0 to train on energies only"
        )
    if dataset.stress is None and "stress" in terms:
        raise DataError("the dataset has no stress; set --stress-weight 0 to train without")
    there = {"energy": dataset.energies, "forces": dataset.forces, "stress": dataset.stress}
    return (
        dataset,
        quantity,
        {
            quantity.key if name == "energy" else name: term
            for name, term in terms.items()
            if there[name] is not None
        },
    )


def _new_potential(
    train: AtomicDataset,
    elements: list[int],
    recipe: Recipe,
    quantity: Quantity,
    e0s: dict[int, float] | None,
) -> Potential:
    """The untrained potential with the label scale of the training frames."""
    offset = recipe.labels.offset
    if e0s is not None:
        offset = "none"
        if train.energies is not None:
            train = replace(train, energies=train.energies - offset_energies(train, e0s))
    if train.energies is None or not quantity.linear:
        offset = "none"
    scale = fit_label_scale(
        train,
        rescale=recipe.labels.rescale,
        offset=offset,
        elements=elements,
        weights=None if offset == "none" else quantity.atom_weights(train),
    )
    if e0s is not None:
        scale = replace(scale, offsets=e0s, offset="isolated atoms")
    potential = untrained(recipe, elements)
    potential.set_scale(scale)
    potential.quantity = quantity
    return potential


def untrained(recipe: Recipe, elements: list[int]) -> Potential:
    """A potential of fresh weights, without a label scale, as a recipe says."""
    model = recipe.model
    return create_potential(
        model.architecture,
        elements=elements,
        size=model.size,
        activation=model.activation,
        variant=model.variant,
        placement=model.placement,
        denormalize=model.denormalize,
        seed=recipe.training.seed,
        **_hyper_parameters(recipe),
    )


def _has_state(place: Place) -> None:
    """Refuse to resume a run of which there is the result, but not the state to go on from."""
    out = place.results[0]
    if out.exists() and not (place.folder / "state.pt").exists():
        raise RunError(
            f"{place.folder} holds no training state to resume, and {out} exists; use --overwrite "
            "to start again, or --out for another name"
        )


def _trainer(
    potential: Potential,
    dataset: AtomicDataset,
    splits: Splits,
    recipe: Recipe,
    terms: dict[str, Term],
    folder: Path,
    *,
    begun: Seconds,
    **options: Any,
) -> Trainer:
    """The trainer of an untrained potential, whose weights it draws; ``options`` are passed on."""
    scale, quantity = potential.scale, potential.quantity

    def batches(indices: np.ndarray) -> FrameBatches:
        frames, place = dataset.subset(indices), (potential.cutoff, scale, potential.device)
        return FrameBatches(frames, *place, indices, quantity)

    data = batches(splits.train)
    if data.apart:
        raise DataError(data.apart)
    validation = batches(splits.val) if len(splits.val) else None
    _initialize(potential, data, recipe)
    problem = EnergyForces(
        scale.constant,
        per_atom=recipe.labels.energy_per_atom,
        forces="forces" in terms and terms["forces"].weight > 0,
        quantity=quantity,
        alone=LoneAtoms(tuple(potential.elements)) if scale.offset == "isolated atoms" else None,
        kernel=training_form(potential)[0] if recipe.acceleration.compiled else None,
        volume=_volume_of_an_atom(dataset.subset(splits.train), terms),
    )
    terms = {name: term for name, term in terms.items() if name in problem.display}
    return Trainer(
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
        prepared=now() - begun,
        evaluations=2,  # and for the report
        after=len(splits.train) if _needs_constant(recipe, scale) else 0,
        **options,
    )


def _volume_of_an_atom(train: AtomicDataset, terms: dict[str, Term]) -> float | None:
    """Median over the frames with a stress, A^3; None where no stress is trained on.

    Raises:
        DataError: If no training frame has a stress.
    """
    if "stress" not in terms:
        return None
    there = train.stressed
    if not there.any() or train.cells is None:
        raise DataError(
            "no training frame has a stress (it takes periodic ones); set --stress-weight 0 to "
            "train without"
        )
    volumes = np.abs(np.linalg.det(train.cells[there]))
    return float(np.median(volumes / train.n_atoms[there]))


def _hyper_parameters(recipe: Recipe) -> dict[str, Any]:
    """The model's own, and the filter table where the architecture has one."""
    found = dict(recipe.model.hyper_parameters)
    if "filter_knots" in find_architecture(recipe.model.architecture).hyper_parameters():
        found.setdefault("filter_knots", recipe.acceleration.filter_table)
    return found


def _needs_constant(recipe: Recipe, scale: LabelScale) -> bool:
    """Whether the energies' constant is fitted in the end."""
    return recipe.loss.energy_weight == 0 and scale.offset != "isolated atoms"


def _fit_constant(potential: Potential, train: AtomicDataset, elements: list[int]) -> None:
    """Shift the energies to those of the training frames, by a constant per element.

    Forces do not determine it. It is the least-squares one (:func:`dcase.rescaling.fit_offsets`).
    """
    if train.energies is None or not potential.quantity.is_energy:
        return
    pair = evaluate_potential(potential, replace(train, forces=None, stress=None)).energy
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
