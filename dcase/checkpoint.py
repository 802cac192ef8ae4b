"""Checkpoints: plain tensors, numbers, strings, lists and dicts; nothing in them is ever executed.

Files are written by ``torch.save`` and read by ``torch.load(weights_only=True)``, always. A file
that is not one of ours gets one clear line.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dcase.archives import damage, holds_only
from dcase.errors import CheckpointError
from dcase.files import atomic_path, check_readable

Migration = Callable[[dict[str, Any]], None]

_PLAIN = (str, int, float, bool, type(None), torch.Tensor)


def save(path: str | os.PathLike[str], kind: str, version: int, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: Target; replaced only when the new file is complete.
        kind: What it holds, e.g. ``"potential"``.
        version: Format version of this kind.
        content: Plain values (see the module text).

    Raises:
        CheckpointError: If ``content`` holds anything else, naming where.
        DcaseError: If the file cannot be written.
    """
    _check_plain(content, "")
    document = {"format": f"dcase-{kind}", "format_version": version, **content}
    # Through memory: given a file, torch reports a full disk as a RuntimeError of its zip writer.
    buffer = io.BytesIO()
    torch.save(document, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(
    path: str | os.PathLike[str],
    kind: str,
    version: int,
    migrations: Mapping[int, Migration] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint of ``kind``, on the CPU, without executing anything in it.

    Args:
        path: The file.
        kind: What it must hold.
        version: The newest format version this code knows.
        migrations: ``{n: function}`` where the function turns a version-n document into n + 1.

    Raises:
        CheckpointError: If the file is missing, truncated, foreign, of another kind or too new.
    """
    _, document = load_any(path, {kind: version}, {kind: migrations or {}})
    return document


def migrate(
    document: dict[str, Any], version: int, migrations: Mapping[int, Migration], where: Any
) -> None:
    """Turn a document of an earlier format version into one of ``version``, in place.

    Args:
        document: With its ``format_version``.
        version: Wanted.
        migrations: As of :func:`load`.
        where: For messages: the file.

    Raises:
        CheckpointError: If there is no way, or the document is newer.
    """
    have = document.get("format_version")
    if not isinstance(have, int) or have > version:
        raise CheckpointError(
            f"{where}: format version {have} is newer than this dcase ({version}); upgrade dcase"
        )
    while have < version:
        if have not in migrations:
            raise CheckpointError(f"{where}: no way to migrate format version {have}")
        migrations[have](document)
        have += 1
        document["format_version"] = have


def load_any(
    path: str | os.PathLike[str],
    kinds: Mapping[str, int],
    migrations: Mapping[str, Mapping[int, Migration]] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Read a checkpoint of one of several kinds, on the CPU, without executing anything in it.

    Args:
        path: The file.
        kinds: ``{kind: newest format version this code knows}``.
        migrations: Of each kind, as of :func:`load`.

    Returns:
        The kind, and the document in the newest format version.

    Raises:
        CheckpointError: If the file is missing, truncated, foreign, of another kind or too new.
    """
    path = Path(path)
    check_readable(path, CheckpointError)
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: not a dcase checkpoint, or truncated{_looks_like(path)} (nothing in it was "
            "executed)"
        )
    damaged = damage(path)  # torch's reader does not look at the checksums
    if damaged:
        raise CheckpointError(f"{path}: damaged: {damaged}; copy or train it again")
    if holds_only(path, ".npy"):
        raise CheckpointError(f"{path}: an npz file of arrays, not a dcase checkpoint")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it holds Python objects, which could run code; a dcase checkpoint "
            "holds only tensors and plain values (nothing in it was executed)"
        ) from error
    except Exception as error:  # torch raises many types for damaged archives
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a dcase checkpoint ({reason})") from error
    found = document.get("format") if isinstance(document, dict) else None
    if not isinstance(found, str) or not found.startswith("dcase-"):
        raise CheckpointError(f"{path}: a PyTorch file, but not a dcase checkpoint")
    kind = found.removeprefix("dcase-")
    if kind not in kinds:
        raise CheckpointError(f"{path}: holds {_a(kind)}, not {' or '.join(map(_a, kinds))}")
    migrate(document, kinds[kind], (migrations or {}).get(kind, {}), path)
    return kind, document


def _looks_like(path: Path) -> str:
    """What a file is instead, where that is plain from how it begins."""
    with open(path, "rb") as file:
        begins = file.read(16)
    known = {b"\x89HDF": "an HDF5 file", b"SQLite": "an ASE database", b"{": "a JSON file"}
    return next((f"; it is {w}" for start, w in known.items() if begins.startswith(start)), "")


def _a(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise CheckpointError(f"checkpoint key {where}[{key!r}] is not a string or number")
            _check_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif type(value) not in _PLAIN and not isinstance(value, torch.Tensor):
        raise CheckpointError(
            f"checkpoint value {where} is a {type(value).__name__}, not a plain value"
        )
