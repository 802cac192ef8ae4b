"""Errors of a validation by hand, and gradients that are clipped only where they are too long."""

import numpy as np
import pytest
import torch
from training_problems import TERMS, Curve, CurveFit, straight, trainer, weights

from dcase.objective import Objective
from dcase.training.validation import evaluate


@pytest.mark.parametrize("batch_size", [4, 100])
def test_validation_by_hand(batch_size):
    """Weighted losses of means over all samples, and errors in the units that are shown."""
    data, line = Curve(11, dtype=torch.float64), straight()
    found = evaluate(Objective(CurveFit(), TERMS), line, data, batch_size)
    x, slope = data.x.numpy().ravel(), 0.3
    value_error = slope * x - 0.2 - np.sin(2 * x)
    slope_error = slope - 2 * np.cos(2 * x)
    assert found["value_mae"] == pytest.approx(10 * np.abs(value_error).mean())
    assert found["value_rmse"] == pytest.approx(10 * np.sqrt((value_error**2).mean()))
    assert found["slope_mae"] == pytest.approx(np.abs(slope_error).mean())
    assert found["slope_rmse"] == pytest.approx(np.sqrt((slope_error**2).mean()))
    size = np.abs(slope_error)
    huber = np.where(size <= 0.5, 0.5 * size**2, 0.5 * (size - 0.25))
    assert found["loss"] == pytest.approx((value_error**2).mean() + 0.3 * huber.mean())


def test_a_gradient_within_the_norm_is_left_alone(tmp_path):
    after = []
    for number, norm in enumerate((0.0, 1e6, 1e-3)):
        run = trainer(tmp_path / str(number), clip_norm=norm, epochs=4)
        run.fit()
        after.append(weights(run.model))
    plain, within, clipped = after
    assert all(torch.equal(a, b) for a, b in zip(plain, within, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, clipped, strict=True))
