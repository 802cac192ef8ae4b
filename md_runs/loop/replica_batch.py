"""All replicas of a run in progress: begin, step, stop those that blow up, checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from dcase.errors import RunError, SimulationError
from dcase.interrupt import interruptible
from dcase.md_runs.analysis.frequency import check_timestep
from dcase.md_runs.files.journal import Journal, read_sums
from dcase.md_runs.files.provenance import describe_calculator
from dcase.md_runs.files.replica_folder import ReplicaCheckpoint, ReplicaFolder
from dcase.md_runs.files.run_folder import SUMMED, damaged_checkpoint
from dcase.md_runs.loop.batch_forces import BatchForces
from dcase.md_runs.loop.ensembles import NVE
from dcase.md_runs.loop.mechanics import degrees_of_freedom, draw_momenta, still
from dcase.md_runs.loop.replica_blocks import replica_blocks
from dcase.md_runs.loop.result import FAILED, FINISHED, INTERRUPTED, STOPPED
from dcase.md_runs.loop.resume_point import energy_tolerance
from dcase.md_runs.loop.watch import BlowUpWatch, bond_lengths
from dcase.md_runs.settings import MDSettings
from dcase.potentials.electrons import electrons_line
from dcase.runs import Run
from dcase.units import FS, KB
from dcase.versions import versions

PROGRESS_SECONDS = 0.1


class ReplicaBatch:
    """All replicas in progress.

    Args:
        atoms: The structure given, with a calculator of dcase.
        settings: What to do.
        replicas: R.
        folder: Where the files go.
        notify: Called with every event, one line each.

    Attributes:
        claimed: The folder's owner; None: nobody else writes there (as when timing steps).
    """

    def __init__(
        self,
        atoms: Atoms,
        settings: MDSettings,
        replicas: int,
        folder: ReplicaFolder,
        notify: Callable[[str], None] | None,
    ) -> None:
        self.atoms, self.settings, self.folder = atoms, settings, folder
        self.count, self.notify = replicas, notify
        self.masses = atoms.get_masses()[None, :, None]
        self.n_dof = degrees_of_freedom(atoms, NVE.name)
        self.dt = settings.timestep_fs * FS
        self.forces_of = BatchForces(atoms.calc, atoms.numbers, atoms.cell.array, atoms.pbc)
        self.watch = BlowUpWatch(atoms, settings.bond_stretch_A, settings.temperature_limit_K)
        self.blocks = replica_blocks(atoms, settings.timestep_fs, self.watch, self.n_dof, replicas)
        self.rngs = [np.random.default_rng([settings.seed, r]) for r in range(replicas)]
        self.x = np.repeat(atoms.get_positions()[None], replicas, axis=0)
        self.p = np.zeros_like(self.x)
        self.e = np.full(replicas, np.nan)
        self.f = np.full_like(self.x, np.nan)
        self.step, self.wall = 0, 0.0
        self.trouble: dict[int, str] = {}  # of replicas that were stopped
        self.alive = np.arange(replicas)
        self.facts: dict[str, Any] = {}
        self.claimed: Run | None = None
        self._journals: tuple[Journal, Journal] | None = None
        self._timestep: tuple[float, str] | None = None
        self._saved: ReplicaCheckpoint | None = None

    # --- before anything is written -------------------------------------------------------------

    def prepare(self) -> None:
        """Refuse a start that cannot be.

        Raises:
            SimulationError: If the time step is past the stability limit.
        """
        if self._timestep is None:
            settings = self.settings
            self._timestep = check_timestep(
                self.atoms, settings.timestep_fs, force=settings.force_timestep
            )

    def find_checkpoint(self) -> None:
        """Look where the run in the folder stands; nothing if it was killed before it had one.

        Raises:
            SimulationError: If it cannot be gone on from: a file is damaged, the run has more steps
                than asked for, or had another potential.
        """
        if not self.folder.checkpoint.exists():
            return
        self.facts = self.folder.read_run()
        saved = ReplicaCheckpoint.load(self.folder.checkpoint)
        steps, done = self.settings.steps, max(saved.step, int(self.facts.get("steps", 0)))
        if steps < done:
            raise SimulationError(f"the run already has {done} steps and cannot be cut to {steps}")
        if saved.series:
            read_sums(self.folder.series, 1 + 2 * self.count, saved.series)
        if saved.frames:
            read_sums(self.folder.frames, 1 + self.x.size, saved.frames)
        try:
            if saved.x.shape != self.x.shape:
                raise ValueError("another number of replicas or atoms")
            for rng, state in zip(self.rngs, saved.rngs, strict=True):
                rng.bit_generator.state = state
        except Exception as error:  # whatever else is damaged
            raise damaged_checkpoint(self.folder.checkpoint, error) from error
        self.trouble = dict(saved.trouble)
        self.alive = np.array([r for r in range(self.count) if r not in self.trouble], dtype=int)
        self.x, self.p = saved.x.copy(), saved.p.copy()
        self.evaluate(self.alive)
        tolerance = energy_tolerance(len(self.atoms), 0.0) + 1e-7 * np.abs(saved.e)
        off = [r for r in self.alive if not abs(self.e[r] - saved.e[r]) <= tolerance[r]]
        if off:
            raise SimulationError(
                f"cannot resume: this potential gives {self.e[off[0]]:.6f} eV for replica "
                f"{off[0] + 1} at the checkpoint, where the run had {saved.e[off[0]]:.6f} eV; use "
                "the potential the run was started with"
            )
        self._saved = saved

    # --- beginning ------------------------------------------------------------------------------

    def start(self) -> None:
        """Draw momenta, open the files."""
        self.prepare()
        settings = self.settings
        assert self._timestep is not None
        period, warning = self._timestep
        for r, rng in enumerate(self.rngs):
            copy = self.atoms.copy()
            draw_momenta(copy, settings.temperature_K, rng)
            self.p[r] = copy.get_momenta()
        line = electrons_line(getattr(self.atoms.calc, "potential", None), self.atoms)
        self.facts = {
            "format": SUMMED,
            "status": "running",
            "replicas": self.count,
            "settings": settings.to_dict(),
            "formula": self.atoms.get_chemical_formula(),
            "numbers": self.atoms.numbers.tolist(),
            "n_dof": self.n_dof,
            "shortest_period_fs": period,
            "warnings": [*([warning] if warning else []), *([line] if line else [])],
            "versions": versions(),
            **describe_calculator(self.atoms.calc),
        }
        if warning and self.notify:
            self.notify(f"warning: {warning}")
        self._open(0, 0)
        self.folder.write_run(self.facts)
        self.evaluate(self.alive)
        if settings.equilibrate and settings.temperature_K > 0:
            self.step = -settings.equilibrate
        else:
            self.begin_production()
        self.checkpoint()

    def begin_production(self) -> None:
        """Take out the motions that NVE conserves, and record step 0."""
        self.step = 0
        for r in self.alive:
            copy = self.atoms.copy()
            copy.set_positions(self.x[r])
            copy.set_momenta(self.p[r])
            still(copy, NVE.name)
            self.p[r] = copy.get_momenta()
        self.record()

    def resume(self) -> None:
        """Go back to the checkpoint that was found, and cut off what was written after it."""
        if self._saved is None:
            self.find_checkpoint()
        assert self._saved is not None
        saved = self._saved
        self.step, self.wall = saved.step, saved.wall
        self.folder.end.unlink(missing_ok=True)  # the rows up to it are cut off now
        self._open(saved.series, saved.frames)
        self.facts |= {"settings": self.settings.to_dict(), "status": "running"}
        self.folder.write_run(self.facts)
        self.forces_of.reset()
        self.evaluate(self.alive)

    def _open(self, series: int, frames: int) -> None:
        self._journals = (
            Journal(self.folder.series, 1 + 2 * self.count, series),
            Journal(self.folder.frames, 1 + self.x.size, frames),
        )

    # --- steps ----------------------------------------------------------------------------------

    def run(self, progress: Callable[[int, int], None] | None) -> str:
        """All remaining steps."""
        try:
            status = self._run(progress)
        except RunError:  # the folder went away, and is not made again
            raise
        except BaseException as error:
            self._note(FAILED if isinstance(error, Exception) else INTERRUPTED)
            raise
        self._note(status)
        return status

    def _run(self, progress: Callable[[int, int], None] | None) -> str:
        ahead, reported = self.settings.equilibrate, 0.0
        status = FINISHED
        with interruptible(signal.SIGINT, signal.SIGTERM) as stop:
            while self.step < self.settings.steps and len(self.alive):
                if stop.is_set():
                    status = INTERRUPTED
                    break
                if self.claimed is not None:
                    self.claimed.check()
                begun, production = time.perf_counter(), self.step >= 0
                self.advance()
                if production:
                    self.wall += time.perf_counter() - begun
                if self.step % self.settings.checkpoint_every == 0:
                    self.checkpoint()
                now = time.monotonic()
                if progress and (now - reported > PROGRESS_SECONDS):
                    reported = now
                    progress(self.step + ahead, self.settings.steps + ahead)
            if self.step % self.settings.checkpoint_every:
                self._save(self.folder.end)
        if not len(self.alive):
            return f"{STOPPED}: no replica is left"
        return status

    def _note(self, status: str) -> None:
        """Write down how it stands."""
        if self.claimed is not None:
            self.claimed.check(now=True)
        self.facts |= {"status": status, "steps": max(self.step, 0)}
        self.facts["stopped"] = {str(r): why for r, why in self.trouble.items()}
        self.folder.write_run(self.facts)

    def advance(self) -> None:
        """One step, or a block of them, of all replicas that have not been stopped."""
        if self.step >= 0 and self.blocks is not None:
            self.advance_block()
            return
        if self.step < 0:
            self.langevin()
        else:
            self.verlet(self.alive)
        self.step += 1
        self.look()
        if self.step == 0:
            self.begin_production()
        elif self.step > 0:
            self.record()

    def advance_block(self) -> None:
        """Steps up to the next checkpoint by the compiled loops; see :mod:`replica_blocks`."""
        assert self.blocks is not None
        settings, start, alive = self.settings, self.step, self.alive
        every = settings.checkpoint_every
        steps = min(settings.steps - start, every - start % every, self.blocks.most_steps)
        numbers = start + 1 + np.arange(steps)
        due = 1 + np.flatnonzero(numbers % settings.traj_every == 0)

        def step_alone(r: int, number: int) -> tuple[float, float] | None:
            one = np.array([r])
            self.verlet(one)
            kinetic = self.kinetic(one)
            if self.unphysical(one, kinetic, self.n_dof)[0]:
                self.stop(r, float(kinetic[0]), start + number)
                return None
            return float(self.e[r]), float(kinetic[0])

        energies, frames = self.blocks.advance(
            alive, (self.x, self.p, self.f), steps, due, step_alone
        )
        self.alive = np.array([r for r in alive if r not in self.trouble], dtype=int)
        self.e[self.alive] = energies[-1, self.alive, 0]
        self.step += steps
        self.write(numbers, energies[..., 0], energies[..., 1], numbers[due - 1], frames)

    def verlet(self, which: np.ndarray) -> None:
        """Velocity Verlet of some replicas."""
        p = self.p[which] + 0.5 * self.dt * self.f[which]
        self.x[which] += self.dt * p / self.masses
        self.evaluate(which)
        self.p[which] = p + 0.5 * self.dt * self.f[which]

    def langevin(self) -> None:
        """BAOAB: half a kick, half a drift, friction and noise, half a drift, half a kick."""
        alive, settings = self.alive, self.settings
        keep = np.exp(-settings.friction_per_fs * settings.timestep_fs)
        heat = np.sqrt((1.0 - keep**2) * KB * settings.temperature_K * self.masses)
        noise = np.stack([self.rngs[r].standard_normal(self.x.shape[1:]) for r in alive])
        p = self.p[alive] + 0.5 * self.dt * self.f[alive]
        x = self.x[alive] + 0.5 * self.dt * p / self.masses
        p = keep * p + heat * noise
        self.x[alive] = x + 0.5 * self.dt * p / self.masses
        self.evaluate(alive)
        self.p[alive] = p + 0.5 * self.dt * self.f[alive]

    def evaluate(self, which: np.ndarray) -> None:
        """Energies and forces of some replicas at their present positions."""
        self.e[which], self.f[which] = self.forces_of(self.x[which], which)

    def kinetic(self, which: np.ndarray) -> np.ndarray:
        """Kinetic energies of some replicas, eV."""
        return 0.5 * (self.p[which] ** 2 / self.masses).sum(axis=(1, 2))

    def unphysical(self, which: np.ndarray, kinetic: np.ndarray, n_dof: int) -> np.ndarray:
        """Which of some replicas have left physics."""
        watch = self.watch
        bad = ~np.isfinite(self.e[which]) | ~np.isfinite(self.f[which]).all(axis=(1, 2))
        bad |= ~(2.0 * kinetic / (max(n_dof, 1) * KB) <= watch.max_temperature_K)
        if watch.bond_stretch_A is not None and len(watch.lengths):
            stretch = bond_lengths(self.x[which], watch.bonds, watch.cell) - watch.lengths
            bad |= ~(stretch.max(axis=1) <= watch.bond_stretch_A)
        return bad

    def look(self) -> None:
        """Stop the replicas that have left physics."""
        alive = self.alive
        kinetic = self.kinetic(alive)
        bad = self.unphysical(alive, kinetic, self.n_dof if self.step > 0 else 3 * len(self.atoms))
        for place in np.flatnonzero(bad):
            self.stop(int(alive[place]), float(kinetic[place]), self.step)
        self.alive = alive[~bad]

    def stop(self, r: int, kinetic: float, step: int) -> None:
        """Write down why a replica goes no further."""
        n_dof = max(self.n_dof if step > 0 else 3 * len(self.atoms), 1)
        heat = 2.0 * kinetic / (n_dof * KB)
        reason = self.watch.look(self.x[r], float(self.e[r]), kinetic, heat)
        phase = f"step {step}" if step > 0 else "equilibration"
        self.trouble[r] = f"{reason or 'the potential refused the structure'} at {phase}"
        if self.notify:
            self.notify(f"replica {r + 1} stopped: {self.trouble[r]}")

    def record(self) -> None:
        """This step's rows, where they are due; NaN for replicas that were stopped."""
        potential, kinetic = np.full((2, 1, self.count), np.nan)
        potential[0, self.alive] = self.e[self.alive]
        kinetic[0, self.alive] = self.kinetic(self.alive)
        due = np.array([self.step])
        with_frame = due[due % self.settings.traj_every == 0]
        self.write(due, potential, kinetic, with_frame, self.x[None][: len(with_frame)])

    def write(
        self,
        steps: np.ndarray,
        potential: np.ndarray,
        kinetic: np.ndarray,
        frame_steps: np.ndarray,
        frames: np.ndarray,
    ) -> None:
        """Rows of those ``steps`` [k] that are due, energies [k, R], and all ``frames`` [m]."""
        assert self._journals is not None
        due = steps % self.settings.log_every == 0
        rows = np.concatenate([steps[due, None], potential[due], kinetic[due]], axis=1)
        self._journals[0].append(rows)
        flat = frames.reshape(len(frame_steps), self.x.size)
        self._journals[1].append(np.concatenate([frame_steps[:, None], flat], axis=1))

    def checkpoint(self) -> None:
        """Save the state; pairs are found anew after it.

        So the uninterrupted run and the resumed one go on from the same state to the last bit.
        """
        self._save(self.folder.checkpoint)
        self.forces_of.reset()
        if self.blocks is not None:
            self.blocks.forget()
        self.evaluate(self.alive)

    def _save(self, path: Path) -> None:
        """Rows to the disk, then the state that counts them."""
        assert self._journals is not None
        if self.claimed is not None:
            self.claimed.check(now=True)
        series, frames = (journal.flush() for journal in self._journals)
        ReplicaCheckpoint(
            step=self.step,
            wall=self.wall,
            x=self.x,
            p=self.p,
            e=self.e,
            series=series,
            frames=frames,
            rngs=[rng.bit_generator.state for rng in self.rngs],
            trouble=self.trouble,
            start=self.atoms,
        ).save(path)

    def close(self) -> None:
        """Close the journals."""
        for journal in self._journals or ():
            journal.close()
