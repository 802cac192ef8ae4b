"""The training loop: steps, limits, guards, best weights, and a problem that is no potential."""

import ast
import itertools
import math
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from clocks import Clock
from torch import nn
from training_problems import (
    Curve,
    CurveFit,
    network,
    rows_but_time,
    same,
    saved,
    trainer,
    water,
    water_recipe,
    weights,
)

import dcase.training.trainer as trainer_module
from dcase.errors import OptionError, TrainingError
from dcase.objective import Term
from dcase.potentials.fitting.fit_potential import fit_potential
from dcase.training.logs import read_metrics
from dcase.training.trainer import Trainer, evaluate


def reference(n_steps, *, clip=0.0, data=None, batch_size=5, seed=0, kind=torch.optim.Adam, **adam):
    """The same steps written out with torch's own tools; the weights after each."""
    model, data = network(), data or Curve()
    optimizer = kind(model.parameters(), lr=1e-2, foreach=False, **adam)
    trail, losses = [], []
    epoch = 0
    while len(trail) < n_steps:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for chunk in torch.randperm(len(data), generator=generator).split(batch_size):
            if len(trail) == n_steps:
                break
            r = CurveFit().terms(model, data.batch(chunk), True)
            loss = (r["value"] ** 2).mean() + 0.3 * nn.functional.huber_loss(
                r["slope"], torch.zeros_like(r["slope"]), delta=0.5
            )
            optimizer.zero_grad()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            trail.append(weights(model))
            losses.append(loss.item())
        epoch += 1
    return trail, losses


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"clip_norm": 0.3}, {"clip": 0.3}),
        (
            {"optimizer": "adamw", "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.99, "eps": 1e-3},
            {"kind": torch.optim.AdamW, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-3},
        ),
        ({"amsgrad": True, "weight_decay": 0.05}, {"amsgrad": True, "weight_decay": 0.05}),
        ({"batch_size": 0}, {"batch_size": 22}),  # the whole set
        ({"batch_size": 100, "seed": 3}, {"batch_size": 22, "seed": 3}),
    ],
)
def test_steps_are_those_written_out(tmp_path, settings, options):
    losses = []
    run = trainer(
        tmp_path,
        validation=None,
        schedule="constant",
        epochs=3,
        on_step=lambda p: losses.append(p.loss),
        **settings,
    )
    result = run.fit()
    trail, expected = reference(result.steps, **options)
    # 22 samples in batches of 5: the last batch of 2 counts as a mean over 2.
    assert result.steps == 3 * math.ceil(22 / run.batch_size)
    assert losses == pytest.approx(expected, rel=1e-5)
    for mine, theirs in zip(weights(run.model), trail[-1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    rows = read_metrics(tmp_path / "metrics.csv")
    per = run.steps_per_epoch
    for n, row in enumerate(rows):
        assert row["train_loss"] == pytest.approx(sum(expected[n * per : (n + 1) * per]) / per)


def test_clipping_really_clips(tmp_path):
    norms = []
    run = trainer(tmp_path, clip_norm=0.05, epochs=1)
    step = run.optimizer.step

    def spy():
        norms.append(float(nn.utils.get_total_norm([p.grad for p in run.parameters])))
        step()

    run.optimizer.step = spy
    run.fit()
    assert norms == pytest.approx([0.05] * 5, rel=1e-5)


def test_clipping_by_value_limits_every_element(tmp_path):
    sizes = []
    run = trainer(tmp_path, clip_value=0.01, epochs=1)
    step = run.optimizer.step

    def spy():
        sizes.append(max(float(p.grad.abs().max()) for p in run.parameters))
        step()

    run.optimizer.step = spy
    run.fit()
    assert sizes == pytest.approx([0.01] * 5, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_parameter_may_take_a_share_of_the_learning_rate(tmp_path, optimizer):
    """Adam's first step is lr times the sign of the gradient, whatever its size."""
    run = trainer(tmp_path, optimizer=optimizer, epochs=1, lr=1e-3, schedule="constant")
    first = run.parameters[0]
    before = first.detach().clone()
    first.lr_factor = 0.1
    run = Trainer(run.model, run.objective, run.train_data, None, run.settings, tmp_path)
    moved = []
    run.on_step = lambda p: moved.append((first - before).detach().abs().max().item())
    run.fit()
    assert moved[0] == pytest.approx(1e-4, rel=0.02)


def test_a_tiny_pinn_converges(tmp_path):
    """U'' = -pi^2 sin(pi x) with u(0) = u(1) = 0: one trainer for all, not only for potentials."""

    class Interior:
        def __init__(self):
            self.x = torch.linspace(0, 1, 32, dtype=torch.float64).unsqueeze(1)

        def __len__(self):
            return len(self.x)

        def batch(self, indices):
            return self.x[indices]

    class Poisson:
        display = {"pde": (1.0, ""), "boundary": (1.0, "")}  # noqa: RUF012

        def terms(self, model, batch, training):
            with torch.enable_grad():
                x = batch.clone().requires_grad_(True)
                u = model(x)
                (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
                (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=training)
            ends = model(torch.tensor([[0.0], [1.0]], dtype=x.dtype))
            return {"pde": ddu + math.pi**2 * torch.sin(math.pi * x), "boundary": ends}

    model = network(16, dtype=torch.float64)
    run = trainer(
        tmp_path,
        model=model,
        problem=Poisson(),
        data=Interior(),
        validation=Interior(),
        terms={"pde": Term(1.0), "boundary": Term(100.0)},
        epochs=800,
        validate_every=50,
        batch_size=0,
        lr=1e-2,
    )
    result = run.fit()
    x = Interior().x
    with torch.no_grad():
        error = (model(x) - torch.sin(math.pi * x)).abs().max()
    assert error < 0.02
    assert result.best["val_boundary_mae"] < 0.01


def test_the_core_does_not_know_potentials():
    for path in Path(trainer_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(part in n for n in names for part in ("potentials", "md_runs", "cli"))


# ---------------------------------------------------------------- validation and best weights


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_best_weights_are_adopted(tmp_path, ema):
    # The validation wants less of the curve than the training: it is best on the way there.
    validation = Curve(40)
    validation.y, validation.slope = 0.4 * validation.y, 0.4 * validation.slope
    seen = []
    run = trainer(
        tmp_path,
        validation=validation,
        ema=ema,
        epochs=25,
        lr=0.03,
        schedule="constant",
        on_state=lambda: seen.append(1),
    )
    result = run.fit()
    losses = [row["val_loss"] for row in read_metrics(tmp_path / "metrics.csv")]
    best = min(range(25), key=losses.__getitem__)
    assert 0 < best < 24, "the test must have a best epoch that is neither first nor last"
    assert result.best["epoch"] == best + 1
    assert result.best["val_loss"] == losses[best]
    now = evaluate(run.objective, run.model, run.validation_data, 7)
    assert now["loss"] == pytest.approx(losses[best], rel=1e-6)
    assert len(seen) == 1


def test_without_validation_the_average_is_kept(tmp_path):
    run = trainer(tmp_path, ema=0.9, epochs=1, validation=None)
    averages = []
    run.on_step = lambda _: averages.append([a.clone() for a in run.ema.average])
    last = []
    run.on_state = lambda: last.append(weights(run.model))
    run.fit()
    assert all(map(torch.equal, weights(run.model), averages[-1]))
    assert not any(map(torch.equal, weights(run.model), last[-1]))


def test_validation_is_that_of_the_average(tmp_path):
    run = trainer(tmp_path, ema=0.9, epochs=1)
    result = run.fit()
    assert all(map(torch.equal, weights(run.model), run.ema.average))
    now = evaluate(run.objective, run.model, run.validation_data, 9)
    assert now["loss"] == result.best["val_loss"]


def test_batch_norm_statistics_belong_to_the_best_weights(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    data = Curve(20, shift=0.2)
    data.y, data.slope = data.y * 0, data.slope * 0
    options = {"data": data, "validation": Curve(40, shift=0.7), "schedule": "constant"}
    run = trainer(tmp_path, model=model, epochs=12, lr=0.05, batch_size=10, **options)
    result = run.fit()
    assert result.best["epoch"] < 12
    now = evaluate(run.objective, model, run.validation_data, 40)
    assert now["loss"] == pytest.approx(result.best["val_loss"], rel=1e-6)


def test_validations_when_asked_and_at_the_end(tmp_path):
    trainer(tmp_path, epochs=7, validate_every=3).fit()
    rows = rows_but_time(tmp_path)
    assert [r["epoch"] for r in rows] == ["1", "2", "3", "4", "5", "6", "7"]
    assert [bool(r["val_loss"]) for r in rows] == [False, False, True, False, False, True, True]
    names = "epoch step lr train_loss train_value train_slope val_loss val_value_mae val_value_rmse"
    assert list(rows[0])[:9] == names.split()
    assert [r["step"] for r in rows] == [str(5 * n) for n in range(1, 8)]


def test_early_stopping_counts_validations(tmp_path, monkeypatch):
    losses = itertools.chain([5.0, 4.0, math.nan, 4.5, 4.0], itertools.repeat(1.0))
    monkeypatch.setattr(trainer_module, "evaluate", lambda *a, **k: {"loss": next(losses)})
    result = trainer(tmp_path, epochs=20, early_stopping=3, validate_every=2).fit()
    assert result.status == "early stopping"
    assert result.epochs == 10
    assert result.best == {"epoch": 4.0, "val_loss": 4.0}
    # To go on from there is to be stopped already.
    again = trainer(tmp_path, epochs=20, early_stopping=3, validate_every=2).fit(resume=True)
    assert (again.status, again.steps, again.best) == (result.status, result.steps, result.best)
    # More patience goes on.
    more = trainer(tmp_path, epochs=20, early_stopping=4, validate_every=2).fit(resume=True)
    assert more.epochs == 20
    assert more.best == {"epoch": 12.0, "val_loss": 1.0}


def test_a_first_validation_of_nan_is_never_the_best(tmp_path, monkeypatch):
    losses = iter([math.nan, 2.0, 3.0])
    monkeypatch.setattr(trainer_module, "evaluate", lambda *a, **k: {"loss": next(losses)})
    assert trainer(tmp_path, epochs=3).fit().best == {"epoch": 2.0, "val_loss": 2.0}


def test_what_needs_samples_says_so(tmp_path):
    with pytest.raises(OptionError, match="no samples to train on"):
        trainer(tmp_path, data=Curve(0))
    with pytest.raises(OptionError, match="plateau schedule needs validation"):
        trainer(tmp_path, validation=None, schedule="plateau")
    with pytest.raises(OptionError, match="early_stopping needs validation"):
        trainer(tmp_path, validation=Curve(0), early_stopping=2)
    assert trainer(tmp_path, validation=Curve(0)).fit().best == {"epoch": 3.0}


def test_schedule_reaches_the_optimizer(tmp_path):
    seen = []
    run = trainer(tmp_path, epochs=2, lr=0.5, warmup_steps=2, final_lr=0.1)
    run.on_step = lambda p: seen.append((p.lr, run.optimizer.param_groups[0]["lr"]))
    run.fit()
    expected = [0.5 * (0.1 + 0.45 * (1 + math.cos(math.pi * n / 10))) for n in range(10)]
    expected[0] /= 2
    assert [a for a, _ in seen] == pytest.approx(expected)
    assert all(a == b for a, b in seen)


def test_progress_tells_what_is_left(tmp_path):
    seen = []
    trainer(tmp_path, epochs=2, on_step=seen.append).fit()
    assert [p.step for p in seen] == list(range(1, 11))
    assert {p.steps for p in seen} == {10}
    assert [p.epoch for p in seen] == [1] * 5 + [2] * 5
    assert seen[4].validation == {}
    assert seen[5].validation.keys() >= {"val_loss", "val_value_mae"}
    assert seen[-1].remaining == 0
    assert all(p.elapsed > 0 and p.steps_per_second > 0 for p in seen)


def test_no_global_state_is_touched(tmp_path):
    torch.manual_seed(5)
    before = (torch.random.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads())
    trainer(tmp_path, ema=0.9).fit()
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[1:]
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limit", "clock"), [("time_limit", (0.01, 0.0)), ("cpu_limit", (0.001, 0.01))]
)
def test_a_limit_ends_the_run_and_the_schedule(tmp_path, limit, clock):
    rates, which = [], "elapsed" if limit == "time_limit" else "cpu"
    options = {"epochs": 1000, "final_lr": 0.01, "lr": 1.0, limit: 5.1, "clock": Clock(*clock)}
    losses = []

    def on_step(progress):
        rates.append(progress.lr)
        losses.append(run.state.losses["loss"])

    run = trainer(tmp_path, on_step=on_step, **options)
    result = run.fit()
    assert result.status == "time limit"
    assert getattr(result, which) == pytest.approx(5.1, abs=0.1)
    assert rates[0] == pytest.approx(1.0, abs=0.01)
    assert rates[-1] == pytest.approx(0.01, rel=0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates))
    # A limit within an epoch is validated and logged there.
    assert run.state.batch_in_epoch, "the limit must come within an epoch"
    last = read_metrics(tmp_path / "metrics.csv")[-1]
    assert last["epoch"] == pytest.approx(run.state.epoch + run.state.batch_in_epoch / 5)
    assert last["step"] == result.steps
    assert last["train_loss"] == pytest.approx(np.mean(losses[-run.state.batch_in_epoch :]))
    assert "val_loss" in last

    # Elapsed adds up: nothing is left of the limit, and neither a step nor a validation is done.
    ended = saved(tmp_path)
    second = trainer(tmp_path, **options).fit(resume=True)
    assert same(saved(tmp_path), ended)
    assert (second.status, second.steps) == ("time limit", result.steps)
    assert second.best == result.best
    assert getattr(result, which) <= getattr(second, which) < getattr(result, which) + 0.5
    # A longer limit goes on with what is left of it.
    third = trainer(tmp_path, **{**options, limit: 8.0}).fit(resume=True)
    assert third.status == "time limit"
    assert getattr(third, which) == pytest.approx(8.0, abs=0.2)
    assert third.steps > result.steps
    epochs = [r["epoch"] for r in read_metrics(tmp_path / "metrics.csv")]
    assert epochs == sorted(set(epochs))
    assert sum(e != int(e) for e in epochs) <= 1  # the fraction of the first sitting is gone


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_ends(tmp_path, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def press(progress):
        if progress.step == 7:
            signal.raise_signal(number)

    result = trainer(tmp_path, on_step=press).fit()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (result.status, result.steps) == ("interrupted", 8)  # noticed in the step that follows
    assert saved(tmp_path)["step"] == 8
    again = trainer(tmp_path).fit(resume=True)
    assert (again.status, again.steps) == ("finished", 15)


def test_second_ctrl_c_is_immediate(tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    steps = []

    def press(progress):
        steps.append(progress.step)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, on_step=press).fit()
    assert steps == [1]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_ctrl_c_in_the_last_step_is_the_end(tmp_path):
    def press(progress):
        if progress.step == 14:
            signal.raise_signal(signal.SIGINT)

    assert trainer(tmp_path, on_step=press).fit().status == "finished"


def test_trains_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(trainer(tmp_path).fit()))
    thread.start()
    thread.join(60)
    assert results[0].status == "finished"


# ---------------------------------------------------------------- the guard


def test_nan_loss_names_the_batch_and_keeps_the_last_good_state(tmp_path):
    order = torch.randperm(22, generator=torch.Generator().manual_seed(1))  # of the second epoch
    data = Curve()
    kept = []

    def poison(progress):
        kept.append([w.clone() for w in weights(run.model)])
        if progress.step == 5:
            data.y[int(order[12])] = float("nan")

    run = trainer(tmp_path, data=data, on_step=poison, checkpoint_every=1e-9)
    with pytest.raises(TrainingError) as caught:
        run.fit()
    message = str(caught.value)
    points = ", ".join(str(int(i)) for i in order[10:15])
    assert f"the value became NaN or infinite in epoch 2, batch 3 (points {points})" in message
    assert "\n" not in message
    state = saved(tmp_path)
    assert state["step"] == 7
    assert all(map(torch.equal, state["model"].values(), kept[-1]))
    assert all(torch.isfinite(w).all() for w in weights(run.model))


def test_a_gradient_of_nan_at_a_finite_loss_is_caught(tmp_path):
    class Root(CurveFit):
        def terms(self, model, batch, training):
            found = super().terms(model, batch, training)
            touch = (found["value"] * 0).abs().sqrt()  # sqrt'(0) = inf, times 0: NaN
            return {**found, "value": found["value"] + touch}

    run = trainer(tmp_path, problem=Root())
    before = weights(run.model)
    with pytest.raises(TrainingError, match="the gradient became NaN .* epoch 1, batch 1 "):
        run.fit()
    assert all(map(torch.equal, weights(run.model), before))
    assert not (tmp_path / "state.pt").exists()


def test_a_potential_that_diverges_is_not_written(tmp_path):
    dataset, splits = water()
    dataset.forces[3 * splits.train[5]] = 1e30  # its square is not a float32
    with pytest.raises(TrainingError, match="the forces became NaN") as caught:
        fit_potential(
            dataset, splits, water_recipe(**{"labels.rescale": "none"}), tmp_path / "a.pt"
        )
    assert not (tmp_path / "a.pt").exists()
    # Frames are named as in the file, not as in the training set.
    named = str(caught.value).split("(frames ")[1].split(")")[0].split(", ")
    assert str(splits.train[5]) in named
    assert set(map(int, named)) <= set(splits.train.tolist())


def test_terms_that_depend_on_no_weight_are_no_error(tmp_path):
    class Constant(CurveFit):
        def terms(self, model, batch, training):
            return {"value": batch.y.clone(), "slope": batch.y.clone()}  # e.g. forces of lone atoms

    run = trainer(tmp_path, problem=Constant())
    before = weights(run.model)
    run.fit()
    assert all(map(torch.equal, weights(run.model), before))


def test_frozen_parameters_stay(tmp_path):
    model = network()
    model[0].weight.requires_grad_(False)
    before = weights(model)
    trainer(tmp_path, model=model, ema=0.9, weight_decay=0.1).fit()
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[2])
