"""The record of a run: who may write into a folder, and with what."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dcase.errors import DcaseError, OptionError, RunError, SimulationError
from dcase.locks import Lock, only_writer
from dcase.runs import (
    LOCK,
    RECORD,
    Identity,
    Place,
    claim,
    fingerprint,
    read_record,
)

SETTINGS = {"steps": 10, "seed": 1, "loss": {"weight": 1.0, "delta": 2.0}}
IDENTITY = Identity(
    "test", SETTINGS, free=("steps", "loss.delta"), data={"frames": "d"}, model="m", dtype="f"
)


def place(folder, **options):
    return Place(folder / "run", files=("state", "*.txt"), **options)


def content(folder):
    """Every file, folder and byte."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


@pytest.fixture
def begun(tmp_path):
    """A finished run with results, and one file that is not its own."""
    here = place(tmp_path, results=(tmp_path / "result.pt",))
    with claim(here, IDENTITY):
        (here.folder / "state").mkdir()
        (here.folder / "state" / "weights").write_text("w")
        (here.folder / "log.txt").write_text("l")
        (here.folder / "mine.dat").write_text("of the user")
        here.results[0].write_text("r")
    return here


def test_a_new_run_has_a_record_and_the_lock_goes_with_it(tmp_path):
    here = Place(tmp_path / "a" / "b")
    with claim(here, IDENTITY) as run:
        assert not run.resumed
        assert here.lock.exists()
        assert read_record(here.folder)["status"] == "running"
    assert content(tmp_path).keys() == {"a", "a/b", f"a/b/{RECORD}"}
    record = read_record(here.folder)
    assert record["status"] == "finished"
    assert record["identity"]["settings"] == SETTINGS
    assert record["kind"] == "test"


@pytest.mark.parametrize(
    ("identity", "resume", "overwrite", "message"),
    [
        (IDENTITY, False, False, "already exists and holds a run: --resume goes on, --overwrite"),
        (IDENTITY, True, True, "exclude each other"),
        (replace(IDENTITY, kind="other"), True, False, "holds a run of another kind (test)"),
        (replace(IDENTITY, kind="other"), False, True, "holds a run of another kind (test)"),
        (replace(IDENTITY, data={"frames": "e"}), True, False, "other frames"),
        (replace(IDENTITY, model="n"), True, False, "another model"),
        (replace(IDENTITY, dtype="g"), True, False, "dtype was f, now g"),
        (replace(IDENTITY, version=2), True, False, "begun by another version"),
        (replace(IDENTITY, settings=SETTINGS | {"seed": 2}), True, False, "seed was 1, now 2"),
        (replace(IDENTITY, settings={}), True, False, "seed was 1, now None"),
        (
            replace(IDENTITY, settings=SETTINGS | {"loss": {"weight": 3.0, "delta": 2.0}}),
            True,
            False,
            "loss.weight was 1.0, now 3.0 (only steps, delta may change); use the same",
        ),
    ],
)
def test_a_refusal_changes_nothing(begun, tmp_path, identity, resume, overwrite, message):
    before = content(tmp_path)
    with pytest.raises(RunError) as refused:
        claim(begun, identity, resume=resume, overwrite=overwrite)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert content(tmp_path) == before


def test_the_errors_are_those_that_callers_know():
    assert issubclass(RunError, OptionError)
    assert issubclass(RunError, SimulationError)


def test_what_may_change_is_written_down(begun):
    changed = SETTINGS | {"steps": 20, "loss": {"weight": 1.0, "delta": 5.0}}
    with claim(begun, replace(IDENTITY, settings=changed), resume=True) as run:
        assert run.resumed
        assert run.record["begun"]
        assert (begun.folder / "state" / "weights").read_text() == "w"
    assert read_record(begun.folder)["identity"]["settings"] == changed


def test_overwriting_takes_the_runs_files_and_no_others(begun, tmp_path):
    with claim(begun, replace(IDENTITY, data={"frames": "e"}), overwrite=True) as run:
        assert not run.resumed
        assert content(tmp_path).keys() == {
            "run", f"run/{RECORD}", f"run/{LOCK}", "run/mine.dat"
        }  # fmt: skip


def test_a_kill_while_overwriting_leaves_nothing_to_go_on_with(begun, monkeypatch):
    class Killed(BaseException):
        pass

    def die(self):
        (begun.folder / "log.txt").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Place, "clear", die)
        with pytest.raises(Killed):
            claim(begun, replace(IDENTITY, model="n"), overwrite=True)
    assert (begun.folder / "state" / "weights").exists()
    with pytest.raises(RunError, match="another model"):
        claim(begun, IDENTITY, resume=True)
    with pytest.raises(RunError, match="already exists"):
        claim(begun, replace(IDENTITY, model="n"))
    with claim(begun, replace(IDENTITY, model="n"), resume=True) as run:
        assert not run.resumed
        assert not (begun.folder / "state").exists()
        assert not begun.results[0].exists()


