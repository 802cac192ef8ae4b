"""``dcase md``: dynamics and the drift report."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dcase.cli.options import (
    Number,
    SectionedCommand,
    attribute_help,
    code_option,
    count,
    device_option,
    dtype_option,
    optimize_option,
    out_folder,
    overwrite_option,
    positive,
    quiet_option,
    refuse_both,
    resume_option,
    section,
    seed_option,
    structure_option,
    threads_option,
    use_threads,
)
from dcase.errors import DcaseError, OptionError
from dcase.md_runs.choices import CONSTRAINTS
from dcase.md_runs.settings import ENSEMBLES, ON_UNCERTAIN, MDSettings

_HELP = attribute_help(MDSettings)
_DEFAULT = MDSettings()


@click.command(cls=SectionedCommand)
@click.option(
    "--model",
    multiple=True,
    default=("aspirin_irelu.pt",),
    show_default=True,
    help="Checkpoint of a potential or an ensemble; the default is shipped with dcase. Given "
    "several times, the potentials together are an ensemble.",
)
@structure_option()
@out_folder("Folder of the run.", "md_run")
@resume_option("Go on from the last checkpoint in --out; --steps may be more.")
@overwrite_option()
@quiet_option("Print the report only.")
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
    positive(
        "--timestep",
        default=_DEFAULT.timestep_fs,
        help="fs; 0.5 resolves a C-H stretch (11 fs) 22 times.",
    ),
    count("--steps", default=_DEFAULT.steps, help="Production steps."),
    count("--equilibrate", default=_DEFAULT.equilibrate, least=0, help=_HELP["equilibrate"]),
    positive(
        "--friction",
        default=_DEFAULT.friction_per_fs,
        help="Langevin friction of production and equilibration, 1/fs.",
    ),
    positive("--taut", default=_DEFAULT.taut_fs, help=_HELP["taut_fs"]),
    click.option(
        "--constrain",
        type=click.Choice(CONSTRAINTS),
        default=_DEFAULT.constrain,
        show_default=True,
        help="Hold these bonds at their lengths in the structure (RATTLE): twice the time step "
        "then conserves energy about as well.",
    ),
    click.option(
        "--keep-momenta",
        is_flag=True,
        help="Start from the momenta of the structure instead of drawing them; sets --equilibrate "
        "to 0.",
    ),
    seed_option("Of everything random.", _DEFAULT.seed),
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
    count("--log-every", default=_DEFAULT.log_every, help=_HELP["log_every"]),
    count("--traj-every", default=_DEFAULT.traj_every, help=_HELP["traj_every"]),
    count("--checkpoint-every", default=_DEFAULT.checkpoint_every, help=_HELP["checkpoint_every"]),
    click.option(
        "--on-broken-bond",
        type=click.Choice(ON_UNCERTAIN),
        default="stop",
        show_default=True,
        help="Stop the run (exit status 1), or go on as atoms leave; the report says which bond "
        "broke when.",
    ),
)
@section(
    "Uncertainty (ensembles)",
    positive(
        "--max-uncertainty",
        metavar="X",
        help="Trust a step up to this standard deviation of the force on an atom over the "
        "ensemble, eV/A; frames beyond go into selected.extxyz, worth labelling.",
    ),
    click.option(
        "--on-uncertain",
        type=click.Choice(ON_UNCERTAIN),
        default=_DEFAULT.on_uncertain,
        show_default=True,
        help="Beyond it: stop the run (exit status 1), or flag the steps and go on.",
    ),
    count(
        "--max-selected",
        default=_DEFAULT.max_selected,
        help="Most frames in selected.extxyz: the most uncertain, no two alike.",
    ),
)
@section(
    "Replicas",
    count(
        "--replicas",
        metavar="N",
        help="Simulate N independent copies, each with momenta of its own; NVE only. "
        "The report is for each of them and for all.",
    ),
)
@section(
    "Machine",
    dtype_option("float32"),
    device_option,
    code_option,
    threads_option,
    optimize_option,
)
def md(
    model: tuple[str, ...] | str,
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
    max_uncertainty: float | None,
    on_broken_bond: str,
    replicas: int | None,
    optimize: bool | None,
    **rest: Any,
) -> None:
    """Run molecular dynamics and report how well the energy is conserved.

    With no options: the shipped aspirin potential, NVE at 300 K, 0.5 fs, 10 000 steps. The folder
    gets report.html, report.json (keys with units), figures, the trajectory (H5MD) and what
    --resume needs. Ctrl-C stops within a second or so and keeps everything; a run that blows up
    does the same and exits with 1. With an ensemble the report also says how far its members
    disagree.
    """
    refuse_both(resume, overwrite)
    use_threads(threads)
    asked = click.get_current_context().get_parameter_source("equilibrate")
    if rest["keep_momenta"] and asked is ParameterSource.DEFAULT:
        rest["equilibrate"] = 0  # momenta that are kept are not equilibrated
    settings = MDSettings(
        temperature_K=temperature,
        timestep_fs=timestep,
        friction_per_fs=friction,
        taut_fs=taut,
        max_uncertainty_eV_A=max_uncertainty,
        bond_stretch_A=_DEFAULT.bond_stretch_A if on_broken_bond == "stop" else None,
        **{f.name: rest[f.name] for f in dataclasses.fields(MDSettings) if f.name in rest},
    )
    report = simulate(
        [model] if isinstance(model, str) else list(model),
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
        replicas=replicas,
        optimize=optimize,
    )
    if report["status"] != "finished":
        raise click.exceptions.Exit(1)


def simulate(
    model: list[str],
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
    replicas: int | None = None,
    optimize: bool | None = None,
) -> dict[str, Any]:
    """Simulate, write and print the report; returns its content."""
    from rich.console import Console

    from dcase.cli.forms import form_of
    from dcase.cli.progress import step_bar
    from dcase.cli.show import results_console
    from dcase.cli.structures import load_structure
    from dcase.data.frames import UNKNOWN, read_frames
    from dcase.md_runs.analysis.dt_scan import dt_scan
    from dcase.md_runs.analysis.matching import matched_frames
    from dcase.md_runs.loop.uncertainty import is_ensemble
    from dcase.md_runs.report.report import write_report
    from dcase.md_runs.report.summary import print_summary
    from dcase.md_runs.simulate import run_md
    from dcase.potentials.calculator import DCCalculator

    console = Console(stderr=True, quiet=quiet)
    calc = DCCalculator(
        model if len(model) > 1 else model[0], dtype=dtype, device=device, optimize=optimize
    )
    atoms, where = load_structure(structure, calc.potential)
    positions = None
    if reference:
        positions, reordered = matched_frames(read_frames(reference), atoms, reference)
        if reordered:
            console.print(
                f"--reference {reference}: atoms put in the order of {where} by their bonds",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    atoms.calc = calc
    # A structure that the potential refuses is refused here, before there is a folder.
    atoms.get_potential_energy()
    if settings.max_uncertainty_eV_A is not None and not is_ensemble(calc):
        raise OptionError(
            "--max-uncertainty needs an ensemble: --model is a single potential; give an "
            "ensemble's checkpoint (dcase cross-validate makes one), or --model once for each of "
            "several potentials"
        )
    level = calc.potential.level_of_theory
    theory = "" if level == UNKNOWN else f" ({level})"
    held = "" if settings.constrain == "none" else f", {settings.constrain} held"
    console.print(
        f"{calc.potential.describe()}{theory} on {where}: "
        f"{settings.steps} steps of {settings.timestep_fs} fs, {settings.ensemble}, "
        f"{settings.temperature_K:g} K, {dtype} on {calc.device}{held}"
        + ("" if replicas is None else f", {replicas} replicas")
        + f"\n{form_of(calc)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )

    def notify(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    if replicas is not None:
        if scan or reference:
            raise OptionError("--dt-scan and --reference are for a single copy, not for --replicas")
        return _replicas(atoms, settings, replicas, out, console, notify, resume, overwrite)
    found: dict[str, Any] = {}
    failure: list[BaseException] = []

    bars = ExitStack()  # one bar at a time

    def conclude(result: Any) -> None:
        """The scan and the report, while the folder is still this run's."""
        bars.close()
        table = None
        if scan and result.status == "finished":
            start = atoms.copy()
            start.calc = calc
            try:
                with step_bar(console, "dt scan") as progress:
                    table = dt_scan(start, settings, progress=progress, notify=notify)
            except (DcaseError, KeyboardInterrupt) as error:
                failure.append(error)  # the run itself is done, and gets its report
                again = "; --resume --dt-scan repeats it"
                stopped = isinstance(error, KeyboardInterrupt)
                notify("the time-step scan did not finish" + (again if stopped else ""))
        found.update(write_report(out, dt_scan=table, reference_positions=positions))

    with bars:
        progress = bars.enter_context(step_bar(console, "dynamics"))
        run_md(
            atoms,
            settings,
            out,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            notify=notify,
            conclude=conclude,
        )
    output = results_console()
    print_summary(found, output)
    output.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)
    if found["status"] == "interrupted":
        notify("interrupted; the same command with --resume goes on")
        raise click.exceptions.Exit(130)
    if failure:
        raise failure[0]
    return found


def _replicas(
    atoms: Any,
    settings: MDSettings,
    replicas: int,
    out: Path,
    console: Any,
    notify: Any,
    resume: bool,
    overwrite: bool,
) -> dict[str, Any]:
    """Simulate many copies, write and print their report."""
    from dcase.cli.progress import step_bar
    from dcase.cli.show import results_console
    from dcase.md_runs.replicas import run_replicas
    from dcase.md_runs.report.replica_report import print_replica_summary, write_replica_report

    found: dict[str, Any] = {}
    with step_bar(console, f"{replicas} replicas") as progress:
        status = run_replicas(
            atoms,
            settings,
            replicas,
            out,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            notify=notify,
            conclude=lambda status: found.update(write_replica_report(out, status)),
        )
    output = results_console()
    print_replica_summary(found, output)
    output.print(
        f"report: {out / 'report.json'}, drift.png, replicas.h5", markup=False, soft_wrap=True
    )
    if status == "interrupted":
        notify("interrupted; the same command with --resume goes on")
        raise click.exceptions.Exit(130)
    return found
