"""Tables 1 to 4, 6 and 7 of the SchNet report beside ours, as Markdown, CSV and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dcase.potentials.experiments import report_published as printed
from dcase.potentials.experiments.published import schnet_literature
from dcase.potentials.experiments.report_format import (
    describe,
    number,
    quoted,
    recipe_title,
    span,
)
from dcase.potentials.experiments.report_published import TASKS
from dcase.potentials.experiments.report_runs import REPORT, report_loss
from dcase.tables import markdown_table

TRIVIAL, BASELINE = "trivial", "baseline"
UNITS = {
    "energy": "kcal/mol",
    "forces": "kcal/mol/A",
    "energy+forces": "(kcal/mol)^2",
}
HEADINGS = {
    "energy": "Energy: MAE in kcal/mol, training on energies alone",
    "forces": "Forces: MAE in kcal/mol/A, training on forces alone",
    "energy+forces": "Energy and forces: the report's loss, 0.01 dE^2 + 1/n sum_i |dF_i|^2, in "
    "kcal/mol and kcal/mol/A squared",
}
CHEMICAL_ACCURACY = 1.0  # kcal/mol
_ENERGY, _FORCES = "energy_mae_kcal_mol", "forces_mae_kcal_mol_angstrom"

Results = Mapping[tuple[str, str, str], Mapping[str, Any]]
"""By system, task and method: ``"trivial"``, ``"baseline"`` or the name of a recipe."""


def value_of(result: Mapping[str, Any] | None, task: str) -> float | None:
    """The number of a table: an error, or the loss; NaN where training diverged, None: no run."""
    if result is None:
        return None
    if result["status"] == "NaN":
        return math.nan
    found = result["metrics"]
    if task == "energy+forces":
        return report_loss(found)
    value = found.get(_ENERGY if task == "energy" else _FORCES)
    return None if value is None else float(value)


def records(results: Results) -> list[dict[str, Any]]:
    """All that was measured, a line a run, for CSV and JSON."""
    rows = []
    for (system, task, method), result in results.items():
        found = result["metrics"]
        rows.append(
            {
                "system": system,
                "task": task,
                "method": method,
                "value": value_of(result, task),
                "unit": UNITS[task],
                "energy_mae_kcal_mol": found.get(_ENERGY),
                "forces_mae_kcal_mol_angstrom": found.get(_FORCES),
                "report_loss": report_loss(found),
                "parameters": result.get("parameters"),
                "n_train": result.get("n_train"),
                "n_test": result.get("n_test"),
                "epochs": result.get("epochs"),
                "steps": result.get("steps"),
                "seconds": result.get("seconds"),
                "status": result["status"],
            }
        )
    return rows


# ------------------------------------------------------------------------------------------------
# Tables 2 and 7


def comparison(results: Results, recipes: Sequence[str], *, authors: bool) -> list[str]:
    """Table 2 (``authors`` False) or 7: a Markdown table a task, with headings.

    Args:
        results: Of all runs there are.
        recipes: Columns of ours.
        authors: The figures of SchNet's authors instead of the baselines.
    """
    lines: list[str] = []
    systems = list(dict.fromkeys(system for system, _, _ in results))
    for task in TASKS:
        if not any(t == task for _, t, _ in results):
            continue
        theirs = ["authors"] if authors else ["baseline, report", "baseline, ours"]
        if authors and task == "energy+forces":
            theirs = []  # they have no such figure
        head = ["data", "train", "trivial", *theirs, "SchNet, report"]
        head += [f"SchNet, ours: {recipe_title(r)}" for r in recipes]
        body = []
        for system in systems:
            own = {m: value_of(results.get((system, task, m)), task) for m in _methods(recipes)}
            if all(value is None for value in own.values()):
                continue
            published = (printed.table7 if authors else printed.table2)(system, task)
            first, second = (published[1], published[0]) if authors else published
            cells = [system, _frames(results, system), number(own[TRIVIAL])]
            if theirs:
                cells.append(quoted(first))
            if not authors:
                cells.append(_marked(own[BASELINE], own[TRIVIAL]))
            cells.append(quoted(second))
            cells += [_marked(own[recipe], own[TRIVIAL]) for recipe in recipes]
            body.append(cells)
        lines += [f"**{HEADINGS[task]}**", "", *markdown_table(head, body), ""]
    both = _errors_of_both(results, recipes, systems, authors=authors)
    return lines + both


def _methods(recipes: Sequence[str]) -> tuple[str, ...]:
    return (TRIVIAL, BASELINE, *recipes)


def _frames(results: Results, system: str) -> str:
    """Training frames."""
    counts = {r["n_train"] for (s, _, _), r in results.items() if s == system and "n_train" in r}
    return span(sorted(counts)) if counts else ""


def _marked(value: float | None, trivial: float | None) -> str:
    """With a dagger where it is not 1 % better than the trivial predictor."""
    poor = value is not None and trivial is not None and not value < 0.99 * trivial
    return number(value) + (" †" if poor else "")


def _errors_of_both(
    results: Results, recipes: Sequence[str], systems: Sequence[str], *, authors: bool
) -> list[str]:
    """Mean absolute errors behind the losses of training on energies and forces."""
    task = "energy+forces"
    names = [r for r in recipes if any((s, task, r) in results for s in systems)]
    if not names:
        return []
    head = ["data"]
    for word in ("E", "F"):
        head += [f"{word} trivial", *([f"{word} authors"] if authors else [])]
        head += [f"{word} ours: {recipe_title(r)}" for r in names]
    body = []
    for system in systems:
        if not any((system, task, r) in results for r in names):
            continue
        literature = schnet_literature(system) or (None, None)
        cells = [system]
        for index, key in enumerate(("energy", "forces")):
            trivial = value_of(results.get((system, task, TRIVIAL)), key)
            cells.append(number(trivial))
            cells += [quoted(literature[index])] if authors else []
            cells += [
                _marked(value_of(results.get((system, task, r)), key), trivial) for r in names
            ]
        body.append(cells)
    title = "**The same networks: MAE of energies (E, kcal/mol) and forces (F, kcal/mol/A)**"
    return [title, "", *markdown_table(head, body), ""]


def accuracy_notes(results: Results, recipes: Sequence[str]) -> list[str]:
    """How many energy errors are below 1 kcal/mol, a line a recipe, and the report's own range."""
    lines = []
    for recipe in recipes:
        parts = []
        for task, what in (("energy", "of energies alone"), ("energy+forces", "of both")):
            errors = [
                value_of(result, "energy")
                for (_, t, method), result in results.items()
                if (t, method) == (task, recipe)
            ]
            known = [e for e in errors if e is not None]
            if known:
                finite = [e for e in known if not math.isnan(e)]
                ends = dict.fromkeys((number(min(finite)), number(max(finite)))) if finite else {}
                below = sum(e < CHEMICAL_ACCURACY for e in finite)
                parts.append(f"{below} of {len(known)} after training {what} ({' to '.join(ends)})")
        if parts:
            lines.append(
                f"Energy errors below 1 kcal/mol, {recipe_title(recipe)}: {'; '.join(parts)}."
            )
    return lines


