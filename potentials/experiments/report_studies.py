"""Tables 1, 3 and 4 of the SchNet report beside ours: sizes, folds, and the folds' ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dcase.potentials.experiments.report_format import (
    describe,
    number,
    page,
    quoted,
    recipe_title,
    span,
)
from dcase.potentials.experiments.report_published import (
    LONG,
    TABLE1,
    TABLE1_DATA,
    TABLE3,
    TABLE4,
    report_parameters,
)
from dcase.potentials.experiments.report_runs import REPORT, report_loss
from dcase.tables import markdown_table

Page = tuple[str, list[dict[str, Any]]]
"""Markdown, and rows for CSV and JSON."""
_SPREADS = (
    ("energy", "energy (kcal/mol)"),
    ("forces_x", "forces, x (kcal/mol/A)"),
    ("forces_y", "forces, y (kcal/mol/A)"),
    ("forces_z", "forces, z (kcal/mol/A)"),
)

# ------------------------------------------------------------------------------------------------
# Table 1


def size_table(
    results: Mapping[tuple[str, str, str], Mapping[str, Any]], options: Mapping[str, Any]
) -> Page:
    """Table 1: three networks, a row of results for every data set and recipe.

    Args:
        results: By system, recipe and size.
        options: Of the command: ``time_limit``, ``epochs``.
    """
    names = list(TABLE1)
    sizes = TABLE1.values()
    body = [
        ["interaction blocks", *(str(s.blocks) for s in sizes)],
        ["features", *(str(s.features) for s in sizes)],
        ["Gaussians, up to A", *(f"{s.gaussians}, {s.reach:g}" for s in sizes)],
        ["parameters, report", *(f"{s.parameters:,}" for s in sizes)],
    ]
    rows: list[dict[str, Any]] = []
    groups = list(dict.fromkeys((system, recipe) for system, recipe, _ in results))
    ours: dict[str, list[str]] = {}
    for system, recipe in groups:
        found = [results.get((system, recipe, n)) for n in names]
        label = f"{system}, {recipe_title(recipe)}"
        ours[f"parameters, {label}"] = [_parameters(r) for r in found]
        ours[f"steps, {label}"] = [f"{r['steps']:,}" if r and "steps" in r else "" for r in found]
        for key, what in (
            ("energy_mae_kcal_mol", "E MAE (kcal/mol)"),
            ("forces_mae_kcal_mol_angstrom", "F MAE (kcal/mol/A)"),
        ):
            values = [_metric(r, key) for r in found]
            if any(v is not None for v in values):
                ours[f"{what}, {label}"] = [number(v) for v in values]
        losses = [report_loss(r["metrics"]) if r else None for r in found]
        if any(loss is not None for loss in losses):
            ours[f"report's loss, {label}"] = [number(v) for v in losses]
        for name, result, loss in zip(names, found, losses, strict=True):
            if result is not None:
                rows.append(_size_row(system, recipe, name, result, loss))
    body += [[key, *cells] for key, cells in ours.items()]
    steps = [f"{s.epochs * -(-LONG.n_train // LONG.batch_size):,}" for s in sizes]
    body += [
        ["steps, report", *steps],
        ["validation loss, report", *(quoted(s.loss) for s in sizes)],
    ]
    runs = list(results.values())
    frames = sorted({(r["system"], r["n_train"], r["n_val"], r["n_test"]) for r in runs})
    heading = (
        "**Table 1 of the SchNet report: networks of three sizes**. Ours: errors on test frames, "
        + "; ".join(f"{s}: {a:,} / {b:,} / {c:,}" for s, a, b, c in frames)
        + " frames to train / validate / test (the report: 50,000 to train)"
        + _limits(options)
    )
    notes = [TABLE1_DATA, _parameter_note(results)]
    notes += _recipes(results)
    if options.get("time_limit"):
        notes.append(
            "In the same time a larger network makes fewer steps (see the rows of steps): under "
            "a time limit the order of the sizes is one of speed as much as of capacity."
        )
    notes.append(
        "Under other recipes than the report's, blocks and features are those of the table, and "
        "Gaussians and range the recipe's."
    )
    return page(heading, markdown_table(["", *names], body), notes), rows


def _size_row(
    system: str, recipe: str, name: str, result: Mapping[str, Any], loss: float | None
) -> dict[str, Any]:
    return {
        "system": system,
        "recipe": recipe,
        "size": name,
        "parameters": result.get("parameters"),
        "parameters_report": TABLE1[name].parameters,
        "energy_mae_kcal_mol": result["metrics"].get("energy_mae_kcal_mol"),
        "forces_mae_kcal_mol_angstrom": result["metrics"].get("forces_mae_kcal_mol_angstrom"),
        "report_loss": loss,
        "loss_report_printed": TABLE1[name].loss,
        "n_train": result["n_train"],
        "steps": result.get("steps"),
        "seconds": result.get("seconds"),
        "status": result["status"],
    }


def _parameters(result: Mapping[str, Any] | None) -> str:
    return f"{result['parameters']:,}" if result and "parameters" in result else ""


def _metric(result: Mapping[str, Any] | None, key: str) -> float | None:
    if result is None:
        return None
    value = result["metrics"].get(key)
    return float("nan") if result["status"] == "NaN" else value


def _recipes(results: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> list[str]:
    """The recipes without the sizes' own hyper-parameters, each with the data it was used for."""
    used: dict[tuple[str, str], list[str]] = {}
    for (system, recipe, _), result in results.items():
        if "recipe" in result:
            plain = {**result["recipe"]["model"], "hyper_parameters": {}}
            text = describe({**result["recipe"], "model": plain})
            text = text.partition(", filters on splines")[0]  # their number goes with the range
            used.setdefault((recipe, text), []).append(system)
    return [
        f"{recipe_title(recipe)} ({', '.join(dict.fromkeys(systems))}): {text}."
        for (recipe, text), systems in used.items()
    ]


