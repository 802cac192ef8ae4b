"""Ctrl-C between two steps rather than in the middle of one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Stop:
    """Whether Ctrl-C was pressed."""

    pressed: bool = False


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Turn the first Ctrl-C into a flag, so that no step is cut in half; the second one raises.

    Python lets only the main thread handle signals; elsewhere the flag stays down.
    """
    stop = Stop()

    def note(signum: int, frame: Any) -> None:
        if stop.pressed:
            raise KeyboardInterrupt
        stop.pressed = True

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
