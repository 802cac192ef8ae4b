"""What a run may take, what its parts take, and what that buys.

Seconds are counted on two clocks: on the wall, and of the CPU, which are those of all threads of
all processes of a run. The end of a run is foreseen: a step is begun only where it and what comes
after the last one (the final validation, and what the caller names) are within the limit. How long
they take is measured on the first frames, so that this holds for slow networks too; a validation
that would take more than :data:`MOST_OF_LIMIT` is one of fewer frames.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcase.training.processes import Processes
from dcase.training.settings import TrainSettings
from dcase.training.state import TrainState

USEFUL_STEPS, USEFUL_ITERATIONS = 200, 20
"""Steps below which a run has learnt next to nothing; iterations of a quasi-Newton method."""
MOST_OF_LIMIT = 0.25
"""Share of a limit that the evaluations in the end may take."""


@dataclass(frozen=True)
class Seconds:
    """On the wall, and of the CPU."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(self.wall * factor, self.cpu * factor)

    def pair(self) -> list[float]:
        """Wall, CPU."""
        return [self.wall, self.cpu]


def now() -> Seconds:
    """The clocks of this process; only differences mean something."""
    return Seconds(time.monotonic(), time.process_time())


@dataclass(frozen=True)
class Forecast:
    """What a limit buys.

    Attributes:
        step: Seconds a step, on the clock that ends the run.
        limit: Seconds on that clock.
        cpu: Whether that is the CPU's.
        steps: In all.
        epochs: Likewise.
        planned: Epochs that are asked for.
        seconds: For these.
        useful: Whether the steps are enough to have learnt something.
        wanted: A limit with which they would be.
    """

    step: float
    limit: float
    cpu: bool
    steps: int
    epochs: float
    planned: int
    seconds: float
    useful: bool
    wanted: float

    @property
    def unit(self) -> str:
        """Of the seconds."""
        return "CPU s" if self.cpu else "s"

    @property
    def option(self) -> str:
        """The setting that limits."""
        return "cpu_limit" if self.cpu else "time_limit"

    def line(self) -> str:
        """In words."""
        took = f"a step takes {brief(self.step)}{' of CPU' if self.cpu else ''}"
        if self.epochs >= self.planned:
            about = brief(self.seconds)
            return f"{took}: {self.planned} epochs take about {about}, less than the limit"
        return (
            f"{took}: {self.limit:g} {self.unit} buy about {counted(self.steps, 'step')}, "
            f"{rounded(self.epochs)} of {self.planned} epochs"
        )