def test_a_check_of_the_kind_comes_before_anything_is_written(begun, tmp_path):
    def refuse(record):
        raise SimulationError(f"{record['kind']} cannot go on")

    before = content(tmp_path)
    with pytest.raises(SimulationError, match="test cannot go on"):
        claim(begun, IDENTITY, resume=True, check=refuse)
    assert content(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_files_without_a_record(begun, tmp_path, resume):
    begun.record.unlink()
    before = content(tmp_path)
    with pytest.raises(RunError, match="--overwrite starts again"):
        claim(begun, IDENTITY, resume=resume)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"kind": "test"}', '{"kind": 1, "identity": {}}', "\xff"]
)
def test_a_damaged_record(begun, tmp_path, text):
    begun.record.write_bytes(text.encode("latin1"))
    before = content(tmp_path)
    for resume in (False, True):
        with pytest.raises(RunError, match="overwrite"):
            claim(begun, IDENTITY, resume=resume)
        assert content(tmp_path) == before
    with claim(begun, IDENTITY, overwrite=True):
        assert not (begun.folder / "log.txt").exists()


def test_a_record_of_a_later_version_is_left_alone(begun, tmp_path):
    begun.record.write_text(json.dumps({**json.loads(begun.record.read_text()), "format": 99}))
    before = content(tmp_path)
    with pytest.raises(RunError, match="newer version of dcase"):
        claim(begun, IDENTITY, resume=True)
    assert content(tmp_path) == before


def test_a_refusal_leaves_the_lock_of_a_dead_process_too(begun, tmp_path):
    begun.lock.write_text("process 1 on nowhere since 00:00:00")
    before = content(tmp_path)
    with pytest.raises(RunError, match="already exists and holds a run"):
        claim(begun, IDENTITY)
    assert content(tmp_path) == before


def test_what_a_link_leads_to_is_not_swept(begun, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / ".notes.0123456789ab.txt").touch()
    (begun.folder / "linked").symlink_to(mine)
    with claim(begun, IDENTITY, resume=True):
        pass
    assert content(mine).keys() == {".notes.0123456789ab.txt"}


def test_what_fails_after_it_wrote_can_be_gone_on_with(tmp_path):
    here = place(tmp_path)

    def work():
        with claim(here, IDENTITY):
            (here.folder / "log.txt").write_text("l")
            raise ValueError("then")

    with pytest.raises(ValueError, match="then"):
        work()
    assert read_record(here.folder)["status"] == "failed"
    with claim(here, IDENTITY, resume=True) as run:
        assert run.resumed


def test_a_lock_that_its_owner_removes_between_opening_and_locking_is_made_anew(
    tmp_path, monkeypatch
):
    path = tmp_path / LOCK
    path.touch()
    before, flock = [path], fcntl.flock

    def owner_is_done(handle, how):
        if before:
            before.pop().unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", owner_is_done)
    lock = Lock(path)
    lock.take()
    assert lock.in_place()
    with pytest.raises(RunError, match="another process"):
        Lock(path).take()
    lock.release()
    assert not path.exists()


