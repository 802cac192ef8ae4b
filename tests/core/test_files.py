"""Files are whole or not there."""

import errno
import json
import math
import os
import resource
import socket
import stat
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from dcase import checkpoint
from dcase.dae.trajectory_file import read as read_trajectory
from dcase.data.atoms_files import read_atoms
from dcase.data.npz import read_npz
from dcase.errors import CheckpointError, DataError, DcaseError, RunError
from dcase.files import (
    atomic_path,
    check_readable,
    check_writable,
    hold,
    is_leftover,
    let_go,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "a.txt"
    write_text(target, "old")
    write_text(target, "Ångström")
    assert target.read_bytes() == "Ångström".encode()
    assert names(target.parent) == ["a.txt"]


def test_temporary_is_beside_the_target_with_its_suffix(tmp_path):
    # os.replace is atomic only within a file system; some writers go by the suffix.
    with atomic_path(tmp_path / "a.npz") as path:
        assert path.parent == tmp_path
        assert path.suffix == ".npz"


def test_an_error_inside_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as path:  # noqa: PT012
        path.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, call):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DcaseError) as caught:
        write_text(target, "new")
    monkeypatch.undo()
    assert str(caught.value) == f"cannot write {target}: No space left on device"
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


FULL = """
import resource, sys, torch
from pathlib import Path
from dcase import checkpoint
from dcase.errors import DcaseError
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    checkpoint.save(sys.argv[1], "test", 1, {"x": torch.zeros(100000)})
except DcaseError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no file size limits here")
def test_a_real_write_error_of_a_checkpoint_is_one_line(tmp_path):
    # torch's own writer reports this as a RuntimeError with a C++ traceback.
    target = tmp_path / "a.pt"
    checkpoint.save(target, "test", 1, {"x": torch.ones(3)})
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(target)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == f"cannot write {target}: File too large", done.stderr
    assert checkpoint.load(target, "test", 1)["x"].tolist() == [1, 1, 1]
    assert names(tmp_path) == ["a.pt"]


def test_no_folder_and_no_permission_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DcaseError, match=r"cannot write .*: (Not a directory|File exists)"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
        assert os.umask(0o027) == 0o027  # untouched
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_leftovers_are_those_of_this_file_only(tmp_path):
    for name in (".a.pt.0123456789ab.pt", ".a.pt.mine.pt", ".b.pt.0123456789ab.pt", "a.pt"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path / "a.pt")
    assert names(tmp_path) == [".a.pt.mine.pt", ".b.pt.0123456789ab.pt", "a.pt"]
    remove_leftovers(tmp_path / "nowhere" / "a.pt")  # no folder yet: nothing to do

    with pytest.raises(DcaseError), atomic_path(tmp_path / "a.pt") as path:  # noqa: PT012
        remove_leftovers(tmp_path / "a.pt")
        assert not path.exists()  # the pattern is that of the real name
        raise OSError


LONG = "a" * 252 + ".pt"


@pytest.mark.parametrize("name", ["a" * 255, LONG, "é" * 126 + ".pt", "b." + "c" * 253])
def test_the_longest_names_are_written_and_swept(tmp_path, name):
    check_writable(tmp_path / name)
    write_text(tmp_path / name, "x")
    assert names(tmp_path) == [name]
    with pytest.raises(DcaseError), atomic_path(tmp_path / name) as path:  # noqa: PT012
        assert path.suffix == ".pt" or not name.endswith(".pt")
        assert is_leftover(path.name)
        remove_leftovers(tmp_path / name)
        assert not path.exists()
        raise OSError


def test_long_names_that_begin_alike_have_temporary_names_of_their_own(tmp_path):
    one, two = tmp_path / ("a" * 250 + "b"), tmp_path / ("a" * 250 + "c")
    with atomic_path(one) as path:
        remove_leftovers(two)
        path.write_text("x")
    assert one.read_text() == "x"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("a" * 256, "name is too long"),
        ("folder/that/is/coming/" + "é" * 128, "name is too long"),
        ("/".join(["b" * 200] * 25), "too long"),
        ("file/a.txt", "file is not a folder"),
        ("folder", "it is a folder"),
        ("a\0b", "null byte"),
        ("circle", "symbolic links"),
    ],
)
def test_what_cannot_be_written_is_refused_before_and_when_it_is_written(tmp_path, path, why):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    before = names(tmp_path)
    with pytest.raises(DcaseError, match=why) as caught:
        check_writable(tmp_path / path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DcaseError, match="cannot write"):
        write_text(tmp_path / path, "x")
    assert names(tmp_path)[: len(before)] == before


def test_a_file_is_refused_for_the_names_of_those_beside_it(tmp_path):
    check_writable(tmp_path / LONG, [tmp_path / "a.run" / "state.pt"])
    with pytest.raises(DcaseError, match="too long"):
        check_writable(tmp_path / LONG, [tmp_path / (LONG + ".part.npz")])
    assert names(tmp_path) == []


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/real.txt")
    write_text(tmp_path / "link", "new")  # to a file that is not there yet
    write_text(tmp_path / "link", "newer")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "real.txt").read_text() == "newer"
    assert names(tmp_path / "disk") == ["real.txt"]
    assert names(tmp_path) == ["disk", "link"]


def test_a_pipe_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_writable(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        write_text(tmp_path / "pipe", "through")
        assert reader.stdout.read() == b"through"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert names(tmp_path) == ["pipe"]
    with pytest.raises(DcaseError, match="must be a file"):
        check_writable(tmp_path / "pipe", stream=False)


def test_devices_are_written_into(tmp_path):
    write_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(DcaseError, match="cannot write /dev/full: No space left"):
        write_text("/dev/full", "x")


@pytest.mark.parametrize("into", ["file", "pipe"])
def test_standard_output_goes_on_where_it_is(tmp_path, into):
    write = "from dcase.files import write_text; write_text('/dev/stdout', 'b')"
    code = f"print('a'); {write}; print('c')"
    with open(tmp_path / "out", "wb") as file:
        stdout = file if into == "file" else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code], stdout=stdout, check=True)
    assert (done.stdout or (tmp_path / "out").read_bytes()) == b"a\nbc\n"
    assert names(tmp_path) == ["out"]


def test_a_socket_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(DcaseError, match="socket"):
            check_writable(tmp_path / "s")
        with pytest.raises(DcaseError, match="socket"):
            write_text(tmp_path / "s", "x")
    assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)


@pytest.mark.parametrize("below", [".", "state/weights"])
@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_nothing_is_written_into_a_held_folder_that_went_away(tmp_path, below, what):
    folder = tmp_path / "run"
    target = folder / below / "a.json"
    folder.mkdir()
    hold(folder)
    try:
        write_text(target, "x")
        folder.rename(tmp_path / "moved")
        if what == "replaced":
            folder.mkdir()
        with pytest.raises(RunError, match="was moved, removed or replaced"):
            write_text(target, "y")
        assert not target.exists()
        write_text(tmp_path / "beside", "x")
    finally:
        let_go(folder)
    write_text(target, "z")
    assert target.read_text() == "z"


@pytest.mark.parametrize(
    "name", [".notes.ab", ".cache.0123456789a", ".x.0123456789abc", ".a.0123456789AB", "a.txt", "."]
)
def test_files_of_the_user_are_no_leftovers(name):
    assert not is_leftover(name)
    assert is_leftover(".a.txt.0123456789ab.txt")
    assert is_leftover(".a.0123456789ab")


def test_the_folder_is_made_durable_after_the_name_is_in_it(tmp_path, monkeypatch):
    done = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("replace"), replace(*a)))
    monkeypatch.setattr(
        os,
        "fsync",
        lambda n: (
            done.append("dir" if stat.S_ISDIR(os.fstat(n).st_mode) else "file"),
            fsync(n),
        ),
    )
    write_text(tmp_path / "a", "x")
    assert done == ["file", "replace", "dir"]


@contextmanager
def another_user(folder):
    """What follows is done without root's rights; root may read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.parents[:-2]):
        path.chmod(path.stat().st_mode | 0o011)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_no_permission_is_not_called_anything_else(tmp_path):
    checkpoint.save(tmp_path / "a.pt", "test", 1, {"x": 1})
    np.savez(tmp_path / "a.npz", R=np.zeros((1, 1, 3)))
    (tmp_path / "a.h5").write_text("x")
    (tmp_path / "a.xyz").write_text("x")
    for path in tmp_path.iterdir():
        path.chmod(0)
    with another_user(tmp_path):
        for read, name in (
            (lambda path: checkpoint.load(path, "test", 1), "a.pt"),
            (read_npz, "a.npz"),
            (read_trajectory, "a.h5"),
            (read_atoms, "a.xyz"),
        ):
            with pytest.raises(DcaseError, match=f"cannot read .*{name}: Permission denied"):
                read(tmp_path / name)
        with pytest.raises(DcaseError, match="no permission to write"):
            check_writable("/usr/a.txt")


