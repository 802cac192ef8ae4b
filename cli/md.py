"""``dcase md``: dynamics and the drift report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from dcase.cli.options import attribute_help, device_option, threads_option, use_threads
from dcase.md_runs.settings import ENSEMBLES, MDSettings

_HELP = attribute_help(MDSettings)


@click.command()
@click.option(
    "--model",
    default="aspirin_irelu.pt",
    show_default=True,
    help="Checkpoint; the default is shipped with dcase.",
)
@click.option(
    "--structure",
    default=None,
    help="Structure file or molecule name; default: what the potential was trained on.",
)
@click.option("--ensemble", type=click.Choice(ENSEMBLES), default="nve", show_default=True)
@click.option("--temperature", type=float, default=300.0, show_default=True, help="K.")
@click.option("--timestep", type=float, default=0.5, show_default=True, help="fs.")
@click.option("--steps", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option(
    "--equilibrate",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help=_HELP["equilibrate"],
)
@click.option(
    "--friction", type=float, default=0.02, show_default=True, help=_HELP["friction_per_fs"]
)
@click.option("--taut", type=float, default=100.0, show_default=True, help=_HELP["taut_fs"])
@click.option("--keep-momenta", is_flag=True, help=_HELP["keep_momenta"])
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    default="float32",
    show_default=True,
    help="Of the network; geometry and energy sums are float64.",
)
@device_option
@threads_option
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    default="md_run",
    show_default=True,
    help="Folder of the run.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out.")
@click.option(
    "--dt-scan",
    "scan",
    is_flag=True,
    help="Also run dt, dt/2, dt/4 from the same start: the fluctuation of the energy "
    "must fall by 4 each time.",
)
@click.option(
    "--log-every", type=click.IntRange(min=1), default=1, show_default=True, help=_HELP["log_every"]
)
@click.option(
    "--traj-every",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help=_HELP["traj_every"],
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help=_HELP["checkpoint_every"],
)
@click.option(
    "--reference",
    type=click.Path(),
    default=None,
    help="Reference frames of the same molecule (.npz): bond stability and h(r).",
)
@click.option("--force-timestep", is_flag=True, help=_HELP["force_timestep"])
@click.option("--quiet", "-q", is_flag=True, help="Print the report only.")
def md(
    model: str,
    structure: str | None,
    out: str,
    dtype: str,
    device: str | None,
    threads: int | None,
    resume: bool,
    overwrite: bool,
    scan: bool,
    reference: str | None,
    quiet: bool,
    temperature: float,
    timestep: float,
    friction: float,
    taut: float,
    **rest: Any,
) -> None:
    """Run molecular dynamics and report how well the energy is conserved.

    With no options: the shipped aspirin potential, NVE at 300 K, 0.5 fs, 10 000 steps.
    """
    use_threads(threads)
    settings = MDSettings(
        temperature_K=temperature,
        timestep_fs=timestep,
        friction_per_fs=friction,
        taut_fs=taut,
        **{f.name: rest[f.name] for f in dataclasses.fields(MDSettings) if f.name in rest},
    )
    report = simulate(
        model,
        structure,
        settings,
        Path(out),
        dtype=dtype,
        device=device,
        resume=resume,
        overwrite=overwrite,
        scan=scan,
        reference=reference,
        quiet=quiet,
    )
    if report["status"] == "interrupted":
        raise click.exceptions.Exit(130)
    if report["status"] != "finished":
        raise click.exceptions.Exit(1)


def simulate(
    model: str,
    structure: str | None,
    settings: MDSettings,
    out: Path,
    *,
    dtype: str,
    device: str | None,
    resume: bool = False,
    overwrite: bool = False,
    scan: bool = False,
    reference: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Simulate, write and print the report; returns its content."""
    from rich.console import Console

    from dcase.cli.progress import step_bar
    from dcase.cli.structures import load_structure
    from dcase.data.npz import read_npz
    from dcase.md_runs.report import print_summary, write_report
    from dcase.md_runs.scan import dt_scan
    from dcase.md_runs.simulate import run_md
    from dcase.potentials.calculator import DCCalculator

    console = Console(stderr=True, quiet=quiet)
    calc = DCCalculator(model, dtype=dtype, device=device)
    atoms, where = load_structure(structure, calc.potential)
    positions = None
    if reference:
        frames = read_npz(reference)
        positions = frames.positions.reshape(len(frames), -1, 3)
    atoms.calc = calc
    console.print(
        f"{calc.potential.describe()} ({calc.potential.level_of_theory}) on {where}: "
        f"{settings.steps} steps of {settings.timestep_fs} fs, {settings.ensemble}, "
        f"{settings.temperature_K:g} K, {dtype} on {calc.device}",
        highlight=False,
        soft_wrap=True,
    )

    def notify(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    with step_bar(console, "dynamics") as progress:
        result = run_md(
            atoms,
            settings,
            out,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            notify=notify,
        )
    table = None
    if scan and result.status == "finished":
        start = atoms.copy()
        start.calc = calc
        with step_bar(console, "dt scan") as progress:
            table = dt_scan(start, settings, progress=progress, notify=notify)
    report = write_report(out, dt_scan=table, reference_positions=positions)
    output = Console()
    print_summary(report, output)
    output.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True)
    return report
