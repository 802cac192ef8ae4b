"""Training of problems: accuracy on closed solutions, exact resumes, folders, metrics."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from pinn_problems import advection_sample, flow_sample, reaction_sample

from dcase.errors import CheckpointError, DataError, OptionError
from dcase.pinn.conditions import Initial
from dcase.pinn.domains import Domain
from dcase.pinn.initial import FunctionState, GridState
from dcase.pinn.metrics import evaluate
from dcase.pinn.paper import corner_data, paper_problem, paper_settings, transposed
from dcase.pinn.problem import PDEProblem, problem_of
from dcase.pinn.run import Source, prepared, problem_from_file, read_run, train
from dcase.pinn.sample import Sample
from dcase.pinn.settings import PinnSettings, PointSettings, from_dict, parse_stages
from dcase.pinn.solver import residual_size, solve
from dcase.pinn.task import PinnTask
from dcase.training.progress import Progress

QUICK = PinnSettings(
    width=16, depth=2, modes=3, optimizer="adam:60,lbfgs:40", lr=5e-3, smooth=0,
    points=PointSettings(interior=256, boundary=32, initial=64),
)  # fmt: skip


def nrmse(outcome, sample):
    prediction = outcome.solution.on_grid(sample.axes)
    return {n: e["nrmse"] for n, e in evaluate(prediction, sample)["fields"].items()}


@pytest.mark.physics
@pytest.mark.parametrize(
    ("changes", "bar"),
    [
        ({}, 0.06),
        ({"windows": 2}, 0.03),
        ({"refine": 1}, 0.03),
        pytest.param({"activation": "isilu", "init": "lsuv"}, 0.1, marks=pytest.mark.slow),
        ({"dtype": "float32", "optimizer": "adam:250"}, 0.25),
        ({"causal": 1.0, "optimizer": "adam:200,lbfgs:60"}, 0.1),
    ],
    ids=lambda v: str(v),
)
def test_advection_is_solved(tmp_path, changes, bar):
    """A wave of two sines; persistence is off by about 1.2 at these times."""
    sample = advection_sample()
    settings = QUICK.changed(**changes)
    outcome = solve(prepared(problem_of(sample), settings), settings, tmp_path)
    assert nrmse(outcome, sample)["u"] < bar
    assert outcome.terms["advection"] < 0.1


def test_soft_conditions_are_learned(tmp_path):
    sample = advection_sample()
    settings = QUICK.changed(hard="none", optimizer="adam:200,lbfgs:60", depth=3)
    outcome = solve(prepared(problem_of(sample), settings), settings, tmp_path)
    assert list(outcome.terms) == ["advection", "initial u", "periodic u"]
    assert outcome.terms["initial u"] < 0.3 * np.mean(sample.fields["u"][:, 0] ** 2)


def test_windows_join_and_solution_is_kept(tmp_path):
    sample = advection_sample()
    settings = QUICK.changed(windows=3)
    outcome = solve(prepared(problem_of(sample), settings), settings, tmp_path)
    edges = [w.end for w in outcome.solution.windows]
    np.testing.assert_allclose(edges, [2 / 3, 4 / 3, 2.0])
    for before, after in zip(outcome.solution.windows, outcome.solution.windows[1:], strict=False):
        x = torch.from_numpy(sample.axes["x"])
        at = torch.stack([x, torch.full_like(x, before.end)], 1)
        torch.testing.assert_close(before.model(at), after.model(at), rtol=0, atol=1e-12)


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "stop_after",
    [pytest.param(25, marks=pytest.mark.slow), 75, pytest.param(110, marks=pytest.mark.slow)],
)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, stop_after):
    sample = advection_sample()
    settings = QUICK.changed(windows=2, optimizer="adam:40,lbfgs:20", resample=0, refine=0)
    problem = prepared(problem_of(sample), settings)
    whole = solve(problem, settings, tmp_path / "whole")
    settings = settings.changed(checkpoint_every=1e-9)
    count = 0

    def step(progress: Progress) -> None:
        nonlocal count
        count += 1
        if count == stop_after:
            raise Stop

    with pytest.raises(Stop):
        solve(problem, settings, tmp_path / "parts", on_step=step)
    parts = solve(problem, settings, tmp_path / "parts", resume=True)
    for one, other in zip(whole.solution.windows, parts.solution.windows, strict=True):
        for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(a, b)
    assert whole.steps == parts.steps
    assert whole.terms == parts.terms


def test_a_resume_with_other_settings_is_refused(tmp_path):
    problem = prepared(problem_of(advection_sample()), QUICK)

    def step(progress: Progress) -> None:
        if progress.step == 20:
            raise Stop

    with pytest.raises(Stop):
        solve(problem, QUICK.changed(checkpoint_every=1e-9), tmp_path, on_step=step)
    with pytest.raises(CheckpointError, match="lr"):
        solve(problem, QUICK.changed(lr=1e-4), tmp_path, resume=True)


def test_points_are_drawn_anew_as_a_function_of_the_epoch():
    settings = PointSettings(interior=32, resample=2, steps_per_epoch=1)
    tasks = [PinnTask(problem_of(advection_sample()), settings, seed=4) for _ in range(2)]
    first = tasks[0].batch().interior
    tasks[0].redraw(1)
    assert torch.equal(first, tasks[0].batch().interior)
    tasks[0].redraw(2)
    assert not torch.equal(first, tasks[0].batch().interior)
    tasks[1].redraw(3)  # straight there, as a resume does
    assert torch.equal(tasks[1].batch().interior,
                       tasks[0].batch().interior)  # fmt: skip


def test_residuals_in_other_units_weigh_alike():
    """Weights make the weighted residuals of one state independent of the units of the fields."""
    sample = flow_sample()
    settings = PointSettings(interior=64)
    weights = PinnTask(problem_of(sample), settings).term_weights()
    scaled = {n: a * (100.0 if n in ("rho", "p") else 1.0) for n, a in sample.fields.items()}
    other = PinnTask(problem_of(replace(sample, fields=scaled)), settings).term_weights()
    for name in ("mass", "momentum", "energy"):
        assert math.isclose(other[name] * 100.0**2, weights[name], rel_tol=1e-6)
    plain = PinnTask(problem_of(sample), PointSettings(scaled=False)).term_weights()
    assert set(plain.values()) == {1.0}


def test_weights_by_name_and_kind():
    points = PointSettings(weights={"initial": 100.0, "momentum": 2.0}, scaled=False)
    weights = PinnTask(problem_of(flow_sample()), points).term_weights()
    assert weights["initial rho"] == weights["initial p"] == 100.0
    assert weights["momentum"] == 2.0
    assert weights["mass"] == weights["periodic v"] == 1.0
    wrong = PinnTask(problem_of(flow_sample()), PointSettings(weights={"mess": 1.0}))
    with pytest.raises(OptionError, match=r"'mess'.*momentum"):
        wrong.objective_terms()


@pytest.mark.physics
def test_causal_weights_follow_the_definition():
    sample = advection_sample()
    problem = problem_of(sample).hardened(["initial", "periodic"])
    points = PointSettings(interior=200, scaled=False)
    task = PinnTask(problem, points, causal=2.0, causal_chunks=4, engine="jet")
    from dcase.pinn.solver import build_network

    model = build_network(problem, QUICK)
    batch = task.batch()
    weighted = task.terms(model, batch, True)["advection"].detach()
    plain = PinnTask(problem, points).terms(model, batch, True)["advection"].detach()
    t = batch.interior[:, 1]
    earlier = 0.0
    for chunk in range(4):
        inside = (t >= 0.5 * chunk) & (t < 0.5 * (chunk + 1))
        expected = math.exp(-2.0 * earlier) * plain[inside] ** 2
        torch.testing.assert_close(weighted[inside] ** 2, expected)
        earlier += float((plain[inside] ** 2).mean())


@pytest.mark.physics
def test_refinement_adds_points_where_residuals_are_large(tmp_path):
    sample = advection_sample()
    settings = QUICK.changed(refine=1, optimizer="adam:30")
    problem = prepared(problem_of(sample), settings)
    seen = []
    solve(problem, settings, tmp_path,
          on_fit=lambda fit, trainer: seen.append(trainer.objective.problem))  # fmt: skip
    assert [len(t.batch().interior) for t in seen] == [256, 256 + 64]
    from dcase.pinn.solver import build_network

    model = build_network(problem, settings)
    candidates = problem.domain.sample(500, "sobol", 1)
    size = residual_size(problem, model, candidates, settings)
    direct = seen[0].residuals_at(model, candidates)["advection"].abs().detach()
    ratio = size / direct
    assert ratio.max() - ratio.min() < 1e-9 * ratio.max()


# ------------------------------------------------------------------------------------------------
# The letter


def test_the_letter_has_the_baselines_points_and_terms():
    expected = {
        "advection": (7000, 1024, ["advection", "initial u", "periodic u"]),
        "cfd": (7000, 1024, ["f1+f2+f3", "initial rho", "initial v", "initial p", "periodic p",
                             "periodic rho", "periodic v"]),
        "diffusion-reaction": (7000, 16 * 16, ["f1+f2", "no-flux u", "initial u", "initial v",
                                               "observed u", "observed v"]),
    }  # fmt: skip
    samples = [advection_sample(nx=1024), flow_sample(nx=1024), reaction_sample()]
    for sample in samples:
        rows, initial, terms = expected[sample.task]
        settings = paper_settings(sample.task)
        task = PinnTask(paper_problem(sample), settings.points, joint=True)
        assert task.term_names == terms
        assert len(task.batch().interior) == rows
        assert set(task.term_weights().values()) == {1.0}
        sizes = task.batch().passes[0].sizes
        assert initial in sizes
        assert settings.optimizer == (
            "adam:100" if sample.task.startswith("diff") else "adam:15000"
        )


def test_the_letters_flow_is_half_the_domain_and_thinks_of_density_only():
    problem = paper_problem(flow_sample())
    assert problem.domain.intervals["x"] == (0.0, 1.0)
    assert problem_of(flow_sample()).domain.intervals["x"] == (-1.0, 1.0)
    assert problem.conditions[1].wanted(problem.domain) == ["rho"]


def test_the_letters_corner_is_38_points_of_the_transposed_data():
    sample = reaction_sample()
    sample.fields["u"][1, 0] += 5.0
    observed = corner_data(transposed(sample))
    assert len(observed.at) == 38
    assert len(np.unique(observed.at[:, 0])) == 1
    assert len(np.unique(observed.at[:, 1])) == 2
    np.testing.assert_array_equal(observed.values["u"][19:], sample.fields["u"][1, 0, _times(21)])


def _times(nt):
    return np.linspace(0, nt - 1, 19).round().astype(int)


def test_batch_norm_runs_all_points_together(tmp_path):
    sample = advection_sample(nx=32)
    settings = QUICK.changed(batch_norm=True, optimizer="adam:5", hard="none", activation="irelu")
    outcome = solve(prepared(problem_of(sample), settings), settings, tmp_path)
    assert outcome.steps == 10  # steps come in tens
    assert all(math.isfinite(v) for v in outcome.terms.values())


# ------------------------------------------------------------------------------------------------
# Folders


def write_problem(path, body=""):
    path.write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            import torch
            from dcase.pinn.conditions import Initial, Periodic
            from dcase.pinn.domains import Domain
            from dcase.pinn.initial import FunctionState
            from dcase.pinn.problem import PDEProblem

            @dataclass(frozen=True)
            class Heat:
                coordinates = ("x", "t")
                fields = ("u",)

                def residuals(self, d):
                    return {"heat": d.u_t - 0.05 * d.u_xx}

            domain = Domain({"x": (0.0, 1.0), "t": (0.0, 0.5)})
            start = FunctionState({"u": lambda x: torch.sin(2 * torch.pi * x)}, domain.intervals)
            conditions = [Initial(state=start), Periodic(coordinate="x", fields=("u",))]
            problem = PDEProblem("heat", Heat(), domain, conditions)
            """
        )
        + body
    )
    return path


