"""Small force fields with known answers, for the tests of md_runs."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes


class PairSprings(Calculator):
    """Morse or harmonic springs between given pairs of atoms.

    E = sum_p D (1 - exp(-a (r - r0)))^2, or k/2 (r - r0)^2 with ``morse=False`` (k = 2 D a^2).

    Args:
        pairs: (P, 2) indices.
        lengths: (P,) rest lengths, A.
        curl: Adds the force ``curl * (z x (r - <r>))``, which no energy has, eV/A^2.
        rounding: Rounds the energy to this many eV, as single precision would.
        kick: Adds this energy (eV) but no force while the first pair is longer than its rest.
        on_call: Called with the number of calls before each calculation.
    """

    implemented_properties = ("energy", "free_energy", "forces")

    def __init__(
        self,
        pairs,
        lengths,
        *,
        depth=4.5,
        a=1.9,
        morse=True,
        curl=0.0,
        rounding=0.0,
        kick=0.0,
        on_call=None,
    ):
        super().__init__()
        self.pairs = np.asarray(pairs)
        self.lengths = np.asarray(lengths, dtype=float)
        self.depth, self.a, self.morse = depth, a, morse
        self.curl, self.rounding, self.kick, self.on_call = curl, rounding, kick, on_call
        self.calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        if self.on_call is not None:
            self.on_call(self.calls)
        r = self.atoms.positions
        i, j = self.pairs.T
        d = r[j] - r[i]
        length = np.sqrt((d * d).sum(axis=1))
        stretch = length - self.lengths
        if self.morse:
            e = np.exp(-self.a * stretch)
            energy = self.depth * ((1 - e) ** 2).sum()
            slope = 2 * self.depth * self.a * e * (1 - e)
        else:
            k = 2 * self.depth * self.a**2
            energy = 0.5 * k * (stretch**2).sum()
            slope = k * stretch
        pull = (slope / length)[:, None] * d
        forces = np.zeros_like(r)
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        if self.kick and stretch[0] > 0:
            energy += self.kick
        if self.curl:
            forces += self.curl * np.cross([0.0, 0.0, 1.0], r - r.mean(axis=0))
        if self.rounding:
            energy = np.round(energy / self.rounding) * self.rounding
        self.results = {"energy": float(energy), "free_energy": float(energy), "forces": forces}


def spring_molecule(name="CH4", **options) -> Atoms:
    """A molecule of ASE's database held by springs between all pairs of atoms, at its minimum."""
    atoms = molecule(name)
    n = len(atoms)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    lengths = [atoms.get_distance(i, j) for i, j in pairs]
    heavy = [(i, j) for i, j in pairs if not atoms.numbers[i] == atoms.numbers[j] == 1]
    if options.pop("bonds_only", False):
        lengths = [length for pair, length in zip(pairs, lengths, strict=True) if pair in heavy]
        pairs = heavy
    depth = options.pop("depth", 1.5)
    atoms.calc = PairSprings(pairs, lengths, depth=depth, **options)
    return atoms
