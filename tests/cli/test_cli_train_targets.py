"""``dcase train qm9``, ``dcase train iso17`` and ``--target``: what they write, say and refuse."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.db import connect
from cli_inputs import ETHANOL

from dcase.data.md17 import load_md17
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.potential import load_potential

NAMES = ("CH4", "NH3", "H2O", "C2H2", "HCN", "H2CO", "C2H6", "CH3OH", "CH3CN", "C3H8")
SMALL = ["--size", "tiny", "--filter-knots", "0", "--device", "cpu", "--epochs", "2", "--seed", "1"]


@pytest.fixture
def qm9(tmp_path):
    """A folder like the unpacked archive; dipoles grow with the number, U0 is -40 Hartree each."""
    folder = tmp_path / "qm9"
    folder.mkdir()
    for number in range(1, 31):
        atoms = molecule(NAMES[number % len(NAMES)])
        atoms.rattle(0.02, seed=number)
        properties = [0.1 * number, *(13.0, -0.3, 0.1, 0.4, 35.0, 0.04), *(-40.0,) * 4, 6.0]
        lines = [str(len(atoms)), f"gdb {number}\t1.\t1.\t1.\t" + "\t".join(map(str, properties))]
        for symbol, xyz in zip(atoms.symbols, atoms.positions, strict=True):
            lines.append("\t".join([symbol, *(f"{x:.8f}" for x in xyz), "0.1"]))
        text = "\n".join([*lines, "1000.", "C\tC", "InChI\tInChI"]) + "\n"
        (folder / f"dsgdb9nsd_{number:06d}.xyz").write_text(text)
    return folder


def write_iso17(folder):
    folder.mkdir()
    for name, n, first in (("reference", 16, 0), ("test_within", 4, 100), ("test_other", 3, 200)):
        with connect(folder / f"{name}.db") as database:
            for f in range(n):
                rng = np.random.default_rng(first + f)
                atoms = Atoms("C7O2H10", positions=rng.normal(scale=1.3, size=(19, 3)))
                forces = rng.normal(size=(19, 3))
                database.write(atoms, total_energy=-11000.0 + f, data={"atomic_forces": forces})
    return folder


def report_of(name):
    with open(f"{name}.run/report.json") as handle:
        return json.load(handle)


# ----------------------------------------------------------------------------------------- qm9


def test_qm9_energies(dcase, qm9):
    done = dcase("train", "qm9", "--target", "u0", "--source", qm9, "--n-train", 20, "--n-val", 4,
                 *SMALL, "--out", "a.pt")  # fmt: skip
    assert done.code == 0, done.err
    assert "20 frames to train, 4 to validate, of 30" in done.err
    assert "predicts U0 (eV)" in done.err
    assert "test (6)" in done.out
    assert "kcal/mol" in done.out
    report = report_of("a")
    assert report["quantity"] == {
        "name": "U0", "unit": "eV", "readout": "sum", "is_energy": True,
    }  # fmt: skip
    assert report["recipe"]["name"] == "qm9"
    assert report["recipe"]["loss"]["forces_weight"] == 0
    assert report["test"]["energy_mae_kcal_mol"] == pytest.approx(
        report["test"]["energy_mae_mev"] / 43.3641, rel=1e-5
    )
    shown = dcase("info", "a.pt")
    assert "U0 (eV), a sum over atoms" in shown.out


@pytest.mark.parametrize(
    ("target", "unit", "said"),
    [
        ("mu", "Debye", "the dipole of charges on the atoms"),
        ("homo", "eV", "a mean over atoms"),
        ("alpha", "a0^3", "a sum over atoms"),
    ],
)
def test_qm9_what_is_no_energy(dcase, qm9, target, unit, said):
    done = dcase("train", "qm9", "--target", target, "--source", qm9, "--n-train", 0.5, "--n-val",
                 5, "--n-test", 3, *SMALL, "--out", "a.pt", "--quiet")  # fmt: skip
    assert done.code == 0, done.err
    assert f"Errors of {target}" in done.out
    assert f"MAE {'meV' if unit == 'eV' else unit}" in done.out
    assert "test (3)" in done.out
    assert "dcase md" not in done.out
    report = report_of("a")
    assert any(key.startswith(f"{target}_mae_") for key in report["test"])
    assert not any(key.startswith(("energy", "forces")) for key in report["validation"])
    shown = dcase("info", "a.pt")
    assert f"{target} ({unit}), {said}" in shown.out
    assert "validation MAE" in shown.out
    assert json.loads(dcase("info", "a.pt", "--json").out)["quantity"]["name"] == target


def test_qm9_resumes(dcase, qm9):
    command = ["train", "qm9", "--target", "mu", "--source", qm9, "--n-train", 10, "--n-val", 4,
               *SMALL, "--out", "a.pt", "--quiet"]  # fmt: skip
    assert dcase(*command).code == 0
    more = dcase(*command, "--epochs", 3, "--resume")
    assert more.code == 0, more.err
    assert report_of("a")["epochs"] == 3
    # The same file, but another property: not the run it was.
    other = dcase(*[c if c != "mu" else "alpha" for c in command], "--resume")
    assert "quantity.name was 'mu', now 'alpha'" in other.message


def test_qm9_published_atoms_as_offset(dcase, qm9):
    done = dcase("train", "qm9", "--target", "U0", "--source", qm9, "--n-train", 10, "--n-val", 4,
                 *SMALL, "--out", "a.pt", "--offset", "atomref", "--quiet")  # fmt: skip
    assert done.code == 0, done.err
    offsets = load_potential("a.pt").scale.offsets
    assert offsets[1] == pytest.approx(-0.500273 * 27.211386, abs=1e-4)
    assert offsets[6] == pytest.approx(-37.846772 * 27.211386, abs=1e-4)


def test_qm9_refuses(dcase, qm9):
    assert "no target 'U1'" in dcase("train", "qm9", "--target", "U1").message
    few = dcase("train", "qm9", "--target", "U0", "--source", qm9, "--n-train", 40)
    assert "only 30" in few.message
    nowhere = dcase("train", "qm9", "--target", "U0", "--source", "nowhere")
    assert "no such file or folder: nowhere" in nowhere.message
    forces = dcase("train", "qm9", "--target", "mu", "--source", qm9, "--forces-weight", 1)
    assert "no forces" in forces.message


# --------------------------------------------------------------------------------------- iso17


def test_iso17_tests_on_known_and_unknown_isomers(dcase, tmp_path):
    source = write_iso17(tmp_path / "iso17")
    done = dcase("train", "iso17", "--source", source, "--n-train", 8, "--n-val", 3, *SMALL,
                 "--out", "a.pt", "--data-dir", tmp_path / "cache")  # fmt: skip
    assert done.code == 0, done.err
    assert "test, known isomers (4)" in done.out
    assert "test, unknown isomers (3)" in done.out
    report = report_of("a")
    assert report["test"]["n_frames"] == 4
    assert report["test_unknown_isomers"]["n_frames"] == 3
    assert report["test_unknown_isomers"]["forces_mae_kcal_mol_angstrom"] > 0
    assert report["level_of_theory"] == "PBE+vdW-TS"
    assert list((tmp_path / "cache" / "iso17").glob("reference_*.npz"))


def test_iso17_target_energy_reads_no_forces(dcase, tmp_path):
    source = write_iso17(tmp_path / "iso17")
    done = dcase("train", "iso17", "--source", source / "reference.db", "--n-train", 8, "--n-val",
                 3, "--target", "energy", *SMALL, "--out", "a.pt", "--quiet",
                 "--data-dir", tmp_path / "cache")  # fmt: skip
    assert done.code == 0, done.err
    assert report_of("a")["recipe"]["loss"]["forces_weight"] == 0


# -------------------------------------------------------------------------------------- target


@pytest.mark.parametrize(
    ("target", "weights"),
    [("energy", (1.0, 0.0)), ("forces", (0.0, 1.0)), ("energy+forces", (0.01, 1.0))],
)
def test_target_sets_the_weights(dcase, target, weights):
    done = dcase(*ETHANOL, "--target", target, "--epochs", 1, "--out", "a.pt", "--quiet")
    assert done.code == 0, done.err
    loss = report_of("a")["recipe"]["loss"]
    assert (loss["energy_weight"], loss["forces_weight"]) == weights


def test_target_forces_gives_energies_all_the_same(dcase):
    done = dcase(*ETHANOL, "--target", "forces", "--epochs", 2, "--out", "a.pt", "--quiet",
                 "--offset", "none")  # fmt: skip
    assert done.code == 0, done.err
    data = load_md17("ethanol", "xtb")
    reference, predicted = evaluate_potential(load_potential("a.pt"), data.subset(range(50))).energy
    # Without an offset and without energies in the loss: else it would be off by the whole energy.
    assert np.abs(predicted - reference).max() < 0.02 * abs(reference.mean())


def test_target_against_weights(dcase):
    both = dcase(*ETHANOL, "--target", "energy", "--forces-weight", "2")
    assert both.message.startswith("--target energy and --forces-weight 2 contradict each other")
    none = dcase(*ETHANOL, "--target", "energy+forces", "--energy-weight", "0")
    assert "contradict" in none.message


def test_target_with_the_report_s_recipe(dcase):
    done = dcase(*ETHANOL, "--recipe", "schnet-report", "--epochs", 1, "--out", "a.pt", "--quiet")
    assert done.code == 0, done.err
    potential = load_potential("a.pt")
    assert potential.hyper_parameters["num_gaussians"] == 300  # the recipe's, not --size tiny's
    assert potential.cutoff == 30.0
    assert potential.hyper_parameters["activation"] == "ssp"
    loss = report_of("a")["recipe"]["loss"]
    assert (loss["energy_weight"], loss["forces_weight"]) == (0.01, 3.0)


# ---------------------------------------------------------------------------------------- data


def test_data_list_and_fetch_know_the_sets(dcase, tmp_path):
    listed = dcase("data", "list", "--data-dir", tmp_path / "cache")
    assert "dcase data fetch iso17" in listed.out
    assert "130831" in listed.out
    folder = tmp_path / "cache" / "iso17"
    write_iso17(tmp_path / "files")
    folder.mkdir(parents=True)
    # Put there by hand, as one without a network would.
    for name in ("reference.db", "test_within.db", "test_other.db"):
        (tmp_path / "files" / name).rename(folder / name)
    for name in ("train_ids.txt", "validation_ids.txt"):
        (folder / name).write_text("1 2 3" if "train" in name else "4 5")
    fetched = dcase("data", "fetch", "iso17", "--data-dir", tmp_path / "cache")
    assert fetched.code == 0, fetched.err
    assert "16 frames to train on" in fetched.out
    listed = dcase("data", "list", "--data-dir", tmp_path / "cache")
    assert "dcase data fetch iso17" not in listed.out
