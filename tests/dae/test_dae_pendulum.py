"""The chain of pendulums against closed forms, other equations of motion and conservation laws."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import ellipj, ellipk

from dcase.dae.pendulum import (
    angular_accelerations,
    cartesian,
    integrate_angles,
    pendulum_energy,
    simulate_pendulum,
)
from dcase.dae.trajectories import predictor_errors
from dcase.errors import OptionError, SimulationError

pytestmark = pytest.mark.physics

G = 9.82


def rods(positions):
    return np.diff(np.pad(positions, ((0, 0), (1, 0), (0, 0))), axis=1)


@pytest.fixture(scope="module")
def chain():
    """Twenty seconds of the paper's pendulum."""
    return simulate_pendulum(2000)


def test_one_pendulum_swings_as_the_elliptic_function():
    for start in (0.1, math.pi / 2, 3.0):
        run = simulate_pendulum(400, n=1, start_angle=start)
        modulus = math.sin(start / 2) ** 2
        t = np.arange(400) * 0.01
        _, cn, dn, _ = ellipj(math.sqrt(G) * t, modulus)
        theta = 2 * np.arcsin(math.sin(start / 2) * cn / dn)
        expected = np.stack([np.sin(theta), -np.cos(theta)], axis=-1)
        assert np.abs(run.positions[:, 0] - expected).max() < 1e-8
    assert 4 * ellipk(modulus) / math.sqrt(G) > 1.2 * 2 * math.pi / math.sqrt(G)


def double_pendulum(theta, omega):
    """The textbook's two equations, for unit masses and rods."""
    (a, b), (u, w) = theta, omega
    below = 3 - math.cos(2 * a - 2 * b)
    first = (
        -3 * G * math.sin(a)
        - G * math.sin(a - 2 * b)
        - 2 * math.sin(a - b) * (w * w + u * u * math.cos(a - b))
    )
    second = 2 * math.sin(a - b) * (2 * u * u + 2 * G * math.cos(a) + w * w * math.cos(a - b))
    return [first / below, second / below]


def dense(theta, omega):
    """The paper's ``[C_ij cos(theta_i - theta_j)] theta'' = b``."""
    n = len(theta)
    index = np.arange(n)
    counts = n - np.maximum.outer(index, index)
    apart = np.subtract.outer(theta, theta)
    right = -(counts * np.sin(apart)) @ omega**2 - G * (n - index) * np.sin(theta)
    return np.linalg.solve(counts * np.cos(apart), right)


def test_accelerations_of_two_and_of_many():
    rng = np.random.default_rng(1)
    for _ in range(5):
        theta, omega = rng.uniform(-3, 3, 2), rng.normal(0, 3, 2)
        ours = angular_accelerations(list(theta), list(omega), G)
        np.testing.assert_allclose(ours, double_pendulum(theta, omega), rtol=1e-11)
        for n in (1, 5, 9):
            theta, omega = rng.uniform(-3, 3, n), rng.normal(0, 3, n)
            ours = angular_accelerations(list(theta), list(omega), G)
            np.testing.assert_allclose(ours, dense(theta, omega), rtol=1e-9, atol=1e-9)


def test_the_start_is_a_horizontal_chain_at_rest(chain):
    np.testing.assert_allclose(chain.positions[0, :, 0], [1, 2, 3, 4, 5], atol=1e-12)
    np.testing.assert_allclose(chain.positions[0, :, 1], 0, atol=1e-12)
    assert not chain.velocities[0].any()
    assert (chain.velocities[1:5, -1, 1] < 0).all()  # it falls
    assert chain.interval == 0.01
    assert chain.positions.shape == (2000, 5, 2)
    assert chain.positions.dtype == np.float64


def test_rods_keep_their_length_and_energy_is_conserved(chain):
    along = rods(chain.positions)
    assert np.abs(np.linalg.norm(along, axis=-1) - 1).max() < 1e-12
    # The constraint's Jacobian times the velocity
    assert np.abs(np.sum(along * rods(chain.velocities), axis=-1)).max() < 1e-11
    assert np.abs(chain.energy - chain.energy[0]).max() < 1e-4
    assert chain.energy[0] == pytest.approx(0, abs=1e-12)  # horizontal, at the pivot's height
    heights = chain.positions[..., 1]
    assert heights.min() < -4
    assert np.ptp(chain.kinetic_energy() + G * heights.sum(axis=1)) < 2e-4


