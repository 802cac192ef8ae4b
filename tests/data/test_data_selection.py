"""Frames worth labelling: fingerprints, greedy selection, and the list that does not grow."""

from __future__ import annotations

import itertools

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

from dcase.data.selection import (
    MOST_DISTANCES,
    Fingerprint,
    Fingerprinter,
    Shortlist,
    fingerprint,
    select_frames,
)
from dcase.errors import OptionError


def ethanol(seed, amount=0.1):
    atoms = molecule("CH3CH2OH")
    atoms.positions += amount * np.random.default_rng(seed).standard_normal((9, 3))
    return atoms


# ----------------------------------------------------------------------------- fingerprints


def test_order_of_equal_atoms_turns_and_shifts_do_not_matter():
    rng = np.random.default_rng(0)
    atoms = ethanol(1)
    before = fingerprint(atoms)
    turn = Rotation.random(random_state=rng).as_matrix()
    for order in (rng.permutation(9), rng.permutation(9)):
        other = atoms[order]
        other.positions = other.positions @ turn + rng.normal(size=3)
        assert before.distance(fingerprint(other)) < 1e-12
    swapped = atoms.copy()  # of different elements: another molecule
    swapped.numbers[[0, 2]] = swapped.numbers[[2, 0]]
    assert before.distance(fingerprint(swapped)) > 0.1


