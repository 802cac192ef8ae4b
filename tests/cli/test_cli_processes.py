"""Training in two processes (gloo), by torchrun and by ``--devices``: the same as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_inputs import ETHANOL
from processes import GUARD

from dcase.cli.launch import launch
from dcase.errors import OptionError
from dcase.potentials.potential import load_potential

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
ONE = [sys.executable, "-m", "dcase"]
TWO = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "dcase"]
RUN = [*ETHANOL, "--epochs", "3", "--seed", "2"]


def start(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=GUARD, env=environment, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [[*ONE, *RUN, "--devices", "2"], [*TWO, *RUN, "--devices", "2"], [*TWO, *RUN]],
    ids=["devices", "torchrun and devices", "torchrun"],
)
def test_two_processes_train_like_one(command, dcase):
    done = start([*command, "--out", "two.pt"])
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("two.run/report.json").read_text())["processes"] == 2
    # Only the first process speaks.
    assert done.stdout.count("potential  two.pt") == 1
    assert done.stderr.count("20 frames to train") == 1
    assert dcase(*RUN, "--out", "one.pt").code == 0
    one, two = (load_potential(f"{n}.pt").network.state_dict() for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [[*ONE, *RUN, "--devices", "2"], [*TWO, *RUN]], ids=["devices", "torchrun"]
)
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--n-train", "5000"], "there are only 1000"),
        (["--source", "nowhere.npz"], "no such file: nowhere.npz"),
        (["--lr", "1e9", "--clip-norm", "0"], "became NaN or infinite"),
    ],
)
def test_one_line_of_two_processes(command, options, reason):
    done = start([*command, *options, "--out", "two.pt"])
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("dcase: ")]
    assert len(errors) == 1, done.stderr
    assert reason in errors[0]
    assert "internal error" not in done.stderr
    assert not Path("two.pt").exists()


@pytest.fixture
def torchrun_of_two(monkeypatch):
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "x"),
        ("GROUP_RANK", "0"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("WORLD_SIZE", "2"),
    ):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("devices", "nodes"), [(3, 1), (2, 2)])
def test_numbers_that_contradict_torchrun(torchrun_of_two, devices, nodes):
    with pytest.raises(OptionError, match="but torchrun started"):
        launch(devices, nodes, "cpu")


def test_one_process_needs_no_launch():
    assert launch(1, 1, "cpu") is None
