"""``dcase pinn``: physics-informed networks on PDEBench's tasks and on equations of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from dcase.activations import canonical_name
from dcase.cli.options import (
    SectionedCommand,
    count,
    dataclass_options,
    device_option,
    json_option,
    limit_options,
    out_folder,
    overwrite_option,
    positive,
    quiet_option,
    refuse_both,
    resume_option,
    section,
    seed_option,
    threads_option,
    use_threads,
)
from dcase.cli.pinn_data import data
from dcase.cli.pinn_display import FitDisplay
from dcase.cli.show import results_console
from dcase.errors import DataError, OptionError
from dcase.files import read_json
from dcase.pinn.experiments.comparison import ACTIVATIONS
from dcase.pinn.run import PDEBENCH, Source, read_record, read_run, reference_of
from dcase.pinn.run import train as train_run
from dcase.pinn.settings import PinnSettings, PointSettings
from dcase.pinn.zoo import PROBLEMS
from dcase.potentials.fitting.evaluation import choose_device

SHOWN = {
    "rmse": "RMSE",
    "nrmse": "nRMSE",
    "mse": "MSE",
    "crmse": "cRMSE",
    "max_error": "max",
    "brmse": "bRMSE",
}


#: Settings that only one kind of network has.
OF_NETWORK = {
    "modes": {"march", "times", "hidden", "oversample", "train_hidden", "target"},
    "mlp": {
        *(f.name for f in fields(PointSettings)),
        *("depth", "residual", "batch_norm", "init", "scale_inputs", "scale_outputs", "hard"),
        *("modes", "smooth", "windows", "balance", "balance_every", "causal", "engine", "compile"),
        *("refine", "max_steps", "final_lr"),
    },
}


@click.group()
def pinn() -> None:
    """Solve differential equations with networks trained on their residuals.

    \b
    dcase pinn data advection --samples -9:0 --out f.hdf5
    dcase pinn train advection --file f.hdf5 --sample -1 --out run
    dcase pinn evaluate run
    """


def _settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All of PinnSettings and PointSettings, and weights by name."""
    options = section(
        "Network, conditions and optimisation",
        dataclass_options(PinnSettings, leave_out=("points", "time_limit", "cpu_limit", "seed")),
    )
    points = section(
        "Collocation points and weights",
        dataclass_options(PointSettings, leave_out=("weights",)),
        click.option(
            "--weight",
            "weights",
            multiple=True,
            metavar="TERM=NUMBER",
            help="Factor of a term ('initial u=100') or of a kind of terms ('initial=100', "
            "'equation=2'); may be repeated.",
        ),
    )
    return options(points(function))


def _chosen_settings(base: PinnSettings, chosen: dict[str, Any]) -> PinnSettings:
    changes = {k: v for k, v in chosen.items() if v is not None and k != "weights"}
    weights = {}
    for text in chosen.get("weights") or ():
        name, _, number = text.rpartition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            raise OptionError(f"--weight {text}: write TERM=NUMBER") from None
    if weights:
        changes["weights"] = {**base.points.weights, **weights}
    settings = base.changed(**changes)
    other = "modes" if settings.network == "mlp" else "mlp"
    idle = next((name for name in changes if name in OF_NETWORK[other]), None)
    if idle:
        flag = "weight" if idle == "weights" else idle.replace("_", "-")
        raise OptionError(
            f"--{flag} has no meaning for this network ({settings.network}); give --network {other}"
        )
    return settings


