"""Functions of a distance as cubics between uneven knots, for those that splines do not suit.

The filters of a network with IReLU are smooth but where an input of IReLU goes through zero: there
their curvature jumps, and the slope of a spline on even knots comes nearer to theirs only as fast
as the knots come closer together (1024 of them: to 1e-3). With a knot in every such place, cubics
that take value and slope at both ends of an interval come nearer with the third power. The places
are found as sign changes, and all else there is to resolve by halving the intervals where the
cubics are off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FIRST_INTERVALS = 64
"""Even ones to begin with, beside the knots that are given."""
MOST_INTERVALS = 8192
CLOSEST_KNOTS = 1e-8
"""A; nearer knots are one: a kink that far off changes a slope by less than float32 resolves."""
_PLACES = tuple(k / 8 for k in range(1, 8))  # where an interval is looked at
_SAMPLES = 4096  # for sign changes
_HALVINGS = 40

Function = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pieces:
    """Cubics between knots, right beyond the first.

    Attributes:
        knots: A, ascending, float64, shape [n + 1].
        coefficients: Of the powers 0 to 3 of the distance from the knot before, float64, shape
            [n, 4, columns].
        value_error: Largest deviation that was found, relative to the largest value.
        slope_error: Likewise of the slope.
    """

    knots: np.ndarray
    coefficients: Tensor
    value_error: float
    slope_error: float

    def __len__(self) -> int:
        return len(self.coefficients)

    def bins(self) -> np.ndarray:
        """The interval that each of n even bins begins in, int64, shape [n]."""
        begins = np.linspace(self.knots[0], self.knots[-1], len(self), endpoint=False)
        return np.maximum(np.searchsorted(self.knots, begins, side="right") - 1, 0)


def sign_changes(
    basis: Callable[[Tensor], Tensor], weight: Tensor, bias: Tensor, lowest: float, highest: float
) -> np.ndarray:
    """Where ``basis(d) @ weight.T + bias`` goes through zero, to the last bit or so.

    Args:
        basis: Maps distances [n], A, float64, to [n, inputs]; it changes slowly.
        weight: Shape [columns, inputs].
        bias: Shape [columns].
        lowest: A.
        highest: A.

    Returns:
        A, shape [n_changes].
    """
    points = torch.linspace(lowest, highest, _SAMPLES, dtype=torch.float64)
    positive = torch.addmm(bias, basis(points), weight.T) > 0
    before, column = torch.nonzero(positive[1:] != positive[:-1], as_tuple=True)
    left, right, rises = points[before], points[before + 1], positive[before + 1, column]
    weight, bias = weight[column], bias[column]
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        beyond = ((basis(middle) * weight).sum(dim=1) + bias > 0) == rises
        left, right = torch.where(beyond, left, middle), torch.where(beyond, middle, right)
    return np.asarray((left + right) / 2)


def fit_pieces(
    function: Function, kinks: np.ndarray, lowest: float, highest: float, error: float
) -> Pieces | None:
    """Cubics with the values and slopes of a function at all knots.

    Args:
        function: Maps distances [n], A, float64, to values and slopes, [n, columns] each.
        kinks: Where curvatures jump, A; they become knots.
        lowest: First knot, A.
        highest: Last knot, A.
        error: Largest deviation at seven points of every interval, relative to the largest value
            at a knot, and largest deviation of the slope, likewise.

    Returns:
        None where :data:`MOST_INTERVALS` are not enough.
    """
    even = np.linspace(lowest, highest, FIRST_INTERVALS + 1)
    inside = kinks[(kinks > lowest) & (kinks < highest - CLOSEST_KNOTS)]
    knots = np.unique(np.concatenate([even, inside]))
    knots = knots[np.append(True, np.diff(knots) > CLOSEST_KNOTS)]
    if len(knots) > MOST_INTERVALS:
        return None
    at_knots = function(torch.from_numpy(knots))
    largest = torch.stack([each.abs().max() for each in at_knots]).clamp(min=1e-300)
    ends = torch.from_numpy(np.stack([knots[:-1], knots[1:]]))  # of intervals to look at
    starts: list[np.ndarray] = []  # of those that are right
    cubics, off = [], [ends.new_zeros(2, 1)]
    while ends.shape[1]:
        if sum(len(left) for left in starts) + ends.shape[1] > MOST_INTERVALS:
            return None
        found, wrong = _cubics(function, ends)
        wrong /= largest[:, None]
        right = wrong.amax(dim=0) <= error
        starts.append(ends[0, right].numpy())
        cubics.append(found[right])
        off.append(wrong[:, right])
        left, end = ends[:, ~right]
        middle = (left + end) / 2
        ends = torch.stack([torch.cat([left, middle]), torch.cat([middle, end])])
    places = np.concatenate(starts)
    order = np.argsort(places)
    worst = torch.cat(off, dim=1).amax(dim=1).tolist()
    return Pieces(np.append(places[order], highest), torch.cat(cubics)[order], *worst)


def _cubics(function: Function, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Cubics between ``ends`` [2, n]: [n, 4, columns], and their deviations in both, [2, n]."""
    n, widths = ends.shape[1], ends[1] - ends[0]
    h = widths[:, None]
    (v0, v1), (s0, s1) = (each.view(2, n, -1) for each in function(ends.flatten()))
    rise = (v1 - v0) / h
    a, b, c, d = v0, s0, (3 * rise - 2 * s0 - s1) / h, (s0 + s1 - 2 * rise) / h**2
    off = ends.new_zeros(2, n)
    for place in _PLACES:
        x = place * h
        found = a + x * (b + x * (c + x * d)), b + x * (2 * c + x * 3 * d)
        wanted = function(ends[0] + place * widths)
        for k in range(2):
            wrong = (found[k] - wanted[k]).abs().amax(dim=1)
            off[k] = torch.maximum(off[k], wrong)
    return torch.stack([a, b, c, d], dim=1), off
