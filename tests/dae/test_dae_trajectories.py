"""Files, cache and pairs of trajectories."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import h5py
import numpy as np
import pytest

from dcase.dae import pendulum
from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.trajectories import (
    Trajectory,
    load_or_make,
    make_file,
    make_pairs,
    predictor_errors,
    read,
    write,
)
from dcase.errors import DataError, DcaseError, OptionError, RunError


@pytest.fixture
def small():
    return simulate_pendulum(20, n=3, seed=7)


def line(frames, system="pendulum", stride=1):
    """One node that moves 1 per frame along x; its frame numbers are its positions."""
    positions = np.zeros((frames, 1, 2))
    positions[:, 0, 0] = np.arange(frames)
    velocities = np.zeros_like(positions)
    velocities[:, 0, 0] = 1.0
    settings = {"stride": stride, "steps": frames * stride}
    one = np.ones(1)
    return Trajectory(
        system, positions, velocities, one, one.astype(int), 1.0, np.zeros(frames), settings
    )


# ---------------------------------------------------------------------------------------------
# The object and its file


def test_round_trip(tmp_path, small):
    path = write(tmp_path / "new" / "swing.h5", small)
    again = read(path)
    for name in ("positions", "velocities", "masses", "numbers", "energy"):
        before, after = getattr(small, name), getattr(again, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert again.settings == small.settings
    assert (again.system, again.interval) == ("pendulum", 0.01)
    assert again.fingerprint() == small.fingerprint()
    assert len(again) == 20
    assert again.units["energy"] == "J"
    assert [p.name for p in path.parent.iterdir()] == ["swing.h5"]  # nothing left over
    with h5py.File(path) as file:  # for readers who do not have dcase
        assert file["velocities"].attrs["unit"] == "m/s"
        assert json.loads(file.attrs["settings"])["seed"] == 7


def test_fingerprint_sees_every_part(small):
    seen = {small.fingerprint()}
    changes = [
        {"interval": 0.02},
        {"masses": np.array([1.0, 1.0, 1.0 + 1e-15])},
        {"numbers": np.array([0, 0, 1])},
        {"energy": small.energy + 1e-9},
        {"positions": small.positions[:, ::-1]},
        {"velocities": small.velocities.astype(np.float32)},
    ]
    for change in changes:
        seen.add(replace(small, **change).fingerprint())
    assert len(seen) == 7
    assert replace(small, settings={}).fingerprint() in seen  # data, not what is said of them


def test_prefix(small):
    part = small.prefix(5)
    np.testing.assert_array_equal(part.positions, small.positions[:5])
    assert part.energy.shape == (5,)
    assert part.settings["steps"] == 5
    assert small.settings["steps"] == 20
    assert line(10, stride=5).prefix(4).settings["steps"] == 20
    for frames in (0, 21):
        with pytest.raises(DataError, match="has 20 frames"):
            small.prefix(frames)


def test_a_trajectory_that_makes_no_sense(small):
    nan = small.positions.copy()
    nan[3, 1, 0] = np.nan
    for change, message in (
        ({"system": "spring"}, "no such system"),
        ({"positions": small.positions[0]}, "positions must have shape"),
        ({"velocities": small.velocities[:-1]}, "velocities must have shape"),
        ({"masses": np.ones(4)}, "masses must have shape"),
        ({"numbers": np.ones((3, 1))}, "numbers must have shape"),
        ({"energy": np.zeros(21)}, "energy must have shape"),
        ({"positions": nan}, "positions have values that are not finite"),
        ({"masses": np.array([1.0, 1.0, 0.0])}, "masses must be positive"),
        ({"interval": 0.0}, "interval"),
    ):
        with pytest.raises(DataError, match=message):
            replace(small, **change)


def one_line(path):
    with pytest.raises(DataError) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_files_that_cannot_be_read(tmp_path, small):
    path = tmp_path / "swing.h5"
    assert "no such file" in one_line(path)
    path.write_text("frames")
    assert "not an HDF5 file" in one_line(path)
    path.write_bytes(b"")
    assert "is empty" in one_line(path)
    with h5py.File(path, "w") as file:
        file["tensor"] = np.zeros(3)
    assert "not a trajectory of dcase" in one_line(path)
    whole = write(path, small).read_bytes()
    for share in (0.3, 0.7, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        assert "is cut short" in one_line(path)


def test_files_that_were_changed(tmp_path, small):
    path = tmp_path / "swing.h5"

    def changed(change):
        write(path, small)
        with h5py.File(path, "r+") as file:
            change(file)
        return one_line(path)

    def set_value(name, index, value):
        def change(file):
            file[name][index] = value

        return change

    assert "has changed since" in changed(set_value("positions", (2, 0, 0), 0.5))
    assert "not finite" in changed(set_value("energy", 1, np.nan))
    assert "lacks a part" in changed(lambda f: f.__delitem__("masses"))
    assert "lacks a part" in changed(lambda f: f.attrs.__delitem__("interval"))
    assert "lacks a part" in changed(lambda f: f.attrs.__setitem__("settings", "{"))
    assert "format version 9" in changed(lambda f: f.attrs.__setitem__("format_version", 9))
    assert "no such system" in changed(lambda f: f.attrs.__setitem__("system", "spring"))

    def shorten(file):
        del file["energy"]
        file["energy"] = np.zeros(3)

    assert "energy must have shape" in changed(shorten)


def test_an_error_leaves_the_old_file(tmp_path, small, monkeypatch):
    path = write(tmp_path / "swing.h5", small)

    def fail(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trajectory, "fingerprint", fail)
    with pytest.raises(KeyboardInterrupt):
        write(path, simulate_pendulum(5))
    monkeypatch.undo()
    assert read(path).fingerprint() == small.fingerprint()
    assert os.listdir(tmp_path) == ["swing.h5"]


# ---------------------------------------------------------------------------------------------
# The cache


@pytest.fixture
def count(monkeypatch):
    """How often a pendulum was simulated."""
    calls = []
    original = pendulum.simulate_pendulum

    def simulate(*arguments, **options):
        calls.append(options)
        return original(*arguments, **options)

    monkeypatch.setattr(pendulum, "simulate_pendulum", simulate)
    return calls


def test_made_once_and_cut_from_a_longer_one(tmp_path, count):
    first = load_or_make("pendulum", steps=60, cache_dir=tmp_path)
    assert load_or_make("pendulum", steps=60, cache_dir=tmp_path).fingerprint() == (
        first.fingerprint()
    )
    shorter = load_or_make("pendulum", steps=25, cache_dir=tmp_path)
    assert len(count) == 1
    assert shorter.fingerprint() == simulate_pendulum(25).fingerprint()
    assert shorter.settings["steps"] == 25
    assert len(load_or_make("pendulum", steps=61, cache_dir=tmp_path)) == 61
    assert len(count) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_other_settings_are_other_files(tmp_path, count):
    made = [
        load_or_make("pendulum", steps=10, cache_dir=tmp_path, **options).fingerprint()
        for options in ({}, {"seed": 0}, {"seed": 1}, {"n": 2}, {"gravity": 9.81})
    ]
    assert len(set(made)) == len(count) == len(list(tmp_path.iterdir())) == 5
    # What is not given is the default, by name.
    load_or_make("pendulum", steps=10, cache_dir=tmp_path, n=5, interval=0.01)
    assert len(count) == 5


def test_water_in_the_cache(tmp_path):
    options = {"molecules": 2, "equilibrate": 10, "cache_dir": tmp_path}
    longer = load_or_make("water", steps=40, **options)
    again = load_or_make("water", steps=22, **options)
    assert len(longer) == 8
    assert longer.prefix(4).fingerprint() == again.fingerprint()
    assert len(list(tmp_path.iterdir())) == 1
    load_or_make("water", steps=20, seed=0, **options)
    assert len(list(tmp_path.iterdir())) == 1


def test_two_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(load_or_make, "pendulum", steps=150, cache_dir=tmp_path) for _ in range(4)
        ]
        assert len({job.result().fingerprint() for job in jobs}) == 1
    assert len(list(tmp_path.iterdir())) == 1


WRITE = """
import os, signal, sys
from dcase.dae.trajectories import load_or_make, make_file
kind, target, kill = sys.argv[1:]
def progress(done, total):
    if done == total:
        print("making", flush=True)
        if kill == "in the simulation":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdin.readline()
