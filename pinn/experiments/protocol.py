"""Which runs tables 3 to 5 are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dcase.errors import DataError, OptionError
from dcase.pinn.experiments.published import METHODS
from dcase.pinn.experiments.runs import PinnRun
from dcase.pinn.problem import PDEProblem
from dcase.pinn.recipes import default_settings
from dcase.pinn.run import Source

#: The published sample that a file is made of where none is given.
DEFAULT_SAMPLE = {"advection": 9990, "cfd": 9990, "diffusion-reaction": 0}


def table_runs(
    source: Source,
    problem: PDEProblem,
    *,
    steps: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
) -> list[PinnRun]:
    """The four methods of tables 3 to 5; unless to the letter, networks of modes too.

    Args:
        source: With ``paper`` for the letter; else the right equation with the default recipe.
        problem: What ``source`` gives.
        steps: Instead of the letter's 15000 or 100.
        time_limit: Seconds a run.
        seed: Of weights and points.

    Raises:
        OptionError: If steps are given without ``paper``.
    """
    base = source.settings(problem, "mlp")
    if steps is not None:
        if not source.paper:
            raise OptionError("--steps is for --paper; the correct runs take --time-limit")
        base = base.changed(optimizer=f"adam:{steps}", steps_per_epoch=min(100, steps))
    prefix = f"{source.task}-{'paper' if source.paper else 'correct'}"
    runs = []
    for method in METHODS:
        activation, _, norm = method.partition("+")
        settings = base.changed(activation=activation, batch_norm=bool(norm), seed=seed)
        if time_limit is not None:
            settings = settings.changed(time_limit=time_limit)
        name = f"{prefix}-{method.replace('+', '-').lower()}"
        runs.append(PinnRun(name, method, source, settings))
    if not source.paper:
        for activation in ("tanh", "irelu"):
            settings = default_settings(problem).changed(
                activation=activation, seed=seed, time_limit=time_limit
            )
            runs.append(
                PinnRun(f"{prefix}-modes-{activation}", f"modes, {activation}", source, settings)
            )
    return runs


def with_file(source: Source, folder: Path) -> Source:
    """The source with a file: regenerated from PDEBench's own initial state where none is given.

    Raises:
        DataError: If what is there under the file's name is not that sample.
    """
    if source.file:
        return source
    from dcase.pinn.pdebench import generate
    from dcase.pinn.pdebench.layout import opened

    write = {
        "advection": generate.write_advection,
        "cfd": generate.write_flow,
        "diffusion-reaction": generate.write_diffusion_reaction,
    }[source.task]
    number = DEFAULT_SAMPLE[source.task]
    target = folder / f"{source.task}-{number}.hdf5"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(target, [number])
    with opened(target) as file:
        holds = file.attrs.get("sample_indices"), file.attrs.get("initial_states")
    if holds[0] is None or list(holds[0]) != [number] or holds[1] != "published":
        raise DataError(f"{target} is not sample {number} of {source.task}: delete it, or --file")
    return replace(source, file=str(target), sample=0)
