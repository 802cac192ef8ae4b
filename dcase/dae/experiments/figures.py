"""Figures 5, 7 and 8: error and violation against the epoch, for methods and strengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dcase import plotting
from dcase.dae.experiments.published import METHODS
from dcase.dae.experiments.runs import DaeRun, experiment_settings
from dcase.dae.experiments.tables import label_of
from dcase.dae.plots import COLOURS, FLOOR, plain_log, spread_out
from dcase.dae.systems import system_named
from dcase.errors import OptionError
from dcase.files import write_json, write_text
from dcase.tables import grid, page_files, write_rows

STRENGTHS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
TITLES = {
    "dae-figure5": "Figure 5: ways of adding constraints",
    "dae-figure7": "Figure 7: strength of the penalty",
    "dae-figure8": "Figure 8: strength of the auxiliary loss",
}


def figure_runs(
    name: str,
    *,
    seeds: int = 5,
    size: str = "small",
    k: int = 20,
    n_train: int = 100,
    strengths: Sequence[float] = STRENGTHS,
    **options: Any,
) -> list[DaeRun]:
    """The runs of a figure: the pendulum, with the published network.

    Args:
        name: ``"dae-figure5"`` (the five methods, and ours), ``"dae-figure7"`` (gamma) or
            ``"dae-figure8"`` (eta).
        seeds: Runs of each.
        size: Of the published network.
        k: Steps ahead.
        n_train: Training samples.
        strengths: Of figures 7 and 8.
        options: Of :func:`~dcase.dae.experiments.runs.experiment_settings`.

    Raises:
        OptionError: If there is no such figure.
    """
    if name not in TITLES:
        raise OptionError(f"no such figure: {name!r}; choose from {', '.join(TITLES)}")
    mimetic = "mimetic"
    kinds: list[tuple[str, str, str, dict[str, Any]]]
    if name == "dae-figure5":
        kinds = [(label_of(m, mimetic), m, mimetic, {}) for m in METHODS]
        kinds += [(label_of("manifold", n), "manifold", n, {}) for n in (mimetic, "mechanical")]
    elif name == "dae-figure7":
        kinds = [(f"gamma = {g:g}", "penalty", mimetic, {"gamma": g}) for g in strengths]
    else:
        kinds = [(f"eta = {e:g}", "auxiliary", mimetic, {"eta": e}) for e in strengths]
    common = {"k": k, "n_train": n_train, **options}
    return [
        DaeRun(
            label,
            experiment_settings("pendulum", method, network, size, seed=seed, **common, **strength),
        )
        for label, method, network, strength in kinds
        for seed in range(seeds)
    ]


def curves(
    results: Sequence[Mapping[str, Any]], key: str
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Epochs, mean and standard deviation over seeds (0 for one) of ``key``, by label.

    Epochs that not all seeds reached are left out; runs that diverged too.
    """
    by_label: dict[str, list[dict[float, float]]] = {}
    for result in results:
        rows = result.get("history") or ()
        history = {r["epoch"]: r[key] for r in rows if r[key] is not None and math.isfinite(r[key])}
        if history:
            by_label.setdefault(result["label"], []).append(history)
    found = {}
    for label, histories in by_label.items():
        epochs = sorted(set.intersection(*(set(h) for h in histories)))
        if not epochs:
            continue
        values = np.array([[h[e] for e in epochs] for h in histories])
        spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(epochs))
        found[label] = np.array(epochs), values.mean(0), spread
    return found