def _parameter_note(results: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> str:
    """Where the difference in parameters comes from, for the first run by the report's protocol."""
    note = (
        "The report's parameters are exactly those of 100 element embeddings, filter networks with "
        "two layers, four atom-wise layers a block with biases, and a read-out through 32 features "
        f"({', '.join(f'{report_parameters(s):,}' for s in TABLE1.values())}). "
        "Ours: embeddings of the elements that occur, no bias in a block's first atom-wise layer, "
        "a read-out through half of the features"
    )
    for (system, recipe, name), result in results.items():
        if recipe == REPORT and "parameters" in result:
            missing = TABLE1[name].parameters - result["parameters"]
            return f"{note}; hence {missing:,} fewer in {name} for {system}."
    return note + "."


def _limits(options: Mapping[str, Any]) -> str:
    if options.get("time_limit"):
        return (
            f". **Not the report's protocol**: at most {options['time_limit']:g} s of training a "
            "run; by its protocol at most its number of steps, by other recipes as many as fit."
        )
    if options.get("epochs"):
        return f". **Not the report's protocol**: epochs: {options['epochs']}."
    return "; at least the report's number of optimiser steps, in whole epochs."


# ------------------------------------------------------------------------------------------------
# Tables 3 and 4


def fold_table(
    title: str, system: str, results: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]
) -> Page:
    """Table 3: minimum, maximum, mean and standard deviation of the loss of every fold.

    Args:
        title: Of the table.
        system: What was learned.
        results: By recipe, from :func:`~dcase.potentials.experiments.report_fits.perform_crossing`.
        options: Of the command.
    """
    lines, rows = [], []
    head = ["fold", "minimum", "maximum", "mean", "std", "E MAE", "F MAE"]
    if results and system == "iso17":
        body = [[str(n), *map(quoted, f.values()), "", ""] for n, f in enumerate(TABLE3, 1)]
        lines += ["**The report, ISO17**", "", *markdown_table(head, body), ""]
    for recipe, result in _ended(results).items():
        body = []
        for row in result["folds"]:
            loss = row["report_loss"]
            energy = row.get("energy_mae_kcal_mol")
            forces = row.get("forces_mae_kcal_mol_angstrom")
            body.append([str(row["fold"]), *_four(loss), number(energy), number(forces)])
            rows.append(
                {
                    "system": system,
                    "recipe": recipe,
                    "fold": row["fold"],
                    **{f"loss_{k}": v for k, v in loss.items()},
                    "energy_mae_kcal_mol": energy,
                    "forces_mae_kcal_mol_angstrom": forces,
                }
            )
        over = result["over_folds"]
        means = [over.get(k) for k in ("energy_mae_kcal_mol", "forces_mae_kcal_mol_angstrom")]
        cells = [f"{number(m['mean'])} ± {number(m['std'])}" if m else "n.a." for m in means]
        averages = [row["report_loss"]["mean"] for row in result["folds"]]
        body.append(["mean ± std of folds", "", "", _spread_of(averages), "", *cells])
        lines += [
            f"**Ours, {system}: {recipe_title(recipe)}**",
            "",
            *markdown_table(head, body),
            "",
        ]
    notes = [
        "Loss: 0.01 dE^2 + 1/n sum_i |dF_i|^2 in kcal/mol and kcal/mol/A, over the batches of 32 "
        "of the fold that the network did not see. The report does not say what its minimum, "
        "maximum and std are over; batches are assumed. E, F: mean absolute errors in kcal/mol and "
        "kcal/mol/A.",
    ]
    if system != "iso17":
        notes.append(
            "The report's folds are of ISO17 and in its loss, whose unit is probably eV; its means "
            f"are {', '.join(quoted(f['mean']) for f in TABLE3)}, its stds "
            f"{', '.join(quoted(f['std']) for f in TABLE3)}. Within a molecule folds are alike."
        )
    notes += _diverged(results)
    return page(_fold_heading(title, system, results, options), lines, notes), rows


