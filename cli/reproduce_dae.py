"""``dcase reproduce dae-*``: tables and figures of the neural-DAE paper."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.options import (
    count,
    out_folder,
    positive,
    quiet_option,
    threads_option,
    use_threads,
)
from dcase.cli.progress import TrainingDisplay, step_bar
from dcase.files import check_writable

TABLES = {"dae-table1": "pendulum", "dae-table2": "water"}
MAE_NOTE = (
    "MAE: mean over samples and {nodes} of the Euclidean norm of the position error, test samples."
)
STOPPED = "stopped; the same command goes on from here"


class Numbers(click.ParamType):
    """Positive numbers with commas between them."""

    name = "n,n,..."

    def __init__(self, kind: type = int, least: float = 1):
        self.kind, self.least = kind, least

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Convert and check."""
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            found = ()
        if not found or not all(self.least <= number < float("inf") for number in found):
            self.fail(f"{value!r}: write numbers of at least {self.least}, as in 20,50", param, ctx)
        return tuple(dict.fromkeys(found))


def _options(*more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What all of them have."""
    common = (
        click.option(
            "--size",
            type=click.Choice(["small", "paper"]),
            default="small",
            show_default=True,
            help="Of the published network; paper: with its way of projecting, too.",
        ),
        count("--epochs", help="Default: the recipe's."),
        positive("--time-limit", metavar="SECONDS", help="For each run."),
        count(
            "--n-test",
            help="Test samples; default: 1000. Fewer make the pendulum easier: its samples are of "
            "as many frames in a row as there are samples.",
        ),
        count("--n-validation", help="Likewise; default: 200."),
        *_files(),
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = _stoppable(function)
        for option in reversed((*more, *common)):
            function = option(function)
        return function

    return decorate


def _stoppable(command: Callable[..., Any]) -> Callable[..., Any]:
    """A Ctrl-C outside the training loop, too, ends the command with word of how to go on."""

    @functools.wraps(command)
    def wrapped(**options: Any) -> Any:
        try:
            return command(**options)
        except KeyboardInterrupt:
            click.echo(STOPPED, err=True)
            raise click.exceptions.Exit(130) from None

    return wrapped


def _files() -> tuple[Any, ...]:
    return (
        out_folder("Folder for runs and tables.", "reproduce"),
        quiet_option("Print the table only."),
        threads_option,
    )


def _seeds(default: int) -> Any:
    kind = click.IntRange(min=1)
    return click.option("--seeds", type=kind, default=default, show_default=True, help="Runs each.")


def _data(system: str) -> Any:
    return click.option(
        "--data",
        "data_file",
        type=click.Path(dir_okay=False),
        help=f"Trajectory of `dcase dae data {system}`; default: made now, or from the cache.",
    )


def _trajectory(system: str, file: str | None, console: Console) -> Any:
    from dcase.dae.trajectories import load_or_make

    with step_bar(console, f"simulating {system}") as bar:
        return load_or_make(system, path=file, progress=bar)


def _carry_out(
    runs: Any,
    trajectory: Any,
    folder: Path,
    console: Console,
    *,
    history: bool = False,
    write: Callable[[list[dict[str, Any]]], str],
) -> str:
    """Make the runs with a display, and write the result after each.

    Raises:
        KeyboardInterrupt: After a Ctrl-C.
    """
    from dcase.dae.experiments.runs import perform

    shown: list[TrainingDisplay] = []
    texts: list[str] = []

    def close() -> None:
        while shown:
            shown.pop().__exit__(None, None, None)

    def began(number: int, run: Any, kept: bool) -> None:
        close()
        s = run.settings
        what = f"k={s.k} n={s.n_train} {run.label} seed {s.seed}"
        note = " (kept from before)" if kept else ""
        console.print(f"[{number + 1}/{len(runs)}] {what}{note}", markup=False)

    def started(trainer: Any) -> None:
        shown.append(TrainingDisplay(console, {}, quiet=console.quiet).__enter__())

    def ended(results: list[dict[str, Any]]) -> None:
        close()
        if results[-1]["status"] == "diverged":
            console.print(f"  diverged: {results[-1]['reason']}", markup=False)
        texts[:] = [write(results)]

    try:
        results = perform(
            runs,
            trajectory,
            folder / "runs",
            history=history,
            on_run=began,
            on_start=started,
            on_step=lambda p: shown[0](p),
            on_result=ended,
        )
    finally:
        close()
    if results is None:
        raise KeyboardInterrupt
    return texts[0]


def _console(quiet: bool) -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _seeds_in_words(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _split(runs: Any) -> str:
    s = runs[0].settings
    return f"Split at random, {s.n_validation} validation and {s.n_test} test samples."


def _table(name: str) -> click.Command:
    system = TABLES[name]
    pendulum = system == "pendulum"
    networks = ["mimetic", "mechanical", "all"] if pendulum else ["equivariant", "molecular", "all"]

    @_options(
        click.option(
            "--k", "ks", type=Numbers(), default="20,50" if pendulum else "50", show_default=True,
            help="Steps ahead.",
        ),
        click.option(
            "--n-train", "sizes", type=Numbers(), default="100,1000", show_default=True,
            help="Training samples; the paper has 10000 as well.",
        ),
        click.option("--methods", help="With commas; default: all."),
        click.option(
            "--network", type=click.Choice(networks), default="all", show_default=True,
            help="mechanical, molecular: ours alone.",
        ),
        _seeds(3),
        _data(system),
    )  # fmt: skip
    def command(
        ks: tuple[int, ...],
        sizes: tuple[int, ...],
        methods: str | None,
        network: str,
        seeds: int,
        data_file: str | None,
        size: str,
        epochs: int | None,
        time_limit: float | None,
        n_test: int | None,
        n_validation: int | None,
        out: str,
        quiet: bool,
        threads: int | None,
    ) -> None:
        from dcase.dae.experiments.tables import table_runs, write_table
        from dcase.dae.methods import METHODS

        use_threads(threads)
        chosen = [n for n in networks if n != "all"] if network == "all" else [network]
        runs = table_runs(
            system,
            chosen,
            ks=ks,
            sizes=sizes,
            methods=[m.strip() for m in methods.split(",")] if methods else METHODS,
            seeds=seeds,
            size=size,
            epochs=epochs,
            time_limit=time_limit,
            **_given(n_test=n_test, n_validation=n_validation),
        )
        folder = Path(out)
        check_writable(folder / "x")
        console = _console(quiet)
        trajectory = _trajectory(system, data_file, console)
        length = {run.settings.epochs for run in runs}
        limit = f", at most {time_limit:g} s each" if time_limit else ""
        caption = (
            f"Table {name[-1]}: {system}; published network of size {size}, "
            f"{_seeds_in_words(seeds)}, {' or '.join(map(str, sorted(length)))} epochs{limit}"
        )
        notes = [MAE_NOTE.format(nodes="bodies" if pendulum else "atoms"), _split(runs)]

        def write(results: list[dict[str, Any]]) -> str:
            return write_table(folder, name, system, results, caption, notes)

        click.echo(_carry_out(runs, trajectory, folder, console, write=write))
        click.echo(f"written to {folder / name}.md, .csv, .json, .png; runs in {folder / 'runs'}")

    text = f"Table {name[-1]} of the neural-DAE paper: methods on the {system}, beside the paper's."
    return click.command(name, help=text)(command)


def _figure(name: str, title: str) -> click.Command:
    strength = click.option(
        "--strengths",
        type=Numbers(float, 0),
        help="Default: 0,1,3,10,30,100.",
    )
    own = () if name == "dae-figure5" else (strength,)

    @_options(*own, _seeds(5), _data("pendulum"))
    def command(
        seeds: int,
        data_file: str | None,
        size: str,
        epochs: int | None,
        time_limit: float | None,
        n_test: int | None,
        n_validation: int | None,
        out: str,
        quiet: bool,
        threads: int | None,
        strengths: tuple[float, ...] | None = None,
    ) -> None:
        from dcase.dae.experiments.figures import figure_runs, write_figure

        use_threads(threads)
        more = _given(strengths=strengths, n_test=n_test, n_validation=n_validation)
        runs = figure_runs(
            name, seeds=seeds, size=size, epochs=epochs, time_limit=time_limit, **more
        )
        folder = Path(out)
        check_writable(folder / "x")
        console = _console(quiet)
        trajectory = _trajectory("pendulum", data_file, console)
        limit = f", at most {time_limit:g} s each" if time_limit else ""
        notes = [
            f"Five-body pendulum, published network of size {size}, k = 20, 100 training samples, "
            f"{_seeds_in_words(seeds)}, {runs[0].settings.epochs} epochs{limit}.",
            _split(runs),
        ]

        def write(results: list[dict[str, Any]]) -> str:
            return write_figure(folder, name, results, notes)

        click.echo(_carry_out(runs, trajectory, folder, console, history=True, write=write))
        click.echo(f"written to {folder / name}.png, .md, .csv, .json; runs in {folder / 'runs'}")

    return click.command(name, help=f"{title} of the neural-DAE paper, against the epoch.")(command)


@click.command("dae-projection")
@click.option(
    "--system",
    type=click.Choice(["pendulum", "water", "all"]),
    default="all",
    show_default=True,
    help="Which constraints.",
)
@click.option("--data", "files", multiple=True, type=click.Path(), help="Trajectories; may repeat.")
@count("--batch", default=10, help="States at a time.")
@out_folder("Folder for the table.", "reproduce")  # fmt: skip
@quiet_option("Print the table only.")
@threads_option
def projection(
    system: str, files: tuple[str, ...], batch: int, out: str, quiet: bool, threads: int | None
) -> None:
    """Newton, conjugate gradients and steepest descent: iterations, time, memory, gradients."""
    from dcase.dae.experiments.projection_study import study
    from dcase.dae.trajectories import read
    from dcase.files import write_text
    from dcase.tables import grid, page_files, write_rows

    use_threads(threads)
    folder = Path(out)
    check_writable(folder / "x")
    console = _console(quiet)
    given = {t.system: t for t in map(read, files)}
    systems = ("pendulum", "water") if system == "all" else (system,)
    parts, rows = [], []
    for name in systems:
        trajectory = given.get(name) or _trajectory(name, None, console)
        console.print(f"projecting {name}", markup=False)
        found = study(trajectory, batch=batch)
        parts.append("\n".join(grid(found)))
        rows += found
    note = (
        f"Batches of {batch}, float64, the paper's tolerances. kB: kept for the backward pass. "
        "extra: how much farther than the nearest point."
    )
    text = "**Projections compared**\n\n" + "\n\n".join([*parts, note]) + "\n"
    with page_files(folder, "dae-projection"):
        write_text(folder / "dae-projection.md", text)
        write_rows(folder / "dae-projection.csv", rows)
    click.echo(text)
    click.echo(f"written to {folder / 'dae-projection'}.md and .csv")


COMMANDS = (
    *(_table(name) for name in TABLES),
    _figure("dae-figure5", "Figure 5: methods"),
    _figure("dae-figure7", "Figure 7: strengths of the penalty"),
    _figure("dae-figure8", "Figure 8: strengths of the auxiliary loss"),
    projection,
)
