"""``dcase data``: list, fetch, generate and check training data."""

from __future__ import annotations

from pathlib import Path

import click

from dcase.cli.data_check import check
from dcase.cli.options import (
    Number,
    count,
    data_dir_option,
    out_file,
    overwrite_option,
    positive,
    seed_option,
)


@click.group()
def data() -> None:
    """List, fetch, generate or check training data."""


@data.command("list", short_help="The datasets that dcase knows, and which are here.")
@data_dir_option
def list_(data_dir: str | None) -> None:
    """The datasets that dcase knows, and which are here (else: the command that gets them)."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from dcase.cli.show import results_console
    from dcase.data.md17 import list_datasets

    table = Table(box=SIMPLE_HEAD)
    for column in ("molecule", "source", "level of theory"):
        table.add_column(column, no_wrap=True)
    table.add_column("frames", no_wrap=True, justify="right")
    table.add_column("here", no_wrap=True)
    table.add_column("file, or how to get it", overflow="fold")
    for row in list_datasets(data_dir):
        fetch_it = f"dcase data fetch {row.molecule}" + (
            " --source rmd17" if row.source == "rmd17" else ""
        )
        get_it = fetch_it if row.source != "xtb" else f"dcase data generate {row.molecule}"
        table.add_row(
            row.molecule,
            row.source,
            row.level_of_theory,
            "" if row.frames is None else str(row.frames),
            "yes" if row.cached else "no",
            Text(row.where if row.cached else get_it),
        )
    for name, theory, frames, file in _many_molecules(data_dir):
        get_it = f"dcase data fetch {name}"
        here = "yes" if file is not None else "no"
        table.add_row("", name, theory, frames, here, Text(get_it if file is None else str(file)))
    results_console().print(table)


def _many_molecules(data_dir: str | None) -> list[tuple[str, str, str, Path | None]]:
    """Name, level of theory, frames and file (None: not here) of the sets of many molecules."""
    from dcase.data import iso17, qm9, qm9_files
    from dcase.data.download import cache_folder

    folder = cache_folder(data_dir)
    places = [folder / "qm9" / f"{name}.npz" for name in ("qm9pack", "figshare")]
    places.append(qm9_files.qm9pack_folder(needed=False) or folder / "qm9" / qm9_files.ARCHIVE)
    reference = folder / "iso17" / iso17.PARTS["reference"]
    return [
        ("qm9", qm9.THEORY, "130831", next((p for p in places if p.exists()), None)),
        ("iso17", iso17.THEORY, "635000", reference if reference.is_file() else None),
    ]


@data.command(short_help="Download a molecule's frames, QM9 or ISO17.")
@click.argument("molecule", metavar="MOLECULE|qm9|iso17")
@click.option(
    "--source",
    type=click.Choice(["md17", "rmd17"]),
    default="md17",
    show_default=True,
    help="Which set of a molecule; rmd17 is one archive of all molecules.",
)
@data_dir_option
def fetch(molecule: str, source: str, data_dir: str | None) -> None:
    """Download MOLECULE's frames (resumed if interrupted; the checksum is recorded).

    qm9 is taken from the package qm9pack where that is installed, iso17 is one archive.
    """
    if molecule.lower() == "qm9":
        from dcase.data.qm9 import load_qm9

        molecules = load_qm9(cache_dir=data_dir)
        click.echo(f"{len(molecules)} molecules of QM9: {molecules.info.source}")
        return
    if molecule.lower() == "iso17":
        from dcase.data.iso17 import count_rows, find_iso17

        reference = find_iso17(cache_dir=data_dir).reference
        click.echo(f"{count_rows(reference)} frames to train on, ISO17: {reference}")
        return
    from dcase.data.md17 import load_md17
    from dcase.data.molecules import get_molecule

    found = load_md17(molecule, source, cache_dir=data_dir)
    click.echo(
        f"{len(found)} frames of {get_molecule(molecule).full_name}, {found.info.level_of_theory}: "
        f"{found.info.source}"
    )


@data.command(short_help="Sample a molecule with GFN2-xTB.")
@click.argument("source")
@count("--frames", default=1000, help="Frames to make.")
@positive("--temperature", default=500.0, help="Of the Langevin thermostat, K.")
@positive("--timestep", default=0.5, help="Of the dynamics, fs.")
@positive(
    "--interval", help="Between frames, fs; default: four autocorrelation times of the energy."
)
@click.option(
    "--equilibrate",
    type=Number(min=0.0),
    default=1000.0,
    show_default=True,
    help="Before the first frame, fs.",
)
@positive("--friction", default=0.05, help="Langevin friction, 1/fs.")
@count("--walkers", default=5, help="Independent trajectories that share the frames.")
@click.option(
    "--charge",
    type=int,
    default=None,
    help="Total charge; default: that of the structure file or SMILES, else 0.",
)
@count("--multiplicity", help="2S + 1; default: that of the source, else the lowest.")
@seed_option("Of the trajectories.")
@out_file("The .npz to write; default: <source>_gfn2xtb.npz.")
@overwrite_option("Start anew; the default goes on where it stopped.")
def generate(
    source: str,
    frames: int,
    temperature: float,
    timestep: float,
    interval: float | None,
    equilibrate: float,
    friction: float,
    walkers: int,
    charge: int | None,
    multiplicity: int | None,
    seed: int,
    out: str | None,
    overwrite: bool,
) -> None:
    """Sample SOURCE with GFN2-xTB: a molecule's name, a SMILES, or a structure file.

    Thermostatted dynamics as MD17's, decorrelated frames, energies and forces in MD17's layout.
    Interrupt it at will: the same command goes on. Needs the extra: pip install 'dcase[xtb]'.
    """
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
        charge=charge,
        multiplicity=multiplicity,
        out=out,
        resume=not overwrite,
        progress=True,
    )
    click.echo(f"{frames} frames: {written}")


data.add_command(check)
