"""Settings, schedules, moving average, logs and evaluation, each against its closed form."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn
from training_problems import TERMS, Curve, CurveFit, network, trainer, weights

from dcase.errors import DcaseError, MissingExtraError, OptionError
from dcase.objective import Objective, Term
from dcase.training.ema import WeightAverage
from dcase.training.logs import MetricsLog, read_metrics
from dcase.training.schedule import Schedule
from dcase.training.settings import QUASI_NEWTON, TrainSettings
from dcase.training.trainer import evaluate

# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epochs", 0, "at least 1"),
        ("epochs", 1.5, "whole number"),
        ("validate_every", 0, "at least 1"),
        ("patience", 0, "at least 1"),
        ("lr", 0.0, "positive"),
        ("eps", 0.0, "positive"),
        ("checkpoint_every", 0, "positive"),
        ("batch_size", -1, "negative"),
        ("weight_decay", -0.1, "negative"),
        ("warmup_steps", -1, "negative"),
        ("clip_norm", -1.0, "negative"),
        ("clip_norm", math.inf, "finite"),
        ("clip_value", -1.0, "negative"),
        ("early_stopping", -1, "negative"),
        ("beta1", 1.0, r"\[0, 1\)"),
        ("beta2", -0.1, r"\[0, 1\)"),
        ("ema", 1.0, r"\[0, 1\)"),
        ("final_lr", 1.1, "fraction"),
        ("decay", 1.0, "between 0 and 1"),
        ("time_limit", 0.0, "positive"),
        ("seed", -1, "seed must be between"),
        ("seed", 2**32, "seed must be between"),
        ("optimizer", "sgd", "adamw, soap, .*; got 'sgd'"),
        ("schedule", "linear", "got 'linear'"),
        ("history", 0, "at least 1"),
        ("target_loss", -1.0, "negative"),
        ("balance", "grad", "none, gradient-norm, ntk; got 'grad'"),
        ("balance_every", 0, "at least 1"),
        ("balance_momentum", 1.0, r"\[0, 1\)"),
        ("schedule", "exponential", "final_lr > 0"),
    ],
)
def test_impossible_settings(option, value, message):
    with pytest.raises(OptionError, match=message) as caught:
        TrainSettings(**{option: value})
    assert option in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("optimizer", QUASI_NEWTON)
@pytest.mark.parametrize(
    ("option", "value"), [("clip_norm", 0.5), ("clip_value", 0.5), ("weight_decay", 0.1)]
)
def test_what_a_line_search_cannot_have(optimizer, option, value):
    with pytest.raises(OptionError, match=f"{option} does not go with optimizer {optimizer}: .* 0"):
        TrainSettings(optimizer=optimizer, **{option: value})
    assert TrainSettings(optimizer=optimizer).quasi_newton


def test_amsgrad_is_of_adam():
    for optimizer in ("soap", "lbfgs"):
        with pytest.raises(OptionError, match=f"adam and adamw, not of {optimizer}"):
            TrainSettings(optimizer=optimizer, amsgrad=True)
        assert TrainSettings(optimizer="soap").quasi_newton is False


def test_settings_are_plain_and_survive_a_round_trip():
    settings = TrainSettings(lr=np.float64(0.5), epochs=np.int64(3), time_limit=7)
    values = settings.to_dict()
    assert {type(v) for v in values.values()} <= {int, float, str, bool, type(None)}
    assert type(values["time_limit"]) is float
    assert TrainSettings.from_dict(values) == settings
    with pytest.raises(OptionError, match="unknown training setting 'lrr'"):
        TrainSettings.from_dict({"lrr": 1.0})


# ---------------------------------------------------------------- schedules


def rates(steps=8, **settings):
    schedule = Schedule(TrainSettings(lr=0.5, **settings))
    return np.array([schedule.lr(i, i / steps) for i in range(steps + 1)])


def test_schedules_are_their_closed_forms():
    p = np.arange(9) / 8
    np.testing.assert_allclose(rates(schedule="constant"), 0.5)
    cosine = 0.5 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * p)))
    np.testing.assert_allclose(rates(schedule="cosine", final_lr=0.1), cosine)
    np.testing.assert_allclose(rates(schedule="exponential", final_lr=0.01), 0.5 * 0.01**p)


def test_warm_up_is_linear_and_ends():
    schedule = Schedule(TrainSettings(lr=0.5, schedule="constant", warmup_steps=4))
    warm = [schedule.lr(step, step / 80) for step in range(81)]
    np.testing.assert_allclose(warm, 0.5 * np.minimum((np.arange(81) + 1) / 4, 1))


def test_warm_up_takes_a_tenth_of_a_run_at_most():
    """A run of 20 steps is at its full rate at step 2, whatever warm-up was asked for."""
    schedule = Schedule(TrainSettings(lr=0.5, schedule="constant", warmup_steps=100))
    short = [schedule.lr(step, step / 20) for step in range(20)]
    np.testing.assert_allclose(short[:3], [0.5 * 0.01, 0.5 * 0.5, 0.5])
    np.testing.assert_allclose(short[2:], 0.5)


def test_progress_beyond_the_end_stays_at_the_end():
    schedule = Schedule(TrainSettings(lr=0.5, final_lr=0.1))
    assert schedule.lr(9, 1.7) == pytest.approx(0.05)


def test_plateau_waits_falls_and_stops_falling():
    schedule = Schedule(
        TrainSettings(lr=1.0, schedule="plateau", patience=2, decay=0.5, final_lr=0.2)
    )
    seen = []
    for loss in [5, 4, 4, 4.5, math.nan, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]:
        schedule.validated(loss)
        seen.append(schedule.lr(0, 0.0))
    # Three in a row without improvement (patience 2) halve it; NaN is no improvement; 0.2 is least.
    assert seen == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2]
    other = Schedule(schedule.settings)
    other.load_state(schedule.state())
    assert other.state() == schedule.state() == {"factor": 0.2, "best": 3, "waited": 0}


# ---------------------------------------------------------------- moving average


def test_average_is_its_closed_form_with_warm_up():
    model = nn.Linear(2, 1).double()
    average = WeightAverage(model, 0.3)
    expected = weights(model)
    for n in range(1, 30):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(math.sin(n))
        average.update()
        d = min(0.3, (1 + n) / (10 + n))
        assert (d < 0.3) == (n < 3)  # both branches are seen
        expected = [d * a + (1 - d) * p for a, p in zip(expected, weights(model), strict=True)]
        # At every step: later ones have forgotten the first.
        for a, e in zip(average.average, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=0)


def test_applied_swaps_and_swaps_back_even_on_error():
    model = nn.Linear(2, 1)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    before, mean = weights(model), [a.clone() for a in average.average]
    with pytest.raises(KeyError), average.applied():  # noqa: PT012
        assert all(map(torch.equal, weights(model), mean))
        raise KeyError
    assert all(map(torch.equal, weights(model), before))
    assert all(map(torch.equal, average.average, mean))


# ---------------------------------------------------------------- logs


def test_log_rows_and_cuts(tmp_path):
    log = MetricsLog(tmp_path, ["epoch", "loss", "val"])
    log.start()
    log.write({"epoch": 1, "loss": 0.5, "val": 2.0})
    log.write({"epoch": 2, "loss": 0.25})
    log.write({"epoch": 2.5, "loss": 0.125, "val": 1.0})
    assert log.path.read_text() == "epoch,loss,val\n1,0.5,2.0\n2,0.25,\n2.5,0.125,1.0\n"
    with open(log.path, "a") as file:
        file.write("3,0.1,0.123")  # cut short by a crash: might have been 0.1234
    rows = read_metrics(log.path)
    assert [r["epoch"] for r in rows] == [1, 2, 2.5]
    assert "val" not in rows[1]
    log.cut_after(2)
    assert log.path.read_text() == "epoch,loss,val\n1,0.5,2.0\n2,0.25,\n"
    log.path.write_text("")
    log.cut_after(2)
    assert log.path.read_text() == "epoch,loss,val\n"
    log.path.unlink()
    log.cut_after(2)
    assert log.path.read_text() == "epoch,loss,val\n"
    with pytest.raises(DcaseError, match="cannot write"):
        MetricsLog(tmp_path / "nowhere", ["epoch"]).write({"epoch": 1})


def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dcase\[tensorboard\]'"):
        trainer(tmp_path, tensorboard=True)


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    events = []

    class SummaryWriter:
        def __init__(self, log_dir):
            events.append(("open", log_dir))

        def add_scalar(self, name, value, epoch):
            events.append((name, value, epoch))

        def flush(self):
            pass

        def close(self):
            events.append(("close",))

    fake = type(sys)("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    trainer(tmp_path, tensorboard=True, epochs=2).fit()
    assert events[0] == ("open", str(tmp_path))
    assert events[-1] == ("close",)
    rows = read_metrics(tmp_path / "metrics.csv")
    for row in rows:
        for name, value in row.items():
            if name != "epoch":
                assert (name, value, int(row["epoch"])) in events


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
def test_evaluation_is_brute_force(batch_size):
    model, data = network(dtype=torch.float64), Curve(9)
    data.x, data.y, data.slope = data.x.double(), data.y.double(), data.slope.double()
    terms = {**TERMS, "unused": Term(0.0, "l1")}
    problem = CurveFit()
    problem.display = {**problem.display, "unused": (2.0, "")}
    model.train()
    found = evaluate(Objective(problem, terms), model, data, batch_size)
    assert model.training

    x = data.x.numpy()
    w1, b1, w2, b2 = (p.detach().numpy() for p in model.parameters())
    hidden = np.tanh(x @ w1.T + b1)
    u = hidden @ w2.T + b2
    slope = ((1 - hidden**2) * w1.T) @ w2.T
    value, slope = u - data.y.numpy(), slope - data.slope.numpy()
    huber = np.where(abs(slope) <= 0.5, 0.5 * slope**2, 0.5 * (abs(slope) - 0.25))
    expected = {
        "loss": (value**2).mean() + 0.3 * huber.mean(),
        "value_mae": 10 * abs(value).mean(),
        "value_rmse": 10 * np.sqrt((value**2).mean()),
        "slope_mae": abs(slope).mean(),
        "slope_rmse": np.sqrt((slope**2).mean()),
        "unused_mae": 2 * abs(u).mean(),
        "unused_rmse": 2 * np.sqrt((u**2).mean()),
    }
    assert found.keys() == expected.keys()
    for name, e in expected.items():
        assert found[name] == pytest.approx(e, rel=1e-10), name


def test_evaluation_leaves_the_mode_on_error():
    model = network().train()

    class Broken(CurveFit):
        def terms(self, model, batch, training):
            assert not model.training
            raise KeyError

    with pytest.raises(KeyError):
        evaluate(Objective(Broken(), TERMS), model, Curve(3), 2)
    assert model.training
