"""What is found in labels, on thermal frames whose labels are known, spoilt on purpose."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.units import Bohr, Hartree, Rydberg, kcal, kJ, mol

from dcase.data.dataset import AtomicDataset
from dcase.data.label_check import check_labels, close_pairs, frame_keys, good_frames, robust_z
from dcase.data.md17 import load_md17
from dcase.data.splits import SplitFrames, Splits
from dcase.data.unit_check import bond_stiffness, energy_slope, likely_units, neighbour_ratio
from dcase.errors import DataError, OptionError
from dcase.potentials.fitting.checked_frames import checked_frames
from dcase.potentials.fitting.recipe import DataChoice
from dcase.rescaling import fit_label_scale


@pytest.fixture(scope="module")
def ethanol():
    return load_md17("ethanol", "xtb").subset(range(200))


@pytest.fixture(scope="module")
def copper():
    """A trajectory of a crystal, small steps, by EMT."""
    rng = np.random.default_rng(0)
    frames, energies, forces = [], [], []
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.calc = EMT()
    for _ in range(30):
        atoms.positions += 0.02 * rng.standard_normal((len(atoms), 3))
        frames.append(atoms.copy())
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    found = AtomicDataset.from_frames(frames)
    return replace(found, energies=np.array(energies), forces=np.concatenate(forces))


def kinds(dataset, **options):
    return [one.kind for one in check_labels(dataset, **options).findings]


def with_force(dataset, frame, force):
    forces = dataset.forces.copy()
    forces[dataset.ptr[frame] + 3] = force
    return replace(dataset, forces=forces)


def test_good_frames_are_let_alone(ethanol, copper):
    assert kinds(ethanol) == kinds(copper) == []
    assert good_frames(ethanol).all()
    assert good_frames(copper).all()


def test_one_unconverged_force_is_named_and_does_not_set_the_scale(ethanol):
    spoilt = with_force(ethanol, 17, [5e4, -2e4, 1e4])
    found = check_labels(spoilt)
    assert found.outliers().tolist() == [17]
    text = next(one.text for one in found.findings if one.kind == "forces")
    assert "frame 17 (5.477e+04) eV/A" in text
    before, after = fit_label_scale(ethanol), fit_label_scale(spoilt)
    rest = np.delete(np.arange(200), 17)
    assert after.constant == fit_label_scale(ethanol.subset(rest)).constant
    assert after.constant == pytest.approx(before.constant, rel=0.01)
    # The paper's rule is kept to the letter.
    assert fit_label_scale(spoilt, rescale="paper").constant > 1e4 * before.constant


def test_an_energy_of_another_state_is_named_and_does_not_move_the_offset(ethanol):
    energies = ethanol.energies.copy()
    energies[33] += 30.0
    spoilt = replace(ethanol, energies=energies)
    found = check_labels(spoilt)
    assert found.outliers().tolist() == [33]
    assert "frame 33 (+3.3" in found.findings[0].text
    base = sum(fit_label_scale(ethanol).offsets[z] * n for z, n in ((6, 2), (1, 6), (8, 1)))
    now = sum(fit_label_scale(spoilt).offsets[z] * n for z, n in ((6, 2), (1, 6), (8, 1)))
    assert now == pytest.approx(base, abs=0.01)  # 0.15 eV if the frame counted


def test_a_strained_frame_is_no_outlier_of_energy(ethanol):
    # Springs to the mean positions: the energy goes with the square of the forces.
    mean = ethanol.positions.reshape(200, 9, 3).mean(axis=0)
    rng = np.random.default_rng(2)
    shift = 0.05 * rng.standard_normal((200, 9, 3))
    shift[7] *= 6.0
    springs = replace(
        ethanol,
        positions=(mean + shift).reshape(-1, 3),
        energies=20.0 * (shift**2).sum(axis=(1, 2)) - 300.0,
        forces=(-40.0 * shift).reshape(-1, 3),
    )
    assert "energy" not in kinds(springs)
    energies = springs.energies.copy()
    energies[8] = energies[7]  # as high, and no forces that say so
    found = check_labels(replace(springs, energies=energies))
    assert [one.frames for one in found.findings if one.kind == "energy"] == [(8,)]


def test_compositions_of_all_sizes_have_energies_of_their_own():
    rng = np.random.default_rng(1)
    frames = [Atoms("C" * c + "H" * h, 2.0 * np.arange(3.0 * (c + h)).reshape(-1, 3))
              for c in range(1, 6) for h in range(1, 9)]  # fmt: skip
    dataset = AtomicDataset.from_frames(frames)
    energies = np.array([-1000.0 * np.sum(a.numbers == 6) - 14.0 * np.sum(a.numbers == 1)
                         for a in frames])  # fmt: skip
    energies += 0.02 * dataset.n_atoms * rng.standard_normal(len(frames))
    assert "energy" not in kinds(replace(dataset, energies=energies))
    energies[11] += 14.0  # as if an atom of hydrogen were missing
    found = check_labels(replace(dataset, energies=energies))
    assert [one.frames for one in found.findings if one.kind == "energy"] == [(11,)]
    too_few = replace(dataset, energies=energies).subset(range(6))
    assert "too few" in check_labels(too_few).skipped[0]


def test_relaxations_begin_far_from_where_they_end(copper):
    # Energies and forces that fall by a tenth a step are one process, no outliers.
    energies = copper.energies - copper.energies + 40 * 0.9 ** np.arange(30)
    forces = np.repeat(0.9 ** np.arange(30), 32)[:, None] * np.ones(3)
    forces[::2] *= -1
    relaxed = replace(copper, energies=energies, forces=forces)
    assert check_labels(relaxed).outliers().size == 0
    # Far from the median, but one after the other.
    ladder = replace(copper, energies=40 * 0.6 ** np.arange(30), forces=None)
    assert np.abs(check_labels(ladder).energy_z).max() > 100
    assert check_labels(ladder).outliers().size == 0
    energies = ladder.energies.copy()
    energies[0] *= 2.0
    assert check_labels(replace(ladder, energies=energies)).outliers().tolist() == [0]


def test_forces_of_held_atoms_do_not_count(ethanol):
    spoilt = with_force(ethanol, 17, [5e4, -2e4, 1e4])
    fixed = np.zeros(len(spoilt.numbers), dtype=bool)
    fixed[spoilt.ptr[17] + 3] = True
    assert kinds(replace(spoilt, fixed=fixed)) == []
    # Held along the direction of the force only, as FixedPlane does.
    normal = np.array([5e4, -2e4, 1e4]) / np.linalg.norm([5e4, -2e4, 1e4])
    _, _, plane = np.linalg.svd(normal[None])
    axes = np.tile(np.eye(3), (len(spoilt.numbers), 1, 1))
    axes[spoilt.ptr[17] + 3] = [plane[1], plane[2], np.zeros(3)]
    assert kinds(replace(spoilt, free_axes=axes), max_force=1e3) == []


def test_max_force_is_of_components(ethanol):
    largest = np.abs(ethanol.forces).reshape(200, -1).max(axis=1)
    bound = float(np.sort(largest)[-3])
    found = check_labels(ethanol, max_force=bound)
    assert found.outliers().tolist() == sorted(np.flatnonzero(largest > bound).tolist())
    assert len(found.outliers()) == 2
    with pytest.raises(OptionError, match="must be positive"):
        check_labels(ethanol, max_force=0.0)


def test_a_force_that_is_missing_leaves_a_sum(ethanol):
    found = check_labels(with_force(ethanol, 5, [0.0, 0.0, 0.0]))
    assert [(one.kind, one.frames) for one in found.findings] == [("net force", (5,))]
    assert not found.outliers().size


@pytest.mark.parametrize("cell", [None, 12.0])
def test_atoms_on_top_of_each_other(ethanol, cell):
    atoms = ethanol.frame(0)
    atoms.calc = None
    if cell:
        atoms.set_cell([cell] * 3)
        atoms.pbc = True
        atoms.positions[5] = atoms.positions[4] + [cell - 0.1, 0, 0]  # its image is near
    else:
        atoms.positions[5] = atoms.positions[4] + [0.1, 0, 0]
    dataset = AtomicDataset.from_frames([ethanol.frame(1), atoms])
    [(frame, i, j, distance)] = close_pairs(dataset)
    assert (frame, i, j) == (1, 4, 5)
    assert distance == pytest.approx(0.1)
    found = check_labels(dataset, names=[70, 71]).findings[0]
    assert found.kind == "overlap"
    assert "frame 71 (H4-H5 at 0.1) A" in found.text


def test_near_is_measured_by_both_radii():
    for symbols, distance, near in (("HC", 0.45, True), ("CH", 0.45, True), ("HH", 0.45, False),
                                    ("HC", 0.6, False), ("HH", 0.29, True)):  # fmt: skip
        atoms = Atoms(symbols, [[0, 0, 0], [0, 0, distance]])
        assert bool(list(close_pairs(AtomicDataset.from_frames([atoms])))) == near
        atoms.set_cell([9, 9, 9])
        atoms.pbc = True
        assert bool(list(close_pairs(AtomicDataset.from_frames([atoms])))) == near


def test_frames_that_occur_twice(ethanol):
    twice = ethanol.subset([*range(150), 2])
    [found] = check_labels(twice).findings
    assert (found.kind, found.frames) == ("duplicates", (150,))
    assert "frame 150 = 2" in found.text
    assert "another energy" not in found.text
    energies = twice.energies.copy()
    energies[150] += 0.5
    [found] = check_labels(replace(twice, energies=energies)).findings
    assert "1 of them with another energy (frame 150 by +0.5 eV)" in found.text


def test_keys_of_frames_are_of_structures(ethanol):
    keys = list(frame_keys(ethanol))
    assert len(set(keys)) == 200
    assert all(len(key) == 8 for key in keys)
    shifted = replace(ethanol, positions=ethanol.positions + 1e-9)
    assert sum(a == b for a, b in zip(keys, frame_keys(shifted), strict=True)) >= 199
    assert set(keys).isdisjoint(frame_keys(replace(ethanol, positions=ethanol.positions + 0.01)))


# ----------------------------------------------------------------------------------------- units


def test_what_units_are_read_from(ethanol, copper):
    assert 15 < bond_stiffness(ethanol) < 60  # eV/A^2; spectra: C-H 31, C-C 28, C-O 33, O-H 48
    assert bond_stiffness(copper) is None  # no light atoms
    assert energy_slope(copper) == pytest.approx(1.0, abs=0.05)
    assert neighbour_ratio(ethanol) == pytest.approx(1.0, abs=0.05)
    assert neighbour_ratio(copper) == pytest.approx(2.55 / 2.64, abs=0.1)


@pytest.mark.parametrize(
    ("energy", "force", "said"),
    [
        (mol / kcal, mol / kcal, "--energy-unit kcal/mol)"),
        (mol / kJ, mol / kJ, "--energy-unit kJ/mol)"),
        (1 / Hartree, Bohr / Hartree, "--energy-unit Hartree --forces-unit Hartree/Bohr)"),
        (1.0, -1.0, "--forces-unit -eV/A"),
    ],
)
def test_units_of_a_molecules_labels(ethanol, energy, force, said):
    labelled = replace(ethanol, energies=energy * ethanol.energies, forces=force * ethanol.forces)
    [found] = [one for one in check_labels(labelled).findings if one.kind == "units"]
    assert said in found.text
    assert not found.frames
    assert not found.outlier


@pytest.mark.parametrize(
    ("energy", "force", "said"),
    [
        (mol / kcal, 1.0, "--energy-unit kcal/mol --forces-unit eV/A)"),
        (1 / Hartree, 1.0, "--energy-unit Hartree --forces-unit eV/A)"),
        (1.0, -1.0, "--forces-unit -eV/A"),
    ],
)
def test_units_of_a_metals_labels_by_energies_against_forces(copper, energy, force, said):
    labelled = replace(copper, energies=energy * copper.energies, forces=force * copper.forces)
    [found] = check_labels(labelled).findings
    assert said in found.text


@pytest.mark.parametrize(("factor", "unit"), [(1 / Bohr, "Bohr"), (0.1, "nm")])
def test_units_of_lengths(ethanol, copper, factor, unit):
    for dataset in (ethanol, copper):
        cells = None if dataset.cells is None else factor * dataset.cells
        scaled = replace(dataset, positions=factor * dataset.positions, cells=cells)
        found = check_labels(scaled).findings[0]
        assert found.kind == "units"
        assert f"--length-unit {unit}" in found.text


@pytest.mark.parametrize(
    ("slope", "stiffness", "units"),
    [
        (None, None, ("eV", "eV/A")),
        (1.2, 90.0, ("eV", "eV/A")),
        (1 / Bohr, 0.8, ("Hartree", "Hartree/Bohr")),
        (1.0, 45 / 13.6, ("Ry", "Ry/A")),
        (1 / Bohr, 45 * Bohr / Rydberg, ("Ry", "Ry/Bohr")),
        (96.5, None, ("kJ/mol", "eV/A")),
    ],
)
def test_the_likely_units(slope, stiffness, units):
    assert likely_units(slope, stiffness) == units


def test_robust_z_is_that_of_a_normal_distribution():
    x = np.random.default_rng(0).standard_normal(20_000)
    assert np.std(robust_z(3.0 + 5.0 * x)) == pytest.approx(1.0, abs=0.02)
    assert not robust_z(np.ones(5)).any()
    spoilt = robust_z(np.append(x, 1e9))
    np.testing.assert_allclose(spoilt[:-1], robust_z(x), atol=1e-3)


# --------------------------------------------------------------------- on the way to a training


def test_what_is_left_out_of_a_training(ethanol):
    spoilt = with_force(ethanol, 17, [5e4, -2e4, 1e4])
    order = np.arange(200)[::-1]
    frames = SplitFrames(spoilt, Splits(order[:150], order[150:190], order[190:]))
    said: list[str] = []
    left, _ = checked_frames(frames, DataChoice(), said.append)
    assert left is frames
    assert any("frame 17 (" in line and "--drop-outliers" in line for line in said)
    left, _ = checked_frames(frames, DataChoice(drop_outliers=True), said.append)
    assert len(left.splits.train) + len(left.splits.val) == 189
    assert 17 not in left.splits.val
    assert (left.splits.train == frames.splits.train).all()
    left, _ = checked_frames(frames, DataChoice(max_force=1e4), said.append)
    assert 17 not in left.splits.val
    with pytest.raises(DataError, match="all 150 training frames"):
        checked_frames(frames, DataChoice(max_force=1e-6), said.append)


def test_other_quantities_than_energies_have_no_unit(ethanol):
    other = replace(ethanol, forces=None, info=replace(ethanol.info, quantity="dipole"))
    assert kinds(other) == []
    h2 = AtomicDataset.from_frames([molecule("H2")])
    assert kinds(h2) == []


@pytest.mark.parametrize("third", [0.0, 1e5])
def test_slabs_of_no_third_vector_or_a_long_one_are_checked(third):
    from ase.build import fcc111

    from dcase.boxes import neighbours_of

    slab = fcc111("Cu", (2, 2, 3))
    slab.pbc = (True, True, False)
    expected = np.sort(neighbours_of(slab, 4.0)[2])
    slab.cell[2, 2], slab.pbc = third, (True, True, third > 0)
    np.testing.assert_allclose(np.sort(neighbours_of(slab, 4.0)[2]), expected, atol=1e-9)
    assert len(expected) > 100
