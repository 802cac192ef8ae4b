"""``dcase reproduce report-*``: tables and figures of the SchNet report."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.options import count, labels_option, seed_option, use_threads
from dcase.cli.reproduce_report_options import Chosen, report_options, warn, with_files
from dcase.cli.reproduce_report_runs import Piece, Sitting
from dcase.files import check_writable
from dcase.potentials.experiments.report_published import (
    LONG,
    MOLECULES,
    SHORT,
    SYSTEMS,
    TASKS,
    Setup,
)

# ------------------------------------------------------------------------------------------------
# Tables 2, 6 and 7


_TASK = click.option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(TASKS),
    help="What is learned; may be repeated. Default: all three.",
)


def _compared(sitting: Sitting, setup: Setup, *, baselines: bool) -> list[Piece]:
    """All runs of Table 2 (with baselines) or Table 7."""
    from dcase.potentials.experiments.report_data import report_split
    from dcase.potentials.experiments.report_fits import Fit
    from dcase.potentials.experiments.report_runs import plan_run, tasks_of
    from dcase.potentials.experiments.report_tables import BASELINE, TRIVIAL

    length, pieces = sitting.length, []
    for frames in sitting.frames(SYSTEMS):
        system = frames.system
        splits = report_split(
            len(frames.dataset), setup, length.seed, train=length.train, test=length.test
        )
        for task in tasks_of(frames.dataset):
            if sitting.chosen["tasks"] and task not in sitting.chosen["tasks"]:
                continue
            fits = {TRIVIAL: "composition", **({BASELINE: "pairs"} if baselines else {})}
            for method, kind in fits.items():
                fit = Fit(frames, splits, task if kind == "pairs" else "energy", kind)
                title = f"{system}, {task}, {method}"
                pieces.append(sitting.fit((system, task, method), fit, title))
            for recipe in sitting.recipes:
                run = plan_run(frames, splits, recipe, task, setup.steps, length)
                pieces.append(
                    sitting.run((system, task, recipe), run, f"{system}, {task}, {recipe}")
                )
    return pieces


def _comparison(name: str, title: str, setup: Setup, *, authors: bool) -> click.Command:
    @report_options(_TASK, systems="all of them that there are frames of")
    def command(chosen: Chosen) -> None:
        from dcase.potentials.experiments import report_format as formats
        from dcase.potentials.experiments import report_tables as tables

        sitting = Sitting(chosen)
        text = ""
        for results in sitting.make(_compared(sitting, setup, baselines=not authors)):
            notes = [
                *tables.accuracy_notes(results, sitting.recipes),
                *tables.ratio_notes(results, authors=authors),
                *([] if authors else tables.verdict_notes(results, sitting.recipes)),
                *tables.table_notes(results, authors=authors),
                *tables.run_lengths(results, sitting.recipes),
                *sitting.skipped,
            ]
            heading = tables.caption(title, setup, results, chosen)
            lines = tables.comparison(results, sitting.recipes, authors=authors)
            text = formats.page(heading, lines, notes)
            formats.write_page(sitting.folder, name, text, tables.records(results))
        sitting.end(name, text)

    return click.command(name, help=f"{title}.")(command)


@click.command("report-table6")
@report_options(_TASK, systems="all of them that there are frames of")
def table6(chosen: Chosen) -> None:
    """Table 6 of the SchNet report: SchNet less baseline, from the runs of Table 2."""
    from dcase.potentials.experiments import report_format as formats
    from dcase.potentials.experiments import report_tables as tables

    sitting = Sitting(chosen)
    title = "Table 6 of the SchNet report: SchNet less baseline (negative: SchNet is better)"
    text = ""
    for results in sitting.make(_compared(sitting, SHORT, baselines=True)):
        lines, rows = tables.differences(results, sitting.recipes)
        notes = [
            "The report calls its figures relative; they are the differences of its Table 2. "
            "%: of the baseline; the report's: from its Table 2.",
            *tables.verdict_notes(results, sitting.recipes),
            *tables.table_notes(results, authors=False)[1:],
            *tables.run_lengths(results, sitting.recipes),
            *sitting.skipped,
        ]
        text = formats.page(tables.caption(title, SHORT, results, chosen), lines, notes)
        formats.write_page(sitting.folder, "report-table6", text, rows)
    sitting.end("report-table6", text)


# ------------------------------------------------------------------------------------------------
# Table 1


@click.command("report-table1")
@report_options(systems="qm9 if it is here, else aspirin")
def table1(chosen: Chosen) -> None:
    """Table 1 of the SchNet report: networks of three sizes."""
    from dcase.potentials.experiments import report_format as formats
    from dcase.potentials.experiments import report_studies
    from dcase.potentials.experiments.report_data import qm9_is_here, report_split
    from dcase.potentials.experiments.report_published import TABLE1
    from dcase.potentials.experiments.report_runs import plan_run, tasks_of

    sitting = Sitting(chosen)
    length, pieces = sitting.length, []
    default = "qm9" if chosen["qm9_source"] or qm9_is_here() else "aspirin"
    for frames in sitting.frames((default,)):
        task = tasks_of(frames.dataset)[-1]
        for recipe in sitting.recipes:
            for name, size in TABLE1.items():
                setup = Setup(LONG.n_train, LONG.n_test, size.epochs)
                splits = report_split(
                    len(frames.dataset), setup, length.seed, train=length.train, test=length.test
                )
                run = plan_run(frames, splits, recipe, task, setup.steps, length, (name, size))
                key = (frames.system, recipe, name)
                pieces.append(sitting.run(key, run, f"{frames.system}, {recipe}, {name}"))
    text = ""
    for results in sitting.make(pieces):
        text, rows = report_studies.size_table(results, chosen)
        formats.write_page(sitting.folder, "report-table1", text, rows)
    sitting.end("report-table1", text)


# ------------------------------------------------------------------------------------------------
# Tables 3 and 4


def _crossed(name: str, title: str, *, spread: bool) -> click.Command:
    folds_option = count("--folds", default=5, least=2, help="Folds.")

    @report_options(folds_option, systems="iso17 if --iso17-source is given, else aspirin")
    def command(chosen: Chosen) -> None:
        from dcase.potentials.experiments import report_format as formats
        from dcase.potentials.experiments import report_studies
        from dcase.potentials.experiments.report_fits import (
            crossing_of,
            perform_crossing,
            plan_crossing,
        )

        sitting = Sitting(chosen)
        frames = sitting.only(("iso17",) if chosen["iso17_source"] else ("aspirin",))
        pieces = []
        for recipe in sitting.recipes:
            crossing = plan_crossing(
                frames, recipe, LONG.steps, LONG.n_train, chosen["folds"], sitting.length
            )
            console = sitting.console

            def fold(number: int, count: int, console: Console = console) -> None:
                console.print(f"  fold {number + 1} of {count}", markup=False)

            make = functools.partial(
                perform_crossing, crossing, sitting.folder, device=sitting.device, on_fold=fold
            )
            kept = functools.partial(crossing_of, crossing, sitting.folder)
            what = f"{frames.system}, {chosen['folds']} folds, {recipe}"
            pieces.append(Piece(recipe, what, kept, make))
        text = ""
        for results in sitting.make(pieces):
            page = report_studies.spread_table if spread else report_studies.fold_table
            text, rows = page(title, frames.system, results, chosen)
            formats.write_page(sitting.folder, name, text, rows)
        sitting.end(name, text)

    return click.command(name, help=f"{title}.")(command)


# ------------------------------------------------------------------------------------------------
# Table 5


@click.command("report-table5")
@click.option("--molecule", "-m", default="aspirin", show_default=True, help="Of MD17.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    default=("auto",),
    metavar="auto|md17|rmd17|xtb|FILES",
    help="Its frames, of which 8 are drawn; as of report-table2. Default: auto.",
)
@labels_option()
@click.option(
    "--target",
    type=click.Choice(["energy", "energy+forces"]),
    default="energy",
    show_default=True,
    help="What is learned.",
)
@count("--epochs", default=1000, help="Steps of each run; one that becomes NaN ends there.")
@seed_option("Of weights, frames.")
@with_files
def table5(
    molecule: str,
    sources: tuple[str, ...],
    labels: str | None,
    target: str,
    epochs: int,
    seed: int,
    out: str,
    quiet: bool,
    threads: int | None,
) -> None:
    """Table 5 of the SchNet report: inputs of the shifted softplus while 8 frames are overfitted.

    As the report wrote it, as softplus - ln 2, and with energies offset in float64; and the
    function alone in 32 bits.
    """
    from dcase.data.molecules import get_molecule
    from dcase.potentials.experiments import ssp_failure
    from dcase.potentials.experiments.report_data import Sources, load_system
    from dcase.potentials.experiments.report_format import write_page

    use_threads(threads)
    folder, name = Path(out), "report-table5"
    check_writable(folder / "x")
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    frames = load_system(
        get_molecule(molecule).name, Sources(sources, labels), seed=seed, notify=warn
    )
    begun: list[str] = []

    def epoch(run: str, progress: Any) -> None:
        if run not in begun:
            begun.append(run)
            console.print(f"[{len(begun)}/{len(ssp_failure.RUNS)}] {ssp_failure.RUNS[run]}")

    result = ssp_failure.run_ssp_failure(frames, epochs, seed, target=target, on_epoch=epoch)
    text = ssp_failure.failure_text(result)
    labels_of = f"{get_molecule(molecule).full_name}, labels {frames.info.level_of_theory}"
    text = f"{text}\n* {labels_of}; seed {seed}; {target}.\n"
    ssp_failure.failure_figure(result, folder / f"{name}.png")
    write_page(folder, name, text, ssp_failure.failure_rows(result), result=result)
    click.echo(text)
    click.echo(f"written to {folder / name}.md, .csv, .json, .png")


# ------------------------------------------------------------------------------------------------
# Figures


def _figure(name: str, title: str, default: Sequence[str]) -> click.Command:
    @report_options(systems=", ".join(default) if len(default) == 1 else "all of MD17")
    def command(chosen: Chosen) -> None:
        from dcase.potentials.experiments import report_figures as figures
        from dcase.potentials.experiments import report_format as formats
        from dcase.potentials.experiments.report_data import report_split
        from dcase.potentials.experiments.report_runs import losses_file, plan_run

        chosen["recipes"] = chosen["recipes"][:1]  # a picture is of one protocol
        sitting = Sitting(chosen)
        length, recipe = sitting.length, sitting.recipes[0]
        pieces, runs = [], {}
        for frames in sitting.frames(default):
            splits = report_split(
                len(frames.dataset), LONG, length.seed, train=length.train, test=length.test
            )
            run = plan_run(frames, splits, recipe, "energy", LONG.steps, length)
            key = (frames.system, "energy", recipe)
            runs[key] = run
            pieces.append(sitting.run(key, run, f"{frames.system}, energy, {recipe}"))
        text = ""
        for results in sitting.make(pieces):
            text, rows, drawn = figures.page(
                title, results, {k: losses_file(runs[k], sitting.folder) for k in results}, chosen
            )
            text = text.rstrip() + "\n" + "".join(f"* {line}\n" for line in sitting.skipped)
            if drawn:
                figures.loss_figure(drawn, sitting.folder / f"{name}.png")
            formats.write_page(sitting.folder, name, text, rows)
        sitting.end(name, text, ", .png")

    return click.command(name, help=f"{title}.")(command)


COMMANDS = (
    table1,
    _comparison(
        "report-table2",
        "Table 2 of the SchNet report: baseline and SchNet after a short training",
        SHORT,
        authors=False,
    ),
    _crossed(
        "report-table3",
        "Table 3 of the SchNet report: losses of the folds of a cross-validation",
        spread=False,
    ),
    _crossed(
        "report-table4",
        "Table 4 of the SchNet report: standard deviations of the folds' ensemble",
        spread=True,
    ),
    table5,
    table6,
    _comparison(
        "report-table7",
        "Table 7 of the SchNet report: SchNet after a long training, and its authors'",
        LONG,
        authors=True,
    ),
    _figure(
        "report-figure1",
        "Figure 1 of the SchNet report: training loss of the energy, and its straight line",
        ("aspirin",),
    ),
    _figure(
        "report-figure2",
        "Figure 2 of the SchNet report: the same for all molecules of MD17",
        MOLECULES,
    ),
)
