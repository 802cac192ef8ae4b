"""Tables of results beside the paper's own, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcase.files import write_text
from dcase.potentials.experiments.protocol import (
    OC22_FRAMES,
    PAPER_C,
    PAPER_EPOCHS,
    PAPER_FRAMES,
    SETTINGS,
    Protocol,
)
from dcase.potentials.experiments.published import published, schnet_literature
from dcase.tables import page_files
from dcase.units import KCAL_PER_MOL

COLUMNS = (
    "system",
    "model",
    "setting",
    "energy_mae",
    "energy_mae_paper",
    "forces_mae",
    "forces_mae_paper",
    "efwt_percent",
    "epochs",
    "steps",
    "minutes",
    "status",
)


def table_rows(
    results: Sequence[Mapping[str, Any]], trivial: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """One row a run, and before the rows of each system its trivial predictor.

    Args:
        results: Contents of ``result.json``.
        trivial: System -> errors of the mean energy and zero forces, kcal/mol and kcal/mol/A.

    Returns:
        Dictionaries with the keys :data:`COLUMNS`; energies and forces in kcal/mol and kcal/mol/A,
        for OC22 in eV and eV/A. NaN where training diverged, None where there is nothing.
    """
    rows = []
    for system in dict.fromkeys(r["system"] for r in results):
        unit = _unit_factor(system)
        if system in trivial:
            rows.append(
                {
                    **dict.fromkeys(COLUMNS),
                    "system": system,
                    "model": "(none)",
                    "setting": "fitted atomic energies, zero forces"
                    if system == "oc22"
                    else "mean energy, zero forces",
                    "energy_mae": _times(trivial[system].get("energy"), unit),
                    "forces_mae": _times(trivial[system].get("forces"), unit),
                }
            )
        for result in (r for r in results if r["system"] == system):
            title = SETTINGS[result["setting"]].title
            paper = published(result["model"], result["setting"], system)
            if result["label"]:  # a point of a figure, of which the paper prints no numbers
                title, paper = f"{title}, {result['label']}", None
            diverged = result["status"] == "NaN"
            found = result["metrics"]

            def metric(
                key: str,
                factor: float,
                diverged: bool = diverged,
                found: Mapping[str, float] = found,
            ) -> float | None:
                return math.nan if diverged else _times(found.get(key), factor)

            rows.append(
                {
                    "system": system,
                    "model": result["model"],
                    "setting": title,
                    "energy_mae": metric("energy_mae_kcal_mol", unit),
                    "energy_mae_paper": paper[0] if paper else None,
                    "forces_mae": metric("forces_mae_kcal_mol_angstrom", unit),
                    "forces_mae_paper": paper[1] if paper else None,
                    "efwt_percent": metric("efwt", 100.0),
                    "epochs": result.get("epochs"),
                    "steps": result.get("steps"),
                    "minutes": _times(result.get("seconds"), 1 / 60),
                    "status": result["status"],
                }
            )
    return rows


def _unit_factor(system: str) -> float:
    """From kcal/mol to the unit of the paper's table."""
    return KCAL_PER_MOL if system == "oc22" else 1.0


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def verdicts(results: Sequence[Mapping[str, Any]], first: str, second: str) -> list[str]:
    """How often ``second`` has the smaller error, here and in the paper, a line a quantity."""
    lines = []
    by_key = {(r["system"], r["model"], r["setting"]): r for r in results}
    couples = [
        (by_key[system, model, first], by_key[system, model, second])
        for system, model, setting in by_key
        if setting == first and (system, model, second) in by_key
    ]
    for index, (key, word) in enumerate(
        (("energy_mae_kcal_mol", "energy"), ("forces_mae_kcal_mol_angstrom", "force"))
    ):
        here = [
            (a["metrics"].get(key, math.inf), b["metrics"].get(key, math.inf)) for a, b in couples
        ]
        theirs = []
        for a, _ in couples:
            pair = [published(a["model"], s, a["system"]) for s in (first, second)]
            if pair[0] is not None and pair[1] is not None:
                theirs.append((pair[0][index], pair[1][index]))
        if not here:
            continue
        line = (
            f"{SETTINGS[second].title} has the smaller {word} error in "
            f"{sum(b < a for a, b in here)} of {len(here)}"
        )
        if theirs:
            # A NaN of the paper compares as no improvement, and no loss where it is the first.
            won = sum(b < a or (math.isnan(a) and not math.isnan(b)) for a, b in theirs)
            line += f"; in the paper, in {won} of {len(theirs)} of the same"
        lines.append(line + ".")
    return lines


