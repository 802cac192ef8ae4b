"""``dcase md``: dynamics and the drift report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from dcase.cli.options import (
    POSITIVE,
    Number,
    SectionedCommand,
    attribute_help,
    device_option,
    dtype_option,
    refuse_both,
    section,
    threads_option,
    use_threads,
)
from dcase.errors import DataError, DcaseError
from dcase.md_runs.settings import CONSTRAINTS, ENSEMBLES, MDSettings

_HELP = attribute_help(MDSettings)
_DEFAULT = MDSettings()


@click.command(cls=SectionedCommand)
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
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    default="md_run",
    show_default=True,
    help="Folder of the run.",
)
@click.option(
    "--resume", is_flag=True, help="Go on from the last checkpoint in --out; --steps may be more."
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out.")
@click.option("--quiet", "-q", is_flag=True, help="Print the report only.")
@section(
    "Dynamics",
    click.option(
        "--ensemble",
        type=click.Choice(ENSEMBLES),
        default=_DEFAULT.ensemble,
        show_default=True,
        help="nve: velocity Verlet; the others keep the temperature.",
    ),
    click.option(
        "--temperature",
        type=Number(min=0.0),
        default=_DEFAULT.temperature_K,
        show_default=True,
        help="K; of the first momenta, the equilibration and the thermostat.",
    ),
    click.option(
        "--timestep",
        type=POSITIVE,
        default=_DEFAULT.timestep_fs,
        show_default=True,
        help="fs; 0.5 resolves a C-H stretch (11 fs) 22 times.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=1),
        default=_DEFAULT.steps,
        show_default=True,
        help="Production steps.",
    ),
    click.option(
        "--equilibrate",
        type=click.IntRange(min=0),
        default=_DEFAULT.equilibrate,
        show_default=True,
        help=_HELP["equilibrate"],
    ),
    click.option(
        "--friction",
        type=POSITIVE,
        default=_DEFAULT.friction_per_fs,
        show_default=True,
        help="Langevin friction of production and equilibration, 1/fs.",
    ),
    click.option(
        "--taut",
        type=POSITIVE,
        default=_DEFAULT.taut_fs,
        show_default=True,
        help=_HELP["taut_fs"],
    ),
    click.option(
        "--constrain",
        type=click.Choice(CONSTRAINTS),
        default=_DEFAULT.constrain,
        show_default=True,
        help="Hold these bonds at their lengths in the structure (RATTLE): twice the time step "
        "then conserves energy about as well.",
    ),
    click.option("--keep-momenta", is_flag=True, help=_HELP["keep_momenta"]),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=_DEFAULT.seed,
        show_default=True,
        help="Of everything random.",
    ),
    click.option("--force-timestep", is_flag=True, help=_HELP["force_timestep"]),
)
@section(
    "Report",
    click.option(
        "--dt-scan",
        "scan",
        is_flag=True,
        help="Also run dt, dt/2, dt/4 from the same start: the fluctuation of the energy must fall "
        "by 4 each time.",
    ),
    click.option(
        "--reference",
        type=click.Path(),
        default=None,
        help="Reference frames of the same molecule (.npz, extxyz, ...): bond stability and h(r).",
    ),
    click.option(
        "--log-every",
        type=click.IntRange(min=1),
        default=_DEFAULT.log_every,
        show_default=True,
        help=_HELP["log_every"],
    ),
    click.option(
        "--traj-every",
        type=click.IntRange(min=1),
        default=_DEFAULT.traj_every,
        show_default=True,
        help=_HELP["traj_every"],
    ),
    click.option(
        "--checkpoint-every",
        type=click.IntRange(min=1),
        default=_DEFAULT.checkpoint_every,
        show_default=True,
        help=_HELP["checkpoint_every"],
    ),
)
@section("Machine", dtype_option("float32"), device_option, threads_option)
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

    With no options: the shipped aspirin potential, NVE at 300 K, 0.5 fs, 10 000 steps. The folder
    gets report.html, report.json (keys with units), figures, the trajectory (H5MD) and what
    --resume needs. Ctrl-C stops after a step and keeps everything; a run that blows up does the
    same and exits with 1.
    """
    refuse_both(resume, overwrite)
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
    from dcase.cli.show import results_console
    from dcase.cli.structures import load_frames, load_structure
    from dcase.md_runs.report import print_summary, write_report
    from dcase.md_runs.scan import dt_scan
    from dcase.md_runs.simulate import run_md
    from dcase.potentials.calculator import DCCalculator

    console = Console(stderr=True, quiet=quiet)
    calc = DCCalculator(model, dtype=dtype, device=device)
    atoms, where = load_structure(structure, calc.potential)
    positions = None
    if reference:
        frames = load_frames(reference)
        same = frames.numbers.reshape(len(frames), -1) if len(set(frames.n_atoms)) == 1 else None
        if same is None or same.shape[1] != len(atoms) or (same != atoms.numbers).any():
            raise DataError(
                f"--reference {reference}: its frames are not {atoms.get_chemical_formula()} with "
                f"the atoms in the order of {where}"
            )
        positions = frames.positions.reshape(len(frames), -1, 3)
    atoms.calc = calc
    # A structure that the potential refuses is refused here, before there is a folder.
    atoms.get_potential_energy()
    held = "" if settings.constrain == "none" else f", {settings.constrain} held"
    console.print(
        f"{calc.potential.describe()} ({calc.potential.level_of_theory}) on {where}: "
        f"{settings.steps} steps of {settings.timestep_fs} fs, {settings.ensemble}, "
        f"{settings.temperature_K:g} K, {dtype} on {calc.device}{held}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )

    def notify(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

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
    table, failure = None, None
    if scan and result.status == "finished":
        start = atoms.copy()
        start.calc = calc
        try:
            with step_bar(console, "dt scan") as progress:
                table = dt_scan(start, settings, progress=progress, notify=notify)
        except (DcaseError, KeyboardInterrupt) as error:
            failure = error  # the run itself is done, and gets its report
            again = "; --resume --dt-scan repeats it"
            stopped = isinstance(error, KeyboardInterrupt)
            notify("the time-step scan did not finish" + (again if stopped else ""))
    report = write_report(out, dt_scan=table, reference_positions=positions)
    output = results_console()
    print_summary(report, output)
    output.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)
    if report["status"] == "interrupted":
        notify("interrupted; the same command with --resume goes on")
        raise click.exceptions.Exit(130)
    if failure is not None:
        raise failure
    return report
