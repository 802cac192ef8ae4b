"""Picture and table of what ``frontier.py`` has measured.

    python benchmarks/frontier_results.py frontier --picture frontier.png
    python benchmarks/frontier_results.py frontier --table

``--table`` prints Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dcase.files import read_json
from dcase.plotting import BLUE, GREEN, ORANGE, RED, new_figure, save

# Label, colour, marker, line: colours tell programs apart, markers networks
STYLES = {
    "dcase:painn": ("dcase, PaiNN", BLUE, "o", "-"),
    "dcase:schnet": ("dcase, SchNet", BLUE, "s", "-"),
    "sgdml": ("sGDML", GREEN, "^", "--"),
    "schnetpack:painn": ("SchNetPack, PaiNN", ORANGE, "o", "--"),
    "schnetpack:painn-64": ("SchNetPack, PaiNN of 64", ORANGE, "P", "--"),
    "schnetpack:schnet": ("SchNetPack, SchNet", ORANGE, "s", "--"),
    "mace:32x0e": ("MACE, 32x0e", RED, "D", "--"),
    "mace:128x0e+128x1o": ("MACE, 128x0e+128x1o", RED, "X", "--"),
}


def measured(folder: Path) -> list[dict[str, Any]]:
    """The entries, by program in the order of ``STYLES`` and by budget.

    Raises:
        SystemExit: If there are none, or they are not of the same frames.
    """
    rows = [read_json(path) for path in sorted(folder.glob("*.json"))]
    if not rows:
        raise SystemExit(f"{folder} holds no entries: benchmarks/frontier.py measures them")
    if any(row["about"] != rows[0]["about"] for row in rows):
        raise SystemExit(f"{folder} holds entries of different frames")
    order = list(STYLES)
    return sorted(rows, key=lambda row: (order.index(row["program"]), row["budget"]))


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown, kcal/mol and kcal/mol/A; the smallest force error of each budget in bold."""
    least = {b: min(r["forces_mae"] for r in rows if r["budget"] == b) for b in budgets(rows)}
    lines = [
        "| | budget, s | CPU s | energy | forces | ms a step |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        forces = f"{row['forces_mae']:.3f}"
        if row["forces_mae"] == least[row["budget"]]:
            forces = f"**{forces}**"
        lines.append(
            f"| {STYLES[row['program']][0]} | {row['budget']:g} | {row['cpu_s']:.0f} "
            f"| {row['energy_mae']:.3f} | {forces} | {row['step_ms']:.3g} |"
        )
    return "\n".join(lines)


def budgets(rows: list[dict[str, Any]]) -> list[float]:
    """Of all entries."""
    return sorted({row["budget"] for row in rows})


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Force errors against training time, and against the time of a step."""
    figure, axes = new_figure(1, 2, (8.4, 4.4), sharey=True)
    for program, (label, colour, marker, line) in STYLES.items():
        mine = [row for row in rows if row["program"] == program]
        if not mine:
            continue
        errors = [row["forces_mae"] for row in mine]
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6.5}
        for ax, key in zip(axes, ("cpu_s", "step_ms"), strict=True):
            ax.plot([row[key] for row in mine], errors, linestyle=line, **style, label=label)
    times = ("CPU time of the training (s)", "a step of molecular dynamics (ms)")
    for ax, words in zip(axes, times, strict=True):
        ax.set(xscale="log", yscale="log", xlabel=words)
    plain = [0.3, 0.5, 1, 2, 5, 10, 20]
    low, high = min(r["forces_mae"] for r in rows), max(r["forces_mae"] for r in rows)
    axes[0].set_ylim(low / 1.3, high * 1.3)
    axes[0].set_yticks(plain, [f"{value:g}" for value in plain])
    axes[0].minorticks_off()
    axes[1].minorticks_off()
    axes[0].set_ylim(low / 1.3, high * 1.3)
    axes[0].set_xticks(budgets(rows), [f"{value:g}" for value in budgets(rows)])
    steps = [0.1, 1, 10, 100]
    span = [min(r["step_ms"] for r in rows) / 1.5, max(r["step_ms"] for r in rows) * 1.5]
    axes[1].set_xticks(steps, [f"{value:g}" for value in steps])
    axes[1].set_xlim(*span)
    axes[0].set_ylabel("force MAE, test frames (kcal/mol/Å)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    save(figure, path)


def main() -> None:
    """Parse, read, draw, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="--out of frontier.py")
    parser.add_argument("--picture", type=Path, metavar="FILE.png")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.picture and not options.table:
        parser.error("nothing to make: --picture FILE.png, --table")
    rows = measured(options.folder)
    if options.picture:
        picture(rows, options.picture)
    if options.table:
        print(table(rows))


if __name__ == "__main__":
    main()