class Budget:
    """Keeps the time of one sitting.

    Args:
        settings: With the limits.
        processes: Those that train together; the first one has the clock on the wall.
        clock: As :func:`now`.
        prepared: Spent in this sitting before there was a budget.
        frames: To validate on.
        evaluations: How often these are evaluated in the end, the trainer's own validation
            included.
        after: Further frames that are evaluated then.

    Attributes:
        share: Of the run, by its limits, when it was last asked for; 0 without any.
    """

    def __init__(
        self,
        settings: TrainSettings,
        processes: Processes,
        *,
        clock: Callable[[], Seconds] = now,
        prepared: Seconds | None = None,
        frames: int = 0,
        evaluations: int = 1,
        after: int = 0,
    ):
        self.settings, self.processes, self.clock = settings, processes, clock
        self.limits = (settings.time_limit, settings.cpu_limit)
        self.limited = any(limit is not None for limit in self.limits)
        self.prepared = prepared or Seconds()
        self.frames, self.evaluations, self.after = frames, evaluations, after
        self.share = 0.0
        self.state = TrainState()
        self._before, self._prepared_before = Seconds(), Seconds()
        self._start = self._mark = self._checked = Seconds()
        self._steps: deque[Seconds] = deque(maxlen=3)
        self._first = self._known = Seconds()
        self._done = 0
        self._all_steps = Seconds()
        self._told = False

    def begin(self, state: TrainState) -> None:
        """Start the clock where a state stands."""
        first = self.processes.rank == 0
        self.state = state
        # Of what is summed over processes, the first one brings in what was before.
        self._before = Seconds(state.elapsed, state.cpu if first else 0.0)
        self._prepared_before = self._cost("prepared") * float(first)
        self._known = self._cost("step")
        self._start = self._mark = self.clock() - self.prepared
        state.costs["prepared"] = (self._cost("prepared") + self.prepared).pair()
        self.tick()

    # ------------------------------------------------------------------------ the clock

    def tick(self) -> None:
        """Bring the state's clocks up to date; with several processes, the one on the wall."""
        self._mark = self.clock()
        spent = self._before + (self._mark - self._start)
        self.state.elapsed = spent.wall
        if self.processes.world == 1:
            self.state.cpu = spent.cpu

    def settle(self) -> None:
        """The same for all processes together, who all must call it."""
        self.tick()
        self._sum(0.0)

    def stepped(self) -> None:
        """A step that began with the last :meth:`tick` has ended."""
        began = self._mark
        self.tick()
        took = self._mark - began
        self._steps.append(took)
        self._done += 1
        self._first = self._first if self._done > 1 else took
        self._all_steps += took
        self.state.costs["step"] = self._recent().pair()

    def evaluated(self, frames: int, began: Seconds) -> None:
        """So many frames were evaluated since ``began``, by all processes together."""
        took = self.clock() - began
        self.state.costs["frame"] = (took * (1.0 / max(frames, 1))).pair()

    # --------------------------------------------------------------------- the decisions

    def over(self) -> bool:
        """Whether there is no time for another step; all processes must ask together."""
        if not self.limited:
            return False
        self.share, fits = self._sum(0.0)
        return not fits

    def room_for_validation(self) -> bool:
        """Whether one more validation leaves time for a step; likewise."""
        return not self.limited or self._sum(float(self.validated()))[1]

    def validated(self) -> int:
        """How many frames a validation takes."""
        return self.state.validation_frames or self.frames

    def decide_validation(self) -> None:
        """Settle how many frames a validation takes, once in a limited run; all must call it."""
        state = self.state
        if state.validated_step >= 0:  # on all of them, in a sitting without a limit
            state.validation_frames = self.frames
            return
        cost, first = self._cost("frame"), self.processes.rank == 0
        wall, cpu = self.processes.sum([cost.wall * first, cost.cpu])
        count = self.frames * self.evaluations + self.after
        share = max(
            seconds * count / limit
            for seconds, limit in zip((wall, cpu), self.limits, strict=True)
            if limit is not None
        )
        state.validation_frames = self.frames
        if share > MOST_OF_LIMIT:
            state.validation_frames = max(1, int(self.frames * MOST_OF_LIMIT / share))

    def measured(self) -> bool:
        """Whether it is known what a frame takes, or nobody needs to know."""
        return not self.limited or not self.frames or self.state.validation_frames > 0

    # ---------------------------------------------------------------------- the forecast

    def forecast(self, steps_per_epoch: int) -> Forecast | None:
        """What the limits buy: once a sitting, when the first steps have told, else None."""
        if self._told or not self.limited or not self.measured():
            return None
        last = self._steps[-1] if self._steps else Seconds()
        slow = last.wall >= 5.0 or (last.wall >= 1.0 and self._done > 1)
        if not slow and not (self._done >= 5 and (self._all_steps - self._first).wall >= 1.0):
            return None
        self._told = True
        # The first step finds lists and compiles.
        step = last
        if self._done > 1:
            step = (self._all_steps - self._first) * (1.0 / (self._done - 1))
        step = Seconds(step.wall, step.cpu * self.processes.world)
        validation = self._cost("frame") * self.validated()
        each = step + validation * (1.0 / (steps_per_epoch * self.settings.validate_every))
        plan, done = self.settings.epochs * steps_per_epoch, self.state.step
        spent = Seconds(self.state.elapsed, self.state.cpu)
        found = []
        for index, limit in enumerate(self.limits):
            if limit is None:
                continue
            per, so_far, end = (s.pair()[index] for s in (each, spent, self._end()))
            per = max(per, 1e-9)
            steps = done + max(0, int((limit - end - so_far) / per))
            useful = self.useful_steps()
            wanted = so_far + end + max(useful - done, 0) * per
            found.append(
                Forecast(
                    step.pair()[index], limit, index == 1, min(steps, plan),
                    steps / steps_per_epoch, self.settings.epochs,
                    so_far + end + max(plan - done, 0) * per,
                    steps >= min(useful, plan), _round_up(wanted),
                )
            )  # fmt: skip
        return min(found, key=lambda one: one.epochs)

    def useful_steps(self) -> int:
        """Below which a run has learnt next to nothing."""
        return USEFUL_ITERATIONS if self.settings.quasi_newton else USEFUL_STEPS

    def warnings(self, status: str, steps_per_epoch: int) -> list[str]:
        """What to say of the limits in the end."""
        state, said = self.state, []
        if not self.limited or status == "interrupted":
            return []
        plan = self.settings.epochs * steps_per_epoch
        if status == "time limit" and state.step < min(self.useful_steps(), plan):
            epochs = rounded(state.step / steps_per_epoch)
            said.append(
                f"the limit left time for {counted(state.step, 'step')} ({epochs} epochs) of "
                f"{brief(self._cost('step').wall)} each: too few for a result of any use, which "
                f"takes {self.useful_steps()} or more"
            )
        if 0 < state.validation_frames < self.frames:
            said.append(
                f"validated on {state.validation_frames} of {self.frames} frames: all of them "
                "would have taken too much of the limit"
            )
        spent = (state.elapsed, state.cpu)
        for limit, seconds, unit in zip(self.limits, spent, ("s", "s of CPU"), strict=True):
            if limit is not None and seconds > 1.1 * limit and seconds > limit + 1.0:
                said.append(
                    f"the limit of {limit:g} {unit} was passed by {seconds - limit:.0f} s: what is "
                    "begun (preparations, a step, a batch of the validation) is ended"
                )
        return said

    # ------------------------------------------------------------------------- sums

    def _cost(self, name: str) -> Seconds:
        return Seconds(*self.state.costs.get(name, (0.0, 0.0)))

    def _recent(self) -> Seconds:
        """A step, by the last ones: one that takes long by chance is not taken for all."""
        if len(self._steps) < 3:
            return self._steps[-1]
        walls, cpus = (sorted(v) for v in zip(*(s.pair() for s in self._steps), strict=True))
        return Seconds(walls[1], cpus[1])

    def _next_step(self) -> Seconds:
        """What the next step is expected to take."""
        if self._done != 1:
            return self._cost("step")
        # Of one step alone it is not known what was for the first time.
        return self._known if self._known.wall else self._steps[0] * 0.5

    def _end(self) -> Seconds:
        """What comes after the last step."""
        return self._cost("frame") * (self.validated() * self.evaluations + self.after)

    def _sum(self, extra: float) -> tuple[float, bool]:
        """Share of the run that is done, and whether another step fits, of all processes together.

        Args:
            extra: Frames that are evaluated before that step.
        """
        first = self.processes.rank == 0
        spent = self._before + (self.clock() - self._start)
        prepared = self._prepared_before + self.prepared
        step, end = self._next_step(), self._end() + self._cost("frame") * extra
        parts = (spent, prepared, step, end)
        walls = [part.wall * first for part in parts]
        sums = self.processes.sum([*walls, *(part.cpu for part in parts)])
        self.state.cpu = sums[4]
        share, fits = 0.0, True
        for limit, (used, idle, one, last) in zip(self.limits, (sums[:4], sums[4:]), strict=True):
            if limit is None:
                continue
            room = limit - last - idle
            share = max(share, min((used - idle) / room, 1.0) if room > 0 else 1.0)
            fits = fits and used + one + last <= limit
        return share, fits


