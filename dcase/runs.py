"""One record for every run: whose folder this is, whether one may go on, and with what.

Training, simulations, relaxations, PINNs, neural DAEs, active learning, generated data: each keeps
what it writes in a folder, and each begins with :func:`claim`. It answers three questions in one
place:

* *Does the folder hold a run?* If so it is touched only to go on with it or to replace it.
* *May I?* Only one process at a time. A lock of the operating system says so, which ends with its
  process, however that ends.
* *With what?* The record ``run.json`` says what made the run (:class:`Identity`): a resume has to
  agree with it, but for what may change.

Nothing is written before all three are answered, and a refusal leaves the folder byte for byte as
it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dcase._version import __version__
from dcase.errors import DcaseError, RunError
from dcase.files import check_held, hold, is_leftover, let_go, remove_leftovers, write_json
from dcase.locks import Lock

RECORD = "run.json"
LOCK = ".lock"
FORMAT = 1
"""Of the record."""

CHECK_SECONDS = 1.0
"""Least time between two looks whether the folder is still there."""

RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"
CLEARING = "clearing"
"""Status while an earlier run is removed: what a kill leaves of it belongs to no run."""


@dataclass(frozen=True)
class Identity:
    """What makes a run the run it is; a resume must agree with it.

    Attributes:
        kind: The command, ``"md"``, ``"train"``...
        settings: Every choice, as plain values; tables may be nested.
        free: Names of settings that may change on a resume (``"table.name"`` for nested ones).
        data: Fingerprints, by name, of what it learns from or starts at; a single one may be given
            as it is.
        model: Fingerprint of the weights it uses; empty where it has none or trains them.
        dtype: Precision of the arithmetic, where it is not among the settings.
        version: Of the kind's code: raised when the same settings give another run.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    data: Mapping[str, str] | str = field(default_factory=dict)
    model: str = ""
    dtype: str = ""
    version: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON will give it back."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self), default=_plain))
        if isinstance(found["data"], str):
            found["data"] = {"data": found["data"]} if found["data"] else {}
        return found

    def differences(self, then: Mapping[str, Any]) -> list[str]:
        """How a record's identity differs from this one, one phrase each; settings by name."""
        now = self.to_dict()
        if then.get("version") != now["version"]:
            return ["it was begun by another version of dcase"]
        found = list(_differing("", then.get("settings", {}), now["settings"], self.free))
        before = then.get("data")
        for name in now["data"]:
            if not isinstance(before, dict) or before.get(name) != now["data"][name]:
                found.append(f"other {name}")
        if then.get("model") != now["model"]:
            found.append("another model (or other weights)")
        if then.get("dtype") != now["dtype"]:
            found.append(f"dtype was {then.get('dtype')}, now {now['dtype']}")
        return found


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{value!r} is no plain value")


def _differing(
    table: str, then: Mapping[str, Any], now: Mapping[str, Any], free: Iterable[str]
) -> Iterator[str]:
    for key in [*now, *(k for k in then if k not in now)]:
        name, old, new = f"{table}{key}", then.get(key), now.get(key)
        if name in free or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differing(f"{name}.", old, new, free)
        else:
            yield f"{name} was {_shown(old)}, now {_shown(new)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def fingerprint(*parts: Any) -> str:
    """A digest of plain values, NumPy arrays and tensors: equal for equal content, else not.

    Raises:
        TypeError: For anything else, which could differ without a difference in the digest.
    """
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        digest.update(b"{%d" % len(value))
        for key in sorted(value, key=str):
            _feed(digest, str(key))
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(b"[%d" % len(value))
        for item in value:
            _feed(digest, item)
    elif hasattr(value, "detach"):  # a tensor; bfloat16 has no NumPy
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        if flat.numel():
            digest.update(flat.view(_uint8()).numpy().tobytes())
    elif isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        if array.dtype == object:
            raise TypeError("an array of objects has no fingerprint")
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    elif value is None or isinstance(value, str | int | float | bool | bytes):
        digest.update(f"{type(value).__name__}:{value!r};".encode())
    else:
        raise TypeError(f"{type(value).__name__} has no fingerprint")


def _uint8() -> Any:
    import torch  # late: what only reads records does without

    return torch.uint8


# ------------------------------------------------------------------------------------------------
# Claiming a folder


