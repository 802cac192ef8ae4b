"""One simulation in progress: begin, step, watch, checkpoint, finish."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorError
from ase.md.nose_hoover_chain import NoseHooverChainNVT

from dcase.errors import DcaseError, OptionError, SimulationError
from dcase.interrupt import interruptible
from dcase.md_runs.analysis.frequency import check_timestep
from dcase.md_runs.files.provenance import describe_calculator
from dcase.md_runs.files.publish import conclude_uncertainty, publish, write_final
from dcase.md_runs.files.recorder import Recorder
from dcase.md_runs.files.run_folder import Checkpoint, RunFolder
from dcase.md_runs.files.run_log import RunLog
from dcase.md_runs.files.trajectory import read_series
from dcase.md_runs.loop.constrain import constrain
from dcase.md_runs.loop.integrators import (
    get_state,
    make_dynamics,
    restore_rng,
    restore_thermostat,
)
from dcase.md_runs.loop.mechanics import degrees_of_freedom, draw_momenta, still
from dcase.md_runs.loop.mechanics import temperature as kinetic_temperature
from dcase.md_runs.loop.uncertainty import UncertaintyWatch, is_ensemble
from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.md_runs.settings import MDSettings
from dcase.versions import versions

if TYPE_CHECKING:
    from dcase.md_runs.loop.compiled_blocks import VerletBlocks
    from dcase.md_runs.loop.gpu_blocks import GraphBlocks

FINISHED = "finished"
INTERRUPTED = "interrupted"
STOPPED = "stopped early"

PROGRESS_SECONDS = 0.1
"""Least time between two calls of ``progress``."""
SAVE_SECONDS = 1.0
"""Least time between two checkpoints on the disk, which can take as long as 100 steps."""


@dataclass(frozen=True)
class MDResult:
    """What came of a run.

    Attributes:
        out: Folder of the run.
        status: ``"finished"``, ``"interrupted"`` (resumable) or ``"stopped early: <why>"``.
        steps: Production steps done.
        n_atoms: Number of atoms.
        n_dof: Degrees of freedom that moved.
        wall_time_s: Seconds of production, over all resumed parts.
        warnings: What the user should know.
        atoms: Last structure with momenta, without calculator.
    """

    out: Path
    status: str
    steps: int
    n_atoms: int
    n_dof: int
    wall_time_s: float
    warnings: tuple[str, ...]
    atoms: Atoms

    @property
    def finished(self) -> bool:
        """Whether all steps were done."""
        return self.status == FINISHED

    def series(self) -> dict[str, np.ndarray]:
        """The energy series (see ``trajectory.read_series``).

        Raises:
            SimulationError: If production never began.
        """
        return read_series(self.out)


class Simulation:
    """One run in progress."""

    def __init__(
        self,
        atoms: Atoms,
        settings: MDSettings,
        folder: RunFolder,
        progress: Callable[[int, int], None] | None,
        notify: Callable[[str], None] | None,
    ) -> None:
        self.given = atoms
        self.atoms: Atoms = atoms.copy()
        self.atoms.calc = atoms.calc
        # From the structure given, also on resume, so that the lengths are the same to the last bit
        self.held = constrain(self.atoms, settings.constrain)
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self.log = RunLog(folder.log, notify)
        self.n_dof = degrees_of_freedom(self.atoms, settings.ensemble)
        self.watch = BlowUpWatch(atoms, settings.bond_stretch_A, settings.temperature_limit_K)
        free = "free_energy" in getattr(atoms.calc, "implemented_properties", ())
        self.energy_kind = free  # forces are the gradient of the free energy where they differ
        self.rng = np.random.default_rng(settings.seed)
        self.step = 0
        self.production = False
        self.wall = {True: 0.0, False: 0.0}  # seconds by "is production"
        self.run_facts: dict[str, Any] = {}
        self.uncertainty: UncertaintyWatch | None = None  # of an ensemble
        self.rows = Recorder(folder, len(atoms), settings.log_every, settings.traj_every)
        self.dynamics: Any = None
        self.blocks: VerletBlocks | GraphBlocks | None = None  # a loop of ours, where there is one
        self.forces: np.ndarray | None = None  # at the current positions, if known
        self.energies = (np.nan, np.nan)  # potential and kinetic, of the current step
        self.last_good = (self.atoms.get_positions(), self.atoms.get_momenta())
        self.unsaved: Checkpoint | None = None
        self._reported, self._saved = 0.0, -np.inf

    # --- beginning -------------------------------------------------------------------------

    def start(self) -> None:
        """Begin from the structure: check the time step, draw momenta, first checkpoint."""
        settings, atoms = self.settings, self.atoms
        if self.held is not None and self.n_dof < 1 and not settings.keep_momenta:
            raise OptionError(
                f"constrain={settings.constrain} leaves {atoms.get_chemical_formula()} nothing to "
                "move by: hold fewer bonds, or use langevin"
            )
        try:
            self.folder.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SimulationError(
                f"cannot write to {self.folder.root}: {error.strerror or error}"
            ) from error
        period, warning = check_timestep(atoms, settings.timestep_fs, force=settings.force_timestep)
        self.run_facts = {
            "format": 1,
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
        self.folder.write_run(self.run_facts)
        self.log.open(fresh=True)
        self.log.head(self.run_facts)
        if warning:
            self.warn(warning)
        self.rows.open(0, 0)
        if not settings.keep_momenta:
            draw_momenta(atoms, settings.temperature_K, self.rng)
        if settings.equilibrate and settings.temperature_K > 0:
            self.step = -settings.equilibrate
            self.begin_phase("langevin")
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
        self.look_at_uncertainty()
        self.record()
        self.checkpoint()

    def begin_phase(self, ensemble: str) -> None:
        """The integrator, and the compiled loop for calculators with a compiled potential."""
        self.dynamics = make_dynamics(self.atoms, self.settings, self.rng, ensemble=ensemble)
        self.blocks = None
        if hasattr(self.atoms.calc, "deployed"):
            # They import torch, which simulations with other calculators do without.
            from dcase.md_runs.loop.compiled_blocks import verlet_blocks
            from dcase.md_runs.loop.gpu_blocks import graph_blocks

            n_dof = self.n_dof if self.production else 3 * len(self.atoms)
            what = (self.atoms, self.settings.timestep_fs, self.watch, n_dof)
            self.blocks = verlet_blocks(*what, dynamics=self.dynamics) or graph_blocks(
                *what, dynamics=self.dynamics
            )

    def watch_uncertainty(self) -> None:
        """From now on look at the spread of an ensemble's forces."""
        self.uncertainty = UncertaintyWatch(self.given, self.settings)
        self.rows.ensemble = True
        self.run_facts["uncertainty"] = self.uncertainty.facts()

    def resume(self) -> None:
        """Go back to the checkpoint, and cut off what was written after it."""
        facts = self.folder.read_run()
        saved = Checkpoint.load(self.folder.checkpoint)
        saved.check_structure(self.given)
        changed = self.settings.differences(facts["settings"])
        if changed:
            raise SimulationError(
                f"cannot resume with other settings ({'; '.join(changed)}): only steps may change"
            )
        if str(facts["status"]).startswith(STOPPED):
            instead = (
                "label the frames of selected.extxyz and train again, or start a new run with a "
                "higher limit"
                if "uncertainty" in str(facts["status"])
                else "start a new one with a smaller time step or another potential"
            )
            raise SimulationError(
                f"this run {facts['status']}; resuming would only repeat it: {instead}"
            )
        done = max(saved.step, int(facts.get("steps", 0)))
        if self.settings.steps < done:
            raise SimulationError(
                f"the run already has {done} steps and cannot be cut to {self.settings.steps}"
            )
        self.folder.sweep()
        self.production, self.step = saved.production, saved.step
        self.wall = {True: saved.wall_time_s, False: saved.equilibration_s}
        self.atoms.set_positions(saved.positions, apply_constraint=False)
        self.atoms.set_momenta(saved.momenta, apply_constraint=False)
        self.last_good = (saved.positions.copy(), saved.momenta.copy())
        self.rng = restore_rng(str(saved.dynamics["rng"]))
        self.check_potential(saved.potential_energy)
        self.begin_phase(self.settings.ensemble if self.production else "langevin")
        restore_thermostat(self.dynamics, saved.dynamics)
        self.run_facts = facts
        if saved.uncertainty:
            self.watch_uncertainty()
            assert self.uncertainty is not None
            self.uncertainty.restore(saved.uncertainty)
        self.rows.open(saved.series_rows, saved.frame_rows)
        facts["settings"] = self.settings.to_dict()
        self.run_facts = {**facts, "status": "running"}
        self.folder.write_run(self.run_facts)
        self.log.open(fresh=False)
        self.log.line(f"resumed at step {self.step}")

    def check_potential(self, stored: float) -> None:
        """Refuse another potential: its energy at the checkpoint would differ.

        The tolerance leaves room for single precision and for another machine's sums.
        """
        self.reset_calculator()
        energy = self.potential_energy()
        if not abs(energy - stored) <= 1e-3 + 1e-5 * len(self.atoms) + 1e-7 * abs(stored):
            raise SimulationError(
                f"cannot resume: this potential gives {energy:.6f} eV at the checkpoint, where the "
                f"run had {stored:.6f} eV; use the potential the run was started with"
            )

    # --- steps -----------------------------------------------------------------------------

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
            except BaseException:
                # A failing calculator is not a blow-up: keep the data, let the error through.
                self.finish("failed")
                raise
        return self.finish(status)

    def advance(self) -> str:
        """One step, or a block of them; returns what went wrong, or ""."""
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
        try:
            # Overflow is what a blow-up looks like; it is noticed and named below.
            with np.errstate(over="ignore", invalid="ignore"):
                self.move()
                self.step += 1
                trouble = self.look()
        except (DcaseError, CalculatorError) as error:
            # A potential that refuses a structure (atoms flown apart, on top of each other).
            self.step += 1
            return str(error).splitlines()[0] if str(error) else "the potential refused"
        except Exception:
            if np.isfinite(self.atoms.get_positions()).all():
                raise
            self.step += 1
            return "positions are not finite numbers"
        if self.production:
            self.record(always=bool(trouble))
        return trouble

    def advance_block(self) -> int:
        """Steps done by the compiled loop, up to the next checkpoint; 0 leaves the step to ASE's.

        That happens where there is no such loop, for the first step after a checkpoint, before
        which no forces are known, and for a step that looks like a blow-up.
        """
        if self.blocks is None or self.forces is None:
            return 0
        settings, atoms = self.settings, self.atoms
        every = settings.checkpoint_every
        end = settings.steps if self.production else 0
        steps = min(end - self.step, every - self.step % every)
        block = self.blocks.advance(atoms.positions, atoms.get_momenta(), self.forces, steps)
        if not len(block):
            return 0
        numbers = self.step + 1 + np.arange(len(block))
        if self.production:
            self.rows.record_steps(
                numbers,
                atoms,
                block.energies,
                block.positions,
                block.momenta,
                self.dynamics,
                self.n_dof,
            )
        self.step = int(numbers[-1])
        self.forces = block.forces
        self.energies = (float(block.energies[-1, 0]), float(block.energies[-1, 1]))
        atoms.set_positions(block.positions[-1])
        atoms.set_momenta(block.momenta[-1])
        self.last_good = (block.positions[-1], block.momenta[-1])
        return len(block)

    def move(self) -> None:
        """One step of the integrator.

        ASE compares all atoms with the last call's whenever forces are asked for, which costs more
        than a step of a small molecule should. Integrators that take the forces at the start of a
        step (all but Nose-Hoover) are given those they returned.
        """
        if isinstance(self.dynamics, NoseHooverChainNVT):
            self.dynamics.step()
        else:
            self.forces = self.dynamics.step(self.forces)

    def look(self) -> str:
        """Measure this step, and compare it with what is physical."""
        self.measure()
        potential, kinetic = self.energies
        n_dof = self.n_dof if self.production else 3 * len(self.atoms)
        positions = self.atoms.get_positions()
        heat = kinetic_temperature(kinetic, n_dof)
        trouble = self.watch.look(positions, potential, kinetic, heat)
        if np.isfinite(positions).all() and np.isfinite(kinetic):
            self.last_good = (positions, self.atoms.get_momenta())
        return trouble or self.look_at_uncertainty()

    def look_at_uncertainty(self) -> str:
        """Count this step's uncertainty; returns why the run must stop here, or ""."""
        watch = self.uncertainty
        if watch is None:
            return ""
        first = watch.look(self.step, self.atoms.positions, production=self.production)
        if first and not watch.stops:
            self.log.line(f"{watch.exceeded} at step {self.step}; such steps are flagged")
        return watch.trouble

    def measure(self) -> None:
        """Potential and kinetic energy of this step, eV."""
        self.energies = (self.potential_energy(), float(self.atoms.get_kinetic_energy()))
        if self.uncertainty is not None:
            self.uncertainty.measure(self.atoms.calc)

    def potential_energy(self) -> float:
        """Potential energy whose gradient the forces are, eV.

        Taken from the calculator's results where these are of exactly these positions.
        """
        calculator: Any = self.atoms.calc
        results = getattr(calculator, "results", None) or {}
        name = "free_energy" if self.energy_kind else "energy"
        seen: Any = getattr(calculator, "atoms", None)
        known = name in results and seen is not None
        known = known and np.array_equal(seen.positions, self.atoms.positions)
        if known and calculator.results is results:  # no other thread has come in between
            return float(results[name])
        return float(self.atoms.get_potential_energy(force_consistent=self.energy_kind))

    def record(self, *, always: bool = False) -> None:
        """Add this step to the series and the trajectory, if it is due (or the last one)."""
        self.rows.record(
            self.step,
            self.atoms,
            self.energies,
            self.dynamics,
            self.n_dof,
            uncertainty=np.nan if self.uncertainty is None else self.uncertainty.now,
            always=always,
        )

    def checkpoint(self) -> None:
        """Take down the state, save it unless that was just done, forget the calculator's past.

        What is forgotten must not depend on the time a step takes, so that the same run takes the
        same steps; what reaches the disk may.
        """
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
            dynamics=get_state(self.dynamics, self.rng),
            uncertainty={} if self.uncertainty is None else self.uncertainty.state(),
        )
        # An uncertainty's state goes on changing.
        if self.uncertainty is not None or time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()
        self.reset_calculator()
        self.log.step(self.step, self.settings.steps, energy, self.atoms)

    def save(self) -> None:
        """Rows to the disk, then the checkpoint that counts them, if there is one to save."""
        self.rows.flush()
        if self.unsaved is not None:
            self.unsaved.save(self.folder.checkpoint)
            self.unsaved, self._saved = None, time.monotonic()

    def reset_calculator(self) -> None:
        """Let the calculator compute the next step as if it were its first."""
        self.forces = None
        if self.blocks is not None:
            self.blocks.forget()
        calculator: Any = self.atoms.calc
        forget = getattr(calculator, "forget", None) or getattr(calculator, "reset", None)
        if forget is not None:
            forget()

    def report_progress(self) -> None:
        """Call ``progress``, but not so often that it costs anything."""
        if self.progress is None:
            return
        now = time.monotonic()
        if now - self._reported >= PROGRESS_SECONDS or self.step == self.settings.steps:
            self._reported = now
            ahead = self.settings.equilibrate
            self.progress(self.step + ahead, self.settings.steps + ahead)

    def warn(self, text: str) -> None:
        """Tell the user, the log and the report."""
        self.run_facts["warnings"].append(text)
        self.folder.write_run(self.run_facts)
        self.log.line(f"warning: {text}")

    # --- end -------------------------------------------------------------------------------

    def finish(self, status: str) -> MDResult:
        """Write trajectory, final structure and status, and what is not saved yet."""
        self.rows.flush()
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
        self.save()
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
