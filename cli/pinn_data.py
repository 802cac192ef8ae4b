"""``dcase pinn data``: make, fetch or describe files of the PDEBench tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dcase.cli.options import (
    Number,
    count,
    out_file,
    out_folder,
    overwrite_option,
    quiet_option,
    seed_option,
)


@click.group()
def data() -> None:
    """Make, download or describe reference data in PDEBench's HDF5 layouts.

    \b
    The nine samples of PDEBench's PINN baseline, made in seconds:
        dcase pinn data advection --samples -9:0 --out advection.hdf5
    What a file holds:
        dcase pinn data info advection.hdf5
    """


def _common(samples: str, out: str, times: int) -> Callable[[Callable[..., Any]], Any]:
    """The options that all tasks share."""
    options = (
        click.option(
            "--samples",
            default=None,
            metavar="COUNT|RANGE",
            help="The first so many (9), or a range (0:20; -9:0 are the last nine) of the "
            f"published samples, or of those that --seed draws; default: {samples}.",
        ),
        seed_option(
            "Draw new initial states like the published ones; default: the published ones.", None
        ),
        count("--nt", default=times, least=2, help="Stored times."),
        out_file("The HDF5 file to write.", out),
        overwrite_option("Replace the file if it is there."),
        quiet_option(),
    )

    def decorate(command: Callable[..., Any]) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_cells = count("--nx", default=1024, least=8, help="Cells of the grid.")


def _make(
    task: str,
    write: str,
    samples: str | None,
    seed: int | None,
    nt: int,
    out: str,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    from rich.console import Console

    from dcase.cli.progress import step_bar
    from dcase.pinn.pdebench import generate
    from dcase.pinn.pdebench.reading import describe_file

    if samples is None:
        few = task == "diffusion-reaction"
        samples = "1" if few else ("-9:0" if seed is None else "9")
    numbers = generate.sample_numbers(samples, task, published=seed is None)
    console = Console(stderr=True, quiet=quiet)
    with step_bar(console, f"{task}, {len(numbers)} samples") as progress:
        path = getattr(generate, write)(
            out,
            numbers,
            seed=seed,
            times=nt,
            overwrite=overwrite,
            progress=progress,
            **options,
        )
    click.echo(f"{path}: {describe_file(path)}")


@data.command(short_help="Advection of a profile around a period.")
@_common("the last nine, or nine new ones", "advection.hdf5", 201)
@_cells
@click.option(
    "--beta",
    type=Number(min=-100, max=100),
    default=0.1,
    show_default=True,
    help="Speed.",
)
@click.option(
    "--scheme",
    type=click.Choice(["muscl", "exact"]),
    default="muscl",
    show_default=True,
    help="muscl: finite volumes, as published; exact: the profile itself, moved.",
)
def advection(nx: int, beta: float, scheme: str, **common: Any) -> None:
    """Advection u_t + beta u_x = 0 on the period [0, 1], t from 0 to 2."""
    _make("advection", "write_advection", cells=nx, beta=beta, scheme=scheme, **common)


@data.command(short_help="Compressible flow in one dimension.")
@_common("the last nine, or nine new ones", "cfd.hdf5", 101)
@_cells
def cfd(nx: int, **common: Any) -> None:
    """Compressible flow (gamma 5/3) on the period [-1, 1], t from 0 to 1.

    MUSCL reconstruction and HLLC flux; some seconds a sample.
    """
    _make("cfd", "write_flow", cells=nx, **common)


@data.command("diffusion-reaction", short_help="Diffusion and reaction in two dimensions.")
@_common("1", "diffusion_reaction.h5", 101)
@count(
    "--resolution",
    default=128,
    least=4,
    help="Cells along x and along y; the initial noise has one number per cell.",
)
def diffusion_reaction(resolution: int, **common: Any) -> None:
    """FitzHugh-Nagumo diffusion and reaction on [-1, 1] squared with closed walls, t from 0 to 5.

    Finite volumes and Runge-Kutta 4(5); some seconds a sample.
    """
    _make("diffusion-reaction", "write_diffusion_reaction", cells=resolution, **common)


@data.command(short_help="Download a published file (8 to 13 GB).")
@click.argument("task", type=click.Choice(["advection", "cfd", "diffusion-reaction"]))
@click.option(
    "--beta",
    type=Number(min=0, max=7),
    default=0.1,
    show_default=True,
    help="Of advection.",
)
@out_folder("Folder for the file; default: the user's cache folder.")
@click.option("--url", default=None, help="A mirror; the checksum must be the published one.")
@quiet_option()
def download(task: str, beta: float, out: str | None, url: str | None, quiet: bool) -> None:
    """Download the published file of TASK.

    The same command goes on with a download that broke; the checksum is verified.
    """
    from dcase.pinn.pdebench.download import download as fetch
    from dcase.pinn.pdebench.download import remote_file

    file = remote_file(task, beta)
    if not quiet:
        click.echo(f"{file.name}, about {file.gigabytes:g} GB, from {url or file.url}", err=True)
    click.echo(str(fetch(file, out, progress=not quiet, url=url)))


@data.command(short_help="What a file holds.")
@click.argument("file", type=click.Path())
def info(file: str) -> None:
    """Task, samples, sizes and constants of a PDEBench FILE."""
    from dcase.pinn.pdebench.reading import describe_file

    summary = describe_file(file)
    click.echo(str(summary))
    for name, text in summary.notes.items():
        click.echo(f"  {name.replace('_', ' ')}: {text}")
