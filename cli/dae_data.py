"""``dcase dae data``: make or describe trajectories of constrained systems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from dcase.cli.options import (
    Number,
    count,
    out_file,
    overwrite_option,
    positive,
    quiet_option,
    seed_option,
)

if TYPE_CHECKING:
    from dcase.dae.trajectories import Trajectory

PREDICT_STEPS = (20, 50)
"""How far ahead, in steps, the predictors that know nothing are measured: as in the paper."""


@click.group(short_help="Make or describe trajectories.")
def data() -> None:
    """Make or describe trajectories: a chain of pendulums, a droplet of water.

    \b
    What training uses by default, made once into the user's cache folder:
        dcase dae data pendulum
        dcase dae data water
    A file of your own, and what it holds:
        dcase dae data pendulum --seed 1 --steps 5000 --out swing.h5
        dcase dae data info swing.h5
    """


def _common(steps: int, what: str, seed: int | None, start: str) -> Callable[[Any], Any]:
    """The options that both systems share."""
    options = (
        count("--steps", default=steps, help=what),
        seed_option(start, seed),
        out_file("The HDF5 file to write; default: the user's cache folder."),
        overwrite_option("Make it again if it is there."),
        quiet_option(),
    )

    def decorate(command: Callable[..., Any]) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _make(system: str, out: str | None, overwrite: bool, quiet: bool, **options: Any) -> None:
    from rich.console import Console

    from dcase.cli.progress import step_bar
    from dcase.dae.trajectories import make_file

    console = Console(stderr=True, quiet=quiet)
    made = False
    with step_bar(console, f"{system}, {options['steps']} steps") as bar:

        def progress(done: int, total: int) -> None:
            nonlocal made
            made = True
            bar(done, total)

        path = make_file(system, out, overwrite=overwrite, progress=progress, **options)
    if not made and not quiet:
        click.echo("it is in the cache already (--overwrite makes it again)", err=True)
    _describe(str(path))


@data.command(short_help="A chain of pendulums in the plane.")
@_common(
    14_000,
    "Frames; the first is the start.",
    None,
    "Draw the start angles; default: the paper's start, a horizontal chain at rest.",
)
@count("--pendulums", "n", default=5, help="Masses of 1 kg on rods of 1 m.")
@positive("--interval", default=0.01, help="Between frames, s.")
@count("--substeps", default=10, help="Runge-Kutta steps between two frames.")
@click.option(
    "--gravity",
    type=Number(min=-1e3, max=1e3),
    default=9.82,
    show_default=True,
    help="Downwards, m/s^2.",
)
def pendulum(**options: Any) -> None:
    """Pendulums hanging one below the other, by the Runge-Kutta method; some seconds.

    The motion is chaotic: on another machine the frames differ after some ten seconds of it.
    """
    _make("pendulum", **options)


@data.command(short_help="A droplet of flexible water.")
@_common(
    100_000, "Velocity Verlet steps.", 0, "Of the orientations, velocities and Langevin noise."
)
@count("--molecules", default=32, help="How many.")
@positive("--timestep", "timestep_fs", default=0.1, help="Of the dynamics, fs.")
@count("--stride", default=5, help="Store a frame every so many steps.")
@positive(
    "--temperature",
    "temperature_K",
    default=300.0,
    help="Of the Langevin dynamics before the recorded run, K.",
)
@count("--equilibrate", default=20_000, least=0, help="Steps of Langevin dynamics, 0.5 fs each.")
@click.option(
    "--bond",
    type=click.Choice(["harmonic", "morse"]),
    default="harmonic",
    show_default=True,
    help="Of oxygen to hydrogen.",
)
def water(**options: Any) -> None:
    """A droplet of flexible TIP3P water in the open, at constant energy; half a minute."""
    _make("water", **options)


@data.command(short_help="What a file holds.")
@click.argument("file", type=click.Path())
def info(file: str) -> None:
    """Frames, settings, energy drift and the errors of simple predictors of a trajectory FILE."""
    _describe(file)


def _describe(path: str) -> None:
    from dcase.dae.trajectories import read

    trajectory = read(path)
    click.echo(f"{path}: {_summary(trajectory)}")
    for name, text in _facts(trajectory):
        click.echo(f"  {name}: {text}")


def _summary(trajectory: Trajectory) -> str:
    frames, nodes, _ = trajectory.positions.shape
    unit = trajectory.units["time"]
    pendulum = trajectory.system == "pendulum"
    what = (nodes, "mass", "es") if pendulum else (nodes // 3, "molecule", "s")
    return (
        f"{trajectory.system}, {_several(*what)}, {_several(frames, 'frame', 's')}, one every "
        f"{trajectory.interval:g} {unit} ({(frames - 1) * trajectory.interval:g} {unit})"
    )


def _several(count: int, what: str, ending: str) -> str:
    return f"{count} {what}{'' if count == 1 else ending}"


def _facts(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """Names and texts of what is worth knowing."""
    settings = trajectory.settings
    if settings:
        yield "settings", ", ".join(f"{k}={v}" for k, v in settings.items() if v is not None)
    yield from _pendulum(trajectory) if trajectory.system == "pendulum" else _water(trajectory)
    yield from _predictors(trajectory)
    yield "fingerprint", trajectory.fingerprint()


def _pendulum(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    from dcase.md_runs.analysis.drift import fit_line

    energy = trajectory.energy
    largest = f"largest deviation {np.abs(energy - energy[0]).max():.2g} J"
    if len(energy) < 3:
        yield "energy", f"{largest}; too few frames for a drift"
        return
    times = np.arange(len(energy)) * trajectory.interval
    intercept, slope, error, _ = fit_line(times, energy)
    rms = float(np.sqrt(np.mean((energy - intercept - slope * times) ** 2)))
    yield (
        "energy",
        f"{largest}, drift {slope:.2g} ± {error:.1g} J/s, RMS fluctuation {rms:.2g} J",
    )


def _water(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    from dcase.md_runs.analysis.drift import analyse

    nodes = trajectory.positions.shape[1]
    drift = analyse(
        np.arange(len(trajectory)) * trajectory.interval,
        trajectory.energy,
        trajectory.kinetic_energy(),
        n_atoms=nodes,
        n_dof=3 * nodes - 6,  # neither drifts nor turns
    )
    if len(trajectory) < 3:
        yield "energy", "too few frames for a drift"
        return
    slope, error = drift.slope_mev_per_atom_ps, drift.slope_stderr_mev_per_atom_ps
    yield (
        "energy",
        f"drift {slope:.2g} ± {error:.1g} meV/atom/ps, RMS fluctuation "
        f"{drift.rms_mev_per_atom:.2g} meV/atom: {drift.verdict}",
    )
    yield "temperature", f"{drift.temperature_K:.1f} K"
    sites = trajectory.positions.reshape(len(trajectory), -1, 3, 3)
    bonds = np.linalg.norm(sites[:, :, 1:] - sites[:, :, :1], axis=-1)
    yield "O-H bonds", f"{bonds.mean():.4f} A, standard deviation {bonds.std():.4f} A"
    oxygens = sites[-1, :, 0]
    if len(oxygens) > 1:
        apart = np.linalg.norm(oxygens[:, None] - oxygens[None], axis=-1)
        np.fill_diagonal(apart, np.inf)
        yield (
            "droplet",
            "the loneliest molecule of the last frame has its nearest neighbour at "
            f"{apart.min(axis=1).max():.1f} A (O-O)",
        )


def _predictors(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    from dcase.dae.trajectories import predictor_errors
    from dcase.errors import OptionError

    factor, unit = (100.0, "cm") if trajectory.system == "pendulum" else (100.0, "pm")
    for k in PREDICT_STEPS:
        try:
            errors = predictor_errors(trajectory, k)
        except OptionError:  # too short, or k is no multiple of the stride
            continue
        yield (
            f"identity, constant velocity, k={k}",
            f"{factor * errors['identity']:.3g} {unit}, "
            f"{factor * errors['constant_velocity']:.3g} {unit} (mean norm per node)",
        )
