"""Files that are either whole or not there, and what is wrong before they are read or written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dcase.errors import DataError, DcaseError, RunError

NAME_BYTES = 255  # of the common file systems, where they do not say themselves
PATH_BYTES = 4095
_TOKEN_BYTES = 6
_LINKS = 40


# --------------------------------------------------------------------------------------- writing


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``target`` that replaces it when the block ends without error.

    A crash, a full disk or Ctrl-C leaves the old file as it was. Where ``target`` is a symbolic
    link, the file that it leads to is replaced, not the link. Devices and pipes (``/dev/stdout``,
    ``/dev/null``, a FIFO) are never replaced: what was written is copied into them.

    Raises:
        DcaseError: If the file cannot be written (no such folder, no space, no permission).
    """
    asked = target
    check_held(target)
    try:
        target = _destination(asked)
        into = _is_stream(target)
        if into:
            folder = Path(tempfile.gettempdir())
        elif target.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        else:
            folder = target.parent
            folder.mkdir(parents=True, exist_ok=True)
        # Unlike tempfile's, this file has the permissions that the umask gives, as any new file.
        temporary = folder / _temporary_name(target, secrets.token_hex(_TOKEN_BYTES))
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except (OSError, ValueError) as error:
        raise _unwritable(asked, error) from error
    try:
        yield temporary
        with open(temporary, "rb") as written:
            if into:
                with _opened_stream(target) as stream:
                    shutil.copyfileobj(written, stream)
            else:
                os.fsync(written.fileno())
        if not into:
            os.replace(temporary, target)
            sync_folder(folder)
    except OSError as error:
        raise _unwritable(asked, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


_held: dict[Path, tuple[int, int]] = {}


def hold(folder: str | os.PathLike[str]) -> None:
    """From now on nothing is written below ``folder`` by this process should it go away.

    Else a folder that was moved, with a run in it, would be made again and get half of its files.
    """
    _held[Path(folder).absolute()] = identity_of(folder) or (0, 0)


def let_go(folder: str | os.PathLike[str]) -> None:
    """The end of :func:`hold`."""
    _held.pop(Path(folder).absolute(), None)


def check_held(path: str | os.PathLike[str]) -> None:
    """Make sure that all held folders on the way to ``path`` are where they were.

    Raises:
        RunError: If one was moved, removed or replaced.
    """
    path = Path(path).absolute()
    for folder, identity in list(_held.items()):
        if (folder == path or folder in path.parents) and identity_of(folder) != identity:
            raise RunError(
                f"{folder} was moved, removed or replaced while a run was writing to it; the run "
                "stops here. If you still have the folder, move it back and use --resume"
            )


def identity_of(place: str | os.PathLike[str] | int) -> tuple[int, int] | None:
    """Which file or folder this is, whatever its name; None where there is none."""
    try:
        found = os.stat(place)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Have the names in a folder outlast a power failure, where the file system can do that."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def remove_leftovers(target: str | os.PathLike[str]) -> None:
    """Delete what kills in the middle of writing ``target`` have left beside it.

    Only for a file that nobody else is writing now.
    """
    target = _destination(target)
    with suppress(OSError):
        for path in target.parent.iterdir():
            if is_leftover(path.name, target):
                path.unlink()


def is_leftover(name: str, target: str | os.PathLike[str] | None = None) -> bool:
    """Whether ``name`` is that of a temporary file of :func:`atomic_path`.

    Args:
        name: Of a file, without its folder.
        target: Only for this target.
    """
    if target is None:
        return bool(_TEMPORARY.fullmatch(name))
    token = "0" * 2 * _TOKEN_BYTES
    parts = map(re.escape, _temporary_name(Path(target), token).rsplit(token, 1))
    return bool(re.fullmatch(f"[0-9a-f]{{{len(token)}}}".join(parts), name))


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}(\.\w+)?")


def check_writable(
    path: str | os.PathLike[str],
    beside: Iterable[str | os.PathLike[str]] = (),
    *,
    stream: bool = True,
) -> None:
    """Refuse a file that could not be written, before the work that it is to hold.

    Nothing is written for it.

    Args:
        path: The file; folders on the way to it need not be there yet.
        beside: Further files that will be written with it.
        stream: Whether it may be a device or a pipe.

    Raises:
        DcaseError: If it is a folder, lies in something that is not one or may not be written, or
            has a name that the file system does not take.
    """
    for asked in (path, *beside):
        try:
            target = _destination(asked)
            if target.is_dir():
                raise IsADirectoryError(None, "it is a folder")
            if not _is_stream(target):
                _check_place(target)
            elif not stream:
                raise OSError(None, "it is a device or a pipe, and this must be a file")
            elif not os.access(target, os.W_OK):
                raise PermissionError(None, "no permission")
        except (OSError, ValueError) as error:
            raise _unwritable(asked, error) from error


