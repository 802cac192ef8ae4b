"""Quasi-Newton optimisers against theory (Wolfe, Newton, Broyden's family) and against SciPy."""

import io
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from dcase.errors import DivergedError, OptionError
from dcase.training.line_search import Trial, strong_wolfe
from dcase.training.quasi_newton import IDLE, LBFGS
from dcase.training.self_scaled import GENEROUS, KINDS, LARGEST, SelfScaled, broyden_numbers

EPSILON = torch.finfo(torch.float64).eps
MAKERS = {
    "lbfgs": lambda p, **options: LBFGS(p, **options),
    **{kind: lambda p, kind=kind, **options: SelfScaled(p, kind, **options) for kind in KINDS},
}


# ---------------------------------------------------------------- the line search


def more_thuente(number):
    """Test functions of More and Thuente (ACM TOMS 20, 286, 1994): loss and slope at a step."""

    def yanai(b1, b2):
        g1, g2 = math.hypot(1, b1) - b1, math.hypot(1, b2) - b2

        def f(a):
            left, right = math.hypot(1 - a, b2), math.hypot(a, b1)
            return g1 * left + g2 * right, -g1 * (1 - a) / left + g2 * a / right

        return f

    def kinked(a, b=0.01, n=39):
        if a <= 1 - b:
            base, slope = 1 - a, -1.0
        elif a >= 1 + b:
            base, slope = a - 1, 1.0
        else:
            base, slope = (a - 1) ** 2 / (2 * b) + b / 2, (a - 1) / b
        wave = 2 * (1 - b) / (n * math.pi)
        arg = n * math.pi * a / 2
        return base + wave * math.sin(arg), slope + (1 - b) * math.cos(arg)

    return {
        1: lambda a: (-a / (a * a + 2), (a * a - 2) / (a * a + 2) ** 2),
        2: lambda a: (
            (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4,
            5 * (a + 0.004) ** 4 - 8 * (a + 0.004) ** 3,
        ),
        3: kinked,
        4: yanai(0.001, 0.001),
        5: yanai(0.01, 0.001),
        6: yanai(0.001, 0.01),
    }[number]


def line(f, record=None):
    def evaluate(step):
        if record is not None:
            record.append(step)
        return Trial(step, *f(step), torch.empty(0))

    return evaluate


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("first", [1e-3, 1e-1, 1e1, 1e3])
@pytest.mark.parametrize(("c1", "c2"), [(1e-4, 0.9), (1e-4, 0.1), (1e-3, 1e-3)])
def test_search_ends_at_strong_wolfe(number, first, c1, c2):
    f, steps = more_thuente(number), []
    start = line(f)(0.0)
    found = strong_wolfe(line(f, steps), start, first, epsilon=EPSILON, c1=c1, c2=c2)
    assert found.loss <= start.loss + c1 * found.step * start.slope
    assert abs(found.slope) <= c2 * abs(start.slope)
    assert len(steps) < 25


def test_cubics_are_found_at_once():
    steps = []
    for f, minimum in [
        (lambda a: ((a - 0.3) ** 2, 2 * (a - 0.3)), 0.3),
        (lambda a: (a**3 - 3 * a, 3 * a * a - 3), 1.0),
    ]:
        for first in (2 * minimum, 0.5 * minimum):
            steps.clear()
            start = line(f)(0.0)
            found = strong_wolfe(line(f, steps), start, first, epsilon=EPSILON, c2=1e-9)
            assert found.step == pytest.approx(minimum, rel=1e-9)
            assert len(steps) == 2


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e300])
def test_search_steps_back_from_what_is_no_number(bad):
    def f(a):
        return ((a - 1e-3) ** 2, 2 * (a - 1e-3)) if a < 2e-3 else (bad, bad)

    found = strong_wolfe(line(f), line(f)(0.0), 1.0, epsilon=EPSILON, c2=0.1)
    assert found.step == pytest.approx(1e-3, rel=0.1)