def spread(n: int, count: int) -> Tensor:
    """``count`` of the numbers below ``n``, evenly spread, all of them if there are not more."""
    if count >= n:
        return torch.arange(n)
    return (torch.arange(count) * n) // count


def brief(seconds: float) -> str:
    """``0.0044 -> "4.4 ms"``, ``95.3 -> "95 s"``, ``4000 -> "67 min"``."""
    if seconds < 0.1:
        return f"{rounded(1e3 * seconds)} ms"
    if seconds < 300:
        return f"{rounded(seconds)} s"
    if seconds < 3 * 3600:
        return f"{rounded(seconds / 60)} min"
    return f"{rounded(seconds / 3600)} h"


def counted(n: int, what: str) -> str:
    """``1 step``, ``13000 steps``: to two digits from 100 on."""
    return f"{rounded(n) if n >= 100 else n} {what}{'' if n == 1 else 's'}"


def rounded(value: float) -> str:
    """To two digits, without an exponent."""
    if value <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(value))
    if digits <= 0:
        return f"{round(value, digits):.0f}"
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def _round_up(seconds: float) -> float:
    """To one of 10, 20, 30, ... 60, 120, ..., so that it reads well."""
    unit = 10 if seconds <= 100 else 60 if seconds <= 3600 else 600
    return float(unit * math.ceil(seconds / unit))
