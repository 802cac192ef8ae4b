"""Processes for tests that start fast and die where they are told to, not after a time.

Nothing here waits for the clock: a process tells where it is by what it writes, and a kill comes at
a write that is counted. ``GUARD`` only ends a test that hangs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable

# Seconds until what hangs is given up; nothing that works takes a tenth of it.
GUARD = 600.0
# Imported once, before the fork: each process would take up to a second for what it needs of them.
PRELOADED = [
    "dcase.potentials.fitting.fit_potential", "dcase.potentials.ensemble", "lightning_fabric",
    "dcase.md_runs.simulate", "dcase.md_runs.replicas", "dcase.md_runs.active.loop",
    "dcase.pinn.run", "dcase.pinn.pdebench.generate", "dcase.dae.run", "dcase.plotting",
    "ase.build", "ase.io", "scipy.interpolate", "matplotlib.figure", "dateutil.parser",
]  # fmt: skip


def start(target: Callable[..., None], *args) -> multiprocessing.Process:
    """Run ``target(*args)`` in a fresh process; torch and dcase are imported once for all of them.

    ``target`` must be found by name in its module, and gets one thread of torch.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_one_thread, args=(target, *args))
    process.start()
    return process


def _one_thread(target: Callable[..., None], *args) -> None:
    import torch

    torch.set_num_threads(1)
    target(*args)


def finish(process: multiprocessing.Process) -> int:
    """Wait for a process's end; its exit code (minus the signal that killed it)."""
    process.join(GUARD)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{process.name} hangs")
    return process.exitcode


def on_write(act: Callable[[int], None]) -> None:
    """Call ``act(n)`` just before the n-th time (from 1) that this process makes a file durable.

    Files of dcase are synced and then renamed, and journals are synced; each of the two counts. It
    lasts as long as the process: for processes of their own, or with ``os`` restored afterwards.
    """
    count = 0

    def counted(original):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            act(count)
            return original(*args, **kwargs)

        return wrapper

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)


def die_at_write(number: int) -> None:
    """Let this process die by SIGKILL just before its ``number``-th sync or rename; 0: never."""

    def act(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    on_write(act)


def count_writes(monkeypatch, work: Callable[[], object]) -> int:
    """How many syncs and renames ``work()`` makes in this process."""
    counts = [0]
    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            patch.setattr(os, name, getattr(os, name))  # so that they are put back
        on_write(counts.append)
        work()
    return counts[-1]
