"""Pictures show the numbers they were given, from any data that can occur, without global state."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch

from dcase.errors import DataError
from dcase.pinn.conservation import conservation
from dcase.pinn.plots import (
    bars_figure,
    conservation_figure,
    error_time_figure,
    loss_figure,
    points_figure,
    slices_figure,
    space_time_figure,
    spectrum_figure,
    write_all,
)
from dcase.pinn.sample import Sample
from dcase.plotting import png
from dcase.training.logs import MetricsLog, read_metrics

pytestmark = pytest.mark.pictures


def centres(n):
    return (np.arange(n) + 0.5) / n


def one_dimensional(nx=24, nt=12):
    x, t = centres(nx), np.linspace(0.0, 2.0, nt)
    rho = 2.0 + np.sin(2 * np.pi * (x[:, None] - 0.5 * t))
    fields = {"rho": rho, "v": np.full_like(rho, 0.5), "p": 10.0 * rho}
    domain = {"x": (0.0, 1.0), "t": (0.0, 2.0)}
    return Sample("cfd", {"x": x, "t": t}, fields, domain, {"gamma": 1.4}, ("x",), "made up")


def two_dimensional(n=16, nt=10):
    x, t = centres(n), np.linspace(0.0, 5.0, nt)
    rng = np.random.default_rng(0)
    wave = np.cos(np.pi * x)[:, None, None] * np.cos(2 * np.pi * x)[:, None] * np.exp(-t)
    u = wave + 5.0 * rng.normal(size=(n, n, 1)) * (t == 0.0)
    axes, domain = {"x": x, "y": x, "t": t}, {"x": (0.0, 1.0), "y": (0.0, 1.0), "t": (0.0, 5.0)}
    return Sample("diffusion-reaction", axes, {"u": u, "v": -u}, domain, {}, (), "made up")


def predicted(sample, factor=1.1):
    return {name: factor * values for name, values in sample.fields.items()}


def history(n, start=1.0, terms=("advection", "initial_u")):
    """Rows of a run whose total loss falls tenfold over its n steps."""
    rows = []
    for step in range(1, n + 1):
        values = {f"train_{name}": start * 10 ** (-step / n) for name in ("loss", *terms)}
        rows.append({"epoch": float(step), "step": float(step), "elapsed_s": 0.1 * step, **values})
    return rows


FIGURES = (space_time_figure, slices_figure, error_time_figure, spectrum_figure)


@pytest.mark.parametrize("figure_of", FIGURES)
def test_same_data_same_bytes_and_labelled_axes(figure_of):
    sample = one_dimensional()
    figure = figure_of(sample, predicted(sample), "p")
    assert png(figure) == png(figure_of(sample, predicted(sample), "p"))
    labels = {text for ax in figure.axes for text in (ax.get_xlabel(), ax.get_ylabel())}
    assert labels & {"time t", "x", "wave number k (waves per domain)"}


@pytest.mark.parametrize("figure_of", FIGURES)
def test_one_field_and_an_unknown_one(figure_of):
    sample = one_dimensional()
    few, many = (figure_of(sample, predicted(sample), names).axes for names in ("p", ("v", "p")))
    assert len(many) == 2 * len(few)
    with pytest.raises(DataError, match="no field 'w'; there are rho, v, p"):
        figure_of(sample, predicted(sample), "w")


def images(figure):
    return [ax.images[0] for ax in figure.axes if ax.images]


def test_space_time_is_the_right_way_round():
    sample = one_dimensional()
    figure = space_time_figure(sample, predicted(sample, 1.5), "rho")
    reference, prediction, error = images(figure)
    rho = sample.fields["rho"]
    # Rows of an image are positions, columns are times, and row 0 is at the bottom.
    assert np.asarray(reference.get_array()) == pytest.approx(rho)
    assert reference.origin == "lower"
    assert reference.get_extent() == pytest.approx([-1 / 11, 2 + 1 / 11, 0.0, 1.0])
    assert np.asarray(error.get_array()) == pytest.approx(0.5 * rho)
    # Colours: shared by the two, and symmetric for the error.
    assert prediction.get_clim() == reference.get_clim() == (rho.min(), rho.max())
    low, high = error.get_clim()
    assert low == -high == pytest.approx(-0.5 * rho.max())
    assert [ax.get_title() for ax in figure.axes[:3]][:2] == ["reference", "prediction"]


def test_snapshots_are_the_right_way_round():
    sample = two_dimensional()
    figure = space_time_figure(sample, predicted(sample), "u")
    shown = images(figure)
    assert len(shown) == 15
    last = sample.fields["u"][:, :, -1]
    assert np.asarray(shown[4].get_array()) == pytest.approx(last.T)  # x runs to the right
    assert np.asarray(shown[14].get_array()) == pytest.approx(0.1 * last.T)


def test_a_start_from_noise_leaves_contrast_to_the_rest():
    sample = two_dimensional()
    figure = space_time_figure(sample, predicted(sample), "u")
    later = np.abs(sample.fields["u"][..., 1:]).max()
    assert max(images(figure)[0].get_clim()) <= later < 0.5 * np.abs(sample.fields["u"]).max()
    first = slices_figure(sample, predicted(sample), "u").axes[0]
    assert max(first.get_ylim()) < 2.0 * later


def test_uneven_grids_are_drawn_where_they_are():
    sample = one_dimensional()
    x = np.linspace(0.1, 0.95, 24) ** 2
    uneven = Sample(
        sample.task, {"x": x, "t": sample.axes["t"]}, sample.fields, sample.domain,
        sample.parameters, (), "made up",
    )  # fmt: skip
    figure = space_time_figure(uneven, predicted(uneven), "rho")
    mesh = figure.axes[0].collections[0]
    rows = np.asarray(mesh.get_coordinates())[:, 0, 1]
    assert rows[1:-1] == pytest.approx(0.5 * (x[1:] + x[:-1]))
    assert png(figure)


def test_slices_show_reference_and_prediction():
    sample = one_dimensional()
    axes = slices_figure(sample, predicted(sample), "p").axes
    assert [ax.get_title() for ax in axes] == ["t = 0", "t = 0.7273", "t = 1.273", "t = 2"]
    reference, prediction = axes[-1].lines
    assert reference.get_ydata() == pytest.approx(sample.fields["p"][:, -1])
    assert prediction.get_ydata() == pytest.approx(1.1 * sample.fields["p"][:, -1])
    sample = two_dimensional()
    line = slices_figure(sample, predicted(sample), "v").axes[-1].lines[0]
    assert line.get_ydata() == pytest.approx(sample.fields["v"][:, 8, -1])


def test_a_prediction_that_blows_up_does_not_hide_the_reference():
    sample = one_dimensional()
    low, high = slices_figure(sample, predicted(sample, 1e6), "rho").axes[0].get_ylim()
    assert high - low < 2.0 * np.ptp(sample.fields["rho"])


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_error_against_time_beside_trivial_predictors():
    sample = one_dimensional()
    lines = lines_of(error_time_figure(sample, predicted(sample)).axes[0])
    assert lines["prediction"].get_ydata() == pytest.approx(np.full(12, 0.1))
    assert lines["zero"].get_ydata() == pytest.approx(np.ones(12))
    rho = sample.fields["rho"]
    held = np.sqrt(np.mean((rho - rho[:, :1]) ** 2, axis=0) / np.mean(rho**2, axis=0))
    assert lines["initial state held"].get_ydata()[1:] == pytest.approx(
        held[1:], abs=1e-6, nan_ok=True
    )
    assert len(lines) == 4


def test_spectrum_of_a_wave():
    x, t = centres(32), np.linspace(0.0, 1.0, 3)
    u = 0.5 + np.sin(2 * np.pi * 3 * x)[:, None] * np.ones(3)
    domain = {"x": (0.0, 1.0), "t": (0.0, 1.0)}
    sample = Sample("advection", {"x": x, "t": t}, {"u": u}, domain, {}, ("x",), "made up")
    lines = lines_of(spectrum_figure(sample, {"u": 0.9 * u}).axes[0])
    amplitude = lines["reference"].get_ydata()
    assert amplitude[[0, 3]] == pytest.approx([0.5, np.sqrt(0.5)])
    assert np.nanmax(np.delete(amplitude, [0, 3])) < 1e-12
    assert lines["error"].get_ydata()[3] == pytest.approx(0.1 * np.sqrt(0.5))


def test_conservation_in_percent():
    sample = one_dimensional()
    leaking = {**sample.fields, "rho": sample.fields["rho"] * np.linspace(1.0, 0.98, 12)}
    figure = conservation_figure(conservation(leaking, sample))
    mass = figure.axes[0]
    assert lines_of(mass)["prediction"].get_ydata()[-1] == pytest.approx(-2.0)
    assert mass.get_title() == "mass (drift 0.02)"
    exact = conservation_figure(conservation(sample.fields, sample))
    for ax in exact.axes:
        assert np.ptp(ax.get_ylim()) > 1e-11  # rounding is not blown up to a picture of noise


def test_conservation_of_nothing_shows_integrals():
    sample = two_dimensional()
    axes = conservation_figure(conservation(predicted(sample), sample)).axes
    assert [ax.get_title() for ax in axes] == ["∫ u", "∫ v"]
    reference = sample.fields["u"].mean(axis=(0, 1))
    assert lines_of(axes[0])["prediction"].get_ydata() == pytest.approx(1.1 * reference)


def test_loss_phases_follow_each_other(tmp_path):
    log = MetricsLog(tmp_path, ["epoch", "step", "elapsed_s", "train_loss", "train_initial_u"])
    log.start()
    for row in history(40, terms=("initial_u",)):
        log.write(row)
    phases = [("Adam", read_metrics(tmp_path / "metrics.csv")), ("L-BFGS", history(10, 0.1))]
    figure = loss_figure(phases)
    ax = figure.axes[0]
    assert {"total loss", "initial u", "advection"} == set(lines_of(ax))
    ends = [line.get_xdata()[[0, -1]].tolist() for line in ax.lines if len(line.get_xdata()) > 2]
    assert ends.count([1.0, 40.0]) == 2
    assert ends.count([41.0, 50.0]) == 3
    assert [line.get_xdata() for line in ax.lines if line.get_linestyle() == "--"][-1] == [40, 40]
    assert {"Adam", "L-BFGS"} <= {text.get_text() for text in ax.texts}
    assert ax.get_yscale() == "log"
    assert png(figure)


def test_windows_and_optimisers_are_told_apart():
    phases = [
        (f"window {i}, {name}", history(n))
        for i in (1, 2)
        for name, n in (("Adam", 20), ("L-BFGS", 60))
    ]
    ax = loss_figure(phases).axes[0]
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["Adam", "L-BFGS", "Adam", "L-BFGS", "window 1", "window 2"]
    switches = {
        line.get_xdata()[0]: line.get_linestyle() for line in ax.lines if len(line.get_xdata()) == 2
    }
    assert switches == {20.0: "--", 80.0: "-", 100.0: "--"}


@pytest.mark.parametrize("n_phases", [1, 2, 7, 40])
def test_phase_labels_never_overlap(n_phases):
    rng = np.random.default_rng(n_phases)
    phases = [
        (f"window {i // 2}, {('Adam', 'L-BFGS')[i % 2]}", history(int(rng.integers(2, 300))))
        for i in range(n_phases)
    ]
    figure = loss_figure(phases)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert boxes
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


@pytest.mark.parametrize("n", [601, 1199, 5000])
def test_no_peak_of_a_long_loss_is_left_out(n):
    rows = history(n, terms=())
    rows[-1]["train_loss"] = 7.0
    ax = loss_figure([("Adam", rows)]).axes[0]
    band = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    assert band[:, 1].max() == pytest.approx(7.0)
    (line,) = (line for line in ax.lines if line.get_label() == "total loss")
    assert line.get_xdata()[-1] > 0.99 * n


def test_losses_that_a_logarithm_cannot_show():
    rows = history(5, terms=("a", "b"))
    for row in rows:
        row["train_a"], row["train_b"] = 0.0, float("nan")
    labels = set(lines_of(loss_figure([("Adam", rows)]).axes[0]))
    assert labels == {"total loss", "a (= 0)", "b (not finite)"}
    for phases in ([], [("Adam", [])], [("Adam", rows[:1])]):
        assert png(loss_figure(phases))


def test_points_the_largest_on_top():
    rng = np.random.default_rng(0)
    points, residuals = torch.rand(200, 2), torch.tensor(10 ** rng.uniform(-3, 1, 200))
    residuals[:3] = torch.tensor([float("nan"), 0.0, -10.0])
    figure = points_figure(points, residuals, ("x", "t"))
    cloud = figure.axes[0].collections[0]
    colors = np.asarray(cloud.get_array())
    assert len(colors) == 198  # neither zero nor NaN
    assert (np.diff(colors) >= 0).all()
    assert colors[-1] == pytest.approx(1.0)
    largest = points[residuals.abs().nan_to_num().argmax()].numpy()
    assert np.asarray(cloud.get_offsets())[-1] == pytest.approx(largest[::-1])  # time across
    with pytest.raises(DataError, match=r"must be \(N, 3\) and \(N,\)"):
        points_figure(points, residuals, ("x", "y", "t"))


def test_points_in_two_dimensions_by_time():
    points = np.random.default_rng(0).random((400, 3))
    domain = dict.fromkeys(("x", "y", "t"), (0.0, 1.0))
    figure = points_figure(points, np.ones(400), ("x", "y", "t"), domain=domain)
    counts = [len(ax.collections[0].get_offsets()) for ax in figure.axes[:4]]
    assert counts == np.histogram(points[:, 2], 4, (0.0, 1.0))[0].tolist()
    assert figure.axes[0].get_title() == "t = 0 … 0.25"
    assert png(points_figure(np.empty((0, 3)), np.empty(0), ("x", "y", "t")))


def test_bars_are_sorted_and_count_failures():
    results = {
        "advection": {"tanh": [0.3, 0.1, 0.2], "irelu": [0.05, 0.06, float("nan")]},
        "cfd": {"tanh": [0.4], "irelu": [float("inf")]},
    }
    figure = bars_figure(results, trivial={"advection": 0.6, "cfd": 0.5}, emphasis="tanh")
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["irelu (1 failed)", "tanh"]
    assert [text.get_text() for text in right.get_yticklabels()] == ["tanh", "irelu (1 failed)"]
    ends = [bar.get_x() + bar.get_width() for bar in left.patches]
    assert ends == pytest.approx([0.055, 0.2])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["mean", "mean of tanh", "one seed", "best trivial predictor"]
    assert png(figure) == png(
        bars_figure(results, trivial={"advection": 0.6, "cfd": 0.5}, emphasis="tanh")
    )
    assert png(bars_figure({"cfd": {"tanh": [float("nan")]}}))
    assert png(bars_figure({}))


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (one_dimensional, (np.nan, 1e200)),
        pytest.param(one_dimensional, (np.inf, 0.0), marks=pytest.mark.slow),
        pytest.param(two_dimensional, (np.nan,), marks=pytest.mark.slow),
    ],
)
def test_any_prediction_can_be_drawn(tmp_path, make, values):
    sample = make()
    for name in list(sample.fields)[len(values) :]:
        del sample.fields[name]
    sample = replace(sample, task="a user's")  # whose equation conserves nothing we know
    shape = next(iter(sample.fields.values())).shape
    filled = zip(sample.fields, values, strict=True)
    prediction = {name: np.full(shape, value) for name, value in filled}
    assert len(write_all(tmp_path, sample=sample, prediction=prediction)) == 5


def test_an_exact_prediction_and_a_constant_field(tmp_path):
    sample = one_dimensional(nt=2)
    del sample.fields["p"], sample.fields["rho"]
    sample = replace(sample, task="a user's")
    assert np.ptp(sample.fields["v"]) == 0.0
    assert len(write_all(tmp_path, sample=sample, prediction=sample.fields)) == 5


def test_write_all_writes_what_there_is(tmp_path):
    sample = two_dimensional(n=8, nt=4)
    del sample.fields["v"]
    assert write_all(tmp_path / "none") == []
    assert write_all(tmp_path, histories=[("Adam", history(3))]) == ["loss.png"]
    names = write_all(
        tmp_path / "all", sample=sample, prediction=predicted(sample),
        histories=[("Adam", history(3))], points=torch.rand(50, 3), residuals=torch.rand(50),
    )  # fmt: skip
    expected = ["space_time", "slices", "error_time", "spectrum", "conservation", "loss", "points"]
    assert names == [f"{name}.png" for name in expected]
    for name in names:
        assert (tmp_path / "all" / name).read_bytes().startswith(b"\x89PNG")


def test_no_global_state():
    """Drawing needs no pyplot and leaves matplotlib's settings alone."""
    before = dict(mpl.rcParams)
    sample = one_dimensional()
    png(space_time_figure(sample, predicted(sample)))
    assert dict(mpl.rcParams) == before
    code = "import sys, dcase.pinn.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
