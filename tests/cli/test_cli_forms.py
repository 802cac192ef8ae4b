"""Which form of a potential runs is said in one line, with the reason where it is PyTorch."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from dcase import DCCalculator
from dcase.cli.forms import form_of, training_form_of
from dcase.cli.main import main
from dcase.potentials.create import create_potential
from dcase.potentials.kernels.schnet import available
from dcase.potentials.kernels.training import training_kernel

needs_compiler = pytest.mark.skipif(not available(torch.float32), reason="no C compiler works here")


def potential(architecture="schnet", **options):
    return create_potential(
        architecture, elements=["H", "C", "O"], size="tiny", seed=0, **options
    ).eval()


@needs_compiler
def test_the_form_of_a_calculator():
    splined = potential(filter_knots=16)
    assert form_of(DCCalculator(splined)) == "form    compiled"
    assert form_of(DCCalculator(splined, optimize=False)) == "form    PyTorch, as asked"
    exact = DCCalculator(potential("cgcnn"), dtype="float64")
    assert form_of(exact).startswith("form    PyTorch, which is slower: float64 resolves")


def test_the_form_without_a_compiler(monkeypatch):
    monkeypatch.setattr(
        "dcase.potentials.kernels.schnet.load_library", lambda *names, **options: None
    )
    for architecture in ("schnet", "cgcnn"):
        line = form_of(DCCalculator(potential(architecture)))
        assert line.startswith("form    PyTorch, which is slower: no C compiler works here")
        assert "\n" not in line
    splined = potential(filter_knots=16)
    assert training_kernel(splined) is None
    assert training_form_of(splined, None, True) == "form    autograd: no C compiler works here"


@needs_compiler
def test_the_form_of_a_training():
    splined = potential(filter_knots=16, activation="ssp")
    kernel = training_kernel(splined)
    assert training_form_of(splined, kernel, True) == "form    compiled gradient"
    assert training_form_of(splined, None, False) == "form    autograd, as the recipe says"
    for other, reason in (
        (potential(filter_knots=0), "filter table"),
        (potential(filter_knots=16, activation="gelu"), "gelu"),
        (potential("cgcnn"), "cgcnn has no compiled gradient"),
    ):
        line = training_form_of(other, None, True)
        assert line.startswith("form    autograd: ")
        assert reason in line


@pytest.mark.parametrize("command", ["md", "relax", "bench"])
def test_commands_say_which_form_runs(command, tmp_path):
    path = tmp_path / "model.pt"
    potential("cgcnn").save(path)
    arguments = {
        "md": ["--model", str(path), "--steps", "2", "--equilibrate", "0", "--force-timestep"],
        "relax": ["--model", str(path), "--steps", "1"],
        "bench": [str(path), "ethanol", "--steps", "2", "--rounds", "1"],
    }[command]
    if command != "bench":
        arguments += ["--structure", "ethanol", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(main, [command, *arguments, "--dtype", "float64"])
    lines = [line for line in found.stderr.splitlines() if line.startswith("form ")]
    assert len(lines) == 1, found.output
    assert lines[0].startswith("form    PyTorch, which is slower: ")