def table_notes(results: Results, *, authors: bool) -> list[str]:
    """What the columns are."""
    systems = {system for system, _, _ in results}
    both = any(task == "energy+forces" for _, task, _ in results)
    notes = [
        "trivial: the mean energy (QM9: atomic energies by least squares) and no force. † not 1 % "
        "better than that.",
    ]
    if not authors:
        notes.append(
            "baseline, ours: pair functions with about 1,160 parameters, fitted in closed form in "
            "float64 with the offset. The report's has 1,160 parameters and one epoch."
        )
    notes.append(
        "SchNet, ours: energies less their mean (QM9: atomic energies) in float64, added again to "
        "the prediction; the report trains on MD17's total energies of -1e5 kcal/mol in float32."
    )
    if authors:
        quoted = "authors: Schuett et al., NeurIPS 2017, Table 2, 50,000 frames, as in the report."
        if both:
            quoted += (
                " Beside its losses it has their force error once more; the errors of their "
                "training on both stand in the last table."
            )
        notes.append(quoted)
    elif both:
        notes.append(
            "The report does not say what its third column is. Its sizes fit the loss of its "
            "section 2.3, of which the energy is nearly all; so that is what is shown."
        )
    if "iso17" in systems:
        notes.append(printed.ISO17_NOTE)
    if "qm9" in systems:
        notes.append("The report does not name its QM9 target; ours is U0.")
    return notes


def run_lengths(results: Results, recipes: Sequence[str]) -> list[str]:
    """Steps and seconds of the runs, a line a recipe."""
    lines = []
    for recipe in recipes:
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for (_, _, method), result in results.items():
            if method == recipe and "steps" in result:
                groups.setdefault(describe(result["recipe"]), []).append(result)
        for text, runs in groups.items():
            steps, seconds = [r["steps"] for r in runs], [r["seconds"] for r in runs]
            systems = ", ".join(dict.fromkeys(r["system"] for r in runs))
            title = recipe_title(recipe) + (f" ({systems})" if len(groups) > 1 else "")
            lines.append(f"{title}: {span(steps)} steps, {span(seconds)} s a run; {text}.")
    return lines


