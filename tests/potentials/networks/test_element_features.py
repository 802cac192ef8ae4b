"""Element features against the periodic table and against other sources of the same numbers."""

import numpy as np
import pytest
from ase.data import covalent_radii, vdw_radii

from dcase.potentials.networks import element_features as features

NOBLE = (2, 10, 18, 36, 54, 86)
COLUMNS = list(features._CONTINUOUS)
MAIN = [z for z in range(1, 55) if z not in {*range(21, 31), *range(39, 49)}]


def column(name):
    """Values as tabled, by atomic number (NaN: none), and their place among the features."""
    numbers = features._numbers(features._CONTINUOUS[name]).numpy()
    return dict(enumerate(numbers, start=1)), COLUMNS.index(name)


def period(z):
    return 1 + sum(z > last for last in NOBLE)


def group(z):
    """Of the main groups, and of the first two rows of transition metals."""
    if z in NOBLE:
        return 18
    first = ([0, *NOBLE])[period(z) - 1]
    place = z - first
    if period(z) == 1 or place <= 2:
        return place
    return place if period(z) >= 4 else place + 10


def test_group_and_period_are_those_of_the_table():
    groups, periods = column("group")[0], column("period")[0]
    for z in range(1, 55):
        assert groups[z] == group(z), z
    for z in range(1, 101):
        if np.isfinite(periods[z]):
            assert periods[z] == period(z), z


def test_valence_electrons_of_the_main_groups():
    valence = next(column(name)[0] for name in COLUMNS if "valence" in name)
    for z in MAIN:
        charge = {18: 2}.get(group(z)) if z == 2 else group(z) - (10 if group(z) > 12 else 0)
        assert valence[z] == charge, z
    for z in (*range(21, 31), *range(39, 48)):
        if z not in (46,):  # palladium is 4d10, without s electrons
            assert valence[z] == group(z), z


def test_features_are_the_table_scaled_to_one():
    elements = [1, 6, 8, 29, 79]
    found = features.continuous_features(elements).numpy()
    assert found.shape == (5, len(COLUMNS))
    for name in COLUMNS:
        table, place = column(name)
        everything = [z for z in table if all(np.isfinite(column(n)[0][z]) for n in COLUMNS)]
        values = np.array([table[z] for z in everything])
        low, high = values.min(), values.max()
        wanted = [(table[z] - low) / (high - low) for z in elements]
        np.testing.assert_allclose(found[:, place], wanted, rtol=1e-12, err_msg=name)


def test_radii_are_near_those_of_others():
    elements = [1, 6, 7, 8, 14, 16, 26, 29, 47, 78, 79]
    found = features.atomic_radii(elements).numpy()
    # Slater's empirical radii: within 0.3 A of covalent ones, whoever measured them.
    np.testing.assert_allclose(found, covalent_radii[elements], atol=0.3)
    assert (found < np.nan_to_num(vdw_radii[elements], nan=9.0)).all()
    assert found[1] == pytest.approx(0.70)


def test_k_hot_bins_of_group_period_block_and_valence():
    blocks = {"s": 0, "p": 1, "d": 2, "f": 3}
    for z, block in ((1, "s"), (6, "p"), (11, "s"), (17, "p"), (26, "d"), (47, "d"), (58, "f")):
        (row,) = features.k_hot_features([z]).numpy()
        start = np.cumsum([0, *features.BINS])
        assert np.flatnonzero(row[start[1] : start[2]]).tolist() == [period(z) - 1], z
        assert np.flatnonzero(row[start[7] : start[8]]).tolist() == [blocks[block]], z
        if z < 55:
            # The first bin is of the lanthanides and actinides, which have no group.
            assert np.flatnonzero(row[start[0] : start[1]]).tolist() == [group(z)], z
            valence = group(z) - (10 if group(z) > 12 else 0)
            assert np.flatnonzero(row[start[4] : start[5]]).tolist() == [valence - 1], z
