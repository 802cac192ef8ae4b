"""``dcase reproduce``: the paper's tables and figures, one command each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.options import use_threads
from dcase.cli.progress import TrainingDisplay, duration
from dcase.cli.reproduce_dae import COMMANDS as DAE_COMMANDS
from dcase.cli.reproduce_options import Chosen, experiment_options
from dcase.cli.reproduce_pinn import table3, table4, table5
from dcase.cli.reproduce_report import COMMANDS as REPORT_COMMANDS
from dcase.data.dataset import AtomicDataset
from dcase.errors import OptionError
from dcase.files import check_writable
from dcase.potentials.experiments import curves, tables
from dcase.potentials.experiments.protocol import (
    BETAS,
    DATA_SIZES,
    SETTINGS,
    TABLES,
    Protocol,
)
from dcase.potentials.experiments.published import MOLECULES
from dcase.potentials.experiments.runs import Frames, Run, perform, plan, result_of, trivial_errors
from dcase.potentials.fitting.evaluation import choose_device
from dcase.potentials.networks.registry import get_architecture


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


# ------------------------------------------------------------------------------------------------
# What is to be done


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

    def report(
        self,
        runs: Sequence[Run],
        protocol: Protocol,
        name: str,
        title: str,
        *,
        notes: Callable[[list[dict[str, Any]]], list[str]] = lambda done: [],
        draw: Callable[[list[dict[str, Any]], Path], None] | None = None,
    ) -> None:
        """Make all runs and write the table of what there is after each; print the last one.

        Args:
            runs: What to do.
            protocol: Of all of them.
            name: Of the files, e.g. ``"table1"``.
            title: Of the table.
            notes: Lines under the table, before those that every table has.
            draw: Makes the picture ``NAME.png``, for figures.
        """
        last_of = {run.frames.system: run for run in runs}
        trivial = {system: trivial_errors(run) for system, run in last_of.items()}
        unit = "eV and eV/A" if "oc22" in last_of else "kcal/mol and kcal/mol/A"
        picture = self.folder / f"{name}.png"
        text = ""
        for _ in self._run(runs):
            done = self.results
            lines = [*notes(done), *tables.nothing_learned(done, trivial)]
            if draw is None:
                lines += tables.schnet_note(done)
            rows = tables.table_rows(done, trivial)
            heading = tables.caption(title, protocol, done, unit=unit)
            text = tables.markdown(rows, heading, lines)
            tables.write_table(self.folder, name, rows, text)
            if draw is not None:
                draw(done, picture)
        click.echo(text)
        files = f"{picture}, {name}" if draw is not None else f"{self.folder / name}"
        click.echo(f"written to {files}.md and .csv; runs in {self.folder / 'runs'}")

    def _run(self, runs: Sequence[Run]) -> Iterator[None]:
        """Make all runs; a pause after each, when its result is there."""
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
            yield

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

    def notes(done: list[dict[str, Any]]) -> list[str]:
        return tables.verdicts(done, *settings[:2]) if len(settings) > 1 else []

    sitting.report(runs, protocol, name, title, notes=notes)


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
    sitting.report(
        runs,
        protocol,
        "figure1",
        "Figure 1: errors against the force weight",
        draw=lambda done, path: curves.figure1(done, sitting.folder, path),
    )


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
    sitting.report(
        runs,
        protocol,
        "figure2",
        "Figure 2: errors against the data size",
        draw=curves.figure2,
    )


def _sizes(frames: Frames, largest: int | None) -> list[int]:
    """The paper's training-set sizes that there are frames for, or quarters of what there is."""
    share = 0.9 if frames.test is not None else 0.8
    usable = largest or int(share * len(frames.dataset))
    paper = [n for n in DATA_SIZES if n <= usable]
    return paper or sorted({max(1, usable * quarter // 4) for quarter in (1, 2, 3, 4)})


for _command in (table3, table4, table5, *DAE_COMMANDS, *REPORT_COMMANDS):
    reproduce.add_command(_command)
