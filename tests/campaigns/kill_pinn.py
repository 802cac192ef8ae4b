"""Kills PINNs, neural DAEs and makers of trajectories, goes on, and compares with no kill at all.

``python tests/campaigns/kill_pinn.py [KILLS [KIND]]`` kills each kind at least so often (20), in
chains of one to four kills of the same run: half at a random moment, half at a chosen write (before
a file is opened for writing or renamed). After a chain the run goes on to its end. Then weights and
metrics must be those of the run that nobody killed, bit for bit, and so must be the rows of the
logs; only times may differ.

Runs are forked from this process, which has imported everything: a kill costs no start of Python.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dcase.dae import run as dae_run
from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.settings import DaeSettings
from dcase.dae.settings import default_settings as dae_settings
from dcase.dae.trajectories import load_or_make, make_file, make_pairs, read
from dcase.errors import RunError
from dcase.pinn.pdebench.generate import write_advection
from dcase.pinn.run import Source, train
from dcase.pinn.settings import PinnSettings, PointSettings

LONGEST = 120.0  # seconds that a run may take, on a busy machine
TIMES = ("elapsed_s",)

NETWORK = PinnSettings(
    width=8, depth=2, modes=3, optimizer="adam:40,lbfgs:10", lr=5e-3, smooth=0, windows=2, refine=1,
    hard="periodic", balance="gradient-norm", balance_every=10, checkpoint_every=0.02,
    points=PointSettings(interior=64, boundary=16, initial=16),
)  # fmt: skip
MODES = PinnSettings(
    network="modes", march="2:0.1:8", optimizer="lbfgs:8", smooth=0, checkpoint_every=0.02
)
DAE = dae_settings("pendulum").changed(
    n_train=40, n_validation=20, n_test=10, epochs=6, k=5, layers=2, hidden=8
)


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: For the table.
        work: Begins or goes on in a folder: ``work(folder, resume)``.
        result: What must be the same at the end, by name.
        logs: Patterns of the logs in the folder.
    """

    name: str
    work: Callable[[Path, bool], object]
    result: Callable[[Path], dict[str, Any]]
    logs: tuple[str, ...] = ()


def kinds(folder: Path) -> list[Kind]:
    """All of them; ``folder`` gets what they learn from."""
    waves = str(
        write_advection(folder / "waves.hdf5", [0], seed=1, cells=64, times=21, scheme="exact")
    )
    swing = simulate_pendulum(1100, substeps=2)
    pairs = make_pairs(swing, 5, 40, 20, 10, seed=0)

    def pinn(settings: PinnSettings) -> Callable[[Path, bool], object]:
        source = Source("advection", waves)
        return lambda out, resume: train(source, settings, out, resume=resume, pictures=False)

    def dae(out: Path, resume: bool) -> object:
        return dae_run.train(DAE, out, trajectory=swing, pairs=pairs, resume=resume, pictures=False)

    def own_file(out: Path, resume: bool) -> object:
        target = out / "swing.h5"
        if resume and target.exists():  # killed after the last write: as the user would see
            return target
        return make_file("pendulum", target, steps=2000, substeps=4)

    def cached(out: Path, resume: bool) -> object:
        return load_or_make("pendulum", cache_dir=out, steps=2000, substeps=4)

    return [
        Kind("pinn train, network", pinn(NETWORK), _of_run, ("fits/*/metrics.csv",)),
        Kind("pinn train, modes", pinn(MODES), _of_run, ("fits/march/metrics.csv",)),
        Kind("dae train", dae, _of_run, ("metrics.csv",)),
        Kind("dae data, file", own_file, _of_files),
        Kind("dae data, cache", cached, _of_files),
    ]


def _of_run(folder: Path) -> dict[str, Any]:
    """Weights, metrics and what is in the folder."""
    content = torch.load(folder / "model.pt", weights_only=True)
    found: dict[str, Any] = {"files": _names(folder)}
    found["metrics"] = json.loads((folder / "metrics.json").read_text())
    found["status"] = json.loads((folder / "run.json").read_text())["status"]
    for name in TIMES:
        found["metrics"].pop(name, None)
    parts = content.get("windows") or [content]
    found["weights"] = [_bits(part["weights"]) for part in parts]
    return found


