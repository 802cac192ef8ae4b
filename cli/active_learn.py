"""``dcase active-learn``: sample, select, label, retrain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from dcase.cli.active_options import active_options
from dcase.cli.options import SectionedCommand, refuse_both, use_threads
from dcase.md_runs.active.settings import ActiveSettings


@click.command(name="active-learn", cls=SectionedCommand)
@active_options
def active_learn(
    resume: bool, overwrite: bool, quiet: bool, out: str, against: tuple[str, ...], **given: Any
) -> None:
    """Train an ensemble, sample with it, label what it is least sure of, and train again.

    \b
        dcase active-learn --structure ethanol --out ethanol_al
        dcase active-learn --data frames.extxyz --labeller mydft.py:calculator

    Each round runs Langevin dynamics with the ensemble from several labelled frames; walkers stop
    where its members disagree too much on a force. The frames they disagree about most, no two
    alike, are labelled and added, and the ensemble is trained anew. Errors against the number of
    labels are in learning_curve.json and .png. Interrupt it at will: --resume goes on.
    """
    refuse_both(resume, overwrite)
    use_threads(given["threads"])
    from rich.console import Console

    from dcase.cli.progress import step_bar
    from dcase.cli.show import results_console
    from dcase.md_runs.active.curve import curve_figure, load_curve
    from dcase.md_runs.active.labels import find_labeller
    from dcase.md_runs.active.loop import ActiveLearning
    from dcase.own_code import code_flags
    from dcase.plotting import save
    from dcase.potentials.ensemble import read_document
    from dcase.potentials.fitting.evaluation import choose_device

    console = Console(stderr=True, quiet=quiet)

    def notify(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(title: str) -> Iterator[Any]:
        with step_bar(console, title) as progress:
            yield progress

    others = [load_curve(Path(folder)) for folder in against]
    start, test = _start(given), _test(given["test"])
    run = ActiveLearning(
        start,
        find_labeller(given["labeller"], given["theory"]),
        _recipe(given),
        _settings(given),
        out,
        test=test,
        resume=resume,
        overwrite=overwrite,
        jobs=given["jobs"],
        device=str(choose_device(given["device"])),
        notify=notify,
        bar=bar,
    )
    result = run.run()
    if others:
        save(curve_figure([result.curve, *others]), result.folder.figure)
    output = results_console()
    code = code_flags(read_document(result.folder.ensemble))
    _print_curve(result.curve, output)
    output.print(
        f"{result.status}\n"
        f"ensemble  {result.folder.ensemble}\n"
        f"labels    {result.folder.labelled}\n"
        f"errors    {result.folder.curve}, {result.folder.figure}\n"
        f"next      dcase md --model {result.folder.ensemble}{code} --max-uncertainty X",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _start(given: dict[str, Any]) -> Any:
    from dcase.cli.structures import load_structure
    from dcase.data.frames import read_frames
    from dcase.data.molecules import find_molecule
    from dcase.md_runs.active.start import Start

    data, structure = given["data"], given["structure"]
    if (data is None) == (structure is None):
        raise click.UsageError("give either --data FILE or --structure NAME|FILE")
    if data is not None:
        frames = read_frames(data, need=("energy", "forces"))
        molecule = frames.info.molecule
        return Start(labelled=frames, count=given["initial"], name=data, molecule=molecule)
    atoms, _ = load_structure(structure, None)  # type: ignore[arg-type]  # asked only without one
    known = find_molecule(structure)
    return Start(
        structure=atoms,
        count=given["initial"],
        rattle_A=given["rattle"],
        name=structure,
        molecule=known.full_name if known is not None else "",
    )


def _test(file: str | None) -> Any:
    from dcase.data.frames import read_frames

    return None if file is None else read_frames(file, need=("energy", "forces"))


def _recipe(given: dict[str, Any]) -> Any:
    from dcase.potentials.fitting.recipe import load_recipe

    if given["epochs"] is not None and given["training_steps"] is not None:
        raise click.UsageError("--epochs and --training-steps exclude each other")
    return load_recipe(
        given["recipe"],
        {
            "model.architecture": given["model"],
            "model.size": given["size"],
            "training.epochs": given["epochs"],
            "training.batch_size": given["batch_size"],
            "training.lr": given["lr"],
            "training.time_limit": given["time_limit_per_member"],
        },
    )


def _settings(given: dict[str, Any]) -> ActiveSettings:
    same = [
        *("rounds", "per_round", "members", "strategy", "walkers", "steps", "frame_every"),
        *("until_trusted", "training_steps", "validation", "dtype", "seed"),
    ]
    return ActiveSettings(
        temperatures_K=given["temperature"],
        timestep_fs=given["timestep"],
        friction_per_fs=given["friction"],
        max_uncertainty_eV_A=given["max_uncertainty"],
        max_force_eV_A=given["max_force"],
        **{name: given[name] for name in same},
    )


def _print_curve(curve: dict[str, Any], console: Any) -> None:
    """A row for every round."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from dcase.md_runs.active.curve import PANELS

    table = Table(box=SIMPLE_HEAD, title=f"Errors on {curve['errors_on']}", title_justify="left")
    headers = ("round", "labels", "force MAE, meV/A", "energy MAE, meV", "stopped as uncertain")
    for header in headers:
        table.add_column(header, justify="right")
    for row in curve["rounds"]:
        errors = [row["errors"].get(key) for key, _ in PANELS]
        stopped = row.get("walkers_uncertain")
        table.add_row(
            str(row["round"]),
            str(row["labels"]),
            *("-" if value is None else f"{value:.4g}" for value in errors),
            "-" if stopped is None else str(stopped),
        )
    console.print(table)
