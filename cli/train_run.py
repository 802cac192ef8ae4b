"""A training at the command line: recipe and split from the options, display, results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.forms import training_form_of
from dcase.cli.launch import first_then_others, launch
from dcase.cli.notices import Notices
from dcase.cli.options import limits_text, refuse_both, use_threads
from dcase.cli.progress import TrainingDisplay
from dcase.cli.show import error_table, errors_title, results_console
from dcase.cli.train_options import chosen_recipe
from dcase.cli.value_table import value_table
from dcase.data.dataset import AtomicDataset
from dcase.data.frames import UNKNOWN
from dcase.data.splits import SplitFrames, Splits, elements_not_trained, split
from dcase.errors import DcaseError, OptionError
from dcase.files import check_writable
from dcase.own_code import code_flags, is_own, short_name
from dcase.potentials.fitting.checked_frames import checked_frames
from dcase.potentials.fitting.evaluation import choose_device
from dcase.potentials.fitting.fit_potential import FitResult, fit_potential, training_place
from dcase.potentials.fitting.fit_report import TestFrames
from dcase.potentials.fitting.recipe import ModelChoice, Recipe, load_recipe
from dcase.potentials.networks.registry import find_architecture, get_architecture

# Frames, split already where the dataset comes so.
Load = Callable[[Recipe, Notices], AtomicDataset | SplitFrames]

# Where a group of commands that read the same frames puts what it does with them (cross-validate).
RUNNER = "dcase.cli.train.runner"

SHARES = (0.95, 0.05)
"""Of the frames, to train and to validate on, where nothing else is said."""


def run_training(
    load: Load, chosen: dict[str, Any], name: str, counts: tuple[float, float]
) -> None:
    """Build recipe and split from the options, train, and print what came of it."""
    runner = click.get_current_context().meta.get(RUNNER)
    if runner is not None:
        runner(load, chosen, name, counts)
        return
    refuse_both(chosen["resume"], chosen["overwrite"])
    use_threads(chosen["threads"])
    recipe = chosen_recipe(chosen)
    out = Path(chosen["out"] or default_name(name, recipe, chosen["recipe"]))
    device = choose_device(chosen["device"])
    beginning = _check_target(out, chosen["resume"])
    fabric = launch(chosen["devices"], chosen["num_nodes"], device.type)
    if fabric is not None:
        device = fabric.device
    first = fabric is None or fabric.global_rank == 0
    console = Console(stderr=True, quiet=not first, highlight=False, soft_wrap=True)
    if beginning and not chosen["quiet"]:
        console.print(beginning)

    notices = Notices(console, quiet=chosen["quiet"])
    try:
        loaded = first_then_others(fabric, lambda: load(recipe, notices))
        if isinstance(loaded, SplitFrames):
            frames = loaded
        else:
            splits = split_of(loaded, chosen, counts, recipe)
            frames = SplitFrames(loaded, splits, "rest" if chosen["test_rest"] else "")
        frames = prepared(frames, recipe, notices)
        dataset, splits = recipe.loss.seen(frames.dataset), frames.splits
        unseen = elements_not_trained(dataset, splits)
        if unseen:
            notices(
                f"no training frame holds {', '.join(unseen)}: the potential knows them by a guess "
                "only (untrained weights, the mean energy per atom)"
            )
        tests: dict[str, TestFrames] = {}
        if frames.test_name and len(splits.test):
            tests[frames.test_name] = splits.test
        tests |= frames.further
        options = {"device": device, "fabric": fabric, "tests": tests}
        outcome = _fit(dataset, splits, recipe, out, chosen, name, console, **options)
    except DcaseError:
        if first:
            raise
        # It is raised in every process; one line is enough.
        raise click.exceptions.Exit(1) from None
    if first:
        _conclude(outcome, notices, tests)
    if outcome.result.status == "interrupted":
        raise click.exceptions.Exit(130)


def prepared(frames: SplitFrames, recipe: Recipe, notices: Notices) -> SplitFrames:
    """What is left of the frames when their labels have been looked at; says what was found."""
    labels = {
        "energies": (frames.dataset.energies, recipe.loss.energy_weight > 0),
        "forces": (frames.dataset.forces, recipe.loss.forces_weight > 0),
        "stress": (frames.dataset.stress, recipe.loss.stress_weight > 0),
    }
    idle = [name for name, (there, used) in labels.items() if there is not None and not used]
    if idle:
        hint = " (--stress-weight, --recipe materials)" if "stress" in idle else ""
        notices.note(f"{' and '.join(idle)}: in the data, not trained on{hint}")
    left, _ = checked_frames(frames, recipe.data, notices)
    return left


def described(dataset: AtomicDataset, name: str) -> str:
    """Data set, molecule and labels in a few words."""
    theory = dataset.info.level_of_theory
    labels = "" if theory == UNKNOWN else f", labels {theory}"
    return f"{dataset.info.name} {dataset.info.molecule or name}{labels}"


def default_name(name: str, recipe: Recipe, base: str, *ending: str) -> str:
    """``aspirin_irelu.pt``; another network than that of the recipe chosen is named as well.

    Args:
        name: Of the molecule or file.
        recipe: With the options on top.
        base: The recipe chosen, without them.
        ending: Further words.
    """
    model = _name(recipe)
    middle = [] if model == load_recipe(base).model.architecture else [short_name(model)]
    activation = [short_name(recipe.model.activation)]
    if is_own(model) and "activation" not in find_architecture(model).hyper_parameters():
        activation = []
    return "_".join([name, *middle, *activation, *ending]) + ".pt"


def _name(recipe: Recipe) -> str:
    """Of the architecture; of one of the user's own as the recipe has it."""
    name = recipe.model.architecture
    return name if is_own(name) else get_architecture(name).name


