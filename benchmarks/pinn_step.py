"""Training steps of physics-informed networks beside DeepXDE 1.15, in one process.

    make peer-deepxde
    benchmarks/peers/.venv-deepxde/bin/python benchmarks/pinn_step.py step
    benchmarks/peers/.venv-deepxde/bin/python benchmarks/pinn_step.py accuracy --time-limit 600

``step``: PDEBench's three baseline problems (6 x 40 tanh network, its numbers of points, its loss
terms, weights 1, Adam). Both sides have the same weights, the same points (DeepXDE's) and the same
terms, in float32 on one thread; first all terms are compared. Then rounds of steps alternate, after
two rounds that do not count; the median counts. "process" is processor time, which a busy machine
disturbs less than wall time.

What is *not* the same is the point of it: DeepXDE evaluates the residual on the rows of the
conditions, too, and discards those; it evaluates a point again for each component that has an
initial condition there; and it differentiates by nested reverse mode. The baseline's terms are kept
with these repairs, without which nothing runs: the energy flux of the flow has no added axes (they
made it N x N, and DeepXDE 1.15 refuses that). Its wrong sign of the pressure gradient, residuals
summed before squaring and periodicity of the density, three times, are kept.

``accuracy``: both sides solve the same smooth advection problem and stop the clock when the nRMSE
against the exact solution (mean over the last 20 of 201 times but their first, as PDEBench
measures) is below a target. DeepXDE follows PDEBench's recipe: points as above, Adam 1e-3.

DeepXDE runs in an environment of its own; dcase is taken from the repository this file lies in.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Both are read when the libraries are loaded.
os.environ["DDE_BACKEND"] = "pytorch"
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deepxde as dde
import numpy as np
import torch
from torch import Tensor

from dcase.objective import Objective
from dcase.pinn.derivatives import choose_engine, wanted
from dcase.pinn.march import march
from dcase.pinn.networks import MLP
from dcase.pinn.problem import problem_of
from dcase.pinn.recipes import default_settings
from dcase.pinn.run import prepared
from dcase.pinn.sample import Sample
from dcase.pinn.settings import PinnSettings
from dcase.pinn.solver import build_network
from dcase.pinn.task import PinnTask
from dcase.training.quasi_newton import LBFGS

BETA, GAMMA = 0.1, 1.6666666667
DU, DV, K = 1e-3, 5e-3, 5e-3
POINTS = {"num_domain": 1000, "num_boundary": 1000, "num_initial": 5000}

Terms = dict[str, Tensor]


@dataclass
class Contest:
    """One problem on both sides.

    Attributes:
        data: DeepXDE's.
        sizes: Inputs and outputs of the network.
        terms: dcase's loss terms of a network, in DeepXDE's order.
    """

    data: Any
    sizes: tuple[int, int]
    terms: Callable[[MLP], Terms]


def initial_wave(x: np.ndarray) -> np.ndarray:
    """A smooth profile with period 1, of the kind PDEBench's advection files hold."""
    return 0.8 * np.sin(2 * np.pi * x + 0.4) + 0.5 * np.sin(4 * np.pi * x + 1.9)


def advection() -> Contest:
    """u_t + beta u_x = 0 on [0, 1] x [0, 2]."""
    geometry = dde.geometry.GeometryXTime(
        dde.geometry.Interval(0.0, 1.0), dde.geometry.TimeDomain(0.0, 2.0)
    )
    x = (np.arange(1024) + 0.5) / 1024
    start = np.stack([x, np.zeros_like(x)], 1)
    u0 = initial_wave(x)[:, None]

    def pde(x: Tensor, y: Tensor) -> Tensor:
        return dde.grad.jacobian(y, x, j=1) + BETA * dde.grad.jacobian(y, x, j=0)

    data = dde.data.TimePDE(
        geometry,
        pde,
        [
            dde.icbc.PointSetBC(start, u0),
            dde.icbc.PeriodicBC(geometry, 0, lambda _, on_boundary: on_boundary),
        ],
        **POINTS,
    )
    inside, ends = _tensor(data.train_x_all), _tensor(data.train_x_bc)
    targets = _tensor(u0)[:, 0]
    w = wanted(("u_t", "u_x"), ("x", "t"), ("u",))

    def terms(model: MLP) -> Terms:
        d = choose_engine(model, w)(model, inside, w)
        at_start, left, right = model(ends)[:, 0].split((1024, 1000, 1000))
        return {
            "pde": (d.u_t + BETA * d.u_x).square().mean(),
            "initial": (at_start - targets).square().mean(),
            "periodic": (left - right).square().mean(),
        }

    return Contest(data, (2, 1), terms)


