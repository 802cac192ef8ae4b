"""Objectives against closed forms."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from dcase.errors import OptionError
from dcase.objective import LOSSES, Objective, Term

R = torch.tensor([-3.0, -0.5, 0.0, 0.2, 1.5])


class Given:
    display: ClassVar = {"a": (1.0, ""), "b": (1.0, "")}

    def __init__(self, **residuals):
        self.residuals = residuals

    def terms(self, model, batch, training):
        return self.residuals


@pytest.mark.parametrize("delta", [0.4, 2.0])
def test_losses_are_their_closed_forms(delta):
    r = R.numpy()
    huber = np.where(abs(r) <= delta, 0.5 * r**2, delta * (abs(r) - 0.5 * delta))
    for name, expected in {"l1": abs(r), "l2": r**2, "huber": huber}.items():
        np.testing.assert_allclose(LOSSES[name](R, delta).numpy(), expected, rtol=1e-6)


def test_total_is_the_weighted_sum_of_means():
    objective = Objective(Given(), {"a": Term(0.25, "l2"), "b": Term(3.0, "l1")})
    total, values = objective.reduce({"a": R, "b": 2 * R[:2]})
    a, b = float((R**2).mean()), 3.5
    assert float(values["a"]) == pytest.approx(a)
    assert float(values["b"]) == pytest.approx(b)
    assert float(total) == pytest.approx(0.25 * a + 3 * b)


def test_zero_weight_leaves_the_loss_and_stays_in_the_report():
    objective = Objective(Given(), {"a": Term(1.0), "b": Term(0.0)})
    a, b = R.clone().requires_grad_(), (R + 1).requires_grad_()
    total, values = objective.reduce({"a": a, "b": b})
    total.backward()
    assert b.grad is None
    assert float(values["b"].detach()) == pytest.approx(float(((R + 1) ** 2).mean()))
    # A NaN in a term of no weight must not reach the loss through 0 * NaN.
    total, _ = objective.reduce({"a": R, "b": R * math.nan})
    assert math.isfinite(total)


def test_joint_counts_make_shares_add_up():
    objective = Objective(Given(), {"a": Term(2.0, "huber", 0.7), "b": Term(1.0, "l1")})
    whole = {"a": R, "b": R**2}
    total, values = objective.reduce(whole)
    counts = {"a": 5.0, "b": 5.0}
    shares = [
        objective.reduce({k: v[part] for k, v in whole.items()}, counts)
        for part in (slice(0, 1), slice(1, 5), slice(5, 5))  # the last process has nothing
    ]
    assert float(sum(t for t, _ in shares)) == pytest.approx(float(total))
    for name in counts:
        assert float(sum(v[name] for _, v in shares)) == pytest.approx(float(values[name]))
    assert float(shares[2][0]) == 0.0


def test_factors_multiply_weights():
    objective = Objective(Given(), {"a": Term(2.0), "b": Term(3.0), "c": Term(0.0)})
    residuals = {"a": R, "b": R + 1, "c": R}
    total, values = objective.reduce(residuals, factors={"b": 10.0, "c": 7.0})
    assert float(total) == pytest.approx(2 * float(values["a"]) + 30 * float(values["b"]))
    plain, unweighted = objective.reduce(residuals)
    assert {k: float(v) for k, v in unweighted.items()} == {k: float(v) for k, v in values.items()}
    assert float(objective.reduce(residuals, factors={})[0]) == float(plain)


def test_terms_of_different_precision_add_up():
    objective = Objective(Given(), {"a": Term(), "b": Term()})
    total, _ = objective.reduce({"a": R.double(), "b": R})
    assert float(total) == pytest.approx(2 * float((R**2).mean()))


def test_residuals_are_those_asked_for():
    objective = Objective(Given(a=R, b=R, c=R), {"b": Term(), "a": Term()})
    assert list(objective.residuals(torch.nn.Identity(), None)) == ["b", "a"]


def test_missing_term_is_named():
    objective = Objective(Given(a=R), {"a": Term(), "b": Term()})
    with pytest.raises(OptionError, match="no term 'b'; it has: a"):
        objective.residuals(torch.nn.Identity(), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, "one of l1, l2, huber; got 'mse'"),
        ({"weight": -1.0}, "zero or positive, got -1.0"),
        ({"weight": math.nan}, "weight must be a finite number, got nan"),
        ({"weight": math.inf}, "weight must be a finite number, got inf"),
        ({"weight": "heavy"}, "weight must be a finite number, got 'heavy'"),
        ({"delta": 0.0}, "delta of the Huber loss must be positive"),
    ],
)
def test_impossible_terms(options, message):
    with pytest.raises(OptionError, match=message):
        Term(**options)


def test_some_weight_must_be_positive():
    with pytest.raises(OptionError, match="positive weight"):
        Objective(Given(), {"a": Term(0.0)})