def nothing_learned(
    results: Sequence[Mapping[str, Any]], trivial: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """How many runs are not 1 % better than the trivial predictor: no wins between them count."""
    lines = []
    for key, quantity, what in (
        ("energy_mae_kcal_mol", "energy", "the mean energy"),
        ("forces_mae_kcal_mol_angstrom", "forces", "zero forces"),
    ):
        known = [r for r in results if quantity in trivial.get(r["system"], {})]
        # "not <" counts what diverged as well.
        poor = [
            r
            for r in known
            if not r["metrics"].get(key, math.nan) < 0.99 * trivial[r["system"]][quantity]
        ]
        if poor:
            lines.append(f"No better than {what}: {len(poor)} of {len(known)} runs.")
    return lines


def caption(
    title: str, protocol: Protocol, results: Sequence[Mapping[str, Any]], *, unit: str
) -> str:
    """What the numbers are, and in which ways they are not the paper's protocol."""
    if not results:
        return title
    one = results[0]
    recipe = one["recipe"]
    training, loss, labels = recipe["training"], recipe["loss"], recipe["labels"]
    betas = sorted({r["recipe"]["loss"]["forces_weight"] for r in results})
    beta = f"{betas[0]:g}" if len(betas) == 1 else "beta"
    devices = sorted({r["device"] for r in results if "device" in r}) or ["unknown"]
    sizes = sorted({(r["n_train"], r["n_val"], r.get("n_test", 0)) for r in results})
    frames = "; ".join(f"{a} / {b} / {c}" for a, b, c in sizes)
    text = (
        f"{title}. MAE in {unit}; test frames. Labels {one['level_of_theory']}; "
        f"{frames} frames to train / validate / test; recipe {recipe['name']} "
        f"({loss['energy_weight']:g} {loss['energy_loss'].upper()}(E) + "
        f"{beta} {loss['forces_loss'].upper()}(F), {training['optimizer']} "
        f"{_by_model(results, 'lr')}, {training['schedule']} schedule, "
        f"batch {_by_model(results, 'batch_size')}, "
        f"seed {training['seed']}); size {protocol.size}, variant {protocol.variant}; the weights "
        f"with the lowest validation loss are tested; on {', '.join(devices)}."
    )
    if one["system"] == "oc22":
        text += f" Test frames: {one.get('test_name') or 'unknown'}; forces on free atoms."
    scaled = []
    paper_frames = OC22_FRAMES if one["system"] == "oc22" else PAPER_FRAMES[0]
    # Figure 2 begins with the paper's number and goes on to more.
    if any(r["n_train"] < paper_frames for r in results):
        scaled.append(f"fewer training frames than the paper's {paper_frames:,}")
    elif any(r["n_train"] > paper_frames and not r["label"] for r in results):
        scaled.append(f"more training frames than the paper's {paper_frames:,}")
    if protocol.size != "paper":
        scaled.append(f"networks of size {protocol.size} instead of the paper's")
    if training["time_limit"] is not None:
        scaled.append(
            f"at most {training['time_limit'] / 60:.3g} minutes of training a run "
            f"(the paper: {PAPER_EPOCHS} epochs)"
        )
    elif training["epochs"] != PAPER_EPOCHS:
        scaled.append(f"{training['epochs']} epochs instead of {PAPER_EPOCHS}")
    if recipe["name"] == "paper" and protocol.lr is not None:
        scaled.append(f"learning rate {protocol.lr:g} instead of 0.0001")
    if recipe["name"] == "paper" and protocol.batch_size is not None:
        scaled.append(f"batches of {protocol.batch_size} instead of 20")
    if recipe["name"] != "paper":
        scaled.append(f"trained with the recipe {recipe['name']}, not the paper's")
        if labels["rescale"] != "paper" and any(r["setting"] == "ours" for r in results):
            scaled.append("labels rescaled as that recipe does")
    constant = PAPER_C["oc22" if one["system"] == "oc22" else "md17"]
    found = {
        f"{r['label_constant_eV'] / (1.0 if r['system'] == 'oc22' else KCAL_PER_MOL):.3g}"
        for r in results
        if SETTINGS[r["setting"]].rescale and "label_constant_eV" in r
    }
    others = sorted(found - {f"{constant:.3g}"}, key=float)
    if recipe["name"] == "paper" and others:
        scaled.append(f"labels divided by {', '.join(others)} instead of {constant:.3g}")
    if protocol.variant != "paper":
        scaled.append("dcase's corrected architectures")
    if scaled:
        text += f" **Not the paper's protocol**: {'; '.join(scaled)}."
    text += " Energies are summed over atoms in float64; neighbours are never truncated."
    return text


def _by_model(results: Sequence[Mapping[str, Any]], key: str) -> str:
    """A training setting; where models differ in it (Table 2), each with the models it is for."""
    models: dict[Any, list[str]] = {}
    for result in results:
        which = models.setdefault(result["recipe"]["training"][key], [])
        if result["model"] not in which:
            which.append(result["model"])
    if len(models) == 1:
        return f"{next(iter(models)):g}"
    return " / ".join(f"{value:g} ({', '.join(names)})" for value, names in models.items())


def markdown(rows: Sequence[Mapping[str, Any]], heading: str, notes: Sequence[str]) -> str:
    """The table, its caption and notes."""
    lines = [
        heading,
        "",
        "| system | model | setting | E | E paper | F | F paper | EFwT % | epochs | min |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [
            row["system"],
            row["model"],
            row["setting"],
            *(
                _figure(row[key])
                for key in (
                    "energy_mae",
                    "energy_mae_paper",
                    "forces_mae",
                    "forces_mae_paper",
                    "efwt_percent",
                )
            ),
            "" if row["epochs"] is None else str(row["epochs"]),
            "" if row["minutes"] is None else f"{row['minutes']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if notes:
        lines += ["", *(f"* {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "NaN"
    if value == 0:
        return "0"
    if abs(value) >= 1e4:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def schnet_note(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The literature's SchNet beside the paper's rows, where SchNet is in the table."""
    systems = sorted({r["system"] for r in results if r["model"] == "schnet"})
    known = [(s, schnet_literature(s)) for s in systems]
    shown = [f"{s} {pair[0]:.2f}, {pair[1]:.2f}" for s, pair in known if pair]
    if not shown:
        return []
    return [
        "SchNet with 50,000 frames in the literature (Schuett et al. 2017; energy offset removed, "
        f"decaying learning rate), E, F: {'; '.join(shown)}."
    ]


def write_table(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], text: str) -> None:
    """``NAME.md`` and ``NAME.csv`` in ``folder``, each whole or not there."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with page_files(folder, name):
        write_text(folder / f"{name}.csv", buffer.getvalue())
        write_text(folder / f"{name}.md", text)
