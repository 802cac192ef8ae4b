import numpy as np
import pytest

from dcase.errors import DataError
from dcase.pinn.sample import Sample


def parts(**changes):
    axes = {"x": np.linspace(0.05, 0.95, 10), "t": np.linspace(0, 1, 4)}
    return {
        "task": "advection",
        "axes": axes,
        "fields": {"u": np.zeros((10, 4), dtype=np.float32)},
        "domain": {"x": (0.0, 1.0), "t": (0.0, 1.0)},
        "parameters": {"beta": 0.1},
        "periodic": ("x",),
        "source": "f.hdf5 sample 3",
        **changes,
    }


def test_a_good_sample_is_double_precision():
    given = parts()
    sample = Sample(**given)
    assert sample.coordinates == ("x", "t")
    assert sample.shape == (10, 4)
    assert sample.fields["u"].dtype == np.float64
    # What was given is not changed behind the caller's back.
    assert given["fields"]["u"].dtype == np.float32


X, T = np.linspace(0.05, 0.95, 10), np.linspace(0, 1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"t": T, "x": X}}, "time 't' last"),
        ({"axes": {"x": X, "y": X}}, "time 't' last"),
        ({"axes": {"x": X[::-1], "t": T}}, "axis 'x' does not increase"),
        ({"axes": {"x": X, "t": np.array([0, 1, 1, 2.0])}}, "axis 't' does not increase"),
        ({"axes": {"x": np.full(10, np.nan), "t": T}}, "axis 'x' has NaN"),
        ({"axes": {"x": X[None], "t": T}}, "must be a row"),
        ({"axes": {"x": 2 * X, "t": T}}, "outside its domain"),
        ({"fields": {}}, "no fields"),
        (
            {"fields": {"u": np.zeros((4, 10))}},
            r"shape \(4, 10\), but the axes x, t make \(10, 4\)",
        ),
        ({"fields": {"u": np.full((10, 4), np.inf)}}, "NaN or infinity at 40 of 40"),
        ({"domain": {"x": (0.0, 1.0)}}, "the domain is given for"),
        ({"domain": {"x": (1.0, 0.0), "t": (0.0, 1.0)}}, "domain of 'x'"),
        ({"periodic": ("z",)}, "'z' has no axis"),
        ({"parameters": {"beta": float("nan")}}, "parameter 'beta' is nan"),
    ],
)
def test_a_bad_sample_is_refused(changes, message):
    with pytest.raises(DataError, match=message) as error:
        Sample(**parts(**changes))
    assert str(error.value).startswith("f.hdf5 sample 3: ")
    assert "\n" not in str(error.value)
