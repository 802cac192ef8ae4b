"""``dcase data``: list, fetch and generate training data."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table


@click.group()
def data() -> None:
    """List, fetch or generate training data."""


@data.command("list")
@click.option("--data-dir", type=click.Path(file_okay=False), default=None)
def list_(data_dir: str | None) -> None:
    """The datasets that dcase knows, and which are here."""
    from dcase.data.md17 import list_datasets

    table = Table()
    for column in ("molecule", "source", "level of theory", "frames", "here", "where"):
        table.add_column(column, overflow="fold")
    for row in list_datasets(data_dir):
        table.add_row(
            row.molecule,
            row.source,
            row.level_of_theory,
            str(row.frames),
            "yes" if row.cached else "no",
            str(row.where),
        )
    Console().print(table)


@data.command()
@click.argument("molecule")
@click.option("--source", type=click.Choice(["md17", "rmd17"]), default="md17", show_default=True)
@click.option("--data-dir", type=click.Path(file_okay=False), default=None)
def fetch(molecule: str, source: str, data_dir: str | None) -> None:
    """Download MOLECULE's frames (resumed if interrupted; the checksum is recorded)."""
    from dcase.data.md17 import load_md17

    found = load_md17(molecule, source, cache_dir=data_dir)
    click.echo(
        f"{len(found)} frames of {found.info.molecule}, {found.info.level_of_theory}: "
        f"{found.info.source}"
    )


@data.command()
@click.argument("source")
@click.option("--frames", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--temperature", type=float, default=500.0, show_default=True, help="K.")
@click.option("--timestep", type=float, default=0.5, show_default=True, help="fs.")
@click.option(
    "--interval",
    type=float,
    default=None,
    help="fs between frames; default: four autocorrelation times of the energy.",
)
@click.option("--equilibrate", type=float, default=1000.0, show_default=True, help="fs.")
@click.option("--friction", type=float, default=0.05, show_default=True, help="1/fs.")
@click.option("--walkers", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--out", type=click.Path(dir_okay=False), default=None, help="Default: <source>_gfn2xtb.npz."
)
@click.option("--overwrite", is_flag=True, help="Start anew; the default goes on where it stopped.")
def generate(
    source: str,
    frames: int,
    temperature: float,
    timestep: float,
    interval: float | None,
    equilibrate: float,
    friction: float,
    walkers: int,
    seed: int,
    out: str | None,
    overwrite: bool,
) -> None:
    """Sample SOURCE (a molecule's name, a SMILES, or a structure file) with GFN2-xTB at 500 K.

    Needs the extra: pip install 'dcase[xtb]'.
    """
    from pathlib import Path

    from dcase.data.generate import generate as run
    from dcase.errors import DcaseError

    if out is None:
        stem = Path(source).stem
        if not stem.replace("-", "").replace("_", "").isalnum():
            raise DcaseError("give --out FILE: a file name cannot be made from this SMILES")
        out = f"{stem}_gfn2xtb.npz"
    written = run(
        source,
        frames,
        temperature=temperature,
        timestep=timestep,
        interval=interval,
        equilibrate=equilibrate,
        friction=friction,
        walkers=walkers,
        seed=seed,
        out=out,
        resume=not overwrite,
        progress=True,
    )
    click.echo(f"{frames} frames: {written}")
