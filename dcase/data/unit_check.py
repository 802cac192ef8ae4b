"""Do energies, forces and lengths have the units they are taken for?

Three questions that physics answers, none of them by a guess at a method of calculation: how long
bonds are (against covalent radii), how stiff bonds between light atoms are (against vibrational
spectra), and whether the energy changes from frame to frame as the forces say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from ase.data import covalent_radii
from ase.units import Bohr, Hartree, Rydberg, kcal, kJ, mol
from scipy.stats import spearmanr

from dcase.boxes import neighbours_of
from dcase.data.dataset import AtomicDataset

# By how much the number of a thing in this unit exceeds its number in eV, eV/A, A.
_ENERGY = {
    "eV": 1.0,
    "kcal/mol": mol / kcal,
    "kJ/mol": mol / kJ,
    "Hartree": 1 / Hartree,
    "Ry": 1 / Rydberg,
}
_FORCE = {
    **{f"{name}/A": factor for name, factor in _ENERGY.items()},
    "Hartree/Bohr": Bohr / Hartree,
    "Ry/Bohr": Bohr / Rydberg,
}
_LENGTH = {"A": 1.0, "Bohr": 1 / Bohr, "nm": 0.1}

# How surprising a pair of units is before anything is looked at (minus its log-likelihood).
_AS_READ, _USUAL, _MIXED, _ODD = 0.0, 1.0, 2.0, 4.0
_SURE = 4.0  # by how much another pair must be likelier than eV and eV/A

# Bond stiffness between the light atoms of molecules, eV/A^2: C-C 28, C-H 31, C=O 75, N#N 140
# (1 mdyn/A is 6.24; Wilson, Decius and Cross, Molecular Vibrations, 1955). What a regression over
# thermal frames finds lies within a factor of 3 of this, and slopes within 30 % of 1.
_STIFF, _STIFF_SPREAD = 45.0, 0.7
_SLOPE_SPREAD = 0.25
_LIGHT = (1, 6, 7, 8, 9)
_BONDED = 1.2  # times the sum of the covalent radii
_FRAMES = 200  # looked at, evenly over the set
_USUAL_RATIO = 1.05  # see neighbour_ratio
_CORRELATED = 0.9  # rank correlation, from which a slope says something
_LEAST = 10  # pairs of frames below which a slope says nothing


def unit_doubts(dataset: AtomicDataset) -> Iterator[str]:
    """What speaks against the units, a line each, with the option that would put it right."""
    if dataset.info.quantity != "energy":
        return
    few = dataset.subset(np.unique(np.linspace(0, len(dataset) - 1, _FRAMES).astype(int)))
    length = _length_unit(few)
    if length is not None:
        ratio, unit = length
        yield (
            f"nearest atoms are {ratio:.3g} times the sum of their covalent radii apart: are "
            f"positions in {unit}? (--length-unit {unit})"
        )
        return  # nothing that follows means anything
    slope = energy_slope(few)
    stiffness = bond_stiffness(few)
    if (slope if slope is not None else stiffness or 0.0) < 0:
        yield (
            "forces push where they should pull (stretched bonds, falling energies): they are "
            "gradients, of the wrong sign (--forces-unit -eV/A turns them)"
        )
        return
    stiffness = None if stiffness is not None and stiffness < 0 else stiffness
    energy, force = likely_units(slope, stiffness)
    if (energy, force) == ("eV", "eV/A"):
        return
    why = []
    if slope is not None and abs(np.log(slope)) > 2 * _SLOPE_SPREAD:
        why.append(f"energies change by {slope:.3g} times what the forces say")
    if stiffness is not None and abs(np.log(stiffness / _STIFF)) > 2 * _STIFF_SPREAD:
        why.append(f"bonds are as stiff as {stiffness:.3g} eV/A^2 ({_STIFF:g} is usual)")
    option = f"--energy-unit {energy}" if energy != "eV" else ""
    option += f" --forces-unit {force}" if force != f"{energy}/A" else ""
    yield (
        f"{' and '.join(why)}: are energies in {energy} and forces in {force}? ({option.strip()})"
    )


def likely_units(slope: float | None, stiffness: float | None) -> tuple[str, str]:
    """The units of energies and forces that the evidence speaks for; eV, eV/A unless it is clear.

    Args:
        slope: Of :func:`energy_slope`.
        stiffness: Of :func:`bond_stiffness`.
    """

    def surprise(energy: str, force: str) -> float:
        found = _prior(energy, force)
        if slope is not None:
            off = np.log(slope * _FORCE[force] / _ENERGY[energy])
            found += 0.5 * (off / _SLOPE_SPREAD) ** 2
        if stiffness is not None:
            found += 0.5 * (np.log(stiffness / _STIFF / _FORCE[force]) / _STIFF_SPREAD) ** 2
        return float(found)

    pairs = {(e, f): surprise(e, f) for e in _ENERGY for f in _FORCE}
    best = min(pairs, key=lambda pair: pairs[pair])
    as_read = ("eV", "eV/A")
    return best if pairs[best] < pairs[as_read] - _SURE else as_read


def _prior(energy: str, force: str) -> float:
    if (energy, force) == ("eV", "eV/A"):
        return _AS_READ
    if force in (f"{energy}/A", f"{energy}/Bohr"):
        return _USUAL
    return _MIXED if "eV" in (energy, force[:2]) else _ODD


def _length_unit(dataset: AtomicDataset) -> tuple[float, str] | None:
    """How far apart atoms are and the unit that this speaks for, or None for Angstrom."""
    ratio = neighbour_ratio(dataset)
    if ratio is None:
        return None
    unit = min(_LENGTH, key=lambda name: abs(np.log(ratio / _USUAL_RATIO / _LENGTH[name])))
    return None if unit == "A" else (ratio, unit)


def neighbour_ratio(dataset: AtomicDataset) -> float | None:
    """Median over atoms of the distance to the nearest one over the sum of the covalent radii.

    None where there are no neighbours. About 1 in molecules, up to 1.15 in metals and salts.
    """
    ratios = []
    for frame in range(len(dataset)):
        distance, first, second = _pairs(dataset, frame)
        if not len(distance):
            continue
        z = dataset.numbers[dataset.ptr[frame] : dataset.ptr[frame + 1]]
        ratio = distance / (covalent_radii[z[first]] + covalent_radii[z[second]])
        nearest = np.full(len(z), np.inf)
        np.minimum.at(nearest, first, ratio)
        ratios.append(nearest[np.isfinite(nearest)])
    return float(np.median(np.concatenate(ratios))) if ratios else None


def _pairs(dataset: AtomicDataset, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances (A) and both atoms of all pairs within the frame, or within 6 A if periodic."""
    atoms = dataset.frame(frame)
    if atoms.pbc.any() or len(atoms) > 200:
        # Some twenty neighbours, and not thousands where a cell is in another unit.
        space = abs(atoms.cell.volume) / len(atoms)
        cutoff = min(6.0, 1.7 * space ** (1 / 3)) if atoms.pbc.all() and space > 0 else 6.0
        first, second, distance = neighbours_of(atoms, cutoff)
        return distance, first, second
    x = atoms.positions
    distance = np.linalg.norm(x[:, None] - x, axis=-1)
    first, second = np.nonzero(~np.eye(len(x), dtype=bool))
    return distance[first, second], first, second