def _check_place(target: Path) -> None:
    """Raise an OSError if a file could not be made at ``target``."""
    folder = target.absolute().parent
    coming = [target.name]  # names that are not there yet
    while not os.path.lexists(folder) and folder != folder.parent:
        coming.append(folder.name)
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(None, f"{folder} is not a folder")
    longest = max(coming, key=lambda name: len(os.fsencode(name)))
    limit = _limit(folder, "PC_NAME_MAX", NAME_BYTES)
    if len(os.fsencode(longest)) > limit:
        raise OSError(
            None, f"the name is too long ({len(os.fsencode(longest))} bytes, at most {limit})"
        )
    whole = target.absolute().with_name(_temporary_name(target, "0" * 2 * _TOKEN_BYTES))
    limit = min(PATH_BYTES, _limit(folder, "PC_PATH_MAX", PATH_BYTES + 1) - 1)
    if max(len(os.fsencode(p)) for p in (whole, target.absolute())) > limit:
        raise OSError(None, f"the whole path is too long (at most {limit} bytes)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(None, f"no permission to write in {folder}")


def _limit(folder: Path, name: str, usual: int) -> int:
    try:
        found = os.pathconf(folder, name)
    except (OSError, ValueError, AttributeError):
        return usual
    return found if found > 0 else usual


def _destination(target: str | os.PathLike[str]) -> Path:
    """Where a path leads through symbolic links, but for those that stand for open files."""
    path = Path(target)
    for _ in range(_LINKS):
        if _stands_for_open_file(path) or not path.is_symlink():
            return path
        path = path.parent / os.readlink(path)
    return path  # a circle, which any use of it reports


def _stands_for_open_file(path: Path) -> bool:
    """Whether a path is an open file of this process; what it leads to must not be replaced."""
    return os.path.realpath(path.parent) in ("/dev/fd", f"/proc/{os.getpid()}/fd")


def _is_stream(path: Path) -> bool:
    """Whether a path must be written into.

    Raises:
        OSError: If it can be neither written into nor replaced.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise OSError(None, "it is a socket or a disk")
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or _stands_for_open_file(path)


def _opened_stream(path: Path) -> IO[bytes]:
    """A device or pipe open for writing; our own open files are gone on with."""
    if _stands_for_open_file(path) and path.name.isdigit():
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        return os.fdopen(os.dup(int(path.name)), "wb")
    return open(path, "ab")


def _temporary_name(target: Path, token: str) -> str:
    """A name beside ``target`` that the file system takes, with its ending if that is one."""
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= 16 else ""
    room = _limit(target.parent, "PC_NAME_MAX", NAME_BYTES) - len(f"..{token}{suffix}".encode())
    name = os.fsencode(target.name)
    if len(name) > room:  # cut, with a checksum in place of what is lost
        mark = "~" + hashlib.sha256(name).hexdigest()[:8]
        return f".{name[: room - len(mark)].decode(errors='ignore')}{mark}.{token}{suffix}"
    return f".{target.name}.{token}{suffix}"


def _unwritable(target: str | os.PathLike[str], error: Exception) -> DcaseError:
    return DcaseError(f"cannot write {_shown(target)}: {reason(error)}")


def _shown(path: str | os.PathLike[str]) -> str:
    """A path for people, shortened where it is none."""
    text = os.fspath(path)
    return text if len(text) < 300 else f"{text[:120]}...{text[-60:]}"


# --------------------------------------------------------------------------------------- reading


def check_readable(path: str | os.PathLike[str], error: type[DcaseError] = DataError) -> None:
    """Refuse what is not a file that can be read, in words that say which it is.

    Args:
        path: The file.
        error: Raised with one line.

    Raises:
        DcaseError: If there is no such file, it is a folder or no file at all, it may not or
            cannot be read, or it is empty.
    """
    begins = b""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                begins = file.read(1)
    except (FileNotFoundError, NotADirectoryError) as missing:
        raise error(f"no such file: {path}") from missing
    except (OSError, ValueError) as failure:
        raise error(f"cannot read {_shown(path)}: {reason(failure)}") from failure
    if stat.S_ISDIR(mode):
        raise error(f"{path} is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise error(f"{path} is a device or a pipe, not a file; copy it to a file first")
    if not begins:
        raise error(f"{path} is empty")


def read_json(path: str | os.PathLike[str], error: type[DcaseError] = DataError) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        path: The file.
        error: Raised with one line.

    Raises:
        DcaseError: If it cannot be read, or holds anything else.
    """
    check_readable(path, error)
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = json.loads(text, parse_constant=_refuse, parse_float=_number)
    except OSError as failure:
        raise error(f"cannot read {path}: {reason(failure)}") from failure
    except (ValueError, RecursionError) as failure:
        raise error(f"{path} is damaged or not JSON ({reason(failure)[:120]})") from failure
    if not isinstance(found, dict):
        raise error(f"{path} does not hold a JSON object but a {type(found).__name__}")
    return found


def read_toml(path: str | os.PathLike[str], error: type[DcaseError] = DataError) -> dict[str, Any]:
    """A TOML file.

    Args:
        path: The file.
        error: Raised with one line.

    Raises:
        DcaseError: If it cannot be read, or is no TOML.
    """
    check_readable(path, error)
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as failure:
        raise error(f"cannot read {path}: {reason(failure)}") from failure
    except (ValueError, RecursionError) as failure:  # also for whole numbers of 4300 digits
        raise error(f"{path}: not valid TOML: {reason(failure)[:160]}") from failure


def _number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def reason(error: BaseException) -> str:
    """What the system says about an error, as short as it gets."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"the name is too long (at most {NAME_BYTES} bytes, with its folders {PATH_BYTES})"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()) or type(error).__name__


# --------------------------------------------------------------------------------------- content


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` atomically as UTF-8."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` atomically as indented JSON; NaN becomes null, which every reader accepts."""
    write_text(target, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _finite(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
