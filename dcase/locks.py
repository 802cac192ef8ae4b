"""Locks that end with their process: for folders of runs, and for files with one writer."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dcase.errors import RunError
from dcase.files import check_held, identity_of, remove_leftovers

try:
    import fcntl
except ImportError:  # without it two runs in one folder are not noticed
    fcntl = None  # type: ignore[assignment]

_BUSY = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)


class Lock:
    """A locked file in a folder, which is made for it where there is none.

    The kernel's lock is what counts; the file's content only says for people whose it is.
    """

    def __init__(self, path: Path, what: str = "", instead: str = "--out"):
        self.path = path
        self.what = what or f"is at work in {path.parent}"
        self.instead = instead
        self.leftover = False
        self._handle: int | None = None
        self._made: list[Path] = []  # folders, and the lock file, that were not there before

    def take(self, wait: bool = False) -> None:
        """Lock, or raise RunError and leave everything as it was; ``wait`` for another process."""
        try:
            self._make_folder()
            while not self._try(wait):
                pass
        except OSError as error:
            self.undo()
            reason = error.strerror or str(error)
            raise RunError(f"cannot write to {self.path.parent}: {reason}") from error
        except BaseException:
            self.undo()
            raise

    def _make_folder(self) -> None:
        check_held(self.path)  # of the run that this one is a part of
        missing = []
        folder = self.path.parent
        while not os.path.lexists(folder):
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            try:
                folder.mkdir()
            except FileExistsError:  # another process was faster
                continue
            self._made.append(folder)

    def _try(self, wait: bool) -> bool:
        """Lock the file that is there now; False if it was replaced, or waited for, in between."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            handle = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            made = True
        except FileExistsError:
            made = False
            try:
                handle = os.open(self.path, flags)
            except FileNotFoundError:
                return False
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(handle)
            os.close(handle)
            if error.errno in _BUSY and wait:
                time.sleep(0.1)
                return False
            if error.errno in _BUSY:
                raise RunError(
                    f"another process{owner} {self.what}: wait for it, stop it, or choose another "
                    f"{self.instead}"
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise
            # Some network file systems know no locks: go on without.
            handle = os.open(self.path, flags)
        if identity_of(self.path) != identity_of(handle):  # its owner released it in between
            os.close(handle)
            return False
        self._handle, self.leftover = handle, not made
        if made:
            self._made.append(self.path)
        return True

    def sign(self) -> None:
        """Write down whose lock it is."""
        assert self._handle is not None
        text = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}"
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)

    def in_place(self) -> bool:
        """Whether the file is where it was locked."""
        return self._handle is not None and identity_of(self.path) == identity_of(self._handle)

    def release(self) -> None:
        """Unlock, and remove the file."""
        if self._handle is None:
            return
        if self.in_place():  # while it is locked, so that it is nobody else's
            with suppress(OSError):
                self.path.unlink()
        os.close(self._handle)
        self._handle = None

    def undo(self, *files: Path) -> None:
        """Unlock, and remove what :meth:`take` has made, and further files."""
        for path in files:
            path.unlink(missing_ok=True)
        keep = self.path not in self._made
        if self._handle is not None and keep:
            os.close(self._handle)
            self._handle = None
        self.release()
        for folder in reversed([p for p in self._made if p != self.path]):
            with suppress(OSError):  # not empty: another process is in there now
                folder.rmdir()


@contextmanager
def only_writer(
    target: str | os.PathLike[str],
    *,
    beside: Iterable[str | os.PathLike[str]] = (),
    wait: bool = False,
) -> Iterator[None]:
    """Be the only process that makes a file, while the block runs; what kills have left goes.

    Whether the file is there is to be asked within the block.

    Args:
        target: The file.
        beside: Further files that are only made together with it.
        wait: For another process to be done with it, instead of refusing.

    Raises:
        RunError: If another process is making it, or its folder cannot be written to.
    """
    path = Path(os.path.realpath(target))
    if os.path.lexists(path) and not path.is_file():  # a device or a pipe, which is anybody's
        yield
        return
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    lock = Lock(path.with_name(f".lock-{name}"), what=f"is making {target}", instead="name")
    lock.take(wait)
    try:
        lock.sign()
        for file in (path, *beside):
            remove_leftovers(file)
        yield
    except BaseException:
        lock.undo()
        raise
    lock.release()


def _owner(handle: int) -> str:
    with suppress(OSError):
        text = os.pread(handle, 200, 0).decode(errors="replace")
        if re.fullmatch(r"process \d+ on \S+ since [\d:]+", text):
            return f" ({text.removeprefix('process ')})"
    return ""
