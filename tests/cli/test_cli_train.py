"""``dcase train``: what it writes, says and refuses."""

import json
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from cli_inputs import ETHANOL, TINY, save_some, shipped_frames

from dcase.data.md17 import embedded_file
from dcase.data.molecules import get_molecule
from dcase.data.npz import read_npz
from dcase.data.splits import split
from dcase.potentials.potential import load_potential
from dcase.units import KCAL_PER_MOL


def weights(path):
    return load_potential(path).network.state_dict()


def same(one, two):
    return all(torch.equal(a, two[name]) for name, a in one.items())


@pytest.fixture
def run(tmp_path, model):
    """A copy of a finished run to resume or to protect."""
    shutil.copy(model, "run.pt")
    shutil.copytree(model.with_suffix(".run"), "run.run")
    return tmp_path / "run.pt"


@pytest.fixture
def frames(tmp_path):
    """Thirty labelled frames of a user's own."""
    dataset = read_npz(embedded_file(get_molecule("ethanol"))).subset(range(30))
    atoms = [dataset.frame(i) for i in range(30)]
    ase.io.write("mine.extxyz", atoms)
    return tmp_path / "mine.extxyz"


# ------------------------------------------------------------------------------- what it does


def test_default_name_and_every_option_of_a_run(dcase, empty_folder):
    done = dcase(
        "train", "md17", "--molecule", "asp", "--source", "xtb", "--n-train", "20", "--n-val", "5",
        "--epochs", "3", "--time-limit", "300", "--model", "schnet", "--size", "tiny",
        "--activation", "issp", "--recipe", "paper", "--seed", "7", "--hidden-channels", "20",
        "--num-interactions", "1", "--cutoff", "3.5", "--lr", "1e-3", "--test", "--rescale", "2.5",
        "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    # Results on standard output, progress on standard error.
    assert "validation (5)" in done.out
    assert "test (975)" in done.out
    assert "potential  aspirin_issp.pt" in done.out
    assert "epoch 3/3" in done.err
    assert "epoch" not in done.out.replace("after 3 epochs", "")
    assert "20 frames to train, 5 to validate, of 1000" in done.err
    potential = load_potential("aspirin_issp.pt")
    assert potential.hyper_parameters == {
        "hidden_channels": 20, "num_filters": 16, "num_interactions": 1, "num_gaussians": 12,
        "cutoff": 3.5, "activation": "issp", "filter_knots": 0,
    }  # fmt: skip
    assert potential.scale.constant == pytest.approx(2.5 * KCAL_PER_MOL)
    assert potential.level_of_theory == "GFN2-xTB"
    training = potential.metadata["recipe"]["training"]
    assert (training["epochs"], training["seed"], training["lr"]) == (3, 7, 1e-3)
    assert potential.metadata["recipe"]["name"] == "paper"
    assert potential.metadata["split"]["hash"] == split(1000, 20, 5, 7).hash()
    report = json.loads((empty_folder / "aspirin_issp.run" / "report.json").read_text())
    assert report["test"]["n_frames"] == 975
    assert report["form"] == "PyTorch - schnet without filter_knots has no compiled gradient"
    assert f"form    {report['form']}" in done.err.splitlines()


def test_quiet_prints_the_result_only(dcase):
    done = dcase(*ETHANOL, "--epochs", "1", "--quiet", "--out", "quiet.pt")
    assert done.code == 0
    assert done.err == ""
    assert "potential  quiet.pt" in done.out


def test_fractions_of_frames(dcase):
    done = dcase(
        "train", "md17", "-m", "ethanol", "--source", "xtb", "--size", "tiny", "--epochs", "1",
        "--n-train", "0.03", "--n-val", "0.01", "--out", "part.pt",
    )  # fmt: skip
    assert done.code == 0
    assert load_potential("part.pt").metadata["split"]["n_train"] == 30


def test_no_network_warns_and_goes_on(dcase, monkeypatch, tmp_path):
    from dcase.data import md17
    from dcase.data.download import DownloadError

    def refuse(*_args, **_options):
        raise DownloadError("no network: nobody is there")

    monkeypatch.setattr(md17, "fetch", refuse)
    done = dcase(
        "train", "md17", "-m", "aspirin", *TINY, "--epochs", "1", "--data-dir", "cache",
        "--out", "a.pt", "--quiet",
    )  # fmt: skip
    assert done.code == 0
    (warning,) = done.err.strip().splitlines()
    assert warning.startswith("WARNING: no network")
    assert "GFN2-xTB" in warning
    assert "NOT" in warning
    assert load_potential("a.pt").level_of_theory == "GFN2-xTB"


def test_own_frames(dcase, frames):
    done = dcase("train", "xyz", frames, "--size", "tiny", "--epochs", "1")
    assert done.code == 0, done.err
    assert load_potential("mine_irelu.pt").metadata["split"]["n_train"] == 28


def test_own_frames_with_forces_only(dcase, frames):
    atoms = ase.io.read(frames, ":")
    for a in atoms:
        a.arrays["push"] = a.get_forces()
        a.calc = None
    ase.io.write("push.extxyz", atoms)
    options = ["--size", "tiny", "--epochs", "1", "--out", "push.pt"]
    refused = dcase("train", "xyz", "push.extxyz", "--forces-key", "push", *options)
    assert refused.code == 1
    assert "frame 0 has no energy" in refused.message
    done = dcase(
        "train", "xyz", "push.extxyz", "--forces-key", "push", "--energy-weight", "0", *options
    )
    assert done.code == 0, done.err


def test_small_sets_train_on_shares(dcase):
    save_some("small.npz", "ethanol", 40)
    done = dcase(
        "train", "md17", "-m", "ethanol", "--source", "small.npz", "--size", "tiny", "--epochs",
        "1", "--out", "s.pt",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "38 frames to train, 2 to validate, of 40" in done.err


# --------------------------------------------------------------------- resuming and replacing


def test_resume_equals_an_uninterrupted_run(dcase, run):
    assert dcase(*ETHANOL, "--epochs", "4", "--schedule", "constant", "--out", "whole.pt").code == 0
    constant = ["--schedule", "constant", "--out", "parts.pt"]
    assert dcase(*ETHANOL, "--epochs", "2", *constant).code == 0
    done = dcase(*ETHANOL, "--epochs", "4", *constant, "--resume")
    assert done.code == 0
    assert same(weights("parts.pt"), weights("whole.pt"))


def test_ctrl_c_saves_and_exits_with_130(dcase, empty_folder, press_ctrl_c):
    metrics = empty_folder / "long.run" / "metrics.csv"
    press_ctrl_c(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    rate = ["--schedule", "constant", "--warmup-steps", "0"]  # whatever the number of epochs
    constant = [*rate, "--out", "long.pt"]
    done = dcase(*ETHANOL, "--epochs", "1000000", *constant)
    assert done.code == 130
    assert "--resume goes on" in done.err
    assert done.out == ""
    assert not (empty_folder / "long.pt").exists()
    epochs = metrics.read_text().count("\n")  # one more than the rows
    done = dcase(*ETHANOL, "--epochs", str(epochs), *constant, "--resume")
    assert done.code == 0
    assert dcase(*ETHANOL, "--epochs", str(epochs), *rate).code == 0
    assert same(weights("long.pt"), weights("ethanol_irelu.pt"))


def test_an_earlier_run_is_not_overwritten(dcase, run):
    before = run.read_bytes()
    done = dcase(*ETHANOL, "--epochs", "1", "--out", run)
    assert done.code == 1
    assert "--resume" in done.message
    assert "--overwrite" in done.message
    assert run.read_bytes() == before
    run.unlink()
    assert "--overwrite" in dcase(*ETHANOL, "--epochs", "1", "--out", run).message
    assert dcase(*ETHANOL, "--epochs", "1", "--out", run, "--overwrite").code == 0
    assert load_potential(run).metadata["training"]["epochs"] == 1


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--activation", "ssp"], "activation"),
        (["--lr", "0.1"], "lr was"),
        (["--n-train", "30"], "other split"),
        (["--energy-weight", "0.5"], "loss.energy_weight was"),
        (["--hidden-channels", "24"], "hidden_channels"),
    ],
)
def test_resume_with_changed_options(dcase, run, changed, named):
    before = run.read_bytes()
    done = dcase(*ETHANOL, "--epochs", "3", "--resume", "--out", run, *changed)
    assert done.code == 1
    assert named in done.message
    assert run.read_bytes() == before


def test_nothing_to_resume(dcase, empty_folder, run):
    done = dcase(*ETHANOL, "--epochs", "1", "--resume", "--out", "other.pt")
    assert done.code == 1
    assert done.message == "nothing to resume: there is no run in other.run"
    assert not (empty_folder / "other.run").exists()
    # A finished potential without its state must not be replaced by a resume either.
    shutil.rmtree("run.run")
    before = run.read_bytes()
    assert dcase(*ETHANOL, "--epochs", "1", "--resume", "--out", run).code == 1
    assert run.read_bytes() == before


def test_resume_of_a_run_killed_before_its_first_save(dcase, empty_folder):
    (empty_folder / "young.run").mkdir()
    command = (*ETHANOL, "--epochs", "1", "--out", "young.pt")
    assert dcase(*command).code == 0
    (empty_folder / "young.run" / "state.pt").unlink()
    (empty_folder / "young.pt").unlink()
    done = dcase(*ETHANOL, "--epochs", "1", "--resume", "--out", "young.pt")
    assert done.code == 0
    assert "starting from the beginning" in done.err


# ------------------------------------------------------------------------------ what it refuses


def test_a_number_that_is_none_is_refused_where_it_is_given(dcase, empty_folder):
    done = dcase(*ETHANOL, "--epochs", "1", "--lr", "nan")
    assert done.code == 2
    assert "Invalid value for '--lr': --lr must be a finite number, got nan" in done.err
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-m", "unobtainium"], "unknown molecule 'unobtainium'"),
        (["--source", "nowhere.npz"], "no such file: nowhere.npz"),
        (["--source", "folder"], "folder"),
        (["--source", "text.npz"], "text.npz is not an npz file"),
        (["--source", "nan.npz"], "NaN"),
        (["--labels", "rmd17"], "rmd17"),
        (["--model", "ann"], "unknown architecture 'ann'; there are: schnet"),
        (["--size", "huge"], "no size 'huge'; there are: large, md17, tiny"),
        (["--activation", "rellu"], "unknown activation 'rellu'; did you mean 'relu'?"),
        (["--initialization", "best"], "initialization must be default or lsuv"),
        (["--hidden-channels", "0"], "hidden_channels"),
        (["--cutoff", "0.5"], "no neighbour within 0.5 A"),
        (["--n-train", "5000"], "there are only 1000"),
        (["--n-train", "0"], "no frames to train on"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available here"),
        (["--recipe", "fast"], "no recipe 'fast'; there are: default, materials, paper"),
        (["--recipe", "nowhere.toml"], "no such file: nowhere.toml"),
        (["--recipe", "broken.toml"], "broken.toml: not valid TOML"),
        (["--recipe", "typo.toml"], "[training] has no entry 'learning'"),
        (["--epochs", "0"], "epochs"),
        (["--seed", "-1"], "seed"),
        (["--optimizer", "sgd"], "optimizer must be one of adam, adamw"),
        (["--schedule", "plateau", "--n-val", "0"], "needs validation samples"),
        (["--rescale", "big"], "rescale must be a number or one of"),
        (["--energy-weight", "0", "--forces-weight", "0"], "positive weight"),
        (["--out", "file/x.pt"], "file is not a folder"),
        (["--out", "x.run"], "use another ending"),
        (["--num-nodes", "2"], "torchrun"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(dcase, empty_folder, options, reason):
    (empty_folder / "folder").mkdir()
    (empty_folder / "file").write_text("in the way")
    (empty_folder / "text.npz").write_text("no npz")
    (empty_folder / "broken.toml").write_text("[training\n")
    (empty_folder / "typo.toml").write_text("[training]\nlearning = 1\n")
    data = shipped_frames("ethanol")
    np.savez("nan.npz", z=data["z"], R=data["R"], E=data["E"] * np.nan, F=data["F"])
    before = sorted(p.name for p in empty_folder.iterdir())
    done = dcase(*ETHANOL, "--epochs", "1", *options)
    assert done.code == 1
    assert reason in done.message
    assert done.out == ""
    assert sorted(p.name for p in empty_folder.iterdir()) == before


@pytest.mark.parametrize("count", ["10.5", "nan", "inf", "-3", "many"])
def test_impossible_counts(dcase, count):
    done = dcase(*ETHANOL, "--n-train", count)
    assert done.code == 2
    assert "neither a number of frames nor a fraction" in done.err


def test_divergence_names_the_batch_and_keeps_no_potential(dcase, empty_folder):
    done = dcase(*ETHANOL, "--epochs", "20", "--lr", "1e9", "--clip-norm", "0", "--out", "x.pt")
    assert done.code == 1
    assert "became NaN or infinite in epoch" in done.message
    assert "frames " in done.message
    assert not (empty_folder / "x.pt").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("2\n\nO 0 0 0\nH 0 0 1\n", "frame 0 has no energy"),
        ("2\nenergy=nan\nO 0 0 0\nH 0 0 1\n", "NaN"),
        ("2\nenergy=1\nO 0 0 0\nQq 0 0 1\n", "cannot read"),
    ],
)
def test_unusable_frames(dcase, empty_folder, content, reason):
    if content is not None:
        (empty_folder / "mine.xyz").write_text(content)
    done = dcase("train", "xyz", "mine.xyz", "--size", "tiny")
    assert done.code == 1
    assert reason in done.message


def test_train_another_architecture_names_it_and_warns_of_the_published_one(dcase):
    made = dcase(*ETHANOL[:6], "--size", "tiny", "--n-train", "8", "--n-val", "2", "--epochs", "1",
                 "--model", "dimenetpp", "--quiet")  # fmt: skip
    assert made.code == 0, made.err
    assert Path("ethanol_dimenet++_irelu.pt").exists()
    assert "caveats" not in dcase("info", "ethanol_dimenet++_irelu.pt").out
    letter = dcase(*ETHANOL[:6], "--size", "tiny", "--n-train", "8", "--n-val", "2", "--epochs",
                   "1", "--model", "dimenet++", "--variant", "paper", "--activation", "original",
                   "--quiet", "--out", "letter.pt")  # fmt: skip
    assert letter.code == 0, letter.err
    assert letter.err.count("WARNING: dimenet++, the published implementation: ") == 1
    assert "energy is not conserved" in letter.err
    assert "energy is not conserved" in " ".join(dcase("info", "letter.pt").out.split())
    potential = load_potential("letter.pt")
    assert potential.hyper_parameters["activation"] == "silu"
    assert potential.hyper_parameters["variant"] == "paper"


def test_train_switches_of_the_paper_are_independent(dcase):
    def train(*more):
        outcome = dcase(*ETHANOL[:6], "--size", "tiny", "--n-train", "8", "--n-val", "2",
                        "--epochs", "1", "--model", "cgcnn", "--quiet", "--overwrite", "--out",
                        "x.pt", *more)  # fmt: skip
        assert outcome.code == 0, outcome.err
        potential = load_potential("x.pt")
        norms = sum(isinstance(m, torch.nn.BatchNorm1d) for m in potential.modules())
        return potential.hyper_parameters, norms, potential.scale

    default, norms, scale = train()
    assert (default["activation"], default["placement"], norms) == ("irelu", "published", 0)
    assert (scale.rescale, scale.offset) == ("forces", "atomic")
    _, norms, scale = train("--keep-normalization", "--rescale", "paper", "--offset", "none")
    assert norms == 2
    assert (scale.rescale, scale.offset) == ("paper", "none")
    letter, norms, _ = train("--variant", "paper", "--denormalize", "--placement", "all")
    assert (letter["variant"], letter["placement"], norms) == ("paper", "all", 0)


# --------------------------------------------------------------------- what is wrong with a file

SMALL = ("--model", "schnet", "--size", "tiny", "--epochs", "1", "--device", "cpu")


@pytest.fixture
def spoilt(tmp_path):
    """Forty frames, one with a force of an unconverged calculation."""
    dataset = read_npz(embedded_file(get_molecule("ethanol"))).subset(range(40))
    atoms = [dataset.frame(i) for i in range(40)]
    atoms[17].calc.results["forces"][3] = [5e4, -2e4, 1e4]
    ase.io.write("spoilt.extxyz", atoms)
    return "spoilt.extxyz"


def test_outliers_are_named_or_left_out(dcase, spoilt):
    xyz = ("train", "xyz", spoilt, *SMALL, "--n-train", "32", "--n-val", "8", "--theory", "GFN2")
    done = dcase(*xyz, "--out", "a.pt")
    assert done.code == 0, done.err
    assert "frame 17 (5.477e+04) eV/A" in done.err
    assert "the label scale does not count them" in done.err
    assert "labels GFN2" in done.err
    assert load_potential("a.pt").level_of_theory == "GFN2"
    done = dcase(*xyz, "--drop-outliers", "--out", "b.pt")
    assert "frame's largest is 2.86: left out" in done.err
    assert done.code == 0, done.err
    report = json.loads(Path("b.run/report.json").read_text())
    assert report["n_train"] + report["n_val"] == 39
    # The same scale, though only one was trained without the frame.
    assert load_potential("a.pt").scale.constant == load_potential("b.pt").scale.constant < 10.0
    done = dcase(*xyz, "--max-force", "1000", "--out", "c.pt")
    assert "with a force component above 1000 eV/A: frame 17 (5e+04) eV/A: left out" in done.err
    done = dcase(*xyz, "--resume", "--out", "b.pt")
    assert "data.drop_outliers was True, now False" in done.message


def test_data_check(dcase, spoilt, frames):
    done = dcase("data", "check", spoilt, "--plot", "a.png", "--json", "a.json")
    assert done.code == 1
    assert "frame 17 (5.477e+04) eV/A" in done.out
    assert "1 of 40 frames are left out with --drop-outliers" in done.out
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path("a.json").read_text())
    assert found["outliers"] == [17]
    done = dcase("data", "check", frames)
    assert done.code == 0
    assert "nothing found" in done.out
    done = dcase("data", "check", frames, "--energy-unit", "kcal/mol")
    assert done.code == 1
    assert "units" in done.out
    assert "the figure is a PNG" in dcase("data", "check", frames, "--plot", "a.svg").message


