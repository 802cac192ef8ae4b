"""A simulation whose steps are timed in rounds; the inside of :mod:`~dcase.md_runs.bench`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from dcase.errors import SimulationError
from dcase.md_runs.bench.stopwatch import PARTS, REST, Stopwatch, replaced
from dcase.md_runs.files.run_folder import RunFolder
from dcase.md_runs.loop.engine import Simulation
from dcase.md_runs.loop.replica_batch import ReplicaBatch, ReplicaFolder
from dcase.md_runs.replicas import run_replicas
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import run_md
from dcase.potentials.calculator import DCCalculator

ROUND_SECONDS = 1.0
"""About how long a round takes if the number of steps is left open."""
LEAST_STEPS = 20
"""Of a round then: in as many steps neighbours are searched for about once."""


@dataclass(frozen=True)
class WholeRun:
    """A run of ``dcase md`` from beginning to end, without timers and without the report.

    Attributes:
        steps: Of production.
        equilibrate: Steps before it, as many of them as by default in proportion.
        seconds: All of it: check of the time step, equilibration, production, files.
        production_s: Of that, the steps of production, checkpoints included.
        equilibration_s: Of that, the equilibration; None of replicas, where it is not kept apart.
    """

    steps: int
    equilibrate: int
    seconds: float
    production_s: float
    equilibration_s: float | None


class Rounds:
    """A simulation whose steps are timed in rounds.

    Args:
        atoms: With a calculator, which nobody else uses meanwhile.
        settings: NVE without equilibration; their number of steps does not matter.
        folder: To write into.

    Attributes:
        potential: ``"compiled"`` or ``"PyTorch"``.
        loop: ``"compiled"``, ``"CUDA graph"``, ``"ASE"`` or ``"batch"``.
        steps: Of a round.
        stopwatch: Of all rounds so far.
        rounds_s: Seconds of each round.
        searches: For neighbours, in all rounds.
        whole: The run before them.
        origin: Positions and momenta where it ended, in which the rounds begin.
    """

    def __init__(self, atoms: Atoms, settings: MDSettings, folder: Path) -> None:
        self.atoms, self.settings, self.folder = atoms, settings, folder
        self.calculator: DCCalculator = atoms.calc  # type: ignore[assignment]
        self.run: Any  # with settings, step, and advance()
        self.stopwatch = Stopwatch()
        self.rounds_s: list[float] = []
        self.searches = 0
        self.steps = 0
        self.whole: WholeRun
        self.origin: tuple[np.ndarray, np.ndarray]
        self.potential = "PyTorch" if self.calculator.deployed is None else "compiled"
        self.loop = "ASE"

    def close(self) -> None:
        """Close the files."""
        self.run.close()

    # --- what single copies and replicas do in their own ways --------------------------------

    def whole_run(self, settings: MDSettings) -> tuple[float, float | None]:
        """Do one; returns the seconds of production and of equilibration."""
        raise NotImplementedError

    def rewind(self) -> None:
        """Back to the state after the whole run, as a checkpoint leaves it: without pairs."""
        raise NotImplementedError

    def watch(self, stack: ExitStack) -> None:
        """Time the methods that take part, until the stack closes."""
        calculator, timed = self.calculator, self.stopwatch.timed
        search = calculator.search

        def look(atoms: Atoms, known: Any = None) -> Any:
            listed = search(atoms, known)
            if listed is not known:
                self.searches += self.stopwatch.running
                listed.graph = timed("neighbours", listed.graph)  # type: ignore[method-assign]
            return listed

        stack.callback(calculator.forget)  # the last list, with its timed method
        stack.enter_context(replaced(calculator, "search", timed("neighbours", look)))
        for kernel in getattr(calculator.deployed, "kernels", ()):
            if hasattr(kernel, "prepare"):  # lays the pairs out
                stack.enter_context(self.stopwatch.watching(kernel, "prepare", "neighbours"))

    def model_seconds(self) -> float:
        """Spent in the potential by compiled loops, which the stopwatch does not look into."""
        return 0.0

    def settle(self, model_seconds: float) -> None:
        """After a round: give the parts what compiled loops have spent on them."""

    def trouble(self) -> str:
        """One step, or several at a time; returns what went wrong, or ""."""
        return str(self.run.advance() or "")

    # --- rounds ------------------------------------------------------------------------------

    def prepare(self, steps: int | None) -> None:
        """Choose the number of steps, and do a whole run."""
        self.steps = steps or self._enough_steps()
        settings = replace(self.settings, steps=self.steps)
        share = MDSettings().equilibrate / MDSettings().steps
        settings = replace(settings, equilibrate=round(self.steps * share))
        began = time.perf_counter()
        production, equilibration = self.whole_run(settings)
        seconds = time.perf_counter() - began
        self.whole = WholeRun(self.steps, settings.equilibrate, seconds, production, equilibration)

    def _enough_steps(self) -> int:
        """For a round of about ``ROUND_SECONDS``, and whole checkpoints if there are any."""
        self.advance(1)
        count, seconds = 1, 0.0
        while seconds < 0.2 * ROUND_SECONDS:
            count *= 4
            began = time.perf_counter()
            self.advance(count)
            seconds = time.perf_counter() - began
        wanted = int(ROUND_SECONDS * count / seconds)
        every = self.settings.checkpoint_every
        return wanted - wanted % every if wanted >= every else max(wanted, LEAST_STEPS)

    def advance(self, count: int) -> None:
        """Exactly so many steps."""
        self.run.settings = replace(self.settings, steps=self.run.step + count)
        while self.run.step < self.run.settings.steps:
            if trouble := self.trouble():
                raise SimulationError(
                    f"the simulation stopped at step {self.run.step} ({trouble}), so there is "
                    "nothing to time: relax the structure first, or take a smaller time step"
                )

    def round(self) -> None:
        """One round. Long rounds all take the same steps; short ones go on from one another."""
        if self.run.step >= self.settings.checkpoint_every:
            self.rewind()
        compiled, before = self.model_seconds(), sum(self.stopwatch.seconds.values())
        self.stopwatch.start()
        self.advance(self.steps)
        self.stopwatch.stop()
        self.settle(self.model_seconds() - compiled)
        self.rounds_s.append(sum(self.stopwatch.seconds.values()) - before)


class OneCopy(Rounds):
    """One copy, as ``run_md`` simulates it."""

    run: Simulation

    def __init__(self, atoms: Atoms, settings: MDSettings, folder: Path, notes: list[str]) -> None:
        super().__init__(atoms, settings, folder)
        self.run = Simulation(atoms, settings, RunFolder(folder / "rounds"), None, None)
        try:
            self.run.start()
        except BaseException:
            self.run.close()
            raise
        notes += self.run.run_facts["warnings"]
        if self.run.blocks is not None:
            self.loop = "CUDA graph" if self.calculator.deployed is None else "compiled"

    def whole_run(self, settings: MDSettings) -> tuple[float, float | None]:
        """By ``run_md``; the rounds begin where it ended."""
        result = run_md(self.atoms, settings, self.folder / "whole")
        _must_have_finished(result.status)
        self.origin = result.atoms.get_positions(), result.atoms.get_momenta()
        state = RunFolder(self.folder / "whole").read_run()
        return result.wall_time_s, float(state["equilibration_wall_time_s"])

    def rewind(self) -> None:
        """See :class:`Rounds`."""
        positions, momenta = self.origin
        self.run.atoms.set_positions(positions, apply_constraint=False)
        self.run.atoms.set_momenta(momenta, apply_constraint=False)
        self.run.reset_calculator()
        self.run.step = 0

    def watch(self, stack: ExitStack) -> None:
        """See :class:`Rounds`."""
        super().watch(stack)
        for owner, name, part in (
            (self.calculator, "calculate", "model"),
            (self.run.rows, "record", "io"),
            (self.run.rows, "record_steps", "io"),
            (self.run, "checkpoint", "io"),
        ):
            stack.enter_context(self.stopwatch.watching(owner, name, part))

    def model_seconds(self) -> float:
        """See :class:`Rounds`."""
        return float(getattr(self.run.blocks, "model_seconds", 0.0))

    def settle(self, model_seconds: float) -> None:
        """See :class:`Rounds`."""
        self.stopwatch.move(model_seconds, "model")


class Replicas(Rounds):
    """Many copies in one batch, as ``run_replicas`` simulates them."""

    run: ReplicaBatch

    def __init__(
        self, atoms: Atoms, settings: MDSettings, folder: Path, notes: list[str], count: int
    ) -> None:
        super().__init__(atoms, settings, folder)
        self.count, self.loops_s = count, 0.0  # seconds in the compiled loops of all
        self.run = ReplicaBatch(atoms, settings, count, ReplicaFolder(folder / "rounds"), None)
        try:
            self.run.start()
        except BaseException:
            self.run.close()
            raise
        notes += self.run.facts["warnings"]
        self.loop = "batch" if self.run.blocks is None else "compiled"

    def whole_run(self, settings: MDSettings) -> tuple[float, float | None]:
        """By ``run_replicas``; the rounds begin where it ended."""
        out = self.folder / "whole"
        status = run_replicas(self.atoms, settings, self.count, out)
        saved = ReplicaFolder(out).latest()
        _must_have_finished(next((f"stopped: {why}" for why in saved.trouble.values()), status))
        self.origin = saved.x, saved.p
        return saved.wall, None

    def rewind(self) -> None:
        """See :class:`Rounds`."""
        self.run.x, self.run.p = (values.copy() for values in self.origin)
        self.run.step = 0
        self.run.checkpoint()  # forgets the pairs, and evaluates

    def trouble(self) -> str:
        """See :class:`Rounds`."""
        run = self.run
        run.advance()
        if run.step % self.settings.checkpoint_every == 0:
            run.checkpoint()
        return next(iter(run.trouble.values()), "")

    def watch(self, stack: ExitStack) -> None:
        """See :class:`Rounds`."""
        super().watch(stack)
        run, watching = self.run, self.stopwatch.watching
        for name, part in (("evaluate", "model"), ("write", "io"), ("checkpoint", "io")):
            stack.enter_context(watching(run, name, part))
        forces = run.forces_of
        search = forces._pairs

        def look(copy: int, positions: np.ndarray) -> Any:
            known = forces.lists.get(copy)
            listed = search(copy, positions)
            self.searches += self.stopwatch.running and listed is not known
            return listed

        watched = self.stopwatch.timed("neighbours", look)
        stack.enter_context(replaced(forces, "_pairs", watched))
        if run.blocks is None:
            return
        for loop in run.blocks.loops:
            stack.enter_context(watching(loop, "advance", REST))
        advance = run.blocks.advance

        def all_loops(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return advance(*args, **options)
            finally:
                self.loops_s += time.perf_counter() - began

        stack.enter_context(replaced(run.blocks, "advance", all_loops))

    def model_seconds(self) -> float:
        """See :class:`Rounds`."""
        loops = () if self.run.blocks is None else self.run.blocks.loops
        return sum(loop.model_seconds for loop in loops)

    def settle(self, model_seconds: float) -> None:
        """Time of the threads, scaled to the time that they took together."""
        elsewhere = self.stopwatch.elsewhere
        if elsewhere[REST] > 0.0:
            scale = self.loops_s / elsewhere[REST]
            self.stopwatch.move(scale * elsewhere["neighbours"], "neighbours")
            self.stopwatch.move(scale * model_seconds, "model")
        self.loops_s, self.stopwatch.elsewhere = 0.0, dict.fromkeys(PARTS, 0.0)


def _must_have_finished(status: str) -> None:
    if status == "interrupted":
        raise KeyboardInterrupt
    if status != "finished":
        raise SimulationError(
            f"the simulation {status}, so there is nothing to time: relax the structure first, or "
            "take a smaller time step"
        )