def test_below_rounding_slopes_decide():
    # All losses near the minimum are the same number; the minimum is found all the same.
    def f(a):
        return 1.0 + 1e-18 * (a - 0.7) ** 2, 2e-18 * (a - 0.7)

    assert f(0.0)[0] == f(0.7)[0]
    found = strong_wolfe(line(f), line(f)(0.0), 10.0, epsilon=EPSILON, c2=1e-3)
    assert found.step == pytest.approx(0.7, rel=1e-2)


def test_no_step_where_the_slope_lies():
    def f(a):
        return a, 1.0 if a else -1.0

    assert strong_wolfe(line(f), line(f)(0.0), 1.0, epsilon=EPSILON) is None


def test_too_few_evaluations_give_a_decrease():
    def f(a):  # steep at first, then flat for long: c2 is not met before 1000
        return -math.sqrt(a + 1e-6), -0.5 / math.sqrt(a + 1e-6)

    found = strong_wolfe(line(f), line(f)(0.0), 1e-6, epsilon=EPSILON, c2=1e-6, most=3)
    assert found.step > 0
    assert found.loss < f(0.0)[0]


# ---------------------------------------------------------------- functions to minimise


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def quadratic(n, condition, seed=0):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    matrix = torch.tensor(q @ np.diag(np.geomspace(1, condition, n)) @ q.T)
    return lambda x: 0.5 * x @ (matrix @ x), matrix


def start_of(n, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(n))


class Run:
    """Minimises a function of one vector; ``trail`` has point, gradient and loss of each step."""

    def __init__(self, name, f, x0, **options):
        self.f, self.x = f, nn.Parameter(x0.clone())
        self.optimizer = MAKERS[name]([self.x], **options)
        self.evaluations, self.trail = 0, []

    def closure(self):
        self.evaluations += 1
        self.optimizer.zero_grad()
        loss = self.f(self.x)
        loss.backward()
        return loss

    def to(self, gradient, most=3000):
        while len(self.trail) < most:
            loss = self.optimizer.step(self.closure)
            g = self.optimizer.memory["gradient"].clone()
            self.trail.append((self.x.detach().clone(), g, loss))
            if g.abs().max() <= gradient or self.optimizer.stalled:
                break
        return self


def inverse_hessian(run):
    """The matrix H of a dense method, with the update that is still put off."""
    optimizer = run.optimizer
    optimizer._product(torch.zeros(optimizer.size, dtype=torch.float64))
    return optimizer.memory["matrix"]


# ---------------------------------------------------------------- convergence


@pytest.mark.parametrize("name", MAKERS)
def test_rosenbrock(name):
    run = Run(name, rosenbrock, torch.tensor([-1.2, 1.0], dtype=torch.float64)).to(1e-9)
    torch.testing.assert_close(run.x.detach(), torch.ones(2, dtype=torch.float64))
    assert len(run.trail) < 50


