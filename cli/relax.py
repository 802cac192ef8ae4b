"""``dcase relax``: the nearest minimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dcase.cli.options import (
    code_option,
    count,
    device_option,
    dtype_option,
    out_folder,
    overwrite_option,
    positive,
    structure_option,
    threads_option,
    use_threads,
)


@click.command()
@click.option(
    "--model",
    default="aspirin_irelu.pt",
    show_default=True,
    help="Checkpoint; the default is shipped with dcase.",
)
@structure_option()
@positive("--fmax", default=0.01, help="Converged when no force is larger, eV/A.")
@count("--steps", default=500, least=0, help="Optimizer steps at most.")
@click.option(
    "--optimizer",
    type=click.Choice(["lbfgs", "bfgs", "fire"]),
    default="lbfgs",
    show_default=True,
    help="fire is slower but robust far from a minimum.",
)
@click.option("--cell", is_flag=True, help="Relax the cell too (periodic systems).")
@click.option("--vibrations", is_flag=True, help="Also print harmonic wavenumbers, 1/cm.")
@dtype_option("float64")
@device_option
@code_option
@threads_option
@out_folder("Folder for relaxed.extxyz, every step, and relax.json.", "relax_run")
@overwrite_option("Replace an earlier result in --out.")
def relax(
    model: str,
    structure: str | None,
    dtype: str,
    device: str | None,
    threads: int | None,
    out: str,
    **options: Any,
) -> None:
    """Relax a structure; exit status 1 if it does not converge."""
    from rich.console import Console

    from dcase.cli.forms import form_of
    from dcase.cli.progress import step_bar
    from dcase.cli.structures import load_structure
    from dcase.md_runs.relax import relax as run
    from dcase.potentials.calculator import DCCalculator

    use_threads(threads)
    calc = DCCalculator(model, dtype=dtype, device=device)
    atoms, where = load_structure(structure, calc.potential)
    atoms.calc = calc
    console = Console(stderr=True)
    console.print(
        f"{calc.potential.describe()} on {where}\n{form_of(calc)}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    with step_bar(console, "relaxing") as progress:
        result = run(atoms, out=out, progress=progress, notify=click.echo, **options)
    if result.frequencies_cm:
        click.echo("wavenumbers, 1/cm: " + " ".join(f"{f:.0f}" for f in result.frequencies_cm))
    click.echo(f"written: {Path(out) / 'relaxed.extxyz'}")
    if not result.converged:
        raise click.exceptions.Exit(1)
