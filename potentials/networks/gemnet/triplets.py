"""The two-hop interaction: messages m_ba reach the edge c->a through the angle between them.

    x_ca = sum_{b != c} W_bilinear : (cbf(d_ca, angle_cab) (x) x_ba)     (arXiv:2106.08903, fig. 4)

The circular basis is a product, ``cbf_c = sum_l R_cl(d_ca) Y_l(cos angle_cab)``, and the bilinear
layer is linear, so that the sum over b comes first (the paper's "efficient bilinear layer"):

    X_ca,l = sum_b Y_l(cos angle_cab) x_ba       per target atom, one matrix product
    x_ca   = sum_c,t W_ct (sum_l R_cl(d_ca) X_ca,lt)

No tensor has an entry per triplet *and* feature, and no angle is ever taken: Y_l is a polynomial in
the cosine, smooth also where the angle itself is not (0 and 180 degrees).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcase.potentials.graphs.edges import DirectedEdges, Neighbourhoods, legendre, neighbourhoods
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.networks.gemnet.layers import INV_SQRT_2, Dense, he_orthogonal_, linear
from dcase.potentials.networks.gemnet.scaling import ScaleFactor


def reverse(values: Tensor) -> Tensor:
    """Edge values [2, n_pairs, ...] of the opposite edges."""
    return values.flip(0)


@dataclass(frozen=True)
class Geometry:
    """What all interaction blocks share.

    Edge features are kept as [2, n_pairs, features], so that what depends on the distance alone,
    [n_pairs, features], is computed once for both directions.

    Attributes:
        source: Atom c (or b) of each edge, int64, shape [n_edges].
        target: Atom a of each edge, int64, shape [n_edges].
        near: The edges into each atom, side by side.
        angular: ``Y_l(cos angle_cab)`` between edges c and b into the same atom, 0 for c = b and
            empty slots, shape [n_atoms, width * num_spherical, width]: row (c, l), column b.
        num_spherical: Number of orders l.
    """

    source: Tensor
    target: Tensor
    near: Neighbourhoods
    angular: Tensor
    num_spherical: int

    def sum_over_triplets(self, x: Tensor) -> Tensor:
        """``X_ca,l = sum_{b != c} Y_l(cos angle_cab) x_ba``.

        Args:
            x: Edge features, shape [n_edges, features].

        Returns:
            Shape [n_edges, num_spherical, features].
        """
        summed = torch.bmm(self.angular, self.near.gather(x))
        n_atoms, _, features = summed.shape
        return self.near.scatter(
            summed.view(n_atoms, self.near.width, self.num_spherical, features)
        )


def geometry(
    edges: DirectedEdges, graph: AtomicGraph, num_spherical: int, dtype: torch.dtype
) -> Geometry:
    """The :class:`Geometry` of ``graph``, angular part in ``dtype``."""
    near = neighbourhoods(edges.target, graph.n_atoms)
    directions = near.gather(edges.unit_vectors())  # [n_atoms, width, 3], float64
    cosines = torch.bmm(directions, directions.transpose(1, 2)).to(dtype)
    # b = c is excluded by edge, not by atom: another periodic image of c is another neighbour.
    couples = near.couples().unsqueeze(-1)
    norms = torch.tensor(
        [math.sqrt((2 * order + 1) / (4 * math.pi)) for order in range(num_spherical)],
        dtype=dtype,
        device=cosines.device,
    )
    spherical = legendre(cosines, num_spherical) * norms * couples  # [n_atoms, c, b, l]
    angular = spherical.transpose(2, 3).flatten(1, 2)
    return Geometry(edges.source, edges.target, near, angular, num_spherical)


class CircularProjection(nn.Module):
    """``R_cl(d) = sum_n W_cln e_n(d)``: down-projection of the circular basis for all blocks.

    Args:
        num_radial: Number of radial functions e_n.
        num_spherical: Number of orders l.
        emb_size: Number of outputs c.
    """

    def __init__(self, num_radial: int, num_spherical: int, emb_size: int):
        super().__init__()
        self.num_spherical, self.emb_size = num_spherical, emb_size
        # Each output is a sum over both l and n: that is the fan-in.
        self.weight = nn.Parameter(
            he_orthogonal_(torch.empty(emb_size, num_spherical * num_radial))
        )

    def forward(self, radial: Tensor) -> Tensor:
        """Map [n_pairs, num_radial] to [n_pairs, emb_size, num_spherical]."""
        weight = self.weight.view(self.emb_size * self.num_spherical, -1)
        return nn.functional.linear(radial, weight).view(
            len(radial), self.emb_size, self.num_spherical
        )


class TripletInteraction(nn.Module):
    """Two-hop message passing (GemNet-T's only kind).

    Args:
        name: For the scale factors.
        emb_size_edge: Size of the messages.
        emb_size_trip: Size they are projected to for the sum over triplets.
        emb_size_rbf: Size of the projected radial basis.
        emb_size_cbf: Size of the projected circular basis.
        emb_size_bil_trip: Size after the bilinear layer.
        act: Activation.
    """

    def __init__(
        self,
        name: str,
        emb_size_edge: int,
        emb_size_trip: int,
        emb_size_rbf: int,
        emb_size_cbf: int,
        emb_size_bil_trip: int,
        act: nn.Module,
    ):
        super().__init__()
        self.dense_ba = Dense(emb_size_edge, emb_size_edge, act)
        self.mlp_rbf = linear(emb_size_rbf, emb_size_edge)
        self.scale_rbf = ScaleFactor(f"{name}_had_rbf")
        self.down = Dense(emb_size_edge, emb_size_trip, act)
        self.bilinear = linear(emb_size_cbf * emb_size_trip, emb_size_bil_trip)
        self.scale_cbf = ScaleFactor(f"{name}_sum_cbf")
        self.up_ca = Dense(emb_size_bil_trip, emb_size_edge, act)
        self.up_ac = Dense(emb_size_bil_trip, emb_size_edge, act)

    def forward(self, m: Tensor, rbf: Tensor, cbf: Tensor, shape: Geometry) -> Tensor:
        """The part of the new messages that comes from triplets.

        Args:
            m: Messages, shape [2, n_pairs, emb_size_edge].
            rbf: Projected radial basis, shape [n_pairs, emb_size_rbf].
            cbf: Radial part of the circular basis, shape [n_pairs, emb_size_cbf, num_spherical].
            shape: The triplets.

        Returns:
            Shape [2, n_pairs, emb_size_edge].
        """
        x = self.dense_ba(m)
        x = self.scale_rbf.settle(x * self.mlp_rbf(self.scale_rbf(rbf)), x)
        x = self.down(x)
        y = self._bilinear(self.scale_cbf(x), cbf, shape)
        y = self.scale_cbf.settle(y, x)
        # What c->a learns goes to a->c too: symmetric message passing.
        return (self.up_ca(y) + reverse(self.up_ac(y))) * INV_SQRT_2

    def _bilinear(self, x: Tensor, cbf: Tensor, shape: Geometry) -> Tensor:
        summed = shape.sum_over_triplets(x.flatten(0, 1))  # [n_edges, l, trip]
        summed = summed.view(2, cbf.shape[0], *summed.shape[1:])
        mixed = torch.matmul(cbf, summed)  # [2, n_pairs, cbf, trip]
        return self.bilinear(mixed.flatten(-2))
