"""The autocorrelation time is that of its definition, summed by hand."""

import numpy as np
import pytest

from dcase.statistics import autocorrelation_time


def by_definition(values):
    """Sokal's window over means of the pairs that there are at each lag."""
    values = values - values.mean()
    n, tau = len(values), 0.5
    for lag in range(1, n // 2):
        pairs = [values[k] * values[k + lag] for k in range(n - lag)]
        tau += np.mean(pairs) / np.mean(values**2)
        if lag >= 5.0 * tau:
            break
    return max(0.5, tau)


@pytest.mark.parametrize("remembered", [0.0, 0.6, 0.9])
def test_autocorrelation_time_follows_its_definition(remembered):
    noise = np.random.default_rng(0).standard_normal(120)
    values = np.zeros(120)
    for k in range(1, 120):
        values[k] = remembered * values[k - 1] + noise[k]
    values += np.arange(120) * 0.02  # so that the end does not resemble the beginning
    found = autocorrelation_time(values)
    assert found == pytest.approx(by_definition(values), rel=1e-10)
    assert autocorrelation_time(1e-200 * values) == pytest.approx(found)
