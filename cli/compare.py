"""``dcase compare``: does it help? Variants of a training, with several seeds, side by side."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dcase.cli.notices import Notices
from dcase.cli.options import (
    Decorator,
    SectionedCommand,
    count,
    limits_text,
    out_folder,
    parameters_under,
    refuse_both,
    use_threads,
)
from dcase.cli.show import results_console
from dcase.cli.train import RUNNER, Load, train
from dcase.cli.train_options import chosen_recipe
from dcase.cli.train_run import described, prepared, split_of
from dcase.data.splits import SplitFrames
from dcase.errors import OptionError
from dcase.own_code import short_name
from dcase.potentials.fitting.comparison import Comparison, compare
from dcase.potentials.fitting.evaluation import choose_device

_LEFT_OUT: dict[str, Any] = {
    "test_rest": False,
    "devices": 1,
    "num_nodes": 1,
    "tensorboard": False,
    "out": None,
}
_AXES = {
    "model": "Architecture, or FILE.py:CLASS",
    "activation": "Activation, original, or FILE.py:CLASS",
    "rescale": "Unit of the labels inside the network: forces, paper, none, or a number",
    "normalization": "BatchNorm layers: keep, or out",
}


@click.group(name="compare")
def command() -> None:
    """Does it help? Train variants with several seeds each, and compare their errors.

    \b
        dcase compare md17 -m ethanol --source xtb --model mynet.py:MyNet \\
            --activation silu --activation irelu --seeds 3

    --model, --activation, --rescale and --normalization may be given several times; every
    combination is trained. Seed s draws one split for all of them, so that differences to the first
    combination are taken seed by seed. --resume goes on with those that are not there yet.
    """


def _options() -> list[click.Parameter]:
    several: list[Decorator] = [
        out_folder("Folder for compare.json and all checkpoints.", "compare"),
        *(
            click.option(
                f"--{name}",
                name,
                multiple=True,
                type=click.Choice(["keep", "out"]) if name == "normalization" else str,
                help=f"{text} (repeatable).",
            )
            for name, text in _AXES.items()
        ),
        count("--seeds", default=3, help="Trainings of each variant: --seed, --seed + 1, ..."),
        count("--n-test", "n_compared", default=200, help="Test frames at most, of each split."),
        count("--jobs", default=1, help="Trainings at a time, in processes of one thread each."),
    ]
    return parameters_under("Comparison", *several)


def _as_comparison(name: str, trained: click.Command) -> click.Command:
    """The command that compares on what ``dcase train NAME`` trains on."""
    left = {*_LEFT_OUT, *_AXES, "denormalize"}
    kept = [p for p in trained.params if p.name not in left]

    def callback(out: str, seeds: int, n_compared: int, jobs: int, **given: Any) -> None:
        axes = {axis: given.pop(axis) for axis in _AXES}
        runner = partial(
            _compare, axes=axes, seeds=seeds, n_compared=n_compared, jobs=jobs, folder=out
        )
        click.get_current_context().meta[RUNNER] = runner
        assert trained.callback is not None
        nothing = dict.fromkeys(("model", "activation", "rescale", "denormalize"))
        trained.callback(**given, **_LEFT_OUT, **nothing)

    return SectionedCommand(
        name,
        callback=callback,
        params=[*_options(), *kept],
        help=f"Compare on the frames of `dcase train {name}`.",
        epilog=f"What the frames are and how they are read: dcase train {name} --help",
    )


for _name, _trained in train.commands.items():
    if not any(p.name == "n_test" for p in _trained.params):  # its split is given
        command.add_command(_as_comparison(_name, _trained))


def variants(chosen: dict[str, Any], axes: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Recipes of all combinations, by what tells them apart.

    Raises:
        OptionError: If there is only one, or a choice is impossible.
    """
    recipes: dict[str, Any] = {}
    for values in itertools.product(*((found or (None,)) for found in axes.values())):
        own: dict[str, Any] = dict(zip(axes, values, strict=True))
        normalization = own.pop("normalization")
        own["denormalize"] = None if normalization is None else normalization == "out"
        words = [
            f"BatchNorm {v}" if axis == "normalization" else short_name(str(v))
            for axis, v in zip(axes, values, strict=True)
            if len(axes[axis]) > 1
        ]
        name = ", ".join(words)
        while name in recipes:
            name += "'"  # two files with one class of a name
        recipes[name] = chosen_recipe({**chosen, **own})
    if len(recipes) < 2:
        raise OptionError(f"nothing to compare: give one of --{', --'.join(axes)} at least twice")
    return recipes


