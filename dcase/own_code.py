"""Classes of a user's own, from a file, a module or a session: networks, activations.

They run where their user names them (``--model mynet.py:MyNet``), and only there. What is made with
them records where they are from, the file's SHA-256 and its text. A checkpoint that needs them says
so and runs nothing: whoever loads it names the code (``--code mynet.py``), and another content
than the recorded one is refused, or accepted by its digest (``--code mynet.py@3fa9c1d2``).

Of a file, its own text is recorded and compared, not that of modules it imports.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from dcase.errors import CheckpointError, OptionError

SHORT = 8
"""Digits of a digest that are shown, and enough to name a file's content by."""
LARGEST_BYTES = 1_000_000

Code = str | os.PathLike[str] | type
"""What a user names code by: ``mynet.py``, ``mynet.py@DIGEST``, ``package.module``, or a class."""


class CodeNeededError(CheckpointError):
    """A checkpoint needs code that was not named, or that has changed; the line says which."""


@dataclass(frozen=True)
class Own:
    """A class of a user's.

    Attributes:
        name: ``"mynet.py:MyNet@3fa9c1d2"``: file (or module), class, first digits of the digest. By
            it potentials know their network and their activation.
        value: The class.
        path: File, absolute; empty where it was typed into a session.
        sha256: Of the file (in a session: of the class's source).
        text: Which that is.
    """

    name: str
    value: Any
    path: str
    sha256: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """As checkpoints record it."""
        return {
            "class": self.name.partition(":")[2].partition("@")[0],
            "path": self.path,
            "sha256": self.sha256,
            "source": self.text,
        }


_LOADED: dict[str, Own] = {}
_NAMED: ContextVar[tuple[Code, ...]] = ContextVar("code that was named for loading", default=())


def is_own(name: str) -> bool:
    """Whether a name is one of a class of a user's, as no name of dcase's has a colon."""
    return ":" in name


def short_name(name: str) -> str:
    """``"MyNet"`` for ``"mynet.py:MyNet@3fa9c1d2"``, for names of files; others as they are."""
    return name.partition(":")[2].partition("@")[0] if is_own(name) else name


def loaded(name: str) -> Own | None:
    """What has run in this process under that full name, if anything has."""
    return _LOADED.get(name)


def pinned(spec: str) -> str:
    """``mynet.py:MyNet`` with the digest of what the file holds now, without running it.

    Raises:
        OptionError: If there is no such file, or it is another one than a digest says.
    """
    place, attribute, _ = _parts(spec)
    if place.endswith(".py"):
        return f"{place}:{attribute}@{_read(place, spec)[1][:SHORT]}"
    return spec


def canonical(spec: str) -> str:
    """A pinned name without the folder: what is the same wherever the file is."""
    place, colon, rest = spec.rpartition(":")
    return f"{os.path.basename(place)}{colon}{rest}" if place.endswith(".py") else spec


def load_own(spec: str | type) -> Own:
    """Run the code that is named, and find the class in it; once for each content.

    Args:
        spec: ``"folder/mynet.py:MyNet"``, ``"package.module:MyNet"`` (``@DIGEST`` after either asks
            for a certain content), or the class itself.

    Raises:
        OptionError: If there is no such file, module or class, it fails, or holds something else.
    """
    if not isinstance(spec, str):
        return _remember(spec, *_source_of(spec))
    if spec in _LOADED:  # a full name: the file may be elsewhere now
        return _LOADED[spec]
    place, attribute, wanted = _parts(spec)
    if place.endswith(".py"):
        text, sha256 = _read(place, spec)
        own = _LOADED.get(f"{Path(place).name}:{attribute}@{sha256[:SHORT]}")
        if own is not None:
            return own
        module: Any = _run(Path(place), text, sha256)
        path = str(Path(place).resolve())
    else:
        module = _import(place)
        path, sha256, text = _source_of(module)
        if wanted and not sha256.startswith(wanted):
            raise OptionError(_changed(place, sha256, wanted))
    value = getattr(module, attribute, None)
    if not inspect.isclass(value):
        there = [n for n, v in vars(module).items() if inspect.isclass(v)]
        there = [n for n in there if getattr(module, n).__module__ == module.__name__]
        hint = f"; it has: {', '.join(there)}" if there else ""
        raise OptionError(f"{place} has no class {attribute!r}{hint}")
    return _remember(value, path, sha256, text, f"{Path(place).name}:{attribute}")


