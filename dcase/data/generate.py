"""Training frames from Langevin dynamics with GFN2-xTB: for machines without a network.

A run is a chain of segments. A segment starts from (positions, momenta, generator state), walks
``interval`` and stores one frame; it starts with a fresh calculator, because tblite's warm start
would make forces depend on the history. So a segment is a pure function of its start, and a run
that was killed and taken up again gives the frames of a run that was not. (tblite itself must be
deterministic for this; with one thread, OMP_NUM_THREADS=1, it is.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import CalculationFailed
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from dcase.data.decorrelation import memory_of
from dcase.data.generate_state import (
    Progress,
    State,
    load_finished,
    load_state,
    place_of,
    progress_callback,
    save_state,
    state_path,
    write_result,
)
from dcase.data.state import stated_charge, unpaired_electrons
from dcase.data.xtb import bonds, start_structure, xtb_calculator
from dcase.errors import DataError, OptionError
from dcase.files import check_writable, remove_leftovers
from dcase.options import check_memory, check_size
from dcase.runs import Identity, Run, claim
from dcase.statistics import autocorrelation_time
from dcase.units import FS, KCAL_PER_MOL

PILOT_STEPS = 4000
"""Steps over which the energy's autocorrelation time is measured."""
TIMES_TAU = 4.0
"""Frames are this many autocorrelation times apart. The decay is no single exponential: energies
keep a lag-1 autocorrelation of 0.1 to 0.15 (measured: ethanol, aspirin), forces none, while slow
torsions remember longer. Give a longer interval where that matters; the metadata has all three."""
MAX_FAILURES = 25
"""So many dropped segments in a row mean that the molecule does not hold at this temperature."""
LABEL_ACCURACY = 0.01
SAVE_EVERY = 10.0  # seconds


def generate(
    source: str | os.PathLike[str] | ase.Atoms,
    n_frames: int,
    *,
    temperature: float = 500.0,
    timestep: float = 0.5,
    interval: float | None = None,
    equilibrate: float = 1000.0,
    friction: float = 0.05,
    walkers: int = 5,
    seed: int = 0,
    charge: int | None = None,
    multiplicity: int | None = None,
    out: str | os.PathLike[str],
    resume: bool = True,
    progress: bool | Progress = False,
) -> Path:
    """Sample a molecule with GFN2-xTB Langevin dynamics and write an MD17-layout npz.

    Labels are recomputed, tightly converged, at the float32 coordinates that are stored. Frames
    whose bonds differ from the start structure's are dropped, with a note in the metadata. While it
    runs, the folder ``<out>.part`` keeps all that is needed to go on exactly after a kill.

    Keys of the file: ``R`` (A, float32), ``z``, ``E`` (kcal/mol, float64), ``F`` (kcal/mol/A,
    float32), ``walker``, ``name``, ``theory``, ``metadata`` (JSON), of ions and
    radicals also ``charge`` and ``multiplicity``; nothing is pickled.

    Args:
        source: Molecule name, structure file, SMILES, or atoms.
        n_frames: Frames to store.
        temperature: K; MD17 used 500.
        timestep: fs.
        interval: fs between stored frames. None: four autocorrelation times of the potential
            energy, measured over 4000 steps after the first equilibration.
        equilibrate: fs that every walker runs before it stores frames.
        friction: Langevin friction, 1/fs. It changes how fast frames decorrelate, not the ensemble.
        walkers: Independent trajectories, one after another, that share the frames.
        seed: Seed of everything random; walker w draws from ``SeedSequence([seed, w])``.
        charge: Total charge, e; None: that of the source (initial charges, ``info["charge"]``, the
            formal charges of a SMILES), else 0.
        multiplicity: 2S + 1; None: that of the source, else the lowest.
        out: The npz to write.
        resume: Go on with the run in ``<out>.part``, or return at once if ``out`` is finished and
            has these settings. False starts anew and replaces both.
        progress: True for a bar on stderr, or a function called with (frames done, n_frames).

    Returns:
        ``out``.

    Raises:
        OptionError: If an option is impossible.
        DataError: If the source is of no use, the molecule keeps reacting, or the file at ``out``
            is of other settings.
        RunError: If the unfinished run there is of other settings, or another process is at it.
        DcaseError: If ``out`` cannot be written.
        MissingExtraError: If tblite (or, for a SMILES, rdkit) is missing.
        KeyboardInterrupt: On Ctrl-C, after saving; the message says how to go on.
    """
    out = Path(out)
    _check_options(n_frames, temperature, timestep, interval, equilibrate, friction, walkers, out)
    if seed < 0:
        raise OptionError(f"seed must not be negative, got {seed}")
    check_writable(out, [state_path(out)], stream=False)
    xtb_calculator()  # say at once that tblite is missing
    name, atoms, structure_hash = start_structure(source, seed, charge, multiplicity)
    electrons = {"charge": stated_charge(atoms), "unpaired_electrons": unpaired_electrons(atoms)}
    settings: dict[str, Any] = {
        "source": name,
        "structure": structure_hash,
        "numbers": [int(z) for z in atoms.numbers],
        "n_frames": n_frames,
        "temperature_K": temperature,
        "timestep_fs": timestep,
        "interval_fs": interval,
        "equilibrate_fs": equilibrate,
        "friction_per_fs": friction,
        "walkers": min(walkers, n_frames),
        "seed": seed,
    }
    settings |= {name: value for name, value in electrons.items() if value}
    check_memory(n_frames * (6 * len(atoms) + 1) * 8, f"{n_frames} frames of {len(atoms)} atoms")
    place = place_of(out)
    # A kill between the result and the end leaves the folder of a finished run; it goes below.
    if resume and load_finished(out, settings) and not place.resumable():
        return out
    going_on = resume and place.resumable()
    with claim(
        place, Identity("data generate", settings), resume=going_on, overwrite=not resume
    ) as run:
        remove_leftovers(out)
        if not (resume and load_finished(out, settings)):  # by another process, just now
            _sample(atoms, settings, out, run, progress, load_state(out, atoms))
        run.discard()
    return out