def bond_stiffness(dataset: AtomicDataset) -> float | None:
    """Slope of the force along bonds between light atoms with their length, eV/A^2, or None.

    The relative force of the two atoms along the bond is regressed on the bond's length, for each
    pair of elements apart; the median over kinds of bonds is given. Negative: of the wrong sign.
    """
    if dataset.forces is None:
        return None
    lengths: dict[tuple[int, int], list[float]] = defaultdict(list)
    pulls: dict[tuple[int, int], list[float]] = defaultdict(list)
    for frame in range(len(dataset)):
        start = int(dataset.ptr[frame])
        atoms = slice(start, int(dataset.ptr[frame + 1]))
        z, x, f = dataset.numbers[atoms], dataset.positions[atoms], dataset.forces[atoms]
        light = np.flatnonzero(np.isin(z, _LIGHT))
        if len(light) < 2 or len(light) > 200:
            continue
        first, second = np.triu_indices(len(light), 1)
        i, j = light[first], light[second]
        bond = x[j] - x[i]
        d = np.linalg.norm(bond, axis=1)
        near = (d > 0) & (d < _BONDED * (covalent_radii[z[i]] + covalent_radii[z[j]]))
        for a, b, r, u in zip(i[near], j[near], d[near], bond[near], strict=True):
            kind = (int(min(z[a], z[b])), int(max(z[a], z[b])))
            lengths[kind].append(float(r))
            pulls[kind].append(float((f[b] - f[a]) @ u / (2 * r)))
    slopes = []
    for kind, values in lengths.items():
        r, pull = np.array(values), np.array(pulls[kind])
        if len(r) < 3 * _LEAST or r.std() < 1e-3:
            continue
        matrix = np.cov(r, pull)
        if matrix[0, 1] ** 2 > 0.3 * matrix[0, 0] * matrix[1, 1]:  # the length explains the force
            slopes.append(-matrix[0, 1] / matrix[0, 0])
    return float(np.median(slopes)) if slopes else None


