"""Weights that follow the terms: by gradient norms and by the tangent kernel."""

import csv
import math

import pytest
import torch
from training_problems import Curve, network, straight, trainer

from dcase.objective import Objective, Term
from dcase.training import balance as balance_module
from dcase.training.balance import Balance
from dcase.training.logs import read_metrics
from dcase.training.processes import Processes
from dcase.training.settings import TrainSettings


class Wild:
    """Terms of very different scale, one that is solved and one that depends on no weight."""

    display = dict.fromkeys(("large", "small", "solved", "constant"), (1.0, ""))

    def terms(self, model, batch, training):
        u = model(batch.x)
        return {
            "large": 1e4 * (u - batch.y),
            "small": 1e-3 * u,
            "solved": u * 0.0,
            "constant": torch.ones_like(batch.y),
        }


WEIGHTS = {"large": 1.0, "small": 3.0, "solved": 1.0, "constant": 1.0}
TERMS = {name: Term(weight) for name, weight in WEIGHTS.items()}


def gradient_norms(run, losses=None):
    """Of every term on all samples, without weights."""
    batch = run.train_data.batch(torch.arange(len(run.train_data)))
    residuals = run.objective.residuals(run.model, batch)
    norms = {}
    for name, value in run.objective.reduce(residuals)[1].items():
        if value.requires_grad:
            found = torch.autograd.grad(value, run.parameters, retain_graph=True)
            norms[name] = float(torch.cat([g.flatten() for g in found]).norm())
    return norms


def wild(folder, **settings):
    return trainer(
        folder, problem=Wild(), terms=TERMS, validation=None, **{"batch_size": 0, **settings}
    )


@pytest.mark.parametrize("optimizer", ["adam", "soap", "lbfgs"])
def test_gradients_of_all_terms_get_one_norm(tmp_path, optimizer):
    run = wild(tmp_path, balance="gradient-norm", balance_every=1000, epochs=1, optimizer=optimizer)
    norms = gradient_norms(run)
    assert norms["large"] > 1e10 * norms["small"]
    run.fit()  # one step: the weights are of the start
    shares = {n: run.balance.factors[n] * norms[n] for n in ("large", "small")}
    assert shares["large"] == pytest.approx(shares["small"], rel=1e-4)
    assert shares["large"] == pytest.approx((norms["large"] + norms["small"]) / 2, rel=1e-4)
    # What has no gradient, or a vanishing one, keeps its weight.
    assert run.balance.factors.keys() == {"large", "small"}
    assert run.term_weights["solved"] == run.term_weights["constant"] == 1.0
    # The objective's weights then say which share a term has.
    assert run.term_weights["small"] == 3.0 * run.balance.factors["small"]


def test_balance_lets_the_small_term_count(tmp_path):
    """Both terms want the same weight elsewhere; unbalanced, the large one alone decides."""

    class Tug:
        display = dict.fromkeys(("strong", "weak"), (1.0, ""))

        def terms(self, model, batch, training):
            slope = model.weight.flatten()
            return {"strong": 1e3 * (slope - 1.0), "weak": slope + 1.0}

    def end(**settings):
        model = straight(torch.float32)
        run = trainer(
            tmp_path,
            model=model,
            problem=Tug(),
            terms={"strong": Term(), "weak": Term()},
            validation=None,
            epochs=200,
            batch_size=0,
            lr=0.02,
            **settings,
        )
        run.fit()
        return model.weight.item()

    assert end() == pytest.approx(1.0, abs=0.05)
    assert end(balance="ntk", balance_every=10) == pytest.approx(0.0, abs=0.05)


