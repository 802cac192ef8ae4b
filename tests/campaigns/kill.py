"""Kills runs of every kind, goes on, and compares with a run that nobody killed.

``python tests/campaigns/kill.py [KILLS [KIND]]`` (``make kills``) kills each kind at least so often
(20), in chains of one to four kills of the same run: half at a random moment, half at a chosen
write (before a file is opened for writing, synced or renamed). After a chain the run goes on to its
end. Then the result must be that of the run that nobody killed, bit for bit, and so must be the
rows of logs, series and trajectories; only times may differ. The kinds are in ``kill_kinds.py`` and
``kill_equations.py``.

Runs are forked from this process, which has imported everything: a kill costs no start of Python.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcase.errors import RunError

LONGEST = 300.0  # seconds that a run may take, on a busy machine
Rows = dict[str, list[Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: For the table.
        work: Begins or goes on in a folder: ``work(folder, resume)``.
        result: What must be the same at the end, by name.
        rows: Rows of logs, series and trajectories without times, by file.
    """

    name: str
    work: Callable[[Path, bool], object]
    result: Callable[[Path], dict[str, Any]]
    rows: Callable[[Path], Rows]


# ------------------------------------------------------------------------------------------------
# Killing


def _start(kind: Kind, folder: Path, die_at: int = 0, tell: Path | None = None) -> int:
    """Fork a process that begins or goes on; with ``die_at`` it kills itself at that write.

    ``tell`` is a file that gets the number of writes at the end.
    """
    resume = folder.is_dir() and any(folder.iterdir())
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        _silent()
        count = _die_at(die_at, str(folder)) if die_at or tell else None
        try:
            kind.work(folder, resume)
        except RunError as error:
            if not resume or "nothing to resume" not in str(error):
                raise
            kind.work(folder, False)
        if tell and count:
            tell.write_text(str(count()))
        code = 0
    except BaseException as error:
        os.write(_OUR_STDERR, f"{kind.name}: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _silent() -> None:
    """What commands print is of no interest here."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


_OUR_STDERR = os.dup(2)


def _die_at(number: int, folder: str) -> Callable[[], int]:
    """Die before a file of the run is opened for writing or renamed, or anything synced.

    Returns:
        Tells how many such writes there were.
    """
    count = 0

    def one_more() -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("os.rename", "open"):
            return
        path, flags = arguments[0], arguments[2]
        if event == "open" and not (isinstance(flags, int) and flags & _WRITING):
            return
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(folder):
            one_more()

    sync = os.fsync

    def counted(file: Any) -> None:
        one_more()
        sync(file)

    os.fsync = counted
    sys.addaudithook(watch)
    return lambda: count


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _end(pid: int, within: float = LONGEST) -> int:
    """Wait; returns the exit code, or minus the signal."""
    until = time.monotonic() + within
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"a run took more than {within:g} s")
        time.sleep(0.001)


def _one_kind(kind: Kind, folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    begun = time.monotonic()
    whole = folder / "whole"
    told = folder / "writes"
    folder.mkdir()
    assert _end(_start(kind, whole, tell=told)) == 0
    length = time.monotonic() - begun
    expected, rows = kind.result(whole), kind.rows(whole)
    writes = int(told.read_text())
    row = dict.fromkeys(("kills", "at_writes", "chains", "lost", "doubled", "changed", "dead"), 0)
    while row["kills"] < kills:
        out = folder / f"chain-{row['chains']}"
        row["chains"] += 1
        for _ in range(rng.randint(1, 4)):
            at_write = rng.random() < 0.5
            pid = _start(kind, out, rng.randint(1, writes) if at_write else 0)
            if not at_write:
                time.sleep(rng.uniform(0.0, length))
                os.kill(pid, signal.SIGKILL)
            if _end(pid) != -signal.SIGKILL:  # it was faster, or failed, which the end will tell
                break
            row["kills"] += 1
            row["at_writes"] += at_write
        if _end(_start(kind, out)) != 0:
            row["dead"] += 1  # it could not go on
            continue
        _compare(row, kind, out, expected, rows)
        shutil.rmtree(out)
    return {"kind": kind.name, **row}


def _compare(
    row: dict[str, int],
    kind: Kind,
    out: Path,
    expected: dict[str, Any],
    rows: Rows,
) -> None:
    found = kind.result(out)
    for name, value in expected.items():
        if found[name] != value:
            row["changed"] += 1
            print(f"{kind.name}: {name} differ in {out}", file=sys.stderr)
            if name == "files":
                print(sorted(set(value) ^ set(found[name])), file=sys.stderr)
    now = kind.rows(out)
    for name, then in rows.items():
        count(row, then, now.get(name, []))


def count(row: dict[str, int], then: list[Any], now: list[Any]) -> None:
    """Add to ``row`` which rows of a run that nobody killed are lost, doubled or changed."""
    missing = sum((Counter(then) - Counter(now)).values())
    more = Counter(now) - Counter(then)
    doubled = sum(number for value, number in more.items() if value in then)
    other = sum(more.values()) - doubled
    row["changed"] += other
    row["doubled"] += doubled
    row["lost"] += max(missing - other, 0)
    if not (missing or more) and then != now:  # in another order
        row["changed"] += 1


def campaign(kills: int = 20, seed: int = 0, only: str = "") -> list[dict[str, Any]]:
    """Kill each kind at least ``kills`` times; ``only`` those with this in their names.

    Returns:
        A row for each kind: ``kills`` (of them ``at_writes``), ``chains``, rows of logs, series and
        trajectories ``lost`` and ``doubled``, results and rows ``changed``, and runs that could not
        go on (``dead``). Each is printed when it is there.
    """
    import kill_equations
    import kill_kinds

    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        sources = Path(folder) / "sources"
        sources.mkdir()
        for kind in (*kill_kinds.kinds(sources), *kill_equations.kinds(sources)):
            if only in kind.name:
                place = Path(folder) / kind.name.replace(" ", "-").replace(",", "")
                found.append(_one_kind(kind, place, kills, random.Random(seed)))
                print(json.dumps(found[-1]), flush=True)
                shutil.rmtree(place)
    return found


if __name__ == "__main__":
    here = Path(__file__).resolve()
    sys.modules["kill"] = sys.modules["__main__"]  # which the kinds import
    sys.path[:0] = [str(here.parent), *(str(here.parents[1] / n) for n in ("common", "md_runs"))]
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    lines = campaign(asked, only=" ".join(sys.argv[2:]))
    bad = sum(line[name] for line in lines for name in ("lost", "doubled", "changed", "dead"))
    sys.exit(bool(bad))