def _of_files(folder: Path) -> dict[str, Any]:
    names = _names(folder)
    return {"files": names, "content": [read(folder / name).fingerprint() for name in names]}


def _names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _bits(weights: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in weights.items()}


def _rows(folder: Path, patterns: tuple[str, ...]) -> dict[str, list[tuple[str, ...]]]:
    """Rows of the logs without times, by file."""
    found = {}
    for path in sorted(p for pattern in patterns for p in folder.glob(pattern)):
        with open(path, newline="", encoding="utf-8") as file:
            rows = [
                {k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)
            ]
        found[str(path.relative_to(folder))] = [tuple(row.values()) for row in rows]
    return found


# ------------------------------------------------------------------------------------------------
# Killing


def _start(kind: Kind, folder: Path, die_at: int = 0) -> int:
    """Fork a process that begins or goes on; with ``die_at`` it kills itself at that write."""
    resume = folder.is_dir() and any(folder.iterdir())
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        if die_at:
            _die_at(die_at, str(folder))
        try:
            kind.work(folder, resume)
        except RunError as error:
            if not resume or "nothing to resume" not in str(error):
                raise
            kind.work(folder, False)
        code = 0
    except BaseException as error:
        print(f"{kind.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _die_at(number: int, folder: str) -> None:
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in ("os.rename", "open"):
            return
        path, flags = arguments[0], arguments[2]
        if event == "open" and not (isinstance(flags, int) and flags & _WRITING):
            return
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(folder):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


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


def _writes(kind: Kind, folder: Path) -> int:
    """How many writes a run makes until its end, by killing it later and later."""
    low, high = 0, 1
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if _end(_start(kind, folder, high)) == 0:
            break
        low, high = high, 2 * high
    while high - low > 1:
        shutil.rmtree(folder, ignore_errors=True)
        middle = (low + high) // 2
        if _end(_start(kind, folder, middle)) == 0:
            high = middle
        else:
            low = middle
    shutil.rmtree(folder, ignore_errors=True)
    return low


def _one_kind(kind: Kind, folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    begun = time.monotonic()
    whole = folder / "whole"
    assert _end(_start(kind, whole)) == 0
    length = time.monotonic() - begun
    expected, rows = kind.result(whole), _rows(whole, kind.logs)
    writes = _writes(kind, folder / "count")
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
    rows: dict[str, list[tuple[str, ...]]],
) -> None:
    found = kind.result(out)
    for name, value in expected.items():
        if found[name] != value:
            row["changed"] += 1
            print(f"{kind.name}: {name} differ in {out}", file=sys.stderr)
    now = _rows(out, kind.logs)
    for name, then in rows.items():
        here = now.get(name, [])
        row["lost"] += len(set(then) - set(here))
        row["doubled"] += len(here) - len(set(here))
        row["changed"] += len(set(here) - set(then))


def campaign(kills: int = 20, seed: int = 0, only: str = "") -> list[dict[str, Any]]:
    """Kill each kind at least ``kills`` times; ``only`` those with this in their names.

    Returns:
        A row for each kind: ``kills`` (of them ``at_writes``), ``chains``, rows of logs ``lost``
        and ``doubled``, results and rows ``changed``, and runs that could not go on (``dead``).
    """
    before = DaeSettings.train_settings
    # A neural DAE saves its state once a minute: more often here, so that there is one to go on.
    DaeSettings.train_settings = lambda self: replace(  # type: ignore[method-assign]
        before(self), checkpoint_every=0.02
    )
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="kill-pinn-") as folder:
            found = []
            for kind in (k for k in kinds(Path(folder)) if only in k.name):
                place = Path(folder) / kind.name.replace(" ", "-").replace(",", "")
                found.append(_one_kind(kind, place, kills, random.Random(seed)))
            return found
    finally:
        DaeSettings.train_settings = before  # type: ignore[method-assign]


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for line in campaign(asked, only=" ".join(sys.argv[2:])):
        print(json.dumps(line), flush=True)
