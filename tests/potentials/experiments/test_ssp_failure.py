"""The shifted softplus as printed overflows, ours does not, offset energies need neither."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch

from dcase.activations import activation_names, get_activation
from dcase.data.md17 import load_md17
from dcase.errors import DataError, OptionError
from dcase.potentials.experiments.naive_ssp import (
    INPUTS,
    OVERFLOW,
    NaiveShiftedSoftplus,
    activation_table,
    exact_ssp,
)
from dcase.potentials.experiments.ssp_failure import (
    LAYERS,
    PUBLISHED,
    RUNS,
    failure_figure,
    failure_rows,
    failure_text,
    report_network,
    run_ssp_failure,
)

pytestmark = pytest.mark.pictures


@pytest.fixture(scope="module")
def aspirin():
    """GFN2-xTB frames with energies as large as MD17's: -406,757 kcal/mol."""
    dataset = load_md17("aspirin", "xtb").subset(np.arange(12))
    mean = -406_757 * 0.0433641
    return replace(dataset, energies=dataset.energies - dataset.energies.mean() + mean)


@pytest.fixture(scope="module")
def result(aspirin):
    seen = []
    found = run_ssp_failure(aspirin, 24, 4, on_epoch=lambda name, progress: seen.append(name))
    assert seen.count("stable") == seen.count("offset") == 24
    return found


# ------------------------------------------------------------------------------------------------
# The function alone


def test_exact_values_are_mpmaths():
    mpmath.mp.dps = 60
    for x in (*INPUTS, 0.3, -3.0):
        e = mpmath.exp(mpmath.mpf(x))
        found = exact_ssp(x)
        for key, value in (
            ("value_exact", mpmath.log(e / 2 + mpmath.mpf(1) / 2)),
            ("slope_exact", e / (1 + e)),
            ("curvature_exact", e / (1 + e) ** 2),
        ):
            assert found[key] == pytest.approx(float(value), rel=1e-13, abs=1e-300), (key, x)


def test_ours_is_right_where_the_printed_form_is_not():
    for row in activation_table():
        x = row["x"]
        for word in ("value", "slope", "curvature"):
            ours, exact = row[f"{word}_ours"], row[f"{word}_exact"]
            # The curvature e^-x below 1e-8 is 1 - sigmoid(x), which float32 rounds to 0.
            slack = 1e-7 if word == "curvature" else 1e-40
            assert ours == pytest.approx(exact, rel=2e-7, abs=slack), (word, x)
        assert (row["exp"] == math.inf) == (x > OVERFLOW)
        if x > OVERFLOW:
            assert row["value_naive"] == math.inf
            assert math.isnan(row["slope_naive"])
            assert math.isnan(row["curvature_naive"])
        else:
            assert row["value_naive"] == pytest.approx(row["value_exact"], rel=1e-6)


def test_the_printed_curvature_is_wrong_long_before_it_overflows():
    """What training on forces differentiates: (e^x)^2 overflows at half the input."""
    rows = {row["x"]: row for row in activation_table((40.0, 80.0))}
    assert rows[40.0]["curvature_naive"] == pytest.approx(0.0, abs=1e-6)
    assert rows[80.0]["curvature_naive"] == pytest.approx(1.0)
    assert rows[80.0]["curvature_exact"] < 1e-30


def test_the_printed_form_cannot_be_chosen():
    for name in activation_names():
        assert not isinstance(get_activation(name), NaiveShiftedSoftplus)


# ------------------------------------------------------------------------------------------------
# The network and the runs


def test_the_network_is_the_reports():
    network = report_network(range(100), 0)
    # 116,225 parameters as printed, of which 3 x 64 are biases that SchNet's authors leave out.
    assert sum(p.numel() for p in network.parameters()) == 116_225 - 3 * 64
    d = torch.tensor([0.0, 0.1, 1.0, 29.9])
    basis = network.basis(d.double())
    expected = torch.exp(-10.0 * (d[:, None].double() - torch.linspace(0, 30, 300).double()) ** 2)
    assert torch.allclose(basis, expected, atol=1e-5)
    assert torch.equal(network.envelope(d), torch.ones(4))
    again, other = report_network(range(100), 0, naive=True), report_network(range(100), 1)
    assert torch.equal(again.out.weight, network.out.weight)
    assert not torch.equal(other.out.weight, network.out.weight)
    assert sum(isinstance(m, NaiveShiftedSoftplus) for m in again.modules()) == 7


