"""Ctrl-C between two steps rather than in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible(*numbers: signal.Signals) -> Iterator[threading.Event]:
    """The first of the signals ``numbers`` sets the event; the second raises KeyboardInterrupt.

    The previous handlers come back when the block ends, however it ends. Outside the main thread,
    where Python cannot handle signals, nothing changes.
    """
    pressed = threading.Event()

    def note(signum: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, note)
        yield pressed
    finally:
        for number, handler in before.items():
            # None: installed by C code, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
