"""Replicas in the compiled loop: a block of steps for each, some replicas at a time in threads.

A single molecule with its pairs and its features stays in the processor's cache for the whole
block, and replicas need nothing of each other, so that this is faster than one call of the
potential for all of them, and as many times faster as there are threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from ase import Atoms

from dcase.md_runs.loop.compiled_blocks import VerletBlocks, verlet_blocks
from dcase.md_runs.loop.watch import BlowUpWatch


class ReplicaBlocks:
    """Compiled loops of all replicas; made by :func:`replica_blocks`."""

    def __init__(self, loops: list[VerletBlocks]):
        self.loops = loops
        self._alone = threading.Lock()

    @property
    def most_steps(self) -> int:
        """Of one block: few where steps are long or replicas are many."""
        spent = sum(loop.model_seconds for loop in self.loops)
        done = sum(loop.steps_done for loop in self.loops)
        if not spent > 0.0:
            return 1
        return max(1, min(self.loops[0].most_steps, int(done / spent / len(self.loops))))

    def forget(self) -> None:
        """Drop all pairs, so that what follows does not depend on what went before."""
        for loop in self.loops:
            loop.forget()

    def advance(
        self,
        which: np.ndarray,
        state: tuple[np.ndarray, np.ndarray, np.ndarray],
        steps: int,
        due: np.ndarray,
        step_alone: Callable[[int, int], tuple[float, float] | None],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Do ``steps`` steps of some replicas.

        Args:
            which: Their numbers, shape [k].
            state: Positions, momenta and forces of all, shape [R, n_atoms, 3] each; advanced.
            steps: How many.
            due: Steps of these (1 is the first) whose positions are wanted, shape [m].
            step_alone: Called with a replica and the number of a step of it that the loop leaves
                undone; does that step in ``state`` and returns the potential and kinetic energy,
                or None where the replica stops there. Never in two threads at a time.

        Returns:
            Energies, eV, shape [steps, R, 2], NaN for what was not done, and positions at the due
            steps, shape [m, R, n_atoms, 3], of replicas that have stopped the last ones.
        """
        x, p, f = state
        energies = np.full((steps, len(x), 2), np.nan)
        frames = np.repeat(x[None], len(due), axis=0)

        def follow(r: int) -> None:
            done = 0
            while done < steps:
                block = self.loops[r].advance(x[r], p[r], f[r], steps - done)
                if len(block):
                    x[r], p[r], f[r] = block.positions[-1], block.momenta[-1], block.forces
                    rows, positions = block.energies, block.positions
                else:
                    with self._alone:
                        found = step_alone(r, done + 1)
                    if found is None:
                        frames[due > done, r] = x[r]
                        return
                    rows, positions = np.array([found]), x[r][None]
                energies[done : done + len(rows), r] = rows
                now = (due > done) & (due <= done + len(rows))
                frames[now, r] = positions[due[now] - done - 1]
                done += len(rows)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for _ in pool.map(follow, which.tolist()):
                pass
        return energies, frames


def replica_blocks(
    atoms: Atoms, timestep_fs: float, watch: BlowUpWatch, n_dof: int, count: int
) -> ReplicaBlocks | None:
    """Compiled loops for ``count`` replicas, or None where there is none for a single copy."""
    loops: list[Any] = [
        verlet_blocks(atoms, timestep_fs, watch, n_dof, shared=False) for _ in range(count)
    ]
    return None if any(loop is None for loop in loops) else ReplicaBlocks(loops)