def flow() -> Contest:
    """1D compressible flow on [0, 1] x [0, 1], the baseline's residual."""
    geometry = dde.geometry.GeometryXTime(
        dde.geometry.Interval(0.0, 1.0), dde.geometry.TimeDomain(0.0, 1.0)
    )
    x = (np.arange(1024) + 0.5) / 1024
    start = np.stack([x, np.zeros_like(x)], 1)
    wave = initial_wave(x)[:, None]
    values = [5.0 + wave, 0.3 * wave, 50.0 + 10.0 * wave]

    def pde(x: Tensor, y: Tensor) -> Tensor:
        rho, v, p = y[:, 0:1], y[:, 1:2], y[:, 2:3]
        energy = p / (GAMMA - 1.0) + 0.5 * rho * v**2
        flux = v * (energy + p)
        rho_t = dde.grad.jacobian(y, x, i=0, j=1)
        v_t = dde.grad.jacobian(y, x, i=1, j=1)
        v_x = dde.grad.jacobian(y, x, i=1, j=0)
        p_x = dde.grad.jacobian(y, x, i=2, j=0)
        momentum_x = dde.grad.jacobian(rho * v, x, i=0, j=0)
        energy_t = dde.grad.jacobian(energy, x, i=0, j=1)
        flux_x = dde.grad.jacobian(flux, x, i=0, j=0)
        return rho_t + momentum_x + rho * (v_t + v * v_x) - p_x + energy_t + flux_x

    periodic = [
        dde.icbc.PeriodicBC(geometry, 0, lambda _, on_boundary: on_boundary) for _ in range(3)
    ]
    initial = [dde.icbc.PointSetBC(start, f, component=i) for i, f in enumerate(values)]
    data = dde.data.TimePDE(geometry, pde, [*initial, *periodic], **POINTS)
    inside, rows = _tensor(data.train_x_all), data.train_x_bc
    # The points of the three initial conditions are the same, and so are those of the periodic
    # ones (compared here).
    for i in range(1, 3):
        assert np.array_equal(rows[:1024], rows[i * 1024 : (i + 1) * 1024])
        assert np.array_equal(rows[3072:5072], rows[3072 + i * 2000 : 5072 + i * 2000])
    ends = _tensor(np.concatenate([rows[:1024], rows[3072:5072]]))
    targets = _tensor(np.concatenate(values, 1))
    names = ("rho", "v", "p", "rho_t", "rho_x", "v_t", "v_x", "p_t", "p_x")
    w = wanted(names, ("x", "t"), ("rho", "v", "p"))

    def terms(model: MLP) -> Terms:
        d = choose_engine(model, w)(model, inside, w)
        g = 1.0 / (GAMMA - 1.0)
        half_v2 = 0.5 * d.v * d.v
        momentum = d.rho * d.v
        energy_t = g * d.p_t + half_v2 * d.rho_t + momentum * d.v_t
        energy_x = g * d.p_x + half_v2 * d.rho_x + momentum * d.v_x
        enthalpy = (g + 1.0) * d.p + half_v2 * d.rho
        residual = (
            d.rho_t
            + (d.rho_x * d.v + d.rho * d.v_x)
            + (d.rho * (d.v_t + d.v * d.v_x) - d.p_x)
            + energy_t
            + (d.v_x * enthalpy + d.v * (energy_x + d.p_x))
        )
        at_start, left, right = model(ends).split((1024, 1000, 1000))
        initial = (at_start - targets).square().mean(0)
        periodic = (left[:, 0] - right[:, 0]).square().mean()
        return {
            "pde": residual.square().mean(),
            "initial rho": initial[0],
            "initial v": initial[1],
            "initial p": initial[2],
            "periodic 1": periodic,
            "periodic 2": periodic,
            "periodic 3": periodic,
        }

    return Contest(data, (2, 3), terms)


