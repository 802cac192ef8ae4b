"""One simulation in progress: begin, step, watch, checkpoint, finish."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms

from dcase.data.held import describe_constraints
from dcase.errors import OptionError, RunError, SimulationError
from dcase.interrupt import interruptible
from dcase.md_runs.analysis.frequency import check_timestep
from dcase.md_runs.files.provenance import describe_calculator
from dcase.md_runs.files.publish import conclude_uncertainty, publish, write_final
from dcase.md_runs.files.recorder import Recorder
from dcase.md_runs.files.run_folder import SUMMED, Checkpoint, RunFolder
from dcase.md_runs.files.run_log import RunLog
from dcase.md_runs.loop.ensembles import EQUILIBRATION
from dcase.md_runs.loop.integrators import rng_state
from dcase.md_runs.loop.mechanics import draw_momenta, still
from dcase.md_runs.loop.moving_atoms import MovingAtoms
from dcase.md_runs.loop.result import FAILED, FINISHED, INTERRUPTED, STOPPED, MDResult
from dcase.md_runs.loop.resume_point import ResumePoint
from dcase.md_runs.loop.uncertainty import is_ensemble
from dcase.md_runs.settings import MDSettings
from dcase.potentials.electrons import electrons_line
from dcase.runs import Run
from dcase.versions import versions

__all__ = ["FINISHED", "INTERRUPTED", "STOPPED", "MDResult", "Simulation"]

PROGRESS_SECONDS = 0.1
"""Least time between two calls of ``progress``."""
SAVE_SECONDS = 1.0
"""Least time between two checkpoints on the disk, which can take as long as 100 steps."""


class Simulation(MovingAtoms):
    """One run in progress.

    Args:
        atoms: The structure given, with a calculator; a copy is moved.
        settings: What to do.
        folder: Where its files go.
        progress: Called now and then with steps done and steps in all.
        notify: Called with every event, one line each.

    Attributes:
        claimed: The folder's owner; None: nobody else writes there (as when timing steps).
        rows: The recorder.
        run_facts: Of ``state/simulation.json``.
    """

    def __init__(
        self,
        atoms: Atoms,
        settings: MDSettings,
        folder: RunFolder,
        progress: Callable[[int, int], None] | None,
        notify: Callable[[str], None] | None,
    ) -> None:
        self.log = RunLog(folder.log, notify)
        super().__init__(atoms, settings, self.log.line)
        self.folder = folder
        self.progress = progress
        self.claimed: Run | None = None
        self.wall = {True: 0.0, False: 0.0}  # seconds by "is production"
        self.run_facts: dict[str, Any] = {}
        self.rows = Recorder(folder, len(atoms), settings.log_every, settings.traj_every)
        self.unsaved: Checkpoint | None = None
        self._timestep: tuple[float, str] | None = None
        self._point: ResumePoint | None = None
        self._reported, self._saved = 0.0, -np.inf

    # --- before anything is written -------------------------------------------------------------

    def prepare(self) -> None:
        """Refuse a start that cannot be.

        Raises:
            OptionError: If nothing is left to move.
            SimulationError: If the time step is past the stability limit.
        """
        settings, atoms = self.settings, self.atoms
        if self._timestep is not None:
            return
        if self.held is None and atoms.constraints and self.n_dof < 1:
            raise OptionError(
                f"the constraints leave {atoms.get_chemical_formula()} nothing to move: hold less"
            )
        if settings.keep_momenta and settings.equilibrate and settings.temperature_K > 0:
            raise OptionError(
                f"keep_momenta and {settings.equilibrate} steps of equilibration exclude each "
                "other: the thermostat would change the momenta; use equilibrate 0"
            )
        if self.held is not None and self.n_dof < 1 and not settings.keep_momenta:
            raise OptionError(
                f"constrain={settings.constrain} leaves {atoms.get_chemical_formula()} nothing to "
                "move by: hold fewer bonds, or use langevin"
            )
        self._timestep = check_timestep(atoms, settings.timestep_fs, force=settings.force_timestep)

    def find_checkpoint(self) -> None:
        """Look where the run in the folder stands.

        Raises:
            SimulationError: If it cannot be gone on from.
        """
        self._point = ResumePoint.find(self.folder, self, self.rows)

    # --- beginning ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin from the structure: draw momenta, first checkpoint."""
        self.prepare()
        settings, atoms = self.settings, self.atoms
        assert self._timestep is not None
        period, warning = self._timestep
        try:
            self.folder.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SimulationError(
                f"cannot write to {self.folder.root}: {error.strerror or error}"
            ) from error
        self.run_facts = {
            "format": SUMMED,
            "status": "running",
            "settings": settings.to_dict(),
            "formula": atoms.get_chemical_formula(),
            "n_atoms": len(atoms),
            "n_dof": self.n_dof,
            "shortest_period_fs": period,
            "warnings": [],
            "versions": versions(),
            **describe_calculator(atoms.calc),
        }
        # The time step's check has evaluated forces; so has run_md, where there is a limit.
        if settings.max_uncertainty_eV_A is not None or is_ensemble(atoms.calc):
            self.watch_uncertainty()
            assert self.uncertainty is not None
            self.rows.ensemble = True
            self.run_facts["uncertainty"] = self.uncertainty.facts()
        self.folder.write_run(self.run_facts)
        self.log.open(fresh=True)
        self.log.head(self.run_facts)
        if self.given.constraints:
            self.log.line(f"constraints: {describe_constraints(self.given)}")
        if warning:
            self.warn(warning)
        self.warn_of_start()
        self.rows.open(0, 0)
        if not settings.keep_momenta:
            draw_momenta(atoms, settings.temperature_K, self.rng)
        if settings.equilibrate and settings.temperature_K > 0:
            self.step = -settings.equilibrate
            self.begin_phase(EQUILIBRATION.name)
            self.checkpoint()
        else:
            self.enter_production()

    def enter_production(self) -> None:
        """Take out what the ensemble conserves and record step 0."""
        if not (self.settings.keep_momenta and self.settings.equilibrate == 0):
            still(self.atoms, self.settings.ensemble)
        self.step, self.production = 0, True
        self.begin_phase(self.settings.ensemble)
        self.measure()
        self.look_at_uncertainty(self.step, self.atoms.positions)
        self.record()
        self.checkpoint()

    def resume(self) -> None:
        """Go back to the checkpoint that was found, and cut off what was written after it."""
        if self._point is None:
            self.find_checkpoint()
        assert self._point is not None
        facts, saved = self._point.facts, self._point.saved
        self.production, self.step = saved.production, saved.step
        self.wall = {True: saved.wall_time_s, False: saved.equilibration_s}
        self.last_good = (saved.positions.copy(), saved.momenta.copy())
        self.rng = self._point.rng
        self.begin_phase(self.settings.ensemble if self.production else EQUILIBRATION.name)
        assert self.motion is not None
        self.motion.restore(saved.dynamics)
        self.rows.open(saved.series_rows, saved.frame_rows)
        self.run_facts = {**facts, "settings": self.settings.to_dict(), "status": "running"}
        self.folder.write_run(self.run_facts)
        self.log.open(fresh=False)
        self.log.line(f"resumed at step {self.step}")

    # --- steps ----------------------------------------------------------------------------------

    def run(self) -> MDResult:
        """All remaining steps, then the files."""
        status = FINISHED
        with interruptible(signal.SIGINT) as stop:
            try:
                # That of the first step of production, taken before there was any to advance
                trouble = self.uncertainty.trouble if self.uncertainty is not None else ""
                while self.step < self.settings.steps and not trouble:
                    if stop.is_set():
                        status = INTERRUPTED
                        break
                    trouble = self.advance()
                if trouble:
                    where = f"step {self.step}" if self.production else "equilibration"
                    during = "at" if self.production else "during"
                    status = f"{STOPPED}: {trouble} {during} {where}"
            except KeyboardInterrupt:  # not in the main thread, or pressed twice
                status = INTERRUPTED
            except RunError:  # the folder went away, and is not made again
                raise
            except BaseException:
                # A failing calculator is not a blow-up: keep the data, let the error through.
                self.finish(FAILED)
                raise
        return self.finish(status)

    def advance(self) -> str:
        """One step, or a block of them; returns what went wrong, or ""."""
        if self.claimed is not None:
            self.claimed.check()
        began = time.perf_counter()
        phase = self.production
        trouble = "" if self.advance_block() else self.advance_one()
        self.wall[phase] += time.perf_counter() - began
        if not phase and self.step == 0 and not trouble:
            self.enter_production()
            return self.uncertainty.trouble if self.uncertainty is not None else ""
        if not trouble and self.step % self.settings.checkpoint_every == 0:
            began = time.perf_counter()
            self.checkpoint()
            self.wall[phase] += time.perf_counter() - began
        self.report_progress()
        return trouble

    def advance_one(self) -> str:
        """One step of ASE's integrator; returns what went wrong, or ""."""
        trouble, measured = self.step_once()
        if self.production and measured:
            self.record(always=bool(trouble))
        return trouble

    def advance_block(self) -> int:
        """Steps done by the compiled loop, up to the next checkpoint."""
        every, first = self.settings.checkpoint_every, self.step + 1
        end = self.settings.steps if self.production else 0
        block = self.step_block(min(end - self.step, every - self.step % every))
        if block is None:
            return 0
        if self.production:
            self.rows.record_steps(
                first + np.arange(len(block)),
                self.atoms,
                block.energies,
                block.positions,
                block.momenta,
                self.motion,
                self.n_dof,
                uncertainties=block.uncertainties,
            )
        return len(block)

    def record(self, *, always: bool = False) -> None:
        """Add this step to the series and the trajectory, if it is due (or the last one)."""
        self.rows.record(
            self.step,
            self.atoms,
            self.energies,
            self.motion,
            self.n_dof,
            uncertainty=np.nan if self.uncertainty is None else self.uncertainty.now,
            always=always,
        )

    def checkpoint(self) -> None:
        """Take down the state, save it unless that was just done, forget the calculator's past.

        What is forgotten must not depend on the time a step takes, so that the same run takes the
        same steps; what reaches the disk may.
        """
        assert self.motion is not None
        energy = self.potential_energy()
        series_rows, frame_rows = self.rows.counts()
        self.unsaved = Checkpoint(
            step=self.step,
            production=self.production,
            positions=self.atoms.get_positions(),
            momenta=self.atoms.get_momenta(),
            start=self.given,
            potential_energy=energy,
            series_rows=series_rows,
            frame_rows=frame_rows,
            wall_time_s=self.wall[True],
            equilibration_s=self.wall[False],
            dynamics={"rng": rng_state(self.rng), **self.motion.state()},
            uncertainty={} if self.uncertainty is None else self.uncertainty.state(),
        )
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()
        self.reset_calculator()
        self.log.step(self.step, self.settings.steps, energy, self.atoms)

    def save(self) -> None:
        """Rows to the disk, then the checkpoint that counts them, if there is one to save."""
        if self.claimed is not None:
            self.claimed.check(now=True)
        self.rows.flush()
        if self.unsaved is not None:
            self.unsaved.save(self.folder.checkpoint)
            self.unsaved, self._saved = None, time.monotonic()

    def report_progress(self) -> None:
        """Call ``progress``, but not so often that it costs anything."""
        if self.progress is None:
            return
        now = time.monotonic()
        if now - self._reported >= PROGRESS_SECONDS or self.step == self.settings.steps:
            self._reported = now
            ahead = self.settings.equilibrate
            self.progress(self.step + ahead, self.settings.steps + ahead)

    def warn_of_start(self) -> None:
        """Momenta that are missing; a charge that the potential does not know."""
        if self.settings.keep_momenta and not self.given.has("momenta"):
            self.warn(
                "keep_momenta: the structure holds no momenta, so every atom starts at rest"
                + _like_momenta(self.given)
            )
        # The calculator has said it; here it goes into the report.
        if line := electrons_line(getattr(self.atoms.calc, "potential", None), self.atoms):
            self.run_facts["warnings"].append(line)
            self.folder.write_run(self.run_facts)

    def warn(self, text: str) -> None:
        """Tell the user, the log and the report."""
        self.run_facts["warnings"].append(text)
        self.folder.write_run(self.run_facts)
        self.log.line(f"warning: {text}")

    # --- end ------------------------------------------------------------------------------------

    def finish(self, status: str) -> MDResult:
        """Write what is not saved yet, then trajectory, final structure and status."""
        self.save()  # so that whatever goes wrong with the rest, the run can be gone on with
        facts = self.run_facts
        facts.update(
            status=status,
            steps=max(self.step, 0),
            wall_time_s=self.wall[True],
            equilibration_wall_time_s=self.wall[False],
        )
        if self.uncertainty is not None:
            conclude_uncertainty(self.folder, self.uncertainty, facts)
        publish(self.folder, self.given, facts)
        final = self.atoms.copy()
        final.set_constraint(self.given.copy().constraints)  # held bonds must not change the forces
        positions, momenta = self.last_good
        final.set_positions(positions, apply_constraint=False)
        final.set_momenta(momenta, apply_constraint=False)
        if status == FINISHED:
            final.calc = self.atoms.calc  # the energy and forces of the last step
        write_final(self.folder, final, max(self.step, 0), self.settings.timestep_fs)
        final.calc = None
        self.folder.write_run(facts)
        self.log.line(f"{status} after {max(self.step, 0)} steps, {self.wall[True]:.1f} s")
        return MDResult(
            out=self.folder.root,
            status=status,
            steps=max(self.step, 0),
            n_atoms=len(self.atoms),
            n_dof=self.n_dof,
            wall_time_s=self.wall[True],
            warnings=tuple(facts["warnings"]),
            atoms=final,
        )

    def close(self) -> None:
        """Close the journals."""
        self.rows.close()


def _like_momenta(atoms: Atoms) -> str:
    """Arrays that look like velocities under another name, in words."""
    names = [n for n in atoms.arrays if str(n).lower().startswith(("vel", "moment"))]
    if not names:
        return ""
    return f" (its array {names[0]!r} is none of ASE's: use momenta, or atoms.set_velocities)"