def test_releasing_does_not_take_the_lock_of_another(tmp_path):
    first, second = Lock(tmp_path / LOCK), Lock(tmp_path / LOCK)
    first.take()
    first.path.unlink()
    second.take()
    first.release()
    assert second.in_place()
    second.release()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(RunError, match="nothing to resume"):
        claim(place(tmp_path), IDENTITY, resume=True)
    assert not any(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.dat").touch()
    with pytest.raises(RunError, match="nothing to resume"):
        claim(place(tmp_path), IDENTITY, resume=True)
    assert content(tmp_path / "run").keys() == {"mine.dat"}


def test_a_folder_of_its_own(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.dat").touch()
    with pytest.raises(RunError, match="not empty"):
        claim(place(tmp_path, empty=True), IDENTITY)
    assert content(tmp_path / "run").keys() == {"mine.dat"}
    with pytest.raises(RunError, match="left alone"):
        claim(place(tmp_path, empty=True), IDENTITY, overwrite=True)
    assert content(tmp_path / "run").keys() == {"mine.dat"}
    with claim(place(tmp_path), IDENTITY):
        pass


def test_the_second_in_one_folder_is_refused_and_told_whose_it_is(begun, tmp_path):
    with claim(begun, IDENTITY, resume=True):
        before = content(tmp_path)
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match=rf"another process \({os.getpid()} on .* at work"):
                claim(begun, IDENTITY, **options)
            assert content(tmp_path) == before
    with claim(begun, IDENTITY, resume=True) as run:
        assert run.resumed


HOLD = """
import sys
from pathlib import Path
from dcase.runs import Identity, Place, claim
run = claim(Place(Path(sys.argv[1])), Identity("test"), resume=len(sys.argv) > 2)
print("mine", flush=True)
sys.stdin.read()
"""


def hold(folder, *options):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_dead_process_does_not_block_and_its_leftovers_go(tmp_path):
    with hold(tmp_path / "run") as process:
        assert process.stdout.readline() == "mine\n"
        with pytest.raises(RunError, match=rf"\({process.pid} on "):
            claim(Place(tmp_path / "run"), Identity("test"), resume=True)
        process.send_signal(signal.SIGKILL)
    left = tmp_path / "run" / "state" / ".weights.pt.0123456789ab.pt"
    left.parent.mkdir()
    left.touch()
    (left.parent / ".mine").touch()
    assert (tmp_path / "run" / LOCK).exists()
    assert read_record(tmp_path / "run")["status"] == "running"
    with claim(Place(tmp_path / "run"), Identity("test"), resume=True) as run:
        assert run.resumed
        assert content(tmp_path / "run" / "state").keys() == {".mine"}
    assert not (tmp_path / "run" / LOCK).exists()


def test_of_many_starts_at_once_one_gets_the_folder(tmp_path):
    processes = [hold(tmp_path / "run") for _ in range(5)]
    # Those that are refused end; the one that is not waits for us.
    said = [p.stdout.readline() for p in processes]
    errors = [p.communicate()[1] for p in processes]
    assert sorted(said) == ["", "", "", "", "mine\n"]
    for text, error in zip(said, errors, strict=True):
        assert text or "RunError" in error
    assert content(tmp_path / "run").keys() <= {RECORD, LOCK}


def test_a_killed_start_leaves_nothing_that_blocks(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()  # killed between the lock and the record
    before = content(tmp_path)
    with pytest.raises(RunError, match="not empty"):
        claim(Place(tmp_path, empty=True), IDENTITY)
    assert content(tmp_path) == before
    with claim(Place(tmp_path / "run", empty=True), IDENTITY, resume=True) as run:
        assert not run.resumed


@pytest.mark.parametrize("what", ["moved", "removed", "replaced", "unlocked"])
def test_a_folder_that_goes_away_is_noticed(begun, tmp_path, what):
    run = claim(begun, IDENTITY, resume=True)
    run.check(now=True)
    if what == "unlocked":
        begun.lock.unlink()
    else:
        begun.folder.rename(tmp_path / "elsewhere")
    if what == "replaced":
        begun.folder.mkdir()
    before = content(tmp_path)
    with pytest.raises(RunError, match="(was moved, removed or replaced|is not locked any more)"):
        run.check(now=True)
    with pytest.raises(RunError, match="(was moved, removed or replaced|is not locked any more)"):
        run.note(more=1)
    run.release()
    if what != "moved":
        assert content(tmp_path) == before


def test_an_error_is_not_hidden_by_a_folder_that_went_away(begun, tmp_path):
    def work():
        with claim(begun, IDENTITY, resume=True):
            begun.folder.rename(tmp_path / "elsewhere")
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        work()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("mine", [False, True])
def test_what_fails_before_it_wrote_anything_leaves_nothing(tmp_path, error, mine):
    here = place(tmp_path)
    if mine:
        here.folder.mkdir()
        (here.folder / "mine.dat").touch()
    before = content(tmp_path)
    with pytest.raises(error), claim(here, IDENTITY):
        raise error
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")]
)
def test_how_it_ended(begun, error, status):
    with pytest.raises(error), claim(begun, IDENTITY, resume=True):
        raise error
    assert read_record(begun.folder)["status"] == status
    with claim(begun, IDENTITY, resume=True) as run:
        run.finish("interrupted")
    assert read_record(begun.folder)["status"] == "interrupted"


@pytest.mark.parametrize("mine", [False, True])
def test_a_run_whose_result_stands_elsewhere_leaves_nothing_here(tmp_path, mine):
    with claim(place(tmp_path), IDENTITY) as run:
        (run.folder / "state").mkdir()
        if mine:
            (run.folder / "mine.dat").touch()
        run.discard()
    assert set(content(tmp_path)) == ({"run", "run/mine.dat"} if mine else set())


def test_notes_stay(begun):
    with claim(begun, IDENTITY, resume=True) as run:
        run.note(rounds=3)
    with claim(begun, IDENTITY, resume=True) as run:
        assert run.record["rounds"] == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="cannot write"):
            claim(Place(tmp_path / "run"), IDENTITY)
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="cannot write"):
            claim(Place(folder), IDENTITY)
    assert content(tmp_path).keys() == {"file"}