def diffusion_reaction() -> Contest:
    """2D diffusion-reaction on [-1, 1]^2 x [0, 5]."""
    geometry = dde.geometry.GeometryXTime(
        dde.geometry.Rectangle((-1.0, -1.0), (1.0, 1.0)), dde.geometry.TimeDomain(0.0, 5.0)
    )
    axis = -1.0 + (np.arange(128) + 0.5) / 64
    x, y = np.meshgrid(axis, axis)
    start = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], 1)
    noise = np.random.default_rng(0).standard_normal((2, x.size, 1))
    corner = np.stack([np.full(38, axis[0]), np.tile(axis[:2], 19), np.repeat(np.arange(19.0), 2)])
    corner = corner.T / np.array([1.0, 1.0, 4.0])
    truth = np.random.default_rng(1).standard_normal((2, 38, 1))

    def pde(x: Tensor, y: Tensor) -> Tensor:
        u, v = y[:, 0:1], y[:, 1:2]
        u_t = dde.grad.jacobian(y, x, i=0, j=2)
        v_t = dde.grad.jacobian(y, x, i=1, j=2)
        lap = [
            dde.grad.hessian(y, x, component=f, i=0, j=0)
            + dde.grad.hessian(y, x, component=f, i=1, j=1)
            for f in range(2)
        ]
        activator = u_t - DU * lap[0] - (u - u**3 - K - v)
        return activator + (v_t - DV * lap[1] - (u - v))

    conditions = [
        dde.icbc.NeumannBC(geometry, lambda _: 0.0, lambda _, on_boundary: on_boundary),
        *[dde.icbc.PointSetBC(start, noise[i], component=i) for i in range(2)],
        *[dde.icbc.PointSetBC(corner, truth[i], component=i) for i in range(2)],
    ]
    data = dde.data.TimePDE(geometry, pde, conditions, **POINTS)
    inside, rows, counts = _tensor(data.train_x_all), data.train_x_bc, data.num_bcs
    walls = rows[: counts[0]]
    normals = _tensor(geometry.boundary_normal(walls))
    walls_t = _tensor(walls)
    ends = _tensor(np.concatenate([start, corner]))
    targets = _tensor(np.concatenate([np.concatenate(noise, 1), np.concatenate(truth, 1)]))
    fields = (("x", "y", "t"), ("u", "v"))
    w = wanted(("u", "v", "u_t", "v_t", "lap_u", "lap_v"), *fields)
    slopes = wanted(("u_x", "u_y"), *fields)

    def terms(model: MLP) -> Terms:
        d = choose_engine(model, w)(model, inside, w)
        activator = d.u_t - DU * d.lap_u - (d.u - d.u * d.u * d.u - K - d.v)
        inhibitor = d.v_t - DV * d.lap_v - (d.u - d.v)
        b = choose_engine(model, slopes)(model, walls_t, slopes)
        start_error, corner_error = (model(ends) - targets).square().split((len(start), 38))
        initial, observed = start_error.mean(0), corner_error.mean(0)
        return {
            "pde": (activator + inhibitor).square().mean(),
            "no flux": (b.u_x * normals[:, 0] + b.u_y * normals[:, 1]).square().mean(),
            "initial u": initial[0],
            "initial v": initial[1],
            "data u": observed[0],
            "data v": observed[1],
        }

    return Contest(data, (3, 2), terms)


CONTESTS = {"advection": advection, "flow": flow, "diffusion-reaction": diffusion_reaction}


def _tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(array, dtype=np.float32))


def deepxde_model(contest: Contest) -> Any:
    """The baseline's network with Adam 1e-3, ready to step."""
    n_in, n_out = contest.sizes
    net = dde.nn.FNN([n_in, *[40] * 6, n_out], "tanh", "Glorot normal")
    model = dde.Model(contest.data, net)
    model.compile("adam", lr=1e-3, verbose=0)
    return model


def twin(net: Any, contest: Contest) -> MLP:
    """Our network with the same weights."""
    model = MLP(*contest.sizes)
    with torch.no_grad():
        for ours, theirs in zip(model.layers, net.linears, strict=True):
            ours.weight.copy_(theirs.weight)
            ours.bias.copy_(theirs.bias)
    return model


def compare_terms(theirs: Any, ours: MLP, contest: Contest) -> dict[str, list[float]]:
    """Each loss term on both sides.

    Raises:
        SystemExit: They differ by more than rounding: then times mean nothing.
    """
    data = contest.data
    losses = theirs.outputs_losses_train(data.train_x, data.train_y, None)[1].tolist()
    found = {n: float(v.detach()) for n, v in contest.terms(ours).items()}
    result = {n: [a, b] for (n, b), a in zip(found.items(), losses, strict=True)}
    for name, (a, b) in result.items():
        if abs(a - b) > 2e-4 * max(abs(a), 1e-6):
            sys.exit(f"term '{name}' differs: DeepXDE {a:.8g}, dcase {b:.8g}")
    return result


