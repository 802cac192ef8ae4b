"""The conformance suite's figures, checks down and potentials across, as Markdown.

    python benchmarks/conformance_table.py aspirin_irelu.pt aspirin_gemnet.pt ...

Every number is what ``dcase check`` measures in float64 on the molecule the potential was trained
on; a bold one exceeds its limit, and "by design" marks what the architecture does not promise.
"""

from __future__ import annotations

import sys

from dcase.md_runs.checks.conformance import CheckResult, run_checks
from dcase.potentials.potential import load_potential


def cell(result: CheckResult) -> str:
    if result.skipped:
        return "skipped"
    text = f"{result.value:.0e}" if result.value else "0"
    if result.by_design:
        return f"{text} (by design)"
    return text if result.passed else f"**{text}**"


def main(paths: list[str]) -> None:
    potentials = [load_potential(path) for path in paths]
    columns = [run_checks(potential) for potential in potentials]
    names = [f"{p.architecture} ({p.hyper_parameters.get('activation')})" for p in potentials]
    print(f"| check | limit | {' | '.join(names)} |")
    print("|---|--:" + "|--:" * len(columns) + "|")
    for row in zip(*columns, strict=True):
        unit = f" {row[0].unit.replace('|', '')}" if row[0].unit else ""  # | ends a cell
        cells = " | ".join(cell(result) for result in row)
        print(f"| {row[0].name} | {row[0].limit:.0e}{unit} | {cells} |")


if __name__ == "__main__":
    main(sys.argv[1:])
