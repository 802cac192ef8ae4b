"""Progress of training and dynamics: a live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from dcase.training.budget import Forecast, brief
from dcase.training.trainer import Progress


def duration(seconds: float) -> str:
    """``95.3 -> "1:35"``, ``4000 -> "1:06:40"``."""
    whole = round(max(seconds, 0))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class TrainingDisplay:
    """Shows epoch, rate, ETA and the current errors.

    Args:
        console: Where to show them.
        display: Unit of each term, from the problem (``{"forces": (factor, "meV/A")}``).
        quiet: Show nothing.
        advice: What else to do where a limit buys too little.
    """

    label = "budget  "

    def __init__(
        self,
        console: Console,
        display: dict[str, tuple[float, str]],
        *,
        quiet: bool = False,
        advice: str = "",
    ):
        self.console, self.units = console, {name: unit for name, (_, unit) in display.items()}
        self.quiet, self.advice = quiet, advice
        self._live: Any = None
        self._next = 0.0
        self._interval = 5.0

    def __enter__(self) -> TrainingDisplay:
        if not self.quiet and self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        if self._live:
            self._live.__exit__(*details)

    def __call__(self, progress: Progress) -> None:
        """Show the state after a step."""
        now = time.monotonic()
        if progress.forecast and not self.quiet:
            self.console.print(
                self.label + budget_line(progress.forecast, self.advice),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if self.quiet or (now < self._next and progress.step < progress.steps):
            return
        if self._live:
            self._next = now + 0.25
            self._live.update(Text(self.line(progress)))
        else:
            # A log gets a line every 5 s at first, every minute in the end.
            self._next = now + self._interval
            self._interval = min(self._interval * 1.3, 60.0)
            self.console.print(self.line(progress), highlight=False, soft_wrap=True)

    def line(self, p: Progress) -> str:
        """One line."""
        return progress_line(p, self.units)


def budget_line(forecast: Forecast, advice: str = "") -> str:
    """What a limit of time buys, and what to do where that is too little.

    Args:
        forecast: After the first steps.
        advice: What helps, beside a longer limit.
    """
    if forecast.useful:
        return forecast.line()
    flag = f"--{forecast.option.replace('_', '-')} {forecast.wanted:.0f}"
    helps = f"{flag}, {advice}" if advice else flag
    return f"{forecast.line()}, too few to be useful; give {helps}"


def rate(steps_per_second: float) -> str:
    """``"120 steps/s"``, or ``"12 s a step"`` where a step takes longer than a second."""
    if steps_per_second >= 1 or steps_per_second <= 0:
        return f"{steps_per_second:.0f} steps/s"
    return f"{brief(1 / steps_per_second)} a step"


def progress_line(p: Progress, units: Mapping[str, str]) -> str:
    """Where a training is, in one line.

    Args:
        p: After a step.
        units: Of the errors shown, by term.
    """
    errors = "".join(
        f" | val {name} {p.validation[f'val_{name}_mae']:.1f} {unit}"
        for name, unit in units.items()
        if f"val_{name}_mae" in p.validation
    )
    return (
        f"epoch {p.epoch}/{p.epochs} | {rate(p.steps_per_second)} | "
        f"{duration(p.elapsed)} done, {duration(p.remaining)} to go | "
        f"loss {p.loss:.3g}{errors}"
    )


@contextmanager
def step_bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and ETA; the block calls ``bar(steps done, steps in all)``.

    On a terminal it is live and vanishes at the end; in a log there is a line now and then.
    """
    started, first = time.monotonic(), None
    if console.is_terminal and not console.quiet:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=None, rate="")

            def live(done: int, total: int) -> None:
                nonlocal started, first
                if first is None:
                    started, first = time.monotonic(), done
                speed = (done - first) / max(time.monotonic() - started, 1e-9)
                bar.update(task, completed=done, total=total, rate=rate(speed))

            yield live
        return
    due, interval = started + 5.0, 5.0

    def lines(done: int, total: int) -> None:
        nonlocal due, interval, started, first
        now = time.monotonic()
        if first is None:
            started, first = now, done
        if now < due or done >= total or done == first:  # no rate is known yet
            return
        interval = min(interval * 1.3, 60.0)
        due = now + interval
        speed = (done - first) / max(now - started, 1e-9)
        console.print(
            f"{title}: {done}/{total} | {rate(speed)} | "
            f"{duration((total - done) / max(speed, 1e-9))} to go",
            highlight=False,
            soft_wrap=True,
        )

    yield lines
