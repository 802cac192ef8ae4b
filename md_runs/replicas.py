"""Many independent copies of one simulation in one batch.

Each replica has momenta of its own and is a run of its own; they share the calls of the potential.
The integrator is velocity Verlet in the order of operations of ASE's, so that a replica's
trajectory is the one that ASE would give, up to rounding:

    p <- p + f dt/2;   x <- x + p dt/m;   f <- F(x);   p <- p + f dt/2

The equilibration is Langevin dynamics (BAOAB splitting, Leimkuhler and Matthews, Appl. Math. Res.
Express 2013, 34). A replica that blows up is stopped, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ase import Atoms

from dcase.errors import OptionError
from dcase.md_runs.files.identity import run_identity
from dcase.md_runs.files.replica_folder import ReplicaFolder
from dcase.md_runs.loop.ensembles import NVE
from dcase.md_runs.loop.replica_batch import ReplicaBatch
from dcase.md_runs.settings import MDSettings
from dcase.options import check_memory
from dcase.runs import claim

KIND = "md replicas"
"""Of the record of a run."""


def run_replicas(
    atoms: Atoms,
    settings: MDSettings,
    replicas: int,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    notify: Callable[[str], None] | None = None,
    conclude: Callable[[str], None] | None = None,
) -> str:
    """Simulate ``replicas`` copies of ``atoms`` into the folder ``out``.

    Ctrl-C does not raise: everything up to there is kept. Reports are written by
    :func:`dcase.md_runs.report.replica_report.write_replica_report`.

    Args:
        atoms: With a calculator of dcase; all replicas start from its positions.
        settings: What to do; NVE only, without constraints. Only ``steps`` may change on
            ``resume``.
        replicas: R, at least 1; replica r draws its momenta from ``seed`` and r.
        out: Folder, made if missing.
        resume: Go on from the last checkpoint in ``out``.
        overwrite: Replace an earlier run of replicas there.
        progress: Called now and then with steps done and steps in all, equilibration included.
        notify: Called with every event, one line each.
        conclude: Called with the status while the folder is still this run's, to write a report.

    Returns:
        ``"finished"``, ``"interrupted"``, or ``"stopped early: ..."`` if every replica was stopped.

    Raises:
        OptionError: If the settings ask for what replicas cannot do.
        SimulationError: If there is a run and neither flag is given, nothing to resume, another
            structure, potential, precision or setting, a damaged file, or another process at work
            in the folder. The folder is as it was then.
    """
    _refuse(atoms, settings, replicas)
    if resume and overwrite:
        raise OptionError("resume and overwrite exclude each other")
    folder = ReplicaFolder(Path(out))
    batch = ReplicaBatch(atoms, settings, replicas, folder, notify)
    if not resume and (overwrite or not folder.place.found()):
        batch.prepare()  # what cannot be started must not replace anything
    identity = run_identity(KIND, atoms, {**settings.to_dict(), "replicas": replicas})
    with claim(
        folder.place,
        identity,
        resume=resume,
        overwrite=overwrite,
        check=lambda record: batch.find_checkpoint(),
    ) as run:
        batch.claimed = run
        try:
            if run.resumed and folder.checkpoint.exists():
                batch.resume()
            else:  # a run killed before its first checkpoint has nothing to go on from
                batch.start()
            status = batch.run(progress)
        finally:
            batch.close()
        run.finish(status)
        if conclude is not None:
            conclude(status)
    return status


def _refuse(atoms: Atoms, settings: MDSettings, replicas: int) -> None:
    if replicas < 1:
        raise OptionError(f"there must be at least one replica, not {replicas}")
    # Positions, velocities, forces and their copies of the step in progress.
    check_memory(replicas * len(atoms) * 3 * 8 * 6, f"{replicas} replicas of {len(atoms)} atoms")
    if settings.ensemble != NVE.name:
        raise OptionError(f"replicas run NVE; {settings.ensemble} is for a single copy")
    if settings.constrain != "none" or atoms.constraints:
        raise OptionError(
            "replicas cannot hold bonds or atoms, nor restrain them: simulate a single copy"
        )
    if settings.max_uncertainty_eV_A is not None:
        raise OptionError("--max-uncertainty is for a single copy, not for replicas")
    if settings.keep_momenta:
        raise OptionError("replicas draw their own momenta: keep_momenta is for a single copy")
