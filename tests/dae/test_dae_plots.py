"""Roll-outs and pictures."""

import numpy as np
import pytest

from dcase.dae import plots
from dcase.dae.evaluation import RollOut
from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.rollouts import energy_of, pairs_of, roll_out_rows, true_states
from dcase.dae.settings import default_settings
from dcase.dae.systems import system_named
from dcase.errors import OptionError

SETTINGS = default_settings("pendulum").changed(n_train=20, n_validation=10, n_test=20)


@pytest.fixture(scope="module")
def swing():
    return simulate_pendulum(1300, substeps=2)


def test_true_states_lie_after_what_was_trained_on(swing):
    pairs = pairs_of(SETTINGS, swing)
    truth = true_states(swing, [pairs], 3, count=4)
    assert truth.unseen
    assert truth.positions.shape == (4, 4, 5, 2)
    used = max(pairs.train.max(), pairs.validation.max()) + 20
    frames = [np.flatnonzero((swing.positions == r).all((1, 2)))[0] for r in truth.positions[0]]
    assert min(frames) > used
    np.testing.assert_array_equal(truth.positions[2, 1], swing.positions[frames[1] + 40])
    assert frames[-1] + 60 == len(swing) - 1


def test_long_roll_outs_use_all_there_is_or_are_refused(swing):
    pairs = pairs_of(SETTINGS, swing)
    assert not true_states(swing, [pairs], 12).unseen
    with pytest.raises(OptionError, match="1 to 1"):
        true_states(swing, [pairs], 100)


def test_energy_is_that_of_the_trajectory(swing):
    import torch

    energy = energy_of(swing)
    found = energy(*(torch.as_tensor(a[:5]) for a in (swing.positions, swing.velocities)))
    np.testing.assert_allclose(found.numpy(), swing.energy[:5], atol=1e-9)


def states(values):
    values = np.asarray(values, dtype=float)
    return RollOut(0.2 * np.arange(len(values)), values, values, 0.5 * values)


def test_rows_of_a_roll_out():
    rows = roll_out_rows(states(np.arange(13)), SETTINGS)
    assert [row["applications"] for row in rows] == [1, 2, 5, 10, 12]
    assert rows[2]["mae_cm"] == 500.0
    assert rows[2]["time"] == pytest.approx(1.0)


def test_pictures_have_units_and_equal_aspect(swing):
    system = system_named("pendulum")
    lines = {"none": states([0, 1, 2, np.nan]), "identity": states([0, 1, 1, 1])}
    axes = plots.rollout_figure(lines, system).axes
    assert [ax.get_xlabel() for ax in axes] == ["time (s)", "time (s)"]
    assert "cm" in axes[0].get_ylabel()
    r = swing.positions
    figure = plots.snapshots_figure(r[:2], r[20:22], r[20:22] + 0.01)
    assert all(ax.get_aspect() == 1.0 for ax in figure.axes)
    assert figure.axes[0].get_title() == "MAE 1.41 cm"  # sqrt(2) cm, by construction
    violations = plots.violations_figure(np.array([[0.0, 1e-5], [1e-3, 0.1]]), system, 1e-4)
    assert "(m)" in violations.axes[0].get_xlabel()


def test_errors_of_atoms_by_kind():
    numbers = np.array([8, 1, 1])
    before = np.zeros((4, 3, 3))
    true = before + 0.1
    predicted = true + np.array([0.01, 0.0, 0.0]) * (numbers == 1)[:, None]
    oxygen, hydrogen = plots.atom_errors_figure(before, true, predicted, numbers).axes
    labels = [ax.get_legend_handles_labels()[1] for ax in (oxygen, hydrogen)]
    assert any("mean 0.00 pm" in label for label in labels[0])
    assert any("mean 1.00 pm" in label for label in labels[1])
    assert any("mean 17.32 pm" in label for label in labels[0])
