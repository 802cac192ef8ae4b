"""``dcase quickstart``: train, evaluate, relax and simulate aspirin, in a few minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcase.cli.options import (
    count,
    out_folder,
    overwrite_option,
    positive,
    threads_option,
)

if TYPE_CHECKING:
    from dcase.data.molecules import Molecule


@click.command()
@out_folder("Folder for everything that is made.", "quickstart")
@click.option(
    "--molecule",
    default="aspirin",
    show_default=True,
    help="aspirin or ethanol: their frames ship.",
)
@positive("--train-seconds", default=120.0, help="Time limit of the training, s.")
@count("--steps", default=4000, help="Steps of the dynamics, 0.5 fs each.")
@overwrite_option("Replace an earlier quickstart in --out.")
@threads_option
@click.pass_context
def quickstart(
    ctx: click.Context,
    out: str,
    molecule: str,
    train_seconds: float,
    steps: int,
    overwrite: bool,
    threads: int | None,
) -> None:
    """Train a potential briefly on the frames that ship with dcase, then use it.

    The same as dcase train md17, dcase evaluate, dcase relax and dcase md one after the other; a
    longer training gives a better potential.
    """
    from dcase.data.md17 import embedded_file
    from dcase.data.molecules import get_molecule
    from dcase.errors import OptionError
    from dcase.runs import Identity, Place, claim

    folder = Path(out)
    chosen = get_molecule(molecule)
    data = embedded_file(chosen)
    if data is None:
        raise OptionError(f"no frames of {chosen.name} ship with dcase; try aspirin or ethanol")
    identity = Identity(
        "quickstart", {"molecule": chosen.name, "train_seconds": train_seconds, "steps": steps}
    )
    files = (f"{chosen.name}_irelu.*", "parity*.png", "relax", "md")
    with claim(Place(folder, files, empty=True), identity, overwrite=overwrite):
        _make(ctx, folder, chosen, str(data), train_seconds, steps, threads)


def _make(
    ctx: click.Context,
    folder: Path,
    chosen: Molecule,
    data: str,
    train_seconds: float,
    steps: int,
    threads: int | None,
) -> None:
    """All four steps, each a command of its own."""
    from rich.console import Console

    from dcase.cli.evaluate import evaluate
    from dcase.cli.md import md
    from dcase.cli.relax import relax
    from dcase.cli.train import md17
    from dcase.potentials.potential import load_potential

    model = folder / f"{chosen.name}_irelu.pt"
    console = Console(stderr=True)

    def step(number: int, title: str, command: click.Command, **options: Any) -> None:
        console.rule(f"{number}/4  {title}", align="left")
        ctx.invoke(command, threads=threads, **options)

    step(
        1,
        f"Train on {chosen.name}, {train_seconds:g} s",
        md17,
        molecule=chosen.name,
        source="xtb",
        out=str(model),
        time_limit=train_seconds,
    )
    step(
        2,
        "Parity on all frames that ship with dcase (most of them were trained on)",
        evaluate,
        model=str(model),
        data=data,
        plot=str(folder / "parity.png"),
    )
    try:
        step(3, "Relax", relax, model=str(model), out=str(folder / "relax"))
    except click.exceptions.Exit:  # not converged: good enough to start dynamics from
        console.print("going on from the last structure")

    def dynamics(**options: Any) -> None:
        step(
            4,
            f"Dynamics, {steps} steps of 0.5 fs, and the drift report",
            md,
            model=str(model),
            structure=str(folder / "relax" / "relaxed.extxyz"),
            steps=steps,
            scan=True,
            out=str(folder / "md"),
            **options,
        )

    try:
        # Not seed 0: its equilibration goes where no frame is, and the potential is wrong by eVs.
        dynamics(seed=1)
    except click.exceptions.Exit:
        # A bond that breaks: what is far from the frames is learned last.
        console.print(
            f"{train_seconds:g} s of training leave gaps between the frames, and this run found "
            "one (the potential that ships was trained for longer): once more, with other momenta"
        )
        dynamics(seed=2, overwrite=True)
    console.rule("Done", align="left")
    errors = load_potential(model).metadata["metrics"]
    report = json.loads((folder / "md" / "report.json").read_text(encoding="utf-8"))
    drift, temperature = report["energy_drift"], report["mean_temperature_K"]
    click.echo(
        f"validation error   E {errors['energy_mae_kcal_mol']:.2f} kcal/mol, "
        f"F {errors['forces_mae_kcal_mol_angstrom']:.2f} kcal/mol/A (GFN2-xTB labels)\n"
        f"energy drift       {drift['slope_mev_per_atom_ps']:.4f} meV/atom/ps at "
        f"{temperature:.0f} K, drift ratio {drift['drift_ratio']:.4f}\n"
        f"report             {folder / 'md' / 'report.html'} (everything is in {folder}/)"
    )
