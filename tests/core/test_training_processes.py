"""Two processes train as one with the joint batch: the same losses, weights, errors and ends."""

import socket

import numpy as np
import pytest
import torch
from processes import finish, start
from training_problems import JOINT, Curve, Shared, joint_run, joint_worker, trainer, weights

from dcase.errors import TrainingError
from dcase.training.processes import Processes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The outcome of every run, by name and rank."""
    folder = tmp_path_factory.mktemp("joint")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [start(joint_worker, rank, port, folder) for rank in (0, 1)]
    try:
        assert [finish(worker) for worker in workers] == [0, 0]
    finally:
        for worker in workers:  # the other one of one that failed waits for it
            worker.kill()
    return {
        (name, rank): torch.load(folder / f"{name}{rank}.result")
        for name in [*JOINT, "resumed", "refused"]
        for rank in (0, 1)
    } | {"folder": folder}


def assert_close(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", ["plain", "plateau", "balance", "lbfgs", "ssbroyden"])
def test_two_are_as_one(outcomes, tmp_path, name):
    one = joint_run(name, tmp_path)
    for rank in (0, 1):
        two = outcomes[name, rank]
        if name != "ssbroyden":
            assert two["last_batch"] == 1  # which leaves the second process without samples
        assert (two["status"], two["steps"]) == (one["status"], one["steps"])
        np.testing.assert_allclose(two["losses"], one["losses"], rtol=2e-5)
        assert_close(two["weights"], one["weights"])
        assert two["best"] == pytest.approx(one["best"], rel=2e-4)
        assert two["term_weights"] == pytest.approx(one["term_weights"], rel=2e-4)
    assert outcomes[name, 0]["weights"] == outcomes[name, 1]["weights"]
    assert outcomes[name, 0]["losses"] == outcomes[name, 1]["losses"]


def test_random_signs_differ_and_weights_do_not(outcomes, tmp_path):
    # Each process draws its own signs: the estimate is another than that of one process alone.
    first, second = outcomes["ntk", 0], outcomes["ntk", 1]
    assert first["term_weights"] == second["term_weights"]
    assert first["weights"] == second["weights"]
    one = joint_run("ntk", tmp_path)["term_weights"]
    for name, weight in first["term_weights"].items():
        assert weight != one[name]
        assert weight == pytest.approx(one[name], rel=0.5)


def test_a_parameter_without_gradient_stays_without(outcomes):
    # With weight decay, a gradient of zero in its place would shrink it.
    for rank in (0, 1):
        assert outcomes["plain", rank]["idle_state"] == 0
        assert outcomes["plain", rank]["weights"][0] == [1.0, 1.0]


def test_only_the_first_process_writes(outcomes):
    for name in JOINT:
        assert (outcomes["folder"] / f"{name}0" / "metrics.csv").exists()
        assert not (outcomes["folder"] / f"{name}1").exists()


def test_nan_in_one_process_stops_all_and_names_the_frames_of_that_one(outcomes):
    first, second = outcomes["nan", 0]["error"], outcomes["nan", 1]["error"]
    assert first == second
    # Which batch, and which half of it, holds sample 4.
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0)).tolist()
    batch, place = divmod(order.index(4), 5)
    mine = order[5 * batch : 5 * batch + 5][place % 2 :: 2]
    points = ", ".join(map(str, mine))
    assert f"in epoch 1, batch {batch + 1} (points {points})" in first


def test_ctrl_c_in_one_process_ends_all(outcomes):
    first, second = outcomes["interrupt", 0], outcomes["interrupt", 1]
    assert first["status"] == second["status"] == "interrupted"
    assert first["steps"] == second["steps"] == 6
    assert (outcomes["folder"] / "interrupt0" / "state.pt").exists()


def test_validation_is_shared_out(outcomes):
    # 40 samples, 32 at a time: one batch each, at the end of each of 3 epochs.
    assert outcomes["plain", 0]["validated"] == 3 * 32
    assert outcomes["plain", 1]["validated"] == 3 * 8


def test_an_error_of_the_first_process_is_one_of_all(outcomes):
    for rank in (0, 1):
        assert "cannot resume: lr was 0.01, now 0.5" in outcomes["refused", rank]["error"]


@pytest.mark.parametrize("limit", ["time", "cpu"])
def test_a_limit_is_agreed(outcomes, limit):
    first, second = outcomes[limit, 0], outcomes[limit, 1]
    assert first["status"] == second["status"] == "time limit"
    assert first["steps"] == second["steps"] > 1
    assert first["cpu"] == second["cpu"] > 0  # of both together
    assert first["elapsed" if limit == "time" else "cpu"] > 0.25
    assert first["weights"] == second["weights"]


def test_resume_needs_the_state_in_the_first_process_only(outcomes, tmp_path):
    run = trainer(
        tmp_path, data=Curve(11), validation=Curve(40, shift=0.05), model=Shared(), **JOINT["plain"]
    )
    run.fit()
    run = trainer(
        tmp_path,
        data=Curve(11),
        validation=Curve(40, shift=0.05),
        model=Shared(),
        **{**JOINT["plain"], "epochs": 5},
    )
    result = run.fit(resume=True)
    for rank in (0, 1):
        assert outcomes["resumed", rank]["steps"] == result.steps == 15
        assert_close(outcomes["resumed", rank]["weights"], [w.tolist() for w in weights(run.model)])


def test_alone_everything_passes_through():
    alone = Processes()
    assert (alone.rank, alone.world) == (0, 1)
    assert alone.sum([1.0, 2.0]) == [1.0, 2.0]
    assert alone.gather("x") == ["x"]
    assert alone.from_first(lambda: 3) == 3

    def fail():
        raise TrainingError("no")

    with pytest.raises(TrainingError):
        alone.from_first(fail)
