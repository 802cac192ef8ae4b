"""``dcase reproduce``: the paper's tables and figures, one command each."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.options import POSITIVE, device_option, threads_option, use_threads
from dcase.cli.progress import TrainingDisplay, duration
from dcase.cli.structures import check_writable
from dcase.data.dataset import AtomicDataset
from dcase.errors import OptionError
from dcase.potentials.evaluation import choose_device
from dcase.potentials.experiments import curves, tables
from dcase.potentials.experiments.protocol import (
    BETAS,
    DATA_SIZES,
    OC22_FRAMES,
    PAPER_FRAMES,
    SETTINGS,
    TABLES,
    Protocol,
)
from dcase.potentials.experiments.published import MOLECULES
from dcase.potentials.experiments.runs import Frames, Run, perform, plan, result_of, trivial_errors
from dcase.potentials.recipe import load_recipe, recipe_names
from dcase.potentials.registry import (
    ARCHITECTURES,
    VARIANTS,
    get_architecture,
    resolve_hyper_parameters,
)

Chosen = dict[str, Any]


@click.group()
def reproduce() -> None:
    """Repeat an experiment of the derivative-constrained paper.

    Each command trains what its table or figure needs, one run after another, and writes the
    result beside the paper's own numbers into --out. Runs that are there already are not made
    again, one that was stopped goes on, and tables share their runs.

    The paper trains on 50,000 frames for 50 epochs: hours to days a run on a GPU. --budget gives
    the whole experiment so many minutes: every run gets an equal share and the small networks of
    size md17, and the caption says so.
    """


def experiment_options(*, molecules: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """The options all experiments share; the command gets them as ``chosen: dict``."""
    several: list[Callable[..., Any]] = []
    if molecules:
        several.append(
            click.option(
                "--molecule",
                "-m",
                "molecules",
                multiple=True,
                help="MD17 molecule; may be repeated. Default: all of the experiment.",
            )
        )
    several += [
        click.option("--model", "models", multiple=True, help="Architecture; may be repeated."),
        click.option(
            "--setting",
            "settings",
            multiple=True,
            type=click.Choice(list(SETTINGS)),
            help="Rows instead of the experiment's own; may be repeated.",
        ),
        click.option(
            "--source",
            default="auto" if molecules else None,
            show_default=molecules,
            metavar="auto|md17|rmd17|xtb|FILE" if molecules else "DIR|FILE",
            help="Where the frames come from; {molecule} in a file name stands for the molecule. "
            "xtb samples other molecules than aspirin and ethanol first, which takes an hour each."
            if molecules
            else "Needed: a folder with OC22's LMDBs (train/, val_ood/), or a file of frames.",
        ),
        click.option(
            "--train",
            type=click.IntRange(min=1),
            default=None,
            help=f"Training frames; default {PAPER_FRAMES[0]:,}, or 80 % of what there is."
            if molecules
            else f"Training frames; default: all, at most {OC22_FRAMES:,}.",
        ),
        click.option("--epochs", type=click.IntRange(min=1), default=None, help="Default: 50."),
        click.option(
            "--budget",
            type=POSITIVE,
            default=None,
            metavar="MINUTES",
            help="Minutes for all runs of the experiment together. A run's share depends on how "
            "many there are; for runs that several commands are to share, use --time-limit.",
        ),
        click.option(
            "--time-limit",
            type=POSITIVE,
            default=None,
            metavar="SECONDS",
            help="The same, for each run.",
        ),
        click.option(
            "--size",
            default=None,
            help="Preset of the networks; default: paper, and md17 under --budget or --time-limit.",
        ),
        click.option(
            "--variant",
            type=click.Choice(VARIANTS),
            default="paper",
            show_default=True,
            help="The published implementations, or dcase's corrected ones.",
        ),
        click.option(
            "--recipe",
            default="paper",
            show_default=True,
            metavar="NAME|FILE",
            help=f"Loss, optimizer, schedule: {', '.join(recipe_names())}, or a .toml file.",
        ),
        click.option("--lr", type=POSITIVE, default=None, help="Instead of the recipe's."),
        click.option(
            "--batch-size", type=click.IntRange(min=1), default=None, help="The same, frames."
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Of splits, first weights and the order of the frames.",
        ),
        click.option(
            "--out",
            type=click.Path(file_okay=False),
            default="reproduce",
            show_default=True,
            help="Folder for runs, tables and figures.",
        ),
        click.option("--quiet", "-q", is_flag=True, help="Print the table only."),
        device_option,
        threads_option,
    ]
    if molecules:
        several[4:4] = [
            click.option(
                "--test-source",
                default=None,
                metavar="FILE",
                help="Test frames from another file than --source.",
            ),
            click.option(
                "--labels",
                type=click.Choice(["md17", "rmd17"]),
                default=None,
                help="Label set, where a file holds both.",
            ),
        ]

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def wrapper(**chosen: Any) -> Any:
            _refuse_mistakes(chosen)
            return function(chosen=chosen)

        command: Any = wrapper
        for option in reversed(several):
            command = option(command)
        return command

    return decorate


# ------------------------------------------------------------------------------------------------
# What is to be done


def _refuse_mistakes(chosen: Chosen) -> None:
    """What can be known to be wrong before any frame is read, downloaded or sampled.

    Raises:
        OptionError: If there is such a thing.
    """
    if chosen["budget"] and chosen["time_limit"]:
        raise OptionError("--budget and --time-limit exclude each other")
    load_recipe(chosen["recipe"])
    for name in chosen["models"] or ARCHITECTURES:
        if chosen["size"]:
            resolve_hyper_parameters(get_architecture(name).name, chosen["size"], {})
        get_architecture(name)


def _protocol(chosen: Chosen, n_runs: int) -> Protocol:
    limit = chosen["time_limit"]
    if chosen["budget"]:
        limit = round(chosen["budget"] * 60 / n_runs, 1)
    return Protocol(
        recipe=chosen["recipe"],
        size=chosen["size"] or ("paper" if limit is None else "md17"),
        variant=chosen["variant"],
        train=chosen["train"],
        epochs=chosen["epochs"],
        time_limit=limit,
        lr=chosen["lr"],
        batch_size=chosen["batch_size"],
        seed=chosen["seed"],
    )


def _models(chosen: Chosen, default: Sequence[str]) -> list[str]:
    names = [get_architecture(name).name for name in chosen["models"]] or list(default)
    return list(dict.fromkeys(names))


def _settings(chosen: Chosen, default: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(chosen["settings"] or default))


def _molecules(chosen: Chosen, default: Sequence[str]) -> list[str]:
    from dcase.data.molecules import get_molecule

    names = [get_molecule(name).name for name in chosen["molecules"]] or list(default)
    several = len(set(names)) > 1
    for option in ("source", "test_source"):
        value = chosen[option]
        if several and value and value.endswith(".npz") and "{molecule}" not in value:
            raise OptionError(
                f"--{option.replace('_', '-')} {value} is one file for {len(names)} molecules; "
                "write {molecule} where its name stands, or ask for one --molecule"
            )
    return list(dict.fromkeys(names))


def _load(chosen: Chosen, molecule: str, warn: Callable[[str], None]) -> Frames:
    from dcase.data.md17 import load_md17

    def read(source: str) -> AtomicDataset:
        return load_md17(
            molecule,
            source.replace("{molecule}", molecule),
            chosen["labels"],
            seed=chosen["seed"],
            notify=warn,
        )

    test = read(chosen["test_source"]) if chosen["test_source"] else None
    return Frames(molecule, read(chosen["source"]), test)


# ------------------------------------------------------------------------------------------------
# Doing it


class _Sitting:
    """The runs of one command: made in order, shown as they go, collected."""

    def __init__(self, chosen: Chosen):
        use_threads(chosen["threads"])
        self.folder = Path(chosen["out"])
        check_writable(self.folder / "x")
        self.device = choose_device(chosen["device"])
        self.quiet = chosen["quiet"]
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.results: list[dict[str, Any]] = []

    def warn(self, line: str) -> None:
        """For the loaders of data."""
        self.console.print(f"WARNING: {line}", style="bold yellow", markup=False)

    def run(self, runs: Sequence[Run], after: Callable[[], Any]) -> None:
        """Make all runs; ``after`` is called when one has ended, to bring the table up to date."""
        spent, made = 0.0, 0
        for number, run in enumerate(runs, 1):
            kept = result_of(run, self.folder)
            if not self.quiet:
                left = duration(spent / made * (len(runs) - number + 1)) if made else "?"
                what = f"{run.frames.system}, {run.model}, {run.setting.title} {run.label}".strip()
                state = "kept from before" if kept else f"about {left} left"
                self.console.print(f"[{number}/{len(runs)}] {what} ({state})", markup=False)
            started = time.monotonic()
            result = kept or self._perform(run)
            if result is None:
                click.echo("stopped; the same command goes on from here", err=True)
                raise click.exceptions.Exit(130)
            if not kept:
                spent, made = spent + time.monotonic() - started, made + 1
            if result["status"] == "NaN" and not self.quiet:
                self.console.print(f"  NaN: {result['reason']}", markup=False)
            self.results.append(result)
            after()

    def _perform(self, run: Run) -> dict[str, Any] | None:
        display: list[TrainingDisplay] = []

        def started(potential: Any, trainer: Any) -> None:
            shown = TrainingDisplay(
                self.console, trainer.objective.problem.display, quiet=self.quiet
            )
            display.append(shown.__enter__())

        try:
            return perform(
                run,
                self.folder,
                device=self.device,
                on_start=started,
                on_step=lambda p: display[0](p),
            )
        finally:
            for shown in display:
                shown.__exit__(None, None, None)


def _table(chosen: Chosen, name: str, title: str, frames_of: Callable[..., list[Frames]]) -> None:
    """Run a table's experiment and write it."""
    default_models, default_settings = TABLES[name]
    models = _models(chosen, default_models)
    settings = _settings(chosen, default_settings)
    sitting = _Sitting(chosen)
    sets = frames_of(sitting.warn)
    protocol = _protocol(chosen, len(models) * len(settings) * len(sets))
    runs = [
        plan(protocol, frames, model, SETTINGS[setting])
        for frames in sets
        for model in models
        for setting in settings
    ]
    trivial = {run.frames.system: trivial_errors(run) for run in runs}
    unit = "eV and eV/A" if name == "table2" else "kcal/mol and kcal/mol/A"

    def write() -> str:
        done = sitting.results
        notes = tables.nothing_learned(done, trivial) + tables.schnet_note(done)
        if len(settings) > 1:
            notes = tables.verdicts(done, settings[0], settings[1]) + notes
        heading = tables.caption(title, protocol, done, unit=unit)
        rows = tables.table_rows(done, trivial)
        text = tables.markdown(rows, heading, notes)
        tables.write_table(sitting.folder, name, rows, text)
        return text

    sitting.run(runs, write)
    click.echo(write())
    click.echo(f"written to {sitting.folder / name}.md and .csv; runs in {sitting.folder / 'runs'}")


