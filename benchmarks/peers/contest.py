"""What the peers of ``benchmarks/frontier.py`` share: a budget, and the two things they are asked.

    SCRIPT fit data.npz model '{"network": ..., "cpu_s": ...}'
    SCRIPT test data.npz model '{"network": ..., "steps": ..., ...}' tested.npz

``data.npz`` holds ``numbers``, ``{train,val,test}_positions`` (A), ``_energies`` (kcal/mol) and
``_forces`` (kcal/mol/A), and the start of the dynamics (``start_positions``, ``start_momenta`` in
ASE's units). ``fit`` writes a model; ``test`` the model's energies and forces of the test frames
and the processor times of its steps in ASE's velocity Verlet. It needs numpy and ASE alone.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase_turns import Dynamics

Data = dict[str, np.ndarray]


class Budget:
    """CPU seconds of this process and its children since it began, imports included.

    Args:
        seconds: What it may take.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds

    def share(self) -> float:
        """What of it is gone, 1 at most."""
        return min(sum(os.times()[:4]) / self.seconds, 1.0)

    def cosine(self) -> float:
        """From 1 to 0 within the budget."""
        return 0.5 * (1 + math.cos(math.pi * self.share()))


@dataclass(frozen=True)
class Fitted:
    """A model that was read.

    Attributes:
        predict: Energies [frames] and forces [frames, atoms, 3] (kcal/mol, A) of positions.
        calculator: For ASE; given atoms, steps of a short trial and fs of a step.
        parameters: Number of fitted numbers.
        words: On the form that runs.
    """

    predict: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    calculator: Callable[[Atoms, int, float], Calculator]
    parameters: int
    words: str = ""


def main(
    fit: Callable[[Data, dict[str, Any], str], None],
    load: Callable[[Data, dict[str, Any], str], Fitted],
) -> None:
    """What the command line asks for."""
    what, frames, model, options = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
    with np.load(frames) as file:
        data = {name: file[name] for name in file.files}
    if what == "fit":
        fit(data, options, model)
        return
    fitted = load(data, options, model)
    energies, forces = fitted.predict(data["test_positions"])
    atoms = Atoms(numbers=data["numbers"], positions=data["start_positions"])
    atoms.set_momenta(data["start_momenta"])
    atoms.calc = fitted.calculator(atoms, 10, options["timestep"])
    dynamics = Dynamics(atoms, options["steps"], options["timestep"])
    dynamics.turn()  # warms up
    steps = [dynamics.turn().step_cpu for _ in range(options["rounds"])]
    np.savez(
        sys.argv[5],
        energies=energies,
        forces=forces,
        step_s=steps,
        parameters=fitted.parameters,
        words=fitted.words,
    )
