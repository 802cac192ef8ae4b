"""``dcase cross-validate``: k-fold cross-validation, and the folds' potentials as one ensemble."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dcase.cli.forms import form_of_recipe
from dcase.cli.notices import Notices
from dcase.cli.options import (
    SectionedCommand,
    count,
    frame_count,
    limits_text,
    parameters_under,
    refuse_both,
    use_threads,
)
from dcase.cli.progress import progress_line
from dcase.cli.show import error_table, errors_title, results_console
from dcase.cli.train import RUNNER, Load, train
from dcase.cli.train_options import chosen_recipe
from dcase.cli.train_run import default_name, described, prepared
from dcase.data.dataset import AtomicDataset
from dcase.data.splits import SplitFrames, Splits
from dcase.errors import OptionError
from dcase.files import check_writable
from dcase.own_code import code_flags
from dcase.potentials.fitting.cross_validation import (
    CrossValidation,
    Folds,
    cross_validate,
    make_folds,
)
from dcase.potentials.fitting.evaluation import choose_device
from dcase.potentials.fitting.recipe import Recipe
from dcase.potentials.quantity import Quantity, quantity_of

# Options of training that make no sense for folds, and what they are then.
_LEFT_OUT: dict[str, Any] = {
    "n_val": None,
    "test_rest": False,
    "devices": 1,
    "num_nodes": 1,
    "tensorboard": False,
}


@click.group(name="cross-validate")
def command() -> None:
    """Train on all folds but one, k times over, and save the k potentials as one ensemble.

    The frames are drawn at random and cut into k folds; one more part, which no fold sees, tests
    the ensemble. Results: errors and losses of every fold, their mean and spread, and the standard
    deviations of the ensemble. Finished folds are kept: --resume goes on with the others.
    """


def _options(own_test: bool) -> list[click.Parameter]:
    """Options that ``dcase train`` does not have."""
    several = [
        count("--folds", default=5, least=2, help="Number of folds."),
        frame_count(
            "--n-train",
            help="Frames in all folds together: a number, or a fraction of all below 1.",
        ),
        count(
            "--jobs",
            help="Folds trained at the same time, in processes of one thread each; default: as "
            "many as there are cores, and 1 on a GPU. A time limit counts for each fold.",
        ),
    ]
    if not own_test:
        several.insert(
            2,
            count(
                "--n-test",
                least=0,
                help="Frames outside all folds, to test the ensemble on; default: as many as a "
                "fold has.",
            ),
        )
    return parameters_under("Folds", *several)


def _as_folds(name: str, trained: click.Command) -> click.Command:
    """The command that cross-validates on what ``dcase train NAME`` trains on."""
    own_test = any(p.name == "n_test" for p in trained.params)
    kept = [p for p in trained.params if p.name not in {*_LEFT_OUT, "n_train"}]

    def callback(folds: int, jobs: int | None, **given: Any) -> None:
        n_test = None if own_test else given.pop("n_test")
        runner = partial(_cross_validate, folds=folds, jobs=jobs, n_test=n_test)
        click.get_current_context().meta[RUNNER] = runner
        assert trained.callback is not None
        trained.callback(**given, **_LEFT_OUT)

    return SectionedCommand(
        name,
        callback=callback,
        params=[*_options(own_test), *kept],
        help=f"Cross-validate on the frames of `dcase train {name}`.",
        epilog=f"What the frames are and how they are read: dcase train {name} --help",
    )


for _name, _trained in train.commands.items():
    command.add_command(_as_folds(_name, _trained))


def _cross_validate(
    load: Load,
    chosen: dict[str, Any],
    name: str,
    counts: tuple[float, float],
    *,
    folds: int,
    jobs: int | None,
    n_test: int | None,
) -> None:
    """Draw the folds, train them, and print what came of it."""
    refuse_both(chosen["resume"], chosen["overwrite"])
    use_threads(chosen["threads"])
    recipe = chosen_recipe(chosen)
    out = Path(chosen["out"] or default_name(name, recipe, chosen["recipe"], "ensemble"))
    if out.suffix == ".run":
        raise OptionError(f"--out {out}: .run is for the folder beside it; use another ending")
    check_writable(out, [out.with_suffix(".run") / "x"], stream=False)
    device = choose_device(chosen["device"])
    if jobs is None:
        jobs = min(folds, _cores()) if device.type == "cpu" else 1
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    notices = Notices(console, quiet=chosen["quiet"])
    loaded = load(recipe, notices)
    if isinstance(loaded, SplitFrames):
        dataset, plan = loaded.dataset, _given_folds(loaded, folds, recipe.training.seed)
    else:
        dataset = loaded
        plan = _drawn_folds(len(dataset), chosen["n_train"], n_test, counts, folds, recipe)
    plan = _prepared(dataset, plan, recipe, notices)
    quiet = chosen["quiet"]
    if not quiet:
        limit = limits_text(recipe.training, " a fold")
        console.print(
            f"data    {described(dataset, name)}: {sum(map(len, plan.parts))} frames in "
            f"{folds} folds, {len(plan.test)} to test, of {len(dataset)}\n"
            f"recipe  {recipe.name}: {recipe.training.epochs} epochs{limit}; {jobs} at a time\n"
            + form_of_recipe(recipe, dataset.elements, device),
            markup=False,
        )
    with _FoldsDisplay(console, folds, quantity_of(dataset), quiet=quiet) as display:
        outcome = cross_validate(
            dataset,
            plan,
            recipe,
            out,
            jobs=jobs,
            resume=chosen["resume"],
            overwrite=chosen["overwrite"],
            device=device,
            on_fold=display.begin,
            on_step=display.step,
        )
    if not outcome.finished:
        click.echo(
            f"stopped; what there is is kept in {outcome.folder}. The same command with --resume "
            "goes on.",
            err=True,
        )
        raise click.exceptions.Exit(130)
    for line in outcome.report["warnings"]:
        notices(line)
    _conclude(outcome)


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _given_folds(frames: SplitFrames, folds: int, seed: int) -> Folds:
    """Folds of the frames to train and validate; the test frames are those of the data set."""
    pool = np.concatenate([frames.splits.train, frames.splits.val])
    drawn = make_folds(len(pool), folds, seed, n_test=0)
    return Folds(tuple(pool[part] for part in drawn.parts), frames.splits.test)


def _drawn_folds(
    n_frames: int,
    wanted: int | float | None,
    n_test: int | None,
    counts: tuple[float, float],
    folds: int,
    recipe: Recipe,
) -> Folds:
    if isinstance(wanted, float):
        wanted = round(wanted * n_frames)
    if wanted is None and isinstance(counts[0], int):
        # As many as plain training would draw; fewer where there are not as many.
        wanted = int(min(sum(counts), n_frames * folds // (folds + 1)))
    use = None
    if wanted is not None:
        use = wanted + (wanted // folds if n_test is None else n_test)
        if n_test is None:
            use = max(min(use, n_frames), wanted)
            n_test = use - wanted
    return make_folds(n_frames, folds, recipe.training.seed, use=use, n_test=n_test)


def _prepared(dataset: AtomicDataset, plan: Folds, recipe: Recipe, notices: Notices) -> Folds:
    """The folds without what is left out for its labels."""
    nothing = np.empty(0, dtype=np.int64)
    whole = Splits(np.concatenate(plan.parts), nothing, plan.test)
    left = prepared(SplitFrames(dataset, whole), recipe, notices).splits.train
    return Folds(tuple(part[np.isin(part, left)] for part in plan.parts), plan.test)


class _FoldsDisplay:
    """The folds in training, a line each."""

    def __init__(self, console: Console, folds: int, quantity: Quantity, *, quiet: bool):
        self.console, self.folds, self.quiet = console, folds, quiet
        own = "meV" if quantity.unit == "eV" else quantity.unit
        self.units = {quantity.key: own, "forces": "meV/A"}
        self.lines: dict[int, str] = {}
        self.live: Any = None
        self.due: dict[int, float] = {}
        self.interval = 5.0

    def __enter__(self) -> _FoldsDisplay:
        if not self.quiet and self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        if self.live:
            self.live.__exit__(*details)

    def begin(self, fold: int, of: int) -> None:
        """Fold ``fold`` is started."""
        if not self.quiet:
            self.console.print(f"fold {fold + 1}/{of} started")

    def step(self, fold: int, progress: Any) -> None:
        """Fold ``fold`` has made a step."""
        now = time.monotonic()
        done = progress.step >= progress.steps
        if self.quiet or (now < self.due.get(fold, 0.0) and not done):
            return
        line = f"fold {fold + 1}/{self.folds}: {progress_line(progress, self.units)}"
        if self.live:
            self.due[fold] = now + 0.25
            self.lines[fold] = line
            if done:
                self.lines.pop(fold)
            self.live.update(Text("\n".join(self.lines.values())))
            return
        # A log gets a line every 5 s at first, every minute in the end.
        self.due[fold] = now + self.interval
        self.interval = min(self.interval * 1.2, 60.0)
        self.console.print(line)


def _conclude(outcome: CrossValidation) -> None:
    """Print the folds, their mean, and the ensemble on the test frames."""
    report = outcome.report
    console = results_console()
    rows = {f"fold {row['fold']}": row for row in report["folds"]}
    for what in ("mean", "std"):
        rows[what] = {key: value[what] for key, value in report["over_folds"].items()}
    if "test" in report:
        rows[f"test ({report['n_test']}), members"] = report["test_of_one"]
        rows[f"test ({report['n_test']}), ensemble"] = report["test"]
    title = errors_title(report["level_of_theory"])
    console.print(error_table(rows, title))
    _print_statistics(
        console,
        f"Loss over validation batches, {report['loss_unit']}",
        {f"fold {row['fold']}": row["loss"] for row in report["folds"]},
    )
    if "spread" in report:
        _print_statistics(
            console,
            f"Standard deviation of the ensemble on the test frames, {report['spread_unit']}",
            {key.replace("_", " "): values for key, values in report["spread"].items()},
        )
    assert outcome.ensemble is not None
    code = code_flags(outcome.ensemble.to_document())
    console.print(
        f"ensemble  {outcome.path}\n"
        f"run       {outcome.folder} (report.json, folds' checkpoints)\n"
        f"next      dcase evaluate {outcome.path} DATA{code}   |   "
        f"dcase md --model {outcome.path}{code} --max-uncertainty 0.3",
        markup=False,
        soft_wrap=True,
    )


def _print_statistics(console: Console, title: str, rows: dict[str, dict[str, float]]) -> None:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for header in ("minimum", "maximum", "mean", "std"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, values in rows.items():
        table.add_row(name, *(f"{values[key]:.4g}" for key in ("min", "max", "mean", "std")))
    console.print(
        Text(title, style="italic"), table, sep="\n"
    )  # as the table's title it is wrapped