def _md17_table(name: str, title: str) -> click.Command:
    @experiment_options()
    def command(chosen: Chosen) -> None:
        molecules = _molecules(chosen, MOLECULES)
        _table(chosen, name, title, lambda warn: [_load(chosen, m, warn) for m in molecules])

    return click.command(name, help=f"{title}.")(command)


for _name, _title in (
    ("table1", "Table 1: original settings against IReLU, denormalization and rescaling (*), MD17"),
    ("table7", "Table 7: original activation against IReLU alone, MD17"),
    ("table8", "Table 8: original activation against IReLU, both denormalized and rescaled, MD17"),
    ("table9", "Table 9: original against denormalized and rescaled, MD17"),
):
    reproduce.add_command(_md17_table(_name, _title))


@reproduce.command()
@experiment_options(molecules=False)
def table2(chosen: Chosen) -> None:
    """Table 2: original settings against IReLU, denormalization and rescaling (*), OC22.

    Errors in eV and eV/A over free atoms, on frames out of domain (val_ood) where --source has
    them, else on a tenth of the frames.
    """
    from dcase.data.oc22 import load_oc22, published_folders

    if not chosen["source"]:
        raise OptionError(
            "--source is needed: a folder with OC22's S2EF-total LMDBs (train/, val_ood/), or a "
            "file of frames; they are published at https://fair-chem.github.io"
        )

    def frames_of(warn: Callable[[str], None]) -> list[Frames]:
        apart = "test" in published_folders(Path(chosen["source"]))
        found = load_oc22(
            chosen["source"],
            n_train=chosen["train"],
            n_test=None if apart else 0.1,
            seed=chosen["seed"],
            test_rest=True,
            notify=warn,
        )
        return [Frames("oc22", found.dataset, splits=found.splits, test_name=found.test_name)]

    title = "Table 2: original settings against IReLU, denormalization and rescaling (*), OC22"
    _table(chosen, "table2", title, frames_of)


