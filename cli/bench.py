"""``dcase bench``: how fast simulations are on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dcase.cli.options import (
    Number,
    SectionedCommand,
    code_option,
    count,
    device_option,
    dtype_option,
    json_option,
    optimize_option,
    positive,
    section,
    seed_option,
    structure_option,
    threads_option,
    use_threads,
)
from dcase.files import write_json
from dcase.md_runs.settings import MDSettings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dcase.md_runs.bench.measure import BenchResult

_DEFAULT = MDSettings()
_LOOPS = {
    "compiled": "compiled loop",
    "CUDA graph": "CUDA graph",
    "ASE": "loop of ASE",
    "batch": "one batch",
}
_PARTS = {"neighbours": "neighbours", "model": "model", "integrator": "integrator", "io": "I/O"}


@click.command(cls=SectionedCommand)
@click.argument("model", default="aspirin_irelu.pt")
@click.argument("structure", required=False)
@structure_option("structure_option", metavar="STRUCTURE")
@count("--steps", help="Of a round; default: as many as take about a second.")
@count("--rounds", default=5, help="The median of them counts.")
@click.option(
    "--compare",
    is_flag=True,
    help="Also time the same weights in PyTorch (--no-optimize), in turn, and print the ratio.",
)
@json_option("Write everything to this file.")
@section(
    "Dynamics",
    positive(
        "--timestep", default=_DEFAULT.timestep_fs, help="fs; ns/day are in proportion to it."
    ),
    click.option(
        "--temperature",
        type=Number(min=0.0),
        default=_DEFAULT.temperature_K,
        show_default=True,
        help="K; the hotter, the more often neighbours are searched for.",
    ),
    count("--replicas", metavar="N", help="N independent copies, as in dcase md --replicas."),
    seed_option("Of everything random.", _DEFAULT.seed),
)
@section(
    "Machine",
    dtype_option("float32"),
    device_option,
    code_option,
    threads_option,
    optimize_option,
)
def bench(
    model: str,
    structure: str | None,
    structure_option: str | None,
    steps: int | None,
    rounds: int,
    compare: bool,
    json_file: str | None,
    timestep: float,
    temperature: float,
    replicas: int | None,
    seed: int,
    dtype: str,
    device: str | None,
    threads: int | None,
    optimize: bool | None,
) -> None:
    """Time molecular dynamics on this machine, and show where a step's time goes.

    MODEL is a checkpoint of a potential or an ensemble (default: the shipped aspirin potential),
    STRUCTURE a file or the name of an MD17 molecule (default: what the potential was trained on).
    What is timed is what dcase md does, NVE with all its records, in a temporary folder that is
    gone afterwards: first a whole run, then rounds of steps.
    """
    from rich.console import Console

    from dcase.cli.forms import form_of
    from dcase.cli.show import results_console
    from dcase.cli.structures import load_structure
    from dcase.files import check_writable
    from dcase.md_runs.bench.measure import bench_md
    from dcase.potentials.calculator import DCCalculator

    if structure is not None and structure_option is not None:
        raise click.UsageError("give the structure once: as STRUCTURE or with --structure")
    if compare and optimize is False:
        raise click.UsageError("--compare and --no-optimize exclude each other")
    use_threads(threads)
    if json_file:
        check_writable(json_file)
    calc = DCCalculator(model, dtype=dtype, device=device, optimize=optimize)
    atoms, where = load_structure(structure or structure_option, calc.potential)
    atoms.calc = calc
    # No live display: it would take time of its own.
    Console(stderr=True).print(
        f"timing {calc.potential.describe()} on {where}, {dtype} on {calc.device} ...\n"
        f"{form_of(calc)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    result = bench_md(
        atoms,
        steps=steps,
        rounds=rounds,
        replicas=replicas,
        compare=compare,
        timestep_fs=timestep,
        temperature_K=temperature,
        seed=seed,
    )
    print_bench(result, results_console())
    if json_file:
        write_json(json_file, result.to_dict())


def print_bench(result: BenchResult, console: Console) -> None:
    """Print what was measured.

    Args:
        result: Of :func:`dcase.md_runs.bench.measure.bench_md`.
        console: Of rich.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in {**_about(result), **_whole_run(result)}.items():
        table.add_row(name, Text(text))  # not markup: names of models may hold brackets
    console.print(table)
    console.print(_shares(result))
    if result.ratio is not None:
        console.print(f"ratio: a step takes {result.ratio:.2f} times as long in PyTorch")
    for text in result.warnings:
        console.print(f"warning: {text}", markup=False, soft_wrap=True)