def test_distance_of_a_stretched_pair_by_hand():
    """H2O with one O-H bond longer by x: one of three sorted distances, and H-H, change."""
    atoms = ase.Atoms("OH2", [[0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    longer = atoms.copy()
    longer.positions[1, 0] = 1.2
    expected = np.sqrt((0.2**2 + (np.sqrt(1 + 1.2**2) - np.sqrt(2)) ** 2) / 3)
    assert fingerprint(atoms).distance(fingerprint(longer)) == pytest.approx(expected, rel=1e-12)


def test_pairs_of_elements_are_told_apart_whatever_their_sum():
    """C-O and N-N have one sum of atomic numbers; long and short swapped is another frame."""

    def crossed(a, b):
        ends = [[-a / 2, 0, 0], [a / 2, 0, 0], [0, -b / 2, 1.0], [0, b / 2, 1.0]]
        return fingerprint(ase.Atoms("CON2", ends))

    assert crossed(1.2, 1.2).distance(crossed(1.2, 1.2)) == 0.0
    expected = np.sqrt(2 * 0.4**2 / 6)  # both of six distances; C-N and O-N are the same
    assert crossed(1.2, 1.6).distance(crossed(1.6, 1.2)) == pytest.approx(expected, rel=1e-12)


def test_periodic_frames_by_their_nearest_images():
    atoms = bulk("Cu", "fcc", 3.6, cubic=True).repeat(2)
    atoms.numbers[0] = 47
    moved = atoms.copy()
    moved.positions += 0.4 * moved.cell[0]  # out of the cell
    wrapped = moved.copy()
    wrapped.wrap()
    assert np.abs(moved.positions - wrapped.positions).max() > 1.0
    assert fingerprint(atoms).distance(fingerprint(moved)) < 1e-9
    assert fingerprint(atoms).distance(fingerprint(wrapped)) < 1e-9
    vectors = fingerprint(atoms).values
    assert vectors.max() <= np.sqrt(3) * 7.2 / 2 + 1e-9  # no image is farther in this cell
    atoms.pbc = False
    assert fingerprint(atoms).distance(fingerprint(wrapped)) > 0.1


def test_many_distances_are_thinned_to_quantiles():
    rng = np.random.default_rng(0)
    atoms = ase.Atoms("Ar60", 10 * rng.random((60, 3)))
    values = fingerprint(atoms).values
    assert len(values) == MOST_DISTANCES
    every = np.sort(atoms.get_all_distances()[np.triu_indices(60, 1)])
    assert values[[0, -1]] == pytest.approx(every[[0, -1]])
    middle = np.quantile(every, np.linspace(0, 1, MOST_DISTANCES))
    np.testing.assert_allclose(values, middle, atol=1e-9)


def test_other_compositions_are_infinitely_far_and_atoms_alike():
    assert fingerprint(ethanol(0)).distance(fingerprint(molecule("CH3OCH3"))) > 0.0
    assert np.isinf(fingerprint(ethanol(0)).distance(fingerprint(molecule("CH4"))))
    one, two = ase.Atoms("H"), ase.Atoms("H", [[1, 2, 3]])
    assert fingerprint(one).distance(fingerprint(two)) == 0.0


# ------------------------------------------------------------------------------- selection


def on_a_line(places):
    return [Fingerprint((1, 1), np.array([float(x)])) for x in places]


def test_greedy_selection_by_hand():
    #         0    1    2    3    4    5
    places = [0.0, 0.1, 0.2, 1.0, 1.1, 5.0]
    scores = [3.0, 9.0, 8.0, 2.0, 2.0, np.nan]
    frames = on_a_line(places)
    assert select_frames(scores, frames, 6, 0.15) == [1, 3, 5]
    assert select_frames(scores, frames, 2, 0.15) == [1, 3]
    assert select_frames(scores, frames, 3, 0.05) == [1, 2, 0]
    assert select_frames(scores, frames, 6, 0.0) == [1, 2, 0, 3, 4, 5]
    assert select_frames(scores, frames, 6, 0.15, known=on_a_line([0.12])) == [3, 5]
    assert select_frames(scores, frames, 0) == []
    assert select_frames([], [], 3) == []


def test_frames_of_different_molecules_do_not_crowd_each_other():
    frames = [fingerprint(ethanol(0)), fingerprint(molecule("CH4")), fingerprint(ethanol(0))]
    assert select_frames([1.0, 2.0, 3.0], frames, 3) == [2, 1]


def test_selection_is_far_apart_and_leaves_out_nothing_that_fits():
    rng = np.random.default_rng(3)
    frames = [fingerprint(ethanol(seed)) for seed in range(80)]
    scores = rng.random(80)
    chosen = select_frames(scores, frames, 80, 0.12)
    assert 3 < len(chosen) < 70
    assert chosen[0] == int(np.argmax(scores))
    assert list(scores[chosen]) == sorted(scores[chosen], reverse=True)
    for i, j in itertools.combinations(chosen, 2):
        assert frames[i].distance(frames[j]) >= 0.12
    for left_out in set(range(80)) - set(chosen):
        better = [k for k in chosen if scores[k] > scores[left_out]]
        assert min(frames[k].distance(frames[left_out]) for k in better) < 0.12


def test_wrong_arguments():
    with pytest.raises(OptionError, match="2 scores do not fit 1 fingerprints"):
        select_frames([1.0, 2.0], on_a_line([0]), 1)
    with pytest.raises(OptionError, match="must not be negative"):
        select_frames([1.0], on_a_line([0]), -1)


# ------------------------------------------------------------------------------- shortlist


def test_shortlist_keeps_the_best_and_keeps_them_apart():
    rng = np.random.default_rng(0)
    frames = [ethanol(seed).positions for seed in range(200)]
    scores = rng.random(200)
    kept = Shortlist(molecule("CH3CH2OH"), 12, 0.1)
    for tag, (score, frame) in enumerate(zip(scores, frames, strict=True)):
        kept.offer(score, tag, frame)
    assert len(kept) == 12
    assert kept.tags[0] == int(np.argmax(scores))
    assert (np.diff(kept.scores) <= 0).all()
    np.testing.assert_array_equal(kept.scores, scores[kept.tags])
    np.testing.assert_array_equal(kept.positions, np.stack(frames)[kept.tags])
    of = Fingerprinter(molecule("CH3CH2OH"))
    for one, two in itertools.combinations(kept.positions, 2):
        assert of(one).distance(of(two)) >= 0.1
    # What a selection from all frames would take is there, nearly all of it.
    best = select_frames(scores, [of(frame) for frame in frames], 12, 0.1)
    assert len(set(best) & set(kept.tags.tolist())) >= 9


def test_a_frame_gives_way_to_a_more_uncertain_one_like_it():
    atoms = ase.Atoms("H2", [[0, 0, 0], [1, 0, 0]])

    def at(x):
        return np.array([[0, 0, 0], [x, 0, 0]], dtype=float)

    kept = Shortlist(atoms, 3, 0.1)
    assert kept.offer(1.0, 0, at(1.0))
    assert not kept.offer(1.0, 1, at(1.05))  # as uncertain, but later
    assert kept.offer(2.0, 2, at(1.05))
    assert kept.tags.tolist() == [2]
    assert kept.offer(0.5, 3, at(2.0))
    assert kept.offer(0.7, 4, at(3.0))
    assert kept.tags.tolist() == [2, 4, 3]
    assert not kept.offer(0.4, 5, at(4.0))  # full of better ones
    assert kept.offer(0.6, 6, at(4.0))
    assert kept.tags.tolist() == [2, 4, 6]
    assert not kept.offer(np.nan, 7, at(5.0))
    assert not Shortlist(atoms, 0).offer(1.0, 0, at(1.0))


def test_a_restored_shortlist_goes_on_as_the_first_would():
    template = molecule("CH3CH2OH")
    rng = np.random.default_rng(1)
    offers = [(float(rng.random()), tag, ethanol(tag).positions) for tag in range(120)]
    whole = Shortlist(template, 8, 0.1)
    for offer in offers:
        whole.offer(*offer)
    for cut in (0, 1, 50):
        first, second = Shortlist(template, 8, 0.1), Shortlist(template, 8, 0.1)
        for offer in offers[:cut]:
            first.offer(*offer)
        state = first.state()
        for offer in offers[cut:]:  # which leave the state as it is
            first.offer(*offer)
        second.restore(state)
        for offer in offers[cut:]:
            second.offer(*offer)
        for name, values in whole.state().items():
            np.testing.assert_array_equal(second.state()[name], values)
