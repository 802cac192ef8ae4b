"""``dcase md --replicas`` and ``--no-optimize``."""

import json
from pathlib import Path

import pytest

from dcase.potentials.potential import find_checkpoint

SHIPPED, _ = find_checkpoint("aspirin_irelu.pt")
RUN = [
    "md", "--model", SHIPPED, "--replicas", "3", "--steps", "40", "--equilibrate", "10",
    "--checkpoint-every", "20", "--out", "r",
]  # fmt: skip


def test_replicas_from_the_command_line(dcase):
    done = dcase(*RUN)
    assert done.code == 0, done.err
    assert "3 replicas of C9H8O4" in done.out
    assert "replica-steps/s" in done.out
    report = json.loads(Path("r/report.json").read_text())
    assert [entry["replica"] for entry in report["replicas_each"]] == [1, 2, 3]
    assert report["steps"] == 40
    assert {p.name for p in Path("r").iterdir()} == {
        "run.json", "report.json", "drift.png", "final.extxyz", "replicas.h5", "state",
    }  # fmt: skip
    assert "already exists and holds a run" in dcase(*RUN).message
    more = [*RUN, "--resume", "--steps", "60"]
    assert dcase(*more).code == 0
    assert json.loads(Path("r/report.json").read_text())["steps"] == 60
    # A single copy has another kind of folder.
    assert (
        "holds a run of another kind (md replicas)"
        in dcase("md", "--model", SHIPPED, "--steps", "5", "--out", "r").message
    )


def test_replicas_stopped_by_ctrl_c(dcase, press_ctrl_c):
    state = Path("r/state")  # rows are written once it is under way
    press_ctrl_c(lambda: any(path.stat().st_size for path in state.glob("*.f64")))
    done = dcase(*RUN, "--steps", "1000000000", "--timestep", "1e-4")
    assert done.code == 130
    assert done.err.strip().splitlines()[-1] == (
        "interrupted; the same command with --resume goes on"
    )
    assert json.loads(Path("r/report.json").read_text())["status"] == "interrupted"


def test_replicas_that_all_blow_up(dcase):
    done = dcase(*RUN, "--timestep", "6", "--force-timestep")
    assert done.code == 1
    assert "no replica is left" in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ensemble", "bussi"], "replicas run NVE"),
        (["--dt-scan"], "single copy"),
        (["--constrain", "all-bonds"], "cannot hold bonds"),
    ],
)
def test_replicas_refuse(dcase, options, words):
    assert words in dcase(*RUN, *options).message
    assert not Path("r").exists()


@pytest.mark.slow
def test_optimize_gives_the_same_run(dcase):
    energies = []
    for option in ("--optimize", "--no-optimize"):
        words = ["--steps", "20", "--equilibrate", "0", "--dtype", "float64", "--overwrite"]
        assert dcase("md", "--model", SHIPPED, *words, option, "--out", "one").code == 0
        report = json.loads(Path("one/report.json").read_text())
        energies.append(report["energy_drift"]["max_deviation_mev_per_atom"])
    assert energies[0] == pytest.approx(energies[1], rel=1e-6)
