"""``dcase cross-validate``: an ensemble that the other commands take, resumed and refused."""

import json
import re
import signal
from pathlib import Path

import ase.io
import numpy as np
import pytest
from cli_inputs import save_some

from dcase import DCCalculator
from dcase.potentials.ensemble import Ensemble, load_model

RUN = [
    "cross-validate", "md17", "-m", "ethanol", "--source", "some.npz", "--size", "tiny",
    "--filter-knots", "0", "--device", "cpu", "--folds", "3", "--epochs", "2", "--seed", "0",
    "--out", "e.pt",
]  # fmt: skip


@pytest.fixture(autouse=True)
def some(empty_folder):
    save_some("some.npz", "ethanol", 24)


def test_ensemble_from_the_command_line(dcase):
    done = dcase(*RUN, "--jobs", "1")
    assert done.code == 0, done.err
    assert "18 frames in 3 folds, 6 to test, of 24" in done.err
    for line in ("fold 3", "mean", "std", "test (6), members", "test (6), ensemble", "forces z"):
        assert re.search(rf"^ *{re.escape(line)} +\S", done.out, re.MULTILINE), line
    assert "fold" not in done.out.split("ensemble  e.pt")[1].replace("folds'", "")
    report = json.loads(Path("e.run/report.json").read_text())
    assert report["n_folds"] == 3
    ensemble = load_model("e.pt")
    assert isinstance(ensemble, Ensemble)
    assert len(ensemble) == 3
    shown = dcase("info", "e.pt")
    assert shown.code == 0, shown.err
    assert "ensemble of 3: painn" in shown.out
    with np.load("some.npz") as file:
        atoms = ase.Atoms(file["z"], file["R"][0])
    atoms.calc = DCCalculator("e.pt")
    atoms.get_forces()
    assert atoms.calc.results["forces_std"].shape == (9, 3)


def test_options_of_frames(dcase):
    done = dcase(*RUN, "--jobs", "1", "--n-train", "15", "--n-test", "0", "--quiet")
    assert done.code == 0, done.err
    assert done.err == ""
    assert "test" not in done.out
    assert json.loads(Path("e.run/report.json").read_text())["n_frames_fold"] == [5, 5, 5]
    assert "only 24" in dcase(*RUN, "--overwrite", "--n-train", "50").message


def test_resume_and_overwrite(dcase):
    assert dcase(*RUN, "--jobs", "1").code == 0
    first = Path("e.pt").read_bytes()
    assert "--resume goes on" in dcase(*RUN).message
    done = dcase(*RUN, "--resume")
    assert done.code == 0
    assert "started" not in done.err  # nothing is trained again
    assert len(Path("e.pt").read_bytes()) == len(first)
    assert "other folds" in dcase(*RUN, "--resume", "--folds", "4").message
    assert dcase(*RUN, "--overwrite", "--folds", "2", "--jobs", "1").code == 0
    assert len(load_model("e.pt")) == 2


def test_ctrl_c_and_resume(dcase, ctrl_c_interrupts, monkeypatch):
    from dcase.potentials.fitting import fold_processes

    trained, fit = [], fold_processes.fit_potential

    def pressed(*arguments, on_step, **options):
        trained.append(arguments)

        def press(progress):
            if len(trained) == 2 and progress.step == 2:
                signal.raise_signal(signal.SIGINT)
            if on_step:
                on_step(progress)

        return fit(*arguments, on_step=press, **options)

    monkeypatch.setattr(fold_processes, "fit_potential", pressed)
    some_epochs = [*RUN, "--epochs", "3", "--jobs", "1"]
    done = dcase(*some_epochs)
    assert done.code == 130
    assert done.err.strip().splitlines()[-1].startswith("stopped; what there is is kept in e.run")
    assert not Path("e.pt").exists()
    kept = Path("e.run/fold-1.pt").stat().st_mtime_ns
    done = dcase(*some_epochs, "--resume")
    assert done.code == 0
    assert Path("e.run/fold-1.pt").stat().st_mtime_ns == kept
    assert len(trained) == 4  # the second goes on, the third follows


def test_ctrl_c_reaches_the_processes(dcase, press_ctrl_c):
    press_ctrl_c(lambda: len(list(Path().glob("e.run/fold-*.run/state.pt"))) == 2)
    many = [*RUN, "--epochs", "1000000", "--jobs", "2", "--checkpoint-every", "0.01"]
    done = dcase(*many)
    assert done.code == 130, done.err
    assert not Path("e.pt").exists()


def test_xyz_and_bad_names(dcase):
    with np.load("some.npz") as file:
        frames = [
            ase.Atoms(file["z"], r, info={"REF_energy": e})
            for r, e in zip(file["R"], file["E"].ravel() / 23, strict=True)
        ]
        for atoms, forces in zip(frames, file["F"] / 23, strict=True):
            atoms.arrays["REF_forces"] = forces
    ase.io.write("mine.extxyz", frames)
    words = [*RUN[:1], "xyz", "mine.extxyz", *RUN[6:], "--jobs", "1", "--epochs", "1"]
    assert dcase(*words).code == 0
    assert "another ending" in dcase(*words, "--out", "x.run").message
