"""``dcase dae`` and ``dcase reproduce dae-*`` as a user calls them."""

import json
import math

import pytest

from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.trajectories import write

TINY = ["--n-train", "20", "--n-test", "20", "--n-validation", "10", "--quiet"]
FAST = [*TINY, "--layers", "2", "--hidden", "8"]


@pytest.fixture(scope="session")
def swing(tmp_path_factory):
    """A short pendulum trajectory: a little more than what pairs leave out at its start."""
    path = tmp_path_factory.mktemp("dae") / "swing.h5"
    return str(write(path, simulate_pendulum(1300, substeps=2)))


@pytest.fixture
def train(dcase, swing):
    return lambda *more: dcase("dae", "train", "pendulum", "--data", swing, *more)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_train_evaluate_plot(dcase, train, swing, empty_folder):
    done = train("--epochs", "1", "--seed", "3", "--out", "d", *FAST)
    assert done.code == 0, done.err
    metrics = metrics_of(empty_folder / "d")
    for errors in (metrics, metrics["identity"], metrics["constant_velocity"]):
        for name in ("mae_cm", "max_violation", "mean_violation"):
            assert math.isfinite(errors[name])
    assert metrics["max_violation"] < 1e-4
    assert metrics["constant_velocity"]["max_violation"] > 1e-2
    assert metrics["settings"]["seed"] == 3
    assert f"{metrics['mae_cm']:.3g}" in done.out
    assert "identity" in done.out
    assert f"--data {swing}" in done.out

    again = dcase("dae", "evaluate", "d", "--data", swing, "--rollout", "4", "--json", "e.json")
    assert again.code == 0, again.err
    anew = json.loads((empty_folder / "e.json").read_text())
    assert anew["mae_cm"] == pytest.approx(metrics["mae_cm"], rel=1e-9)
    rows = anew["rollout"]["network"]
    assert [row["applications"] for row in rows] == [1, 2, 4]
    assert max(row["max_violation"] for row in rows) < 1e-4
    assert anew["rollout"]["unseen"] is True
    assert "Roll-outs" in again.out

    drawn = dcase("dae", "plot", "d", "--data", swing, "--out", "p")
    assert drawn.code == 0, drawn.err
    for name in ("training", "snapshots", "violations", "rollout"):
        assert (empty_folder / "p" / f"{name}.png").stat().st_size > 5000
        assert (empty_folder / "d" / f"{name}.png").stat().st_size > 5000


def test_resume_overwrite_and_other_settings(train, empty_folder):
    assert train("--epochs", "1", "--out", "d", *FAST).code == 0
    refused = train("--epochs", "1", "--out", "d", *FAST)
    assert refused.code == 1
    assert "--overwrite" in refused.message
    more = train("--epochs", "2", "--resume", "--out", "d", "--quiet")
    assert more.code == 0, more.err
    assert metrics_of(empty_folder / "d")["epochs"] == 2
    assert metrics_of(empty_folder / "d")["settings"]["hidden"] == 8
    other = train("--lr", "0.5", "--resume", "--out", "d", "--quiet")
    assert other.code == 1
    assert "--lr" in other.message
    assert train("--epochs", "1", "--overwrite", "--out", "d", *FAST).code == 0
    assert metrics_of(empty_folder / "d")["epochs"] == 1


def test_default_folder_names_the_run(train, empty_folder):
    done = train("--epochs", "1", "--method", "none", *FAST)
    assert done.code == 0, done.err
    assert (empty_folder / "dae-pendulum-none-k20-n20" / "metrics.json").exists()
    metrics = metrics_of(empty_folder / "dae-pendulum-none-k20-n20")
    assert metrics["max_violation"] > 1e-4