def spread_table(
    title: str, system: str, results: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]
) -> Page:
    """Table 4: standard deviation over the folds' networks on frames that none of them saw.

    Arguments as of :func:`fold_table`.
    """
    recipes = list(_ended(results))
    head = ["std of", "report: min", "max", "mean"]
    for recipe in recipes:
        head += [f"{recipe_title(recipe)}: min", "max", "mean"]
    body, rows = [], []
    for key, title_of in _SPREADS:
        found = [results[r]["spread"].get(key) for r in recipes]
        if all(f is None for f in found):
            continue
        cells = [title_of, *(quoted(TABLE4[key][k]) for k in ("min", "max", "mean"))]
        for recipe, statistics in zip(recipes, found, strict=True):
            cells += [number(statistics[k]) for k in ("min", "max", "mean")]
            rows.append({"system": system, "recipe": recipe, "std_of": key, **statistics})
        body.append(cells)
    errors = []
    for recipe in recipes:
        test, one = results[recipe]["test"], results[recipe]["test_of_one"]
        parts = [
            f"{word} {number(test[key])} (one network: {number(one[key])}) {unit}"
            for word, key, unit in (
                ("E", "energy_mae_kcal_mol", "kcal/mol"),
                ("F", "forces_mae_kcal_mol_angstrom", "kcal/mol/A"),
            )
            if key in test
        ]
        errors.append(
            f"MAE of the ensemble on these frames, {recipe_title(recipe)}: {', '.join(parts)}."
        )
    notes = [
        *errors,
        "Minimum, maximum and mean over frames (energies) or atoms (forces) of the sample standard "
        "deviation over the networks, on frames apart from all folds. The report's are of ISO17, "
        "and probably in eV and eV/A.",
    ]
    notes += _diverged(results)
    text = page(_fold_heading(title, system, results, options), markdown_table(head, body), notes)
    return text, rows


def _ended(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {recipe: result for recipe, result in results.items() if result["status"] != "NaN"}


def _diverged(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"{recipe_title(recipe)}: NaN ({result['reason']})."
        for recipe, result in results.items()
        if result["status"] == "NaN"
    ]


def _fold_heading(
    title: str, system: str, results: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]
) -> str:
    results = _ended(results)
    if not results:
        return f"**{title}**"
    one = next(iter(results.values()))
    sizes = sorted(set(one["n_frames_fold"]))
    text = (
        f"**{title}**. Ours: {system}, labels {one['level_of_theory']}, {one['n_folds']} folds of "
        f"{' or '.join(f'{n:,}' for n in sizes)} frames and {one['n_test']:,} apart"
    )
    lengths = []
    for recipe, result in results.items():
        steps = [t["steps"] for t in result["training"]]
        seconds = [t["seconds"] for t in result["training"]]
        lengths.append(f"{recipe_title(recipe)}: {span(steps)} steps, {span(seconds)} s a fold")
    return f"{text}. {'; '.join(lengths)}" + _limits(options)


def _four(values: Mapping[str, float]) -> list[str]:
    return [number(values[k]) for k in ("min", "max", "mean", "std")]


def _spread_of(values: list[float]) -> str:
    mean = sum(values) / len(values)
    std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    return f"{number(mean)} ± {number(std)}"
