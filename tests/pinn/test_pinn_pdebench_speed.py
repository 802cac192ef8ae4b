"""Files that move at another speed than they state (PDEBench issue 46) are found out."""

import h5py
import numpy as np
import pytest

from dcase.pinn.pdebench.advection import exact_shift, solve_advection
from dcase.pinn.pdebench.generate import write_advection
from dcase.pinn.pdebench.random_fields import advection_field, cell_centres
from dcase.pinn.pdebench.reading import read_sample
from dcase.pinn.pdebench.speed import check_speed, measured_speed
from dcase.pinn.sample import Sample

X, T = cell_centres(0, 1, 256), np.linspace(0, 2, 201)


def sample_of(u, beta, x=X, t=T, domain=(0.0, 1.0)):
    domains = {"x": domain, "t": (float(t[0]), float(t[-1]))}
    return Sample("advection", {"x": x, "t": t}, {"u": u}, domains, {"beta": beta}, ("x",), "test")


@pytest.mark.parametrize("beta", [0.1, 0.7, 2.0, 7.0])
@pytest.mark.parametrize("factor", [1, 2])
def test_all_published_speeds(beta, factor):
    # 6 and 8 waves in a period among them, which repeat after a sixth and an eighth of it
    moved = exact_shift(advection_field(range(25)), X, T, factor * beta)
    for u in moved:
        speed = measured_speed(sample_of(u.T, beta), (beta, 2 * beta))
        assert speed == pytest.approx(factor * beta, rel=1e-3)


def test_the_schemes_own_error_is_not_taken_for_another_speed():
    moved = solve_advection(advection_field(range(25))(X), T, 0.1)
    for u in moved:
        assert check_speed(sample_of(u.T, 0.1)).warnings == ()


def test_a_doubled_file(tmp_path):
    path = write_advection(tmp_path / "old.hdf5", [-4], beta=0.2, cells=256)
    with h5py.File(path, "a") as file:
        file.attrs["beta"] = 0.1
    sample = read_sample(path, 0)
    assert sample.parameters == {"beta": 0.2, "beta_attribute": 0.1}
    (warning,) = sample.warnings
    assert "states beta = 0.1" in warning
    assert "moves at 0.2" in warning
    assert "August 2023" in warning


def test_another_speed_is_measured_and_not_guessed():
    moved = exact_shift(advection_field([-4]), X, T, 0.137)[0].T
    found = check_speed(sample_of(moved, 0.1))
    assert found.parameters["beta"] == pytest.approx(0.137, rel=1e-3)
    assert "August 2023" not in found.warnings[0]
    assert "moves at 0.137" in found.warnings[0]


def test_another_period_and_backwards():
    x = cell_centres(-3.0, 3.0, 200)
    u = np.exp(np.cos(2 * np.pi * (x[:, None] + 1.5 * T) / 6))
    found = measured_speed(sample_of(u, -1.5, x, domain=(-3.0, 3.0)), (-1.5, -3.0))
    assert found == pytest.approx(-1.5, rel=1e-6)
    # Nothing is known of it: less than half a period in one stored interval is taken for granted.
    assert measured_speed(sample_of(u, 0.0, x, domain=(-3.0, 3.0))) == pytest.approx(-1.5, rel=1e-6)


def test_what_has_no_speed():
    flat = sample_of(np.full((256, 201), 0.7), 0.1)
    assert measured_speed(flat) is None
    assert check_speed(flat) is flat
    noise = np.random.default_rng(0).normal(size=(256, 201))
    assert measured_speed(sample_of(noise, 0.1)) is None
