"""The metrics of a run as CSV, and TensorBoard events where asked for."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from dcase.errors import MissingExtraError
from dcase.files import write_text


class MetricsLog:
    """One row an epoch in ``metrics.csv``.

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
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError(
                    "TensorBoard is not installed; pip install 'dcase[tensorboard]'"
                ) from error
            self._events = SummaryWriter(log_dir=str(folder))

    def start(self) -> None:
        """Begin a new log."""
        write_text(self.path, ",".join(self.columns) + "\n")

    def write(self, row: dict[str, float]) -> None:
        """Append a row; missing columns stay empty."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(row)
        if self._events is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._events.add_scalar(name, value, int(row["epoch"]))
            self._events.flush()

    def cut_after(self, epoch: int) -> None:
        """Drop rows after ``epoch`` (written after the state that a resume goes on from)."""
        if not self.path.exists():
            self.start()
            return
        header, *rows = self.path.read_text(encoding="utf-8").splitlines()
        kept = [r for r in rows if r.count(",") == header.count(",")
                and int(r.split(",")[0]) <= epoch]
        write_text(self.path, "\n".join([header, *kept]) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a ``metrics.csv`` as numbers; empty cells and a half-written last row are left out."""
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if None in row.values() or not row.get("epoch"):
                continue
            try:
                rows.append({k: float(v) for k, v in row.items() if v})
            except ValueError:
                continue
    return rows
