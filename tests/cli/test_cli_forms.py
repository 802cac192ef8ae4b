"""Which form of a potential runs is said in one line, with the reason where it is PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from cli_inputs import save_some
from click.testing import CliRunner

from dcase import DCCalculator
from dcase.cli.forms import form_of, training_form_of
from dcase.cli.main import main
from dcase.potentials.create import create_potential
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.kernels.forms import training_form

needs_compiler = pytest.mark.skipif(not available(torch.float32), reason="no C compiler works here")


def potential(architecture="schnet", **options):
    return create_potential(
        architecture, elements=["H", "C", "O"], size="tiny", seed=0, **options
    ).eval()


@needs_compiler
def test_the_form_of_a_calculator():
    n = torch.get_num_threads()
    threads = "C, 1 thread" if n == 1 else f"C, up to {n} threads"
    splined = potential(filter_knots=16)
    assert form_of(DCCalculator(splined)) == f"form    compiled ({threads})"
    assert form_of(DCCalculator(splined, optimize=False)) == "form    PyTorch - as asked"
    exact = DCCalculator(potential("cgcnn"), dtype="float64")
    assert form_of(exact).startswith("form    PyTorch - float64 resolves")


def test_the_form_without_a_compiler(monkeypatch):
    monkeypatch.setattr(
        "dcase.potentials.kernels.atom_kernel.load_library", lambda *names, **options: None
    )
    for architecture in ("schnet", "cgcnn"):
        line = form_of(DCCalculator(potential(architecture)))
        assert line == "form    PyTorch - no C compiler works here; up to 40 times slower"
    splined = potential(filter_knots=16)
    kernel, reason = training_form(splined)
    assert kernel is None
    line = training_form_of(splined, None, True)
    assert line == f"form    PyTorch - {reason}"
    assert reason == "no C compiler works here; up to 40 times slower"


@needs_compiler
def test_the_form_of_a_training():
    splined = potential(filter_knots=16, activation="ssp")
    kernel, reason = training_form(splined)
    assert reason == ""
    assert training_form_of(splined, kernel, True).startswith("form    compiled (C, ")
    assert training_form_of(splined, None, False) == "form    PyTorch - as the recipe says"
    for other, reason in (
        (potential(filter_knots=0), "schnet without filter_knots has no compiled gradient"),
        (
            potential(filter_knots=16, activation="gelu"),
            "schnet with gelu has no compiled gradient",
        ),
        (potential("cgcnn"), "cgcnn has no compiled gradient"),
    ):
        line = training_form_of(other, None, True)
        assert line.endswith(reason)
        assert line.startswith("form    PyTorch - ")


@pytest.mark.parametrize("command", ["md", "relax", "bench", "check"])
def test_commands_say_which_form_runs(command, tmp_path):
    path = tmp_path / "model.pt"
    potential("cgcnn").save(path)
    arguments = {
        "md": ["--model", str(path), "--steps", "2", "--equilibrate", "0", "--force-timestep"],
        "relax": ["--model", str(path), "--steps", "1"],
        "bench": [str(path), "ethanol", "--steps", "2", "--rounds", "1"],
        "check": [str(path), "ethanol"],
    }[command]
    if command in ("md", "relax"):
        arguments += ["--structure", "ethanol", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(main, [command, *arguments, "--dtype", "float64"])
    lines = [line for line in found.stderr.splitlines() if line.startswith("form ")]
    assert len(lines) == 1, found.output
    assert lines[0].startswith("form    PyTorch - float64 resolves")
    record = {"md": "report.json", "relax": "relax.json"}.get(command)
    if record:
        kept = json.loads((tmp_path / "out" / record).read_text())["form"]
        assert lines[0] == f"form    {kept}"


def test_an_evaluation_of_many_frames_says_and_keeps_its_form(dcase, empty_folder):
    save_some("some.npz", "ethanol", 5)
    potential("cgcnn").save("model.pt")
    done = dcase("evaluate", "model.pt", "some.npz", "--batch-size", "3", "--json", "e.json")
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("form ")]
    kept = json.loads((empty_folder / "e.json").read_text())["form"]
    assert line == f"form    {kept}" == "form    PyTorch - 3 frames at a time"


def test_folds_say_their_form_once(dcase, empty_folder):
    save_some("some.npz", "ethanol", 12)
    done = dcase(
        "cross-validate", "md17", "-m", "ethanol", "--source", "some.npz", "--size", "tiny",
        "--model", "cgcnn", "--folds", "2", "--epochs", "1", "--jobs", "1", "--out", "e.pt",
    )  # fmt: skip
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("form ")]
    assert lines == ["form    PyTorch - cgcnn has no compiled gradient"]
    folds = list(empty_folder.glob("e.run/*.run/report.json"))
    assert len(folds) == 2
    for fold in folds:
        assert json.loads(fold.read_text())["form"] == lines[0].removeprefix("form    ")


def test_without_a_compiler_one_warning_and_one_form_for_all_folds(tmp_path):
    save_some(tmp_path / "some.npz", "ethanol", 12)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dcase", "cross-validate", "md17", "-m", "ethanol"),
            *("--source", "some.npz", "--size", "tiny", "--folds", "2", "--epochs", "1"),
            *("--jobs", "2", "--threads", "1", "--out", "e.pt"),
        ],
        cwd=tmp_path,
        env={**os.environ, "CC": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stderr.splitlines()
    (warned,) = [line for line in lines if "no-such-compiler" in line]
    assert warned.startswith("WARNING: no compiled form, PyTorch is used, up to 40 times slower")
    forms = [line for line in lines if line.startswith("form ")]
    assert forms == ["form    PyTorch - no C compiler works here; up to 40 times slower"]
    assert "KernelWarning" not in done.stderr
