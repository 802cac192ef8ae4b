"""dcase reproduce report-*: tables of the SchNet report from the command line, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from cli_inputs import shipped_frames

TINY = """
[model]
size = "tiny"
hyper_parameters = { num_interactions = 1 }
[labels]
rescale = "none"
[training]
batch_size = 8
schedule = "constant"
[acceleration]
filter_table = 0
"""


@pytest.fixture
def report(dcase):
    """``report("table2", ...)``: the command on a few frames, with a tiny network."""
    Path("tiny.toml").write_text(TINY)

    def call(name, *more):
        return dcase(
            "reproduce", f"report-{name}", "--source", "xtb", "--recipe", "tiny.toml", "--train",
            "24", "--test", "10", "--epochs", "1", "--quiet", *more,
        )  # fmt: skip

    return call


def test_tables_2_6_and_7_share_what_they_can(report):
    first = report("table2", "-m", "ethanol")
    assert first.code == 0, first.err
    assert "| ethanol |" in first.out
    assert "| 25,000 |" in first.out  # the report's baseline
    assert "24 / 1 / 10 frames" in first.out
    assert "Not the report's protocol" in first.out
    results = {p: p.stat().st_mtime_ns for p in Path("reproduce/runs").glob("*/result.json")}
    assert len(results) == 1 + 3 + 3  # the mean energy, baselines, networks
    for name in ("table6", "table7"):
        outcome = report(name, "-m", "ethanol")
        assert outcome.code == 0, outcome.err
    assert {p: p.stat().st_mtime_ns for p in Path("reproduce/runs").glob("*/result.json")} == (
        results
    )
    assert "| ethanol | -23,900 | -95.4 |" in Path("reproduce/report-table6.md").read_text()
    rows = json.loads(Path("reproduce/report-table2.json").read_text())["rows"]
    assert {r["method"] for r in rows} == {"trivial", "baseline", "tiny.toml"}
    alone = report("table2", "-m", "ethanol", "--task", "forces")
    assert alone.code == 0, alone.err
    assert "Forces: MAE" in alone.out
    assert "Energy: MAE" not in alone.out
    assert Path("reproduce/report-table2.csv").read_text().startswith("system,task,method,value,")


def test_labels_that_a_source_has_not_are_refused(report):
    outcome = report("table7", "--labels", "md17", "-m", "ethanol")
    assert outcome.code == 1
    assert "source xtb has GFN2-xTB labels" in outcome.message


def test_rows_without_data_are_left_out_and_said(dcase, report, monkeypatch):
    data = shipped_frames("ethanol")
    np.savez(
        "rmd17_ethanol_1.npz",
        nuclear_charges=data["z"], coords=data["R"][:60], energies=data["E"][:60],
        forces=data["F"][:60], old_energies=data["E"][:60], old_forces=data["F"][:60],
    )  # fmt: skip
    monkeypatch.setattr("dcase.data.qm9_files.qm9pack_folder", lambda needed: None)
    monkeypatch.setattr("dcase.data.download.cache_folder", lambda _: Path("nowhere"))
    outcome = dcase(
        "reproduce", "report-table7", "--labels", "md17", "--source", "rmd17_{molecule}_*.npz",
        "--recipe", "tiny.toml", "--epochs", "1", "--quiet",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "aspirin: no rows (no file" in outcome.out
    assert "pip install qm9pack" in outcome.out
    assert "PBE+vdW-TS" in outcome.out
    rows = json.loads(Path("reproduce/report-table7.json").read_text())["rows"]
    assert {r["system"] for r in rows} == {"ethanol"}
    nothing = dcase("reproduce", "report-table7", "--source", "{molecule}/*.npz", "--quiet")
    assert "there are no frames of any data set: qm9: no rows" in nothing.message
    asked = dcase("reproduce", "report-table7", "-m", "qm9", "--quiet")
    assert asked.code == 1
    assert "pip install qm9pack" in asked.message


def test_table_1_trains_three_sizes(report):
    outcome = report("table1", "-m", "ethanol")
    assert outcome.code == 0, outcome.err
    rows = json.loads(Path("reproduce/report-table1.json").read_text())["rows"]
    assert [r["size"] for r in rows] == ["Small", "Default", "Large"]
    assert rows[0]["parameters"] < rows[1]["parameters"] < rows[2]["parameters"]
    assert "| parameters, report | 13,345 | 116,225 | 874,817 |" in outcome.out


def test_tables_3_and_4_are_of_one_cross_validation(report):
    outcome = report("table3", "-m", "ethanol", "--folds", "2")
    assert outcome.code == 0, outcome.err
    assert "2 folds of 12 frames and 10 apart" in outcome.out
    (kept,) = Path("reproduce/runs").glob("*/ensemble.pt")
    before = kept.stat().st_mtime_ns
    other = report("table4", "-m", "ethanol", "--folds", "2")
    assert other.code == 0, other.err
    assert kept.stat().st_mtime_ns == before
    assert "| forces, x (kcal/mol/A) | 0.02 | 212.24 | 0.78 |" in other.out
    several = report("table3", "-m", "ethanol", "-m", "aspirin")
    assert "ask for one --molecule" in several.message


def test_iso17_has_rows_and_says_what_its_unit_is(report, monkeypatch):
    monkeypatch.setattr("dcase.data.iso17.cache_folder", lambda _: Path("cache"))
    rng = np.random.default_rng(0)
    with connect("reference.db") as database:
        for f in range(20):
            atoms = Atoms("C7O2H10", positions=rng.normal(scale=1.5, size=(19, 3)))
            forces = {"atomic_forces": rng.normal(size=(19, 3))}
            database.write(atoms, total_energy=-11_500.0 - f, data=forces)
    options = ("-m", "iso17", "--iso17-source", "reference.db", "--train", "8", "--test", "4")
    outcome = report("table2", *options, "--task", "energy+forces")
    assert outcome.code == 0, outcome.err
    assert "| iso17 | 8 |" in outcome.out
    assert "The report's ISO17 figures in Table 2 seem to be in eV" in outcome.out
    folds = report("table3", *options[2:], "--folds", "2")
    assert folds.code == 0, folds.err
    assert "| 3 | 5.53 | 189.05 | 7.86 | 12.17 |" in folds.out  # as printed


def test_table_5_shows_the_failure(dcase):
    outcome = dcase("reproduce", "report-table5", "--source", "xtb", "--epochs", "3", "--quiet")
    assert outcome.code == 0, outcome.err
    assert "| interaction 2 | 300.01 |" in outcome.out
    assert "aspirin, labels GFN2-xTB" in outcome.out
    found = json.loads(Path("reproduce/report-table5.json").read_text())
    assert [run["name"] for run in found["result"]["runs"]] == ["naive", "stable", "offset"]
    assert Path("reproduce/report-table5.png").read_bytes()[:4] == b"\x89PNG"


def test_figures_are_drawn(report):
    outcome = report("figure2", "-m", "ethanol")
    assert outcome.code == 0, outcome.err
    assert Path("reproduce/report-figure2.png").read_bytes()[:4] == b"\x89PNG"
    (row,) = json.loads(Path("reproduce/report-figure2.json").read_text())["rows"]
    assert row["system"] == "ethanol"
    assert (row["first_step"], row["last_step"]) == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "water"), "unknown molecule 'water'"),
        (("-m", "ethanol", "--recipe", "nothing"), "no recipe 'nothing'"),
        (("-m", "ethanol", "--train", "5000"), "use --train and --test with smaller numbers"),
        (("-m", "iso17"), "--iso17-source"),
    ],
)
def test_refusals(dcase, arguments, message):
    outcome = dcase("reproduce", "report-table2", "--source", "xtb", "--quiet", *arguments)
    assert outcome.code == 1
    assert message in outcome.message


def test_reproduce_stops_and_goes_on(report, press_ctrl_c):
    folder = Path("reproduce/runs")
    logs = "*/potential.run/metrics.csv"
    press_ctrl_c(lambda: any(p.read_text().count("\n") > 1 for p in folder.glob(logs)))
    stopped = report("table2", "-m", "ethanol", "--epochs", "1000000")
    assert stopped.code == 130
    assert "the same command goes on from here" in stopped.err
    assert any(folder.glob("*/losses.npy"))
