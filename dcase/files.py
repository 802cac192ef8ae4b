"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dcase.errors import DcaseError


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``target`` that replaces it when the block ends without error.

    A crash, a full disk or Ctrl-C leaves the old file as it was.

    Raises:
        DcaseError: If the file cannot be written (no such folder, no space, no permission).
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Unlike tempfile's, this file has the permissions that the umask gives, as any new file.
        temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}{target.suffix}"
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise DcaseError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise DcaseError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_leftovers(target: str | os.PathLike[str]) -> None:
    """Delete what kills in the middle of writing ``target`` have left beside it.

    Only for a file that nobody else is writing now.
    """
    target = Path(target)
    with suppress(OSError):
        for path in target.parent.iterdir():
            if is_leftover(path.name, target.name):
                path.unlink()


def is_leftover(name: str, target: str | None = None) -> bool:
    """Whether ``name`` is that of a temporary file of :func:`atomic_path`.

    Args:
        name: Of a file, without its folder.
        target: Only for this target's name.
    """
    if target is None:
        return bool(_TEMPORARY.fullmatch(name))
    suffix = re.escape(Path(target).suffix)
    return bool(re.fullmatch(rf"\.{re.escape(target)}\.[0-9a-f]{{12}}{suffix}", name))


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}(\.\w+)?")


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
