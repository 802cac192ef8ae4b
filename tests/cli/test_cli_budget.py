"""What a limit of time buys is said at the command line, in one line, and warned of in the end."""

from __future__ import annotations

import functools
import json

import pytest
from clocks import Clock

from dcase.cli.progress import budget_line, progress_line, rate
from dcase.training.budget import Forecast
from dcase.training.progress import Progress

ETHANOL = (
    "train", "md17", "-m", "ethanol", "--source", "xtb", "--size", "tiny", "--n-train", "40",
    "--n-val", "10",
)  # fmt: skip


@pytest.fixture
def slow_machine(monkeypatch):
    """Every look at the clock takes two seconds, one of them of the CPU."""
    from dcase.potentials.fitting import fit_potential

    slow = functools.partial(fit_potential.Trainer, clock=Clock(2.0, 1.0))
    monkeypatch.setattr(fit_potential, "Trainer", slow)


@pytest.mark.parametrize("limit", ["time", "cpu"])
def test_a_limit_that_buys_too_little_is_owned_up_to(dcase, empty_folder, slow_machine, limit):
    done = dcase(*ETHANOL, f"--{limit}-limit", "200", "--model", "cgcnn", "--out", "a.pt")
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    (told,) = [line for line in lines if line.startswith("budget ")]
    unit, each = ("s", "2 s") if limit == "time" else ("CPU s", "1 s of CPU")
    assert told.startswith(f"budget  a step takes {each}: 200 {unit} buy about ")
    assert " of 500 epochs, too few to be useful; give --" + limit + "-limit " in told
    assert told.endswith(", --model schnet")  # the size is the smallest already
    (warned,) = [line for line in lines if line.startswith("WARNING")]
    report = json.loads((empty_folder / "a.run" / "report.json").read_text())
    assert report["warnings"] == [warned.removeprefix("WARNING: ")]
    assert f"the limit left time for {report['steps']} steps" in warned
    assert report["status"] == "time limit"
    clocks = {"time": report["training_time_s"], "cpu": report["training_cpu_s"]}
    assert clocks[limit] == pytest.approx(200, rel=0.05)
    # A longer limit goes on with the same run.
    more = dcase(
        *ETHANOL, f"--{limit}-limit", "300", "--model", "cgcnn", "--out", "a.pt", "--resume"
    )
    assert more.code == 0, more.err
    again = json.loads((empty_folder / "a.run" / "report.json").read_text())
    assert again["steps"] > report["steps"]


def test_a_limit_that_is_enough_is_told_without_advice(dcase, slow_machine):
    done = dcase(*ETHANOL, "--time-limit", "100000", "--epochs", "3", "--out", "a.pt")
    (told,) = [line for line in done.err.splitlines() if line.startswith("budget ")]
    assert told.startswith("budget  a step takes 2 s: 3 epochs take about ")
    assert told.endswith(", less than the limit")
    assert "WARNING" not in done.err


def test_without_a_limit_there_is_no_line_of_it(dcase, slow_machine):
    done = dcase(*ETHANOL, "--epochs", "2", "--out", "a.pt")
    assert "budget" not in done.err
    assert "WARNING" not in done.err


def test_quiet_leaves_the_warning(dcase, slow_machine):
    done = dcase(*ETHANOL, "--time-limit", "200", "--out", "a.pt", "--quiet")
    (line,) = done.err.splitlines()
    assert line.startswith("WARNING: the limit left time for ")


def test_advice_follows_the_longer_limit():
    told = Forecast(12.0, 60.0, False, 5, 0.05, 100, 7200.0, False, 2400.0)
    assert budget_line(told, "a smaller --size or --model schnet") == (
        "a step takes 12 s: 60 s buy about 5 steps, 0.05 of 100 epochs, too few to be useful; "
        "give --time-limit 2400, a smaller --size or --model schnet"
    )
    assert budget_line(told).endswith("; give --time-limit 2400")


def test_slow_steps_have_a_rate_too():
    assert [rate(v) for v in (120.4, 1.0, 1 / 12, 0.0)] == [
        "120 steps/s", "1 steps/s", "12 s a step", "0 steps/s",
    ]  # fmt: skip
    shown = Progress(1, 10, 1, 100, 12.0, 1 / 12, 1188.0, 1e-3, 0.5)
    assert progress_line(shown, {}) == (
        "epoch 1/10 | 12 s a step | 0:12 done, 19:48 to go | loss 0.5"
    )


def test_folds_that_were_cut_short_say_so(dcase, empty_folder, slow_machine):
    done = dcase(
        "cross-validate", *ETHANOL[1:-2], "--folds", "2", "--n-test", "5", "--jobs", "1",
        "--cpu-limit", "60", "--model", "cgcnn", "--out", "e.pt",
    )  # fmt: skip
    assert done.code == 0, done.err
    warned = [line for line in done.err.splitlines() if line.startswith("WARNING: fold ")]
    report = json.loads((empty_folder / "e.run" / "report.json").read_text())
    assert warned == [f"WARNING: {line}" for line in report["warnings"]]
    for fold in (1, 2):
        assert any(f"fold {fold}: the limit left time for" in line for line in warned)
    assert "at most 60 CPU s a fold" in done.err
