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

from dcase.errors import OptionError, SimulationError
from dcase.md_runs.loop.replica_batch import ReplicaBatch, ReplicaFolder
from dcase.md_runs.settings import MDSettings
from dcase.options import check_memory


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

    Returns:
        ``"finished"``, ``"interrupted"``, or ``"stopped early: ..."`` if every replica was stopped.

    Raises:
        OptionError: If the settings ask for what replicas cannot do.
        SimulationError: If there is a run and neither flag is given, nothing to resume, or another
            structure or setting.
    """
    _refuse(atoms, settings, replicas)
    folder = ReplicaFolder(Path(out))
    if resume and not folder.checkpoint.exists():
        raise SimulationError(f"there is no run of replicas to resume in {folder.root}")
    if not resume and (folder.run.exists() or (folder.root / "state" / "run.json").exists()):
        if not overwrite:
            raise SimulationError(
                f"{folder.root} already holds a run: resume it, overwrite it, or choose another"
            )
        if (folder.root / "state" / "run.json").exists():
            raise SimulationError(
                f"{folder.root} holds the run of a single copy: choose another folder"
            )
        folder.clear()
    batch = ReplicaBatch(atoms, settings, replicas, folder, notify)
    try:
        if resume:
            batch.resume()
        else:
            batch.start()
        return batch.run(progress)
    finally:
        batch.close()


def _refuse(atoms: Atoms, settings: MDSettings, replicas: int) -> None:
    if replicas < 1:
        raise OptionError(f"there must be at least one replica, not {replicas}")
    # Positions, velocities, forces and their copies of the step in progress.
    check_memory(replicas * len(atoms) * 3 * 8 * 6, f"{replicas} replicas of {len(atoms)} atoms")
    if settings.ensemble != "nve":
        raise OptionError(f"replicas run NVE; {settings.ensemble} is for a single copy")
    if settings.constrain != "none" or atoms.constraints:
        raise OptionError("replicas cannot hold bonds or atoms: simulate a single copy")
    if settings.max_uncertainty_eV_A is not None:
        raise OptionError("--max-uncertainty is for a single copy, not for replicas")
    if settings.keep_momenta:
        raise OptionError("replicas draw their own momenta: keep_momenta is for a single copy")
