"""Tables that several commands print, and the console they print them to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dcase.data.frames import UNKNOWN

_COLUMNS = (
    ("energy_mae_mev", "E meV", "{:.2f}"),
    ("energy_mae_mev_per_atom", "meV/atom", "{:.3f}"),
    ("energy_mae_kcal_mol", "kcal/mol", "{:.4f}"),
    ("forces_mae_mev_angstrom", "F meV/A", "{:.2f}"),
    ("forces_mae_kcal_mol_angstrom", "kcal/mol/A", "{:.4f}"),
    ("stress_mae_gpa", "S GPa", "{:.4f}"),
    ("stress_mae_mev_angstrom3", "meV/A^3", "{:.3f}"),
    ("efwt", "EFwT %", "{:.1f}"),
)


def results_console() -> Console:
    """Standard output, for results.

    In a file or pipe, where rich assumes 80 columns, there is room for whole lines.
    """
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def errors_title(theory: str) -> str:
    """Title of a table of errors on labels of this level of theory."""
    return "Mean absolute errors" + ("" if theory == UNKNOWN else f", {theory}")


def error_table(rows: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Mean absolute errors, a row a set of frames."""
    columns = [c for c in _COLUMNS if any(c[0] in metrics for metrics in rows.values())]
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("", no_wrap=True)
    for _, header, _ in columns:
        table.add_column(header, justify="right", no_wrap=True)
    for name, metrics in rows.items():
        cells = []
        for key, _, form in columns:
            value = metrics.get(key)
            if key == "efwt" and value is not None:
                value *= 100
            cells.append("-" if value is None else form.format(value))
        table.add_row(name, *cells)
    return table
