"""Pictures of numbers that a logarithm does not have."""

import pytest

from dcase import plotting

pytestmark = pytest.mark.pictures


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 10.0], "log"), ([0.0, 1.0], "log"), ([0.0, 0.0], "linear"), ([], "linear"),
     ([float("nan")], "linear")],
)  # fmt: skip
def test_an_axis_is_logarithmic_where_something_positive_is_drawn(tmp_path, axis, values, scale):
    figure, [ax] = plotting.new_figure()
    points = (values, [1.0] * len(values))
    ax.plot(*(points if axis == "x" else points[::-1]))
    assert plotting.log_scale(ax, axis) == (scale == "log")
    assert (ax.get_xscale() if axis == "x" else ax.get_yscale()) == scale
    plotting.save(figure, tmp_path / "a.png")  # without a warning, which is an error here