def test_runs_are_compared(dcase, train, swing, empty_folder):
    for method in ("none", "manifold"):
        assert train("--epochs", "1", "--method", method, "--out", method, *FAST).code == 0
    options = ["--data", swing, "--rollout", "4", "--out", "c.png"]
    done = dcase("dae", "plot", "none", "manifold", *options)
    assert done.code == 0, done.err
    assert (empty_folder / "c.png").stat().st_size > 5000
    assert train("--epochs", "1", "--k", "10", "--out", "short", *FAST).code == 0
    refused = dcase("dae", "plot", "none", "short", "--data", swing, "--rollout", "4")
    assert refused.code == 1
    assert "10, 20" in refused.message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "wave"], ["manifold", "wave"]),
        (["--network", "equivariant"], ["mimetic"]),
        (["--network", "wave"], ["mechanical"]),
        (["--k", "0"], ["k must be"]),
        (["--k", "290"], ["frames"]),
        (["--n-train", "100000"], ["frames"]),
        (["--eta", "-1"], ["eta"]),
        (["--gamma", "-1"], ["gamma"]),
        (["--projection", "wave"], ["newton", "wave"]),
        (["--projection-gradient", "wave"], ["implicit", "wave"]),
        (["--tolerance", "-1"], ["tolerance"]),
        (["--dtype", "float16"], ["float32"]),
        (["--split", "wave"], ["blocks"]),
        (["--size", "huge"], ["small"]),
        (["--lr", "0"], ["lr"]),
        (["--data", "missing.h5"], ["missing.h5"]),
        (["--resume", "--out", "nothing"], ["nothing to resume"]),
    ],
)
def test_bad_values_get_one_line(train, arguments, words):
    outcome = train(*TINY, *arguments)
    assert outcome.code == 1
    for word in words:
        assert word in outcome.message


def test_other_mistakes(dcase, swing, empty_folder):
    assert dcase("dae", "train", "spring").code == 2
    assert dcase("dae", "train", "pendulum", "--resume", "--overwrite").code == 2
    missing = dcase("dae", "evaluate", "none")
    assert missing.code == 1
    assert "dcase dae train" in missing.message
    wrong = dcase("dae", "train", "water", "--data", swing, *TINY)
    assert "pendulum" in wrong.message
    bad = dcase("reproduce", "dae-table1", "--methods", "wave")
    assert "wave" in bad.message
    assert dcase("reproduce", "dae-table1", "--k", "a").code == 2


def test_table1_in_small_keeps_its_runs(dcase, swing, empty_folder):
    command = [
        "reproduce", "dae-table1", "--k", "20", "--n-train", "20", "--seeds", "2", "--methods",
        "none,manifold", "--network", "mimetic", "--epochs", "1", "--n-test", "20",
        "--n-validation", "10", "--data", swing, "--out", "r",
    ]  # fmt: skip
    done = dcase(*command)
    assert done.code == 0, done.err
    assert "[1/4] k=20 n=20 No constraints seed 0" in done.err
    assert "| Manifold, mimetic (ours) | " in done.out
    assert "(constant velocity)" in done.out
    found = json.loads((empty_folder / "r" / "dae-table1.json").read_text())
    errors = [run["mae_cm"] for run in found["runs"] if run["label"] == "No constraints"]
    row = found["rows"][0]
    assert row["mae_cm mean"] == pytest.approx(sum(errors) / 2)
    assert row["mae_cm std"] == pytest.approx(abs(errors[0] - errors[1]) / math.sqrt(2))
    assert (empty_folder / "r" / "dae-table1.png").stat().st_size > 5000
    again = dcase(*command)
    assert again.err.count("kept from before") == 4
    assert again.out == done.out


def test_figure8_and_projection_in_small(dcase, swing, empty_folder):
    options = ["--epochs", "2", "--n-test", "20", "--n-validation", "10", "--data", swing]
    done = dcase("reproduce", "dae-figure8", "--strengths", "10", "--seeds", "1", *options)
    assert done.code == 0, done.err
    found = json.loads((empty_folder / "reproduce" / "dae-figure8.json").read_text())
    assert [row["epoch"] for row in found["runs"][0]["history"]] == [1, 2]
    assert (empty_folder / "reproduce" / "dae-figure8.png").stat().st_size > 5000
    again = dcase("reproduce", "dae-figure8", "--strengths", "10", "--seeds", "1", *options)
    assert "kept from before" in again.err
    study = dcase("reproduce", "dae-projection", "--system", "pendulum", "--data", swing, "-q",
                  "--batch", "2")  # fmt: skip
    assert study.code == 0, study.err
    assert study.out.count("| newton |") == 3