def _sample(
    atoms: ase.Atoms,
    settings: dict[str, Any],
    out: Path,
    run: Run,
    progress: bool | Progress,
    state: State,
) -> None:
    """Go on from ``state`` to the end, and write the result."""
    with progress_callback(progress, settings["n_frames"], f"sampling {settings['source']}") as bar:
        try:
            state = _Sampler(atoms, settings, run).run(state, out, bar)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"stopped; {run.folder} holds what is done, and the same command goes on"
                if state_path(out).exists()
                else "stopped before the first frame; nothing was written"
            ) from stop
    walker = np.asarray(state.walkers, dtype=np.int16)
    positions, energies, forces = state.arrays()
    run.check(now=True)
    write_result(
        out,
        settings["source"],
        atoms.numbers,
        (positions, energies, forces, walker),
        {
            **settings,
            "interval_fs": state.interval_steps * settings["timestep_fs"],
            "energy_autocorrelation_time_fs": state.tau_fs,
            "lag_1_autocorrelation": memory_of(positions, energies, forces, walker),
            "mean_kinetic_temperature_K": float(np.mean(state.temperatures)),
            "dropped": state.notes,
        },
        settings,
    )


def _check_options(
    n_frames: int,
    temperature: float,
    timestep: float,
    interval: float | None,
    equilibrate: float,
    friction: float,
    walkers: int,
    out: Path,
) -> None:
    check_size("frames", n_frames)
    check_size("walkers", walkers)
    if n_frames < 1 or walkers < 1:
        raise OptionError(f"frames and walkers must be at least 1, got {n_frames} and {walkers}")
    if not (temperature > 0 and friction > 0):
        raise OptionError(
            f"temperature and friction must be positive, got {temperature} K and {friction}/fs"
        )
    if not 0 < timestep <= 2:
        raise OptionError(f"timestep must be between 0 and 2 fs (0.5 is safe), got {timestep}")
    if friction * timestep > 0.5:
        raise OptionError(
            f"friction {friction}/fs is too much for a timestep of {timestep} fs; "
            f"use {0.1 / timestep:g}/fs or less"
        )
    if equilibrate < 0 or (interval is not None and not interval >= timestep):
        raise OptionError("equilibrate must not be negative, interval not below the timestep")
    if out.suffix != ".npz":
        raise OptionError(f"the output must be named *.npz, got {out}")


