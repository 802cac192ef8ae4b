"""Projections against the definition (the nearest point), closed forms and unrolled gradients."""

import pytest
import torch
from scipy.optimize import minimize

from dcase.dae.constraints import Distances, FunctionConstraint, chain, rigid_water
from dcase.dae.projection import ProjectionSettings, project, velocity_on_manifold
from dcase.errors import OptionError


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near_chain(distance, batch=4, seed=0):
    angle = 3.0 * random((batch, 5), seed)
    rods = torch.stack([angle.sin(), -angle.cos()], -1).cumsum(1)
    return rods + distance * random(rods.shape, seed + 1)


def near_water(distance, molecules=3, batch=2, seed=0):
    one = torch.tensor([[0.0, 0.0, 0.0], [0.7565, 0.5861, 0.0], [-0.7565, 0.5861, 0.0]]).double()
    at = 4.0 * random((batch, molecules, 1, 3), seed)
    placed = (one + at).reshape(batch, 3 * molecules, 3)
    return placed + distance * random(placed.shape, seed + 1)


def exact(way="newton", **more):
    return ProjectionSettings(way, tolerance=1e-12, **more)


def sphere():
    """Two points on unit spheres about the origin, as a function."""
    return FunctionConstraint(lambda r: r.square().sum(-1) - 1.0, count=2)


def test_a_rod_is_scaled_to_its_length():
    r = 2.5 * random((6, 1, 2))
    found = project(r, chain(1), exact()).r
    torch.testing.assert_close(found, r / r.norm(dim=-1, keepdim=True))


def test_any_function_a_sphere():
    r = random((6, 2, 3)) + 0.3
    found = project(r, sphere(), exact())
    assert bool(found.converged.all())
    torch.testing.assert_close(found.r, r / r.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("system", ["chain", "water"])
def test_newton_ends_at_the_nearest_point(system, weighted):
    """Scipy minimises the distance itself, by an algorithm that knows nothing of ours."""
    c, r = (
        (chain(5), near_chain(0.2)) if system == "chain" else (rigid_water(1), near_water(0.2, 1))
    )
    n = r.shape[1]
    weight = 0.5 + torch.arange(n).double()[:, None] if weighted else torch.ones(n, 1).double()
    found = project(r, c, exact(), weight=weight if weighted else None).r
    start = project(r, c).r  # SLSQP needs to start close by to be exact
    mass = (1.0 / weight).numpy()
    for one, begin, ours in zip(r, start, found, strict=True):
        target = one.numpy()

        def distance(x, target=target):
            return 0.5 * (mass * (x.reshape(target.shape) - target) ** 2).sum()

        def slope(x, target=target):
            return (mass * (x.reshape(target.shape) - target)).ravel()

        def violated(x, shape=one.shape):
            return c(torch.as_tensor(x.reshape(1, *shape)))[0].numpy()

        result = minimize(
            distance,
            begin.numpy().ravel(),
            jac=slope,
            constraints={"type": "eq", "fun": violated},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        assert abs(distance(ours.numpy().ravel()) - result.fun) < 1e-9
        assert abs(ours.numpy().ravel() - result.x).max() < 1e-5


@pytest.mark.parametrize("way", ["newton", "cg", "descent"])
@pytest.mark.parametrize("distance", [0.01, 0.1, 0.5])
def test_default_tolerances_are_kept(way, distance):
    for c, r in ((chain(5), near_chain(distance)), (rigid_water(3), near_water(distance))):
        found = project(r, c, ProjectionSettings(way))
        assert bool(found.converged.all())
        assert float(c.violation(found.r).max()) < c.tolerance


def test_newton_takes_few_steps_and_cg_the_same():
    r = near_chain(0.1, batch=20)
    newton, cg = project(r, chain(5)), project(r, chain(5), ProjectionSettings("cg"))
    assert int(newton.iterations.max()) <= 4
    torch.testing.assert_close(newton.r, cg.r, rtol=0, atol=1e-8)
    descent = project(r, chain(5), ProjectionSettings("descent"))
    assert descent.iterations.double().mean() > 3 * newton.iterations.double().mean()


def test_far_away_it_still_arrives():
    r = 3.0 * random((50, 5, 2))
    found = project(r, chain(5))
    assert int(found.converged.sum()) >= 49
    assert bool(found.r.isfinite().all())


def test_points_of_the_manifold_stay():
    r = near_chain(0.0)
    found = project(r, chain(5))
    assert int(found.iterations.max()) == 0
    assert torch.equal(found.r, r)


@pytest.mark.parametrize("way", ["newton", "descent"])
def test_a_sample_does_not_depend_on_its_batch(way):
    r = torch.cat([near_chain(0.01), near_chain(0.5, seed=5)])
    together = project(r, chain(5), ProjectionSettings(way)).r
    alone = torch.cat([project(one[None], chain(5), ProjectionSettings(way)).r for one in r])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


def test_the_iteration_limit_is_told():
    found = project(near_chain(0.5), chain(5), ProjectionSettings("descent", max_iterations=2))
    assert not bool(found.converged.any())
    assert found.iterations.tolist() == [2] * 4


# ------------------------------------------------------------------------------------------------
# Gradients


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("way", ["newton", "cg"])
@pytest.mark.parametrize("system", ["chain", "water", "function"])
def test_implicit_gradients_are_unrolled_ones_and_differences(system, way, weighted):
    c, r = {
        "chain": (chain(5), near_chain(0.2)),
        "water": (rigid_water(3), near_water(0.1)),
        "function": (sphere(), random((4, 2, 3)) + 0.3),
    }[system]
    weight = 0.5 + torch.arange(r.shape[1]).double()[:, None] if weighted else None
    r = r.clone().requires_grad_()
    upstream = random(r.shape, 9)

    def value(at, gradient):
        settings = exact(way, gradient=gradient)
        return (project(at, c, settings, weight=weight).r * upstream).sum()

    implicit, unrolled, tangent = (
        torch.autograd.grad(value(r, kind), r)[0] for kind in ("implicit", "unrolled", "tangent")
    )
    torch.testing.assert_close(implicit, unrolled, rtol=1e-7, atol=1e-9)
    assert float((tangent - implicit).norm() / implicit.norm()) > 0.01  # H matters here
    direction, h = random(r.shape, 10), 1e-5
    with torch.no_grad():
        plus, minus = value(r + h * direction, "implicit"), value(r - h * direction, "implicit")
    difference = (plus - minus) / (2 * h)
    torch.testing.assert_close((implicit * direction).sum(), difference, rtol=1e-6, atol=1e-8)


def test_the_tangent_gradient_is_exact_on_the_manifold():
    r = near_chain(0.0).requires_grad_()
    upstream = random(r.shape, 3)
    gradients = [
        torch.autograd.grad((project(r, chain(5), exact(gradient=g)).r * upstream).sum(), r)[0]
        for g in ("tangent", "implicit")
    ]
    torch.testing.assert_close(gradients[0], gradients[1])


def saved_bytes(r, c, settings):
    kept = []

    def pack(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        project(r, c, settings)
    return sum(kept)


def test_memory_does_not_grow_with_iterations():
    r = near_chain(0.5).requires_grad_()

    def kept(gradient, iterations):
        settings = ProjectionSettings(
            "descent", tolerance=1e-14, max_iterations=iterations, gradient=gradient
        )
        return saved_bytes(r, chain(5), settings)

    assert kept("implicit", 40) == kept("implicit", 5) == 2 * r.numel() * 8
    assert kept("unrolled", 40) > 4 * kept("unrolled", 5)


def test_velocities_on_the_manifold():
    r, v = near_chain(0.0), random((4, 5, 2), 3)
    found = velocity_on_manifold(r, v, chain(5))
    torch.testing.assert_close(
        chain(5).jvp(r, found), torch.zeros(4, 5).double(), rtol=0, atol=1e-12
    )
    # what was taken off is normal to the manifold: orthogonal to every velocity along it
    along = velocity_on_manifold(r, random((4, 5, 2), 4), chain(5))
    assert float(((v - found) * along).sum((1, 2)).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"way": "magic"}, "newton, cg, descent"),
        ({"gradient": "numeric"}, "implicit, tangent, unrolled"),
        ({"tolerance": 0.0}, "positive"),
        ({"max_iterations": 0}, "at least 1"),
    ],
)
def test_impossible_settings(values, message):
    with pytest.raises(OptionError, match=message):
        ProjectionSettings(**values)