@dataclass(frozen=True)
class Place:
    """Where a kind of run keeps its files.

    Attributes:
        folder: With the record and the lock.
        files: Patterns, relative to the folder, of all files and folders that such a run writes:
            any of them is a sign of a run, and all of them go when it is replaced.
        results: Files outside of the folder that belong to the run as well.
        empty: Whether the folder has to be the run's alone.
        goes_on: Whether such a run can be gone on with at all.
    """

    folder: Path
    files: tuple[str, ...] = ()
    results: tuple[Path, ...] = ()
    empty: bool = False
    goes_on: bool = True

    @property
    def record(self) -> Path:
        """``run.json``."""
        return self.folder / RECORD

    @property
    def lock(self) -> Path:
        """The file that is locked while a process is at work."""
        return self.folder / LOCK

    def resumable(self) -> bool:
        """Whether there is a record: for runs inside of another one, which goes on where it can."""
        return _exists(self.record)

    def found(self) -> list[Path]:
        """What a run has left here, the record first."""
        matches = (path for pattern in self.files for path in sorted(self.folder.glob(pattern)))
        here = [path for path in (self.record, *self.results, *matches) if _exists(path)]
        return list(dict.fromkeys(path for path in here if path != self.lock))

    def clear(self) -> None:
        """Remove the files of a run but the record, and nothing else."""
        for path in self.found():
            if path == self.record:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what kills in the middle of atomic writes have left."""
        for path in self.results:
            remove_leftovers(path)
        folders = [self.folder]
        while folders:
            folder = folders.pop()
            _sweep(folder)
            for path in folder.iterdir():
                # Runs inside of this one sweep their own when they are claimed.
                if path.is_dir() and not path.is_symlink() and not _exists(path / RECORD):
                    folders.append(path)


def _sweep(folder: Path) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            if is_leftover(path.name):
                with suppress(OSError):
                    path.unlink()


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


class Run:
    """A claimed folder, until it is released; made by :func:`claim`.

    Attributes:
        place: Its files.
        identity: What it is.
        resumed: Whether there was such a run before.
        record: ``run.json``: ``kind``, ``identity``, ``status``, ``begun``, ``version`` of dcase,
            and whatever :meth:`note` adds.
    """

    def __init__(
        self, place: Place, identity: Identity, lock: Lock, record: dict[str, Any], resumed: bool
    ):
        self.place, self.identity, self.resumed, self.record = place, identity, resumed, record
        self._lock = lock
        hold(self.folder)
        self._checked = time.monotonic()

    @property
    def folder(self) -> Path:
        """Where the run is."""
        return self.place.folder

    def check(self, *, now: bool = False) -> None:
        """Make sure that the folder is still the one that was claimed (once a second at most).

        Args:
            now: Look however short ago the last look was; before a file is written.

        Raises:
            RunError: If it was moved, removed or replaced.
        """
        moment = time.monotonic()
        if not now and moment - self._checked < CHECK_SECONDS:
            return
        self._checked = moment
        check_held(self.place.record)
        if not self._lock.in_place():
            raise RunError(
                f"{self.folder} is not locked any more while the run is writing to it: its {LOCK} "
                "was removed; the run stops here, and --resume goes on"
            )

    def note(self, **facts: Any) -> None:
        """Add plain values to the record."""
        self.check(now=True)
        self.record |= facts
        write_json(self.place.record, self.record)

    def finish(self, status: str = FINISHED) -> None:
        """Write down how the run stands."""
        self.note(status=status)

    def discard(self) -> None:
        """Remove the run's files, record and folder: its result stands elsewhere and says all."""
        self.check(now=True)
        self.record["status"] = FINISHED
        self.place.clear()
        self.place.record.unlink()
        self.release()
        with suppress(OSError):  # there are other files
            self.folder.rmdir()

    def release(self) -> None:
        """Give the folder back."""
        let_go(self.folder)
        self._lock.release()

    def _untouched(self) -> bool:
        """Whether there is nothing here yet that the run has written."""
        return self._lock.in_place() and self.place.found() == [self.place.record]

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            if error is not None:  # which says more than what could go wrong here
                if not self.resumed and self._untouched():
                    let_go(self.folder)
                    self._lock.undo(self.place.record)
                    return
                with suppress(DcaseError):
                    self.finish(FAILED if isinstance(error, Exception) else INTERRUPTED)
            elif self.record["status"] == RUNNING:
                self.finish()
        finally:
            self.release()


