"""``dcase pinn`` and ``dcase reproduce table3`` as a user calls them."""

import json
import math

import h5py
import numpy as np
import pytest

SMALL = ["--width", "12", "--depth", "2", "--interior", "128", "--quiet", "--network", "mlp"]


@pytest.fixture
def waves(dcase):
    """Two samples of advection on a coarse grid."""
    options = ["--samples", "2", "--nx", "64", "--nt", "41", "--scheme", "exact", "--quiet"]
    assert dcase("pinn", "data", "advection", *options, "--out", "f.hdf5").code == 0
    return "f.hdf5"


@pytest.mark.pictures
def test_train_evaluate_plot_list(dcase, waves, empty_folder):
    done = dcase(
        "pinn", "train", "advection", "--file", waves, "--sample", "-1", "--activation", "isilu",
        "--optimizer", "adam:40,lbfgs:20", "--seed", "3", "--out", "d", *SMALL,
    )  # fmt: skip
    assert done.code == 0, done.err
    metrics = json.loads((empty_folder / "d" / "metrics.json").read_text())
    errors = metrics["fields"]["u"]
    for name in ("rmse", "nrmse", "crmse", "max_error", "brmse", "frmse_low", "frmse_mid",
                 "frmse_high", "mse", "relative_l2"):  # fmt: skip
        assert math.isfinite(errors[name])
    assert list(metrics["terms"]) == ["advection"]
    assert set(metrics["baselines"]) == {"zero", "mean", "persistence"}
    assert metrics["baselines"]["zero"]["u"]["nrmse"] == pytest.approx(1.0)
    assert metrics["conservation"]
    assert "nRMSE" in done.out
    assert "persistence" in done.out

    again = dcase("pinn", "evaluate", "d", "--json", "e.json")
    assert again.code == 0
    assert json.loads((empty_folder / "e.json").read_text())["fields"] == metrics["fields"]
    drawn = dcase("pinn", "plot", "d")
    for name in ("space_time", "slices", "loss", "error_time", "spectrum", "conservation"):
        assert f"d/{name}.png" in drawn.out
        assert (empty_folder / "d" / f"{name}.png").stat().st_size > 5000
    listed = dcase("pinn", "list", "d", waves)
    assert f"nRMSE {errors['nrmse']:.4g}" in listed.out
    assert "2 samples" in listed.out
    assert "burgers" in dcase("pinn", "list").out


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(dcase, waves, empty_folder):
    results = []
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        options = ["--optimizer", "adam:20", "--seed", seed, "--out", out]
        dcase("pinn", "train", "advection", "--file", waves, *options, *SMALL)
        results.append(json.loads((empty_folder / out / "metrics.json").read_text())["fields"])
    assert results[0] == results[1] != results[2]


def test_resume_knows_the_settings_and_what_may_not_change(dcase, waves, empty_folder):
    options = ["--optimizer", "adam:10", "--quiet", "--interior", "64"]
    train = ("pinn", "train", "advection", "--file", waves, "--network", "mlp")
    assert dcase(*train, "--width", "8", "--depth", "2", *options).code == 0
    run = empty_folder / "advection-tanh"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    again = dcase(*train, "--resume", "--quiet")  # the default folder, the settings of its run
    assert again.code == 0, again.err
    assert "advection-tanh was finished already" in again.err
    for more, words in (
        (["--lr", "0.5"], ["lr was 0.001, now 0.5", "--overwrite"]),
        (["--sample", "1"], ["source.sample was 0, now 1"]),
        (["--time-limit", "5"], ["finished"]),
    ):
        refused = dcase(*train, "--resume", "--quiet", *more)
        assert refused.code == 1
        for word in words:
            assert word in refused.message
    assert "holds a run" in dcase(*train, "--quiet").message
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_soft_conditions_paper_and_weights(dcase, waves, empty_folder):
    done = dcase("pinn", "train", "advection", "--file", waves, "--paper", "--optimizer", "adam:2",
               "--steps-per-epoch", "1", "--interior", "20", "--at-start", "20", "--on-walls", "20",
               "--boundary", "20", "--weight", "initial=10", "--out", "p", "--quiet")  # fmt: skip
    assert done.code == 0, done.err
    metrics = json.loads((empty_folder / "p" / "metrics.json").read_text())
    assert list(metrics["terms"]) == ["advection", "initial u", "periodic u"]
    assert metrics["settings"]["points"]["weights"] == {"initial": 10.0}
    assert metrics["settings"]["dtype"] == "float32"
    assert metrics["steps"] == 2


