"""``dcase info``: what a checkpoint holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from ase.data import chemical_symbols
from rich.table import Table
from rich.text import Text

from dcase.cli.show import results_console
from dcase.data.frames import UNKNOWN
from dcase.errors import CheckpointError, OptionError
from dcase.own_code import CodeNeededError
from dcase.potentials.create import potential_caveats, potential_limits
from dcase.potentials.ensemble import Ensemble, load_model, read_document
from dcase.potentials.potential import find_checkpoint
from dcase.potentials.quantity import Quantity


def describe(path: str) -> dict[str, Any]:
    """Everything about a checkpoint but its weights, as plain values.

    Of an ensemble: what all members share, and the network of the first.
    """
    file, shipped = find_checkpoint(path)
    where = {"file": str(file), "shipped_with_dcase": shipped}
    try:
        model = load_model(file)
    except CodeNeededError:  # what it says of itself is in the file
        return {**where, **_unloaded(file)}
    potential = model.first if isinstance(model, Ensemble) else model
    return {
        **where,
        "members": len(model) if isinstance(model, Ensemble) else 1,
        "architecture": potential.architecture,
        "hyper_parameters": potential.hyper_parameters,
        "parameters": sum(p.numel() for p in potential.network.parameters()),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "elements": [chemical_symbols[z] for z in model.elements],
        "code": potential.to_document()["code"],
        "cutoff_angstrom": model.cutoff,
        "quantity": potential.quantity.to_dict(),
        "level_of_theory": potential.level_of_theory,
        "label_scale": potential.scale.to_dict(),
        "caveats": ". ".join(
            filter(None, (potential_caveats(potential), potential_limits(potential)))
        ),
        **model.metadata,
    }


def _unloaded(file: Path) -> dict[str, Any]:
    """The same of a checkpoint whose code does not run here."""
    document = read_document(file)
    members = document.get("members", [document])
    first = members[0]
    shared = set.intersection(*(set(member["elements"]) for member in members))
    dataset = document["metadata"].get("dataset")
    dtypes = {str(v.dtype) for v in first["weights"].values() if v.is_floating_point()}
    return {
        "members": len(members),
        "architecture": first["architecture"],
        "hyper_parameters": first["hyper_parameters"],
        "parameters": first["parameters"],
        "dtype": ", ".join(sorted(dtype.removeprefix("torch.") for dtype in dtypes)),
        "elements": [chemical_symbols[z] for z in sorted(shared)],
        "code": first["code"],
        "cutoff_angstrom": max(member["cutoff"] for member in members),
        "quantity": Quantity.from_dict(first["quantity"]).to_dict(),
        "level_of_theory": dataset["level_of_theory"] if dataset else "none (untrained)",
        "label_scale": first["scale"],
        "caveats": "",
        **document["metadata"],
    }


_READOUTS = {
    "sum": "a sum over atoms",
    "mean": "a mean over atoms",
    "dipole": "the dipole of charges on the atoms",
    "extent": "a sum over atoms, times squared distances from the centre of mass",
}


def _value_errors(metrics: dict[str, Any], quantity: Quantity) -> list[str]:
    unit = "meV" if quantity.unit == "eV" else quantity.unit
    start = f"{quantity.key}_mae_"
    return [f"{value:.4g} {unit}" for key, value in metrics.items() if key.startswith(start)]


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--source", is_flag=True, help="Print the code of your own that it records.")
def info(model: str, as_json: bool, source: bool) -> None:
    """Show what the checkpoint MODEL holds: network, data, level of theory, recipe, errors."""
    try:
        content = describe(model)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(_odd(model, error)) from error
    if source:
        if not content["code"]:
            raise OptionError(f"{model} records no code: its network comes with dcase or a package")
        for text in dict.fromkeys(record["source"] for record in content["code"].values()):
            click.echo(text, nl=not text.endswith("\n"))
        return
    if as_json:
        click.echo(json.dumps(content, indent=2))
        return
    try:
        rows = _rows(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(_odd(model, error)) from error
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        if value == "":
            continue
        table.add_row(Text(name, style="bold"), Text(str(value)))  # paths are not markup
    results_console().print(table)


def _odd(model: str, error: Exception) -> str:
    what = f"{type(error).__name__}: {error}"
    return f"{model}: what it says of itself is not what dcase writes ({what})"


def _electrons(found: dict[str, Any] | None) -> str:
    """Charges and spins of the training frames, where these say them."""
    if not found or not (found["stated"] or found["unpaired"]):
        return ""
    spins = ", ".join(f"{s}" for s in found["unpaired"])
    return (
        "total charge "
        + ", ".join(f"{c:g}" for c in found["charges"])
        + (f"; {spins} unpaired electrons" if spins else "")
    )


def _rows(content: dict[str, Any]) -> dict[str, str]:
    """Names and values of the table."""
    scale, quantity = content["label_scale"], content["quantity"]
    unit, level = quantity["unit"], content["level_of_theory"]
    rows = {
        "file": content["file"]
        + (" (shipped with dcase)" if content["shipped_with_dcase"] else ""),
        "network": (f"ensemble of {content['members']}: " if content["members"] > 1 else "")
        + f"{content['architecture']}, {content['parameters']:,} parameters, "
        f"{content['dtype']}",
        "hyper-parameters": ", ".join(f"{k}={v}" for k, v in content["hyper_parameters"].items()),
        "code": "; ".join(
            f"{record['class']} of {record['path'] or 'a session'}, SHA-256 {record['sha256'][:16]}"
            for record in content["code"].values()
        ),
        "caveats": content["caveats"],
        "elements": " ".join(content["elements"]),
        "cutoff": f"{content['cutoff_angstrom']} A",
        "predicts": f"{quantity['name']} ({unit}), {_READOUTS[quantity['readout']]}",
        "level of theory": "not recorded" if level == UNKNOWN else level,
        "trained on": _electrons(content.get("electrons")),
        "label scale": f"C = {scale['constant']:.6g} {unit} ({scale['rescale']}), offset "
        f"{scale['offset']}: "
        + ", ".join(
            f"{chemical_symbols[int(z)]} {e:.4f} {unit}" for z, e in scale["offsets"].items()
        ),
    }
    # A potential saved from Python holds what its author put there, perhaps nothing.
    data, split = content.get("dataset"), content.get("split")
    if data:
        rows["data"] = f"{data['name']} {data['molecule']}, from {data['source']}"
    if split:
        rows["frames"] = f"{split['n_train']} trained, {split['n_val']} validated"
    training, recipe = content.get("training"), content.get("recipe")
    if training and recipe:
        rows["training"] = (
            f"recipe {recipe['name']}, {training['epochs']} epochs, "
            f"{training['seconds']:.0f} s, {training['status']}"
        )
    metrics = content.get("metrics") or {}
    errors = [
        f"{symbol} {metrics[f'{key}_{unit}']:.3f} {name} ({metrics[f'{key}_{small}']:.1f} {mev})"
        for symbol, key, unit, name, small, mev in (
            ("E", "energy_mae", "kcal_mol", "kcal/mol", "mev", "meV"),
            ("F", "forces_mae", "kcal_mol_angstrom", "kcal/mol/A", "mev_angstrom", "meV/A"),
        )
        if f"{key}_{unit}" in metrics
    ]
    if not quantity["is_energy"]:
        errors = _value_errors(metrics, Quantity.from_dict(quantity))
    if errors:
        rows["validation MAE"] = ", ".join(errors)
    return rows