def test_a_full_disk_leaves_what_was_there(begun, tmp_path, monkeypatch):
    def full(*args):
        raise DcaseError("no space left on device")

    before = content(tmp_path)
    monkeypatch.setattr("dcase.runs.write_json", full)
    with pytest.raises(DcaseError, match="no space"):
        claim(begun, IDENTITY, resume=True)
    with pytest.raises(DcaseError, match="no space"):
        claim(Place(tmp_path / "new" / "run"), IDENTITY)
    assert content(tmp_path) == before


def test_fingerprints():
    values = [
        None, True, 1, 1.0, "1", b"1", [1], [[1]], [1, 2], {"a": 1}, {"a": 1, "b": 2}, {"b": 1},
        np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32), np.zeros(2, int), np.float64(3),
        torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(0), torch.ones(2),
        torch.zeros(2, dtype=torch.int32), torch.zeros(2, 1), [1, 12], [11, 2], [[1, 2], []],
        [[1], 2, []], [[1], [2]], [[1, [2]]],
    ]  # fmt: skip
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"a": 1, "b": [np.ones(3)]}) == fingerprint({"b": [np.ones(3)], "a": 1})
    assert fingerprint(np.arange(6).reshape(2, 3).T) == fingerprint(
        np.ascontiguousarray(np.arange(6).reshape(2, 3).T)
    )
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    for strange in (object(), Path("a"), np.array([object()]), {1: {2, 3}}):
        with pytest.raises(TypeError, match="fingerprint"):
            fingerprint(strange)


def test_the_record_is_plain_json(tmp_path):
    identity = Identity(
        "test", {"a": np.float64(1.5), "b": (1, 2), "c": tmp_path, "d": np.arange(2)}
    )
    with claim(Place(tmp_path / "run"), identity):
        pass
    saved = json.loads((tmp_path / "run" / RECORD).read_text())["identity"]["settings"]
    assert saved == {"a": 1.5, "b": [1, 2], "c": str(tmp_path), "d": [0, 1]}
    with claim(Place(tmp_path / "run"), identity, resume=True) as run:
        assert run.resumed


# ------------------------------------------------------------------------------------------------
# Single files

MAKE = """
import sys
from pathlib import Path
from dcase.files import atomic_path
from dcase.locks import only_writer
target = Path(sys.argv[1])
with only_writer(target, wait="wait" in sys.argv):
    there = target.exists()
    with atomic_path(target) as path:
        path.write_text("half")
        print("there" if there else "making", flush=True)
        sys.stdin.readline()
        path.write_text("whole")
"""


def maker(target, *options):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", MAKE, str(target), *options]
    return subprocess.Popen(command, text=True, **pipes)


def test_a_file_has_one_writer_and_others_are_refused_or_wait(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with maker(target) as first:
        assert first.stdout.readline() == "making\n"
        with (
            pytest.raises(RunError, match=rf"\({first.pid} on .* is making .*file.txt: wait"),
            only_writer(target),
        ):
            raise AssertionError
        with maker(target, "wait") as second:
            first.communicate("\n")
            assert second.stdout.readline() == "there\n"  # only after the first was done
            assert target.read_text() == "whole"
            second.communicate("\n")
    assert content(tmp_path).keys() == {"new", "new/file.txt"}


def test_what_a_killed_writer_leaves_goes_with_the_next(tmp_path):
    target = tmp_path / "file.txt"
    with maker(target) as process:
        assert process.stdout.readline() == "making\n"
        process.send_signal(signal.SIGKILL)
    assert len(content(tmp_path)) == 2  # a lock and half a file, both hidden
    assert not target.exists()
    with only_writer(target):
        pass
    assert not content(tmp_path)


def test_a_writer_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no"), only_writer(tmp_path / "a" / "b" / "file.txt"):
        raise ValueError("no")
    assert not content(tmp_path)


def test_links_and_pipes_have_writers_too(tmp_path):
    (tmp_path / "link").symlink_to("file.txt")
    with only_writer(tmp_path / "link"), pytest.raises(RunError, match="is making"):  # noqa: SIM117
        with only_writer(tmp_path / "file.txt"):
            raise AssertionError
    with only_writer("/dev/null"), only_writer("/dev/null"):
        pass
