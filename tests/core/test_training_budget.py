"""Limits of time hold for slow steps and slow validations too, and it is said what they buy."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from clocks import Clock
from training_problems import Curve, CurveFit, saved, trainer

from dcase.errors import OptionError
from dcase.training.budget import Seconds, brief, rounded, spread
from dcase.training.logs import read_metrics
from dcase.training.settings import TrainSettings

VALIDATION = 40


class Slow(CurveFit):
    """A problem whose steps and evaluations take time on a clock that only they move."""

    def __init__(self, step, frame=0.0, first=0.0, cpu=1.0):
        self.clock = Clock(0.0)
        self.step, self.frame, self.first, self.cpu = step, frame, first, cpu
        self.validated: ClassVar = []

    def terms(self, model, batch, training):
        seconds = self.step + self.first if training else self.frame * len(batch.x)
        if training:
            self.first = 0.0
        else:
            self.validated.append(batch.indices.tolist())
        self.clock.pass_by(seconds, self.cpu * seconds)
        return super().terms(model, batch, training)


def slow_run(folder, problem, *, resume=False, **options):
    """Five steps an epoch; 40 samples to validate."""
    seen = []
    options = {
        "epochs": 100, "validation": Curve(VALIDATION, shift=0.05), "on_step": seen.append,
        "clock": problem.clock, **options,
    }  # fmt: skip
    run = trainer(folder, problem=problem, **options)
    return run.fit(resume=resume), seen, run


@pytest.mark.parametrize(
    ("step", "frame", "steps"),
    [
        (12.0, 0.0, 5),  # 5 x 12
        (11.0, 0.2, 4),  # the fifth would leave no time for the validation
        (7.0, 0.3, 6),  # 1.5 to find out what the validation takes, 12 for that
        (2.0, 0.05, 24),  # validations of 2 s each after every epoch
    ],
)
@pytest.mark.parametrize("limit", ["time_limit", "cpu_limit"])
def test_a_limit_holds_for_slow_steps_and_their_validation(tmp_path, step, frame, steps, limit):
    problem = Slow(step, frame)
    result, seen, _ = slow_run(tmp_path, problem, **{limit: 60.0})
    assert result.status == "time limit"
    assert result.elapsed == result.cpu <= 60.0
    assert result.steps == steps
    assert result.elapsed > 60.0 - 2 * step - 2 * VALIDATION * frame
    assert "val_loss" in read_metrics(tmp_path / "metrics.csv")[-1]
    assert seen[-1].lr > 0  # no step is wasted on the schedule's very end
    assert seen[-1].lr < 0.4 * seen[0].lr


def test_the_nearer_of_two_limits_ends_the_run(tmp_path):
    for cpu, expected in ((0.5, (30.0, 15.0)), (4.0, (15.0, 60.0))):
        problem = Slow(1.0, cpu=cpu)
        result, _, _ = slow_run(tmp_path / str(cpu), problem, time_limit=30.0, cpu_limit=60.0)
        assert (result.elapsed, result.cpu) == expected


def test_a_slow_validation_takes_a_part_of_the_frames(tmp_path):
    problem = Slow(1.0, frame=2.0)  # 80 s for all of them
    result, _, _ = slow_run(tmp_path, problem, time_limit=60.0)
    count = result.validation_frames
    assert 0 < count * 2.0 <= 15.0  # a quarter of the limit
    assert result.elapsed <= 60.0
    assert problem.validated[-1] == [VALIDATION * k // count for k in range(count)]
    assert any(f"validated on {count} of 40 frames" in line for line in result.warnings)
    # The frames of one run stay the same, or its validations could not be compared.
    longer, _, _ = slow_run(tmp_path, problem, time_limit=6000.0, epochs=20, resume=True)
    assert longer.validation_frames == count
    assert len(problem.validated[-1]) == count


def test_what_follows_the_training_is_left_time_for(tmp_path):
    ends = {}
    for evaluations, after in ((1, 0), (2, 0), (2, 50)):
        options = {"evaluations": evaluations, "after": after, "time_limit": 60.0}
        folder = tmp_path / f"{evaluations}{after}"
        result, _, _ = slow_run(folder, Slow(1.0, frame=0.1), validate_every=1000, **options)
        ends[evaluations, after] = result.elapsed
    assert 59.0 <= ends[1, 0] <= 60.0
    assert 55.0 <= ends[2, 0] <= 56.0
    assert 50.0 <= ends[2, 50] <= 51.0


def test_preparations_count_and_leave_the_schedule_whole(tmp_path):
    problem = Slow(1.0)
    options = {"prepared": Seconds(30.0, 30.0), "time_limit": 60.0}
    result, seen, _ = slow_run(tmp_path, problem, **options)
    assert (result.elapsed, result.steps) == (60.0, 30)
    assert seen[0].lr == pytest.approx(1e-2)
    assert seen[15].lr == pytest.approx(0.5e-2, rel=0.1)


def test_a_first_step_that_compiles_is_not_taken_for_all(tmp_path):
    result, _, _ = slow_run(tmp_path, Slow(0.1, first=35.0), time_limit=60.0)
    assert 59.0 <= result.elapsed <= 60.0
    assert result.steps > 200


def test_a_step_longer_than_the_limit_is_made_once_and_owned_up_to(tmp_path):
    result, _, _ = slow_run(tmp_path, Slow(100.0), time_limit=60.0)
    assert result.steps == 1
    few, passed = result.warnings
    assert few.startswith("the limit left time for 1 step (0.2 epochs) of 100 s each: too few")
    assert passed.startswith("the limit of 60 s was passed by 40 s")


def test_a_run_that_was_long_enough_has_no_warnings(tmp_path):
    result, _, _ = slow_run(tmp_path, Slow(0.1), time_limit=60.0)
    assert result.warnings == ()
    # Nor one whose own length was short.
    result, _, _ = slow_run(tmp_path / "few", Slow(0.1), time_limit=60.0, epochs=2)
    assert (result.status, result.warnings) == ("finished", ())


def test_a_limit_that_was_reached_is_reached_on_a_resume(tmp_path):
    problem = Slow(12.0, 0.1)
    first, _, _ = slow_run(tmp_path, problem, time_limit=60.0)
    state = saved(tmp_path)
    again, _, _ = slow_run(tmp_path, problem, time_limit=60.0, resume=True)
    assert (again.steps, again.elapsed) == (first.steps, first.elapsed)
    assert saved(tmp_path)["step"] == state["step"]
    more, _, _ = slow_run(tmp_path, problem, time_limit=120.0, resume=True)
    assert first.steps < more.steps
    assert 100.0 < more.elapsed <= 120.0


def test_a_state_of_before_cpu_seconds_were_counted(tmp_path):
    from dcase import checkpoint
    from dcase.training.state import STATE_VERSION

    problem = Slow(1.0)
    slow_run(tmp_path, problem, epochs=1)
    file = tmp_path / "state.pt"
    state = checkpoint.load(file, "training", STATE_VERSION)
    for name in ("cpu", "costs", "validation_frames"):
        del state[name]
    del state["settings"]["cpu_limit"]
    checkpoint.save(file, "training", STATE_VERSION, state)
    result, _, _ = slow_run(tmp_path, problem, epochs=2, resume=True)
    assert (result.steps, result.elapsed, result.cpu) == (10, 10.0, 10.0)


# ---------------------------------------------------------------- what is said


def forecasts(seen):
    return [(p.step, p.forecast) for p in seen if p.forecast is not None]


def test_what_a_limit_buys_is_said_once_after_the_first_steps(tmp_path):
    _, seen, _ = slow_run(tmp_path / "slow", Slow(12.0), time_limit=60.0)
    ((step, told),) = forecasts(seen)
    assert step == 1
    assert told.line() == "a step takes 12 s: 60 s buy about 5 steps, 1 of 100 epochs"
    assert (told.steps, told.useful, told.option, told.wanted) == (5, False, "time_limit", 2400.0)

    _, seen, _ = slow_run(tmp_path / "fast", Slow(0.3, cpu=2.0), cpu_limit=300.0)
    ((step, told),) = forecasts(seen)
    assert step == 5
    assert told.line() == (
        "a step takes 0.6 s of CPU: 100 epochs take about 300 s, less than the limit"
        if told.epochs >= 100
        else "a step takes 0.6 s of CPU: 300 CPU s buy about 500 steps, 100 of 100 epochs"
    )
    assert told.useful


def test_a_forecast_comes_true(tmp_path):
    problem = Slow(0.5, frame=0.02, first=4.0)
    result, seen, _ = slow_run(tmp_path, problem, time_limit=200.0)
    ((_, told),) = forecasts(seen)
    assert told.steps == pytest.approx(result.steps, rel=0.05)


def test_without_a_limit_nothing_is_forecast(tmp_path):
    result, seen, _ = slow_run(tmp_path, Slow(12.0), epochs=1)
    assert forecasts(seen) == []
    assert result.cpu == 60.0
    assert result.warnings == ()


def test_what_remains_is_that_of_the_nearer_limit(tmp_path):
    _, seen, _ = slow_run(tmp_path, Slow(1.0, cpu=2.0), time_limit=50.0, cpu_limit=60.0)
    assert seen[9].remaining == pytest.approx(20.0)  # 40 CPU s, at two a second
    assert seen[9].cpu == 20.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0044, "4.4 ms"), (0.25, "0.25 s"), (12.3, "12 s"), (95.0, "95 s"), (2400, "40 min"),
     (20000, "5.6 h")],
)  # fmt: skip
def test_seconds_in_two_digits(value, text):
    assert brief(value) == text


def test_numbers_in_two_digits():
    assert [rounded(v) for v in (0, 0.05, 1.0, 123.4, 98765)] == ["0", "0.05", "1", "120", "99000"]


def test_some_of_many_are_evenly_spread():
    assert spread(4, 9).tolist() == [0, 1, 2, 3]
    some = spread(1000, 7)
    assert len(set(some.tolist())) == 7
    assert set(some.diff().tolist()) <= {142, 143}
    assert int(some[-1]) < 1000


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), "x"])
def test_impossible_limits(value):
    with pytest.raises(OptionError, match="cpu_limit"):
        TrainSettings(cpu_limit=value)


def test_the_clock_of_the_machine_counts_all_threads():
    from dcase.training.budget import now

    before = now()
    torch.randn(400, 400) @ torch.randn(400, 400)
    spent = now() - before
    assert spent.wall > 0
    assert spent.cpu > 0
