"""``dcase info``: what a checkpoint holds."""

from __future__ import annotations

import json
from typing import Any

import click
from ase.data import chemical_symbols
from rich.console import Console
from rich.table import Table

from dcase.potentials.potential import find_checkpoint, load_potential


def describe(path: str) -> dict[str, Any]:
    """Everything about a checkpoint but its weights, as plain values."""
    file, shipped = find_checkpoint(path)
    potential = load_potential(file)
    return {
        "file": str(file),
        "shipped_with_dcase": shipped,
        "architecture": potential.architecture,
        "hyper_parameters": potential.hyper_parameters,
        "parameters": sum(p.numel() for p in potential.network.parameters()),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "elements": [chemical_symbols[z] for z in potential.elements],
        "cutoff_angstrom": potential.cutoff,
        "level_of_theory": potential.level_of_theory,
        "label_scale": potential.scale.to_dict(),
        **potential.metadata,
    }


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def info(model: str, as_json: bool) -> None:
    """Show what the checkpoint MODEL holds: network, data, level of theory, recipe, errors."""
    content = describe(model)
    if as_json:
        click.echo(json.dumps(content, indent=2))
        return
    scale = content["label_scale"]
    rows = {
        "file": content["file"],
        "network": f"{content['architecture']}, {content['parameters']:,} parameters, "
        f"{content['dtype']}",
        "hyper-parameters": ", ".join(f"{k}={v}" for k, v in content["hyper_parameters"].items()),
        "elements": " ".join(content["elements"]),
        "cutoff": f"{content['cutoff_angstrom']} A",
        "level of theory": content["level_of_theory"],
        "label scale": f"C = {scale['constant']:.6g} eV ({scale['rescale']}), offset "
        f"{scale['offset']}: "
        + ", ".join(f"{chemical_symbols[int(z)]} {e:.4f} eV" for z, e in scale["offsets"].items()),
    }
    if "dataset" in content:
        data, split = content["dataset"], content["split"]
        rows["data"] = (
            f"{data['name']} {data['molecule']}, {split['n_train']} frames trained, "
            f"{split['n_val']} validated, from {data['source']}"
        )
        training, recipe = content["training"], content["recipe"]
        rows["training"] = (
            f"recipe {recipe['name']}, {training['epochs']} epochs, "
            f"{training['seconds']:.0f} s, {training['status']}"
        )
        metrics = content["metrics"]
        if "forces_mae_kcal_mol_angstrom" in metrics and "energy_mae_kcal_mol" in metrics:
            rows["validation MAE"] = (
                f"E {metrics['energy_mae_kcal_mol']:.3f} kcal/mol "
                f"({metrics['energy_mae_mev']:.1f} meV), "
                f"F {metrics['forces_mae_kcal_mol_angstrom']:.3f} kcal/mol/A "
                f"({metrics['forces_mae_mev_angstrom']:.1f} meV/A)"
            )
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/bold]", str(value))
    Console().print(table)
