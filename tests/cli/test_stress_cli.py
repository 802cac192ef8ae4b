"""Stress from file to evaluation at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator


@pytest.fixture
def copper():
    """Strained cells in ``cu.extxyz``, the same with virials in ``virials.extxyz``; a molecule."""
    rng = np.random.default_rng(0)
    frames, virials = [], []
    for number in range(10):
        atoms = bulk("Cu", cubic=True) if number else molecule("H2", vacuum=3.0)
        if not number:
            atoms.numbers[:] = 29
            atoms.positions[1] = atoms.positions[0] + [2.4, 0, 0]
        strain = np.eye(3) + 0.03 * rng.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        other = atoms.copy()
        if number:
            labels["stress"] = atoms.get_stress()
            other.info["my_virials"] = -atoms.get_volume() * atoms.get_stress(voigt=False)
        other.calc = SinglePointCalculator(other, **{k: labels[k] for k in ("energy", "forces")})
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
        virials.append(other)
    ase.io.write("cu.extxyz", frames)
    ase.io.write("virials.extxyz", virials)


@pytest.fixture
def run(dcase):
    def words(*words, code=0):
        found = dcase(*words)
        assert found.code == code, found.err
        return found.out + found.err

    return words


SMALL = ("--recipe", "materials", "--size", "tiny", "--epochs", 2, "--n-val", 3, "--n-train", 7)


def test_train_evaluate_and_resume_with_stress(copper, run):
    said = run("train", "xyz", "cu.extxyz", *SMALL, "--out", "a.pt")
    assert "S GPa" in said
    report = json.loads(Path("a.run/report.json").read_text())
    assert report["validation"]["n_stress_frames"] > 0
    header = Path("a.run/metrics.csv").read_text().splitlines()[0]
    assert "val_stress_mae" in header
    # The same with virials: the same dataset, hence the same weights.
    run("train", "xyz", "virials.extxyz", *SMALL, "--virial-key", "my_virials", "--out", "v.pt")
    other = json.loads(Path("v.run/report.json").read_text())
    key = "stress_rmse_gpa"
    assert other["validation"][key] == pytest.approx(report["validation"][key], rel=1e-4)
    # Stopped after an epoch and resumed.
    run("train", "xyz", "cu.extxyz", *SMALL, "--out", "b.pt", "--schedule", "constant")
    cut = [*SMALL[:4], "--epochs", 1, *SMALL[6:], "--schedule", "constant", "--out", "c.pt"]
    run("train", "xyz", "cu.extxyz", *cut)
    cut[5] = 2
    run("train", "xyz", "cu.extxyz", *cut, "--resume")
    b, c = (json.loads(Path(f"{n}.run/report.json").read_text())["validation"] for n in "bc")
    assert b == c
    cut += ["--stress-weight", 7]
    assert "stress_weight" in run("train", "xyz", "cu.extxyz", *cut, "--resume", code=1)
    run("evaluate", "a.pt", "cu.extxyz", "--json", "e.json", "--plot", "p.png")
    found = json.loads(Path("e.json").read_text())
    assert found["n_stress_frames"] == 9
    assert Path("p_stress.png").read_bytes()[:4] == b"\x89PNG"


def test_what_lacks_stress_is_refused(copper, run):
    frames = ase.io.read("cu.extxyz", ":")
    frames[3].calc.results.pop("stress")
    ase.io.write("some.extxyz", frames)
    said = run("train", "xyz", "some.extxyz", *SMALL, code=1)
    assert "frame 3 has no stress" in said
    ase.io.write("none.extxyz", frames[:1] * 5)
    assert "none is periodic" in run("train", "xyz", "none.extxyz", *SMALL, code=1)
    words = ("--stress-key", "a", "--virial-key", "b")
    assert "exclude each other" in run("data", "check", "cu.extxyz", *words, code=2)
