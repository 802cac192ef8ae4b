"""``dcase evaluate``: errors on labelled frames, and parity plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.options import device_option, threads_option, use_threads
from dcase.cli.show import error_table
from dcase.files import write_json


@click.command()
@click.argument("model")
@click.argument("data")
@click.option(
    "--labels",
    type=click.Choice(["md17", "rmd17"]),
    default=None,
    help="Label set, where an .npz holds both.",
)
@click.option("--energy-key", default=None, help="Key of the energy in the file.")
@click.option("--forces-key", default=None, help="Key of the forces in the file.")
@click.option("--index", default=":", show_default=True, help="Frames, in ASE's notation.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False),
    default=None,
    help="Write the figures to this file.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    default=None,
    help="Write parity plots: FILE_energy.png and FILE_forces.png for FILE.png.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True
)
@device_option
@threads_option
def evaluate(
    model: str,
    data: str,
    labels: str | None,
    energy_key: str | None,
    forces_key: str | None,
    index: str,
    json_file: str | None,
    plot: str | None,
    batch_size: int,
    dtype: str,
    device: str | None,
    threads: int | None,
) -> None:
    """Compare MODEL with the labels in DATA (.npz of MD17/rMD17, extxyz, .traj, .db).

    Prints mean absolute and root mean square errors of the energy (per molecule and per atom) and
    of the force components, and EFwT: the share of frames within 0.02 eV and 0.03 eV/A.
    """
    from dcase.data.npz import read_npz
    from dcase.potentials.calculator import DTYPES
    from dcase.potentials.evaluation import choose_device, evaluate_potential
    from dcase.potentials.potential import load_potential

    use_threads(threads)
    potential = load_potential(model).with_dtype(DTYPES[dtype]).to(choose_device(device))
    if Path(data).suffix == ".npz":
        dataset = read_npz(data, labels)
        if index != ":":
            numbers = range(len(dataset))[_as_slice(index)]
            dataset = dataset.subset(list(numbers))
    else:
        from dcase.data.atoms_files import read_atoms

        dataset = read_atoms(data, energy_key=energy_key, forces_key=forces_key, index=index)
    outcome = evaluate_potential(potential, dataset, batch_size=batch_size)
    metrics: dict[str, Any] = {
        **outcome.metrics,
        "model": model,
        "data": data,
        "data_level_of_theory": dataset.info.level_of_theory,
        "model_level_of_theory": potential.level_of_theory,
        "dtype": dtype,
    }
    console = Console()
    if potential.level_of_theory != dataset.info.level_of_theory:
        Console(stderr=True).print(
            f"WARNING: the potential was trained on {potential.level_of_theory}, the data are "
            f"{dataset.info.level_of_theory}",
            style="bold yellow",
            soft_wrap=True,
        )
    rmse = {k.replace("rmse", "mae"): v for k, v in metrics.items() if "rmse" in k}
    console.print(
        error_table(
            {"MAE": metrics, "RMSE": rmse},
            f"{Path(model).name} on {metrics['n_frames']} frames of {Path(data).name}",
        )
    )
    if json_file:
        write_json(json_file, metrics)
    if plot:
        from dcase.cli.curves import write_parity_figure

        written = write_parity_figure(outcome, Path(plot))
        console.print(
            f"parity plots: {', '.join(map(str, written))}", highlight=False, soft_wrap=True
        )


def _as_slice(text: str) -> slice:
    from ase.io.formats import string2index

    found = string2index(text)
    return found if isinstance(found, slice) else slice(found, found + 1 or None)
