"""Figures 1 and 2 of the paper, from the results of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.ticker import FuncFormatter, NullFormatter

from dcase import plotting
from dcase.potentials.fitting.fit_potential import run_folder
from dcase.training.logs import read_metrics
from dcase.units import KCAL_PER_MOL

_ENERGY, _FORCES = "energy_mae_kcal_mol", "forces_mae_kcal_mol_angstrom"


def _label(result: Mapping[str, Any]) -> float:
    return float(result["label"].partition("=")[2])


def _plain(value: float, _: Any = None) -> str:
    return f"{value:g}"


def figure1(results: Sequence[Mapping[str, Any]], folder: Path, path: Path) -> None:
    """Errors against the force weight beta: during training (left), on test frames (right).

    Args:
        results: Runs labelled ``"beta=..."``.
        folder: Of the experiment, where the runs' logs are.
        path: PNG to write.
    """
    figure, (left, right) = plotting.new_figure(1, 2, (9.0, 3.6))
    colours = colormaps["cividis"]
    ordered = sorted((r for r in results if r["metrics"]), key=_label)
    for index, result in enumerate(ordered):
        log = run_folder(folder / "runs" / result["name"] / "potential.pt") / "metrics.csv"
        points = [
            (row["epoch"], row["val_forces_mae"] * 1e-3 / KCAL_PER_MOL)
            for row in (read_metrics(log) if log.exists() else [])
            if "val_forces_mae" in row
        ]
        if points:
            colour = colours(index / max(len(ordered) - 1, 1) * 0.9)
            left.plot(*zip(*points, strict=True), color=colour, lw=1.1, label=f"{_label(result):g}")
    plotting.log_scale(left)
    left.set_xlabel("epoch")
    left.set_ylabel("validation force MAE (kcal/mol/Å)")
    if left.lines:
        left.legend(title="β", fontsize=8, ncols=2, frameon=False)
    betas = [_label(r) for r in ordered]
    right.loglog(
        betas,
        [r["metrics"][_FORCES] for r in ordered],
        "o-",
        color=plotting.BLUE,
        label="force (kcal/mol/Å)",
    )
    right.loglog(
        betas,
        [r["metrics"][_ENERGY] / 1000 for r in ordered],
        "s--",
        color=plotting.ORANGE,
        label="energy / 1000 (kcal/mol)",
    )
    right.set_xlabel("weight β of the force term")
    right.set_ylabel("test MAE")
    right.legend(fontsize=8, frameon=False)
    for axis in (left.yaxis, right.xaxis, right.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain))
    plotting.save(figure, path)


def figure2(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Test errors against the number of training frames, a line a system, model and setting.

    Args:
        results: Runs labelled ``"n=..."``.
        path: PNG to write.
    """
    figure, axes = plotting.new_figure(1, 2, (9.0, 3.6))
    palette = (plotting.BLUE, plotting.ORANGE, plotting.GREEN, plotting.RED, plotting.GREY)
    markers = "os^vDPX*"
    lines: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for result in sorted(results, key=lambda r: r["n_train"]):
        if result["metrics"]:
            which = (result["system"], result["model"], result["setting"])
            lines.setdefault(which, []).append(result)
    sizes = sorted({r["n_train"] for line in lines.values() for r in line})
    # Of system, model and setting, what is the same in all lines needs no mention.
    told = [k for k in range(3) if len({which[k] for which in lines}) > 1] or [0]
    for ax, key, label in (
        (axes[0], _ENERGY, "energy MAE (kcal/mol)"),
        (axes[1], _FORCES, "force MAE (kcal/mol/Å)"),
    ):
        for index, (what, line) in enumerate(lines.items()):
            ax.loglog(
                [r["n_train"] for r in line],
                [r["metrics"][key] for r in line],
                marker=markers[index % len(markers)],
                color=palette[index % len(palette)],
                linestyle="-" if index < len(palette) else "--",
                lw=1.2,
                label=", ".join(what[k] for k in told),
            )
        ax.set_xlabel("training frames")
        ax.set_ylabel("test " + label)
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(FuncFormatter(_plain))
        low, high = ax.get_ylim()
        # Numbers between the powers of ten where there are few powers; else they pile up.
        few = high / low < 30
        ax.yaxis.set_minor_formatter(FuncFormatter(_plain) if few else NullFormatter())
        ax.tick_params(which="both", labelsize=8)
    if lines:
        axes[0].legend(fontsize=8, frameon=False)
    plotting.save(figure, path)
