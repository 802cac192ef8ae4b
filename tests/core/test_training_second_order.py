"""Quasi-Newton methods in the trainer: what is logged, kept, stopped and refused."""

import math

import pytest
import torch
from clocks import Clock
from training_problems import (
    Curve,
    CurveFit,
    network,
    rows_but_time,
    straight,
    trainer,
    weights,
)

from dcase.errors import OptionError, TrainingError
from dcase.objective import Term
from dcase.training.logs import read_metrics
from dcase.training.settings import QUASI_NEWTON
from dcase.training.trainer import evaluate


class Counted(CurveFit):
    """Counts evaluations in training, and can be made NaN where a weight is large."""

    def __init__(self, largest=math.inf):
        self.evaluations, self.bad, self.largest = 0, 0, largest

    def terms(self, model, batch, training):
        found = super().terms(model, batch, training)
        self.evaluations += training
        if max(float(p.detach().abs().max()) for p in model.parameters()) > self.largest:
            self.bad += 1
            found["value"] = found["value"] * float("nan")
        return found


def exact(folder, **options):
    """The curve in float64, in one batch, without validation."""
    return trainer(
        folder,
        **{
            "model": network(dtype=torch.float64),
            "data": Curve(dtype=torch.float64),
            "validation": None,
            "batch_size": 0,
            **options,
        },
    )


def loss_now(run):
    return evaluate(run.objective, run.model, run.train_data, 22)["loss"]


@pytest.mark.parametrize("optimizer", QUASI_NEWTON)
def test_losses_fall_and_are_those_after_the_step(tmp_path, optimizer):
    problem, now = Counted(), []
    run = exact(tmp_path, optimizer=optimizer, problem=problem, epochs=60)
    run.on_step = lambda p: now.append((p.loss, loss_now(run)))
    result = run.fit()
    losses = [row["train_loss"] for row in read_metrics(tmp_path / "metrics.csv")]
    assert losses == sorted(losses, reverse=True)
    assert losses == [loss for loss, _ in now]
    for logged, fresh in now:
        assert logged == pytest.approx(fresh, rel=1e-9)
    # The last row, and the result, are of the weights that the model now has.
    row = read_metrics(tmp_path / "metrics.csv")[-1]
    assert result.losses == {
        "loss": row["train_loss"], "value": row["train_value"], "slope": row["train_slope"]
    }  # fmt: skip
    assert loss_now(run) == pytest.approx(row["train_loss"], rel=1e-9)
    assert row["lr"] == run.optimizer.param_groups[0]["lr"] > 0  # the step length
    assert problem.evaluations < 1.8 * result.steps

    adam = exact(tmp_path, epochs=200).fit().losses["loss"]
    assert losses[-1] < 0.1 * adam


def test_adam_tells_the_loss_before_its_last_step(tmp_path):
    run = exact(tmp_path, epochs=3)
    before = []
    run.on_step = lambda _: before.append(loss_now(run))
    result = run.fit()
    assert result.losses["loss"] == pytest.approx(before[1], rel=1e-9)
    assert result.losses["loss"] == read_metrics(tmp_path / "metrics.csv")[-1]["train_loss"]


@pytest.mark.parametrize("optimizer", ["lbfgs", "ssbroyden"])
def test_a_changed_batch_is_evaluated_where_the_step_starts(tmp_path, optimizer):
    class Moving(Curve):
        moves = ()

        def set_epoch(self, epoch):
            self.y = torch.sin(2 * self.x + 0.1 * sum(m <= epoch for m in self.moves))
            return epoch in self.moves if self.moves else None

    def started_anew(data):
        """Epochs in which the first evaluation was where the step starts."""
        run = exact(tmp_path, optimizer=optimizer, problem=Counted(), data=data, epochs=12)
        points, found, terms = [weights(run.model)], [], run.objective.problem.terms

        def spy(model, batch, training):
            if len(found) == run.state.epoch:
                found.append(all(map(torch.equal, weights(model), points[-1])))
            return terms(model, batch, training)

        run.objective.problem.terms = spy
        run.on_step = lambda _: points.append(weights(run.model))
        run.fit()
        run.objective.problem.terms = terms
        assert run.losses["loss"] == pytest.approx(loss_now(run), rel=1e-9)
        return [epoch for epoch, anew in enumerate(found) if anew]

    assert started_anew(Curve(dtype=torch.float64)) == [0]
    moving = Moving(dtype=torch.float64)
    assert started_anew(moving) == list(range(12))  # None: may have changed, every time
    moving.moves = (5, 8)
    assert started_anew(moving) == [0, 5, 8]


def test_several_batches_an_epoch(tmp_path):
    problem = Counted()
    run = exact(tmp_path, optimizer="ssbfgs", problem=problem, batch_size=5, epochs=4)
    before = loss_now(run)
    result = run.fit()
    assert result.status == "finished"
    assert problem.evaluations >= 2 * result.steps
    assert loss_now(run) < before


# ---------------------------------------------------------------- ends


def linear(folder, **options):
    """A quadratic: it has an end."""
    return exact(folder, model=straight(), terms={"value": Term()}, epochs=500, **options)


