"""dcase reproduce: a table and a figure from the command line, budgets, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SMALL = ("--source", "xtb", "--size", "tiny", "--train", "24", "--epochs", "1", "--quiet")
ONE = ("-m", "ethanol", "--model", "schnet")


def test_reproduce_a_table_and_again(dcase):
    first = dcase("reproduce", "table1", *ONE, *SMALL)
    assert first.code == 0, first.err
    assert "| ethanol | schnet | original |" in first.out
    assert "Not the paper's protocol" in first.out
    results = list(Path("reproduce/runs").glob("*/result.json"))
    assert len(results) == 2
    before = {path: path.stat().st_mtime_ns for path in results}
    again = dcase("reproduce", "table1", *ONE, *SMALL)
    assert again.out == first.out
    # Table 7 shares the original run.
    dcase("reproduce", "table7", *ONE, *SMALL)
    assert len(list(Path("reproduce/runs").glob("*/result.json"))) == 3
    assert {path: path.stat().st_mtime_ns for path in results} == before
    assert Path("reproduce/table1.csv").read_text().startswith("system,model,setting,")


@pytest.mark.parametrize("name", ["figure1", "figure2"])
def test_reproduce_a_figure(dcase, name):
    outcome = dcase("reproduce", name, *ONE, *SMALL)
    assert outcome.code == 0, outcome.err
    assert Path(f"reproduce/{name}.png").read_bytes()[:4] == b"\x89PNG"
    text = Path(f"reproduce/{name}.md").read_text()
    assert ("beta=200" if name == "figure1" else "n=24") in text


def test_reproduce_shares_a_budget_out_equally(dcase):
    outcome = dcase("reproduce", "table1", *ONE, "--source", "xtb", "--size", "tiny", "--train",
                    "24", "--budget", "0.02", "--quiet")  # fmt: skip
    assert outcome.code == 0, outcome.err
    for path in Path("reproduce/runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        assert result["recipe"]["training"]["time_limit"] == pytest.approx(0.6)
        assert result["status"] == "time limit"
    assert "at most 0.01 minutes of training a run" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "1", "--time-limit", "5"), "--budget and --time-limit exclude each other"),
        (("-m", "aspirin", "--source", "x.npz"), "write {molecule} where its name stands"),
        (("--model", "shnet"), "unknown architecture 'shnet'"),
        (("--train", "100000"), "leave none of"),
    ],
)
def test_reproduce_refuses(dcase, arguments, message):
    outcome = dcase("reproduce", "table1", *ONE, "--source", "xtb", *arguments)
    assert outcome.code == 1
    assert message in outcome.message


def test_reproduce_stops_and_goes_on(dcase, press_ctrl_c):
    folder = Path("reproduce/runs")
    press_ctrl_c(lambda: any(folder.glob("*/potential.run/metrics.csv")))
    many = ("--source", "xtb", "--size", "tiny", "--train", "24", "--epochs", "3000", "--quiet")
    stopped = dcase("reproduce", "table1", *ONE, *many)
    assert stopped.code == 130
    assert "the same command goes on from here" in stopped.err
    assert not list(folder.glob("*/result.json"))
