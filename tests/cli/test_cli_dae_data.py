"""``dcase dae data``, run in this process."""

import re
import signal

import pytest
from click.testing import CliRunner

from dcase.cli.dae_data import data
from dcase.dae.trajectories import read
from dcase.errors import DataError, OptionError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCASE_DATA_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments):
    outcome = CliRunner().invoke(data, [str(a) for a in arguments])
    assert outcome.exit_code == 0, outcome.output
    return outcome


def fails(*arguments):
    """The error of a command that fails (the main program prints it as one line)."""
    outcome = CliRunner().invoke(data, [str(a) for a in arguments])
    assert outcome.exit_code != 0
    return outcome


SHORT_WATER = ("--molecules", 3, "--equilibrate", 100, "--steps", 500)


def test_pendulum_to_a_file():
    lines = run("pendulum", "--steps", 1200, "--out", "swing.h5").stdout.splitlines()
    assert lines[0] == ("swing.h5: pendulum, 5 masses, 1200 frames, one every 0.01 s (11.99 s)")
    text = "\n".join(lines)
    largest = float(re.search(r"largest deviation (\S+) J, drift .* ± .* J/s, RMS", text)[1])
    assert 0 < largest < 1e-4
    for k in (20, 50):
        assert re.search(rf"identity, constant velocity, k={k}: \S+ cm, \S+ cm", text)
    assert read("swing.h5").fingerprint() in text
    assert "substeps=10" in text
    assert "seed" not in text  # the paper's start
    assert run("info", "swing.h5").stdout.splitlines() == lines


def test_options_reach_the_pendulum():
    run(
        *("pendulum", "--steps", 30, "--seed", 4, "--pendulums", 2, "--interval", 0.02),
        *("--substeps", 3, "--gravity", 1.62, "--out", "moon.h5", "--quiet"),
    )
    wanted = {"steps": 30, "seed": 4, "n": 2, "interval": 0.02, "substeps": 3, "gravity": 1.62}
    settings = read("moon.h5").settings
    assert {name: settings[name] for name in wanted} == wanted
    assert "identity" not in run("info", "moon.h5").stdout  # too short for that


def test_water_to_a_file():
    text = run("water", *SHORT_WATER, "--out", "w.h5", "--bond", "morse").stdout
    assert text.startswith("w.h5: water, 3 molecules, 100 frames, one every 0.5 fs (49.5 fs)\n")
    assert re.search(r"energy: drift \S+ ± \S+ meV/atom/ps, RMS fluctuation \S+ meV/atom: ", text)
    assert re.search(r"temperature: \d+\.\d K", text)
    assert re.search(r"O-H bonds: (0\.9|1\.0)\d+ A, standard deviation 0.\d+ A", text)
    assert re.search(r"k=50: \S+ pm, \S+ pm \(mean norm per node\)", text)
    assert read("w.h5").settings["bond"] == "morse"
    run(
        *("water", *SHORT_WATER, "--timestep", 0.2, "--stride", 7, "--temperature", 200),
        *("--seed", 3, "--out", "v.h5"),
    )
    made = read("v.h5")
    assert made.interval == pytest.approx(1.4)
    assert made.settings["temperature_K"] == 200
    assert made.settings["seed"] == 3
    assert "k=20" not in run("info", "v.h5").stdout  # no multiple of the stride


def test_one_molecule_is_a_droplet_too():
    text = run("water", "--molecules", 1, "--equilibrate", 50, "--steps", 300).stdout
    assert "1 molecule, 60 frames" in text
    assert "loneliest" not in text


def test_the_cache_is_the_default(cache):
    first = run("pendulum", "--steps", 40)
    (path,) = cache.iterdir()
    assert first.stdout.startswith(f"{path}: pendulum")
    assert "already" not in first.stderr
    before = path.stat().st_mtime_ns
    again = run("pendulum", "--steps", 40)
    assert "in the cache already" in again.stderr
    assert again.stdout == first.stdout
    assert path.stat().st_mtime_ns == before
    assert not run("pendulum", "--steps", 40, "--quiet").stderr
    assert "already" not in run("pendulum", "--steps", 40, "--overwrite").stderr
    assert path.stat().st_mtime_ns > before


def test_nothing_is_replaced_unasked():
    run("pendulum", "--steps", 5, "--out", "a.h5")
    assert isinstance(fails("pendulum", "--steps", 6, "--out", "a.h5").exception, OptionError)
    assert len(read("a.h5")) == 5
    run("pendulum", "--steps", 6, "--out", "a.h5", "--overwrite")
    assert len(read("a.h5")) == 6


def test_wrong_use():
    for arguments in (
        ("pendulum", "--steps", 0),
        ("pendulum", "--interval", "nan"),
        ("pendulum", "--seed", -1),
        ("water", "--bond", "rigid"),
        ("water", "--temperature", 0),
        ("info",),
    ):
        assert fails(*arguments).exit_code == 2
    assert isinstance(fails("info", "missing.h5").exception, DataError)
    assert isinstance(fails("water", "--steps", 3).exception, OptionError)


def test_interrupted_leaves_nothing(tmp_path, press_ctrl_c, monkeypatch):
    """Ctrl-C in the middle of a run reaches click, which the main program turns into 130."""
    import click

    from dcase.dae import water

    begun = []
    original = water.kinetic

    def kinetic(*arguments):
        begun.append(True)
        return original(*arguments)

    monkeypatch.setattr(water, "kinetic", kinetic)
    # A shell's background job is started with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    press_ctrl_c(lambda: len(begun) > 50)
    try:
        with pytest.raises(click.Abort):
            data.main(["water", "--out", "w.h5", "--quiet"], standalone_mode=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(begun) < 120_000  # far from done
    assert not list(tmp_path.glob("*.h5"))
    assert not list(tmp_path.glob(".*.h5"))
