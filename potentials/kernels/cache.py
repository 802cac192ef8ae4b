"""Where compiled libraries are kept: in a folder of one's own, and checked before they are used.

A library's name ends in a checksum of its content: one that is damaged, or half there, is not the
library of that name, and is not handed to the linker, which would crash or compute something else.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import pooch

from dcase.errors import DcaseError
from dcase.files import atomic_path


def user_folder() -> Path:
    """The user's cache of libraries.

    Raises:
        OSError: If it cannot be made, or others could put a library there.
    """
    chosen = os.environ.get("DCASE_DATA_DIR")
    folder = (Path(chosen) if chosen else Path(pooch.os_cache("dcase"))) / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if why := _not_ours(folder.stat()):
        raise PermissionError(f"{folder} {why}")
    return folder


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="dcase-kernels-", ignore_cleanup_errors=True)


def temporary_folder() -> Path:
    """A folder of this process alone, which ends with it.

    Raises:
        OSError: If there is no place for one.
    """
    folder = Path(_temporary().name)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # a forked process may have ended it
    return folder


def find(folder: Path, name: str) -> Path | None:
    """The library that was kept under ``name``; what is there under that name but damaged goes."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        if _is_whole(path):
            return path
        with suppress(OSError):
            path.unlink()
    return None


def keep(made: Path, folder: Path, name: str) -> Path:
    """Put a library into a folder, whole or not at all.

    Raises:
        OSError: If that is not possible.
    """
    content = made.read_bytes()
    target = folder / f"{name}-{_checksum(content)}.so"
    try:
        with atomic_path(target) as path:
            path.write_bytes(content)
            path.chmod(0o600)
    except DcaseError as error:
        why = getattr(error.__cause__, "strerror", None) or error
        raise OSError(f"cannot write to {folder}: {why}") from error
    _settle(folder)
    return target


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _is_whole(path: Path) -> bool:
    """Whether a library is ours, and what its name says."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or _not_ours(found):
                return False
            return path.stem.endswith("-" + _checksum(file.read()))
    except OSError:
        return False


def _not_ours(found: os.stat_result) -> str:
    """What speaks against trusting a file or folder, or nothing."""
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        return "belongs to somebody else"
    if os.name == "posix" and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written to by others"
    return ""


def _settle(folder: Path) -> None:
    """The folder's list of names, to the disk."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
