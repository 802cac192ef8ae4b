"""All replicas of a run in progress: begin, step, stop those that blow up, checkpoint."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from dcase.errors import SimulationError
from dcase.files import atomic_path, write_json
from dcase.interrupt import interruptible
from dcase.md_runs.analysis.frequency import check_timestep
from dcase.md_runs.files.journal import Journal
from dcase.md_runs.files.provenance import describe_calculator
from dcase.md_runs.loop.batch_forces import BatchForces
from dcase.md_runs.loop.mechanics import degrees_of_freedom, draw_momenta, still
from dcase.md_runs.loop.replica_blocks import replica_blocks
from dcase.md_runs.loop.watch import BlowUpWatch, bond_lengths
from dcase.md_runs.settings import MDSettings
from dcase.units import FS, KB
from dcase.versions import versions

FINISHED, INTERRUPTED = "finished", "interrupted"
PROGRESS_SECONDS = 0.1


@dataclass(frozen=True)
class ReplicaFolder:
    """Paths of a run of replicas."""

    root: Path

    @property
    def run(self) -> Path:
        """Settings and status."""
        return self.root / "state" / "replicas.json"

    @property
    def checkpoint(self) -> Path:
        """The state to go on from."""
        return self.root / "state" / "replicas.npz"

    @property
    def series(self) -> Path:
        """Journal: step, R potential and R kinetic energies."""
        return self.root / "state" / "replicas.f64"

    @property
    def frames(self) -> Path:
        """Journal: step, positions of all replicas."""
        return self.root / "state" / "replica_frames.f64"

    def clear(self) -> None:
        """Remove what a run of replicas has left, and nothing else."""
        names = ("report.json", "drift.png", "final.extxyz", "replicas.h5")
        for path in (self.run, self.checkpoint, self.series, self.frames):
            path.unlink(missing_ok=True)
        for name in names:
            (self.root / name).unlink(missing_ok=True)


class ReplicaBatch:
    """All replicas in progress."""

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
        self.n_dof = degrees_of_freedom(atoms, "nve")
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
        self._journals: tuple[Journal, Journal] | None = None

    # --- beginning -------------------------------------------------------------------------

    def start(self) -> None:
        """Draw momenta, check the time step, open the files."""
        settings = self.settings
        period, warning = check_timestep(
            self.atoms, settings.timestep_fs, force=settings.force_timestep
        )
        for r, rng in enumerate(self.rngs):
            copy = self.atoms.copy()
            draw_momenta(copy, settings.temperature_K, rng)
            self.p[r] = copy.get_momenta()
        self.facts = {
            "format": 1,
            "status": "running",
            "replicas": self.count,
            "settings": settings.to_dict(),
            "formula": self.atoms.get_chemical_formula(),
            "numbers": self.atoms.numbers.tolist(),
            "start": self.atoms.positions.tolist(),
            "n_dof": self.n_dof,
            "shortest_period_fs": period,
            "warnings": [warning] if warning else [],
            "versions": versions(),
            **describe_calculator(self.atoms.calc),
        }
        if warning and self.notify:
            self.notify(f"warning: {warning}")
        self._open(0, 0)
        write_json(self.folder.run, self.facts)
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
            still(copy, "nve")
            self.p[r] = copy.get_momenta()
        self.record()

    def resume(self) -> None:
        """Go back to the checkpoint.

        Raises:
            SimulationError: If structure, settings or number of replicas differ.
        """
        self.facts = json.loads(self.folder.run.read_text(encoding="utf-8"))
        saved = np.load(self.folder.checkpoint)
        same = (
            self.facts["replicas"] == self.count
            and self.facts["numbers"] == self.atoms.numbers.tolist()
            and np.array_equal(np.array(self.facts["start"]), self.atoms.positions)
        )
        if not same:
            raise SimulationError(
                f"{self.folder.root} holds replicas of another structure or another number of them"
            )
        if changed := self.settings.differences(self.facts["settings"]):
            raise SimulationError(
                f"cannot resume with other settings ({'; '.join(changed)}): only steps may change"
            )
        self.step, self.wall = int(saved["step"]), float(saved["wall"])
        if self.settings.steps < self.step:
            raise SimulationError(
                f"the run already has {self.step} steps and cannot be cut to {self.settings.steps}"
            )
        self.x, self.p = saved["x"].copy(), saved["p"].copy()
        for rng, state in zip(self.rngs, json.loads(str(saved["rngs"])), strict=True):
            rng.bit_generator.state = state
        self.trouble = {int(k): v for k, v in json.loads(str(saved["trouble"])).items()}
        self.alive = np.array([r for r in range(self.count) if r not in self.trouble], dtype=int)
        self._open(int(saved["series"]), int(saved["frames"]))
        self.facts["settings"] = self.settings.to_dict()
        self.evaluate(self.alive)

    def _open(self, series: int, frames: int) -> None:
        self._journals = (
            Journal(self.folder.series, 1 + 2 * self.count, series),
            Journal(self.folder.frames, 1 + self.x.size, frames),
        )

    # --- steps -----------------------------------------------------------------------------

    def run(self, progress: Callable[[int, int], None] | None) -> str:
        """All remaining steps."""
        ahead, reported = self.settings.equilibrate, 0.0
        status = FINISHED
        with interruptible(signal.SIGINT, signal.SIGTERM) as stop:
            while self.step < self.settings.steps and len(self.alive):
                if stop.is_set():
                    status = INTERRUPTED
                    break
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
        if status == FINISHED:
            self.checkpoint()
        if not len(self.alive):
            return "stopped early: no replica is left"
        return status

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
        """Rows to the disk, then the state that counts them; pairs are found anew after it.

        So the uninterrupted run and the resumed one go on from the same state to the last bit.
        """
        assert self._journals is not None
        series, frames = (journal.flush() for journal in self._journals)
        with atomic_path(self.folder.checkpoint) as path, open(path, "wb") as file:
            np.savez(
                file,
                step=self.step,
                wall=self.wall,
                x=self.x,
                p=self.p,
                series=series,
                frames=frames,
                rngs=json.dumps([rng.bit_generator.state for rng in self.rngs]),
                trouble=json.dumps(self.trouble),
            )
        self.forces_of.reset()
        if self.blocks is not None:
            self.blocks.forget()
        self.evaluate(self.alive)

    def close(self) -> None:
        """Close the journals and write down how it stands."""
        if self._journals is None:
            return
        for journal in self._journals:
            journal.close()
        self.facts["stopped"] = {str(r): why for r, why in self.trouble.items()}
        write_json(self.folder.run, self.facts)
