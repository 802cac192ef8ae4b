"""``dcase reproduce table3|table4|table5``: the paper's PINNs, to the letter and put right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.options import (
    count,
    out_folder,
    positive,
    quiet_option,
    seed_option,
    threads_option,
    use_threads,
)
from dcase.cli.pinn_display import FitDisplay
from dcase.files import check_writable
from dcase.pinn.experiments.protocol import table_runs, with_file
from dcase.pinn.experiments.published import TITLES
from dcase.pinn.experiments.runs import PinnRun, perform
from dcase.pinn.experiments.tables import markdown, paper_rows
from dcase.pinn.problem import PDEProblem
from dcase.pinn.run import Source
from dcase.tables import page_files, write_rows

TABLES = {"table3": "advection", "table4": "cfd", "table5": "diffusion-reaction"}


def carry_out(
    runs: Sequence[PinnRun],
    problem: PDEProblem,
    folder: Path,
    quiet: bool,
    *,
    pictures: bool = True,
) -> list[dict[str, Any]]:
    """Make the runs with a display; on Ctrl-C say how to go on."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    shown = FitDisplay(console, quiet=quiet, brief=True)

    def began(number: int, run: PinnRun, kept: bool) -> None:
        shown.end()
        what = "kept from before" if kept else "training"
        console.print(f"[{number + 1}/{len(runs)}] {run.label} ({what})", markup=False)

    try:
        results = perform(
            runs,
            problem,
            folder,
            pictures=pictures,
            on_run=began,
            on_fit=shown.begin,
            on_step=shown.step,
        )
    finally:
        shown.end()
    if results is None:
        click.echo("stopped; the same command goes on from here", err=True)
        raise click.exceptions.Exit(130)
    return results


def _table(name: str) -> click.Command:
    task = TABLES[name]

    @click.option(
        "--file",
        type=click.Path(dir_okay=False),
        help="PDEBench's HDF5 file; default: one sample made anew from its initial state.",
    )
    @click.option("--sample", type=int, default=0, show_default=True, help="Of --file.")
    @click.option(
        "--paper", is_flag=True, help="The baseline to the letter; default: put right, same time."
    )
    @count("--steps", help="With --paper: fewer than 15000 (or 100).")
    @positive("--time-limit", metavar="SECONDS", help="For each of the runs.")
    @seed_option("Of weights and points.")
    @out_folder("Folder for runs and tables.", "reproduce")
    @quiet_option("Print the table only.")
    @threads_option
    def command(
        file: str | None,
        sample: int,
        paper: bool,
        steps: int | None,
        time_limit: float | None,
        seed: int,
        out: str,
        quiet: bool,
        threads: int | None,
    ) -> None:
        use_threads(threads)
        folder = Path(out)
        check_writable(folder / "x")
        source = with_file(Source(task, file, sample, paper), folder)
        problem = source.problem()
        if not paper and time_limit is None and not steps:
            time_limit = 120.0
        runs = table_runs(source, problem, steps=steps, time_limit=time_limit, seed=seed)
        results = carry_out(runs, problem, folder / "runs", quiet)
        kind = "to the letter" if paper else "put right"
        reference = problem.sample()
        origin = reference.source if reference else ""
        caption = f"{TITLES[task]}, {kind}; {origin}; paper's figures in brackets"
        rows = paper_rows(task, results, letter=paper)
        text = markdown(rows, caption, _notes(paper))
        stem = f"{name}-paper" if paper else name
        from dcase.files import write_text

        with page_files(folder, stem):
            write_text(folder / f"{stem}.md", text)
            write_rows(folder / f"{stem}.csv", rows)
        click.echo(text)
        click.echo(f"written to {folder / stem}.md and .csv; runs in {folder / 'runs'}")

    help_text = f"{TITLES[task]}: tanh and IReLU, with and without BatchNorm."
    return click.command(name, help=help_text)(command)


def _notes(paper: bool) -> list[str]:
    lines = [
        "Errors over the last 20 saved times"
        + (" but the first of them, as the baseline does" if paper else "")
        + ", averaged over fields. What the paper calls MSE its code logs as an RMSE."
    ]
    if not paper:
        lines.append(
            "The terms are those of the right equation, residuals apart; conditions that hold by "
            "construction have none."
        )
    return lines


table3, table4, table5 = (_table(name) for name in TABLES)
