"""``dcase evaluate``: errors on labelled frames, and parity plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dcase.cli.notices import Notices
from dcase.cli.options import (
    check_outputs,
    code_option,
    count,
    device_option,
    dtype_option,
    json_option,
    reading_options,
    threads_option,
    use_threads,
)
from dcase.cli.show import error_table, results_console
from dcase.cli.structures import load_frames
from dcase.data.frames import UNKNOWN, Reading
from dcase.files import write_json


@click.command()
@click.argument("model")
@click.argument("data")
@click.option(
    "--with",
    "others",
    multiple=True,
    metavar="FILE",
    help="Another potential (repeatable): together with MODEL they are an ensemble.",
)
@reading_options
@click.option(
    "--index",
    default=":",
    show_default=True,
    help="Frames, in ASE's notation: 5, :100, -50:, ::10.",
)
@json_option()
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    default=None,
    help="Write parity plots: FILE_energy.png, FILE_forces.png and FILE_stress.png for FILE.png; "
    "of an ensemble also FILE_reliability.png.",
)
@click.option(
    "--free-atoms/--no-free-atoms",
    default=True,
    help="Leave out forces on atoms that the data mark as held in place (the default), or not.",
)
@count("--batch-size", default=32, help="Frames at a time.")
@dtype_option("float32")
@device_option
@code_option
@threads_option
def evaluate(
    model: str,
    data: str,
    others: tuple[str, ...],
    reading: Reading,
    index: str,
    json_file: str | None,
    plot: str | None,
    free_atoms: bool,
    batch_size: int,
    dtype: str,
    device: str | None,
    threads: int | None,
) -> None:
    """Compare MODEL with the labels in DATA.

    DATA is an .npz of MD17 or rMD17, an .lmdb of OC22 or OC20, extxyz, .traj or .db. Of energies,
    forces and stress, those are compared that all frames have (the stress: all periodic ones).

    Prints mean absolute and root mean square errors of the energy (per molecule and per atom), of
    the force components and of the stress (its nine components), and EFwT: the share of frames
    within 0.02 eV and 0.03 eV/A.

    Of an ensemble the mean is compared, and a second table sets the standard deviation over its
    members against the error: Spearman's rank correlation (of energies or force components; of
    force vectors per atom; of the largest of each frame), the miscalibration area (0 to 0.5), the
    factor that gives the standard deviation the right size, and the negative log-likelihood.
    """
    from dcase.potentials.calculator import DTYPES
    from dcase.potentials.electrons import electrons_line, trained_electrons
    from dcase.potentials.ensemble import Ensemble, load_model
    from dcase.potentials.fitting.evaluation import choose_device, evaluate_potential
    from dcase.potentials.fitting.trained_frames import trained_on
    from dcase.potentials.kernels.forms import form_line

    use_threads(threads)
    check_outputs(json_file, plot, "the figures are PNG")
    potential = load_model([model, *others])
    potential = potential.with_dtype(DTYPES[dtype]).to(choose_device(device))
    notices = Notices()
    # One graph of many frames is what autograd is for; compiled forms take one at a time.
    form = form_line(compiled=False, reason=f"{batch_size} frames at a time")
    click.echo(f"form    {form}", err=True)
    dataset = load_frames(data, reading, index=index, notify=notices.note)
    if not free_atoms:
        dataset = dataset.without_fixed()
    uncertain = {}
    if isinstance(potential, Ensemble):
        from dcase.potentials.fitting.ensemble_evaluation import evaluate_ensemble

        found = evaluate_ensemble(potential, dataset, batch_size=batch_size)
        outcome, uncertain = found.evaluation, found.by_name()
    else:
        outcome = evaluate_potential(potential, dataset, batch_size=batch_size)
    metrics: dict[str, Any] = {
        **outcome.metrics,
        "model": model,
        "data": data,
        "data_level_of_theory": dataset.info.level_of_theory,
        "model_level_of_theory": potential.level_of_theory,
        "dtype": dtype,
        "form": form,
    }
    if isinstance(potential, Ensemble):
        metrics |= {"with": list(others), "members": len(potential)}
        metrics["calibration"] = {name: one.to_dict() for name, one in uncertain.items()}
    console = results_console()
    theories = (potential.level_of_theory, dataset.info.level_of_theory)
    if theories[0] != theories[1] and UNKNOWN not in theories:
        notices(f"the potential was trained on {theories[0]}, the data are {theories[1]}")
    if left_out := _left_out(outcome.metrics):
        notices.note(f"errors of forces leave out {left_out}; --no-free-atoms counts all")
    seen = trained_on(potential, dataset)
    metrics["frames_trained_on"] = seen
    if seen:
        notices(
            f"the potential was trained on {seen} of the {len(dataset)} frames: its errors on "
            "frames that it has not seen are larger"
        )
    metrics["electrons"] = dataset.electrons()
    metrics["model_electrons"] = trained_electrons(potential)
    if line := electrons_line(potential, dataset):
        metrics["warnings"] = [line]
        click.secho(f"WARNING: {line}", fg="yellow", bold=True, err=True)
    name = Path(model).name + (f" and {len(others)} more" if others else "")
    rmse = {k.replace("rmse", "mae"): v for k, v in metrics.items() if "rmse" in k}
    console.print(
        error_table(
            {"MAE": metrics, "RMSE": rmse},
            f"{name} on {metrics['n_frames']} frames of {Path(data).name}",
        )
    )
    if isinstance(potential, Ensemble):
        from dcase.cli.calibration_figures import uncertainty_table

        console.print(uncertainty_table(uncertain, len(potential)))
    if json_file:
        write_json(json_file, metrics)
    if plot:
        from dcase.cli.curves import write_parity_figure

        written = write_parity_figure(outcome, Path(plot))
        click.echo(f"parity plots: {', '.join(map(str, written))}")
        if uncertain:
            from dcase.cli.calibration_figures import write_reliability_figure

            click.echo(f"reliability: {write_reliability_figure(uncertain, Path(plot))}")


def _left_out(metrics: dict[str, Any]) -> str:
    """Which forces are in no error, in words, or ""."""
    whole, part = metrics.get("n_fixed_atoms", 0), metrics.get("n_partly_fixed_atoms", 0)
    said = [f"{whole} atoms held in place"] if whole else []
    said += [f"the held directions of {part} atoms"] if part else []
    return " and ".join(said)