@pytest.fixture(scope="module")
def default_run():
    return simulate_pendulum()


@pytest.mark.slow
def test_energy_over_the_whole_default_run(default_run):
    assert len(default_run) == 14_000
    assert np.abs(default_run.energy - default_run.energy[0]).max() < 1e-3


def test_the_papers_pendulum_moves_as_far_as_it_should(default_run):
    """The facts of this project: 80 cm in 20 steps; chaos and the length of the run move it."""
    errors = predictor_errors(default_run.prefix(4000), 20)
    assert 0.75 < errors["identity"] < 0.87
    assert 0.5 < errors["constant_velocity"] < 0.7


def test_velocities_are_the_derivative_of_positions():
    run = simulate_pendulum(200, interval=0.001, substeps=1)
    r = run.positions
    slope = (8 * (r[3:-1] - r[1:-3]) - (r[4:] - r[:-4])) / (12 * 0.001)
    assert np.abs(slope - run.velocities[2:-2]).max() < 1e-7


def test_backwards_in_time():
    theta, omega = integrate_angles(np.full(5, 1.5), np.zeros(5), 101, 0.01, 10)
    back, rate = integrate_angles(theta[-1], -omega[-1], 101, 0.01, 10)
    assert np.abs(back[-1] - 1.5).max() < 1e-8
    assert np.abs(rate[-1]).max() < 1e-8
    # and with a negative interval, the same path
    again, _ = integrate_angles(theta[-1], omega[-1], 101, -0.01, 10)
    np.testing.assert_allclose(again, back, atol=1e-12)


def test_fourth_order():
    def path(substeps):
        start = np.array([0.6, -0.3, 0.2])
        return integrate_angles(start, np.zeros(3), 11, 0.1, substeps)[0]

    exact = path(160)
    errors = [np.abs(path(substeps) - exact).max() for substeps in (5, 10, 20)]
    for coarse, fine in pairwise(errors):
        assert 13 < coarse / fine < 20


def test_a_seed_draws_the_start_angles():
    first, again, other = (simulate_pendulum(30, seed=s) for s in (3, 3, 4))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert not first.velocities[0].any()
    angles = np.arctan2(rods(first.positions[:1])[..., 0], -rods(first.positions[:1])[..., 1])
    assert np.ptp(angles) > 0.5
    assert np.ptp(first.energy) < 1e-6


def test_shorter_is_a_prefix_and_more_substeps_agree(chain):
    np.testing.assert_array_equal(simulate_pendulum(50).positions, chain.positions[:50])
    finer = simulate_pendulum(100, substeps=20)
    assert np.abs(finer.positions - chain.positions[:100]).max() < 1e-5


def test_energy_from_coordinates_alone():
    positions, velocities = cartesian(np.array([0.0]), np.array([2.0]))
    np.testing.assert_allclose(positions, [[0, -1]], atol=1e-15)
    np.testing.assert_allclose(velocities, [[2, 0]], atol=1e-15)
    assert pendulum_energy(positions, velocities, 10.0) == pytest.approx(2 - 10)


def test_progress_counts_frames():
    seen = []
    simulate_pendulum(120, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 120), (50, 120), (100, 120), (120, 120)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"steps": 5, "n": 0}, "n must be"),
        ({"steps": 5, "substeps": 0.5}, "substeps must be"),
        ({"steps": 5, "interval": 0.0}, "interval must be"),
        ({"steps": 5, "start_angle": math.nan}, "start_angle must be"),
        ({"steps": 5, "gravity": math.inf}, "gravity must be"),
        ({"steps": 5, "seed": -1}, "seed must not"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(OptionError, match=message):
        simulate_pendulum(**options)


def test_blow_up_is_one_line():
    with pytest.raises(SimulationError, match="blew up after .*substeps$"):
        simulate_pendulum(100, interval=5.0, substeps=1)
