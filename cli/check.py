"""``dcase check``: the conformance checks on a user's own model."""

from __future__ import annotations

from pathlib import Path

import click

from dcase.cli.options import (
    code_option,
    device_option,
    dtype_option,
    json_option,
    threads_option,
    use_threads,
)
from dcase.files import write_json


@click.command()
@click.argument("model")
@click.argument("structure", required=False)
@dtype_option("float64")
@json_option("Write the results to this file.")
@device_option
@code_option
@threads_option
def check(
    model: str,
    structure: str | None,
    dtype: str,
    json_file: str | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Check that MODEL is a conservative, invariant, smooth potential.

    Finite-difference forces and stress, translation, rotation, mirror, permutation, batching,
    separated fragments, the cutoff, momentum, float32 against float64, time reversibility and the
    dt^2 law. STRUCTURE is a file or the name of an MD17 molecule; default: what the potential was
    trained on. Exit status 1 if a check fails; what an architecture does not promise (ForceNet:
    invariance to rotation) is measured too, and shown as "by design".
    """
    from dcase.cli.forms import form_of
    from dcase.cli.show import results_console
    from dcase.cli.structures import load_structure, molecule_of
    from dcase.files import check_writable
    from dcase.md_runs.checks.conformance import print_results, run_checks
    from dcase.potentials.calculator import DCCalculator
    from dcase.potentials.potential import load_potential

    use_threads(threads)
    if json_file:
        check_writable(json_file)
    potential = load_potential(model)
    atoms, where = None, "a molecule of its elements"
    if structure or molecule_of(potential):
        atoms, where = load_structure(structure, potential)
    console = results_console()
    console.print(f"{Path(model).name} on {where}, {dtype}", markup=False)
    calculator = DCCalculator(potential, dtype=dtype, device=device)
    click.echo(form_of(calculator), err=True)
    results = run_checks(potential, atoms, dtype=dtype, device=device)
    print_results(results, console)
    if json_file:
        write_json(json_file, [vars(result) for result in results])
    if any(result.failed for result in results):
        raise click.exceptions.Exit(1)