@pytest.mark.parametrize("optimizer", QUASI_NEWTON)
def test_the_end_is_the_least_squares_fit_and_is_validated(tmp_path, optimizer):
    validation = Curve(9, shift=0.05, dtype=torch.float64)
    run = linear(tmp_path, optimizer=optimizer, validation=validation, validate_every=400)
    result = run.fit()
    assert result.status == "converged"
    assert result.steps < 60
    x, y = run.train_data.x, run.train_data.y
    design = torch.cat([x, torch.ones_like(x)], 1)
    expected = torch.linalg.lstsq(design, y).solution.flatten()
    torch.testing.assert_close(torch.cat([p.flatten() for p in weights(run.model)]), expected)
    now = evaluate(run.objective, run.model, validation, 9)
    assert result.best["val_loss"] == pytest.approx(now["loss"], rel=1e-12)
    assert result.best["epoch"] == result.epochs
    last = read_metrics(tmp_path / "metrics.csv")[-1]
    assert last["epoch"] == result.epochs
    assert last["val_loss"] == result.best["val_loss"]


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_target_is_an_end(tmp_path, optimizer):
    options = {"optimizer": optimizer, "epochs": 500, "lr": 0.02, "target_loss": 0.1}
    result = exact(tmp_path, **options).fit()
    assert result.status == "converged"
    losses = [row["train_loss"] for row in read_metrics(tmp_path / "metrics.csv")]
    assert len(losses) == result.steps < 500
    assert losses[-1] < 0.1 <= min(losses[:-1])
    again = exact(tmp_path, **options).fit(resume=True)
    assert (again.status, again.steps) == (result.status, result.steps)


def test_samples_that_may_change_have_no_end(tmp_path):
    class Same(Curve):
        def set_epoch(self, epoch):
            return False

    run = linear(tmp_path, optimizer="bfgs", data=Same(dtype=torch.float64))
    result = run.fit()
    assert (result.status, result.epochs) == ("finished", 500)
    rows = rows_but_time(tmp_path)
    assert rows[-1]["train_loss"] == rows[-2]["train_loss"]


def test_a_time_limit_at_the_end_of_an_epoch_is_validated(tmp_path):
    validation = Curve(9, dtype=torch.float64)
    options = {"epochs": 10**5, "validate_every": 10**4, "time_limit": 1.0}
    run = exact(tmp_path, validation=validation, clock=Clock(0.01), **options)
    result = run.fit()
    assert result.status == "time limit"
    assert result.best["epoch"] == result.epochs > 1
    assert "val_loss" in read_metrics(tmp_path / "metrics.csv")[-1]


def test_ctrl_c_ends_after_the_iteration_and_validates_nothing(tmp_path):
    validation = Curve(9, dtype=torch.float64)
    run = exact(tmp_path, optimizer="lbfgs", validation=validation, validate_every=400, epochs=500)
    run.on_step = lambda p: run._stop.set() if p.step == 4 else None
    result = run.fit()
    assert (result.status, result.steps) == ("interrupted", 5)
    assert result.best == {}


# ---------------------------------------------------------------- the average, the guard


def test_the_average_is_of_the_accepted_points(tmp_path):
    run = exact(tmp_path, optimizer="ssbroyden", ema=0.5, epochs=6)
    trail = []
    run.on_step = lambda _: trail.append(weights(run.model))
    average = weights(run.model)
    run.fit()
    for n, point in enumerate(trail, 1):
        d = min(0.5, (1 + n) / (10 + n))
        average = [d * a + (1 - d) * p for a, p in zip(average, point, strict=True)]
    for mine, expected in zip(weights(run.model), average, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["lbfgs", "ssbroyden"])
def test_the_search_steps_back_from_nan(tmp_path, optimizer):
    problem = Counted(largest=1.3)
    run = exact(tmp_path, optimizer=optimizer, problem=problem, epochs=40)
    start = max(float(p.detach().abs().max()) for p in run.parameters)
    assert start < problem.largest
    result = run.fit()
    assert problem.bad > 0, "no trial was NaN"
    assert max(float(p.detach().abs().max()) for p in run.parameters) <= problem.largest
    losses = [row["train_loss"] for row in read_metrics(tmp_path / "metrics.csv")]
    assert losses == sorted(losses, reverse=True)
    assert result.losses["loss"] == losses[-1] < losses[0]


def test_a_start_of_nan_is_named(tmp_path):
    run = exact(tmp_path, optimizer="lbfgs", data=Curve(6, poison=2, dtype=torch.float64))
    before = weights(run.model)
    with pytest.raises(TrainingError, match=r"the value became NaN .* epoch 1, batch 1 \(points 0"):
        run.fit()
    assert all(map(torch.equal, weights(run.model), before))
    assert not (tmp_path / "state.pt").exists()


def test_too_large_a_model_is_refused_at_once(tmp_path):
    with pytest.raises(OptionError, match="beyond 12000 parameters use optimizer lbfgs"):
        trainer(tmp_path, model=network(5000), optimizer="ssbroyden")
    trainer(tmp_path, model=network(5000), optimizer="lbfgs")


def test_frozen_parameters_stay(tmp_path):
    model = network(dtype=torch.float64)
    model[0].weight.requires_grad_(False)
    before = weights(model)
    exact(tmp_path, model=model, optimizer="ssbroyden", epochs=5).fit()
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[2])