@pytest.mark.parametrize("name", MAKERS)
def test_exact_searches_end_on_a_quadratic_after_n_steps(name):
    f, matrix = quadratic(8, 30.0)
    run = Run(name, f, start_of(8), c2=1e-10).to(0.0, most=8)
    losses = [loss for *_, loss in run.trail]
    assert losses[6] > 1e-6, "too easy: it must take all steps"
    assert losses[7] < 1e-14 * losses[0]
    if name == "bfgs":  # which then knows the inverse Hessian
        torch.testing.assert_close(
            inverse_hessian(run), torch.linalg.inv(matrix), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", MAKERS)
def test_as_many_evaluations_as_scipy(name):
    f, _ = quadratic(40, 1e4)
    # Of curvature 0.01 to 100: from 1 up, SciPy's start, the identity, would be half the answer.
    for function, x0 in [(rosenbrock, start_of(20)), (lambda x: 0.01 * f(x), start_of(40))]:

        def both(v, function=function):
            x = torch.tensor(v, requires_grad=True)
            loss = function(x)
            loss.backward()
            return loss.item(), x.grad.numpy()

        method, options = ("L-BFGS-B", {"maxcor": 10, "ftol": 0.0}) if name == "lbfgs" else (
            "BFGS", {}
        )  # fmt: skip
        theirs = scipy.optimize.minimize(
            both, x0.numpy(), jac=True, method=method, options={"gtol": 1e-7, **options}
        )
        mine = Run(name, function, x0, **({"history": 10} if name == "lbfgs" else {})).to(1e-7)
        assert mine.trail[-1][2] < 1e-11
        assert mine.evaluations < 2.0 * theirs.nfev + 20


def test_an_iteration_costs_about_one_evaluation():
    run = Run("lbfgs", rosenbrock, start_of(50), history=20).to(1e-8)
    assert len(run.trail) > 100
    assert run.evaluations < 1.25 * len(run.trail)


def test_self_scaling_helps_where_curvature_falls():
    # The curvature falls by six orders on the way: what was learnt at the start is too stiff.
    def f(x):
        return (torch.arange(1, 11, dtype=x.dtype) * x.abs() ** 4).sum()

    steps = {k: len(Run(k, f, 30 * start_of(10)).to(1e-7).trail) for k in KINDS}
    assert steps["ssbfgs"] < 0.8 * steps["bfgs"]
    assert steps["ssbroyden"] < 0.8 * steps["bfgs"]


def test_float32():
    x0 = torch.tensor([-1.2, 1.0])
    for name in MAKERS:
        run = Run(name, rosenbrock, x0).to(0.0, most=200)
        assert run.x.dtype == run.optimizer.memory["gradient"].dtype == torch.float32
        torch.testing.assert_close(run.x.detach(), torch.ones(2), rtol=1e-3, atol=1e-3)
        assert len(run.trail) < 100


# ---------------------------------------------------------------- the updates


def hessian_update(kind, hessian, s, y, size):
    """Broyden's family for the Hessian itself, with theta; the inverse is never formed."""
    bs = hessian @ s
    b, h = s @ bs / (s @ y), y @ np.linalg.solve(hessian, y) / (s @ y)
    tau = 1.0 if kind == "bfgs" else min(1.0, 1 / b)
    theta = 0.0
    if kind == "ssbroyden":
        a = b * h - 1
        c = math.sqrt(a / (a + 1))
        rho = min(1.0, h * (1 - c))
        theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
        sigma = 1 + theta * a
        power = sigma ** (-1 / (size - 1))
        tau = tau * min(power, 1 / theta) if theta > 0 else min(tau * power, sigma)
    w = math.sqrt(s @ bs) * (y / (s @ y) - bs / (s @ bs))
    scaled = tau * (hessian - np.outer(bs, bs) / (s @ bs) + theta * np.outer(w, w))
    return scaled + np.outer(y, y) / (s @ y), theta


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_updates_are_those_of_the_hessian(kind):
    n = 6
    run = Run(kind, rosenbrock, start_of(n, 3)).to(0.0, most=1)
    x0 = start_of(n, 3)
    leaf = x0.clone().requires_grad_()
    rosenbrock(leaf).backward()
    points = [(x0, leaf.grad, None), *run.trail]
    hessian, thetas = None, []
    for step in range(30):
        (x, g, _), (x_new, g_new, _) = points[-2:]
        s, y = (x_new - x).numpy(), (g_new - g).numpy()
        if hessian is None:
            hessian = np.eye(n) * (s @ y) / (s @ s) / GENEROUS
        hessian, theta = hessian_update(kind, hessian, s, y, n)
        thetas.append(theta)
        mine = inverse_hessian(run).numpy()
        scale = np.abs(mine).max()
        np.testing.assert_allclose(mine / scale, np.linalg.inv(hessian) / scale, atol=1e-6)
        assert np.array_equal(mine, mine.T)  # bit for bit
        np.testing.assert_allclose(mine @ y, s, atol=1e-9 * np.abs(s).max())
        np.testing.assert_allclose(
            run.optimizer.memory["next"].numpy(), -mine @ g_new.numpy(), rtol=1e-6, atol=1e-9
        )
        assert np.linalg.eigvalsh(mine)[0] > 0
        run.to(0.0, most=step + 2)
        points.append(run.trail[-1])
    if kind == "ssbroyden":  # both branches of the scaling were seen
        assert min(thetas) < 0 < max(thetas)


def test_broyden_numbers_at_their_limits():
    # Where the curvature found is that expected, nothing is scaled and BFGS is as good as any.
    assert broyden_numbers("ssbfgs", 1.0, 1.0, 10) == (1.0, 1.0)
    phi, tau = broyden_numbers("ssbroyden", 1.0, 1.0, 10)
    assert (phi, tau) == pytest.approx((1.0, 1.0), abs=1e-6)
    assert broyden_numbers("bfgs", 7.0, 3.0, 10) == (1.0, 1.0)
    assert broyden_numbers("ssbfgs", 4.0, 3.0, 10) == (1.0, 0.25)
    assert broyden_numbers("ssbfgs", 0.5, 3.0, 10) == (1.0, 1.0)  # never stiffer
    for b in np.geomspace(1e-6, 1e6, 13):
        for excess in np.geomspace(1e-12, 1e6, 10):
            phi, tau = broyden_numbers("ssbroyden", b, (1 + excess) / b, 100)
            assert 0 < tau <= 1
            assert math.isfinite(phi)
    assert all(map(math.isfinite, broyden_numbers("ssbroyden", 2.0, 0.6, 1)))


def test_memory_is_limited():
    run = Run("lbfgs", rosenbrock, start_of(5), history=3).to(0.0, most=10)
    assert [len(run.optimizer.memory[k]) for k in ("steps", "changes", "products")] == [3, 3, 3]


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("name", MAKERS)
def test_pairs_are_of_one_batch(name):
    """Batches with other gradients but the same Hessian: a mixed pair would be no Hessian's."""
    matrix = quadratic(6, 10.0)[1]
    shifts = [start_of(6, seed) for seed in (1, 2, 3)]
    run = Run(name, None, start_of(6))
    learnt = []
    learn = run.optimizer._learn
    run.optimizer._learn = lambda s, y, *rest: (learnt.append((s, y)), learn(s, y, *rest))
    for n in range(12):
        shift = shifts[n % 3]
        run.f = lambda x, shift=shift: 0.5 * x @ (matrix @ x) + shift @ x
        before = run.f(run.x).item()
        after = run.optimizer.step(run.closure, fresh=True)
        assert after == pytest.approx(run.f(run.x).item(), rel=1e-12)
        assert after < before
    assert len(learnt) == 12
    for s, y in learnt:
        torch.testing.assert_close(y, matrix @ s, rtol=1e-8, atol=1e-10)


def test_without_fresh_the_start_is_not_evaluated_again():
    run = Run("ssbroyden", quadratic(6, 3.0)[0], start_of(6))
    seen = []

    def closure():
        seen.append(run.x.detach().clone())
        return run.closure()

    for fresh, again in [(False, True), (False, False), (True, True), (False, False)]:
        before = run.x.detach().clone()
        seen.clear()
        run.optimizer.step(closure, fresh=fresh)
        assert torch.equal(seen[0], before) == again
        assert torch.equal(seen[run.optimizer.accepted], run.x.detach())


# ---------------------------------------------------------------- trouble


@pytest.mark.parametrize("name", MAKERS)
def test_losses_that_are_no_number_are_stepped_back_from(name):
    bad = []

    def f(x):
        loss = (x - torch.log(x)).sum()  # NaN for negative numbers
        bad.append(not math.isfinite(loss.item()))
        return loss

    # Down the gradient of -log the first step overshoots to where the logarithm is none.
    run = Run(name, f, torch.tensor([1e-3, 30.0, 1.5], dtype=torch.float64)).to(1e-9)
    run.optimizer.step(run.closure)
    assert sum(bad) > 0
    torch.testing.assert_close(run.x.detach(), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("name", MAKERS)
def test_a_start_that_is_no_number_is_refused(name):
    run = Run(name, lambda x: torch.log(x).sum(), -torch.ones(3, dtype=torch.float64))
    with pytest.raises(DivergedError, match="NaN or infinite where a step starts"):
        run.optimizer.step(run.closure)
    assert torch.equal(run.x.detach(), -torch.ones(3, dtype=torch.float64))
    assert not run.optimizer.kept


@pytest.mark.parametrize("name", MAKERS)
def test_the_end_is_noticed_and_left_for_another_batch(name):
    f, _ = quadratic(6, 10.0)
    run = Run(name, lambda x: 5.0 + f(x), start_of(6)).to(0.0)
    assert run.optimizer.stalled
    assert run.trail[-1][2] == pytest.approx(5.0, rel=1e-14)
    before, evaluations = run.x.detach().clone(), run.evaluations
    assert run.optimizer.step(run.closure) == run.trail[-1][2]
    assert run.optimizer.accepted is None
    assert torch.equal(run.x.detach(), before)
    assert run.evaluations == evaluations
    run.f = lambda x: f(x - 1)
    run.optimizer.step(run.closure, fresh=True)
    assert not run.optimizer.stalled
    run.to(1e-9)
    torch.testing.assert_close(run.x.detach(), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("name", MAKERS)
def test_curvature_that_misleads_is_forgotten(name):
    f, _ = quadratic(6, 10.0)
    run = Run(name, f, start_of(6)).to(0.0, most=3)
    memory = run.optimizer.memory
    g = memory["gradient"]
    if name == "lbfgs":
        memory["changes"][-1].neg_()
        memory["products"][-1] = -memory["products"][-1]
    else:
        memory["next"] = g.clone()  # uphill
    if name == "lbfgs":
        memory["steps"], memory["changes"] = [-g], [g]
        memory["products"] = [-g @ g]
    assert torch.dot(run.optimizer._direction(g), g) > 0
    loss = memory["loss"]
    assert run.optimizer.step(run.closure) < loss
    assert memory["restarts"] == 1
    run.to(1e-8)
    assert run.x.detach().abs().max() < 1e-6


def test_constant_losses_end_at_once():
    run = Run("ssbroyden", lambda x: (x * 0).sum(), start_of(4))
    run.optimizer.step(run.closure)
    assert run.optimizer.stalled
    assert run.optimizer.accepted == 0
    assert torch.equal(run.x.detach(), start_of(4))


def test_gains_of_rounding_alone_do_not_go_on_for_ever():
    # The gradient says there is more, the loss does not: its changes are below its rounding.
    run = Run("lbfgs", lambda x: 1e6 + 1e-14 * quadratic(4, 100.0)[0](x), start_of(4))
    run.to(0.0, most=10 * IDLE)
    assert run.optimizer.stalled
    assert len(run.trail) <= 2 * IDLE


def test_what_they_cannot_take_is_refused():
    with pytest.raises(OptionError, match=r"1\.2 GB for 12001.* use optimizer lbfgs"):
        SelfScaled([nn.Parameter(torch.zeros(LARGEST + 1, dtype=torch.float64))])
    LBFGS([nn.Parameter(torch.zeros(LARGEST + 1))])
    mixed = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    for parameters in (mixed, [nn.Parameter(torch.zeros(2, dtype=torch.float16))]):
        with pytest.raises(OptionError, match="in float32, or all in float64"):
            LBFGS(parameters)
    with pytest.raises(OptionError, match="one group"):
        LBFGS([{"params": [mixed[0]]}, {"params": [mixed[1]]}])


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_state_is_plain_and_complete(name, steps):
    whole = Run(name, rosenbrock, start_of(5)).to(0.0, most=steps)
    buffer = io.BytesIO()
    torch.save({"x": whole.x.detach(), "optimizer": whole.optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other = Run(name, rosenbrock, saved["x"])
    other.optimizer.load_state_dict(saved["optimizer"])
    for _ in range(9):
        assert whole.optimizer.step(whole.closure) == other.optimizer.step(other.closure)
        assert torch.equal(whole.x, other.x)
    assert whole.evaluations > other.evaluations or steps == 0