def verdict_notes(results: Results, recipes: Sequence[str]) -> list[str]:
    """How often SchNet has the smaller figure than the baseline, in the report and here."""
    words = {"energy": "energies", "forces": "forces", "energy+forces": "losses"}

    def counted(pairs: Mapping[str, list[tuple[float | None, float | None]]]) -> str:
        parts = []
        for task, word in words.items():
            both = [(a, b) for a, b in pairs.get(task, []) if a is not None and b is not None]
            if both:
                parts.append(f"{sum(b < a for a, b in both)} of {len(both)} {word}")
        return ", ".join(parts)

    lines = []
    theirs: dict[str, list[tuple[float | None, float | None]]] = {}
    for system, task in dict.fromkeys((s, t) for s, t, _ in results):
        theirs.setdefault(task, []).append(printed.table2(system, task))
    for recipe in recipes:
        ours: dict[str, list[tuple[float | None, float | None]]] = {}
        for system, task, method in results:
            if method == recipe:
                base = value_of(results.get((system, task, BASELINE)), task)
                ours.setdefault(task, []).append(
                    (base, value_of(results[system, task, recipe], task))
                )
        if text := counted(ours):
            lines.append(f"SchNet better than the baseline, {recipe_title(recipe)}: {text}.")
    return [*lines, f"The report, of the same: {counted(theirs)}."] if lines else []


def ratio_notes(results: Results, *, authors: bool) -> list[str]:
    """Force errors by the report's protocol over the report's own: those have no offset."""
    ratios = []
    for (system, task, method), result in results.items():
        theirs = printed.table7(system, task)[0] if authors else printed.table2(system, task)[1]
        value = value_of(result, task)
        known = theirs is not None and value is not None and system in printed.MOLECULES
        if (task, method) == ("forces", REPORT) and known:
            ratios.append(value / theirs)  # type: ignore[operator]
    if not ratios:
        return []
    ends = " to ".join(dict.fromkeys((number(min(ratios)), number(max(ratios)))))
    return [f"Force errors, {recipe_title(REPORT)}: {ends} times the report's."]


def caption(title: str, setup: printed.Setup, results: Results, length: Mapping[str, Any]) -> str:
    """What the numbers are, and how the runs differ from the report's."""
    runs = [r for r in results.values() if "recipe" in r]
    theories = ", ".join(sorted({r["level_of_theory"] for r in runs}))
    sizes = {key: [r[key] for r in runs] or [0] for key in ("n_train", "n_val", "n_test")}
    text = (
        f"**{title}**. Errors on test frames. Labels: {theories}. "
        f"{' / '.join(span(values) for values in sizes.values())} frames to train / validate / "
        f"test (the report: {setup.n_train:,} / none / {setup.n_test:,}); the weights with the "
        "lowest validation loss are tested."
    )
    departures = []
    if min(sizes["n_train"]) < setup.n_train:
        departures.append("fewer training frames")
    if length.get("time_limit"):
        departures.append(
            f"at most {length['time_limit']:g} s of training a run (the report's protocol: "
            f"{setup.steps:,} steps at most, as the report)"
        )
    elif length.get("epochs"):
        departures.append(f"epochs: {length['epochs']}")
    else:
        text += f" At least the report's {setup.steps:,} optimiser steps, in whole epochs."
    if departures:
        text += f" **Not the report's protocol**: {'; '.join(departures)}."
    return text


# ------------------------------------------------------------------------------------------------
# Table 6


def differences(results: Results, recipes: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """SchNet less baseline, the report's and ours, and the same in per cent of the baseline."""
    lines: list[str] = []
    rows: list[dict[str, Any]] = []
    systems = list(dict.fromkeys(system for system, _, _ in results))
    for task in TASKS:
        body = []
        for system in systems:
            baseline, schnet = printed.table2(system, task)
            row: dict[str, Any] = {"system": system, "task": task, "report": None}
            row["report"] = printed.table6(system, task)
            row["report_percent"] = _percent(schnet, baseline)
            base = value_of(results.get((system, task, BASELINE)), task)
            for recipe in recipes:
                value = value_of(results.get((system, task, recipe)), task)
                both = value is not None and base is not None
                row[recipe] = value - base if both else None  # type: ignore[operator]
                row[f"{recipe}_percent"] = _percent(value, base)
            if all(row[r] is None for r in recipes):
                continue
            rows.append(row)
            cells = [system]
            for key in ("report", *recipes):
                cells += [
                    _signed(row[key], quoted if key == "report" else number),
                    _signed(row[f"{key}_percent"]),
                ]
            body.append(cells)
        if body:
            head = ["data", "report", "%"]
            for recipe in recipes:
                head += [f"ours: {recipe_title(recipe)}", "%"]
            title = f"**{HEADINGS[task].split(':')[0]} ({UNITS[task]})**"
            lines += [title, "", *markdown_table(head, body), ""]
    return lines, rows


def _percent(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else 100.0 * (value - base) / base


def _signed(value: float | None, write: Callable[[float | None], str] = number) -> str:
    text = write(value)
    return f"+{text}" if value is not None and value > 0 else text