def test_what_is_no_file_to_read_is_named(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name, why in (
        ("", "is a folder"),
        ("empty", "is empty"),
        ("nowhere", "no such file"),
        ("dangling", "no such file"),
        ("empty/a", "no such file"),
        ("pipe", "is a device or a pipe"),
        ("a\0b", "null byte"),
        ("a" * 300, "name is too long"),
    ):
        with pytest.raises(CheckpointError, match=why):
            check_readable(tmp_path / name, CheckpointError)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("{", "damaged or not JSON"),
        ("[1]", "not hold a JSON object"),
        ('{"a": NaN}', "NaN is not a number"),
        ("[" * 100_000, "damaged or not JSON"),
        ('{"a": "\udcff"}', "damaged or not JSON"),
    ],
)
def test_json_that_is_of_no_use_is_one_line(tmp_path, text, why):
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=why) as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_json_is_strict_and_plain(tmp_path):
    value = {"nan": math.nan, "list": (np.float64(1.5), np.arange(2), -math.inf), 3: np.int64(4)}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"nan": None, "list": [1.5, [0, 1], None], "3": 4}
    assert text.endswith("}\n")


def test_checkpoints_refuse_what_is_not_plain(tmp_path):
    with pytest.raises(CheckpointError, match=r"value \.a\.b\[1\] is a set"):
        checkpoint.save(tmp_path / "a.pt", "test", 1, {"a": {"b": [1, {2}]}})
    assert names(tmp_path) == []