@reproduce.command()
@experiment_options()
def figure1(chosen: Chosen) -> None:
    """Figure 1: SchNet's errors on aspirin against the weight of the forces in the loss."""
    molecules = _molecules(chosen, ("aspirin",))
    models, settings = _models(chosen, ("schnet",)), _settings(chosen, ("original",))
    if len(molecules) * len(models) * len(settings) > 1:
        raise OptionError("figure1 shows one molecule, one model and one setting; ask for one each")
    sitting = _Sitting(chosen)
    protocol = _protocol(chosen, len(BETAS) * len(molecules) * len(models) * len(settings))
    sets = [_load(chosen, m, sitting.warn) for m in molecules]
    runs = [
        plan(
            protocol,
            frames,
            model,
            SETTINGS[setting],
            forces_weight=beta,
            label=f"beta={beta:g}",
        )
        for frames in sets
        for model in models
        for setting in settings
        for beta in BETAS
    ]
    _figure(chosen, sitting, protocol, runs, "figure1", "Figure 1: errors against the force weight")


@reproduce.command()
@experiment_options()
def figure2(chosen: Chosen) -> None:
    """Figure 2: errors of SchNet with IReLU and rescaled labels against the number of frames."""
    molecules = _molecules(chosen, MOLECULES)
    models, settings = _models(chosen, ("schnet",)), _settings(chosen, ("ours",))
    sitting = _Sitting(chosen)
    sets = [_load(chosen, m, sitting.warn) for m in molecules]
    sizes = {frames.system: _sizes(frames, chosen["train"]) for frames in sets}
    count = sum(len(s) for s in sizes.values()) * len(models) * len(settings)
    protocol = _protocol(chosen, count)
    runs = [
        plan(protocol, frames, model, SETTINGS[setting], n_train=n, label=f"n={n}")
        for frames in sets
        for model in models
        for setting in settings
        for n in sizes[frames.system]
    ]
    _figure(chosen, sitting, protocol, runs, "figure2", "Figure 2: errors against the data size")


