"""``dcase dae``: networks for systems whose motion obeys constraints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.dae_data import data
from dcase.cli.dae_show import print_metrics, print_roll_out
from dcase.cli.options import (
    SectionedCommand,
    count,
    dataclass_options,
    device_option,
    json_option,
    limit_options,
    limits_text,
    out_folder,
    overwrite_option,
    quiet_option,
    refuse_both,
    resume_option,
    section,
    seed_option,
    threads_option,
    use_threads,
)
from dcase.cli.progress import TrainingDisplay, step_bar
from dcase.cli.show import results_console
from dcase.dae.run import DaeOutcome, compare, load_data, load_model, read_settings
from dcase.dae.run import train as train_run
from dcase.dae.settings import DaeSettings, default_settings
from dcase.dae.systems import SYSTEMS, system_named
from dcase.dae.task import PairSource
from dcase.errors import DataError, OptionError
from dcase.files import check_writable
from dcase.potentials.fitting.evaluation import choose_device

data_option = click.option(
    "--data",
    "data_file",
    type=click.Path(dir_okay=False),
    help="Trajectory of `dcase dae data`; default: made now, or from the cache.",
)


@click.group()
def dae() -> None:
    """Predict the motion of a chain of pendulums or of water, and keep its constraints.

    \b
    dcase dae data pendulum
    dcase dae train pendulum --k 20 --n-train 100 --out run
    dcase dae evaluate run --rollout 50
    dcase dae plot run other-run --rollout 50
    """


dae.add_command(data)


@dae.command(cls=SectionedCommand, short_help="Train a network to predict k steps ahead.")
@click.argument("system", type=click.Choice(list(SYSTEMS)))
@click.option(
    "--recipe",
    type=click.Choice(["default", "paper"]),
    default="default",
    show_default=True,
    help="paper: network, size and projection of the paper.",
)
@data_option
@out_folder("The run's folder; default: dae-SYSTEM-METHOD-kK-nN.")
@limit_options
@seed_option("Of split, weights and order.", None, most=2**31 - 1)
@resume_option()
@overwrite_option("Replace a run that is there.")
@quiet_option()
@device_option
@threads_option
@section(
    "Task, network and method",
    dataclass_options(DaeSettings, leave_out=("system", "time_limit", "cpu_limit", "seed")),
)
def train(
    system: str,
    recipe: str,
    data_file: str | None,
    out: str | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    device: str | None,
    threads: int | None,
    **chosen: Any,
) -> None:
    """Train a network to predict where a constrained SYSTEM is k steps later.

    Errors and violations on test samples, beside those of predictors without a network, go to
    OUT/metrics.json. Without options: k = 20 (pendulum) or 50 (water), 100 samples, 50 epochs, the
    mechanical network on the manifold (pendulum) or the molecular one without a method (water).
    """
    refuse_both(resume, overwrite)
    use_threads(threads)
    settings, folder = _chosen(system, recipe, out, resume, chosen)
    check_writable(folder / "x")
    where = choose_device(device or ("cpu" if settings.dtype == "float64" else None))
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    with step_bar(console, f"simulating {system}") as bar:
        trajectory, pairs = load_data(settings, data_file, progress=bar)
    shown: list[TrainingDisplay] = []

    def started(trainer: Any) -> None:
        weights = sum(p.numel() for p in trainer.parameters)
        limit = limits_text(settings)
        unit = system_named(system).time
        console.print(
            f"data     {system}, {settings.duration:g} {unit} ahead: {settings.n_train} samples "
            f"to train, {settings.n_validation} to validate, {settings.n_test} to test\n"
            f"network  {settings.network}, {weights} weights, {settings.dtype}, on {where}\n"
            f"method   {settings.method}\n"
            f"plan     {settings.epochs} epochs of {trainer.steps_per_epoch} steps{limit}",
            markup=False,
        )
        shown.append(TrainingDisplay(console, {}, quiet=quiet).__enter__())

    outcome: DaeOutcome | None
    try:
        outcome = train_run(
            settings,
            folder,
            trajectory=trajectory,
            pairs=pairs,
            resume=resume,
            overwrite=overwrite,
            device=where,
            on_start=started,
            on_step=lambda p: shown[0](p),
        )
    except KeyboardInterrupt:  # before or after the training loop, or a second one within
        outcome = None
    finally:
        for display in shown:
            display.__exit__(None, None, None)
    if outcome is None or outcome.result.status == "interrupted":
        steps = f" after {outcome.result.steps} steps" if outcome else ""
        click.echo(f"stopped{steps}; the same command with --resume goes on", err=True)
        raise click.exceptions.Exit(130)
    result = outcome.result
    if outcome.was_finished:
        click.echo(f"{folder} was finished already; nothing was done", err=True)
    for line in outcome.metrics.get("warnings", ()):
        console.print(f"WARNING: {line}", style="bold yellow", markup=False)
    print_metrics(outcome.metrics)
    more = f" --data {data_file}" if data_file else ""
    results_console().print(
        f"{result.status} after {result.epochs} epochs, {result.steps} steps, "
        f"{result.elapsed:.0f} s, {result.cpu:.0f} CPU s\n"
        f"run   {folder} (metrics.json, model.pt, pictures)\n"
        f"next  dcase dae evaluate {folder}{more} --rollout 50   |   "
        f"dcase dae plot {folder}{more} --rollout 50",
        markup=False,
        soft_wrap=True,
    )


def _chosen(
    system: str, recipe: str, out: str | None, resume: bool, chosen: dict[str, Any]
) -> tuple[DaeSettings, Path]:
    """Settings from the recipe, or those of the run to resume, with what the user gave."""
    given = {name: value for name, value in chosen.items() if value is not None}
    size = "paper" if recipe == "paper" else given.get("size", "small")
    base = default_settings(system, given.get("network"), size)
    settings = base.changed(**given)
    s = settings
    folder = Path(out or f"dae-{system}-{s.method}-k{s.k}-n{s.n_train}")
    if not resume:
        return settings, folder
    if not (folder / "run.json").exists():
        raise OptionError(f"nothing to resume: there is no run in {folder}")
    base = read_settings(folder)
    if base.system != system:
        raise OptionError(f"{folder} is a run of {base.system}, not of {system}")
    free = {"epochs", "time_limit", "cpu_limit"}
    for name, value in given.items():
        if name not in free and value != getattr(base, name):
            flag = name.replace("_", "-")
            raise OptionError(
                f"{folder} was begun with --{flag} {getattr(base, name)}; a resume cannot make it "
                f"{value}: leave --{flag} out, or give another --out"
            )
    return base.changed(**given), folder


@dae.command(short_help="Errors and violations of a trained run.")
@click.argument("run", type=click.Path(file_okay=False))
@data_option
@json_option("Also write it here.")
@count(
    "--rollout", metavar="N", help="Also apply the network N times, each time to what it predicted."
)
@quiet_option()
@threads_option
def evaluate(
    run: str,
    data_file: str | None,
    json_file: str | None,
    rollout: int | None,
    quiet: bool,
    threads: int | None,
) -> None:
    """Errors and violations of a trained run on its test samples."""
    from dcase.dae.rollouts import roll_out_rows, roll_outs
    from dcase.files import write_json

    use_threads(threads)
    model, settings, trajectory, test = _loaded(run, data_file, quiet)
    metrics = compare(model, test, system_named(settings.system), settings)
    tables = {}
    if rollout:
        found, unseen = roll_outs({"network": (model, settings)}, trajectory, rollout)
        tables = {label: roll_out_rows(states, settings) for label, states in found.items()}
        metrics["rollout"] = {"unseen": unseen, **tables}
    if json_file:
        write_json(json_file, metrics)
    print_metrics(metrics)
    if tables:
        print_roll_out(tables, system_named(settings.system), metrics["rollout"]["unseen"])


@dae.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(file_okay=False))
@data_option
@count(
    "--rollout",
    metavar="N",
    help="Applications of the network, one after another; default: 10, or 50 to compare runs.",
)
@click.option(
    "--out",
    type=click.Path(),
    help="Folder of the pictures (default: RUN), or with several runs the picture "
    "(default: dae-rollout.png).",
)
@quiet_option()
@threads_option
def plot(
    runs: tuple[str, ...],
    data_file: str | None,
    rollout: int | None,
    out: str | None,
    quiet: bool,
    threads: int | None,
) -> None:
    """Draw a run, or compare roll-outs of several."""
    from dcase import plotting
    from dcase.dae import plots
    from dcase.dae.rollouts import roll_outs

    use_threads(threads)
    if len(runs) == 1:
        model, settings, trajectory, test = _loaded(runs[0], data_file, quiet)
        folder = Path(out or runs[0])
        check_writable(folder / "x")
        names = plots.draw_run(
            folder, model, test, settings, trajectory, applications=rollout, log=runs[0]
        )
        for name in names:
            click.echo(str(folder / name))
        return
    target = Path(out or "dae-rollout.png")
    if target.is_dir() or target.suffix != ".png":
        target /= "dae-rollout.png"
    check_writable(target)
    loaded = [load_model(Path(run) / "model.pt") for run in runs]
    labels = _labels([settings for _, settings in loaded], runs)
    first = loaded[0][1]
    trajectory = _trajectory(first, data_file, quiet)
    for run, (model, _) in zip(runs, loaded, strict=True):
        _check_data(run, model, trajectory)
    models = dict(zip(labels, loaded, strict=True))
    found, unseen = roll_outs(models, trajectory, rollout or 50)
    figure = plots.rollout_figure(found, system_named(first.system), unseen=unseen)
    plotting.save(figure, target)
    click.echo(str(target))


def _labels(settings: list[DaeSettings], runs: tuple[str, ...]) -> list[str]:
    """The method, and what else tells the runs apart; if nothing does, their folders."""
    telling = [
        name
        for name in ("network", "size", "n_train", "gamma", "eta", "projection", "seed")
        if len({getattr(s, name) for s in settings}) > 1
    ]
    labels = [
        ", ".join([s.method, *(f"{_short(n)}{getattr(s, n)}" for n in telling)]) for s in settings
    ]
    return labels if len(set(labels)) == len(labels) else list(runs)


def _short(name: str) -> str:
    return {"network": "", "size": "", "projection": "", "n_train": "n = "}.get(name, f"{name} ")


def _trajectory(settings: DaeSettings, data_file: str | None, quiet: bool) -> Any:
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    with step_bar(console, f"simulating {settings.system}") as bar:
        return load_data(settings, data_file, progress=bar)[0]


def _loaded(run: str, data_file: str | None, quiet: bool) -> tuple[Any, DaeSettings, Any, Any]:
    """Network, settings, trajectory and test samples of a run."""
    import torch

    from dcase.dae.rollouts import pairs_of

    read_settings(run)  # says it best where there is no run
    model, settings = load_model(Path(run) / "model.pt")
    trajectory = _trajectory(settings, data_file, quiet)
    _check_data(run, model, trajectory)
    pairs = pairs_of(settings, trajectory)
    dtype = getattr(torch, settings.dtype)
    return model, settings, trajectory, PairSource(trajectory, pairs.test, pairs.ahead, dtype)


def _check_data(run: str, model: Any, trajectory: Any) -> None:
    """Warn where the trajectory is not the one that the run was trained on.

    Raises:
        DataError: If the network cannot take it.
    """
    nodes, there = model.constraint.n_nodes, trajectory.positions.shape[1]
    if nodes != there:
        raise DataError(f"{run} is a network of {nodes} bodies, the trajectory has {there}")
    try:
        found = json.loads((Path(run) / "metrics.json").read_text(encoding="utf-8"))
        known = found["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if known != trajectory.fingerprint():
        click.echo(
            f"WARNING: {run} was trained on another trajectory; if you have its file, give --data",
            err=True,
        )
