"""The same problem with several activations and seeds: mean and spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcase import plotting
from dcase.pinn.experiments.runs import PinnRun
from dcase.pinn.plots import bars_figure
from dcase.pinn.run import Source
from dcase.pinn.settings import PinnSettings
from dcase.tables import page_files, write_rows

#: tanh, the paper's IReLU, and the rest of the integrated family.
ACTIVATIONS = (
    "tanh", "irelu", "ileaky_relu", "ielu", "iselu", "isilu", "igelu", "isoftplus", "issp",
    "log_cosh", "iclipped_relu", "ierf",
)  # fmt: skip


def comparison_runs(
    source: Source, base: PinnSettings, activations: Sequence[str], seeds: Sequence[int]
) -> list[PinnRun]:
    """A run for each activation and seed."""
    return [
        PinnRun(
            f"{name}-{seed}",
            name,
            source,
            base.changed(activation=name, seed=seed),
        )
        for seed in seeds
        for name in activations
    ]


def comparison_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread of the nRMSE (averaged over fields) by activation, best first."""
    by_name: dict[str, list[float]] = {}
    steps: dict[str, list[int]] = {}
    for result in results:
        by_name.setdefault(result["label"], []).append(error_of(result))
        steps.setdefault(result["label"], []).append(result.get("steps") or 0)
    rows = []
    for name, values in by_name.items():
        finite = [v for v in values if math.isfinite(v)]
        rows.append(
            {
                "activation": name,
                "nRMSE mean": float(np.mean(finite)) if finite else math.nan,
                "nRMSE std": float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan,
                "nRMSE median": float(np.median(finite)) if finite else math.nan,
                "min": min(finite, default=math.nan),
                "max": max(finite, default=math.nan),
                "runs": len(values),
                "diverged": len(values) - len(finite),
                "steps": int(np.mean(steps[name])),
            }
        )
    return sorted(rows, key=lambda r: (not math.isfinite(r["nRMSE median"]), r["nRMSE median"]))


def error_of(result: Mapping[str, Any]) -> float:
    """The nRMSE averaged over fields; NaN where there is none."""
    fields = result.get("fields") or {}
    return float(np.mean([e["nrmse"] for e in fields.values()])) if fields else math.nan


def write_comparison(
    folder: Path, task: str, results: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Write ``comparison.csv`` and ``comparison.png``; returns the rows."""
    rows = comparison_rows(results)
    values: dict[str, list[float]] = {}
    for result in results:
        values.setdefault(result["label"], []).append(error_of(result))
    done = next((r for r in results if r.get("baselines")), None)
    trivial = {}
    if done:
        trivial[task] = min(error_of({"fields": errors}) for errors in done["baselines"].values())
    figure = bars_figure({task: values}, trivial=trivial)
    with page_files(folder, "comparison"):
        write_rows(folder / "comparison.csv", rows)
        plotting.save(figure, folder / "comparison.png")
    return rows
