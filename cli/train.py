"""``dcase train``: potentials from MD17, OC22/OC20, or a user's own frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.launch import first_then_others, launch
from dcase.cli.options import POSITIVE, FrameCount, SectionedCommand, refuse_both, use_threads
from dcase.cli.progress import TrainingDisplay
from dcase.cli.show import error_table, results_console
from dcase.cli.structures import check_writable
from dcase.cli.train_options import chosen_recipe, training_options
from dcase.data.dataset import AtomicDataset
from dcase.data.splits import SplitFrames, Splits, elements_not_trained, split
from dcase.errors import DcaseError, OptionError
from dcase.potentials.evaluation import choose_device, evaluate_potential
from dcase.potentials.fit import FitResult, fit_potential, run_folder
from dcase.potentials.recipe import ModelChoice, Recipe
from dcase.potentials.registry import get_architecture

# Frames, split already where the dataset comes so.
Load = Callable[[Recipe, Callable[[str], None]], AtomicDataset | SplitFrames]

# Where a group of commands that read the same frames puts what it does with them (cross-validate).
RUNNER = "dcase.cli.train.runner"

# Of MD17's protocol; where a set has fewer frames, the same shares of them.
_MD17_FRAMES = (950, 50)
_SHARES = (0.95, 0.05)


@click.group()
def train() -> None:
    """Train a potential and write it as a checkpoint."""


@train.command(cls=SectionedCommand)
@training_options
@click.option(
    "--molecule",
    "-m",
    required=True,
    help="Name or abbreviation: aspirin, asp, salicylic acid, ...",
)
@click.option(
    "--source",
    default="auto",
    show_default=True,
    metavar="auto|md17|rmd17|xtb|FILE",
    help="Where the frames come from; a path is read as an MD17 or rMD17 .npz.",
)
@click.option(
    "--labels",
    type=click.Choice(["md17", "rmd17"]),
    default=None,
    help="Label set, where a file holds both.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False),
    default=None,
    help="Where downloads are kept; default: the user's cache folder.",
)
def md17(
    chosen: dict[str, Any], molecule: str, source: str, labels: str | None, data_dir: str | None
) -> None:
    """Train on a molecule of MD17 or rMD17; 950 frames to train and 50 to validate by default.

    The frames are taken from the cache or downloaded. Without a network the GFN2-xTB frames that
    ship with dcase are used, and a warning says so.
    """
    from dcase.data.md17 import load_md17
    from dcase.data.molecules import get_molecule

    name = get_molecule(molecule).name

    def load(recipe: Recipe, warn: Callable[[str], None]) -> AtomicDataset:
        seed = recipe.training.seed
        return load_md17(molecule, source, labels, cache_dir=data_dir, seed=seed, notify=warn)

    _train(load, chosen, name, _MD17_FRAMES)


@train.command(cls=SectionedCommand)
@training_options
@click.argument("file", type=click.Path())
@click.option("--energy-key", default=None, help="Key of the energy in the file.")
@click.option("--forces-key", default=None, help="Key of the forces in the file.")
def xyz(chosen: dict[str, Any], file: str, energy_key: str | None, forces_key: str | None) -> None:
    """Train on your own frames: extxyz, ASE .traj or .db, or anything that ASE reads.

    Energies in eV, forces in eV/A. Labels: --energy-key/--forces-key, else REF_energy/REF_forces,
    else energy/forces (also where ASE moved them into a calculator). A label that is missing in any
    frame is an error. By default 95 % of the frames train and 5 % validate.
    """
    from dcase.data.atoms_files import read_atoms

    def load(recipe: Recipe, warn: Callable[[str], None]) -> AtomicDataset:
        need = _labels_needed(recipe)
        return read_atoms(file, energy_key=energy_key, forces_key=forces_key, need=need)

    _train(load, chosen, Path(file).stem, _SHARES)


@train.command(cls=SectionedCommand)
@training_options
@click.option(
    "--source",
    required=True,
    metavar="DIR|FILE",
    help="A folder with train/ and, if they are there, val_id/ and val_ood/, each with .lmdb "
    "(S2EF, as published), .extxyz, .traj or .db files; or a folder of such files; or one of them.",
)
@click.option(
    "--n-test",
    type=FrameCount(),
    default=None,
    help="Out-of-domain test frames from val_ood/ (or test/): a number, or a fraction below 1; 0: "
    "none. Default: all, at most 25000. Also limits --test.",
)
@click.option(
    "--max-force",
    type=POSITIVE,
    default=50.0,
    show_default=True,
    help="Leave out training and validation frames with a larger force component, eV/A.",
)
@click.option(
    "--theory",
    default=None,
    metavar="TEXT",
    help="Level of theory of labels that bear no mark of OC22 or OC20; default: as file names say.",
)
def oc22(
    chosen: dict[str, Any],
    source: str,
    n_test: int | float | None,
    max_force: float,
    theory: str | None,
) -> None:
    """Train on OC22 or OC20 (structure to energy and forces).

    Of .lmdb files only the frames drawn are read, and nothing pickled in them is run. Validation
    frames come from val_id/ if it is there, else they are split off. If val_ood/ is there, errors
    on it are reported at the end. Forces on fixed atoms are left out (--no-free-atoms counts them).
    By default all frames train, at most 200000.
    """
    from dcase.data.oc22 import load_oc22

    def load(recipe: Recipe, warn: Callable[[str], None]) -> SplitFrames:
        return load_oc22(
            source,
            n_train=chosen["n_train"],
            n_val=chosen["n_val"],
            n_test=n_test,
            seed=recipe.training.seed,
            need=_labels_needed(recipe),
            max_force=max_force,
            theory=theory,
            test_rest=chosen["test_rest"],
            notify=warn,
        )

    _train(load, chosen, Path(source).resolve().stem, _SHARES)


def _labels_needed(recipe: Recipe) -> tuple[str, ...]:
    weights = {"energy": recipe.loss.energy_weight, "forces": recipe.loss.forces_weight}
    return tuple(name for name, weight in weights.items() if weight > 0)


def _train(load: Load, chosen: dict[str, Any], name: str, counts: tuple[float, float]) -> None:
    """Build recipe and split from the options, train, and print what came of it."""
    runner = click.get_current_context().meta.get(RUNNER)
    if runner is not None:
        runner(load, chosen, name, counts)
        return
    refuse_both(chosen["resume"], chosen["overwrite"])
    use_threads(chosen["threads"])
    recipe = chosen_recipe(chosen)
    out = Path(chosen["out"] or _default_name(name, recipe))
    device = choose_device(chosen["device"])
    beginning = _check_target(out, chosen["resume"])
    fabric = launch(chosen["devices"], chosen["num_nodes"], device.type)
    if fabric is not None:
        device = fabric.device
    first = fabric is None or fabric.global_rank == 0
    console = Console(stderr=True, quiet=not first, highlight=False, soft_wrap=True)
    if beginning and not chosen["quiet"]:
        console.print(beginning)

    def warn(line: str) -> None:
        console.print(f"WARNING: {line}", style="bold yellow", markup=False)

    try:
        loaded = first_then_others(fabric, lambda: load(recipe, warn))
        if isinstance(loaded, SplitFrames):
            frames = loaded
        else:
            splits = _split(loaded, chosen, counts, recipe)
            frames = SplitFrames(loaded, splits, "rest" if chosen["test_rest"] else "")
        dataset, splits = frames.dataset, frames.splits
        if not recipe.loss.free_atoms:
            dataset = dataset.without_fixed()
        unseen = elements_not_trained(dataset, splits)
        if unseen:
            warn(
                f"no training frame holds {', '.join(unseen)}: the potential knows them by a guess "
                "only (untrained weights, the mean energy per atom)"
            )
        outcome = _fit(dataset, splits, recipe, out, chosen, name, console, device, fabric)
    except DcaseError:
        if first:
            raise
        # It is raised in every process; one line is enough.
        raise click.exceptions.Exit(1) from None
    if first:
        _conclude(outcome, dataset, splits, frames.test_name)
    if outcome.result.status == "interrupted":
        raise click.exceptions.Exit(130)


def _default_name(name: str, recipe: Recipe) -> str:
    """``aspirin_irelu.pt``; another network than the default one is named as well."""
    model = get_architecture(recipe.model.architecture).name
    middle = [] if model == ModelChoice.architecture else [model]
    return "_".join([name, *middle, recipe.model.activation]) + ".pt"


def _check_target(out: Path, resume: bool) -> str:
    """Refuse an output that cannot be written, or a resume with nothing there, before any work.

    Returns:
        What the user should know of the beginning, or "".

    Raises:
        OptionError: If there is nothing to resume, or the name is that of its own side folder.
        DcaseError: If ``out`` cannot be written.
    """
    folder = run_folder(out)
    if out == folder:
        raise OptionError(f"--out {out}: .run is for the folder beside it; use another ending")
    check_writable(out)
    check_writable(folder / "state.pt")
    if not resume or (folder / "state.pt").exists():
        return ""
    if out.exists() or not folder.exists():
        raise OptionError(f"nothing to resume: there is no training state in {folder}")
    # Killed before its first save; a resume is what its user wants all the same.
    return f"{folder} holds no state yet: starting from the beginning"


def _split(
    dataset: AtomicDataset, chosen: dict[str, Any], counts: tuple[float, float], recipe: Recipe
) -> Splits:
    if chosen["n_train"] is None and chosen["n_val"] is None and sum(counts) > len(dataset):
        counts = _SHARES
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
    device: Any,
    fabric: Any,
) -> FitResult:
    """Train with a display of how it goes."""
    quiet = chosen["quiet"] or console.quiet
    display: TrainingDisplay | None = None

    def started(potential: Any, trainer: Any) -> None:
        nonlocal display
        if not quiet:
            limit = recipe.training.time_limit
            console.print(
                f"data    {dataset.info.name} {dataset.info.molecule or name}, labels "
                f"{dataset.info.level_of_theory}: {len(splits.train)} frames to train, "
                f"{len(splits.val)} to validate, of {len(dataset)}\n"
                f"model   {potential.describe()}, on {potential.device}\n"
                f"scale   C = {potential.scale.constant:.4g} eV ({potential.scale.rescale}), "
                f"energy offset: {potential.scale.offset}\n"
                f"recipe  {recipe.name}: {recipe.training.epochs} epochs of "
                f"{trainer.steps_per_epoch} steps" + (f", at most {limit:g} s" if limit else ""),
                markup=False,
            )
        display = TrainingDisplay(console, trainer.objective.problem.display, quiet=quiet)
        display.__enter__()

    try:
        return fit_potential(
            dataset,
            splits,
            recipe,
            out,
            resume=chosen["resume"],
            overwrite=chosen["overwrite"],
            device=device,
            fabric=fabric,
            tensorboard=chosen["tensorboard"],
            on_start=started,
            on_step=lambda p: display(p) if display else None,
        )
    finally:
        if display:
            display.__exit__(None, None, None)


def _conclude(outcome: FitResult, dataset: AtomicDataset, splits: Splits, test: str) -> None:
    """Print what came of it; on Ctrl-C, how to go on.

    Args:
        outcome: Of the training.
        dataset: All frames.
        splits: Which is which.
        test: What the test frames are; "": they are not to be evaluated.
    """
    from dcase.cli.curves import write_training_figure
    from dcase.files import write_json

    result = outcome.result
    if result.status == "interrupted":
        click.echo(
            f"stopped after epoch {result.epochs}; the state is saved in {outcome.folder}. "
            "The same command with --resume goes on.",
            err=True,
        )
        return
    console = results_console()
    figure = write_training_figure(outcome.folder)
    rows = {}
    if outcome.report["validation"]:
        rows[f"validation ({len(splits.val)})"] = outcome.report["validation"]
    if test and len(splits.test):
        errors = evaluate_potential(outcome.potential, dataset.subset(splits.test)).metrics
        outcome.report["test"] = {"set": test, **errors}
        write_json(outcome.folder / "report.json", outcome.report)
        what = "test" if test == "rest" else f"test, {test}"
        rows[f"{what} ({len(splits.test)})"] = errors
    if rows:
        console.print(error_table(rows, f"Mean absolute errors, {dataset.info.level_of_theory}"))
    console.print(
        f"{result.status} after {result.epochs} epochs, {result.steps} steps, "
        f"{result.elapsed:.0f} s\n"
        f"potential  {outcome.path}\n"
        f"run        {outcome.folder} (report.json, metrics.csv{', ' + figure if figure else ''})\n"
        f"next       dcase md --model {outcome.path}   |   dcase check {outcome.path}",
        markup=False,
        soft_wrap=True,
    )
