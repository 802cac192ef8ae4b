"""The ensemble of a round: members that differ by their weights and by what they validate on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import split
from dcase.errors import DataError
from dcase.md_runs.active.folder import RoundFolder
from dcase.md_runs.active.sampling import MEMBER
from dcase.md_runs.active.settings import ActiveSettings
from dcase.potentials.ensemble import Ensemble, load_model
from dcase.potentials.fitting.fold_processes import Job, run_jobs
from dcase.potentials.fitting.recipe import Recipe
from dcase.potentials.potential import load_potential
from dcase.training.settings import TrainSettings


def train_ensemble(
    dataset: AtomicDataset,
    recipe: Recipe,
    settings: ActiveSettings,
    round_number: int,
    folder: RoundFolder,
    *,
    jobs: int = 1,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Ensemble:
    """Train all members, or those that are not there yet, and save them as one ensemble.

    Each member validates on another random part of the frames, starts from other weights and takes
    the training frames in another order. Nothing is carried over from the round before: members
    that start from the same weights would agree where they have no reason to.

    Args:
        dataset: All labelled frames.
        recipe: Of every member; its seed is replaced.
        settings: Members, share to validate on, seed.
        round_number: For the seeds.
        folder: Of the round.
        jobs: Members trained at a time, in processes of one thread each.
        device: Where to train.
        progress: Called with steps done and in all, over all members.

    Raises:
        KeyboardInterrupt: On Ctrl-C; the states of the members at work are saved.
        DataError: If there are too few frames.
        TrainingError: If training diverges.
    """
    if folder.ensemble.exists():
        return load_ensemble(folder, device)
    if len(dataset) < 2:
        raise DataError("active learning needs at least 2 labelled frames to start from")
    n_val = round(settings.validation * len(dataset))
    if settings.validation > 0.0:
        n_val = max(1, n_val)
    training = training_for(recipe.training, settings.training_steps, len(dataset) - n_val)
    tasks = []
    for number in range(settings.members):
        seed = settings.seed_of(MEMBER, round_number, number)
        tasks.append(
            Job(
                number=number,
                dataset=dataset,
                splits=split(len(dataset), len(dataset) - n_val, n_val, seed),
                recipe=replace(recipe, training=replace(training, seed=seed)),
                out=folder.members / f"member-{number}.pt",
                resume=True,
                device=device,
            )
        )
    steps: dict[int, tuple[int, int]] = {}

    def on_step(number: int, state: Any) -> None:
        steps[number] = (state.step, state.steps)
        if progress is not None:
            each = max(total for _, total in steps.values())
            behind = settings.members - len(todo)
            progress(behind * each + sum(s for s, _ in steps.values()), settings.members * each)

    todo = [job for job in tasks if not job.finished()]
    if not run_jobs(todo, jobs, on_step=on_step):
        raise KeyboardInterrupt
    ensemble = Ensemble([load_potential(job.out) for job in tasks])
    ensemble.metadata["dataset"] = {**dataset.info.to_dict(), "frames": len(dataset)}
    ensemble.metadata["electrons"] = dataset.electrons()
    ensemble.metadata["active_learning"] = {
        "round": round_number,
        "labels": len(dataset),
        "strategy": settings.strategy,
    }
    ensemble.save(folder.ensemble)
    return load_ensemble(folder, device)


def training_for(training: TrainSettings, steps: int | None, n_train: int) -> TrainSettings:
    """The recipe's training, of so many steps if they are given, validated at its end only.

    The weights with the smallest loss on a handful of frames, out of a hundred epochs, are those
    that happen to suit the oddest of these frames, often from an early epoch; the last weights of a
    schedule that has run out are good. Recipes whose schedule or early stopping needs validations
    keep theirs.

    Args:
        training: Of the recipe.
        steps: Optimizer steps, to the nearest epoch; None: the recipe's epochs.
        n_train: Training frames.
    """
    if steps is not None:
        batch = training.batch_size or n_train
        training = replace(training, epochs=max(1, round(steps / -(-n_train // batch))))
    if training.schedule == "plateau" or training.early_stopping:
        return training
    return replace(training, validate_every=training.epochs)


def load_ensemble(folder: RoundFolder, device: str = "cpu") -> Ensemble:
    """The ensemble of a round as it is in its file.

    Raises:
        CheckpointError: If it cannot be read.
    """
    ensemble = load_model(folder.ensemble)
    assert isinstance(ensemble, Ensemble)
    return ensemble.to(device).eval()