def curves_figure(
    results: Sequence[Mapping[str, Any]], title: str, *, ordered: bool = False
) -> Figure:
    """Left the error, right the largest violation; bands of one standard deviation.

    Args:
        results: From :func:`~dcase.dae.experiments.runs.perform`, with ``history``.
        title: Of the figure.
        ordered: Labels are strengths, weakest first: colours from dark to light.
    """
    system = system_named("pendulum")
    figure, axes = plotting.new_figure(1, 2, (10.4, 4.8))
    spread_out(figure)
    labels = list(dict.fromkeys(r["label"] for r in results))
    shades = colormaps["viridis"](np.linspace(0.0, 0.88, len(labels)))
    colours = {
        label: tuple(shades[i]) if ordered else COLOURS[i % len(COLOURS)]
        for i, label in enumerate(labels)
    }
    for ax, quantity in zip(axes, (system.mae, "max_violation"), strict=True):
        dashed = curves(results, f"train_{quantity}")
        for label, (epochs, mean, spread) in curves(results, f"val_{quantity}").items():
            colour = colours[label]
            marker = "o" if len(epochs) < 3 else None
            ax.plot(epochs, np.maximum(mean, FLOOR), color=colour, label=label, marker=marker)
            # A spread larger than the mean has no lower end on a logarithmic axis.
            low = np.maximum(mean - spread, 0.1 * mean)
            ax.fill_between(epochs, low, mean + spread, color=colour, alpha=0.14, linewidth=0)
            if label in dashed:
                epochs, mean, _ = dashed[label]
                ax.plot(epochs, np.maximum(mean, FLOOR), "--", color=colour, linewidth=0.9)
        plotting.log_scale(ax)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_log(ax.yaxis)
    axes[0].set_ylabel(f"MAE ({system.error})")
    axes[1].set_ylabel(f"largest violation ({system.length})")
    lines, names = axes[0].get_legend_handles_labels()
    if lines:
        figure.legend(lines, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    keys: list[Any] = [
        Line2D([], [], color="black"),
        Line2D([], [], color="black", linestyle="--", linewidth=0.9),
    ]
    texts = ["validation samples", "training samples"]
    runs = len({r["settings"]["seed"] for r in results})
    if runs > 1:
        keys.append(Patch(color="black", alpha=0.14, linewidth=0))
        texts.append(f"validation, \u00b1 1 standard deviation of {runs} runs")
    axes[0].legend(keys, texts, frameon=False, fontsize=8)
    s = results[0]["settings"]
    task = f"five-body pendulum, k = {s['k']}, {s['n_train']} training samples"
    figure.suptitle(f"{title} ({task})", fontsize=10)
    return figure


def figure_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread at the last epoch that all seeds reached, validation samples."""
    mae = system_named("pendulum").mae
    errors, worst = curves(results, f"val_{mae}"), curves(results, "val_max_violation")
    rows = []
    for label in dict.fromkeys(r["label"] for r in results):
        runs = [r for r in results if r["label"] == label]
        failed = sum(r["status"] == "diverged" for r in runs)
        epochs, mean, spread = errors.get(label, ([None], [math.nan], [math.nan]))
        violation = worst.get(label, (None, [math.nan], None))[1]
        rows.append(
            {
                "setting": label,
                "epoch": None if epochs[-1] is None else int(epochs[-1]),
                f"{mae} mean": float(mean[-1]),
                f"{mae} std": float(spread[-1]) if len(runs) - failed > 1 else None,
                "max violation (m)": float(violation[-1]),
                "runs": len(runs),
                "diverged": failed,
            }
        )
    return rows


def write_figure(
    folder: Path, name: str, results: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()
) -> str:
    """Write NAME.png, .csv, .json and .md; returns the Markdown.

    Raises:
        DcaseError: If a file cannot be written.
    """
    rows = figure_rows(results)
    caption = f"{TITLES[name]}; validation samples, last epoch that all runs of a row reached"
    lines = [f"**{caption}**", "", *grid(rows), "", *notes]
    text = "\n".join(lines).rstrip() + "\n"
    figure = curves_figure(results, TITLES[name], ordered=name != "dae-figure5")
    with page_files(folder, name):
        write_text(folder / f"{name}.md", text)
        write_rows(folder / f"{name}.csv", rows)
        write_json(folder / f"{name}.json", {"rows": rows, "runs": list(results)})
        plotting.save(figure, folder / f"{name}.png")
    return text
