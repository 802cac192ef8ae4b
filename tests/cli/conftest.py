"""Commands run in this process, in an empty folder, and a small potential to run them on."""

import functools
import os
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from dcase.cli.main import entry_point
from dcase.data.md17 import embedded_file
from dcase.data.molecules import get_molecule

# Small, and never more than a few steps.
TINY = ["--size", "tiny", "--n-train", "20", "--n-val", "5", "--filter-table", "0"]
ETHANOL = ["train", "md17", "-m", "ethanol", "--source", "xtb", *TINY]


def shipped_frames(name):
    """The arrays of the frames that ship with dcase, by key."""
    with np.load(embedded_file(get_molecule(name))) as file:
        return {key: file[key] for key in file.files}


def save_some(path, name, count):
    """The first frames in a file of their own, in MD17's layout, of unknown theory."""
    data = shipped_frames(name)
    np.savez(path, z=data["z"], **{key: data[key][:count] for key in "REF"})


@dataclass
class Outcome:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def message(self):
        """The error, which must be all there is about it: one line, the last."""
        lines = self.err.strip().splitlines()
        assert lines, "no error message"
        assert lines[-1].startswith("dcase: error: ")
        assert "Traceback" not in self.err
        assert sum(line.startswith("dcase:") for line in lines) == 1
        return lines[-1].removeprefix("dcase: error: ")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        entry_point([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return Outcome(stop.value.code or 0, out, err)


@pytest.fixture
def dcase(capsys):
    return lambda *arguments: call(capsys, *arguments)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A potential for ethanol, trained for an epoch."""
    path = tmp_path_factory.mktemp("model") / "ethanol.pt"
    with pytest.raises(SystemExit) as stop:
        entry_point([*ETHANOL, "--epochs", "2", "--quiet", "--out", str(path)])
    assert stop.value.code == 0
    return path


@pytest.fixture
def short_scan(monkeypatch):
    """A time-step scan of a few steps, though a poor potential vibrates slowly."""
    from dcase.md_runs import scan

    monkeypatch.setattr(scan, "dt_scan", functools.partial(scan.dt_scan, duration_fs=0.2))


@pytest.fixture
def press_ctrl_c():
    """``press_ctrl_c(when)``: send this process SIGINT as soon as ``when()`` is true."""
    threads, over = [], threading.Event()

    def press(when):
        import signal

        def wait():
            while not over.is_set():
                if when():
                    time.sleep(0.1)
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                time.sleep(0.02)

        threads.append(threading.Thread(target=wait, daemon=True))
        threads[0].start()

    yield press
    over.set()
    for thread in threads:
        thread.join()
