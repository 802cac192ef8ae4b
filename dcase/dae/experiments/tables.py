"""Tables 1 and 2: which runs they are made of, and their rows beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dcase import plotting
from dcase.dae.experiments.published import METHODS, TITLES, figure_of
from dcase.dae.experiments.runs import DaeRun, experiment_settings
from dcase.dae.methods import METHODS as ALL_METHODS
from dcase.dae.plots import plain_log
from dcase.dae.systems import system_named
from dcase.errors import OptionError
from dcase.files import write_json, write_text
from dcase.tables import page_files, write_rows

BASELINES = {"identity": "(identity)", "constant_velocity": "(constant velocity)"}
COLOURS = (plotting.BLUE, plotting.ORANGE, plotting.GREEN)


def label_of(method: str, network: str) -> str:
    """Of a row: the paper's name, or the network of the manifold method."""
    if network == "molecular":
        return f"{method.capitalize()}, molecular (ours)"
    return TITLES.get(method) or f"Manifold, {network} (ours)"


def table_runs(
    system: str,
    networks: Sequence[str],
    *,
    ks: Sequence[int],
    sizes: Sequence[int],
    methods: Sequence[str] = ALL_METHODS,
    seeds: int = 3,
    size: str = "small",
    epochs: int | None = None,
    time_limit: float | None = None,
    **changes: Any,
) -> list[DaeRun]:
    """A run for each k, number of samples, method and seed.

    The published methods go with the published network and with the molecular one, ``manifold``
    with every network asked for.

    Args:
        system: ``"pendulum"`` or ``"water"``.
        networks: Of the system.
        ks: Steps ahead.
        sizes: Numbers of training samples.
        methods: Which.
        seeds: Runs of each.
        size: Of the published network.
        epochs: None: the default's.
        time_limit: Seconds of each.
        changes: Other settings.

    Raises:
        OptionError: For an unknown method, or if there is nothing to run.
    """
    unknown = [m for m in methods if m not in ALL_METHODS]
    if unknown:
        raise OptionError(f"no method {unknown[0]!r}; choose from {', '.join(ALL_METHODS)}")
    rows = [(m, n) for m in METHODS if m in methods for n in networks if n != "mechanical"]
    if "manifold" in methods:
        rows += [("manifold", n) for n in networks]
    if not rows:
        raise OptionError(
            "the mechanical network goes with the method manifold here; nothing to do"
        )
    common = {"epochs": epochs, "time_limit": time_limit, **changes}
    return [
        DaeRun(
            label_of(method, network),
            experiment_settings(system, method, network, size, k=k, n_train=n, seed=seed, **common),
        )
        for k in ks
        for n in sizes
        for method, network in rows
        for seed in range(seeds)
    ]