class _Sampler:
    """Runs segments; knows the molecule and the settings, keeps nothing else."""

    def __init__(self, start: ase.Atoms, settings: dict[str, Any], claimed: Run | None) -> None:
        self.start = start
        self.settings = settings
        self.claimed = claimed
        self.bonds = bonds(start)
        self.temperature = settings["temperature_K"]
        self.timestep = settings["timestep_fs"]

    def steps(self, femtoseconds: float) -> int:
        """Whole time steps in a time, at least one."""
        return max(1, round(femtoseconds / self.timestep))

    def run(self, state: State, out: Path, report: Callable[[int, int], None]) -> State:
        """Run all walkers that are not done, saving as it goes."""
        total, walkers = self.settings["n_frames"], self.settings["walkers"]
        saved, cost = time.monotonic(), 0.0
        report(len(state.walkers), total)
        try:
            for walker in range(walkers):
                last = total * (walker + 1) // walkers  # first frame of the next walker
                while len(state.walkers) < last:
                    if state.walker < walker:
                        state = self.prologue(state, walker)
                    else:
                        state = self.segment(state)
                    report(len(state.walkers), total)
                    self.look()
                    if time.monotonic() - saved > max(SAVE_EVERY, 20 * cost):
                        before = time.monotonic()
                        self.look(now=True)
                        save_state(out, state)
                        saved = time.monotonic()
                        cost = saved - before
        except KeyboardInterrupt:
            if state.walker >= 0:
                self.look(now=True)
                save_state(out, state)
            raise
        return state

    def look(self, *, now: bool = False) -> None:
        """End where the folder went away."""
        if self.claimed is not None:
            self.claimed.check(now=now)

    def walk(
        self, atoms: ase.Atoms, rng: np.random.Generator, steps: int, energies: list[float] | None
    ) -> bool:
        """Advance ``atoms`` in place from a cold calculator; False if they came to harm.

        ``energies`` collects the potential energy of every step, in eV.
        """
        atoms.calc = xtb_calculator(atoms=atoms)
        try:
            dynamics = Langevin(
                atoms,
                self.timestep * FS,
                temperature_K=self.temperature,
                friction=self.settings["friction_per_fs"] / FS,
                fixcm=False,
                rng=rng,
            )
            forces = atoms.get_forces(md=True)
            for _ in range(steps):
                forces = dynamics.step(forces)
                if energies is not None:
                    energies.append(float(atoms.get_potential_energy()))
        except CalculationFailed:  # atoms so close, or so far, that the SCF finds no solution
            return False
        finally:
            atoms.calc = None
        return bool(np.isfinite(atoms.positions).all()) and bonds(atoms) == self.bonds

    def prologue(self, state: State, walker: int) -> State:
        """Start a walker: fresh momenta, equilibration, and for the first one the pilot."""
        rng = np.random.default_rng(np.random.SeedSequence([self.settings["seed"], walker]))
        steps = self.steps(self.settings["equilibrate_fs"])
        interval, tau_fs = state.interval_steps, state.tau_fs
        for _ in range(MAX_FAILURES):
            atoms = self.start.copy()
            self.heat(atoms, rng)
            if self.settings["equilibrate_fs"] and not self.walk(atoms, rng, steps, None):
                continue
            if interval == 0 and self.settings["interval_fs"] is not None:
                interval = self.steps(self.settings["interval_fs"])
            if interval == 0:
                energies: list[float] = []
                if not self.walk(atoms, rng, PILOT_STEPS, energies):
                    continue
                tau = autocorrelation_time(np.asarray(energies))
                interval, tau_fs = max(1, int(np.ceil(TIMES_TAU * tau))), tau * self.timestep
            return state.moved(
                atoms, rng, walker=walker, interval_steps=interval, tau_fs=tau_fs, failures=0
            )
        raise self.reacts(state)

    def segment(self, state: State) -> State:
        """Walk one interval and store a frame, or drop the segment and redraw the momenta."""
        rng = np.random.default_rng()
        rng.bit_generator.state = state.rng
        atoms = self.start.copy()
        atoms.positions = state.positions
        atoms.set_momenta(state.momenta)
        whole = self.walk(atoms, rng, state.interval_steps, None)
        frame = self.label(atoms) if whole else None
        if frame is None:
            if state.failures + 1 >= MAX_FAILURES:
                raise self.reacts(state)
            atoms.positions = state.positions
            self.heat(atoms, rng)
            note = (
                f"walker {state.walker}, before frame {len(state.walkers)}: "
                "bonds changed or the SCF failed, segment dropped, momenta redrawn"
            )
            return state.moved(atoms, rng, notes=(*state.notes, note), failures=state.failures + 1)
        return state.stored(atoms, rng, frame, float(atoms.get_temperature()))

    def heat(self, atoms: ase.Atoms, rng: np.random.Generator) -> None:
        """Draw momenta from the Maxwell-Boltzmann distribution."""
        thermalize_momenta(atoms, temperature_K=self.temperature, rng=rng)

    def label(self, atoms: ase.Atoms) -> tuple[np.ndarray, float, np.ndarray] | None:
        """Stored coordinates (A) with energy (kcal/mol) and forces (kcal/mol/A) at just these."""
        frame = self.start.copy()
        # Centred, because float32 resolves coordinates near the origin best.
        rounded = (atoms.positions - atoms.get_center_of_mass()).astype(np.float32)
        frame.positions = rounded.astype(np.float64)
        frame.calc = xtb_calculator(LABEL_ACCURACY, frame)
        try:
            energy = float(frame.get_potential_energy()) / KCAL_PER_MOL
            forces = (frame.get_forces() / KCAL_PER_MOL).astype(np.float32)
        except CalculationFailed:
            return None
        return rounded, energy, forces

    def reacts(self, state: State) -> DataError:
        """The error for a molecule that does not hold together."""
        return DataError(
            f"{self.settings['source']} changed its bonds in {MAX_FAILURES} segments in a row "
            f"({len(state.walkers)} frames done); lower the temperature or the timestep"
        )