@pinn.command(cls=SectionedCommand)
@click.argument("task", metavar="TASK")
@click.option("--file", type=click.Path(dir_okay=False), help="HDF5 file in PDEBench's layout.")
@click.option(
    "--sample", type=int, default=0, show_default=True, help="Of the file; -1 is the last."
)
@out_folder("The run's folder; default: TASK-ACTIVATION.")
@click.option("--paper", is_flag=True, help="PDEBench's baseline to the letter, with its defects.")
@limit_options
@seed_option("Of weights and points.", None, most=2**31 - 1)
@resume_option()
@overwrite_option("Replace a run that is there.")
@quiet_option()
@device_option
@threads_option
@_settings_options
def train(
    task: str,
    file: str | None,
    sample: int,
    out: str | None,
    paper: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    device: str | None,
    threads: int | None,
    **chosen: Any,
) -> None:
    """Train a network on a differential equation.

    TASK is one of PDEBench's (advection, cfd, diffusion-reaction; with --file), a ready problem
    (burgers, allen-cahn, diffusion-sorption), or a Python file that defines `problem`. Errors
    against the reference, always beside those of trivial predictors, go to OUT/metrics.json.
    """
    refuse_both(resume, overwrite)
    use_threads(threads)
    source = Source(task, file, sample, paper)
    problem = source.problem()
    settings = _chosen_settings(source.settings(problem, chosen.get("network")), chosen)
    folder = Path(out or f"{problem.name}-{settings.activation}")
    if resume:
        settings = _chosen_settings(read_record(folder)[1], chosen)
    where = choose_device(device or ("cpu" if settings.dtype == "float64" else None))
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    reference = problem.sample()
    for line in reference.warnings if reference else ():
        console.print(f"WARNING: {line}", style="bold yellow", markup=False)
    shown = FitDisplay(console, quiet=quiet)
    try:
        metrics, outcome = train_run(
            source,
            settings,
            folder,
            problem=problem,
            resume=resume,
            overwrite=overwrite,
            device=where,
            on_fit=shown.begin,
            on_step=shown.step,
        )
    finally:
        shown.end()
    if outcome.status == "interrupted":
        click.echo(
            f"stopped after {outcome.steps} steps; the same command with --resume goes on.",
            err=True,
        )
        raise click.exceptions.Exit(130)
    _print_metrics(metrics, folder)
    if outcome.was_finished:
        click.echo(f"{folder} was finished already; nothing was done", err=True)
    results_console().print(
        f"{outcome.status} after {outcome.steps} steps, {outcome.elapsed:.0f} s, "
        f"{outcome.cpu:.0f} CPU s\n"
        f"run   {folder} (metrics.json, model.pt, pictures)\n"
        f"next  dcase pinn plot {folder}   |   dcase pinn evaluate {folder}",
        markup=False,
        soft_wrap=True,
    )


@pinn.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--file", type=click.Path(dir_okay=False), help="Where the data file is now.")
@json_option("Also write it here.")
def evaluate(run: str, file: str | None, json_file: str | None) -> None:
    """Errors of a trained run against its reference, beside those of trivial predictors."""
    from dcase.files import write_json

    saved = read_run(run, file=file)
    reference_of(saved)
    metrics = saved.metrics()
    if json_file:
        write_json(json_file, metrics)
    _print_metrics(metrics, Path(run))


@pinn.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--file", type=click.Path(dir_okay=False), help="Where the data file is now.")
def plot(run: str, file: str | None) -> None:
    """Draw a run: solution, slices, errors, spectrum, conservation, loss terms."""
    names = read_run(run, file=file).pictures()
    for name in names:
        click.echo(str(Path(run) / name))


@pinn.command("list")
@click.argument("paths", nargs=-1, type=click.Path())
def list_(paths: tuple[str, ...]) -> None:
    """List the equations that are ready, or say what files and runs hold.

    Without PATHS: tasks and ready problems. With: what each HDF5 file or run folder holds.
    """
    if not paths:
        for name in PDEBENCH:
            click.echo(f"{name:20} PDEBench; needs --file (see `dcase pinn data {name} --help`)")
        for name, make in PROBLEMS.items():
            click.echo(f"{name:20} {(make.__doc__ or '').splitlines()[0]}")
        return
    from dcase.pinn.pdebench.reading import describe_file

    for path in paths:
        if Path(path).is_dir():
            source, settings = read_record(path)
            click.echo(f"{path}: {source.task}, sample {source.sample}, {settings.activation}")
            result = Path(path) / "metrics.json"
            if not result.exists():
                click.echo("  not finished; `dcase pinn train ... --resume` goes on")
                continue
            for line in _errors_of(result):
                click.echo(line)
        else:
            click.echo(f"{path}: {describe_file(path)}")


