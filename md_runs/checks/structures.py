"""Structures to check a potential on, when none is given."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.collections import g2
from ase.data import covalent_radii

from dcase.data.molecules import find_molecule, structure
from dcase.potentials.graphs.graph import half_neighbour_list
from dcase.potentials.potential import Potential


def default_structure(potential: Potential) -> Atoms:
    """A molecule made of elements the potential knows.

    In this order: the molecule it was trained on, the molecule of ASE's G2 set that has most of its
    elements (and nearest to ten atoms), a zigzag chain of its elements.

    Returns:
        Atoms without cell, none of them isolated.
    """
    known = set(potential.elements)
    trained_on = find_molecule(str((potential.metadata.get("dataset") or {}).get("molecule", "")))
    if trained_on is not None:
        atoms = structure(trained_on.name)
        if set(atoms.numbers.tolist()) <= known:
            return Atoms(atoms.numbers, atoms.positions)
    candidates = []
    for name in g2.names:
        atoms = g2[name]
        numbers = set(atoms.numbers.tolist())
        if numbers <= known and len(atoms) >= 3:
            pairs, _ = half_neighbour_list(atoms.positions, potential.cutoff)
            if len(np.unique(pairs)) == len(atoms):
                candidates.append((-len(numbers), abs(len(atoms) - 10), name))
    if candidates:
        atoms = g2[min(candidates)[2]]
        return Atoms(atoms.numbers, atoms.positions)
    chain = np.resize(potential.elements, max(5, len(known)))
    bond = min(2.2 * covalent_radii[chain].max(), 0.6 * potential.cutoff)
    k = np.arange(len(chain))
    positions = bond * np.stack([0.8 * k, 0.6 * (k % 2), 0.3 * (k % 3)], axis=1)
    return Atoms(chain, positions)


def crystal_of(molecule: Atoms) -> Atoms:
    """The molecule in a triclinic cell so tight that its images interact.

    Args:
        molecule: Not periodic.

    Returns:
        A copy, periodic in three directions.
    """
    extent = np.ptp(molecule.positions, axis=0) + 2.2
    cell = np.diag(extent) + np.array([[0.0, 0.0, 0.0], [0.4, 0.0, 0.0], [-0.3, 0.5, 0.0]])
    return Atoms(molecule.numbers, molecule.positions, cell=cell, pbc=True)
