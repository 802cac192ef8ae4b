"""The table of errors of what is no energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from dcase.potentials.quantity import Quantity


def value_table(rows: Mapping[str, Mapping[str, Any]], quantity: Quantity) -> Table:
    """Errors of a quantity, a row a set of molecules.

    Args:
        rows: Metrics of :func:`dcase.potentials.fitting.evaluation.value_metrics` by what they
            are of.
        quantity: Of which.
    """
    unit = "meV" if quantity.unit == "eV" else quantity.unit
    table = Table(title=f"Errors of {quantity.name}", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("", no_wrap=True)
    kinds = ("mae", "rmse")
    for kind in kinds:
        table.add_column(f"{kind.upper()} {unit}", justify="right", no_wrap=True)
    for name, metrics in rows.items():
        found = [
            next(value for key, value in metrics.items() if key.startswith(f"{quantity.key}_{k}_"))
            for k in kinds
        ]
        table.add_row(name, *(f"{value:.4g}" for value in found))
    return table
