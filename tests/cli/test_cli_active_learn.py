"""``dcase active-learn``, with a labeller that costs nothing."""

import json

import ase.io
import numpy as np
import pytest

LABELLER = """
import os, signal
from ase.calculators.emt import EMT

calls = []

def make():
    return EMT()

def make_with_ctrl_c():
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return EMT()

def broken():
    class Broken(EMT):
        def calculate(self, *args):
            raise RuntimeError("licence expired")
    return Broken()
"""


@pytest.fixture
def command(empty_folder):
    (empty_folder / "mine.py").write_text(LABELLER)
    cluster = ase.Atoms("Cu4", [[0, 0, 0], [2.35, 0, 0], [1.2, 2.05, 0], [1.2, 0.7, 1.95]])
    ase.io.write("cu4.xyz", cluster)
    return [
        "active-learn", "--structure", "cu4.xyz", "--initial", "5", "--labeller", "mine.py:make",
        "--theory", "EMT", "--rounds", "1", "--per-round", "2", "--members", "2", "--walkers", "2",
        "--steps", "20", "--timestep", "3", "--frame-every", "5", "--temperature", "300",
        "--temperature", "900", "--max-uncertainty", "5", "--size", "tiny", "--batch-size", "4",
        "--training-steps", "4", "--device", "cpu", "--out", "al",
    ]  # fmt: skip


def curve_of(folder):
    return json.loads((folder / "learning_curve.json").read_text())


def without(command, *options):
    """The command less these options and their values."""
    kept = list(command)
    for option in options:
        place = kept.index(option)
        del kept[place : place + 2]
    return kept


@pytest.mark.pictures
def test_the_whole_loop(dcase, command, empty_folder):
    done = dcase(*command)
    assert done.code == 0, done.err
    assert "labelling 5 first frames with EMT" in done.err
    assert "round 0: sampled 0.12 ps" in done.err
    assert "Errors on members' validation frames" in done.out
    assert "ensemble  al/ensemble.pt" in done.out
    curve = curve_of(empty_folder / "al")
    assert [row["labels"] for row in curve["rounds"]] == [5, 7]
    assert curve["level_of_theory"] == "EMT"
    ran = dcase("md", "--model", "al/ensemble.pt", "--structure", "cu4.xyz", "--steps", "5",
                "--equilibrate", "0", "--max-uncertainty", "1e3", "--device", "cpu")  # fmt: skip
    assert ran.code == 0, ran.err


@pytest.mark.slow
def test_labelled_frames_a_test_set_and_a_second_curve(dcase, command, empty_folder):
    assert dcase(*command).code == 0
    again = without(command, "--structure", "--initial", "--out")
    again += ["--data", "al/labelled.extxyz", "--test", "al/labelled.extxyz", "--initial", "6"]
    again += ["--strategy", "random", "--rounds", "0", "--quiet"]
    done = dcase(*again, "--out", "other", "--against", "al")
    assert done.code == 0, done.err
    assert done.err == ""
    assert "Errors on the test set" in done.out
    curve = curve_of(empty_folder / "other")
    assert [row["labels"] for row in curve["rounds"]] == [6]
    assert curve["rounds"][0]["errors"]["n_frames"] == 7
    assert (empty_folder / "other" / "learning_curve.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_says_how_to_go_on(dcase, command, empty_folder):
    pressing = [*without(command, "--labeller"), "--labeller", "mine.py:make_with_ctrl_c"]
    done = dcase(*pressing)
    assert done.code == 130
    assert "stopped while labelling" in done.err
    assert "the same command with --resume goes on" in done.err
    assert "Traceback" not in done.err
    # With another labeller it would be another run; the same one does not press any more.
    source = (empty_folder / "mine.py").read_text().replace("== 4", "== -1")
    (empty_folder / "mine.py").write_text(source)
    assert dcase(*pressing, "--resume").code == 0
    assert dcase(*command[:-1], "whole").code == 0
    one, two = (empty_folder / name / "labelled.extxyz" for name in ("al", "whole"))
    assert one.read_bytes() == two.read_bytes()
    first, second = curve_of(empty_folder / "al"), curve_of(empty_folder / "whole")
    assert first["rounds"] == second["rounds"]


def test_ctrl_c_in_training(dcase, command, empty_folder, press_ctrl_c):
    many = [*without(command, "--training-steps"), "--training-steps", "1000000"]
    logs = "al/round-00/members/*.run/metrics.csv"
    press_ctrl_c(lambda: any(p.read_text().count("\n") > 1 for p in empty_folder.glob(logs)))
    done = dcase(*many)
    assert done.code == 130
    assert "stopped while training the ensemble of round 0" in done.err
    assert (empty_folder / "al" / "round-00" / "members" / "member-0.run" / "state.pt").exists()


def test_an_earlier_run_is_not_overwritten(dcase, command, empty_folder):
    assert dcase(*command, "--rounds", "0").code == 0
    before = (empty_folder / "al" / "labelled.extxyz").read_bytes()
    done = dcase(*command, "--seed", "1")
    assert done.code == 1
    assert "al already exists and holds a run" in done.message
    changed = dcase(*command, "--seed", "1", "--resume")
    assert "seed was 0, now 1" in changed.message
    assert (empty_folder / "al" / "labelled.extxyz").read_bytes() == before
    assert dcase(*command, "--rounds", "0", "--seed", "1", "--overwrite").code == 0
    assert (empty_folder / "al" / "labelled.extxyz").read_bytes() != before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--labeller", "mine.py:absent"], "mine.py has no function 'absent'"),
        (["--labeller", "absent.py:make"], "no such file: absent.py"),
        (["--labeller", "mine.py:broken"], "RuntimeError: licence expired"),
        (["--structure", "absent.xyz"], "no such file, and no molecule of that name"),
        (["--test", "absent.xyz"], "no such file: absent.xyz"),
        (["--test", "cu4.xyz"], "has no energy"),
        (["--against", "nowhere"], "nowhere: holds no learning_curve.json"),
        (["--recipe", "absent"], "no recipe 'absent'"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available here"),
    ],
)
def test_wrong_input_is_one_line(dcase, command, options, reason):
    done = dcase(*command, *options)
    assert done.code == 1
    assert reason in done.message
    assert done.out == ""


