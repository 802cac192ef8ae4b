"""Where the time of a run goes: a clock that is always in exactly one of several parts."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PARTS = ("neighbours", "model", "integrator", "io")
REST = "integrator"
"""The part of all time that no timed function takes."""


class Stopwatch:
    """Time by part; what a timed function spends in another one counts for that one alone.

    So the parts add up to the whole, always. Threads other than the one that made the stopwatch
    work while that one waits; what they spend is kept apart.

    Args:
        clock: Seconds.

    Attributes:
        seconds: By part.
        elsewhere: Of all other threads together, by part; here what one timed function spends in
            another counts for both.
        calls: Of timed functions.
        running: Whether time counts.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.elsewhere = dict.fromkeys(PARTS, 0.0)
        self.calls = 0
        self.running = False
        self._inside = [REST]
        self._since = clock()
        self._thread, self._lock = threading.get_ident(), threading.Lock()

    def start(self) -> None:
        """From here on time counts."""
        self.running, self._since = True, self.clock()

    def stop(self) -> None:
        """Up to here; until the next :meth:`start`."""
        self._switch()
        self.running = False

    def move(self, seconds: float, part: str) -> None:
        """Give another part some of what has been counted as the rest."""
        self.seconds[REST] -= seconds
        self.seconds[part] += seconds

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time counted as that of ``part``."""

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            if threading.get_ident() != self._thread:
                return self._apart(part, function, *args, **options)
            self._switch()
            self._inside.append(part)
            self.calls += self.running
            try:
                return function(*args, **options)
            finally:
                self._switch()
                self._inside.pop()

        return run

    @contextmanager
    def watching(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """Within the block, ``owner.name(...)`` is timed; of this object alone."""
        with replaced(owner, name, self.timed(part, getattr(owner, name))):
            yield

    def cost_per_call(self, calls: int = 2000) -> float:
        """Seconds that timing one call adds, measured now."""
        other = Stopwatch(self.clock)
        other.start()
        timed = other.timed(REST, _nothing)
        began = self.clock()
        for _ in range(calls):
            timed()
        return (self.clock() - began) / calls

    def _apart(self, part: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        began = self.clock()
        try:
            return function(*args, **options)
        finally:
            with self._lock:
                self.calls += self.running
                self.elsewhere[part] += self.running * (self.clock() - began)

    def _switch(self) -> None:
        now = self.clock()
        if self.running:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within the block, the attribute of this object is ``value``; then as it was."""
    own = vars(owner)
    had, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _nothing() -> None:
    pass