def test_the_trace_is_that_of_the_tangent_kernel(monkeypatch):
    model = network(4, dtype=torch.float64)
    data = Curve(7, dtype=torch.float64)
    objective = Objective(Wild(), TERMS)
    monkeypatch.setattr(balance_module, "PROBES", 3000)
    balance = Balance(TrainSettings(balance="ntk"), objective)
    residuals = objective.residuals(model, data.batch(torch.arange(7)))
    counts = {name: float(r.numel()) for name, r in residuals.items()}
    parameters = list(model.parameters())
    names = ["large", "small", "solved", "constant"]
    found = balance._traces(names, residuals, counts, parameters, 0, Processes())
    for name, value in zip(names, found, strict=True):
        exact = 0.0
        for r in residuals[name].flatten():
            if r.requires_grad:
                rows = torch.autograd.grad(r, parameters, retain_graph=True)
                exact += sum(float(row.square().sum()) for row in rows)
        assert value == pytest.approx(exact / residuals[name].numel(), rel=0.1)
    # Few probes are an unbiased estimate: each step has its own signs, the same in every run.
    monkeypatch.setattr(balance_module, "PROBES", 1)
    once = [balance._traces(names, residuals, counts, parameters, n, Processes()) for n in (0, 1)]
    assert once[0] != once[1]
    assert once[0] == balance._traces(names, residuals, counts, parameters, 0, Processes())


def test_factors_are_averaged_geometrically(monkeypatch):
    objective = Objective(Wild(), TERMS)
    settings = TrainSettings(balance="gradient-norm", balance_momentum=0.75)
    balance = Balance(settings, objective)
    sizes = iter([[1.0, 3.0, 0.0, math.nan], [8.0, 2.0, 5.0, math.inf]])
    monkeypatch.setattr(balance, "_norms", lambda *_: next(sizes))
    balance.update({}, {}, [], 0, Processes())
    assert balance.factors == {"large": pytest.approx(2.0), "small": pytest.approx(2 / 3)}
    balance.update({}, {}, [], 1, Processes())
    assert balance.factors == {
        "large": pytest.approx(2**0.75 * (5 / 8) ** 0.25),
        "small": pytest.approx((2 / 3) ** 0.75 * (5 / 2) ** 0.25),
        "solved": pytest.approx(1.0),
    }
    other = Balance(settings, objective)
    other.load_state(balance.state())
    assert other.factors == balance.factors


def test_weights_are_logged_and_the_loss_is_theirs(tmp_path):
    run = wild(tmp_path, balance="gradient-norm", balance_every=2, balance_momentum=0.0, epochs=5)
    run.fit()
    with open(tmp_path / "metrics.csv", newline="") as file:
        header = next(csv.reader(file))
    assert [name for name in header if name.startswith("weight_")] == [f"weight_{n}" for n in TERMS]
    rows = read_metrics(tmp_path / "metrics.csv")
    weights = [[row[f"weight_{n}"] for n in TERMS] for row in rows]
    assert weights[0] == weights[1] != weights[2] == weights[3] != weights[4]
    assert weights[4] == list(run.term_weights.values())
    for row in rows:  # a batch an epoch
        total = sum(row[f"weight_{n}"] * row[f"train_{n}"] for n in TERMS)
        assert row["train_loss"] == pytest.approx(total, rel=1e-5)


def test_validation_is_not_weighted_anew(tmp_path):
    # Else losses at different times could not be compared for the best.
    run = trainer(tmp_path, balance="gradient-norm", balance_every=1, epochs=2)
    result = run.fit()
    row = read_metrics(tmp_path / "metrics.csv")[-1]
    assert result.best["val_loss"] == row["val_loss"]
    assert run.term_weights["slope"] != pytest.approx(0.3)
    slopes = run.objective.terms["slope"]
    assert (slopes.weight, slopes.loss) == (0.3, "huber")
    plain = trainer(tmp_path, epochs=1)
    assert plain.balance is None
    assert plain.term_weights == {"value": 1.0, "slope": 0.3}


def test_quasi_newton_keeps_the_weights_of_its_start(tmp_path):
    run = trainer(
        tmp_path, balance="ntk", balance_every=1, epochs=6, batch_size=0, optimizer="ssbfgs"
    )
    run.fit()
    rows = read_metrics(tmp_path / "metrics.csv")
    assert len({row["weight_value"] for row in rows}) == 1
    assert rows[0]["weight_value"] != 1.0
    losses = [row["train_loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
