"""``dcase train oc22``: folders in, potential and errors out."""

import json
import pickle
from pathlib import Path

import ase.io
import lmdb
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from torch_geometric.data import Data

from dcase.potentials.potential import load_potential

FAST = ["--size", "tiny", "--filter-knots", "0", "--epochs", "1", "--device", "cpu"]


def slab(seed, metal="Ti"):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3) * 2.0
    atoms = ase.Atoms(
        f"{metal}2O6", grid + rng.normal(0, 0.1, (8, 3)), cell=[4.2, 4.2, 12.0], pbc=True
    )
    atoms.set_tags([0] * 4 + [1] * 4)
    atoms.set_constraint(FixAtoms(range(4)))
    forces = rng.normal(0, 0.3, (8, 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-160.0 + rng.normal(), forces=forces)
    return atoms


def shard(path, frames):
    """An LMDB file as published."""
    environment = lmdb.open(str(path), map_size=2**22, subdir=False)
    with environment.begin(write=True) as transaction:
        for number, atoms in enumerate(frames):
            frame = Data(
                pos=torch.tensor(atoms.positions),
                cell=torch.tensor(atoms.cell.array)[None],
                atomic_numbers=torch.tensor(atoms.numbers),
                fixed=torch.tensor([1.0] * 4 + [0.0] * 4),
                tags=torch.tensor(atoms.get_tags()),
                y=atoms.get_potential_energy(),
                force=torch.tensor(atoms.get_forces(apply_constraint=False)),
                oc22=1,
            )
            transaction.put(b"%d" % number, pickle.dumps(frame, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(frames), protocol=-1))
    environment.close()


@pytest.fixture
def folder(tmp_path):
    """train/, val_id/ and val_ood/, the last with an element of its own."""
    root = tmp_path / "oc22"
    for name in ("train", "val_id", "val_ood"):
        (root / name).mkdir(parents=True)
    shard(root / "train" / "data.0000.lmdb", [slab(i) for i in range(5)])
    shard(root / "train" / "data.0001.lmdb", [slab(i) for i in range(5, 12)])
    shard(root / "val_id" / "data.0000.lmdb", [slab(i) for i in range(12, 15)])
    shard(root / "val_ood" / "data.0000.lmdb", [slab(i, "Hf") for i in range(15, 19)])
    return root


def report(name="oc22_irelu"):
    return json.loads(Path(f"{name}.run/report.json").read_text())


def test_a_published_folder(dcase, folder):
    done = dcase("train", "oc22", "--source", folder, *FAST)
    assert done.code == 0, done.err
    assert "12 frames to train, 3 to validate, of 19" in done.err
    assert "labels PBE+U (OC22)" in done.err
    assert "WARNING: no training frame holds Hf" in done.err
    assert "validation (3)" in done.out
    assert "test, out of domain: val_ood (4)" in done.out
    assert load_potential("oc22_irelu.pt").elements == [8, 22, 72]
    written = report()
    assert written["test"]["set"] == "out of domain: val_ood"
    assert written["test"]["n_frames"] == 4
    assert written["test"]["n_fixed_atoms"] == 16
    assert written["level_of_theory"] == "PBE+U (OC22)"
    assert written["recipe"]["loss"]["free_atoms"] is True
    # The same again is the same frames; a part of them is not.
    assert dcase("train", "oc22", "--source", folder, *FAST, "--overwrite").code == 0
    assert report()["dataset"]["fingerprint"] == written["dataset"]["fingerprint"]
    some = [*FAST, "--n-train", "5", "--n-val", "2", "--n-test", "0", "--out", "some.pt"]
    done = dcase("train", "oc22", "--source", folder, *some)
    assert "5 frames to train, 2 to validate, of 7" in done.err
    assert "test" not in done.out
    assert "WARNING" not in done.err
    written = report("some")
    seed = dcase("train", "oc22", "--source", folder, *some, "--overwrite", "--seed", "1")
    assert seed.code == 0
    assert report("some")["dataset"]["fingerprint"] != written["dataset"]["fingerprint"]


def test_all_atoms(dcase, folder):
    assert dcase("train", "oc22", "--source", folder, *FAST, "--no-free-atoms").code == 0
    assert "n_fixed_atoms" not in report()["test"]
    assert "n_fixed_atoms" not in report()["validation"]


def test_one_file_and_the_rest(dcase, tmp_path):
    ase.io.write(tmp_path / "mine.extxyz", [slab(i) for i in range(12)])
    done = dcase(
        "train", "oc22", "--source", "mine.extxyz", *FAST, "--n-train", "6", "--n-val", "2",
        "--test", "--theory", "PBE",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "test, rest of the training pool (4)" in done.out
    assert "labels PBE:" in done.err
    assert report("mine_irelu")["level_of_theory"] == "PBE"


def test_evaluate_on_a_shard(dcase, folder):
    assert dcase("train", "oc22", "--source", folder, *FAST).code == 0
    file = folder / "val_ood" / "data.0000.lmdb"
    evaluate = ["evaluate", "oc22_irelu.pt", file, "--device", "cpu", "--json", "errors.json"]

    def errors(*options):
        done = dcase(*evaluate, *options)
        assert done.code == 0, done.err
        assert "WARNING" not in done.err  # the level of theory is the same
        assert ("atoms held in place; --no-free" in done.err) == ("--no-free-atoms" not in options)
        return json.loads(Path("errors.json").read_text())

    found, tested = errors(), report()["test"]
    for key in ("energy_mae_mev", "forces_mae_mev_angstrom", "n_fixed_atoms", "n_frames"):
        assert found[key] == pytest.approx(tested[key], rel=1e-6)
    assert errors("--index", "1:3")["n_frames"] == 2
    every = errors("--no-free-atoms")
    assert "n_fixed_atoms" not in every
    assert every["forces_mae_mev_angstrom"] != found["forces_mae_mev_angstrom"]
    assert "selects none" in dcase(*evaluate, "--index", "9:").message
    assert dcase(*evaluate, "--energy-key", "y").code == 2


def test_resume_goes_on(dcase, folder):
    assert dcase("train", "oc22", "--source", folder, *FAST).code == 0
    again = [*FAST, "--epochs", "2", "--resume"]
    assert dcase("train", "oc22", "--source", folder, *again).code == 0
    assert report()["epochs"] == 2
    done = dcase("train", "oc22", "--source", folder, *again, "--n-train", "5")
    assert done.code == 1
    assert "resume" in done.message


def test_errors_are_one_line_and_leave_nothing(dcase, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for options, message in (
        (["--source", "nowhere"], "no such file or folder: nowhere"),
        (["--source", "empty"], "no frames to train on"),
        (["--source", folder, "--n-train", "13"], "there are only 12"),
    ):
        done = dcase("train", "oc22", *FAST, *options)
        assert done.code == 1
        assert message in done.message
    assert not list(tmp_path.glob("*.pt")) + list(tmp_path.glob("*.run"))


def test_a_shard_that_would_run_code_is_refused(dcase, tmp_path):
    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    (tmp_path / "bad").mkdir()
    environment = lmdb.open(str(tmp_path / "bad" / "data.0000.lmdb"), map_size=2**22, subdir=False)
    with environment.begin(write=True) as transaction:
        transaction.put(b"0", pickle.dumps(Data(y=Runs()), protocol=-1))
    environment.close()
    done = dcase("train", "oc22", "--source", "bad", *FAST)
    assert done.code == 1
    assert "refused: its pickle names" in done.message
    assert not (tmp_path / "run").exists()
