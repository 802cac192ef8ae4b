"""Standard deviations against errors: closed forms, other implementations, and odd inputs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule
from potential_models import graph_of, lively
from scipy import integrate, stats
from scipy.special import erf, erfinv

from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.fitting.calibration import calibrate, rank_correlation, spread_bins
from dcase.potentials.fitting.ensemble_evaluation import evaluate_ensemble
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.networks.registry import create_potential
from dcase.potentials.quantity import QUANTITIES


def normal_quantiles(n):
    """A standard normal sample without noise: the quantiles at (i + 1/2) / n."""
    return stats.norm.ppf((np.arange(n) + 0.5) / n)


def gaussian(n=4000, factor=1.0, seed=0):
    """Errors of a known law: error_i = z_i s_i, and what the standard deviation is said to be."""
    z = np.random.default_rng(seed).permutation(normal_quantiles(n))
    spread = np.random.default_rng(seed + 1).lognormal(0.0, 1.0, n)
    reference = np.random.default_rng(seed + 2).normal(0.0, 5.0, n)
    return reference, reference + z * spread, spread * factor


# ------------------------------------------------------------------------------------------------
# Closed forms


def test_the_right_size_is_on_the_diagonal():
    reference, predicted, std = gaussian()
    found = calibrate(reference, predicted, std)
    assert found.n == 4000
    assert found.n_left_out == found.n_zero == 0
    assert found.miscalibration_area < 2e-4
    assert abs(found.signed_area) < 2e-4
    assert found.scale == pytest.approx(1.0, abs=2e-3)
    assert found.coverage == pytest.approx(found.levels, abs=1e-3)
    assert found.sharpness == pytest.approx(math.sqrt(np.mean(std**2)))
    expected = -stats.norm.logpdf(predicted - reference, scale=std).mean()
    assert found.nll == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_wrong_size_gives_the_known_curve(factor):
    found = calibrate(*gaussian(factor=factor))
    assert found.scale == pytest.approx(1 / factor, rel=2e-3)
    # |z| = |x| / factor, x standard normal: P(|x| < factor sqrt2 erfinv p) = erf(factor erfinv p)
    inside = slice(0, -1)
    curve = erf(factor * erfinv(found.levels[inside]))
    assert found.coverage[inside] == pytest.approx(curve, abs=1e-3)
    assert found.coverage[-1] == 1.0
    area, _ = integrate.quad(lambda p: erf(factor * erfinv(p)) - p, 0, 1)
    assert area == pytest.approx(0.5 - 2 / math.pi * math.atan(1 / factor), abs=1e-9)
    assert found.signed_area == pytest.approx(area, abs=2e-4)
    assert found.miscalibration_area == pytest.approx(abs(area), abs=2e-4)
    assert (found.signed_area < 0) == (factor < 1)  # overconfident below the diagonal


def test_the_scale_factor_calibrates():
    reference, predicted, std = gaussian(factor=0.3)
    before = calibrate(reference, predicted, std)
    after = calibrate(reference, predicted, std * before.scale)
    assert after.scale == pytest.approx(1.0)
    assert after.miscalibration_area < 2e-3 < before.miscalibration_area
    assert after.spearman == before.spearman
    # Of all factors it is the one of the largest likelihood.
    for other in (0.9, 1.1):
        worse = calibrate(reference, predicted, std * before.scale * other)
        assert worse.nll > after.nll


def test_the_areas_are_exact_also_for_few_points():
    # Two points, u = erf(z / sqrt 2) = 0.5 and 0.9: the coverage is 0, 1/2 from 0.5, 1 from 0.9.
    z = math.sqrt(2) * erfinv(np.array([0.5, 0.9]))
    found = calibrate(np.zeros(2), z, np.ones(2))
    by_hand = 0.5**2 / 2 + 0.4**2 / 2 + 0.1**2 / 2
    assert found.miscalibration_area == pytest.approx(by_hand, rel=1e-12)
    assert found.signed_area == pytest.approx(0.5 - 0.7, rel=1e-12)
    # The area is the first Wasserstein distance of the confidences from the uniform law.
    reference, predicted, std = gaussian(50, factor=0.7)
    u = erf(np.abs(predicted - reference) / std / math.sqrt(2))
    grid = (np.arange(200_000) + 0.5) / 200_000
    distance = stats.wasserstein_distance(u, grid)
    area = calibrate(reference, predicted, std).miscalibration_area
    assert area == pytest.approx(distance, rel=1e-4)


def test_a_perfect_ensemble_of_few_has_students_tails():
    """The truth drawn from the same law as k members: the factor that the guide states."""
    k, n = 9, 200_000
    values = np.random.default_rng(6).normal(size=(k + 1, n))
    truth, members = values[0], values[1:]
    found = calibrate(truth, members.mean(0), members.std(0, ddof=1))
    expected = math.sqrt((k + 1) / k * (k - 1) / (k - 3))
    assert found.scale == pytest.approx(expected, rel=0.01)
    spread = stats.t(df=k - 1, scale=math.sqrt((k + 1) / k))
    z = math.sqrt(2) * erfinv(found.levels[:-1])
    assert found.coverage[:-1] == pytest.approx(spread.cdf(z) - spread.cdf(-z), abs=0.006)


# ------------------------------------------------------------------------------------------------
# Ranks


def test_rank_correlation_is_spearmans():
    generator = np.random.default_rng(3)
    error = generator.normal(size=(40, 3))
    std = np.abs(error) ** 2 + generator.uniform(0, 1, error.shape)
    std[:10] = std[0, 0]  # ties
    ranks = [stats.rankdata(v.ravel()) for v in (np.abs(error), std)]
    assert rank_correlation(error, std) == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-12)
    assert rank_correlation(error, np.exp(np.abs(error))) == pytest.approx(1.0)
    assert rank_correlation(-error, 1 / np.abs(error)) == pytest.approx(-1.0)


def test_shuffled_spreads_rank_nothing():
    reference, predicted, std = gaussian()
    assert calibrate(reference, predicted, std).spearman > 0.5
    shuffled = np.random.default_rng(5).permutation(std)
    # The standard error of the rank correlation of independent values is 1 / sqrt(n - 1).
    assert abs(calibrate(reference, predicted, shuffled).spearman) < 4 / math.sqrt(4000)


def test_bins_hold_equal_shares_and_lie_on_the_diagonal():
    reference, predicted, std = gaussian(20_000)
    spread, error, count = spread_bins(predicted - reference, std)
    assert count.tolist() == [2000] * 10
    assert (np.diff(spread) > 0).all()
    # The standard error of a root mean square over n normal values is 1 / sqrt(2 n) of it.
    assert error[:9] == pytest.approx(spread[:9], rel=5 / math.sqrt(4000))
    assert np.average(spread**2, weights=count) == pytest.approx(np.mean(std**2))
    few = spread_bins(np.ones(7), np.ones(7))
    assert [len(v) for v in few] == [1, 1, 1]
    assert [len(v) for v in spread_bins(np.ones(3), np.zeros(3))] == [0, 0, 0]


# ------------------------------------------------------------------------------------------------
# Odd inputs


def test_standard_deviations_of_exactly_zero():
    # Planar molecule: out-of-plane forces are 0 in all members; once rightly so, once not.
    found = calibrate(np.array([0.0, 0.0, 0.0]), np.array([0.0, 0.1, 1.0]), np.array([0, 0, 1.0]))
    assert found.n_zero == 2
    assert found.scale == 1.0  # of the one point that has a width
    assert found.nll == pytest.approx(-stats.norm.logpdf(1.0))
    assert found.coverage[50] == pytest.approx(1 / 3)  # |error| 0 is covered, 0.1 never
    assert found.coverage[99] == pytest.approx(2 / 3)
    everything = calibrate(np.zeros(4), np.ones(4), np.zeros(4))
    assert everything.miscalibration_area == pytest.approx(0.5)
    assert everything.signed_area == pytest.approx(-0.5)
    assert math.isnan(everything.scale)
    assert math.isnan(everything.nll)


def test_one_frame_has_no_order():
    found = calibrate(np.array([2.0]), np.array([3.0]), np.array([1.0]))
    assert math.isnan(found.spearman)
    assert found.scale == 1.0
    assert found.n == 1


def test_constant_values_have_no_order():
    error = np.arange(5.0)
    assert math.isnan(rank_correlation(error, np.ones(5)))
    assert math.isnan(rank_correlation(np.array([1.0, -1.0, 1.0]), np.arange(3.0)))
    assert calibrate(np.zeros(5), error, np.ones(5)).scale == pytest.approx(math.sqrt(6.0))


def test_what_is_not_finite_is_left_out_and_counted():
    reference, predicted, std = gaussian(100)
    expected = calibrate(reference, predicted, std)
    more = [np.append(v, [1.0, 2.0, 3.0]) for v in (reference, predicted, std)]
    more[1][100], more[2][101], more[0][102] = math.nan, math.nan, math.inf
    found = calibrate(*more)
    assert found.n_left_out == 3
    assert found.spearman == expected.spearman
    assert found.miscalibration_area == expected.miscalibration_area
    assert found.nll == expected.nll
    nothing = calibrate(np.array([math.nan]), np.ones(1), np.ones(1))
    assert nothing.n == 0
    for value in (nothing.spearman, nothing.scale, nothing.miscalibration_area, nothing.sharpness):
        assert math.isnan(value)
    assert np.isnan(nothing.coverage).all()


def test_a_vanishing_spread_is_no_crash():
    found = calibrate(np.zeros(2), np.ones(2), np.array([5e-324, 1.0]))
    assert found.scale == math.inf
    assert found.coverage[99] == pytest.approx(0.5)


def test_arrays_of_any_shape_and_plain_values():
    reference, predicted, std = gaussian(99)
    flat = calibrate(reference, predicted, std)
    folded = calibrate(*(v.reshape(11, 3, 3) for v in (reference, predicted, std)))
    assert folded.to_dict() == flat.to_dict()
    content = json.loads(json.dumps(flat.to_dict()))
    assert len(content["levels"]) == len(content["coverage"]) == 101


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ((np.ones(3), np.ones(3), np.ones(2)), "differ in shape"),
        ((np.ones(0), np.ones(0), np.ones(0)), "no points"),
        ((np.ones(2), np.ones(2), np.array([1.0, -0.5])), "must not be negative, got -0.5"),
    ],
)
def test_refused(arrays, reason):
    with pytest.raises(DataError, match=reason):
        calibrate(*arrays)


# ------------------------------------------------------------------------------------------------
# Of an ensemble on labelled frames


@pytest.fixture(scope="module")
def ensemble():
    return Ensemble([lively(dtype=torch.float64, seed=s) for s in (3, 4, 5)]).eval()


@pytest.fixture(scope="module")
def labelled():
    """Molecules of different size with the labels of a fourth potential."""
    truth, frames = lively(dtype=torch.float64, seed=9), []
    for number in range(24):
        atoms = molecule(("CH3CH2OH", "H2CO", "CH4")[number % 3])
        atoms.rattle(0.05, seed=number)
        frames.append(atoms)
    results = [truth(graph_of(truth, atoms)) for atoms in frames]
    return replace(
        AtomicDataset.from_frames(frames),
        energies=np.array([float(r["energy"]) for r in results]),
        forces=np.concatenate([r["forces"].numpy() for r in results]),
    )


def member_predictions(ensemble, dataset):
    """Energies [k, n_frames] and forces [k, n_atoms, 3], frame by frame, member by member."""
    energies, forces = [], []
    for member in ensemble.members:
        results = [member(graph_of(member, atoms)) for atoms in dataset]
        energies.append([float(r["energy"]) for r in results])
        forces.append(np.concatenate([r["forces"].numpy() for r in results]))
    return np.array(energies), np.array(forces)


def test_an_ensemble_is_compared_with_its_members_mean_and_spread(ensemble, labelled):
    found = evaluate_ensemble(ensemble, labelled, batch_size=5)
    energies, forces = member_predictions(ensemble, labelled)
    error, std = energies.mean(0) - labelled.energies, energies.std(0, ddof=1)
    assert found.energy.error == pytest.approx(error, abs=1e-8)
    assert found.energy.std == pytest.approx(std, rel=1e-9)
    assert found.energy.calibration.spearman == pytest.approx(
        stats.spearmanr(np.abs(error), std).statistic
    )
    error, std = forces.mean(0) - labelled.forces, forces.std(0, ddof=1)
    assert found.forces.std == pytest.approx(std, rel=1e-9)
    assert found.forces.calibration.scale == pytest.approx(np.sqrt(np.mean((error / std) ** 2)))
    assert found.forces.calibration.n == error.size
    per_atom = [np.sqrt((v**2).sum(1)) for v in (error, std)]
    assert found.forces.spearman_per_atom == pytest.approx(stats.spearmanr(*per_atom).statistic)
    per_frame = [[part.max() for part in np.split(v, labelled.ptr[1:-1])] for v in per_atom]
    assert found.forces.spearman_per_frame == pytest.approx(stats.spearmanr(*per_frame).statistic)
    assert found.evaluation.metrics == evaluate_potential(ensemble, labelled).metrics


def test_atoms_held_in_place_do_not_count(ensemble, labelled):
    fixed = np.zeros(len(labelled.numbers), dtype=bool)
    fixed[:12] = True  # all of the first frame (ethanol, 9), and some of the second
    fixed[30] = True
    found = evaluate_ensemble(ensemble, replace(labelled, fixed=fixed))
    whole = evaluate_ensemble(ensemble, labelled)
    assert found.forces.error == pytest.approx(whole.forces.error[~fixed], rel=1e-9)
    lengths = [
        np.where(fixed, -1.0, np.linalg.norm(v, axis=1))
        for v in (whole.forces.error, whole.forces.std)
    ]
    per_frame = [np.maximum.reduceat(v, labelled.ptr[:-1])[1:] for v in lengths]
    assert found.forces.spearman_per_frame == pytest.approx(stats.spearmanr(*per_frame).statistic)
    assert found.energy.calibration.spearman == whole.energy.calibration.spearman


def test_what_is_no_energy(labelled):
    info = replace(labelled.info, quantity="alpha")
    dataset = replace(labelled, forces=None, info=info)
    members = []
    for seed in (0, 1):
        members.append(create_potential(size="tiny", elements=["H", "C", "O"], seed=seed))
        members[-1].quantity = QUANTITIES["alpha"]
    found = evaluate_ensemble(Ensemble(members).eval(), dataset)
    assert list(found.by_name()) == ["alpha"]
    assert found.energy.unit == "a0^3"
    values = [[float(m(graph_of(m, a))["alpha"]) for a in dataset] for m in members]
    assert found.energy.std == pytest.approx(np.std(values, axis=0, ddof=1), rel=1e-5)
    assert found.energy.error == pytest.approx(np.mean(values, axis=0) - dataset.energies)


def test_frames_with_one_label(ensemble, labelled):
    of_energy = evaluate_ensemble(ensemble, replace(labelled, forces=None))
    assert list(of_energy.by_name()) == ["energy"]
    of_forces = evaluate_ensemble(ensemble, replace(labelled, energies=None))
    assert list(of_forces.by_name()) == ["forces"]
    content = json.loads(json.dumps(of_forces.forces.to_dict()))
    assert content["unit"] == "eV/A"
    assert -1.0 <= content["spearman_per_frame"] <= 1.0
