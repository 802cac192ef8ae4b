"""Run molecular dynamics into a folder: watched, checkpointed, resumable to the last bit.

Why a resumed run is identical. The next step depends on positions, momenta, thermostat variables
and random numbers (all in the checkpoint), and on the calculator. Calculators have a memory too: a
neighbour list with a skin sums forces in an order that depends on when it was built. So at every
checkpoint the calculator is reset and computes anew, in the uninterrupted run as in the resumed
one. For the same reason the only states one can go on from are those at whole multiples of
``checkpoint_every``; an interrupted run repeats the few steps since, and they come out the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ase import Atoms

from dcase.errors import OptionError
from dcase.md_runs.analysis.dt_scan import dt_scan
from dcase.md_runs.files.identity import run_identity
from dcase.md_runs.files.publish import recover
from dcase.md_runs.files.run_folder import RunFolder
from dcase.md_runs.loop.engine import MDResult, Simulation
from dcase.md_runs.loop.uncertainty import require_ensemble
from dcase.md_runs.settings import MDSettings
from dcase.runs import claim

__all__ = ["KIND", "MDResult", "MDSettings", "dt_scan", "recover", "run_md"]

KIND = "md"
"""Of the record of a run."""


def run_md(
    atoms: Atoms,
    settings: MDSettings,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    notify: Callable[[str], None] | None = None,
    conclude: Callable[[MDResult], None] | None = None,
) -> MDResult:
    """Simulate ``atoms`` into the folder ``out``.

    A blow-up or Ctrl-C does not raise: everything up to there is kept, and ``status`` says so. A
    finished run can be resumed with more ``steps``.

    Args:
        atoms: With a calculator; a copy is moved. For ``resume``, the same starting structure.
        settings: What to do; only ``steps`` may change on ``resume``.
        out: Folder, made if missing.
        resume: Go on from the checkpoint in ``out``.
        overwrite: Replace an earlier run in ``out``.
        progress: Called now and then with steps done and steps in all, equilibration included.
        notify: Called with every warning and event, one line each.
        conclude: Called with the result while the folder is still this run's, to write a report.

    Raises:
        OptionError: If the options contradict each other or there is no calculator, or there is a
            largest uncertainty but the calculator is no ensemble.
        SimulationError: If there is a run and neither flag is given, nothing to resume, another
            structure, potential, precision or setting, a damaged file, another process at work in
            the folder, or a time step past the stability limit. The folder is as it was then.
    """
    if atoms.calc is None:
        raise OptionError("the structure has no calculator: set atoms.calc before run_md")
    if resume and overwrite:
        raise OptionError("resume and overwrite exclude each other")
    if len(atoms) == 0:
        raise OptionError("the structure has no atoms")
    if settings.max_uncertainty_eV_A is not None:
        require_ensemble(atoms)
    folder = RunFolder(Path(out))
    simulation = Simulation(atoms, settings, folder, progress, notify)
    if not resume and (overwrite or not folder.place.found()):
        simulation.prepare()  # what cannot be started must not replace anything
    identity = run_identity(KIND, atoms, settings.to_dict(), momenta=settings.keep_momenta)
    with claim(
        folder.place,
        identity,
        resume=resume,
        overwrite=overwrite,
        check=lambda record: simulation.find_checkpoint(),
    ) as run:
        simulation.claimed = run
        try:
            if run.resumed and folder.checkpoint.exists():
                simulation.resume()
            else:  # a run killed before its first checkpoint has nothing to go on from
                simulation.start()
            result = simulation.run()
        finally:
            simulation.close()
        run.finish(result.status)
        if conclude is not None:
            conclude(result)
    return result
