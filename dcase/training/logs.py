"""The metrics of a run as CSV, and TensorBoard events where asked for."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from dcase.errors import DcaseError, MissingExtraError
from dcase.files import write_text


class MetricsLog:
    """One row an epoch in ``metrics.csv``; a fractional epoch is one that a limit cut short.

    Args:
        folder: Where to write.
        columns: Names of the columns, the epoch first.
        tensorboard: Also write TensorBoard events there.

    Raises:
        MissingExtraError: If TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, columns: list[str], *, tensorboard: bool = False):
        self.path = Path(folder) / "metrics.csv"
        self.columns = columns
        self._events: Any = None
        self._writer: Any = None  # opened with the first row: it writes into the folder at once
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError(
                    "TensorBoard is not installed; pip install 'dcase[tensorboard]'"
                ) from error
            self._writer = SummaryWriter

    def start(self) -> None:
        """Begin a new log."""
        write_text(self.path, ",".join(self.columns) + "\n")

    def write(self, row: dict[str, float]) -> None:
        """Append a row; missing columns stay empty."""
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(row)
        except OSError as error:
            raise DcaseError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self._writer is not None:
            if self._events is None:
                self._events = self._writer(log_dir=str(self.path.parent))
            for name, value in row.items():
                if name != "epoch":
                    self._events.add_scalar(name, value, int(row["epoch"]))
            self._events.flush()

    def close(self) -> None:
        """End the TensorBoard events."""
        if self._events is not None:
            self._events.close()

    def cut_after(self, epoch: int) -> None:
        """Drop rows after ``epoch`` (written after the state that a resume goes on from)."""
        header = ",".join(self.columns)
        lines = _whole_lines(self.path) if self.path.exists() else []
        kept = []
        if lines and lines[0] == header:
            kept = [r for r in lines[1:] if _epoch(r, len(self.columns)) <= epoch]
        write_text(self.path, "\n".join([header, *kept]) + "\n")


def _whole_lines(path: Path) -> list[str]:
    """Lines but a last one that a crash cut short."""
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _epoch(row: str, n_columns: int) -> float:
    cells = row.split(",")
    try:
        return float(cells[0]) if len(cells) == n_columns else math.inf
    except ValueError:
        return math.inf


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a ``metrics.csv`` as numbers, without empty cells and a half-written last row."""
    rows = []
    for row in csv.DictReader(_whole_lines(path)):
        if None in row.values() or None in row or not row.get("epoch"):
            continue
        try:
            rows.append({k: float(v) for k, v in row.items() if v})
        except ValueError:
            continue
    return rows
