"""Trainings that do not depend on each other: one after another, or some at a time in processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits
from dcase.errors import (
    DcaseError,
    KernelWarning,
    NetworkWarning,
    PaperVariantWarning,
    RunError,
)
from dcase.interrupt import interruptible
from dcase.potentials.fitting.fit_potential import (
    fit_potential,
    run_folder,
    training_place,
    untrained,
)
from dcase.potentials.fitting.recipe import Recipe
from dcase.potentials.kernels.forms import training_form
from dcase.runs import CLEARING, RUNNING, read_record

SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        number: To tell it from others.
        dataset: Frames.
        splits: Which are used for what.
        recipe: Every choice.
        out: Checkpoint to write.
        resume: Go on with an earlier run, if there is one; else it is replaced.
        device: Where to train.
    """

    number: int
    dataset: AtomicDataset
    splits: Splits
    recipe: Recipe
    out: Path
    resume: bool
    device: str

    def finished(self) -> bool:
        """Whether an earlier sitting trained it to its end, as long as is asked for now."""
        folder = run_folder(self.out)
        try:
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            status = read_record(folder).get("status")
        except (OSError, ValueError, RunError):
            return False
        if status in (RUNNING, CLEARING):  # killed in its last writes
            return False
        if not self.out.exists() or report.get("recipe") is None:
            return False
        # More epochs or time than before go on from its state.
        return report["recipe"] == json.loads(json.dumps(self.recipe.to_dict()))

    def run(
        self,
        on_start: Callable[..., None] | None = None,
        on_step: Callable[[Any], None] | None = None,
    ) -> bool:
        """Train; whether it came to an end (and was not interrupted)."""
        resume = self.resume and training_place(self.out).resumable()
        outcome = fit_potential(
            self.dataset,
            self.splits,
            self.recipe,
            self.out,
            resume=resume,
            overwrite=not resume,
            device=self.device,
            draw=False,
            on_start=on_start,
            on_step=on_step,
        )
        return outcome.result.status != "interrupted"


def run_jobs(
    jobs: Sequence[Job],
    at_a_time: int,
    *,
    on_fold: Callable[[int], None] | None = None,
    on_start: Callable[..., None] | None = None,
    on_step: Callable[[int, Any], None] | None = None,
    check: Callable[[], None] | None = None,
) -> bool:
    """Do all jobs; whether all came to an end. Ctrl-C saves the state of those in progress.

    Args:
        jobs: To be done in this order.
        at_a_time: In as many processes of one thread each; 1: in this process.
        on_fold: Called with a job's number when it begins.
        on_start: See :func:`~dcase.potentials.fitting.fit_potential.fit_potential`; in this process
            only.
        on_step: Called with number and progress, after every step (1 at a time) or now and then.
        check: Called now and then; raises what ends all jobs (a folder that went away).

    Raises:
        DcaseError: The first failure, once the jobs in progress have ended.
    """
    if at_a_time <= 1 or len(jobs) <= 1:
        for job in jobs:
            if on_fold:
                on_fold(job.number)

            def step(progress: Any, number: int = job.number) -> None:
                if check:
                    check()
                if on_step:
                    on_step(number, progress)

            if not job.run(on_start, step):
                return False
        return True
    return _in_processes(jobs, at_a_time, on_fold, on_step, check)


def _in_processes(
    jobs: Sequence[Job],
    at_a_time: int,
    on_fold: Callable[[int], None] | None,
    on_step: Callable[[int, Any], None] | None,
    check: Callable[[], None] | None,
) -> bool:
    # Here, once, kernels are compiled, and what is to be warned of is.
    first = jobs[0]
    potential = untrained(first.recipe, first.dataset.elements).to(first.device)
    if first.recipe.acceleration.compiled:
        training_form(potential)
    # A fork of a process with threads can hang; this one has none, and imports torch once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dcase.potentials.fitting.fit_potential"])
    messages = context.Queue()
    waiting, failure = list(jobs), ""
    running: dict[int, Any] = {}
    interrupted = False
    with interruptible(signal.SIGINT, signal.SIGTERM) as pressed:
        while running or (waiting and not failure and not pressed.is_set()):
            while waiting and len(running) < at_a_time and not failure and not pressed.is_set():
                job = waiting.pop(0)
                if on_fold:
                    on_fold(job.number)
                process = context.Process(target=_child, args=(job, messages), daemon=True)
                process.start()
                running[job.number] = process
            if pressed.is_set() and not interrupted:
                interrupted = True
                for process in running.values():
                    process.terminate()  # SIGTERM: the trainer saves its state and ends
            if check:  # the children are daemons: what is raised here ends them
                check()
            try:
                number, what, content = messages.get(timeout=0.2)
            except queue.Empty:
                for number, process in list(running.items()):
                    if not process.is_alive() and messages.empty():
                        del running[number]
                        failure = failure or f"fold {number + 1}: its process ended without a word"
                continue
            if what == "step":
                if on_step:
                    on_step(number, content)
                continue
            running.pop(number).join()
            if what == "error":
                failure = failure or f"fold {number + 1}: {content}"
            elif not content:
                interrupted = True
    if interrupted:
        return False
    if failure:
        raise DcaseError(failure)
    return True


def _child(job: Job, messages: Any) -> None:
    """A process's whole life."""
    # Out of reach of the terminal's Ctrl-C, which the parent passes on: two signals would end the
    # training without a save.
    os.setsid()
    for said in (KernelWarning, NetworkWarning, PaperVariantWarning):  # by the parent
        warnings.simplefilter("ignore", said)
    torch.set_num_threads(1)  # the process is ours, and there are others beside it
    parent = multiprocessing.parent_process()
    last = 0.0

    def step(progress: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_REPORTS or progress.step == progress.steps:
            last = now
            if parent is not None and not parent.is_alive():  # killed: nobody waits for this
                raise KeyboardInterrupt
            messages.put((job.number, "step", progress))

    try:
        messages.put((job.number, "end", job.run(on_step=step)))
    except KeyboardInterrupt:
        messages.put((job.number, "end", False))
    except Exception as error:
        messages.put((job.number, "error", " ".join(str(error).split()) or type(error).__name__))