def time_steps(steps: dict[str, Callable[[], None]], rounds: int, per_round: int) -> dict[str, Any]:
    """Median milliseconds of a step, by side; the sides take turns."""
    wall: dict[str, list[float]] = {name: [] for name in steps}
    process: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 2):
        for name, step in steps.items():
            before = time.perf_counter(), time.process_time()
            for _ in range(per_round):
                step()
            if i >= 2:
                wall[name].append(1e3 * (time.perf_counter() - before[0]) / per_round)
                process[name].append(1e3 * (time.process_time() - before[1]) / per_round)
    theirs, ours = steps
    ratios = [a / b for a, b in zip(process[theirs], process[ours], strict=True)]
    return {
        "wall_ms": {name: statistics.median(v) for name, v in wall.items()},
        "process_ms": {name: statistics.median(v) for name, v in process.items()},
        "ratio_process": statistics.median(ratios),
        "ratio_process_range": [min(ratios), max(ratios)],
        "ratio_wall": statistics.median(
            [a / b for a, b in zip(wall[theirs], wall[ours], strict=True)]
        ),
    }


def our_step(model: MLP, contest: Contest) -> Callable[[], None]:
    """One step of Adam on the sum of all terms."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)  # as the trainer does

    def step() -> None:
        loss = torch.stack(list(contest.terms(model).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def run_step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare terms, then times."""
    results: dict[str, Any] = {}
    for name in arguments.problems:
        contest = CONTESTS[name]()
        theirs = deepxde_model(contest)
        ours = twin(theirs.net, contest)
        terms = compare_terms(theirs, ours, contest)
        x = contest.data.train_x

        def their_step(theirs: Any = theirs, x: np.ndarray = x) -> None:
            theirs.train_step(x, None, None)

        steps = {"deepxde": their_step, "dcase": our_step(ours, contest)}
        result = time_steps(steps, arguments.rounds, arguments.steps)
        after = compare_after(theirs, ours, contest)
        results[name] = {**result, "rows_deepxde": len(x), "terms": terms, "loss_after": after}
        p = result["process_ms"]
        low, high = result["ratio_process_range"]
        print(
            f"{name:<20} DeepXDE {p['deepxde']:8.1f} ms   dcase {p['dcase']:7.1f} ms"
            f"   ratio {result['ratio_process']:5.2f} ({low:.2f} to {high:.2f})"
            f"   wall {result['ratio_wall']:5.2f}",
            flush=True,
        )
        for term, (a, b) in terms.items():
            print(f"    {term:<14} {a:.6e}  {b:.6e}")
        print(f"    after the same number of steps: loss {after[0]:.5g} and {after[1]:.5g}")
    return results


def compare_after(theirs: Any, ours: MLP, contest: Contest) -> list[float]:
    """Total losses at the end of the rounds: equally long walks from the same start."""
    x, y = contest.data.train_x, contest.data.train_y
    total = float(theirs.outputs_losses_train(x, y, None)[1].sum())
    return [total, float(sum(contest.terms(ours).values()).detach())]


def nrmse(predict: Callable[[np.ndarray], np.ndarray]) -> float:
    """Against the exact solution on PDEBench's grid, last 19 times."""
    x, times = (np.arange(1024) + 0.5) / 1024, np.arange(182, 201) * 0.01
    errors = []
    for t in times:
        exact = initial_wave(x - BETA * t)
        found = predict(np.stack([x, np.full_like(x, t)], 1))[:, 0]
        errors.append(np.sqrt(np.mean((found - exact) ** 2)) / np.sqrt(np.mean(exact**2)))
    return float(np.mean(errors))


def time_to(
    step: Callable[[], None],
    error: Callable[[], float],
    target: float,
    limit: float,
    every: int = 50,
) -> dict[str, Any]:
    """Train until ``error() <= target``; looking at the error is not on the clock.

    Args:
        step: One step.
        error: Looked at after each ``every`` steps.
        target: Where to stop.
        limit: Seconds of wall time, looking included, after which to give up.
        every: See ``error``.
    """
    wall = process = 0.0
    began, steps, history = time.perf_counter(), 0, []
    while True:
        before = time.perf_counter(), time.process_time()
        for _ in range(every):
            step()
        wall += time.perf_counter() - before[0]
        process += time.process_time() - before[1]
        steps += every
        value = error()
        history.append([steps, round(process, 3), value])
        if value <= target or time.perf_counter() - began > limit:
            break
    return {
        "reached": value <= target,
        "nrmse": value,
        "steps": steps,
        "wall_s": wall,
        "process_s": process,
        "history": history,
    }


