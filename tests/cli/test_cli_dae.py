"""``dcase dae`` and ``dcase reproduce dae-*`` as a user calls them."""

import json
import math
import signal

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


@pytest.fixture
def no_pictures(monkeypatch):
    """They take longer than the training here."""
    from dcase.dae import plots

    monkeypatch.setattr(plots, "draw_run", lambda *arguments, **options: [])


@pytest.fixture
def ctrl_c_after(monkeypatch):
    """``ctrl_c_after(steps)``: SIGINT in that step, once."""
    from dcase.cli.progress import TrainingDisplay

    shown, left = TrainingDisplay.__call__, [0]

    def call(display, progress):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        shown(display, progress)

    monkeypatch.setattr(TrainingDisplay, "__call__", call)

    def arm(steps):
        left[0] = steps

    return arm


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.pictures
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


def test_resume_overwrite_and_other_settings(train, empty_folder, no_pictures):
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


def test_ctrl_c_and_resume_give_what_an_undisturbed_run_gives(
    train, empty_folder, no_pictures, ctrl_c_after
):
    options = ["--epochs", "3", *FAST]
    assert train("--out", "whole", *options).code == 0
    ctrl_c_after(3)
    stopped = train("--out", "d", *options)
    assert stopped.code == 130
    # The signal comes at the end of a step; the next one sees it.
    assert stopped.err == "stopped after 4 steps; the same command with --resume goes on\n"
    assert stopped.out == ""
    assert not (empty_folder / "d" / "metrics.json").exists()
    done = train("--out", "d", "--resume", *options)
    assert done.code == 0, done.err
    whole, again = metrics_of(empty_folder / "whole"), metrics_of(empty_folder / "d")
    for found in (whole, again):
        found.pop("elapsed_s"), found.pop("cpu_s")
    assert again == whole


def test_ctrl_c_outside_the_training_loop(train, empty_folder, monkeypatch):
    from dcase.dae import plots

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "draw_run", interrupted)
    stopped = train("--epochs", "1", "--out", "d", *FAST)
    assert stopped.code == 130
    assert stopped.err == "stopped; the same command with --resume goes on\n"


def test_a_model_of_an_earlier_version_is_refused_in_one_line(dcase, swing, empty_folder):
    from dcase import checkpoint
    from dcase.dae.settings import default_settings

    settings = default_settings("pendulum").to_dict()
    (empty_folder / "run.json").write_text(json.dumps({"settings": settings, "data": ""}))
    checkpoint.save("model.pt", "dae", 1, {"settings": settings, "scales": {}, "weights": {}})
    for command in ("evaluate", "plot"):
        refused = dcase("dae", command, ".", "--data", swing)
        assert refused.code == 1
        assert "earlier version" in refused.message
        assert "train it again" in refused.message


def test_other_chains_and_other_time_steps(dcase, train, swing, empty_folder, no_pictures):
    assert train("--epochs", "1", "--out", "d", *FAST).code == 0
    three = str(write("three.h5", simulate_pendulum(1300, n=3, substeps=2)))
    other = dcase("dae", "evaluate", "d", "--data", three)
    assert other.code == 1
    assert "d is a network of 5 bodies, the trajectory has 3" in other.message
    slow = str(write("slow.h5", simulate_pendulum(1300, interval=0.02, substeps=2)))
    for command in (
        ["dae", "train", "pendulum", "--data", slow, *TINY],
        ["reproduce", "dae-table1", "--data", slow, "--out", "r"],
    ):
        refused = dcase(*command)
        assert refused.code == 1
        assert "--interval 0.01" in refused.message
    again = dcase("dae", "train", "pendulum", "--data", three, "--epochs", "1", "--out", "e", *FAST)
    assert again.code == 0, again.err


def test_a_roll_out_that_runs_away_says_so(dcase, train, swing, empty_folder, no_pictures):
    """Steps of 1e10 leave a network whose next prediction is no number."""
    wild = ["--epochs", "1", "--lr", "1e10", "--method", "none", "--network", "mechanical"]
    done = train("--out", "d", *wild, *FAST)
    assert done.code == 0, done.err
    again = dcase("dae", "evaluate", "d", "--data", swing, "--rollout", "4")
    assert again.code == 0, again.err
    assert "the roll-out ran away" in again.out


def test_default_folder_names_the_run(train, empty_folder, no_pictures):
    done = train("--epochs", "1", "--method", "none", *FAST)
    assert done.code == 0, done.err
    assert (empty_folder / "dae-pendulum-none-k20-n20" / "metrics.json").exists()
    metrics = metrics_of(empty_folder / "dae-pendulum-none-k20-n20")
    assert metrics["max_violation"] > 1e-4


@pytest.mark.slow
@pytest.mark.pictures
def test_runs_are_compared(dcase, train, swing, empty_folder, no_pictures):
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


@pytest.mark.pictures
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


@pytest.mark.slow
def test_projection_in_small(dcase, swing, empty_folder, monkeypatch):
    from dcase.dae.experiments import projection_study

    monkeypatch.setattr(projection_study, "_milliseconds", lambda call, repeats: 1.0)
    study = dcase("reproduce", "dae-projection", "--system", "pendulum", "--data", swing, "-q",
                  "--batch", "2")  # fmt: skip
    assert study.code == 0, study.err
    assert study.out.count("| newton |") == 3


def small(command, swing, *more):
    return [
        "reproduce", command, "--seeds", "1", "--epochs", "2", "--n-test", "20", "--n-validation",
        "10", "--data", swing, *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.pictures
def test_ctrl_c_in_an_experiment_and_the_same_command_again(
    dcase, swing, empty_folder, ctrl_c_after
):
    """A run of 2 epochs of 10 steps: stopped in the first epoch, then in the second."""
    command = small("dae-figure8", swing, "--strengths", "1", "--quiet")
    whole = dcase(*command, "--out", "whole")
    assert whole.code == 0, whole.err
    for steps in (3, 10):
        ctrl_c_after(steps)
        stopped = dcase(*command, "--out", "r")
        assert stopped.code == 130
        assert stopped.err == "stopped; the same command goes on from here\n"
        assert stopped.out == ""
    again = dcase(*command, "--out", "r")
    assert again.code == 0, again.err
    assert again.out == whole.out.replace("whole/", "r/")
    found = [
        json.loads((empty_folder / folder / "dae-figure8.json").read_text())
        for folder in ("whole", "r")
    ]
    for results in found:
        for run in results["runs"]:
            assert [row["epoch"] for row in run["history"]] == [1, 2]
            run.pop("elapsed_s"), run.pop("cpu_s")
    assert found[0] == found[1]
    assert (empty_folder / "r" / "dae-figure8.png").stat().st_size > 5000
    command.remove("--quiet")
    assert "kept from before" in dcase(*command, "--out", "r").err


def test_ctrl_c_while_an_experiment_writes_its_table(dcase, swing, empty_folder, monkeypatch):
    from dcase.dae.experiments import tables

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tables, "write_table", interrupted)
    command = small("dae-table1", swing, "--k", "20", "--n-train", "20", "--methods", "none", "-q")
    stopped = dcase(*command, "--network", "mimetic")
    assert stopped.code == 130
    assert stopped.err == "stopped; the same command goes on from here\n"
