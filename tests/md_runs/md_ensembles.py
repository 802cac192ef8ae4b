"""An ensemble of spring models whose disagreement has a closed form."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from md_models import PairSprings, spring_molecule


class SpringEnsemble(Calculator):
    """Harmonic springs of one rest length and several stiffnesses.

    The force of member m on an atom is ``k_m`` times the same geometric vector g, so its standard
    deviation over the members is ``std(k) |g|`` component by component.

    Args:
        pairs: (P, 2) indices.
        lengths: (P,) rest lengths, A.
        depths: Of the members; the stiffness is ``2 depth a^2``.
        options: Of every member.
    """

    implemented_properties = ("energy", "free_energy", "forces", "forces_std")

    def __init__(self, pairs, lengths, *, depths=(1.3, 1.5, 1.7), a=1.9, **options):
        super().__init__()
        self.members = [
            PairSprings(pairs, lengths, depth=depth, a=a, morse=False, **options)
            for depth in depths
        ]
        self.stiffness = 2.0 * np.asarray(depths) * a**2
        self.broken = False

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        results = []
        for member in self.members:
            member.calculate(self.atoms)
            results.append(member.results)
        energy = float(np.mean([r["energy"] for r in results]))
        forces = np.stack([r["forces"] for r in results])
        spread = forces.std(axis=0, ddof=1)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": forces.mean(axis=0),
            "forces_std": np.full_like(spread, np.nan) if self.broken else spread,
        }


def ensemble_molecule(name="CH4", **options):
    """``md_models.spring_molecule`` with an ensemble."""
    atoms = spring_molecule(name)
    pairs, lengths = atoms.calc.pairs, atoms.calc.lengths
    atoms.calc = SpringEnsemble(pairs, lengths, **options)
    return atoms