def deepxde_accuracy(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """PDEBench's recipe."""
    torch.manual_seed(seed)
    contest = advection()
    model = deepxde_model(contest)
    x = contest.data.train_x

    def error() -> float:
        return nrmse(lambda p: model.predict(p.astype(np.float32)))

    return time_to(
        lambda: model.train_step(x, None, None), error, arguments.target, arguments.time_limit
    )


def same_recipe_accuracy(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The same recipe and start in dcase: what the faster step alone brings."""
    torch.manual_seed(seed)
    contest = advection()
    model = twin(deepxde_model(contest).net, contest)

    @torch.no_grad()
    def error() -> float:
        return nrmse(lambda p: model(_tensor(p)).numpy())

    return time_to(our_step(model, contest), error, arguments.target, arguments.time_limit)


def wave_sample() -> Sample:
    """The same problem as a reference on PDEBench's grid."""
    x, t = (np.arange(1024) + 0.5) / 1024, np.arange(201) * 0.01
    u = initial_wave(x[:, None] - BETA * t)
    axes, domain = {"x": x, "t": t}, {"x": (0.0, 1.0), "t": (0.0, 2.0)}
    return Sample("advection", axes, {"u": u}, domain, {"beta": BETA}, ("x",), "exact")


def hard_conditions_accuracy(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """A coordinate network: exact conditions, 2000 points, float64, L-BFGS from the start."""
    settings = PinnSettings(seed=seed)
    problem = prepared(problem_of(wave_sample()), settings)
    began = time.process_time()
    model = build_network(problem, settings)
    task = PinnTask(problem, settings.points, seed=seed)
    batch = task.batch()
    model.body.scale_on(lambda: model(batch.interior))
    objective = Objective(task, task.objective_terms())
    optimizer = LBFGS(model.parameters(), settings.history)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective.reduce(objective.residuals(model, batch))[0]
        loss.backward()
        return loss

    @torch.no_grad()
    def error() -> float:
        return nrmse(lambda p: model(torch.as_tensor(p, dtype=torch.float64)).numpy())

    setting_up = time.process_time() - began
    found = time_to(
        lambda: optimizer.step(closure), error, arguments.target, arguments.time_limit, every=5
    )
    return {**found, "process_s": found["process_s"] + setting_up}


def modes_accuracy(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The default recipe, a network of modes; the clock runs to its end."""
    problem = problem_of(wave_sample())
    settings = default_settings(problem).changed(seed=seed)
    began = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        outcome = march(prepared(problem, settings), settings, folder)
    wall, process = time.perf_counter() - began[0], time.process_time() - began[1]

    def predict(points: np.ndarray) -> np.ndarray:
        return outcome.solution(torch.as_tensor(points))["u"].numpy()[:, None]

    value = nrmse(predict)
    return {
        "reached": value <= arguments.target,
        "nrmse": value,
        "steps": outcome.steps,
        "wall_s": wall,
        "process_s": process,
    }


ACCURACY = {
    "deepxde": deepxde_accuracy,
    "dcase, same recipe": same_recipe_accuracy,
    "dcase, exact conditions": hard_conditions_accuracy,
    "dcase, modes": modes_accuracy,
}


def run_accuracy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time to the target, each side by itself."""
    results: dict[str, Any] = {}
    for seed in arguments.seeds:
        for name, solve in ACCURACY.items():
            result = solve(arguments, seed)
            results.setdefault(name, []).append({"seed": seed, **result})
            said = "reached" if result["reached"] else "NOT reached"
            print(
                f"seed {seed}  {name:<24} nRMSE {result['nrmse']:.3f} {said} after"
                f" {result['steps']} steps, {result['process_s']:.1f} s of processor time"
                f" ({result['wall_s']:.1f} s wall)",
                flush=True,
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    modes = parser.add_subparsers(dest="mode", required=True)
    step = modes.add_parser("step", help="time of a training step")
    step.add_argument("--problems", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    step.add_argument("--rounds", type=int, default=8)
    step.add_argument("--steps", type=int, default=5, help="in a round")
    accuracy = modes.add_parser("accuracy", help="time to a given error on advection")
    accuracy.add_argument("--target", type=float, default=0.1, help="nRMSE")
    accuracy.add_argument("--time-limit", type=float, default=600.0, help="seconds, each side")
    accuracy.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dde.config.set_random_seed(0)
    results = (run_step if arguments.mode == "step" else run_accuracy)(arguments)
    if arguments.out:
        about = {
            "deepxde": dde.__version__,
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "load": os.getloadavg(),
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"about": about, arguments.mode: results}, indent=1))


if __name__ == "__main__":
    main()
