"""What the benchmarks share: the machine, result files, and peers in environments of their own."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from dcase.files import write_text
from dcase.md_runs.bench.machine import processor

PEERS = Path(__file__).resolve().parent / "peers"


class Peer:
    """A program in a peer's environment that answers requests, one line each.

    It says ``ready WORDS`` once it has read what it needs (``first`` holds the words), and ends
    when this program, and with it its standard input, does.

    Args:
        name: Of the contestant, for messages.
        environment: ``.venv-ENVIRONMENT`` in ``peers``, made by ``make peer-ENVIRONMENT``.
        arguments: Script in ``peers``, and what it gets.

    Raises:
        SystemExit: If the environment is not there, or the program does not start.
    """

    def __init__(self, name: str, environment: str, *arguments: str | Path):
        folder = PEERS / f".venv-{environment}"
        if not (folder / ".installed").exists():
            raise SystemExit(f"{name} needs its own environment: make peer-{environment}")
        script, *rest = arguments
        worker = subprocess.Popen(
            [folder / "bin" / "python", "-W", "ignore", PEERS / script, *rest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        self.name, self._requests, self._replies = name, worker.stdin, worker.stdout
        first = self._replies.readline().split()
        if first[:1] != ["ready"]:
            raise SystemExit(f"{name} did not start; make peer-{environment} makes it anew")
        self.first = first[1:]

    def ask(self, request: str) -> list[float]:
        """The numbers of the reply.

        Raises:
            SystemExit: If the peer has ended.
        """
        try:
            print(request, file=self._requests, flush=True)
            reply = self._replies.readline().split()
        except BrokenPipeError:
            reply = []
        if not reply:
            raise SystemExit(f"{self.name} stopped; its own message is above")
        return [float(word) for word in reply]


def machine() -> dict[str, str]:
    """Where this runs and with which torch."""
    return {
        "machine": platform.platform(),
        "processor": processor(),
        "torch": torch.__version__,
    }


def load() -> str:
    """Programs that wanted to run in the last minute, on average: an idle machine's is near 0."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


def write_results(
    folder: Path, name: str, rows: list[dict[str, Any]], about: dict[str, Any]
) -> None:
    """``NAME.csv`` with the rows, and ``NAME.json`` with machine, ``about`` and the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / f"{name}.csv", table.getvalue())
    write_text(
        folder / f"{name}.json", json.dumps({**machine(), **about, "results": rows}, indent=2)
    )
