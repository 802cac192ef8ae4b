"""Turns of molecular dynamics in ASE, timed; the same code in dcase's and in a peer's environment.

It needs ASE and numpy alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

JITTER = 0.005  # A; moves of the force calls, less than lets a neighbour list run out


@dataclass(frozen=True)
class Turn:
    """Seconds; processor time is that of all threads."""

    step: float
    step_cpu: float
    force: float


class Dynamics:
    """Velocity Verlet from one and the same state in every turn.

    Args:
        atoms: With momenta and a calculator.
        steps: Of a turn.
        timestep: fs.
    """

    def __init__(self, atoms: Atoms, steps: int, timestep: float):
        self.atoms, self.steps, self.timestep = atoms, steps, timestep
        self.start = atoms.get_positions(), atoms.get_momenta()
        rng = np.random.default_rng(0)
        shape = (steps, len(atoms), 3)
        self.frames = self.start[0] + rng.uniform(-JITTER, JITTER, shape)

    def turn(self) -> Turn:
        """Steps, then as many force calls at slightly different positions."""
        atoms = self.atoms
        atoms.set_positions(self.start[0])
        atoms.set_momenta(self.start[1])
        dynamics = VelocityVerlet(atoms, self.timestep * units.fs)
        atoms.get_forces()
        cpu, wall = time.process_time(), time.perf_counter()
        dynamics.run(self.steps)
        step = (time.perf_counter() - wall) / self.steps
        cpu = (time.process_time() - cpu) / self.steps
        atoms.set_positions(self.start[0])
        atoms.get_forces()
        wall = time.perf_counter()
        for frame in self.frames:
            atoms.set_positions(frame)
            atoms.get_forces()
        return Turn(step, cpu, (time.perf_counter() - wall) / self.steps)