def test_single_precision():
    c, r = Distances([(0, 1)], [1.0], 2), random((3, 2, 3)).float()
    found = project(r, c)
    assert found.r.dtype == torch.float32
    assert float(c.violation(found.r).max()) < 1e-4


@pytest.mark.parametrize("weighted", [False, True])
def test_the_nearest_tangential_velocity_by_its_normal_equations(weighted):
    """Least of ``(w - v) M (w - v)`` with ``J w = 0``, J by autograd and the masses M given."""
    c, r, v = chain(5), near_chain(0.0, 1), random((1, 5, 2), 7)
    inverse = 0.3 + torch.arange(5).double()[:, None] if weighted else None
    found = velocity_on_manifold(r, v, c, weight=inverse)
    j = torch.autograd.functional.jacobian(lambda at: c.for_newton()(at)[0], r).reshape(-1, 10)
    masses = (1 / inverse).expand(5, 2).reshape(10) if weighted else torch.ones(10).double()
    top = torch.cat([torch.diag(masses), j.T], 1)
    bottom = torch.cat([j, torch.zeros(len(j), len(j)).double()], 1)
    right = torch.cat([masses * v.reshape(10), torch.zeros(len(j)).double()])
    wanted = torch.linalg.solve(torch.cat([top, bottom]), right)[:10].reshape(1, 5, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_iterations_are_each_samples_own():
    r = torch.cat([near_chain(0.0, 1), near_chain(0.2, 1)])
    found = project(r, chain(5), exact())
    assert found.iterations[0] <= 1
    assert found.iterations[1] > 1
    alone = project(r[1:], chain(5), exact())
    assert found.iterations[1] == alone.iterations[0]
