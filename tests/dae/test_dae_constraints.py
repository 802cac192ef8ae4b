"""Products with derivatives of constraints, against autograd, differences and dense algebra."""

import pytest
import torch

from dcase.dae.constraints import Distances, FunctionConstraint, chain, rigid_water
from dcase.dae.linear import LONG, BlockSolver, SymmetricSolver
from dcase.errors import OptionError

WATER = torch.tensor([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]]).double()


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rods(batch=3, n=5, seed=0):
    angle = 3.0 * random((batch, n), seed)
    return torch.stack([angle.sin(), -angle.cos()], -1).cumsum(1)


def ring(n=4):
    """A closed polygon: neither a chain nor a triangle."""
    return Distances([(i, (i + 1) % n) for i in range(n)], [1.0] * n, n)


CASES = {
    "chain": (chain(5), rods() + 0.2 * random((3, 5, 2), 1)),
    "chain, plain": (chain(5).for_newton(), rods() + 0.2 * random((3, 5, 2), 1)),
    "long chain": (chain(LONG + 3).for_newton(), rods(3, LONG + 3)),
    "water": (rigid_water(4), random((2, 12, 3), 2)),
    "ring": (ring(), random((3, 4, 2), 3)),
    "unequal parts": (
        Distances([(0, 1), (2, 3), (3, 4)], [1.0, 1.2, 0.8], 5),
        random((3, 5, 3), 4),
    ),
    "interleaved": (Distances([(0, 2), (1, 3), (2, 4), (3, 5)], [1.0] * 4, 6), random((3, 6, 3))),
}


def as_function(c):
    return FunctionConstraint(c, c.count)


def jacobian(c, r):
    """[B, m, N*d], by autograd, sample by sample."""
    rows = [torch.autograd.functional.jacobian(lambda x: c(x[None])[0], one) for one in r]
    return torch.stack(rows).flatten(2)


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_dense_jacobian(name):
    c, r = CASES[name]
    j = jacobian(c, r)
    dr, lam = random(r.shape, 5), random((len(r), c.count), 6)
    torch.testing.assert_close(c.jvp(r, dr), torch.einsum("bmn,bn->bm", j, dr.flatten(1)))
    torch.testing.assert_close(
        c.vjp(r, lam).flatten(1), torch.einsum("bmn,bm->bn", j, lam), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_those_of_a_function(name):
    c, r = CASES[name]
    f = as_function(c)
    a, b, lam = random(r.shape, 5), random(r.shape, 6), random((len(r), c.count), 7)
    torch.testing.assert_close(c.second(r, a, b), f.second(r, a, b), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        c.curvature(r, lam, a), f.curvature(r, lam, a), rtol=1e-10, atol=1e-10
    )
    # and, independently of autograd, of differences of J^T lam
    h = 1e-6
    difference = (c.vjp(r + h * a, lam) - c.vjp(r - h * a, lam)) / (2 * h)
    torch.testing.assert_close(c.curvature(r, lam, a), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_structured_solver_is_the_dense_one(name, weighted):
    c, r = CASES[name]
    weight = 0.2 + torch.arange(r.shape[1]).double()[:, None] if weighted else None
    w = torch.ones(r.shape[1:]) if weight is None else weight.expand(r.shape[1:])
    j = jacobian(c, r)
    b = random((len(r), c.count), 8)
    dense = torch.linalg.solve(torch.einsum("bmn,n,bkn->bmk", j, w.flatten().double(), j), b)
    torch.testing.assert_close(c.gram(r, weight).solve(b), dense, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        as_function(c).gram(r, weight).solve(b), dense, rtol=1e-8, atol=1e-10
    )


def test_structures_are_found():
    def size(c):
        return c._solver(None).size

    assert size(chain(5)) == 5
    assert size(rigid_water(7)) == 3
    assert size(CASES["interleaved"][0]) == 2
    assert size(CASES["unequal parts"][0]) == 3


def test_single_precision_first_does_not_spoil_double_precision():
    c = Distances([(0, 1), (1, 2)], [1.0, 1.0], 3)
    weight = torch.tensor([[1 / 16.0], [1 / 1.008], [1 / 3.0]]).double()
    r, b = random((2, 3, 3)), random((2, 2), 1)
    c.gram(r.float(), weight.float()).solve(b.float())
    j = jacobian(c, r)
    dense = torch.einsum("bmn,n,bkn->bmk", j, weight.expand(3, 3).flatten(), j)
    expected = torch.linalg.solve(dense, b)
    torch.testing.assert_close(c.gram(r, weight).solve(b), expected, rtol=1e-12, atol=1e-12)


def test_redundant_equations_give_a_least_squares_answer():
    doubled = torch.tensor([[2.0, 2.0], [2.0, 2.0]]).double()[None]
    x = SymmetricSolver(doubled).solve(torch.tensor([[1.0, 1.0]]).double())
    torch.testing.assert_close((doubled @ x[..., None])[..., 0], torch.ones(1, 2).double())


def test_violation_is_the_length_that_is_missing():
    c = chain(2)  # squared equations, plain violation
    r = torch.tensor([[[0.0, -1.1], [0.0, -1.9]]]).double()
    torch.testing.assert_close(c.violation(r), torch.tensor([[0.1, 0.2]]).double())
    torch.testing.assert_close(c(r), torch.tensor([[0.21, -0.36]]).double())


def test_nodes_in_one_place_give_numbers():
    c = rigid_water(1)
    r = torch.zeros(1, 3, 3, dtype=torch.float64)
    for value in (c(r), c.vjp(r, torch.ones(1, 3).double()), c.gram(r).solve(c(r))):
        assert bool(value.isfinite().all())


@pytest.mark.parametrize(
    ("pairs", "lengths", "message"),
    [
        ([(0, 1)], [1.0, 2.0], "as many lengths"),
        ([], [], "at least one"),
        ([(0, 3)], [1.0], "two different nodes"),
        ([(1, 1)], [1.0], "two different nodes"),
        ([(0, 1)], [0.0], "positive"),
        ([(0, 1)], [float("nan")], "positive"),
    ],
)
def test_impossible_distances(pairs, lengths, message):
    with pytest.raises(OptionError, match=message) as caught:
        Distances(pairs, lengths, 3)
    assert "\n" not in str(caught.value)


def test_a_function_of_the_wrong_shape():
    c = FunctionConstraint(lambda r: r[:, 0, 0], count=1)
    with pytest.raises(OptionError, match="must give"):
        c(random((2, 3, 3)))


def test_blocks_keep_the_order_of_the_equations():
    shared = torch.tensor([[2.0, 0.0, 1.0], [0.0, 5.0, 0.0], [1.0, 0.0, 2.0]]).double()
    g = random((2, 3, 3))
    matrix = shared * (g @ g.mT)
    b = random((2, 3), 1)
    torch.testing.assert_close(BlockSolver(shared).at(g).solve(b), torch.linalg.solve(matrix, b))