def _check_target(out: Path, resume: bool) -> str:
    """Refuse an output that cannot be written, before any work.

    Returns:
        What the user should know of the beginning, or "".

    Raises:
        OptionError: If the name is that of its own side folder.
        DcaseError: If ``out`` cannot be written.
    """
    place = training_place(out)
    if out == place.folder:
        raise OptionError(f"--out {out}: .run is for the folder beside it; use another ending")
    state = place.folder / "state.pt"
    check_writable(out, [state], stream=False)
    if resume and place.resumable() and not (state.exists() or out.exists()):
        # Killed before its first save; a resume is what its user wants all the same.
        return f"{place.folder} holds no state yet: starting from the beginning"
    return ""


def split_of(
    dataset: AtomicDataset, chosen: dict[str, Any], counts: tuple[float, float], recipe: Recipe
) -> Splits:
    """The frames to train and to validate on as the options say, drawn by the recipe's seed."""
    if chosen["n_train"] is None and chosen["n_val"] is None and sum(counts) > len(dataset):
        counts = SHARES
    n_train, n_val = (
        default if chosen[key] is None else chosen[key]
        for key, default in zip(("n_train", "n_val"), counts, strict=True)
    )
    return split(len(dataset), n_train, n_val, recipe.training.seed)


def _fit(
    dataset: AtomicDataset,
    splits: Splits,
    recipe: Recipe,
    out: Path,
    chosen: dict[str, Any],
    name: str,
    console: Console,
    **options: Any,
) -> FitResult:
    """Train with a display of how it goes; ``options`` are passed on."""
    quiet = chosen["quiet"] or console.quiet
    display: TrainingDisplay | None = None

    def started(potential: Any, trainer: Any) -> None:
        nonlocal display
        if not quiet:
            console.print(
                f"data    {described(dataset, name)}: {len(splits.train)} frames to train, "
                f"{len(splits.val)} to validate, of {len(dataset)}\n"
                f"model   {potential.describe()}, on {potential.device}\n"
                f"scale   C = {potential.scale.constant:.4g} {potential.quantity.unit} "
                f"({potential.scale.rescale}), offset: {potential.scale.offset}\n"
                f"recipe  {recipe.name}: {recipe.training.epochs} epochs of "
                f"{trainer.steps_per_epoch} steps{limits_text(recipe.training)}\n"
                + (f"why     {recipe.description}\n" if chosen["model"] is None else "")
                + training_form_of(
                    potential, trainer.objective.problem.kernel, recipe.acceleration.compiled
                ),
                markup=False,
            )
        display = TrainingDisplay(
            console,
            trainer.objective.problem.display,
            quiet=quiet,
            advice=_cheaper(recipe),
        )
        display.__enter__()

    try:
        return fit_potential(
            dataset,
            splits,
            recipe,
            out,
            resume=chosen["resume"],
            overwrite=chosen["overwrite"],
            tensorboard=chosen["tensorboard"],
            on_start=started,
            on_step=lambda p: display(p) if display else None,
            **options,
        )
    finally:
        if display:
            display.__exit__(None, None, None)


def _cheaper(recipe: Recipe) -> str:
    """What makes a step cheaper."""
    default = ModelChoice.architecture
    name = _name(recipe)
    if is_own(name):
        return ""
    other = name != default
    ways = ["a smaller --size"] * (recipe.model.size != "tiny") + [f"--model {default}"] * other
    return " or ".join(ways)


def _conclude(outcome: FitResult, notices: Notices, tests: Mapping[str, TestFrames]) -> None:
    """Print what came of it; on Ctrl-C, how to go on.

    Args:
        outcome: Of the training.
        notices: Takes what speaks against the result.
        tests: As of the training.
    """
    result, report = outcome.result, outcome.report
    if result.status == "interrupted":
        click.echo(
            f"stopped after epoch {result.epochs}; the state is saved in {outcome.folder}. "
            "The same command with --resume goes on.",
            err=True,
        )
        return
    for line in report["warnings"]:
        notices(line)
    console = results_console()
    found = report["validation"]
    rows = {f"validation ({found['n_frames']})": found} if found else {}
    sets = {errors["set"]: errors for key, errors in report.items() if key.startswith("test")}
    for name, frames in tests.items():
        what = "test" if name == "rest" else f"test, {name}"
        rows[f"{what} ({len(frames)})"] = sets[name]
    if rows:
        title = errors_title(report["level_of_theory"])
        energy = outcome.potential.quantity.is_energy
        console.print(
            error_table(rows, title) if energy else value_table(rows, outcome.potential.quantity)
        )
    files = ", ".join(filter(None, ("report.json", "metrics.csv", outcome.figure)))
    console.print(
        f"{result.status} after {result.epochs} epochs, {result.steps} steps, "
        f"{result.elapsed:.0f} s, {result.cpu:.0f} CPU s\n"
        f"potential  {outcome.path}\n"
        f"run        {outcome.folder} ({files})\n" + _next(outcome),
        markup=False,
        soft_wrap=True,
    )


def _next(outcome: FitResult) -> str:
    """What to do with the potential."""
    if not outcome.potential.quantity.is_energy:
        return f"next       dcase info {outcome.path}"
    code = code_flags(outcome.potential.to_document())
    return (
        f"next       dcase md --model {outcome.path}{code}   |   dcase check {outcome.path}{code}"
    )
