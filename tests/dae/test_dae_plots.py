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

pytestmark = pytest.mark.pictures

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
    figure = plots.rollout_figure(lines, system)
    axes = figure.axes
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["none", "identity", "last before it ran away"]
    assert "not used" in figure.get_suptitle()
    assert (
        "used in training" not in plots.rollout_figure(lines, system, unseen=False).get_suptitle()
    )
    assert [ax.get_xlabel() for ax in axes] == ["time (s)", "time (s)"]
    assert "cm" in axes[0].get_ylabel()
    r = swing.positions
    figure = plots.snapshots_figure(r[:2], r[20:22], r[20:22] + 0.01)
    assert all(ax.get_aspect() == 1.0 for ax in figure.axes)
    assert figure.axes[0].get_title() == "MAE 1.41 cm"  # sqrt(2) cm, by construction
    # Every panel shows the same stretch of the plane, all of it and the pivot, and little more.
    x, y = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert all((ax.get_xlim(), ax.get_ylim()) == (x, y) for ax in figure.axes)
    shown = np.concatenate([r[:2], r[20:22], r[20:22] + 0.01, np.zeros((2, 1, 2))], 1)
    for axis, (low, high) in enumerate((x, y)):
        assert low < shown[..., axis].min() < low + 0.3
        assert high - 0.3 < shown[..., axis].max() < high
    violations = plots.violations_figure(np.array([[0.0, 1e-5], [1e-3, 0.1]]), system, 1e-4)
    assert "(m)" in violations.axes[0].get_xlabel()


def test_axes_of_few_decades_have_plain_numbers():
    from dcase import plotting

    labels = {}
    for top in (90.0, 1e5):
        figure, (ax,) = plotting.new_figure()
        ax.plot([1, 2], [6.0, top])
        ax.set_yscale("log")
        plots.plain_log(ax.yaxis)
        figure.canvas.draw()
        labels[top] = [t.get_text() for t in ax.get_yticklabels() if t.get_text()]
    assert {"10", "20", "50"} <= set(labels[90.0])
    assert not any("10^" in text for text in labels[90.0])
    assert any("10^" in text for text in labels[1e5])


def test_the_loss_of_a_part_of_an_epoch_is_not_drawn():
    rows = [
        {"epoch": 1.0, "train_loss": 0.5, "val_loss": 0.4},
        {"epoch": 2.0, "train_loss": 0.3, "val_loss": 0.2},
        {"epoch": 2.1, "train_loss": 0.9, "val_loss": 0.1},
    ]
    lines = {line.get_label(): line for line in plots.training_figure(rows).axes[0].lines}
    assert lines["training loss"].get_ydata().tolist() == [0.5, 0.3]
    assert lines["validation loss"].get_ydata().tolist() == [0.4, 0.2, 0.1]


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
