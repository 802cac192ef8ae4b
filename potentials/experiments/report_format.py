"""How the SchNet report's tables are written: numbers, captions' parts, files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcase.files import write_json, write_text
from dcase.potentials.experiments.report_runs import REPORT, TOTAL
from dcase.tables import page_files, write_rows


def number(value: float | None) -> str:
    """Three digits; ``n.a.`` for None."""
    if value is None:
        return "n.a."
    if not math.isfinite(value):
        return "NaN"
    size = abs(value)
    if size >= 1e5 or 0 < size < 1e-3:
        return f"{value:.2e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def quoted(value: float | None) -> str:
    """A figure of the report with all digits it prints; large ones as :func:`number`."""
    if value is None or abs(value) >= 1000 or not math.isfinite(value):
        return number(value)
    return f"{value:g}"


def recipe_title(name: str) -> str:
    """What the column of a recipe is called."""
    titles = {REPORT: "report's protocol, offset", TOTAL: "report's protocol, total energies"}
    stem = Path(name).stem
    return titles.get(stem, f"recipe {stem}")


def span(values: Sequence[float]) -> str:
    """``"3 to 8"``, or one number where they agree."""
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


def describe(recipe: Mapping[str, Any]) -> str:
    """A recipe in a line."""
    model, labels, training = recipe["model"], recipe["labels"], recipe["training"]
    knots = recipe["acceleration"]["filter_table"]
    own = ", ".join(f"{k} {v}" for k, v in model["hyper_parameters"].items())
    rescale = labels["rescale"]
    parts = [
        f"{model['architecture']}, size {model['size']}{f' but {own}' if own else ''}",
        f"activation {model['activation']}",
        f"offset {labels['offset']}",
        f"rescale {rescale if isinstance(rescale, str) else f'{rescale:.3g}'}",
        f"{training['optimizer']} {training['lr']:g}",
        f"{training['schedule']} schedule",
        f"batch {training['batch_size']}",
        *([f"filters on splines with {knots} intervals"] if knots else []),
    ]
    return ", ".join(parts)


def page(heading: str, lines: Sequence[str], notes: Sequence[str]) -> str:
    """Caption, tables, notes."""
    text = [heading, "", *lines]
    if notes:
        text += ["", *(f"* {note}" for note in notes)]
    return "\n".join(text).replace("\n\n\n", "\n\n") + "\n"


def write_page(
    folder: Path, name: str, text: str, rows: Sequence[Mapping[str, Any]], **more: Any
) -> None:
    """``NAME.md``, ``NAME.csv`` and ``NAME.json``, each whole or not there."""
    with page_files(folder, name):
        write_rows(folder / f"{name}.csv", rows)
        write_json(folder / f"{name}.json", {"rows": list(rows), "text": text, **more})
        write_text(folder / f"{name}.md", text)
