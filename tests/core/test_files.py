"""Files are whole or not there."""

import errno
import json
import math
import os
import resource
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch

from dcase import checkpoint
from dcase.errors import CheckpointError, DcaseError
from dcase.files import atomic_path, remove_leftovers, write_json, write_text


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