def _remember(value: Any, path: str, sha256: str, text: str, name: str = "") -> Own:
    if not inspect.isclass(value):
        raise OptionError(f"{value!r} is no class")
    name = name or f"{Path(path).name or 'session'}:{value.__qualname__}"
    own = Own(f"{name}@{sha256[:SHORT]}", value, path, sha256, text)
    _LOADED[own.name] = own
    return own


def _parts(spec: str) -> tuple[str, str, str]:
    """Place, class and wanted digest."""
    place, _, rest = spec.rpartition(":")
    attribute, _, wanted = rest.partition("@")
    if not place or not attribute.isidentifier():
        raise OptionError(f"{spec!r} must be FILE.py:CLASS or package.module:CLASS")
    return place, attribute, wanted


def _read(place: str | os.PathLike[str], wanted: str = "") -> tuple[str, str]:
    """Text and digest of a file; ``wanted`` may end in the ``@DIGEST`` that it must have."""
    path = Path(place)
    try:
        data = path.read_bytes()
        text = data.decode()
    except OSError as error:
        raise OptionError(f"{place}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{place} is no text, so no Python file") from error
    if len(data) > LARGEST_BYTES:
        raise OptionError(f"{place} has {len(data):,} bytes; at most {LARGEST_BYTES:,} of code")
    sha256 = hashlib.sha256(data).hexdigest()
    digest = wanted.rpartition("@")[2] if "@" in wanted.rpartition(":")[2] else ""
    if not sha256.startswith(digest):
        raise OptionError(_changed(str(place), sha256, digest))
    return text, sha256


def _changed(place: str, sha256: str, wanted: str) -> str:
    return f"{place} has changed: its SHA-256 begins with {sha256[:SHORT]}, not {wanted[:SHORT]}"


def _run(path: Path, text: str, sha256: str) -> ModuleType:
    """The module that a file makes; it may import what lies beside it."""
    name = f"dcase_own_{path.stem}_{sha256[:SHORT]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look there
    beside = str(path.resolve().parent)
    sys.path.insert(0, beside)
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        raise OptionError(f"{path} cannot be run: {reason(error, path)}") from error
    finally:
        if beside in sys.path:
            sys.path.remove(beside)
    return module


def _import(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:
        hint = "" if "/" not in place else " (a file's name ends in .py)"
        raise OptionError(f"cannot import {place}{hint}: {reason(error)}") from error


def _source_of(value: Any) -> tuple[str, str, str]:
    """Path, digest and text of a class's or module's file, or of a class typed into a session."""
    try:
        path = Path(inspect.getsourcefile(value) or "")
        if path.is_file():
            text, sha256 = _read(path)
            return str(path.resolve()), sha256, text
        text = inspect.getsource(value)
    except (OSError, TypeError) as error:
        raise OptionError(
            f"{getattr(value, '__name__', value)}: its source cannot be read, so no checkpoint "
            "could record it; write it to a file"
        ) from error
    return "", hashlib.sha256(text.encode()).hexdigest(), text


def reason(error: BaseException, path: str | os.PathLike[str] | None = None) -> str:
    """What went wrong in a user's code, and in which line of it, in one line."""
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}"[:240] if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return said
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if path is not None and f.filename == str(path)]
    return f"{said} (line {lines[-1]} of {Path(path).name})" if lines and path else said


# ------------------------------------------------------------------------------------------------
# Checkpoints


