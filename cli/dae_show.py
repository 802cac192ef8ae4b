"""Tables of ``dcase dae`` for the terminal."""

from __future__ import annotations

import math
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from dcase.cli.show import results_console
from dcase.dae.systems import System, system_named

PREDICTORS = {
    "": "network",
    "identity": "identity (nothing moves)",
    "constant_velocity": "constant velocity",
}


def print_metrics(metrics: dict[str, Any]) -> None:
    """Errors and violations beside those of predictors without a network."""
    system = system_named(metrics["system"])
    nodes = "bodies" if system.name == "pendulum" else "atoms"
    title = f"Test samples; MAE: mean over {nodes} of the distance from the true position"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("", no_wrap=True)
    columns = {
        system.mae: f"MAE {system.error}",
        "mean_violation": f"mean violation {system.length}",
        "max_violation": f"max violation {system.length}",
        "velocity_error": f"velocity {system.length}/{system.time}",
    }
    for title in columns.values():
        table.add_column(title, justify="right", no_wrap=True)
    for key, name in PREDICTORS.items():
        errors = metrics[key] if key else metrics
        label = name if key else f"{name}, {metrics['method']}"
        table.add_row(label, *(_number(errors[c]) for c in columns))
    results_console().print(table)


def _number(value: float) -> str:
    """Three digits; thousands without an exponent."""
    if math.isnan(value):
        return "NaN"
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def print_roll_out(tables: dict[str, list[dict[str, float]]], system: System, unseen: bool) -> None:
    """Error, violations and change of energy after so many applications, by predictor."""
    what = "not used in training" if unseen else "the part that training used"
    table = Table(title=f"Roll-outs, motion {what}", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("", no_wrap=True)
    head = {
        "applications": "applied",
        "time": f"time {system.time}",
        system.mae: f"MAE {system.error}",
        "mean_violation": f"mean violation {system.length}",
        "max_violation": f"max violation {system.length}",
    }
    if "energy_change" in tables["network"][0]:
        head["energy_change"] = "energy change J"
    for title in head.values():
        table.add_column(title, justify="right", no_wrap=True)
    for label, rows in tables.items():
        for row in rows:
            table.add_row(label, *(_number(row[c]) for c in head))
        table.add_section()
    results_console().print(table)
    if not all(math.isfinite(row["max_violation"]) for row in tables["network"]):
        click.echo("NaN: the roll-out ran away; train longer, or apply the network less often")