def claim(
    place: Place,
    identity: Identity,
    *,
    resume: bool = False,
    overwrite: bool = False,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Take possession of a folder for a run, or refuse and leave it as it is.

    Args:
        place: The folder, and what belongs to a run in it.
        identity: Of the run to begin or to go on with.
        resume: Go on with the run there.
        overwrite: Replace the run there.
        check: Called with the record of the run to go on with, under the lock and before anything
            is written; raises what else is against it.

    Returns:
        The run. Use it as a context manager, which releases the folder in the end.

    Raises:
        RunError: If there is a run and neither flag is given, nothing to resume, a run of another
            kind or with other settings, data, weights or precision; if a process is at work in the
            folder; or if the folder cannot be written to.
    """
    if resume and overwrite:
        raise RunError("resume and overwrite exclude each other")
    if resume and not place.folder.is_dir():
        raise RunError(f"nothing to resume: there is no run in {place.folder}")
    lock = Lock(place.lock)
    lock.take()
    try:
        then = _decide(place, identity, resume, overwrite, lock.leftover)
        if then is not None and check is not None:
            check(then)
        record = {
            **(then or {}),
            "format": FORMAT,
            "kind": identity.kind,
            "identity": identity.to_dict(),
            "status": RUNNING,
        }
        if overwrite or (then is not None and then.get("status") == CLEARING):
            write_json(place.record, record | {"status": CLEARING})
            place.clear()
            then = None
        place.sweep()
        if then is None:
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            record |= {"begun": now, "begun_with": __version__}
        write_json(place.record, record)
        lock.sign()
    except OSError as error:
        lock.undo()
        raise RunError(f"cannot write to {place.folder}: {error.strerror or error}") from error
    except BaseException:
        lock.undo()
        raise
    return Run(place, identity, lock, record, then is not None)


def _decide(
    place: Place, identity: Identity, resume: bool, overwrite: bool, leftover: bool
) -> dict[str, Any] | None:
    """The record of the run to go on with, None to begin one; or a refusal."""
    folder, found = place.folder, place.found()
    record = None
    if _exists(place.record):
        try:
            record = read_record(folder)
        except RunError:
            if not overwrite:
                raise
    if record is not None and record["kind"] != identity.kind:
        raise RunError(
            f"{folder} holds a run of another kind ({record['kind']}): choose another --out"
        )
    others = place.empty and any(
        path.name != LOCK and not is_leftover(path.name) for path in folder.iterdir()
    )
    if overwrite:
        if others and not _exists(place.record):
            raise RunError(f"{folder} was not made by dcase {identity.kind}; it is left alone")
        return None
    if not resume:
        if found:
            first = found[0] if found[0] in place.results else folder
            goes_on = "--resume goes on, " if place.goes_on else ""
            raise RunError(
                f"{first} already exists and holds a run: {goes_on}--overwrite starts again, or "
                "choose another --out"
            )
        if others:
            raise RunError(f"{folder} is not empty: choose another --out")
        return None
    if record is None:
        if found:
            raise RunError(
                f"cannot resume: {found[0]} has no {RECORD} that says how it was made (an earlier "
                "version of dcase?); --overwrite starts again"
            )
        if leftover:  # killed between the lock and the record
            return None
        raise RunError(f"nothing to resume: there is no run in {folder}")
    changed = identity.differences(record["identity"])
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        names = ", ".join(name.rpartition(".")[2] for name in identity.free)
        raise RunError(
            f"cannot resume {folder}: {'; '.join(changed[:3])}{more}"
            + (f" (only {names} may change)" if names else "")
            + "; use the same, or --overwrite to start again"
        )
    return record


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of the run in a folder.

    Raises:
        RunError: If there is none, or it is damaged.
    """
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder} holds no run (there is no {RECORD})") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); --overwrite starts again") from error
    whole = isinstance(record, dict) and isinstance(record.get("kind"), str)
    identity = record.get("identity") if whole else None
    if not isinstance(identity, dict) or not isinstance(identity.get("settings"), dict):
        raise RunError(f"{path} is not of this version of dcase; --overwrite starts again")
    if not isinstance(record.get("format", 0), int):
        raise RunError(f"{path} is damaged; --overwrite starts again")
    if record.get("format", 0) > FORMAT:
        raise RunError(f"{path} was written by a newer version of dcase")
    return record
