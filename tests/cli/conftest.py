"""Commands run in this process, in an empty folder, and a small potential to run them on."""

import functools
import os
import signal
import threading
import time
from dataclasses import dataclass

import pytest
from cli_inputs import ETHANOL
from processes import GUARD

from dcase.cli.main import entry_point


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
    from dcase.md_runs.analysis import dt_scan as scan

    monkeypatch.setattr(scan, "dt_scan", functools.partial(scan.dt_scan, duration_fs=0.2))


@pytest.fixture
def ctrl_c_interrupts():
    """Also where the tests run as a background job, to which SIGINT means nothing."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def press_ctrl_c(ctrl_c_interrupts):
    """``press_ctrl_c(when)``: send this process SIGINT as soon as ``when()`` is true.

    The command must be one that does not end by itself, else its speed decides about the test.
    """
    threads, over, hung = [], threading.Event(), []

    def press(when):
        def wait():
            began = time.monotonic()
            while not over.wait(0.01):
                hung[:] = [time.monotonic() - began] if time.monotonic() - began > GUARD else []
                if hung or when():
                    os.kill(os.getpid(), signal.SIGINT)
                    return

        threads.append(threading.Thread(target=wait, daemon=True))
        threads[0].start()

    yield press
    over.set()
    for thread in threads:
        thread.join()
    assert not hung, f"nothing to press Ctrl-C at within {GUARD} s"
