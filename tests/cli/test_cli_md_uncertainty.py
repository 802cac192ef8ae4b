"""``dcase md`` with an ensemble: ``--max-uncertainty`` and what comes of it."""

import json

import ase.io
import pytest
import torch

from dcase.md_runs.files.trajectory import read_series
from dcase.potentials.ensemble import load_model
from dcase.potentials.potential import load_potential


@pytest.fixture(scope="session")
def other_model(model, tmp_path_factory):
    """The same potential with slightly other weights."""
    potential = load_potential(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in potential.network.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight += 0.02 * weight.abs().mean() * noise
    path = tmp_path_factory.mktemp("other") / "other.pt"
    potential.save(path)
    return path


@pytest.fixture
def ensemble(model, other_model):
    return [
        "md", "--model", model, "--model", other_model, "--steps", "20", "--equilibrate", "0",
        "--timestep", "0.1", "--checkpoint-every", "5", "--device", "cpu",
    ]  # fmt: skip


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_flag_marks_the_steps_and_goes_on(dcase, ensemble, empty_folder):
    options = ["--max-uncertainty", "1e-6", "--on-uncertain", "flag", "--max-selected", "3"]
    done = dcase(*ensemble, *options, "--out", "m")
    assert done.code == 0, done.err
    assert "such steps are flagged" in done.err
    report = report_of(empty_folder / "m")
    assert report["status"] == "finished"
    found = report["uncertainty"]
    assert (found["share_above"], found["steps"]) == (1.0, 21)
    assert found["max_eV_A"] == read_series(empty_folder / "m")["uncertainty"].max()
    frames = ase.io.read("m/selected.extxyz", ":")
    assert 1 <= len(frames) == found["selected"] <= 3
    shown = " ".join(done.out.split())
    assert "100 % of the steps above 1e-06 eV/A" in shown
    assert report["model"] == "ethanol.pt, other.pt"
    assert (empty_folder / "m" / "uncertainty.png").exists()


def test_stop_exits_with_1_and_says_why(dcase, ensemble, empty_folder):
    done = dcase(*ensemble, "--max-uncertainty", "1e-6", "--out", "m")
    assert done.code == 1
    status = report_of(empty_folder / "m")["status"]
    assert status.startswith("stopped early: the uncertainty rose to ")
    assert status.endswith(" eV/A (limit 1e-06 eV/A) at step 0")
    assert status in done.err
    assert len(ase.io.read("m/selected.extxyz", ":")) == 1
    again = dcase(*ensemble, "--max-uncertainty", "1e-6", "--out", "m", "--resume")
    assert again.code == 1
    assert "label the frames of selected.extxyz and train again" in again.message


@pytest.mark.slow
def test_resume_equals_one_run(dcase, ensemble, empty_folder):
    options = ["--max-uncertainty", "1e-6", "--on-uncertain", "flag"]
    assert dcase(*ensemble, *options, "--out", "parts").code == 0
    longer = [*ensemble, *options, "--steps", "33"]
    assert dcase(*longer, "--out", "parts", "--resume").code == 0
    assert dcase(*longer, "--out", "whole").code == 0
    parts, whole = (empty_folder / name / "selected.extxyz" for name in ("parts", "whole"))
    assert parts.read_bytes() == whole.read_bytes()


def test_one_checkpoint_of_an_ensemble(dcase, ensemble, model, other_model, empty_folder):
    load_model([model, other_model]).save("ensemble.pt")
    alone = ["md", "--model", "ensemble.pt", *ensemble[5:]]
    assert dcase(*alone, "--out", "one").code == 0
    assert dcase(*ensemble, "--out", "two").code == 0
    one, two = (read_series(empty_folder / name)["uncertainty"] for name in ("one", "two"))
    assert one.tolist() == two.tolist()
    report = report_of(empty_folder / "one")
    assert report["uncertainty"]["limit_eV_A"] is None
    assert not (empty_folder / "one" / "selected.extxyz").exists()


def test_a_single_potential_has_no_uncertainty(dcase, model, empty_folder):
    done = dcase("md", "--model", model, "--max-uncertainty", "0.3", "--device", "cpu")
    assert done.code == 1
    assert "--max-uncertainty needs an ensemble: --model is a single potential" in done.message
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_the_limit_is_a_positive_number(dcase, ensemble, value):
    assert dcase(*ensemble, "--max-uncertainty", value).code == 2
