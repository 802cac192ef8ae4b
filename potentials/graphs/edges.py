"""Directed edges, neighbourhoods and triplets, made from the half pair list of a graph.

An edge carries a message from its source j to its target i. Its vector ``x_j - x_i`` points from
the target to the source. A pair p = (i, j) gives the edges ``p`` (target i) and ``n_pairs + p``
(target j), so that the reverse of edge e is ``(e + n_pairs) mod 2 n_pairs``, also between periodic
images.

Two layouts of what happens between edges that share a target:

* :class:`Neighbourhoods`: the edges into each atom side by side, padded to the largest number of
  them. Sums over triplets become batched matrix products, which is several times faster than
  gathering and scattering one row per triplet.
* :func:`triplets`: the plain list, for anything that is not a sum of products, and for tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dcase.potentials.graphs.graph import AtomicGraph


@dataclass(frozen=True)
class DirectedEdges:
    """Both directions of every pair.

    Attributes:
        source: Atom j, int64, shape [n_edges].
        target: Atom i, int64, shape [n_edges].
        vectors: ``x_j - x_i`` with periodic images, A, float64, shape [n_edges, 3].
        distances: A, float64, shape [n_edges].
    """

    source: Tensor
    target: Tensor
    vectors: Tensor
    distances: Tensor

    def __len__(self) -> int:
        return self.source.shape[0]

    def unit_vectors(self) -> Tensor:
        """``(x_j - x_i) / d``, shape [n_edges, 3]."""
        return self.vectors / self.distances.unsqueeze(-1)

    def reverse(self, values: Tensor) -> Tensor:
        """``values`` [n_edges, ...] of the opposite edges."""
        half = len(self) // 2
        return torch.cat([values[half:], values[:half]])


def directed_edges(graph: AtomicGraph) -> DirectedEdges:
    """Both directions of every pair of ``graph``, without recomputing any geometry."""
    i, j = graph.pairs
    vectors = graph.vectors()
    distances = torch.linalg.vector_norm(vectors, dim=1)
    return DirectedEdges(
        source=torch.cat([j, i]),
        target=torch.cat([i, j]),
        vectors=torch.cat([vectors, -vectors]),
        distances=torch.cat([distances, distances]),
    )


@dataclass(frozen=True)
class Neighbourhoods:
    """The edges into each atom, side by side.

    Attributes:
        place: Flat slot ``atom * width + rank`` of each edge, int64, shape [n_edges].
        occupied: Which slots hold an edge, bool, shape [n_atoms, width].
    """

    place: Tensor
    occupied: Tensor

    @property
    def width(self) -> int:
        """Slots of each atom: the largest number of neighbours."""
        return self.occupied.shape[1]

    def gather(self, values: Tensor) -> Tensor:
        """Edge values [n_edges, ...] as [n_atoms, width, ...], zero in empty slots."""
        flat = values.new_zeros(self.occupied.numel(), *values.shape[1:])
        flat.index_copy_(0, self.place, values)
        return flat.view(*self.occupied.shape, *values.shape[1:])

    def scatter(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`gather`: slots [n_atoms, width, ...] as [n_edges, ...]."""
        return values.flatten(0, 1).index_select(0, self.place)

    def couples(self) -> Tensor:
        """Ordered couples of *different* edges into one atom, bool, [n_atoms, width, width]."""
        both = self.occupied.unsqueeze(2) & self.occupied.unsqueeze(1)
        return both & ~torch.eye(self.width, dtype=torch.bool, device=both.device)


def neighbourhoods(target: Tensor, n_atoms: int) -> Neighbourhoods:
    """Sort edges by target.

    Args:
        target: Atom that each edge leads to, int64, shape [n_edges].
        n_atoms: Number of atoms.
    """
    counts = torch.bincount(target, minlength=n_atoms)
    width = int(counts.max()) if counts.numel() else 0
    order = torch.argsort(target, stable=True)
    first = torch.cumsum(counts, 0) - counts
    ranked = target[order]
    slot = torch.arange(len(target), device=target.device) - first[ranked] + ranked * width
    place = torch.empty_like(target)
    place[order] = slot
    occupied = torch.zeros(n_atoms * width, dtype=torch.bool, device=target.device)
    occupied[place] = True
    return Neighbourhoods(place, occupied.view(n_atoms, width))


def triplets(edges: DirectedEdges, n_atoms: int) -> tuple[Tensor, Tensor]:
    """Ordered couples of different edges into the same atom.

    For the edges b->a and c->a the angle at a is between their vectors. In DimeNet's words, with
    a = j: message k->j and the reverse of j->i, k being any neighbour of j but that image of i.

    Args:
        edges: Directed edges.
        n_atoms: Number of atoms.

    Returns:
        Two index arrays into the edges, int64, shape [n_triplets] each.
    """
    near = neighbourhoods(edges.target, n_atoms)
    edge_at = torch.zeros_like(near.occupied, dtype=torch.int64).flatten()
    edge_at[near.place] = torch.arange(len(edges), device=edge_at.device)
    edge_at = edge_at.view_as(near.occupied)
    atom, first, second = torch.nonzero(near.couples(), as_tuple=True)
    return edge_at[atom, first], edge_at[atom, second]


def legendre(cosines: Tensor, count: int) -> Tensor:
    """Legendre polynomials ``P_0 ... P_{count-1}``, shape [..., count].

    ``l P_l = (2l - 1) x P_{l-1} - (l - 1) P_{l-2}``. As functions of the cosine they are smooth for
    straight and for zero angles too, where the angle itself is not.
    """
    values = [torch.ones_like(cosines), cosines]
    for order in range(2, count):
        values.append(((2 * order - 1) * cosines * values[-1] - (order - 1) * values[-2]) / order)
    return torch.stack(values[:count], dim=-1)
