"""Tables as Markdown and CSV, for all that writes its results as such."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcase.files import write_text
from dcase.locks import only_writer


def number_text(value: Any) -> str:
    """Three digits of a float, all of a whole number, ``""`` for None."""
    if value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN"
    return f"{value:,.0f}" if isinstance(value, int) else f"{value:.3g}"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; all columns but the first are numbers."""
    rule = "|".join(["---", *["---:"] * (len(head) - 1)])
    lines = [f"| {' | '.join(head)} |", f"|{rule}|"]
    return lines + [f"| {' | '.join(cells)} |" for cells in body]


def grid(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of equal keys as the lines of a Markdown table."""
    columns = list(rows[0])
    body = [
        [row[c] if isinstance(row[c], str) else number_text(row[c]) for c in columns]
        for row in rows
    ]
    return markdown_table(columns, body)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All columns as CSV, in the order in which they first appear.

    Raises:
        DcaseError: If the file cannot be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@contextmanager
def page_files(folder: Path, name: str) -> Iterator[None]:
    """Write ``NAME.md``, ``.csv``, ``.json``, ``.png`` in the block, one process at a time.

    What kills have left of an earlier writing goes.

    Raises:
        RunError: If the folder cannot be written to.
    """
    others = [folder / f"{name}{ending}" for ending in (".csv", ".json", ".png")]
    with only_writer(folder / f"{name}.md", beside=others, wait=True):
        yield
