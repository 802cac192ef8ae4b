"""What labels of stress bring: a0, B and elastic constants of copper, with EMT's beside them.

Labels are ASE's EMT, so that everything can be compared with what was learned from. Frames: the
conventional cell, 2x2x2 of the primitive one, and that with a vacancy, strained at random and
rattled. Run it with ``python benchmarks/elastic_stress.py frames OUT.extxyz``, train with
``dcase train xyz``, then ``python benchmarks/elastic_stress.py constants MODEL.pt ...``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import ase
import ase.io
import numpy as np
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from ase.units import GPa

SYMBOL = "Cu"
STRAIN = 0.005


def frames(n: int = 250, seed: int = 0) -> list[ase.Atoms]:
    """Strained by up to some per cent, rattled by 0.05 to 0.2 A, every third with a vacancy."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        atoms = bulk(SYMBOL, cubic=True) if number % 3 == 0 else bulk(SYMBOL) * (2, 2, 2)
        if number % 3 == 2:
            del atoms[int(rng.integers(len(atoms)))]
        strain = 0.02 * rng.normal(size=(3, 3))
        strain = 0.5 * (strain + strain.T) + np.eye(3) * rng.uniform(-0.04, 0.04)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        atoms.positions += rng.uniform(0.0, 0.15) * rng.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_stress()
        atoms.calc.results = {k: atoms.calc.results[k] for k in ("energy", "forces", "stress")}
        found.append(atoms)
    return found


def constants(make: Callable[[], Calculator]) -> dict[str, float]:
    """a0 (A), B, C11, C12, C44 (GPa) and the relaxed energy of a vacancy (eV).

    a0 from the stress at zero pressure; the constants from central differences of the stress by
    strains of 0.5 % (fcc has no internal degrees of freedom); C44 with engineering strain.
    """
    atoms = bulk(SYMBOL, cubic=True)
    atoms.calc = make()

    def stress(cell: np.ndarray) -> np.ndarray:
        atoms.set_cell(cell, scale_atoms=True)
        return np.asarray(atoms.get_stress())

    low, high = 3.3, 3.9
    for _ in range(40):
        middle = 0.5 * (low + high)
        if stress(np.eye(3) * middle)[:3].mean() > 0:
            high = middle
        else:
            low = middle
    a0 = 0.5 * (low + high)

    def slope(strain: np.ndarray) -> np.ndarray:
        plus, minus = (stress(a0 * (np.eye(3) + sign * STRAIN * strain)) for sign in (1, -1))
        return (plus - minus) / (2 * STRAIN) / GPa

    along = slope(np.diag([1.0, 0.0, 0.0]))
    shear = np.zeros((3, 3))
    shear[1, 2] = shear[2, 1] = 0.5
    c11, c12 = float(along[0]), float(0.5 * (along[1] + along[2]))
    perfect = bulk(SYMBOL, a=a0) * (3, 3, 3)
    perfect.calc = make()
    each = perfect.get_potential_energy() / len(perfect)
    del perfect[0]
    BFGS(perfect, logfile=None).run(fmax=0.01, steps=100)
    return {
        "a0": a0,
        "B": (c11 + 2 * c12) / 3,
        "C11": c11,
        "C12": c12,
        "C44": float(slope(shear)[3]),
        "vacancy": perfect.get_potential_energy() - len(perfect) * each,
    }


def main() -> None:
    what, *files = sys.argv[1:]
    if what == "frames":
        ase.io.write(files[0], frames(), format="extxyz")
        return
    from dcase.potentials.calculator import DCCalculator

    rows = {"EMT": constants(EMT)} | {f: constants(lambda f=f: DCCalculator(f)) for f in files}
    names = list(rows["EMT"])
    print(" ".join([f"{'':<36}", *(f"{name:>9}" for name in names)]))
    for row, values in rows.items():
        print(" ".join([f"{row:<36}", *(f"{values[name]:9.3f}" for name in names)]))


if __name__ == "__main__":
    main()
