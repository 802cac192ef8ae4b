"""What fit_potential leaves beside the checkpoint, for users of Python as for the command line."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from clocks import Clock

import dcase.potentials.fitting.fit_potential as fit_module
from dcase.data.dataset import AtomicDataset
from dcase.data.splits import split
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.fitting.fit_potential import fit_potential
from dcase.potentials.fitting.recipe import load_recipe

pytestmark = pytest.mark.pictures


def water(n=20, seed=3):
    shape = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    noise = 0.05 * np.random.default_rng(seed).standard_normal((n, 3, 3))
    return AtomicDataset(
        numbers=np.tile([8, 1, 1], n),
        positions=(shape + noise).reshape(-1, 3),
        ptr=3 * np.arange(n + 1),
        energies=40.0 * (noise**2).sum(axis=(1, 2)) - 2000.0,
        forces=(-80.0 * noise).reshape(-1, 3),
        fixed=np.tile([True, False, False], n),
    )


def recipe(**changes):
    return load_recipe("default", {"model.size": "tiny", "training.epochs": 2, **changes})


@pytest.mark.parametrize("free_atoms", [True, False])
def test_errors_on_test_frames_are_in_the_report(tmp_path, free_atoms):
    data, other = water(), water(5, seed=9)
    splits, chosen = split(20, 12, 4, 0), recipe(**{"loss.free_atoms": free_atoms})
    tests = {"rest": splits.test, "other waters": other}
    fit = fit_potential(data, splits, chosen, tmp_path / "a.pt", tests=tests)
    report = json.loads((tmp_path / "a.run" / "report.json").read_text())
    seen = data if free_atoms else replace(data, fixed=None)
    for key, name, frames in (
        ("test", "rest", seen.subset(splits.test)),
        ("test_other_waters", "other waters", other),
    ):
        expected = {"set": name, **evaluate_potential(fit.potential, frames).metrics}
        assert report[key] == fit.report[key] == expected
    assert len(splits.test) == 4
    assert (fit.folder / fit.figure).read_bytes().startswith(b"\x89PNG")


def test_nothing_is_tested_or_drawn_unasked(tmp_path):
    splits = split(20, 12, 4, 0)
    fit = fit_potential(water(), splits, recipe(), tmp_path / "a.pt", draw=False)
    assert "test" not in fit.report
    assert fit.figure is None
    assert not (fit.folder / "training.png").exists()


def test_preparations_are_part_of_the_training_time(tmp_path, monkeypatch):
    """Pairs, LSUV, scale factors and kernels: 20 s, of which nothing else knows."""
    monkeypatch.setattr(fit_module, "now", Clock(20.0, 30.0))
    fit = fit_potential(water(), split(20, 12, 4, 0), recipe(), tmp_path / "a.pt", draw=False)
    assert 20.0 < fit.report["training_time_s"] < 40.0
    assert 30.0 < fit.report["training_cpu_s"] < 60.0
    training = fit.potential.metadata["training"]
    assert training["seconds"] == fit.report["training_time_s"]
    assert training["cpu_seconds"] == fit.report["training_cpu_s"]


def test_the_report_is_of_the_frames_that_were_validated(tmp_path, monkeypatch):
    slow = partial(fit_module.Trainer, clock=Clock(1.0))
    monkeypatch.setattr(fit_module, "Trainer", slow)
    limited = recipe(**{"training.time_limit": 40.0, "training.epochs": 100})
    splits = split(200, 20, 170, 0)
    fit = fit_potential(water(200), splits, limited, tmp_path / "a.pt", draw=False)
    count = fit.result.validation_frames
    assert 10 < count < 170
    assert fit.report["validation"]["n_frames"] == count
    some = splits.val[[170 * k // count for k in range(count)]]
    expected = evaluate_potential(fit.potential, water(200).subset(some)).metrics
    assert fit.report["validation"] == expected
    assert any(f"validated on {count} of 170" in line for line in fit.report["warnings"])


def test_forces_no_better_than_none_are_told_of(tmp_path):
    """Forces that have nothing to do with the positions cannot be learned; those that have, can."""
    data, splits, chosen = water(), split(20, 10, 5, 0), recipe(**{"training.epochs": 200})
    lines = []
    for forces in (water(seed=4).forces, data.forces):
        frames = replace(data, forces=forces)
        fit = fit_potential(frames, splits, chosen, tmp_path / f"{len(lines)}.pt", draw=False)
        assert fit.potential.metadata["training"]["warnings"] == fit.report["warnings"]
        lines.append([line for line in fit.report["warnings"] if "nothing was learned" in line])
    (said,), none = lines
    assert none == []
    free = water(seed=4).forces[~data.fixed].reshape(20, 2, 3)[splits.val]
    assert f"that of predicting none ({1e3 * np.abs(free).mean():.3g})" in said
    assert "(it was 0.004)" in said
