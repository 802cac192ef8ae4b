"""sGDML within a CPU budget; runs in sGDML's environment (contest.py).

What ``sgdml all`` does, by the same functions (sGDML 1.0.3): training points drawn by the energies'
distribution, symmetries found in them, kernel widths 10, 30, 50, ... until the validation error of
the forces rises, the best of these, energies with the integration constant; the closed-form solver.
The budget decides on the number of training points (``POINTS``), which is what an exact solver's
time depends on. Widths are tried in steps of 20, not 10, and with a third of the points, both in
its favour: ``sgdml all`` tries them with all points, which would leave time for fewer.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from contest import Budget, Data, Fitted, main
from sgdml.intf.ase_calc import SGDMLCalculator
from sgdml.predict import GDMLPredict
from sgdml.train import GDMLTrain
from sgdml.utils import io

WIDTHS = range(10, 100, 20)  # half of the command line's own
# CPU seconds, and training points, of aspirin's 21 atoms and 6 symmetries
POINTS = {20: 160, 60: 245, 180: 370}
LARGEST = 950
SEARCH = 0.33  # of the points, for the search of the width


def points(seconds: float, n_atoms: int = 21) -> int:
    """Training points for a budget: a power law through ``POINTS``.

    An exact solver's time depends on the number of force components, points times atoms.
    """
    x, y = np.log(list(POINTS)), np.log(list(POINTS.values()))
    slope, offset = np.polyfit(x, y, 1)
    count = math.exp(offset + slope * math.log(seconds)) * 21 / n_atoms
    return max(20, min(LARGEST, 10 * round(count / 10)))


def dataset(data: Data, part: str) -> dict[str, Any]:
    """In sGDML's own keys; units kcal/mol and A."""
    found: dict[str, Any] = {
        "type": "d",
        "name": np.array("md17"),
        "theory": np.array("md17"),
        "z": data["numbers"],
        "R": data[f"{part}_positions"],
        "E": data[f"{part}_energies"],
        "F": data[f"{part}_forces"],
    }
    found["md5"] = io.dataset_md5(found)
    return found


def fit(data: Data, options: dict[str, Any], path: str) -> None:
    budget = Budget(options["cpu_s"])
    np.random.seed(0)  # noqa: NPY002 - sGDML's draws take this one
    trainer = GDMLTrain(max_processes=1)
    train, val = dataset(data, "train"), dataset(data, "val")
    n_val = len(data["val_energies"])

    def task(count: int) -> dict[str, Any]:
        made: dict[str, Any] = trainer.create_task(train, count, val, n_val, WIDTHS[0])
        return made

    n_points = points(budget.seconds, len(data["numbers"]))
    whole = task(n_points)
    print(f"{n_points} points, {len(whole['perms'])} symmetries, {budget.share():.2f} of the time")
    train["perms"] = whole["perms"]
    few = task(max(10, round(SEARCH * n_points)))
    errors: dict[int, float] = {}
    for width in WIDTHS:
        predict = GDMLPredict(trainer.train({**few, "sig": width}), max_processes=1)
        _, forces = predict.predict(data["val_positions"].reshape(n_val, -1))
        errors[width] = float(np.square(forces - data["val_forces"].reshape(n_val, -1)).mean())
        print(f"width {width}: {errors[width] ** 0.5:.3f} kcal/mol/A, {budget.share():.2f}")
        if errors[width] > min(errors.values()):
            break
    model = trainer.train({**whole, "sig": min(errors, key=errors.__getitem__)})
    with open(path, "wb") as file:
        np.savez_compressed(file, **model)
    print(f"{budget.share():.2f} of the time")


def load(data: Data, options: dict[str, Any], path: str) -> Fitted:
    logging.disable(logging.WARNING)
    with np.load(path, allow_pickle=True) as file:  # written by this script
        model = {name: file[name] for name in file.files}

    def predict(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energies, forces = GDMLPredict(model, max_processes=1).predict(
            positions.reshape(len(positions), -1)
        )
        return energies, forces.reshape(positions.shape)

    def calculator(atoms: Atoms, steps: int, timestep: float) -> Calculator:
        found = SGDMLCalculator(path)
        # ASE's way, held to one process
        found.gdml_predict = GDMLPredict(model, max_processes=1)
        found.gdml_predict.prepare_parallel(n_bulk=1)
        return found

    n_points = model["R_desc"].shape[1]
    return Fitted(
        predict,
        calculator,
        n_points * data["test_forces"][0].size,
        f"SGDMLCalculator, {n_points} points, float64",
    )


if __name__ == "__main__":
    main(fit, load)
