"""``dcase md --constrain``."""

import json

import h5py
import pytest


@pytest.fixture
def short(model):
    return ["md", "--model", model, "--steps", "20", "--equilibrate", "10", "--device", "cpu"]


def test_held_bonds_are_in_report_page_and_trajectory(dcase, short, empty_folder, short_scan):
    done = dcase(*short, "--constrain", "bonds-to-hydrogen", "--dt-scan", "--timestep", "0.01")
    assert done.code == 0, done.err
    assert "bonds-to-hydrogen held" in done.err
    assert "all 6 bonds to hydrogen to" in done.out
    folder = empty_folder / "md_run"
    report = json.loads((folder / "report.json").read_text())
    held = report["constraints"]
    assert (report["formula"], report["n_dof"]) == ("C2H6O", 15)
    assert (held["kind"], held["n_bonds"], held["n_dof_removed"]) == ("bonds-to-hydrogen", 6, 6)
    assert all("H" in name for name in held["bonds"])
    assert held["max_violation_A"] < 1e-11
    assert "held bonds" in (folder / "report.html").read_text()
    with h5py.File(folder / "trajectory.h5") as file:
        assert file["dcase"].attrs["constrain"] == "bonds-to-hydrogen"


def test_nothing_is_held_unless_asked(dcase, short, empty_folder):
    done = dcase(*short, "--quiet")
    assert done.code == 0, done.err
    report = json.loads((empty_folder / "md_run" / "report.json").read_text())
    assert report["constraints"] is None
    assert report["n_dof"] == 21
    assert "held bonds" not in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--constrain", "angles"], "'angles' is not one of 'none', 'bonds-to-hydrogen'"),
        (
            ["--constrain", "all-bonds", "--ensemble", "nose-hoover"],
            "nose-hoover cannot hold bonds: use bussi or langevin",
        ),
    ],
)
def test_refusals_are_one_line(dcase, short, empty_folder, options, message):
    done = dcase(*short, *options)
    assert done.code != 0
    assert message in done.err
    assert "Traceback" not in done.err


def test_resume_refuses_other_bonds(dcase, short, empty_folder):
    assert dcase(*short, "--constrain", "all-bonds").code == 0
    again = [*short, "--steps", "30", "--resume"]
    done = dcase(*again, "--constrain", "bonds-to-hydrogen")
    assert done.code != 0
    assert "constrain was 'all-bonds', now 'bonds-to-hydrogen'" in done.err
    assert dcase(*again, "--constrain", "all-bonds").code == 0
