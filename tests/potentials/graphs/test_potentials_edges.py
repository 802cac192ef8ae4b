"""Directed edges, neighbourhoods and triplets against loops over atoms and images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from potential_models import crystal, ethanol

from dcase.potentials.graphs.edges import directed_edges, legendre, neighbourhoods, triplets
from dcase.potentials.graphs.graph import build_graph


def _images(atoms, cutoff):
    """Neighbours of each atom by brute force: lists of (source, vector to it)."""
    cell = np.asarray(atoms.cell)
    shifts = itertools.product(range(-2, 3), repeat=3) if atoms.pbc.any() else [(0, 0, 0)]
    found = [[] for _ in atoms]
    for shift in shifts:
        for i, j in itertools.product(range(len(atoms)), repeat=2):
            vector = atoms.positions[j] + np.array(shift) @ cell - atoms.positions[i]
            if 0 < np.linalg.norm(vector) < cutoff:
                found[i].append((j, vector))
    return found


def _graph(atoms, cutoff):
    return build_graph(
        atoms.numbers, atoms.positions, cutoff, np.asarray(atoms.cell), np.asarray(atoms.pbc)
    )


STRUCTURES = pytest.mark.parametrize("atoms", [ethanol(), crystal()], ids=["molecule", "crystal"])


def _sorted(vectors):
    rounded = np.round(np.asarray(vectors, dtype=float).reshape(len(vectors), -1), 8) + 0.0
    return rounded[np.lexsort(rounded.T[::-1])]


@STRUCTURES
def test_potentials_edges_are_all_neighbours(atoms):
    cutoff = 4.0
    edges = directed_edges(_graph(atoms, cutoff))
    expected = _images(atoms, cutoff)
    assert len(edges) == sum(map(len, expected))
    for i, near in enumerate(expected):
        mine = (edges.target == i).numpy()
        own = np.column_stack([edges.source.numpy()[mine], edges.vectors.numpy()[mine]])
        assert np.allclose(_sorted(own), _sorted([(j, *v) for j, v in near]), atol=1e-7)
    assert torch.allclose(edges.distances, edges.vectors.norm(dim=1))
    assert torch.allclose(edges.unit_vectors().norm(dim=1), torch.ones(len(edges)).double())


@STRUCTURES
def test_potentials_the_reverse_edge_leads_back_to_the_same_image(atoms):
    edges = directed_edges(_graph(atoms, 4.0))
    assert torch.equal(edges.reverse(edges.source), edges.target)
    assert torch.equal(edges.reverse(edges.vectors), -edges.vectors)
    values = torch.arange(len(edges))
    assert torch.equal(edges.reverse(edges.reverse(values)), values)
    assert not (edges.reverse(values) == values).any()


@STRUCTURES
def test_potentials_neighbourhoods_hold_every_edge_once(atoms):
    edges = directed_edges(_graph(atoms, 4.0))
    near = neighbourhoods(edges.target, len(atoms))
    slots = near.gather(edges.vectors)
    assert torch.equal(near.scatter(slots), edges.vectors)
    counts = torch.bincount(edges.target, minlength=len(atoms))
    assert torch.equal(near.occupied.sum(1), counts)
    assert near.width == counts.max()
    assert (slots[~near.occupied] == 0).all()
    for i in range(len(atoms)):
        mine = edges.vectors[edges.target == i]
        assert np.allclose(_sorted(slots[i][near.occupied[i]]), _sorted(mine))


def test_potentials_neighbourhoods_may_be_empty():
    # Two atoms that see each other and one that sees nobody; then nobody at all.
    near = neighbourhoods(torch.tensor([2, 0]), 3)
    assert near.occupied.tolist() == [[True], [False], [True]]
    values = torch.tensor([[5.0], [7.0]])
    assert near.gather(values).flatten().tolist() == [7.0, 0.0, 5.0]
    none = neighbourhoods(torch.zeros(0, dtype=torch.int64), 3)
    assert none.width == 0
    assert none.gather(torch.zeros(0, 4)).shape == (3, 0, 4)
    assert none.couples().shape == (3, 0, 0)


def test_potentials_gathering_is_differentiable_twice():
    near = neighbourhoods(torch.tensor([1, 0, 1, 1]), 3)
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda v: near.gather(v).pow(3).sum(1), x)
    assert torch.autograd.gradgradcheck(lambda v: near.scatter(near.gather(v)).pow(3), x)


@STRUCTURES
def test_potentials_triplets_leave_out_the_edge_itself_and_nothing_else(atoms):
    # In the crystal an atom has several images of the same neighbour: each pair of images counts,
    # and so does the angle between two images of the target itself.
    cutoff = 4.0
    edges = directed_edges(_graph(atoms, cutoff))
    first, second = triplets(edges, len(atoms))
    assert torch.equal(edges.target[first], edges.target[second])
    assert (first != second).all()
    expected = _images(atoms, cutoff)
    assert len(first) == sum(len(near) * (len(near) - 1) for near in expected)
    for i, near in enumerate(expected):
        mine = edges.target[first] == i
        own = torch.cat([edges.vectors[first[mine]], edges.vectors[second[mine]]], dim=1)
        pairs = [np.concatenate([a, b]) for (_, a), (_, b) in itertools.permutations(near, 2)]
        assert np.allclose(_sorted(own.numpy()), _sorted(pairs), atol=1e-7)
    if atoms.pbc.any():
        assert (edges.source[first] == edges.source[second]).any()


def test_potentials_legendre_polynomials():
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    values = legendre(x, 12)
    for order in range(12):
        expected = np.polynomial.legendre.Legendre.basis(order)(x.numpy())
        assert np.allclose(values[:, order], expected, atol=1e-13)
    assert torch.equal(legendre(x, 1), torch.ones(101, 1).double())
    assert legendre(x, 2).shape == (101, 2)