@pytest.mark.physics
def test_a_users_own_equation(tmp_path):
    """The heat equation: the sine decays at 0.05 (2 pi)^2."""
    path = write_problem(tmp_path / "heat.py")
    source = Source(str(path))
    settings = QUICK.changed(optimizer="adam:60,lbfgs:80")
    metrics, outcome = train(source, settings, tmp_path / "run", pictures=True)
    assert metrics["fields"] == {}  # no reference: terms only
    assert (tmp_path / "run" / "loss.png").exists()
    saved = read_run(tmp_path / "run")
    at = torch.tensor([[0.25, 0.0], [0.25, 0.5], [0.75, 0.5]], dtype=torch.float64)
    decay = math.exp(-0.05 * (2 * math.pi) ** 2 * 0.5)
    expected = torch.tensor([1.0, decay, -decay], dtype=torch.float64)
    torch.testing.assert_close(saved.solution(at)["u"], expected, rtol=0, atol=0.02)
    torch.testing.assert_close(saved.solution(at)["u"], outcome.solution(at)["u"])


def test_files_of_problems_that_do_not_define_one(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(OptionError, match="must define `problem`"):
        problem_from_file(tmp_path / "empty.py")
    with pytest.raises(OptionError, match=r"broken.py: ZeroDivisionError"):
        problem_from_file(tmp_path / "broken.py")
    with pytest.raises(OptionError, match="no such file"):
        problem_from_file(tmp_path / "missing.py")
    with pytest.raises(OptionError, match=r"unknown equation 'wave'; choose from advection"):
        Source("wave").problem()
    with pytest.raises(OptionError, match="needs --file"):
        Source("cfd").problem()
    with pytest.raises(OptionError, match="--paper is for"):
        Source("burgers", paper=True).problem()


def test_equation_and_domain_must_fit():
    problem = problem_of(advection_sample())
    with pytest.raises(OptionError, match="coordinates"):
        PDEProblem("p", problem.equation, Domain({"y": (0, 1), "t": (0, 1)}), [])
    state = FunctionState({"w": lambda x: x}, {"x": (0, 1)})
    with pytest.raises(OptionError, match="about w"):
        PDEProblem("p", problem.equation, problem.domain, [Initial(state=state)])
    with pytest.raises(OptionError, match="unknown task"):
        problem_of(replace(advection_sample(), task="wave"))
    with pytest.raises(OptionError, match="empty"):
        Domain({"x": (1.0, 1.0)})
    with pytest.raises(OptionError, match="last"):
        Domain({"t": (0.0, 1.0), "x": (0.0, 1.0)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam:x"}, "OPTIMIZER:STEPS"),
        ({"optimizer": "newton"}, "unknown optimizer"),
        ({"optimizer": "adam:0"}, "at least one step"),
        ({"optimizer": "adam:120%"}, "at most 100%"),
        ({"dtype": "float16"}, "float32, float64"),
        ({"activation": "wave"}, "unknown activation"),
        ({"hard": "corner"}, "hard conditions"),
        ({"sampler": "halton"}, "unknown sampler"),
        ({"interior": 0}, "interior"),
        ({"windows": 0}, "windows"),
        ({"causal": -1.0}, "causal"),
        ({"wight": 3}, "unknown setting"),
        ({"weights": {"initial": -1.0}}, "weight of initial"),
    ],
)
def test_impossible_settings_say_so(changes, message):
    with pytest.raises(OptionError, match=message):
        PinnSettings().changed(**changes)


def test_settings_survive_json():
    settings = QUICK.changed(weights={"initial": 3.0}, time_limit=5.0)
    assert from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert [s.steps for s in parse_stages("adam:10,lbfgs")] == [10, None]


def test_a_share_without_a_time_limit_is_one_of_the_steps(tmp_path):
    settings = QUICK.changed(optimizer="adam:25%,lbfgs:5", max_steps=40)
    outcome = solve(prepared(problem_of(advection_sample()), settings), settings, tmp_path)
    assert outcome.steps == 10 + 5


def test_balanced_weights_go_on_into_the_next_stage(tmp_path):
    settings = QUICK.changed(
        hard="none", optimizer="adam:30,lbfgs:3", balance="gradient-norm", balance_every=10
    )
    seen = []
    problem = prepared(problem_of(advection_sample()), settings)
    solve(problem, settings, tmp_path, on_fit=lambda fit, trainer: seen.append(trainer))
    after = seen[0].term_weights
    assert after != {n: t.weight for n, t in seen[0].objective.terms.items()}
    assert {n: t.weight for n, t in seen[1].objective.terms.items()} == after


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["time_limit", "cpu_limit"])
def test_a_limit_is_shared_among_windows_and_stages(tmp_path, limit):
    settings = QUICK.changed(optimizer="adam:50%,lbfgs", windows=2, **{limit: 2.0})
    outcome = solve(prepared(problem_of(advection_sample()), settings), settings, tmp_path)
    assert len(outcome.solution.windows) == 2
    assert outcome.status == "time limit"
    assert len(outcome.fits) == 4


def test_folders_without_runs_say_so(tmp_path):
    with pytest.raises(DataError, match="no run"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        read_run(tmp_path)
    with pytest.raises(OptionError, match="nothing to resume"):
        train(Source("burgers"), QUICK, tmp_path / "none", resume=True)
    with pytest.raises(OptionError, match="damaged.*--overwrite"):
        train(Source("burgers"), QUICK, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(OptionError, match="not empty"):
        train(Source("burgers"), QUICK, tmp_path / "mine")


def test_smoothing_keeps_what_is_resolved():
    x = (np.arange(256) + 0.5) / 256
    values = np.sin(2 * np.pi * x) + 0.1 * np.sin(2 * np.pi * 100 * x)
    state = GridState({"x": x}, {"u": values}, {"x": (0.0, 1.0)}, ("x",)).smoothed(16)
    np.testing.assert_allclose(state.values["u"], np.sin(2 * np.pi * x), atol=1e-6)


def test_samples_know_their_shapes():
    sample = advection_sample(nx=16, nt=5)
    with pytest.raises(DataError):
        Sample(**{**vars(sample), "fields": {"u": np.zeros((5, 16))}})