def table_rows(system: str, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each k, number of samples and method, and for the simple predictors.

    Args:
        system: Of all.
        results: From :func:`~dcase.dae.experiments.runs.perform`.

    Returns:
        Mean and standard deviation (n - 1) of the MAE over seeds, the largest violation and the
        mean one over seeds, and the paper's MAE. Diverged runs count in ``failed`` only.
    """
    mae = system_named(system).mae
    groups: dict[tuple[int, int, str], list[Mapping[str, Any]]] = {}
    for result in results:
        s = result["settings"]
        groups.setdefault((s["k"], s["n_train"], result["label"]), []).append(result)
        if "identity" in result:
            for key, label in BASELINES.items():
                simple = {**result[key], "settings": {**s, "method": label}}
                groups.setdefault((s["k"], s["n_train"], label), []).append(simple)
    rows = []
    for (k, n, label), found in groups.items():
        # Every network meets the same samples with the same seed: once is enough.
        by_seed = {r["settings"]["seed"]: r for r in found}
        good = [r for r in by_seed.values() if _known(r.get(mae))]
        errors = [r[mae] for r in good]
        seconds = [r["elapsed_s"] for r in good if "elapsed_s" in r]
        rows.append(
            {
                "k": k,
                "n_train": n,
                "method": label,
                "runs": len(by_seed),
                "failed": len(by_seed) - len(good),
                f"{mae} mean": _mean(errors),
                f"{mae} std": float(np.std(errors, ddof=1)) if len(errors) > 1 else math.nan,
                f"paper {mae}": figure_of(system, k, found[0]["settings"]["method"], n),
                "mean violation": _mean([r["mean_violation"] for r in good]),
                "max violation": max((r["max_violation"] for r in good), default=math.nan),
                "seconds": _mean(seconds) if seconds else None,
            }
        )
    order = {label: i for i, label in enumerate(dict.fromkeys(r["method"] for r in rows))}
    last = set(BASELINES.values())
    return sorted(
        rows, key=lambda r: (r["k"], r["n_train"], r["method"] in last, order[r["method"]])
    )


def _known(value: float | None) -> bool:
    """Whether there is a number: a prediction may be infinite, which files hold as null."""
    return value is not None and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def markdown(
    system: str, rows: Sequence[Mapping[str, Any]], caption: str, notes: Sequence[str] = ()
) -> str:
    """Errors, then largest violations: a table for each k, a column for each number of samples."""
    known = system_named(system)
    lines = [f"**{caption}**"]
    kinds = {
        f"MAE in {known.error}, mean ± standard deviation [paper]": _error_cell,
        f"Largest violation of a constraint on the test samples in {known.length}": _violation_cell,
    }
    for k in dict.fromkeys(r["k"] for r in rows):
        here = [r for r in rows if r["k"] == k]
        sizes = sorted({r["n_train"] for r in here})
        cells = {(r["method"], r["n_train"]): r for r in here}
        for title, cell in kinds.items():
            lines += ["", f"k = {k}. {title}:", ""]
            lines.append(f"| method | {' | '.join(f'n = {n}' for n in sizes)} |")
            lines.append(f"|---|{'---:|' * len(sizes)}")
            for method in dict.fromkeys(r["method"] for r in here):
                row = [
                    cell(cells[method, n], known.mae) if (method, n) in cells else "" for n in sizes
                ]
                lines.append(f"| {method} | {' | '.join(row)} |")
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _error_cell(row: Mapping[str, Any], mae: str) -> str:
    mean, std, paper = row[f"{mae} mean"], row[f"{mae} std"], row[f"paper {mae}"]
    text = f"{mean:.3g}" if math.isfinite(mean) else "diverged"
    if math.isfinite(std):
        text += f" ± {std:.2g}"
    if row["failed"] and math.isfinite(mean):
        text += f" ({row['failed']} of {row['runs']} diverged)"
    return text if paper is None else f"{text} [{paper:g}]"


def _violation_cell(row: Mapping[str, Any], mae: str) -> str:
    worst = row["max violation"]
    return f"{worst:.2g}" if math.isfinite(worst) else ""


def table_figure(system: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Dots with error bars by method and number of samples; the paper's are hollow."""
    known = system_named(system)
    mae = known.mae
    ks = list(dict.fromkeys(r["k"] for r in rows))
    methods = list(dict.fromkeys(r["method"] for r in rows))
    sizes = sorted({r["n_train"] for r in rows})
    height = 1.5 + 0.42 * len(methods)
    figure, axes = plotting.new_figure(1, len(ks), (1.8 + 4.4 * len(ks), height), sharey=True)
    for ax, k in zip(axes, ks, strict=True):
        for number, n in enumerate(sizes):
            here = [r for r in rows if r["k"] == k and r["n_train"] == n]
            shift = 0.18 * (number - (len(sizes) - 1) / 2)
            y = [methods.index(r["method"]) + shift for r in here]
            colour, marker = COLOURS[number % 3], "os^"[number % 3]
            mean = [r[f"{mae} mean"] for r in here]
            bars = [s if math.isfinite(s := r[f"{mae} std"]) else 0.0 for r in here]
            style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none"}
            ax.errorbar(mean, y, xerr=bars, capsize=2.5, label=f"n = {n}", **style)
            paper = [r[f"paper {mae}"] or math.nan for r in here]
            if np.isfinite(paper).any():
                label = f"n = {n}, paper"
                ax.plot(paper, y, markerfacecolor="none", label=label, **style)
            for row, at in zip(here, y, strict=True):
                if row["failed"] == row["runs"]:
                    ax.annotate(
                        "diverged", (0.01, at), xycoords=("axes fraction", "data"), color=colour,
                        fontsize=8, va="center",
                    )  # fmt: skip
        plotting.log_scale(ax, "x")
        plain_log(ax.xaxis)
        ax.set_xlabel(f"MAE ({known.error})")
        ax.set_title(f"k = {k}", fontsize=10)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    shown: dict[str, Any] = {}  # a number of samples may be missing at one k
    for ax in axes:
        lines, labels = ax.get_legend_handles_labels()
        shown |= dict(zip(labels, lines, strict=True))
    names = [text for n in sizes for text in (f"n = {n}", f"n = {n}, paper") if text in shown]
    handles = [shown[text] for text in names]
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def write_table(
    folder: Path,
    name: str,
    system: str,
    results: Sequence[Mapping[str, Any]],
    caption: str,
    notes: Sequence[str] = (),
) -> str:
    """Write NAME.md, .csv, .json and .png; returns the Markdown.

    Raises:
        DcaseError: If a file cannot be written.
    """
    rows = table_rows(system, results)
    text = markdown(system, rows, caption, notes)
    with page_files(folder, name):
        write_text(folder / f"{name}.md", text)
        write_rows(folder / f"{name}.csv", rows)
        write_json(folder / f"{name}.json", {"rows": rows, "runs": list(results)})
        plotting.save(table_figure(system, rows), folder / f"{name}.png")
    return text
