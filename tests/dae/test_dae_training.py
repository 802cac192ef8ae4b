"""The loss of neural DAEs and the predictors they are measured against, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dcase.dae.evaluation import constant_velocity, identity, roll_out
from dcase.dae.methods import MethodSettings
from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.rollouts import true_states
from dcase.dae.systems import system_named
from dcase.dae.task import DaeTask, PairBatch
from dcase.dae.trajectories import Pairs


def random(seed):
    return torch.randn(6, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_papers():
    """Sum |predicted - target|^2 over sum |input - target|^2: 1 for who predicts the input."""
    r, v, r_later, v_later, predicted = map(random, range(5))
    batch = PairBatch(r, v, r_later, v_later, torch.arange(6))
    task = DaeTask(system_named("pendulum"), MethodSettings("none"), 1.0)

    def model(r, v):
        return SimpleNamespace(r=predicted, v=v, violated=torch.zeros(6, 5))

    found = task.terms(model, batch, training=False)
    expected = (predicted - r_later).square().sum() / (r - r_later).square().sum()
    assert float(found["positions"].square().mean()) == pytest.approx(float(expected))
    assert float(found["velocities"].square().mean()) == pytest.approx(1.0)


class NoViolation:
    @staticmethod
    def violation(r):
        return torch.tensor([[1.0, 2.0, 6.0]]).expand(len(r), -1)


def test_predictors_that_know_nothing_on_uniform_motion():
    r, v = random(0), random(1)
    steps = torch.arange(4, dtype=torch.float64)
    positions = r + 0.3 * steps[:, None, None, None] * v
    velocities = v.expand(4, -1, -1, -1)
    found = roll_out(constant_velocity(0.3), positions, velocities, NoViolation, 0.3)
    np.testing.assert_allclose(found.error, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.time, [0.0, 0.3, 0.6, 0.9])
    np.testing.assert_allclose((found.mean, found.worst), [[3.0] * 4, [6.0] * 4])
    found = roll_out(identity, positions, velocities, NoViolation, 0.3)
    np.testing.assert_allclose(found.error, 0.3 * np.arange(4) * float(v.norm(dim=-1).mean()))


def test_unseen_motion_lies_after_validation_too():
    swing = simulate_pendulum(100)
    train, validation, test = np.arange(10), np.array([20, 50]), np.arange(60, 70)
    truth = true_states(swing, [Pairs(train, validation, test, 5)], 2, 200)
    assert truth.unseen
    np.testing.assert_array_equal(truth.positions[0, 0], swing.positions[56])  # 50 + 5 was seen
    np.testing.assert_array_equal(truth.positions[2, -1], swing.positions[99])