if kill == "in the write":
    import h5py
    h5py.File.__exit__ = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
options = {"steps": 150, "substeps": 1, "progress": progress}
if kind == "file":
    make_file("pendulum", target, **options)
else:
    print(len(load_or_make("pendulum", cache_dir=target, **options)))
"""


def writer(kind, target, kill=""):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", WRITE, kind, str(target), kill]
    return subprocess.Popen(command, text=True, **pipes)


@pytest.mark.parametrize("kind", ["file", pytest.param("cache", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kill", ["in the simulation", "in the write"])
def test_a_killed_writer_leaves_nothing_that_is_read_or_stays(tmp_path, kind, kill):
    target = tmp_path / "swing.h5" if kind == "file" else tmp_path
    with writer(kind, target, kill) as process:
        process.communicate("\n")
    assert process.returncode == -signal.SIGKILL
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
    with writer(kind, target) as process:
        process.communicate("\n")
    assert process.returncode == 0
    (made,) = tmp_path.iterdir()
    assert read(made).fingerprint() == simulate_pendulum(150, substeps=1).fingerprint()


def test_of_two_that_make_one_file_the_second_is_refused(tmp_path):
    with writer("file", tmp_path / "swing.h5") as first:
        assert first.stdout.readline() == "making\n"
        for overwrite in (False, True):
            with pytest.raises(RunError, match=rf"\({first.pid} on .* is making .*swing.h5"):
                make_file("pendulum", tmp_path / "swing.h5", steps=3, overwrite=overwrite)
        first.communicate("\n")
    assert len(read(tmp_path / "swing.h5")) == 150


def test_of_two_that_need_one_cached_file_the_second_waits_for_it(tmp_path):
    with writer("cache", tmp_path) as first:
        assert first.stdout.readline() == "making\n"
        with writer("cache", tmp_path) as second:
            first.communicate("\n")
            assert second.communicate("\n")[0] == "150\n"  # which has made none
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cached_file_of_other_settings_is_not_believed(tmp_path):
    other = make_file("pendulum", cache_dir=tmp_path, steps=10, seed=1)
    right = make_file("pendulum", cache_dir=tmp_path, steps=10, seed=2)
    other.replace(right)
    with pytest.raises(DataError, match="holds another trajectory than its name says; delete it"):
        load_or_make("pendulum", cache_dir=tmp_path, steps=10, seed=2)


def test_interrupted_in_the_middle(tmp_path):
    def stop(done, total):
        if done * 2 > total:
            raise KeyboardInterrupt

    for system, options in (("pendulum", {}), ("water", {"molecules": 1, "equilibrate": 10})):
        with pytest.raises(KeyboardInterrupt):
            load_or_make(system, steps=2000, cache_dir=tmp_path, progress=stop, **options)
    assert not list(tmp_path.iterdir())


def test_from_a_file(tmp_path, small):
    path = write(tmp_path / "swing.h5", small)
    assert len(load_or_make("pendulum", path=path)) == 20
    assert len(load_or_make("pendulum", path=path, steps=12)) == 12
    with pytest.raises(DataError, match="has 20 steps, 21 are needed"):
        load_or_make("pendulum", path=path, steps=21)
    with pytest.raises(DataError, match="a trajectory of pendulum, not of water"):
        load_or_make("water", path=path)


def test_where_a_file_goes(tmp_path, count):
    path = make_file("pendulum", tmp_path / "a.h5", steps=5)
    assert path == tmp_path / "a.h5"
    with pytest.raises(OptionError, match="a.h5 exists; choose another name"):
        make_file("pendulum", path, steps=6)
    make_file("pendulum", path, steps=6, overwrite=True)
    assert len(read(path)) == 6
    cached = make_file("pendulum", cache_dir=tmp_path / "cache", steps=5)
    assert make_file("pendulum", cache_dir=tmp_path / "cache", steps=5) == cached
    assert len(count) == 3
    make_file("pendulum", cache_dir=tmp_path / "cache", steps=5, overwrite=True)
    assert len(count) == 4


def test_a_cache_that_cannot_be_written_is_found_out_first(tmp_path, count):
    (tmp_path / "file").write_text("")
    with pytest.raises(DcaseError, match="cannot write to the cache .*DCASE_DATA_DIR"):
        load_or_make("pendulum", steps=5, cache_dir=tmp_path / "file" / "cache")
    with pytest.raises(DcaseError, match="cannot write to .*choose another folder"):
        make_file("pendulum", tmp_path / "file" / "a.h5", steps=5)
    with pytest.raises(OptionError, match="no such system: 'spring'"):
        load_or_make("spring", cache_dir=tmp_path)
    assert not count


# ---------------------------------------------------------------------------------------------
# Pairs


def test_random_pairs_use_the_papers_frames():
    pairs = make_pairs(line(400), 20, 100, 30, 50, seed=1, discard=40)
    assert pairs.ahead == 20
    sets = [pairs.train, pairs.validation, pairs.test]
    assert [len(s) for s in sets] == [100, 30, 50]
    # Every start of the prefix is there once: the density depends on the number of pairs.
    np.testing.assert_array_equal(np.sort(np.concatenate(sets)), np.arange(40, 220))
    # Shuffled: the sets lie between each other.
    assert pairs.train.min() < 60
    assert pairs.train.max() > 200
    # A longer trajectory changes nothing, a seed does.
    longer = make_pairs(line(900), 20, 100, 30, 50, seed=1, discard=40)
    np.testing.assert_array_equal(longer.train, pairs.train)
    other = make_pairs(line(400), 20, 100, 30, 50, seed=2, discard=40)
    assert (other.train != pairs.train).any()


def test_as_many_frames_as_are_needed():
    make_pairs(line(3120), 20, 100, seed=0)  # 1000 + 100 + 1000 + 1000 + 20, the paper's
    with pytest.raises(OptionError, match=r"need 3120 frames .* has 3119; make a longer one"):
        make_pairs(line(3119), 20, 100, seed=0)


def test_water_pairs_come_from_all_frames():
    trajectory = line(2000, "water", stride=5)
    pairs = make_pairs(trajectory, 50, 100, 20, 20, seed=0)
    assert pairs.ahead == 10
    starts = np.concatenate([pairs.train, pairs.validation, pairs.test])
    assert len(np.unique(starts)) == 140
    assert starts.min() < 100
    assert 1890 < starts.max() < 1990
    for k in (48, 0, -5):
        with pytest.raises(OptionError, match="multiple of the stored stride 5"):
            make_pairs(trajectory, k, 100, seed=0)


@pytest.mark.parametrize(("system", "frames"), [("pendulum", 400), ("water", 1000)])
def test_blocks_share_no_frame(system, frames):
    pairs = make_pairs(line(frames, system), 20, 100, 30, 50, seed=3, discard=40, split="blocks")
    sets = [pairs.train, pairs.validation, pairs.test]
    assert [len(np.unique(s)) for s in sets] == [100, 30, 50]
    assert pairs.train.min() >= 40
    for before, after in ((sets[0], sets[1]), (sets[1], sets[2])):
        assert before.max() + 20 < after.min()  # the last target lies before the next start
    assert pairs.test.max() + 20 < frames
    if system == "pendulum":
        np.testing.assert_array_equal(np.sort(pairs.train), np.arange(40, 140))
    else:
        assert pairs.train.max() > 400  # the share of the whole, not the shortest stretch
        assert pairs.test.max() > 900


def test_blocks_fit_to_the_last_frame():
    needed = 10 + 7 + 3 + 5 + 3 * 4
    for system in ("pendulum", "water"):
        for frames in range(needed, needed + 9):
            pairs = make_pairs(line(frames, system), 4, 7, 3, 5, seed=0, discard=10, split="blocks")
            assert [len(s) for s in (pairs.train, pairs.validation, pairs.test)] == [7, 3, 5]
            assert pairs.test.max() + 4 < frames
        with pytest.raises(OptionError, match=f"need {needed} frames"):
            make_pairs(line(needed - 1, system), 4, 7, 3, 5, seed=0, discard=10, split="blocks")


def test_pairs_that_make_no_sense():
    for options, message in (
        ({"split": "time"}, "random or blocks"),
        ({"n_train": 0}, "at least one pair"),
        ({"discard": -1}, "discard must not"),
    ):
        with pytest.raises(OptionError, match=message):
            make_pairs(line(5000), 20, **{"n_train": 10, "seed": 0, **options})


def test_predictors_that_know_nothing():
    errors = predictor_errors(line(50), 3, discard=0)
    assert errors["identity"] == pytest.approx(3.0)
    assert errors["constant_velocity"] == pytest.approx(0.0, abs=1e-12)
    fallen = line(50)
    fallen.positions[:, 0, 1] = -0.5 * np.arange(50.0) ** 2  # the velocity misses gravity
    fallen.velocities[:, 0, 1] = -np.arange(50.0)
    assert predictor_errors(fallen, 4, discard=0)["constant_velocity"] == pytest.approx(8.0)
    with pytest.raises(OptionError, match="no two frames"):
        predictor_errors(line(50), 3)