def _compare(
    load: Load,
    chosen: dict[str, Any],
    name: str,
    counts: tuple[float, float],
    *,
    axes: dict[str, tuple[str, ...]],
    seeds: int,
    n_compared: int,
    jobs: int,
    folder: str,
) -> None:
    """Train all of them, and print what came of it."""
    refuse_both(chosen["resume"], chosen["overwrite"])
    use_threads(chosen["threads"])
    recipes = variants(chosen, axes)
    first = next(iter(recipes.values()))
    device = choose_device(chosen["device"])
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    quiet = chosen["quiet"]
    notices = Notices(console, quiet=quiet)
    loaded = load(first, notices)
    if isinstance(loaded, SplitFrames):
        raise OptionError("these frames come split already; compare needs to draw splits")
    splits, dataset = [], first.loss.seen(loaded)
    for number in range(seeds):
        seeded = replace(first, training=replace(first.training, seed=first.training.seed + number))
        drawn = SplitFrames(loaded, split_of(loaded, chosen, counts, seeded))
        said = notices if number == 0 else Notices(console, quiet=True)
        one = prepared(drawn, seeded, said).splits
        splits.append(replace(one, test=one.test[:n_compared]))
    if not quiet:
        console.print(
            f"data    {described(dataset, name)}: {len(splits[0].train)} frames to train, "
            f"{len(splits[0].val)} to validate, {len(splits[0].test)} to test, of {len(dataset)}\n"
            f"compare {'; '.join(recipes)}: {seeds} seeds each, {first.training.epochs} epochs"
            f"{limits_text(first.training, ' a training')}; {jobs} at a time",
            markup=False,
        )

    def begun(variant: str, number: int) -> None:
        if not quiet:
            console.print(f"{variant}, seed {first.training.seed + number}", markup=False)

    outcome = compare(
        dataset,
        splits,
        recipes,
        folder,
        jobs=jobs,
        resume=chosen["resume"],
        overwrite=chosen["overwrite"],
        device=str(device),
        on_run=begun,
    )
    if not outcome.finished:
        click.echo(
            f"stopped; what there is is kept in {outcome.folder}. The same command with --resume "
            "goes on.",
            err=True,
        )
        raise click.exceptions.Exit(130)
    _conclude(outcome, seeds)


def _conclude(outcome: Comparison, seeds: int) -> None:
    report, console = outcome.report, results_console()
    title = f"Mean absolute errors on {report['n_test']} test frames, {seeds} seeds"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("", no_wrap=True)
    kinds = {"forces_mae_mev_angstrom": "F meV/A", "energy_mae_mev": "E meV"}
    rows = report["variants"]
    first = next(iter(rows.values()))
    kinds = {key: unit for key, unit in kinds.items() if key in first}
    for unit in kinds.values():
        table.add_column(unit, justify="right", no_wrap=True)
        table.add_column("to the first", justify="right", no_wrap=True)
    table.add_column("CPU s", justify="right", no_wrap=True)
    for name, row in rows.items():
        cells = []
        for key in kinds:
            found, other = row[f"{key}_over_seeds"], row[f"{key}_difference"]
            cells.append(_with(found["mean"], found["std"]))
            cells.append("" if row is first else _with(other["mean"], other["error"], sign="+"))
        seconds = sum(row["cpu_seconds"]) / len(row["cpu_seconds"])
        table.add_row(name, *cells, f"{seconds:.0f}")
    console.print(table)
    console.print(
        "errors: mean and standard deviation over seeds; to the first: mean difference, seed by "
        "seed, and its standard error\n"
        f"written: {outcome.folder / 'compare.json'}, and every checkpoint",
        markup=False,
        soft_wrap=True,
    )


def _with(value: float, spread: float | None, sign: str = "") -> str:
    return f"{value:{sign}.1f}" if spread is None else f"{value:{sign}.1f} ± {spread:.1f}"
