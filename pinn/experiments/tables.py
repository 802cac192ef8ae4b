"""Tables of PINN runs beside the paper's, as Markdown and CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dcase.pinn.experiments.published import PUBLISHED
from dcase.tables import markdown_table, number_text

BASELINES = ("zero", "mean", "persistence")


def paper_rows(
    task: str, results: Sequence[Mapping[str, Any]], *, letter: bool
) -> list[dict[str, Any]]:
    """A row a method: errors, loss terms, and the paper's figures; then the trivial predictors.

    Args:
        task: One of PDEBench's.
        results: ``metrics.json`` of each method, with ``label``.
        letter: Also the paper's loss terms: only to the letter are they of the same equations.
    """
    rows = []
    for result in results:
        label = result["label"]
        published = PUBLISHED[task].get(label, {})
        row: dict[str, Any] = {"method": label, "status": result["status"]}
        row |= _errors(result.get("fields", {}))
        row["paper MSE"] = published.get("MSE")
        for name, value in result.get("terms", {}).items():
            row[f"L {name}"] = value
        for name, value in published.items():
            if letter and name != "MSE":
                row[f"paper L {name}"] = value
        row |= {"steps": result.get("steps"), "seconds": result.get("elapsed_s")}
        rows.append(row)
    done = next((r for r in results if r.get("baselines")), None)
    for name in BASELINES if done else ():
        rows.append({"method": f"({name})", **_errors(done["baselines"][name])})  # type: ignore[index]
    return rows


def _errors(fields: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """MSE, RMSE and nRMSE averaged over fields, as PDEBench does, and nRMSE by field."""
    if not fields:
        return {"MSE": math.nan, "RMSE": math.nan, "nRMSE": math.nan}
    mean = {
        title: float(np.mean([errors[key] for errors in fields.values()]))
        for title, key in (("MSE", "mse"), ("RMSE", "rmse"), ("nRMSE", "nrmse"))
    }
    if len(fields) > 1:
        mean |= {f"nRMSE {name}": errors["nrmse"] for name, errors in fields.items()}
    return mean


def markdown(rows: Sequence[Mapping[str, Any]], caption: str, notes: Sequence[str] = ()) -> str:
    """Two tables, errors and loss terms; the paper's figures stand in brackets."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    errors = [c for c in columns if c.startswith(("MSE", "RMSE", "nRMSE"))]
    terms = [c for c in columns if c.startswith("L ")]
    lines = [f"**{caption}**", ""]
    lines += markdown_table(
        ["method", *errors, "steps", "s"],
        [
            [
                row["method"],
                *(_with_paper(row, c, "paper MSE" if c == "MSE" else "") for c in errors),
                number_text(row.get("steps")),
                f"{row['seconds']:.0f}" if row.get("seconds") else "",
            ]
            for row in rows
        ],
    )
    if terms:
        lines += ["", "Mean squares of the loss terms at the end:", ""]
        lines += markdown_table(
            ["method", *(c.removeprefix("L ") for c in terms)],
            [
                [row["method"], *(_with_paper(row, c, f"paper {c}") for c in terms)]
                for row in rows
                if not row["method"].startswith("(")
            ],
        )
    lines += ["", *notes]
    return "\n".join(lines).rstrip() + "\n"


def _with_paper(row: Mapping[str, Any], column: str, paper: str) -> str:
    text = number_text(row.get(column))
    published = row.get(paper) if paper else None
    return text if published is None else f"{text} [{published:.3g}]"
