"""dcase reproduce: a table and a figure from the command line, budgets, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import add_adsorbate, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

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


def slabs(path, count, seed):
    """Frames of a small slab with an adsorbate and a fixed layer, with labels."""
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = fcc111("Cu", (2, 2, 2), vacuum=6.0)
        add_adsorbate(atoms, "O", 1.3, "fcc")
        atoms.info.clear()  # what add_adsorbate notes there cannot be written to a file
        atoms.set_constraint(
            FixAtoms(mask=atoms.positions[:, 2] < atoms.positions[:, 2].mean() - 1)
        )
        atoms.rattle(0.05, rng=random)
        forces = random.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-30.0, forces=forces)
        frames.append(atoms)
    path.parent.mkdir(parents=True)
    write(path, frames)


def test_reproduce_table_2_on_frames_out_of_domain(dcase, tmp_path):
    slabs(tmp_path / "oc/train/a.extxyz", 8, 0)
    slabs(tmp_path / "oc/val_ood/b.extxyz", 4, 1)
    outcome = dcase("reproduce", "table2", "--source", tmp_path / "oc", "--model", "schnet",
                    "--size", "tiny", "--epochs", "1", "--quiet")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "out of domain: val_ood; forces on free atoms" in outcome.out
    assert "/ 4 frames to train / validate / test" in outcome.out
    assert "| oc22 | schnet | original |" in outcome.out
    assert "| 6.940 |" in outcome.out  # the paper's, in eV
    missing = dcase("reproduce", "table2")
    assert "--source is needed" in missing.message
    told = dcase("reproduce", "table2", "--help").out
    assert "auto" not in told
    assert "--test-source" not in told
    assert "200,000" in told


@pytest.mark.parametrize("name", [pytest.param("figure1", marks=pytest.mark.slow), "figure2"])
def test_reproduce_a_figure(dcase, name):
    outcome = dcase("reproduce", name, *ONE, *SMALL)
    assert outcome.code == 0, outcome.err
    assert Path(f"reproduce/{name}.png").read_bytes()[:4] == b"\x89PNG"
    text = Path(f"reproduce/{name}.md").read_text()
    assert ("beta=200" if name == "figure1" else "n=24") in text


@pytest.mark.slow
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
        (("--size", "huge"), "schnet has no size 'huge'"),
        (("--train", "100000"), "leave none of"),
    ],
)
def test_reproduce_refuses(dcase, arguments, message):
    outcome = dcase("reproduce", "table1", *ONE, "--source", "xtb", *arguments)
    assert outcome.code == 1
    assert message in outcome.message


def test_reproduce_figure_1_is_of_one_network(dcase):
    outcome = dcase("reproduce", "figure1", *ONE, "--model", "cgcnn", *SMALL)
    assert "one molecule, one model and one setting" in outcome.message


def test_reproduce_stops_and_goes_on(dcase, press_ctrl_c):
    folder = Path("reproduce/runs")
    logs = "*/potential.run/metrics.csv"
    press_ctrl_c(lambda: any(p.read_text().count("\n") > 1 for p in folder.glob(logs)))
    many = ("--source", "xtb", "--size", "tiny", "--train", "24", "--epochs", "1000000", "--quiet")
    stopped = dcase("reproduce", "table1", *ONE, *many)
    assert stopped.code == 130
    assert "the same command goes on from here" in stopped.err
    assert not list(folder.glob("*/result.json"))
