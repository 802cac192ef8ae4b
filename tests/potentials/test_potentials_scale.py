"""Label scale and offsets: the paper's constant, fits with known answers, and precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from potential_models import OFFSETS, ethanol, lively

from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.errors import DataError, OptionError
from dcase.potentials.calculator import DCCalculator
from dcase.rescaling import (
    LabelScale,
    fit_label_scale,
    fit_offsets,
    offset_energies,
    paper_constant,
)
from dcase.units import KCAL_PER_MOL


@pytest.mark.parametrize(
    ("largest", "constant"),
    [
        (406757.6, 1e6),  # aspirin in MD17: -406757.6 kcal/mol
        (96000.0, 1e5), (1e6, 1e6), (1e6 * (1 + 1e-15), 1e7), (1.0, 1.0), (1.0001, 10.0),
        (0.05, 0.1), (0.1, 0.1), (1e-3, 1e-3), (1000.0, 1000.0), (999.9999, 1000.0),
    ],
)  # fmt: skip
def test_potentials_paper_constant_is_the_smallest_power_of_ten(largest, constant):
    energies, forces = np.array([0.3 * largest, -largest]), np.zeros((2, 3))
    assert paper_constant(energies, forces) == pytest.approx(constant, rel=1e-15)
    assert paper_constant(None, energies) == paper_constant(energies)
    # Whatever it is, it does what eq. 4 asks and a tenth of it does not.
    c = paper_constant(energies)
    assert np.abs(energies / c).max() <= 1
    assert np.abs(energies / (c / 10)).max() > 1


def test_potentials_paper_constant_of_every_power_of_ten():
    for power in range(-12, 13):
        assert paper_constant(np.array([float(f"1e{power}")])) == float(f"1e{power}")
        # The next number up no longer fits, although its logarithm rounds to the same.
        above = np.nextafter(float(f"1e{power}"), np.inf)
        assert paper_constant(np.array([above])) == pytest.approx(
            float(f"1e{power + 1}"), rel=1e-15
        )
    assert paper_constant(np.zeros(3), None) == 1.0


def _dataset(numbers_of_frames, energies, forces=None, unit="eV"):
    ptr = np.concatenate([[0], np.cumsum([len(n) for n in numbers_of_frames])])
    numbers = np.concatenate(numbers_of_frames).astype(np.int64)
    rng = np.random.default_rng(0)
    return AtomicDataset(
        numbers, rng.normal(size=(len(numbers), 3)), ptr.astype(np.int64),
        None if energies is None else np.asarray(energies, dtype=np.float64), forces,
        info=DatasetInfo("test", label_unit=unit),
    )  # fmt: skip


def _md17_like():
    energies = np.array([-406757.6, -406737.3]) * KCAL_PER_MOL
    forces = np.random.default_rng(0).normal(0, 30, (6, 3)) * KCAL_PER_MOL
    return _dataset([[1, 6, 8]] * 2, energies, forces, unit="kcal/mol")


def test_potentials_paper_rule_works_in_the_files_unit():
    scale = fit_label_scale(_md17_like(), rescale="paper", offset="none")
    assert scale.constant == pytest.approx(1e6 * KCAL_PER_MOL, rel=1e-15)
    assert scale.offsets == {}


@pytest.mark.parametrize("rescale", [2.5, "2.5"])
def test_potentials_a_number_is_in_the_files_unit(rescale):
    scale = fit_label_scale(_md17_like(), rescale=rescale)
    assert scale.constant == pytest.approx(2.5 * KCAL_PER_MOL, rel=1e-15)
    assert fit_label_scale(_md17_like(), rescale="none").constant == KCAL_PER_MOL


def test_potentials_forces_rule_gives_unit_variance():
    data = _md17_like()
    constant = fit_label_scale(data, rescale="forces").constant
    assert np.sqrt(np.mean((data.forces / constant) ** 2)) == pytest.approx(1.0, rel=1e-14)


def test_potentials_forces_rule_without_forces_is_the_spread_of_energies():
    numbers, rng = [[1] * 3, [1, 6], [6] * 2, [1, 6, 6]], np.random.default_rng(1)
    atomic = np.array([-13.0 * n.count(1) - 1029.0 * n.count(6) for n in numbers])
    data = _dataset(numbers, atomic + rng.normal(0, 0.1, 4))
    scale = fit_label_scale(data, rescale="forces", offset="atomic")
    left = data.energies - offset_energies(data, scale.offsets)
    assert scale.constant == pytest.approx(left.std())
    assert scale.constant < 0.2


def test_potentials_offsets_of_mixed_compositions_have_the_closed_form():
    # Energies exactly additive: least squares must give the atoms back.
    numbers = [[1, 1, 8], [6, 1, 1, 1, 1], [8, 8], [6, 8, 8], [6, 6, 1, 1]]
    energies = [sum(OFFSETS[z] for z in n) for n in numbers]
    found = fit_offsets(_dataset(numbers, energies), "atomic")
    assert found == pytest.approx(OFFSETS, abs=1e-8)
    # And with noise, the normal equations.
    noisy = np.array(energies) + np.random.default_rng(0).normal(0, 1, 5)
    counts = np.array([[n.count(z) for z in (1, 6, 8)] for n in numbers], dtype=float)
    expected = np.linalg.solve(counts.T @ counts, counts.T @ noisy)
    found = fit_offsets(_dataset(numbers, noisy), "atomic")
    assert list(found.values()) == pytest.approx(expected.tolist(), rel=1e-9)


def test_potentials_offsets_of_one_molecule_sum_to_the_mean_energy():
    energies = np.array([-4210.2, -4209.7, -4209.1])
    data = _dataset([ethanol().numbers] * 3, energies)
    for offset in ("atomic", "mean"):
        found = fit_offsets(data, offset)
        assert offset_energies(data, found) == pytest.approx([energies.mean()] * 3, abs=1e-9)
        # What the data do not determine is as near to the mean per atom as it can be.
        assert set(found) == {1, 6, 8}
        assert list(found.values()) == pytest.approx([energies.mean() / 9] * 3, rel=1e-12)
    assert fit_offsets(data, "none") == {}


def test_potentials_scale_refuses_nonsense():
    data = _md17_like()
    with pytest.raises(OptionError, match="rescale must be a number or one of"):
        fit_label_scale(data, rescale="papre")
    with pytest.raises(OptionError, match="offset must be one of"):
        fit_label_scale(data, offset="atom")
    for number in (0.0, -1.0, float("nan"), float("inf"), "nan"):
        with pytest.raises(OptionError, match="positive number"):
            fit_label_scale(data, rescale=number)
    with pytest.raises(DataError, match="needs energies"):
        fit_label_scale(_dataset([[1, 6]], None, np.ones((2, 3))))
    with pytest.raises(DataError, match="neither energies nor forces"):
        fit_label_scale(_dataset([[1, 6]], None), offset="none")


def _smallest_energy_step(scale):
    """The smallest change a float32 potential can show around ethanol, eV (median over moves)."""
    potential = lively(activation="silu")
    potential.set_scale(scale)
    calc = DCCalculator(potential, dtype="float32")
    atoms, energies = ethanol(), []
    for _ in range(200):
        atoms.positions[0, 0] += 2e-6  # a force of 1 eV/A makes it 2e-6 eV
        atoms.calc = calc
        energies.append(atoms.get_potential_energy())
    energies = np.array(energies)
    trend = np.polyval(np.polyfit(np.arange(200), energies, 1), np.arange(200))
    return float(np.sqrt(np.mean((energies - trend) ** 2)))


def test_potentials_float32_resolves_energies_below_a_microelectronvolt():
    constant = lively(activation="silu").scale.constant
    # float32 holds -4209 eV (ethanol's) to 0.24 meV; kept outside the network, it costs nothing.
    assert np.spacing(np.float32(4209.0)) > 2e-4
    assert _smallest_energy_step(LabelScale(constant, OFFSETS)) < 1e-6
    # Control: the paper's unit puts every energy on the scale of 4e4 eV.
    paper = LabelScale(1e6 * KCAL_PER_MOL, {})
    assert _smallest_energy_step(paper) > 1e-4


def test_potentials_energy_with_offset_is_float64_of_the_sum():
    potential = lively(activation="silu")
    calc = DCCalculator(potential, dtype="float32")
    atoms = ethanol()
    atoms.calc = calc
    bare = lively(activation="silu")
    bare.set_scale(LabelScale(potential.scale.constant, {}))
    other = ethanol()
    other.calc = DCCalculator(bare, dtype="float32")
    difference = atoms.get_potential_energy() - other.get_potential_energy()
    assert difference == pytest.approx(sum(OFFSETS[z] for z in atoms.numbers), abs=1e-11)
    np.testing.assert_array_equal(atoms.get_forces(), other.get_forces())
    assert torch.get_default_dtype() == torch.float32