@pytest.mark.slow
def test_ready_problems_need_no_file(dcase, empty_folder):
    done = dcase("pinn", "train", "burgers", "--optimizer", "adam:10", "--out", "b", *SMALL)
    assert done.code == 0, done.err
    metrics = json.loads((empty_folder / "b" / "metrics.json").read_text())
    assert math.isfinite(metrics["fields"]["u"]["nrmse"])


@pytest.mark.slow
def test_table3_in_small(dcase, waves, empty_folder):
    done = dcase("reproduce", "table3", "--paper", "--file", waves, "--steps", "2", "--out", "r",
               "--quiet")  # fmt: skip
    assert done.code == 0, done.err
    assert "| irelu | " in done.out
    assert "[0.99]" in done.out
    assert "(persistence)" in done.out
    rows = (empty_folder / "r" / "table3-paper.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 + 3
    assert "L initial u" in rows[0]
    assert "paper L initial u" in rows[0]
    kept = dcase("reproduce", "table3", "--paper", "--file", waves, "--steps", "2", "--out", "r")
    assert kept.err.count("kept from before") == 4


def test_compare_activations(dcase, waves, empty_folder):
    done = dcase("pinn", "compare", "advection", "--file", waves, "--activations", "tanh,irelu",
               "--seeds", "2", "--optimizer", "adam:10", "--out", "c", *SMALL)  # fmt: skip
    assert done.code == 0, done.err
    assert "| tanh | " in done.out
    assert (empty_folder / "c" / "comparison.png").exists()
    rows = (empty_folder / "c" / "comparison.csv").read_text().splitlines()
    assert len(rows) == 3


def broken(path, what):
    with h5py.File(path, "r+") as file:
        if what == "key":
            del file["x-coordinate"]
        elif what == "nan":
            file["tensor"][1, 5, 7] = np.nan
        elif what == "half":
            values = file["tensor"][:].astype(np.float16)
            del file["tensor"]
            file["tensor"] = values


@pytest.mark.parametrize(
    ("what", "arguments", "words"),
    [
        ("", ["advection", "--file", "f.hdf5", "--sample", "7"], ["sample 7", "0"]),
        ("key", ["advection", "--file", "f.hdf5"], ["x-coordinate"]),
        ("nan", ["advection", "--file", "f.hdf5", "--sample", "1"], ["NaN"]),
        ("half", ["advection", "--file", "f.hdf5"], ["float16"]),
        ("", ["cfd", "--file", "f.hdf5"], ["advection"]),
        ("", ["advection", "--file", "missing.hdf5"], ["missing.hdf5"]),
        ("", ["advection"], ["--file"]),
        ("", ["wave"], ["unknown equation 'wave'", "burgers"]),
        ("", ["burgers", "--dtype", "float16"], ["float32"]),
        ("", ["burgers", "--activation", "wave"], ["unknown activation"]),
        ("", ["burgers", "--weight", "initial"], ["TERM=NUMBER"]),
        ("", ["burgers", "--weight", "mess=3", "--optimizer", "adam:1"], ["no term 'mess'"]),
        ("", ["burgers", "--resume", "--out", "none"], ["run.json"]),
        ("", ["burgers", "--viscosity", "1", "--optimizer", "adam:1"], ["viscosity"]),
        ("", ["burgers", "--optimizer", "newton"], ["unknown optimizer"]),
        ("", ["advection", "--file", "f.hdf5", "--depth", "3"], ["--depth", "--network mlp"]),
        ("", ["burgers", "--march", "1:1:8"], ["--march", "--network modes"]),
        ("", ["burgers", "--network", "modes"], ["dirichlet"]),
        (
            "",
            ["advection", "--file", "f.hdf5", "--optimizer", "adam:5,lbfgs"],
            ["one optimizer", "--network mlp"],
        ),
    ],
)
def test_bad_input_gets_one_line(dcase, waves, empty_folder, what, arguments, words):
    if what:
        broken(waves, what)
    outcome = dcase("pinn", "train", *arguments, "--quiet")
    assert outcome.code == 1
    for word in words:
        assert word in outcome.message


def test_other_files_are_refused(dcase, empty_folder):
    (empty_folder / "text.hdf5").write_text("not HDF5")
    outcome = dcase("pinn", "train", "advection", "--file", "text.hdf5")
    assert outcome.code == 1
    assert "HDF5" in outcome.message
    assert dcase("pinn", "evaluate", "nothing").code == 1
    assert dcase("pinn", "train", "burgers", "--resume", "--overwrite").code == 2
