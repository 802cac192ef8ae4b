"""Metrics against closed forms, loops written from the definitions, and conservation laws."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dcase.errors import DataError, OptionError
from dcase.pinn.conservation import cell_sizes, conservation, integrate
from dcase.pinn.metrics import evaluate, field_metrics, nrmse_at_times, trivial_predictors
from dcase.pinn.sample import Sample
from dcase.pinn.spectra import band_errors, energy_spectrum


def centres(n, low=0.0, high=1.0):
    return low + (np.arange(n) + 0.5) * (high - low) / n


def axes_of(*shape):
    names = ("x", "y")[: len(shape) - 1]
    return {
        **{k: centres(n) for k, n in zip(names, shape, strict=False)},
        "t": np.arange(shape[-1]),
    }


def sample_of(fields, *, task="advection", periodic=("x",), parameters=None, low=0.0, high=1.0):
    shape = next(iter(fields.values())).shape
    names = ("x", "y")[: len(shape) - 1]
    return Sample(
        task=task,
        axes={
            **{k: centres(n, low, high) for k, n in zip(names, shape, strict=False)},
            "t": np.linspace(0.0, 2.0, shape[-1]),
        },
        fields=fields,
        domain={**dict.fromkeys(names, (low, high)), "t": (0.0, 2.0)},
        parameters=parameters or {},
        periodic=periodic,
        source="made up",
    )


def loops(p, y, times):
    """PDEBench's definitions for one sample and field, one number at a time."""
    space, sums = p.shape[:-1], dict.fromkeys(("rmse", "nrmse", "crmse", "max", "b"), 0.0)
    bands, points, n = [0.0, 0.0, 0.0], list(np.ndindex(*space)), math.prod(space)
    for t in times:
        d = {i: p[i][t] - y[i][t] for i in points}
        square = sum(value**2 for value in d.values()) / n
        sums["rmse"] += math.sqrt(square)
        sums["nrmse"] += math.sqrt(square) / math.sqrt(sum(y[i][t] ** 2 for i in points) / n)
        sums["crmse"] += abs(sum(d.values())) / n
        sums["max"] += max(abs(value) for value in d.values())
        if len(space) == 1:
            sums["b"] += math.sqrt((d[0,] ** 2 + d[space[0] - 1,] ** 2) / 2)
            amplitudes = [abs(_dft(d, space, (k,))) / n for k in range(space[0] // 2 + 1)]
        else:
            nx, ny = space
            edge = sum(d[i, j] ** 2 for i in (0, nx - 1) for j in range(ny))
            edge += sum(d[i, j] ** 2 for i in range(nx) for j in (0, ny - 1))
            sums["b"] += math.sqrt(edge / (2 * nx + 2 * ny))
            squares = [0.0] * (min(nx, ny) // 2)
            for i in range(nx // 2):
                for j in range(ny // 2):
                    shell = math.floor(math.sqrt(i**2 + j**2))
                    if shell < len(squares):
                        squares[shell] += abs(_dft(d, space, (i, j))) ** 2
            amplitudes = [math.sqrt(s) / n for s in squares]
        for band, (low, high) in enumerate(((0, 4), (4, 12), (12, len(amplitudes)))):
            bands[band] += sum(amplitudes[low:high]) / (high - low)
    result = {name: value / len(times) for name, value in sums.items()}
    return {
        "rmse": result["rmse"],
        "nrmse": result["nrmse"],
        "crmse": result["crmse"],
        "max_error": result["max"],
        "brmse": result["b"],
        **{
            f"frmse_{k}": v / len(times) for k, v in zip(("low", "mid", "high"), bands, strict=True)
        },
    }


def _dft(d, space, k):
    turns = {i: sum(a * b / n for a, b, n in zip(i, k, space, strict=True)) for i in d}
    return sum(value * np.exp(-2j * np.pi * turns[i]) for i, value in d.items())


@pytest.mark.parametrize("shape", [(30, 5), (31, 5), (26, 28, 3)])
@pytest.mark.parametrize("paper", [False, True])
def test_against_loops(shape, paper):
    rng = np.random.default_rng(1)
    p, y = rng.normal(size=(2, *shape))
    times = range(shape[-1])[-2 - paper :][paper:]
    found = field_metrics(p, y, axes_of(*shape), last=2 + paper, paper=paper)
    for name, value in loops(p, y, times).items():
        assert found[name] == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("shape", [(64, 25), (32, 40, 25)])
def test_constant_offset(shape):
    y = 2.0 + np.random.default_rng(0).normal(size=shape)
    found = field_metrics(y - 0.5, y, axes_of(*shape))
    for name in ("rmse", "crmse", "max_error"):
        assert found[name] == pytest.approx(0.5)
    assert found["brmse"] == pytest.approx(0.5)
    assert found["mse"] == pytest.approx(0.25)
    assert found["frmse_low"] == pytest.approx(0.5 / 4)  # only k = 0 of the four
    assert found["frmse_mid"] == pytest.approx(0.0, abs=1e-12)
    assert found["frmse_high"] == pytest.approx(0.0, abs=1e-12)
    square = np.mean(y[..., -20:] ** 2)
    assert found["relative_l2"] == pytest.approx(0.5 / np.sqrt(square))


@pytest.mark.parametrize(
    ("k", "band"), [(1, "low"), (3, "low"), (4, "mid"), (11, "mid"), (12, "high")]
)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_wave_lands_in_its_band(k, band, dimensions):
    x = centres(64)
    wave = 0.3 * np.sin(2 * np.pi * k * x + 0.4)
    d = wave[:, None] if dimensions == 1 else np.broadcast_to(wave[None, :, None], (48, 64, 1))
    found = {name: float(value[0]) for name, value in band_errors(d).items()}
    modes = {"low": 4, "mid": 8, "high": (33 if dimensions == 1 else 24) - 12}
    assert found[band] == pytest.approx(0.15 / modes[band])
    assert sum(found.values()) == pytest.approx(found[band])


def test_two_dimensional_shells_see_one_quadrant():
    """As PDEBench's do; the spectrum for pictures sees all of it."""
    x = 2 * np.pi * centres(32)
    along, across = np.sin(5 * x[:, None] + 5 * x), np.sin(5 * x[:, None] - 5 * x)
    assert band_errors(along[..., None])["mid"] == pytest.approx([0.5 / 8])
    assert band_errors(across[..., None])["mid"] == pytest.approx([0.0], abs=1e-12)
    for wave in (along, across):
        assert energy_spectrum(wave)[7] == pytest.approx(0.5)  # floor(5 sqrt 2)


@pytest.mark.parametrize("shape", [(30,), (31,), (16, 16), (15, 18)])
def test_parseval(shape):
    values = np.random.default_rng(2).normal(size=shape)
    assert energy_spectrum(values).sum() == pytest.approx(np.mean(values**2))


def test_a_grid_without_short_waves_has_no_high_band():
    found = band_errors(np.ones((16, 3)))
    assert np.isnan(found["high"]).all()
    assert np.isfinite(found["low"]).all()


def test_by_hand():
    y = np.array([[9.0, 1.0, 2.0], [9.0, 1.0, 0.0], [9.0, -1.0, -2.0], [9.0, -1.0, 0.0]])
    p = np.array([[9.0, 1.0, 2.0], [9.0, 1.0, 0.0], [9.0, -1.0, 0.0], [9.0, 3.0, 4.0]])
    found = field_metrics(p, y, axes_of(4, 3), last=2)
    assert found["rmse"] == pytest.approx((2 + math.sqrt(5)) / 2)
    assert found["nrmse"] == pytest.approx((2 / 1 + math.sqrt(5) / math.sqrt(2)) / 2)
    assert found["crmse"] == pytest.approx((1 + 1.5) / 2)
    assert found["max_error"] == pytest.approx(4.0)
    assert found["brmse"] == pytest.approx((math.sqrt(8) + math.sqrt(8)) / 2)
    assert found["mse"] == pytest.approx((4 + 5) / 2)
    assert found["relative_l2"] == pytest.approx(math.sqrt(4.5 / 1.5))
    assert found["nrmse_all"] == pytest.approx((0 + 2 / 1 + math.sqrt(5) / math.sqrt(2)) / 3)
    assert found["relative_l2_all"] == pytest.approx(math.sqrt((4 + 5) / (81 + 1 + 2)))


def test_window_and_the_papers_quirk():
    y = np.ones((8, 50))
    p = y + np.arange(50)
    axes = axes_of(8, 50)
    assert field_metrics(p, y, axes)["rmse"] == pytest.approx(np.arange(30, 50).mean())
    assert field_metrics(p, y, axes, paper=True)["rmse"] == pytest.approx(np.arange(31, 50).mean())
    short = axes_of(8, 7)
    assert field_metrics(p[:, :7], y[:, :7], short)["rmse"] == pytest.approx(3.0)
    for bad in ({"last": 0}, {"last": 1, "paper": True}):
        with pytest.raises(OptionError, match="no time left"):
            field_metrics(p, y, axes, **bad)


def test_shapes_that_do_not_fit():
    axes = axes_of(8, 5)
    with pytest.raises(DataError, match=r"must have one shape"):
        field_metrics(np.zeros((5, 8)), np.zeros((8, 5)), axes)
    with pytest.raises(DataError, match=r"must have one shape"):
        field_metrics(np.zeros((5, 8)), np.zeros((5, 8)), axes)
    with pytest.raises(DataError, match=r"need axes"):
        field_metrics(np.zeros((5, 8)), np.zeros((5, 8)), {"t": range(5), "x": range(8)})


def test_a_diverged_network_is_not_a_crash():
    y = np.ones((8, 5))
    for value in (np.nan, np.inf, 1e300):
        found = field_metrics(np.full((8, 5), value), y, axes_of(8, 5))
        assert not math.isfinite(found["rmse"])


def test_error_against_time():
    y = np.random.default_rng(0).normal(size=(6, 7, 9))
    factor = np.linspace(0, 2, 9)
    assert nrmse_at_times((1 + factor) * y, y) == pytest.approx(factor)


def test_trivial_predictors():
    rng = np.random.default_rng(3)
    fields = {"rho": 3 + rng.normal(size=(10, 40)), "v": rng.normal(size=(10, 40))}
    predictors = trivial_predictors(sample_of(fields))
    assert list(predictors) == ["zero", "mean", "persistence"]
    for name, values in fields.items():
        assert not predictors["zero"][name].any()
        assert predictors["mean"][name] == pytest.approx(np.full((10, 40), values[:, 0].mean()))
        assert all((predictors["persistence"][name] == values[:, :1]).ravel())
        assert predictors["mean"][name].shape == (10, 40)


def test_evaluate_is_json_with_baselines():
    x, t = centres(64), np.linspace(0.0, 2.0, 41)
    u = 0.7 + np.sin(2 * np.pi * (x[:, None] - 0.1 * t))
    result = json.loads(json.dumps(evaluate({"u": 1.01 * u}, sample_of({"u": u})), allow_nan=False))
    assert list(result) == ["fields", "mean", "baselines", "conservation", "window"]
    assert result["fields"]["u"]["nrmse"] == pytest.approx(0.01)
    assert result["fields"]["u"]["nrmse_all"] == pytest.approx(0.01)
    baselines = {name: values["u"]["nrmse"] for name, values in result["baselines"].items()}
    assert baselines["zero"] == pytest.approx(1.0)
    assert baselines["mean"] == pytest.approx(math.sqrt(0.5 / (0.5 + 0.49)))
    late = t[-20:]
    shift = np.sqrt(2) * np.abs(np.sin(np.pi * 0.1 * late))  # rms of sin(a) - sin(a + 2 pi s)
    assert baselines["persistence"] == pytest.approx(shift.mean() / math.sqrt(0.99))
    assert result["window"] == {"first": pytest.approx(1.05), "last": 2.0, "times": 20}
    conserved = result["conservation"]["u"]
    assert conserved["conserved"]
    assert conserved["drift"] < 1e-13
    assert conserved["deviation"] == pytest.approx(0.01 * 0.7 / conserved["scale"])


def test_evaluate_averages_fields_and_names_a_missing_one():
    fields = {"u": np.ones((8, 8, 4)), "v": 2 * np.ones((8, 8, 4))}
    sample = sample_of(fields, task="diffusion-reaction", periodic=())
    result = evaluate({"u": fields["u"] + 0.1, "v": fields["v"] + 0.3}, sample, paper=True)
    assert result["mean"]["rmse"] == pytest.approx(0.2)
    assert result["window"]["times"] == 3
    with pytest.raises(DataError, match="lacks the field 'v'"):
        evaluate({"u": fields["u"]}, sample)


def gas(nt=11, high=1.0, low=-1.0):
    """A travelling density wave in a uniform flow: mass, momentum and energy are conserved."""
    x, t = centres(128, low, high), np.linspace(0.0, 2.0, nt)
    rho = 2.0 + np.sin(2 * np.pi * (x[:, None] - 0.5 * t) / (high - low))
    fields = {"rho": rho, "v": np.full_like(rho, 0.5), "p": np.full_like(rho, 3.0)}
    return sample_of(fields, task="cfd", parameters={"gamma": 1.4}, low=low, high=high)


@pytest.mark.physics
def test_conservation_of_a_gas():
    sample = gas()
    found = conservation(sample.fields, sample)
    assert list(found) == ["mass", "momentum", "energy"]
    assert found["mass"].reference == pytest.approx(np.full(11, 4.0))
    assert found["momentum"].reference == pytest.approx(np.full(11, 2.0))
    assert found["energy"].reference == pytest.approx(np.full(11, 2 * (3.0 / 0.4 + 0.25)))
    for integral in found.values():
        summary = integral.summary()
        assert summary["conserved"]
        assert max(summary["drift"], summary["reference_drift"], summary["deviation"]) < 1e-12


@pytest.mark.physics
def test_drift_is_relative_and_to_its_own_start():
    sample = gas()
    leak = np.linspace(0.0, 1.0, 11)
    fields = sample.fields | {"rho": sample.fields["rho"] * 1.5 - 0.2 * leak}
    mass = conservation(fields, sample)["mass"].summary()
    assert mass["scale"] == pytest.approx(4.0)
    assert mass["drift"] == pytest.approx(0.2 * 2 / 4)
    assert mass["deviation"] == pytest.approx(0.5)
    still = gas()
    still.fields["v"][:64] *= -1.0  # no net momentum, yet a sensible scale
    momentum = conservation(still.fields, still)["momentum"]
    assert momentum.scale > 1.9


def test_nothing_is_conserved_by_reactions_or_open_domains():
    u = 1.0 + np.random.default_rng(0).random((8, 8, 4))
    for sample in (
        sample_of({"u": u, "v": -u}, task="diffusion-reaction", periodic=()),
        sample_of({"u": u, "v": -u}, task="user's own"),
        sample_of({"u": u, "v": -u}, periodic=()),
    ):
        found = conservation({"u": 1.1 * u, "v": -u}, sample)
        assert list(found) == ["u", "v"]
        assert not any(integral.conserved for integral in found.values())
        assert found["u"].summary()["deviation"] == pytest.approx(0.1)
        assert found["v"].summary()["deviation"] == 0.0


def test_densities_of_ones_own():
    sample = sample_of({"u": np.ones((8, 4))}, task="burgers")
    found = conservation({"u": 3 * sample.fields["u"]}, sample, {"energy": lambda f: f["u"] ** 2})
    assert found["energy"].conserved
    assert found["energy"].predicted == pytest.approx(np.full(4, 9.0))
    silent = sample_of({"u": np.zeros((8, 4))})
    assert conservation({"u": np.ones((8, 4))}, silent)["u"].summary()["scale"] == 1.0


@pytest.mark.parametrize(
    ("axis", "periodic"),
    [
        (centres(16, -1.0, 1.0), False),
        (centres(16, -1.0, 1.0), True),
        (np.linspace(-1.0, 1.0, 16), False),
        (np.linspace(-1.0, 1.0, 16), True),
        (np.linspace(-1.0, 1.0, 16, endpoint=False), True),
    ],
)
def test_integrals_on_any_grid(axis, periodic):
    sizes = cell_sizes(axis, (-1.0, 1.0), periodic)
    assert (sizes > 0).all()
    wave = np.cos(np.pi * axis)[:, None] ** 2 + np.sin(np.pi * axis)[:, None]
    assert integrate(wave, [sizes]) == pytest.approx([1.0])
    if not periodic:
        assert integrate(axis[:, None] + 2.0, [sizes]) == pytest.approx([4.0])