def test_own_npz_files_are_read_by_every_command(dcase, tmp_path):
    dataset = read_npz(embedded_file(get_molecule("ethanol"))).subset(range(30))
    np.savez("own.npz", z=dataset.numbers[:9], R=dataset.positions.reshape(30, 9, 3),
             E=dataset.energies, F=dataset.forces.reshape(30, 9, 3), e_unit="eV")  # fmt: skip
    done = dcase("train", "xyz", "own.npz", *SMALL, "--out", "a.pt")
    assert done.code == 0, done.err
    assert "unknown" not in done.err + done.out
    done = dcase("train", "md17", "-m", "grain alcohol", "--source", "own.npz", *SMALL)
    assert done.code == 0, done.err
    assert Path("grain_alcohol_schnet_irelu.pt").exists()
    done = dcase("evaluate", "a.pt", "own.npz", "--json", "e.json", "--device", "cpu")
    assert "the potential was trained on 28 of the 30 frames" in done.err
    assert json.loads(Path("e.json").read_text())["frames_trained_on"] == 28
    atoms = [dataset.frame(i) for i in range(30)]
    ase.io.write("same.extxyz", atoms)
    done = dcase("evaluate", "a.pt", "same.extxyz", "--device", "cpu")
    assert "trained on 28 of the 30 frames" in done.err


def test_labels_that_are_not_trained_on_are_named(dcase, frames):
    done = dcase("train", "xyz", frames, *SMALL, "--target", "energy", "--out", "a.pt")
    assert done.code == 0, done.err
    assert "note    forces: in the data, not trained on" in done.err