@contextmanager
def named_code(code: Code | Sequence[Code] | None) -> Iterator[None]:
    """Within this, checkpoints may be loaded that need the code named here."""
    more = () if code is None else (code,) if isinstance(code, str | os.PathLike | type) else code
    before = _NAMED.set((*_NAMED.get(), *more))
    try:
        yield
    finally:
        _NAMED.reset(before)


def record_of(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What a checkpoint records of those names among ``names`` that are a user's."""
    return {name: _LOADED[name].to_dict() for name in names if name in _LOADED}


def code_flags(document: Mapping[str, Any]) -> str:
    """`` --code FILE`` for what a document records, as the command line wants it, or ``""``."""
    flags = ""
    for path in recorded_files(document):
        beside = os.path.relpath(path)
        flags += f" --code {path if beside.startswith('..') else beside}"
    return flags


def recorded_files(document: Mapping[str, Any]) -> list[str]:
    """The files that a potential's or an ensemble's document records, where they still are."""
    parts = [document, *document.get("members", [])]
    paths = {r["path"] for part in parts for r in part.get("code", {}).values()}
    return sorted(path for path in paths if path and Path(path).is_file())


def required(records: Mapping[str, Any], where: str) -> dict[str, str]:
    """Have all code at hand that a checkpoint records, or refuse.

    Args:
        records: By full name, as :func:`record_of` gives them.
        where: The file, for messages.

    Returns:
        Under which name each is known here: its own, but for changed code that was accepted.

    Raises:
        CodeNeededError: If some was not named, or has changed (nothing of it has run then), or if
            it fails.
    """
    found = {}
    for name, record in records.items():
        own = _LOADED.get(name)
        if own is None or own.sha256 != record["sha256"]:
            try:
                own = _from_named(record, where)
            except OptionError as error:  # no such file, or it fails
                raise CodeNeededError(f"{where}: its code: {error}") from error
        found[name] = own.name
    return found


def _from_named(record: Mapping[str, str], where: str) -> Own:
    wanted, cls = record["sha256"], record["class"]
    file = Path(record["path"]).name or "its file"
    others: list[tuple[str, str]] = []
    for code in _NAMED.get():
        if isinstance(code, type):
            own = load_own(code)
            if own.sha256 == wanted:
                return own
            others.append((own.path or "the class given", own.sha256))
            continue
        place, _, accepted = os.fspath(code).partition("@")
        is_file = place.endswith(".py")
        sha256 = _read(place)[1] if is_file else _source_of(_import(place))[1]
        if sha256 == wanted or (len(accepted) >= SHORT and sha256.startswith(accepted)):
            return load_own(f"{place}:{cls}")
        others.append((place, sha256))
    look = f"dcase info {where} --source shows what it recorded"
    if not others:
        raise CodeNeededError(
            f"{where}: made with {cls} of {file}, code that does not come with dcase and that a "
            f'checkpoint never runs by itself; name it: --code {file} (Python: code="{file}"); '
            f"{look}"
        )
    place, sha256 = next((o for o in others if Path(o[0]).name == file), others[0])
    raise CodeNeededError(
        f"{where}: made with {cls} of a {file} whose SHA-256 begins with {wanted[:SHORT]}, but "
        f"{place} has {sha256[:SHORT]}; {look}; if the change does not matter: "
        f"--code {place}@{sha256[:SHORT]}"
    )


# ------------------------------------------------------------------------------------------------
# Packages


@cache
def entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """What installed packages offer in a group, by lower-case name; nothing of it has run."""
    return {entry.name.lower(): entry for entry in importlib.metadata.entry_points(group=group)}


def load_entry_point(group: str, name: str) -> Any:
    """What a package offers under a name, or None; installed packages are trusted.

    Raises:
        OptionError: If importing it fails.
    """
    entry = entry_points(group).get(name.lower())
    if entry is None:
        return None
    try:
        return entry.load()
    except Exception as error:
        package = entry.dist.name if entry.dist else "a package"
        raise OptionError(f"{name} of {package} cannot be loaded: {reason(error)}") from error