def test_the_printed_form_becomes_nan_and_ours_does_not(result):
    naive, stable, offset = result["runs"]
    assert [run["name"] for run in result["runs"]] == list(RUNS)
    assert naive["status"] == "NaN"
    assert 10 < naive["epochs"] < 24
    assert naive["energy_mae_kcal_mol"] is naive["forces_mae_kcal_mol_angstrom"] is None
    # The picture of Table 5: each layer's inputs larger than those before, until NaN.
    inputs = [naive["last"][layer] for layer in LAYERS]
    grown = [x for x in inputs if not math.isnan(x)]
    assert grown == sorted(grown)
    assert max(grown) > OVERFLOW
    for run in (stable, offset):
        assert run["status"] == "finished"
        assert len(run["history"]) == run["epochs"] == 24
        assert all(math.isfinite(value) for row in run["history"] for value in row.values())


def test_both_forms_are_the_same_function_until_then(result):
    naive, stable, _ = result["runs"]
    assert naive["history"][0]["loss"] == pytest.approx(stable["history"][0]["loss"], rel=1e-6)
    for one, two in zip(naive["history"][:-4], stable["history"], strict=False):
        for layer in LAYERS:
            assert one[layer] == pytest.approx(two[layer], rel=2e-2)


def test_offset_energies_need_no_large_inputs(result):
    _, stable, offset = result["runs"]
    assert max(stable["largest"][layer] for layer in LAYERS) > OVERFLOW
    assert max(offset["largest"][layer] for layer in LAYERS) < 10.0
    assert offset["energy_mae_kcal_mol"] < 10.0
    assert stable["energy_mae_kcal_mol"] > 20 * offset["energy_mae_kcal_mol"]


def test_the_run_repeats_itself_and_draws_its_frames(aspirin, result):
    again = run_ssp_failure(aspirin, 3, 4)
    for run, before in zip(again["runs"], result["runs"], strict=True):
        assert run["history"] == before["history"][:3]
    other = run_ssp_failure(aspirin, 1, 5)
    assert other["runs"][2]["history"] != again["runs"][2]["history"][:1]


@pytest.mark.slow
def test_training_on_forces_fails_too(aspirin):
    found = run_ssp_failure(aspirin, 25, 4, target="energy+forces")
    assert [run["status"] for run in found["runs"]] == ["NaN", "finished", "finished"]


def test_tables_and_figure(result, tmp_path):
    rows = failure_rows(result)
    assert [row["layer"] for row in rows] == list(LAYERS)
    assert rows[0]["report"] == PUBLISHED["interaction 0"] == 8.78
    # The report's own exponentials: 6502.87, 5.24e24 (of 56.92, rounded), inf, NaN
    assert rows[0]["report_exp"] == pytest.approx(6502.88, rel=1e-5)
    assert rows[1]["report_exp"] == pytest.approx(5.24e24, rel=5e-3)
    assert rows[2]["report_exp"] == math.inf
    assert math.isnan(rows[3]["report_exp"])
    text = failure_text(result)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables[: 2 + len(LAYERS) + 3]} == {7}
    assert {line.count("|") for line in tables[2 + len(LAYERS) + 3 :]} == {11}
    assert "| 56.92 |" in text
    assert f"epoch {result['runs'][0]['epochs']}" in text
    failure_figure(result, tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "options", "error", "reason"),
    [
        ({}, {"target": "forces"}, OptionError, "target must be energy or energy"),
        ({"energies": None}, {}, DataError, "lack labels of energy"),
        ({"forces": None}, {"target": "energy+forces"}, DataError, "lack labels"),
    ],
)
def test_refused(aspirin, change, options, error, reason):
    with pytest.raises(error, match=reason):
        run_ssp_failure(replace(aspirin, **change), 1, **options)


def test_seven_frames_are_too_few(aspirin):
    with pytest.raises(DataError, match="needs 8 frames, there are 7"):
        run_ssp_failure(aspirin.subset(np.arange(7)), 1)