def test_labels_of_another_method_are_refused(dcase, command, empty_folder):
    assert dcase(*command, "--rounds", "0").code == 0
    frames = ase.io.read("al/labelled.extxyz", ":")
    for frame in frames:
        frame.calc.results["forces"] = frame.calc.results["forces"] + np.array([0.3, 0.0, 0.0])
    ase.io.write("wrong.extxyz", frames)
    again = without(command, "--structure", "--initial", "--out")
    done = dcase(*again, "--data", "wrong.extxyz", "--out", "other")
    assert done.code == 1
    assert "the labels of wrong.extxyz are not those of the labeller (EMT)" in done.message


@pytest.mark.parametrize(
    "options",
    [
        ["--data", "al/labelled.extxyz"],
        ["--resume", "--overwrite"],
        ["--epochs", "3"],
        ["--members", "1"],
        ["--temperature", "-5"],
        ["--max-uncertainty", "nan"],
    ],
)
def test_wrong_usage(dcase, command, options):
    assert dcase(*command, *options).code == 2


def test_either_frames_or_a_structure(dcase, command):
    done = dcase(*without(command, "--structure"))
    assert done.code == 2
    assert "give either --data FILE or --structure NAME|FILE" in done.err


def test_defaults_are_those_of_the_library():
    from dcase.cli.active_learn import active_learn
    from dcase.md_runs.active.settings import ActiveSettings

    defaults = {p.name: p.default for p in active_learn.params}
    library = ActiveSettings()
    for option, name in (
        ("timestep", "timestep_fs"),
        ("friction", "friction_per_fs"),
        ("max_force", "max_force_eV_A"),
        ("temperature", "temperatures_K"),
        *((n, n) for n in ("rounds", "per_round", "members", "strategy", "walkers", "steps")),
        *((n, n) for n in ("frame_every", "validation", "dtype", "seed")),
    ):
        assert defaults[option] == getattr(library, name), option


@pytest.mark.slow
def test_ethanol_with_xtb(dcase, empty_folder):
    pytest.importorskip("tblite")
    done = dcase(
        "active-learn", "--structure", "ethanol", "--initial", "4", "--rattle", "0.03",
        "--rounds", "1", "--per-round", "1", "--members", "2", "--walkers", "1", "--steps", "4",
        "--frame-every", "2", "--max-uncertainty", "100", "--size", "tiny", "--training-steps",
        "3", "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    curve = curve_of(empty_folder / "active")
    assert [row["labels"] for row in curve["rounds"]] == [4, 5]
    assert curve["level_of_theory"] == "GFN2-xTB"
    # The ensemble knows its molecule.
    ran = dcase("md", "--model", "active/ensemble.pt", "--steps", "2", "--equilibrate", "0",
                "--device", "cpu")  # fmt: skip
    assert "ethanol (shipped geometry)" in ran.err
