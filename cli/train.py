"""``dcase train``: potentials from MD17 or from a user's own frames."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.options import (
    dataclass_options,
    device_option,
    hyper_parameter_options,
    threads_option,
    use_threads,
)
from dcase.cli.progress import TrainingDisplay
from dcase.cli.show import error_table
from dcase.data.dataset import AtomicDataset
from dcase.data.splits import split
from dcase.errors import OptionError
from dcase.potentials.evaluation import choose_device, evaluate_potential
from dcase.potentials.fit import FitResult, fit_potential
from dcase.potentials.recipe import (
    Acceleration,
    LabelChoice,
    LossChoice,
    ModelChoice,
    load_recipe,
    recipe_names,
)
from dcase.training.settings import TrainSettings

# Tables of the recipe whose entries are options of the same name.
_SETTINGS = {
    "labels": LabelChoice,
    "loss": LossChoice,
    "training": TrainSettings,
    "acceleration": Acceleration,
}


@click.group()
def train() -> None:
    """Train a potential and write it as a checkpoint."""


def training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Everything but the data; the command gets it as ``chosen: dict``."""

    @functools.wraps(function)
    def wrapper(**given: Any) -> Any:
        own = {name: given.pop(name) for name in list(given) if name in data_options}
        return function(chosen=given, **own)

    data_options = {p.name for p in getattr(function, "__click_params__", [])}
    decorators = [
        click.option(
            "--out",
            type=click.Path(dir_okay=False),
            default=None,
            help="Checkpoint to write; default: <molecule>_<activation>.pt.",
        ),
        click.option(
            "--recipe",
            default="default",
            show_default=True,
            metavar="NAME|FILE",
            help=f"A recipe ({', '.join(recipe_names())}) or a .toml file.",
        ),
        click.option("--model", default=None, help="Architecture."),
        click.option("--size", default=None, help="Size preset of the architecture."),
        click.option("--activation", default=None, help="Activation function."),
        click.option("--initialization", default=None, help="default or lsuv."),
        hyper_parameter_options,
        click.option(
            "--n-train",
            type=float,
            default=None,
            help="Training frames (a number, or a fraction below 1).",
        ),
        click.option(
            "--n-val",
            type=float,
            default=None,
            help="Validation frames (a number, or a fraction below 1).",
        ),
        click.option(
            "--test",
            "test_rest",
            is_flag=True,
            help="Also evaluate on all frames that were not trained on.",
        ),
        *(dataclass_options(cls) for cls in _SETTINGS.values()),
        click.option("--resume", is_flag=True, help="Go on from the last saved state."),
        click.option("--overwrite", is_flag=True, help="Replace an earlier run of this name."),
        device_option,
        threads_option,
        click.option(
            "--devices",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Processes on each node (GPUs, or CPU processes).",
        ),
        click.option(
            "--num-nodes",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Nodes, when started on each of them by torchrun.",
        ),
        click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events."),
        click.option("--quiet", "-q", is_flag=True, help="Print the result only."),
    ]
    for decorator in reversed(decorators):
        wrapper = decorator(wrapper)
    return wrapper


@train.command()
@training_options
@click.option("--molecule", "-m", required=True, help="Name or abbreviation (aspirin, asp, ...).")
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
    """Train on a molecule of MD17 or rMD17.

    Without a network the GFN2-xTB frames that ship with dcase are used, and a warning says so.
    """
    from dcase.data.md17 import load_md17
    from dcase.data.molecules import get_molecule

    console = Console(stderr=True)
    dataset = load_md17(
        molecule,
        source,
        labels,
        cache_dir=data_dir,
        seed=chosen["seed"] or 0,
        notify=lambda line: console.print(
            f"WARNING: {line}", style="bold yellow", soft_wrap=True, highlight=False
        ),
    )
    _train(dataset, chosen, get_molecule(molecule).name, (950, 50))


@train.command()
@training_options
@click.argument("file", type=click.Path())
@click.option("--energy-key", default=None, help="Key of the energy in the file.")
@click.option("--forces-key", default=None, help="Key of the forces in the file.")
def xyz(chosen: dict[str, Any], file: str, energy_key: str | None, forces_key: str | None) -> None:
    """Train on your own frames: extxyz, ASE .traj or .db, or anything that ASE reads.

    Labels: --energy-key/--forces-key, else REF_energy/REF_forces, else energy/forces (also where
    ASE moved them into a calculator). A label that is missing in any frame is an error.
    """
    from dcase.data.atoms_files import read_atoms

    recipe = load_recipe(
        chosen["recipe"],
        {
            "loss.energy_weight": chosen["energy_weight"],
            "loss.forces_weight": chosen["forces_weight"],
        },
    )
    need = [
        name
        for name, weight in (
            ("energy", recipe.loss.energy_weight),
            ("forces", recipe.loss.forces_weight),
        )
        if weight > 0
    ]
    dataset = read_atoms(file, energy_key=energy_key, forces_key=forces_key, need=tuple(need))
    _train(dataset, chosen, Path(file).stem, (0.9, 0.1))