def _about(result: BenchResult) -> dict[str, str]:
    """Machine, potential and system."""
    machine, system, settings = result.machine, result.system, result.settings
    versions = machine["versions"]
    axes = "".join(axis for axis, yes in zip("xyz", system["periodic"], strict=True) if yes)
    level = settings["level_of_theory"]
    rows = {
        "processor": f"{machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} used by PyTorch at most",
        "GPU": machine["gpu"] + ("" if machine["gpu_used"] else " (not used)")
        if machine["gpu"]
        else "",
        "software": ", ".join(f"{name} {versions[name]}" for name in ("dcase", "torch", "python")),
        "potential": f"{settings['model']}{f' ({level})' if level else ''}, {settings['dtype']} "
        f"on {settings['device']}",
        "system": f"{system['formula']}, {system['n_atoms']} atoms, {system['n_pairs']} pairs "
        f"within {system['cutoff_A']:g} A, "
        + (f"periodic in {axes}" if axes else "not periodic")
        + (f", {system['replicas']} replicas" if system["replicas"] else ""),
    }
    return {name: text for name, text in rows.items() if text}


def _whole_run(result: BenchResult) -> dict[str, str]:
    """A run of ``dcase md`` as a whole."""
    run = result.timing.whole_run
    parts = [f"{run.production_s:.2f} s for the steps"]
    if run.equilibration_s is not None:
        parts.append(f"{run.equilibration_s:.2f} s for the equilibration")
    return {
        "whole run": f"{run.seconds:.2f} s for {run.steps} steps after {run.equilibrate} of "
        f"equilibration ({', '.join(parts)}; the rest: check of the time step, files)"
    }


def _shares(result: BenchResult) -> Table:
    """A step and its parts, a column or two for each form of the potential."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    timings = [result.timing, *([result.plain] if result.plain else [])]
    copies = result.system["replicas"]
    table = Table(box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for timing in timings:
        title = f"{timing.potential}, {_LOOPS[timing.loop]}"
        table.add_column(title, justify="right", no_wrap=True)

    def add(name: str, texts: list[str], *, end: bool = False) -> None:
        table.add_row(name, *texts, end_section=end)

    add("ms/step (median)", [f"{t.ms_per_step:.4g}" for t in timings])
    add(
        f"range over {len(result.timing.rounds_ms)} rounds",
        [f"{min(t.rounds_ms):.4g} to {max(t.rounds_ms):.4g}" for t in timings],
    )
    add("steps of a round", [str(t.steps) for t in timings])
    add("ns/day" + (" (all replicas)" if copies else ""), [f"{t.ns_per_day:.4g}" for t in timings])
    if copies:
        add("replica-steps/s", [f"{t.steps_per_s:.4g}" for t in timings])
    add("atoms x steps/s", [f"{t.atom_steps_per_s:.3g}" for t in timings], end=True)
    for part, name in _PARTS.items():
        add(name, [_share(t.parts_ms[part], t.parts_percent[part]) for t in timings])
    searches = [t.steps_per_search for t in timings]
    add("steps between searches", ["-" if s is None else f"{s:.3g}" for s in searches])
    return table


def _share(milliseconds: Any, percent: Any) -> str:
    return f"{milliseconds:.4f} ms {percent:5.1f} %"