def energy_slope(dataset: AtomicDataset) -> float | None:
    """By how much energies change over what the forces say, 1 where units agree, or None.

    E(b) - E(a) against -(F(a) + F(b))/2 . (x(b) - x(a)), exact to third order in the step, over
    neighbouring frames of one composition and cell, turned onto each other (Kabsch, 1976). None
    where the two are not correlated (steps too large) or frames too few.
    """
    if dataset.energies is None or dataset.forces is None:
        return None
    groups: dict[bytes, list[int]] = defaultdict(list)
    for frame in range(len(dataset)):
        atoms = slice(int(dataset.ptr[frame]), int(dataset.ptr[frame + 1]))
        key = dataset.numbers[atoms].tobytes()
        if dataset.cells is not None:
            key += np.round(dataset.cells[frame], 6).tobytes()
        groups[key].append(frame)
    change, work = [], []
    for frames in groups.values():
        for a, b in pairwise(frames):
            change.append(dataset.energies[b] - dataset.energies[a])
            work.append(_work(dataset, a, b))
    if len(change) < _LEAST:
        return None
    de, w = np.array(change), np.array(work)
    if not w.any() or not de.any():
        return None
    # A few spoilt frames must not decide: medians of ratios, weighted by the step's work.
    strong = np.abs(w) >= np.median(np.abs(w))
    if abs(spearmanr(de[strong], w[strong]).statistic) < _CORRELATED:
        return None
    return float(np.median(de[strong] / w[strong]))


def _work(dataset: AtomicDataset, a: int, b: int) -> float:
    """-(F(a) + F(b))/2 . (x(b) - x(a)), frame b turned onto frame a where nothing is periodic."""
    assert dataset.forces is not None
    first = slice(int(dataset.ptr[a]), int(dataset.ptr[a + 1]))
    second = slice(int(dataset.ptr[b]), int(dataset.ptr[b + 1]))
    xa, xb = dataset.positions[first], dataset.positions[second]
    fa, fb = dataset.forces[first], dataset.forces[second]
    if dataset.pbc is None or not dataset.pbc[a].any():
        xa, xb = xa - xa.mean(axis=0), xb - xb.mean(axis=0)
        u, _, vt = np.linalg.svd(xb.T @ xa)
        turn = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
        xb, fb = xb @ turn, fb @ turn
        step = xb - xa
    else:
        from ase.geometry import find_mic

        assert dataset.cells is not None
        step, _ = find_mic(xb - xa, dataset.cells[a], dataset.pbc[a])
    return float(-0.5 * ((fa + fb) * step).sum())