@pinn.command()
@click.argument("task", metavar="TASK")
@click.option("--file", type=click.Path(dir_okay=False), help="HDF5 file in PDEBench's layout.")
@click.option("--sample", type=int, default=0, show_default=True, help="Of the file.")
@click.option(
    "--activations",
    default=",".join(ACTIVATIONS),
    help="Comma-separated; default: tanh and the integrated family.",
)
@count("--seeds", default=3, help="Runs of each.")
@positive(
    "--time-limit",
    help="Seconds of each run; default: as many steps each as the recipe or --optimizer says.",
)
@positive("--cpu-limit", help="The same in CPU seconds.")
@out_folder("Folder for runs and tables.", "compare")
@quiet_option("Print the table only.")
@threads_option
@_settings_options
def compare(
    task: str,
    file: str | None,
    sample: int,
    activations: str,
    seeds: int,
    time_limit: float | None,
    cpu_limit: float | None,
    out: str,
    quiet: bool,
    threads: int | None,
    **chosen: Any,
) -> None:
    """Train with several activations and seeds, the same steps or time each: mean and spread.

    Runs that are there already are kept. Writes comparison.csv, .md and .png to OUT.
    """
    from dcase.cli.reproduce_pinn import carry_out
    from dcase.files import write_text
    from dcase.pinn.experiments.comparison import comparison_runs, write_comparison
    from dcase.tables import grid

    use_threads(threads)
    source = Source(task, file, sample)
    problem = source.problem()
    default = source.settings(problem, chosen.get("network"))
    limits = {"time_limit": time_limit, "cpu_limit": cpu_limit}
    base = _chosen_settings(default, {**chosen, **limits})
    names = [canonical_name(name) for name in activations.split(",")]
    runs = comparison_runs(source, base, names, range(seeds))
    results = carry_out(runs, problem, Path(out) / "runs", quiet, pictures=False)
    rows = write_comparison(Path(out), problem.name, results)
    text = "\n".join(grid(rows)) + "\n"
    write_text(Path(out) / "comparison.md", text)
    click.echo(text)


def _print_metrics(metrics: dict[str, Any], folder: Path) -> None:
    """Errors by field beside those of trivial predictors, and the terms."""
    console = results_console()
    if metrics.get("fields"):
        table = Table(title=f"Errors over the last 20 saved times, {metrics.get('task', '')}")
        table.add_column("field")
        table.add_column("predictor")
        for title in SHOWN.values():
            table.add_column(title, justify="right")
        for field in metrics["fields"]:
            rows = {"network": metrics["fields"][field]}
            rows |= {k: v[field] for k, v in metrics["baselines"].items()}
            for who, errors in rows.items():
                table.add_row(field, who, *(f"{_number(errors[n]):.4g}" for n in SHOWN))
            table.add_section()
        console.print(table)
    if metrics.get("terms"):
        console.print("Last mean squares of the terms, in the equation's units:")
        for name, value in metrics["terms"].items():
            console.print(f"  {name:24} {_number(value):.3e}", markup=False)


def _errors_of(result: Path) -> list[str]:
    """Lines about the errors in a run's metrics.json.

    Raises:
        DataError: If it is damaged.
    """
    content = read_json(result)
    try:
        return [
            f"  {name}: RMSE {_number(errors['rmse']):.4g}, nRMSE {_number(errors['nrmse']):.4g}"
            for name, errors in content["fields"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{result} is damaged, or not of `dcase pinn train` ({error})") from error


def _number(value: float | None) -> float:
    """NaN is null in files."""
    return float("nan") if value is None else value


pinn.add_command(data)
