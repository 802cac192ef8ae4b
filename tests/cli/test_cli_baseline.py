"""``dcase baseline``."""

import json

import numpy as np
import pytest
from cli_inputs import save_some, shipped_frames

from dcase.data.npz import read_npz
from dcase.data.splits import split
from dcase.potentials.fitting.baseline import fit_baseline
from dcase.potentials.fitting.evaluation import evaluate_potential

FEW = ["--parameters", "60", "--cutoff", "4"]


@pytest.fixture(autouse=True)
def frames(empty_folder):
    save_some("some.npz", "ethanol", 40)


def test_the_figures_are_those_of_the_library(dcase, empty_folder):
    done = dcase("baseline", "some.npz", *FEW, "--seed", 3, "--json", "b.json")
    assert done.code == 0, done.err
    content = json.loads((empty_folder / "b.json").read_text())
    assert (content["n_train"], content["n_val"], content["n_test"]) == (32, 4, 4)
    found = content["baselines"]
    assert list(found) == ["mean", "composition", "pairs"]
    dataset = read_npz("some.npz")
    parts = split(40, 0.8, 0.1, 3)
    fitted = fit_baseline(
        dataset.subset(parts.train),
        "energy+forces",
        validation=dataset.subset(parts.val),
        num_parameters=60,
        cutoff=4.0,
    )
    expected = evaluate_potential(fitted, dataset.subset(parts.test)).metrics
    for key in ("energy_mae_kcal_mol", "forces_mae_mev_angstrom"):
        assert found["pairs"][key] == pytest.approx(expected[key], rel=1e-9)
    assert found["pairs"]["parameters"] == fitted.num_parameters == 63
    assert found["pairs"]["ridge"] == pytest.approx(fitted.ridge)
    assert f"{expected['forces_mae_kcal_mol_angstrom']:.4f}" in done.out
    assert "pairs (63)" in done.out


def test_targets_and_test_frames_of_another_file(dcase, empty_folder):
    data = shipped_frames("ethanol")
    np.savez("others.npz", z=data["z"], **{key: data[key][100:110] for key in "REF"})
    errors = {}
    for target in ("energy", "forces"):
        done = dcase(
            "baseline", "some.npz", "--test", "others.npz", "--target", target, *FEW,
            "--json", "b.json",
        )  # fmt: skip
        assert done.code == 0, done.err
        content = json.loads((empty_folder / "b.json").read_text())
        assert (content["n_train"], content["n_val"], content["n_test"]) == (36, 4, 10)
        errors[target] = content["baselines"]["pairs"]
    assert "10 frames of others.npz; 36 fitted" in done.out
    key = "forces_mae_mev_angstrom"
    assert errors["forces"][key] < errors["energy"][key]


def test_energies_alone(dcase, empty_folder):
    import ase.io

    frames = list(read_npz("some.npz").subset(range(20)))
    for atoms in frames:
        atoms.info["mine"] = atoms.get_potential_energy()
        atoms.calc = None
    ase.io.write("energies.extxyz", frames)
    done = dcase("baseline", "energies.extxyz", "--energy-key", "mine", *FEW, "--json", "b.json")
    assert done.code == 0, done.err
    found = json.loads((empty_folder / "b.json").read_text())["baselines"]["pairs"]
    assert found["target"] == "energy"
    assert "forces_mae_mev_angstrom" not in found


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere.npz"], "no such file: nowhere.npz"),
        (["some.npz", "--n-train", "50"], "there are only 40"),
        (["some.npz", "--n-train", "36", "--n-val", "4"], "left to test on; lower --n-train"),
        (["some.npz", "--json", "some.npz/x.json"], "some.npz is not a folder"),
        (["plain.xyz"], "has no energies"),
    ],
)
def test_refused(dcase, empty_folder, arguments, reason):
    (empty_folder / "plain.xyz").write_text("2\n\nO 0 0 0\nH 0 0 1\n" * 20)
    done = dcase("baseline", *arguments)
    assert done.code == 1
    assert reason in done.message
