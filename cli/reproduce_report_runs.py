"""What ``dcase reproduce report-*`` makes: frames, runs and baselines, shown as they go."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dcase.cli.options import use_threads
from dcase.cli.progress import TrainingDisplay, duration
from dcase.cli.reproduce_report_options import Chosen, warn
from dcase.errors import DataError, OptionError
from dcase.files import check_writable
from dcase.potentials.experiments.report_published import SYSTEMS


@dataclass(frozen=True)
class Piece:
    """One thing to make: a run, a baseline, a cross-validation."""

    key: Any
    title: str
    kept: Callable[[], dict[str, Any] | None]
    make: Callable[..., dict[str, Any] | None]


class Sitting:
    """What a command makes, in order, shown as it goes."""

    def __init__(self, chosen: Chosen):
        from dcase.potentials.experiments.report_runs import base_recipe
        from dcase.potentials.fitting.evaluation import choose_device

        for name in chosen["recipes"]:
            base_recipe(name)  # what is wrong with it is to be known before any frame is read
        use_threads(chosen["threads"])
        self.chosen = chosen
        self.recipes = list(dict.fromkeys(chosen["recipes"]))
        self.folder = Path(chosen["out"])
        check_writable(self.folder / "x")
        self.device = choose_device(chosen["device"])
        self.quiet = chosen["quiet"]
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=self.quiet)
        self.skipped: list[str] = []

    @property
    def length(self) -> Any:
        """As :class:`~dcase.potentials.experiments.report_runs.Length`."""
        from dcase.potentials.experiments.report_runs import Length

        return Length(
            **{k: self.chosen[k] for k in ("epochs", "time_limit", "train", "test", "seed")}
        )

    def frames(self, default: Sequence[str]) -> list[Any]:
        """The frames of the systems asked for, or of those by default that are there.

        Raises:
            DataError: If there are none, or none of one that was asked for.
        """
        from dcase.data.molecules import get_molecule
        from dcase.potentials.experiments.report_data import Sources, load_system
        from dcase.potentials.experiments.runs import Frames

        chosen = self.chosen
        asked = [
            name.lower() if name.lower() in SYSTEMS else get_molecule(name).name
            for name in chosen["molecules"]
        ]
        sources = Sources(
            tuple(chosen["sources"]), chosen["labels"], chosen["qm9_source"], chosen["iso17_source"]
        )
        found = []
        for system in dict.fromkeys(asked or default):
            try:
                dataset = load_system(system, sources, seed=chosen["seed"], notify=warn)
            except DataError as error:
                if asked:
                    raise
                self.skipped.append(f"{system}: no rows ({error}).")
                continue
            found.append(Frames(system, dataset))
        if not found:
            raise DataError(f"there are no frames of any data set: {self.skipped[0]}")
        return found

    def only(self, default: Sequence[str]) -> Any:
        """The first system of :meth:`frames`, where only one makes sense."""
        if len(self.chosen["molecules"]) > 1:
            raise OptionError("this table is of one data set; ask for one --molecule")
        return self.frames(default)[0]

    def make(self, pieces: Sequence[Piece]) -> Iterator[dict[Any, dict[str, Any]]]:
        """Make all; the results there are, by key, after each."""
        results: dict[Any, dict[str, Any]] = {}
        spent, made = 0.0, 0
        for number, piece in enumerate(pieces, 1):
            result = piece.kept()
            left = duration(spent / made * (len(pieces) - number + 1)) if made else "?"
            state = "kept from before" if result else f"about {left} left"
            self.console.print(f"[{number}/{len(pieces)}] {piece.title} ({state})", markup=False)
            if result is None:
                started = time.monotonic()
                result = self._shown(piece)
                spent, made = spent + time.monotonic() - started, made + 1
            if result["status"] == "NaN":
                self.console.print(f"  NaN: {result['reason']}", markup=False)
            results[piece.key] = result
            yield results

    def _shown(self, piece: Piece) -> dict[str, Any]:
        shown: list[TrainingDisplay] = []

        def close() -> None:
            while shown:
                shown.pop().__exit__(None, None, None)

        def start(potential: Any, trainer: Any) -> None:
            close()
            units = trainer.objective.problem.display
            display = TrainingDisplay(self.console, units, quiet=self.quiet)
            shown.append(display.__enter__())

        try:
            result = piece.make(on_start=start, on_step=lambda *p: shown[0](p[-1]))
        finally:
            close()
        if result is None:
            click.echo("stopped; the same command goes on from here", err=True)
            raise click.exceptions.Exit(130)
        return result

    def run(self, key: Any, run: Any, title: str) -> Piece:
        """A training run as a piece."""
        from dcase.potentials.experiments.report_runs import perform_recorded
        from dcase.potentials.experiments.runs import result_of

        return Piece(
            key,
            title,
            lambda: result_of(run, self.folder),
            functools.partial(perform_recorded, run, self.folder, device=self.device),
        )

    def fit(self, key: Any, fit: Any, title: str) -> Piece:
        """A baseline as a piece."""
        from dcase.potentials.experiments.report_fits import fit_of, perform_fit

        return Piece(
            key,
            title,
            lambda: fit_of(fit, self.folder),
            lambda on_start, on_step: perform_fit(fit, self.folder),
        )

    def end(self, name: str, text: str, more: str = "") -> None:
        """Print the result and where it is."""
        click.echo(text)
        click.echo(
            f"written to {self.folder / name}.md, .csv, .json{more}; runs in {self.folder / 'runs'}"
        )
