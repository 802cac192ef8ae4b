"""The frontier benchmark: what is measured again, errors and their units, CPU time, the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import contest
import frontier
import frontier_results
import numpy as np
import pytest

ABOUT = {"molecule": "aspirin", "n_train": 950}


def row(program: str, budget: float, forces: float, **more: object) -> dict[str, object]:
    return {
        "program": program,
        "budget": budget,
        "cpu_s": budget + 2.4,
        "energy_mae": 0.5,
        "forces_mae": forces,
        "step_ms": 0.1234,
        "about": ABOUT,
        **more,
    }


def store(folder: Path, content: dict[str, object]) -> None:
    entry = frontier.Entry(content["program"], content["budget"])
    (folder / f"{entry.name}.json").write_text(json.dumps(content))


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    entries = frontier.grid(["sgdml", "dcase:painn"], [60.0, 20.0])
    assert [e.budget for e in entries] == [20, 20, 60, 60]
    store(tmp_path, row("dcase:painn", 20.0, 1.0))
    left = frontier.pending(entries, tmp_path, ABOUT)
    assert left == [e for e in entries if (e.program, e.budget) != ("dcase:painn", 20.0)]


def test_entries_of_other_frames_are_refused(tmp_path: Path) -> None:
    store(tmp_path, row("sgdml", 20.0, 1.0))
    entries = frontier.grid(["sgdml"], [20.0])
    with pytest.raises(SystemExit, match="other frames"):
        frontier.pending(entries, tmp_path, {**ABOUT, "molecule": "ethanol"})


def test_names_of_files_are_of_one_entry_each() -> None:
    entries = frontier.grid(list(frontier.PROGRAMS), [2.0, 2.5, 20.0])
    assert len({entry.name for entry in entries}) == len(entries)


def test_mean_errors() -> None:
    labels = {"test_energies": np.array([1.0, -2.0]), "test_forces": np.zeros((2, 3, 3))}
    forces = np.zeros((2, 3, 3))
    forces[0, 1, 2] = -1.8
    found = frontier.mean_errors(np.array([1.5, -3.0]), forces, labels)
    assert found == pytest.approx({"energy_mae": 0.75, "forces_mae": 0.1})


@pytest.mark.parametrize("broken", ["nan", "shape"])
def test_predictions_that_are_none(broken: str) -> None:
    labels = {"test_energies": np.zeros(2), "test_forces": np.zeros((2, 3, 3))}
    # [2, 1] against [2] would be broadcast to [2, 2]
    energies = np.array([0.0, np.nan]) if broken == "nan" else np.zeros((2, 1))
    with pytest.raises(frontier.Failed):
        frontier.mean_errors(energies, np.zeros((2, 3, 3)), labels)


def test_cpu_time_of_a_process_has_its_children(tmp_path: Path) -> None:
    work = "import time\nwhile time.process_time() < {}: pass\n"
    child = work.format(0.4)
    outer = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}], check=True)"
    seconds = frontier.run([sys.executable, "-c", outer], tmp_path / "log")
    assert seconds > 0.4  # the process itself does nothing


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(frontier.Failed, match="no such thing"):
        frontier.run([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "log")


def test_the_same_frames_for_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def write(name: str, count: int) -> Path:
        forces = rng.normal(size=(count, 3, 3))
        path = tmp_path / name
        np.savez(
            path,
            nuclear_charges=np.array([8, 1, 1], np.uint8),
            coords=rng.normal(size=(count, 3, 3)),
            energies=np.zeros(count),
            forces=np.zeros_like(forces),
            old_energies=rng.normal(size=count),
            old_forces=forces,
        )
        return path

    train, test = write("train.npz", 1000), write("test.npz", 7)
    found = frontier.prepared(train, test)
    with np.load(train) as a, np.load(test) as b:
        known = np.concatenate([found["train_energies"], found["val_energies"]])
        assert np.array_equal(np.sort(known), np.sort(a["old_energies"]))
        at = {float(e): f for e, f in zip(a["old_energies"], a["old_forces"], strict=True)}
        for energy, forces in zip(found["val_energies"], found["val_forces"], strict=True):
            assert np.array_equal(at[float(energy)], forces)
        assert np.array_equal(found["test_forces"], b["old_forces"])
    assert len(found["train_energies"]) == 950
    again = frontier.prepared(train, test)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_the_rate_ends_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budget, spent = contest.Budget(100.0), [0.0]
    # user, system, and those of children; not the time on the wall
    monkeypatch.setattr(contest.os, "times", lambda: (*(s / 4 for s in spent * 4), 1e9))
    rates = []
    for seconds in (0.0, 50.0, 100.0, 110.0):
        spent[0] = seconds
        rates.append(budget.cosine())
    assert rates == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert budget.share() == 1.0


def test_table(tmp_path: Path) -> None:
    for each in (
        row("sgdml", 60.0, 1.4),
        row("dcase:painn", 60.0, 0.7),
        row("dcase:painn", 20.0, 1.1),
    ):
        store(tmp_path, each)
    lines = frontier_results.table(frontier_results.measured(tmp_path)).splitlines()
    assert lines[2:] == [
        "| dcase, PaiNN | 20 | 22 | 0.500 | **1.100** | 0.123 |",
        "| dcase, PaiNN | 60 | 62 | 0.500 | **0.700** | 0.123 |",
        "| sGDML | 60 | 62 | 0.500 | 1.400 | 0.123 |",
    ]


def test_every_program_has_a_style() -> None:
    assert set(frontier.PROGRAMS) == set(frontier_results.STYLES)


def test_nothing_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"frontier\.py"):
        frontier_results.measured(tmp_path)