def _sizes(frames: Frames, largest: int | None) -> list[int]:
    """The paper's training-set sizes that there are frames for, or quarters of what there is."""
    share = 0.9 if frames.test is not None else 0.8
    usable = largest or int(share * len(frames.dataset))
    paper = [n for n in DATA_SIZES if n <= usable]
    return paper or sorted({max(1, usable * quarter // 4) for quarter in (1, 2, 3, 4)})


def _figure(
    chosen: Chosen,
    sitting: _Sitting,
    protocol: Protocol,
    runs: Sequence[Run],
    name: str,
    title: str,
) -> None:
    trivial = {run.frames.system: trivial_errors(run) for run in runs}
    picture = sitting.folder / f"{name}.png"

    def write() -> str:
        done = sitting.results
        rows = tables.table_rows(done, trivial)
        heading = tables.caption(title, protocol, done, unit="kcal/mol and kcal/mol/A")
        text = tables.markdown(rows, heading, tables.nothing_learned(done, trivial))
        tables.write_table(sitting.folder, name, rows, text)
        if name == "figure1":
            curves.figure1(done, sitting.folder, picture)
        else:
            curves.figure2(done, picture)
        return text

    sitting.run(runs, write)
    click.echo(write())
    click.echo(f"written to {picture}, {name}.md and .csv; runs in {sitting.folder / 'runs'}")