def _train(
    dataset: AtomicDataset, chosen: dict[str, Any], name: str, counts: tuple[float, float]
) -> None:
    """Build recipe and split from the options, train, and print what came of it."""
    use_threads(chosen["threads"])
    quiet = chosen["quiet"]
    recipe = load_recipe(chosen["recipe"], _overrides(chosen))
    n_train = _count(chosen["n_train"], counts[0])
    n_val = _count(chosen["n_val"], counts[1])
    splits = split(len(dataset), n_train, n_val, recipe.training.seed)
    out = Path(chosen["out"] or f"{name}_{recipe.model.activation}.pt")

    fabric = None
    device = choose_device(chosen["device"])
    processes = chosen["devices"] * chosen["num_nodes"]
    if processes > 1:
        fabric = _launch(chosen["devices"], chosen["num_nodes"], device.type)
        device = fabric.device
    first = fabric is None or fabric.global_rank == 0
    console = Console(stderr=True, quiet=not first)

    display: TrainingDisplay | None = None

    def started(potential: Any, trainer: Any) -> None:
        nonlocal display
        if not quiet:
            console.print(
                f"data    {dataset.info.name} {dataset.info.molecule or name}, labels "
                f"{dataset.info.level_of_theory}: {len(splits.train)} frames to train, "
                f"{len(splits.val)} to validate, of {len(dataset)}\n"
                f"model   {potential.describe()}, on {potential.device}\n"
                f"scale   C = {potential.scale.constant:.4g} eV ({potential.scale.rescale}), "
                f"energy offset: {potential.scale.offset}\n"
                f"recipe  {recipe.name}: {recipe.training.epochs} epochs of "
                f"{trainer.steps_per_epoch} steps"
                + (
                    f", at most {recipe.training.time_limit:g} s"
                    if recipe.training.time_limit
                    else ""
                ),
                highlight=False,
                soft_wrap=True,
            )
        display = TrainingDisplay(
            console, trainer.objective.problem.display, quiet=quiet or not first
        )
        display.__enter__()

    try:
        outcome = fit_potential(
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
    if first:
        _conclude(outcome, dataset, splits, chosen["test_rest"])


def _conclude(outcome: FitResult, dataset: AtomicDataset, splits: Any, test_rest: bool) -> None:
    from dcase.cli.curves import write_training_figure
    from dcase.files import write_json

    console = Console()
    result = outcome.result
    if result.status == "interrupted":
        console.print(
            f"stopped after epoch {result.epochs}; the state is saved in {outcome.folder}. "
            "The same command with --resume goes on.",
            soft_wrap=True,
            highlight=False,
        )
        raise click.exceptions.Exit(130)
    figure = write_training_figure(outcome.folder)
    rows = {}
    if outcome.report["validation"]:
        rows[f"validation ({len(splits.val)})"] = outcome.report["validation"]
    if test_rest and len(splits.test):
        test = evaluate_potential(outcome.potential, dataset.subset(splits.test)).metrics
        outcome.report["test"] = test
        write_json(outcome.folder / "report.json", outcome.report)
        rows[f"test ({len(splits.test)})"] = test
    if rows:
        console.print(error_table(rows, f"Mean absolute errors, {dataset.info.level_of_theory}"))
    console.print(
        f"{result.status} after {result.epochs} epochs, {result.steps} steps, "
        f"{result.elapsed:.0f} s\n"
        f"potential  {outcome.path}\n"
        f"run        {outcome.folder} (report.json, metrics.csv{', ' + figure if figure else ''})\n"
        f"next       dcase md --model {outcome.path}   |   dcase check {outcome.path}",
        highlight=False,
        soft_wrap=True,
    )


def _count(given: float | None, default: float) -> int | float:
    value = default if given is None else given
    return value if 0 < value < 1 else int(value)


def _overrides(chosen: dict[str, Any]) -> dict[str, Any]:
    """Options as ``{"table.entry": value}`` for :func:`load_recipe`."""
    values: dict[str, Any] = {
        "model.architecture": chosen["model"],
        "model.size": chosen["size"],
        "model.activation": chosen["activation"],
        "model.initialization": chosen["initialization"],
    }
    for table, cls in _SETTINGS.items():
        values.update({f"{table}.{f.name}": chosen[f.name] for f in fields(cls)})
    from dcase.potentials.registry import ARCHITECTURES

    for architecture in ARCHITECTURES.values():
        for key in architecture.hyper_parameters():
            if key != "activation":
                values[f"model.{key}"] = chosen[key]
    known = {f"model.{f.name}" for f in fields(ModelChoice)}
    return {k: v for k, v in values.items() if v is not None or k in known}


def _launch(devices: int, num_nodes: int, accelerator: str) -> Any:
    """A launched Lightning Fabric over all processes."""
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise OptionError("several processes need lightning-fabric") from error

    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy="ddp")
    fabric.launch()
    return fabric
