r"""Jets: a function's value with some of its derivatives, and how they pass through operations.

For :math:`h = s(z)` the chain rule reads (subscripts are coordinates)

.. math:: h_i = s' z_i, \quad h_{ij} = s'' z_i z_j + s' z_{ij}, \quad
          \Delta h = s' \Delta z + s'' \sum_i z_i^2,

the last of which carries a Laplacian as *one* channel whatever the number of coordinates (the
"forward Laplacian"; collapsed Taylor mode). A linear map acts on every channel alike, so that all
of them go through it as one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dcase.errors import OptionError
from dcase.pinn.derivatives.names import Wanted

#: ``f(z, order) -> (value, first derivative, ..., order-th)`` of an elementwise function.
Elementwise = Callable[[Tensor, int], Sequence[Tensor]]


@dataclass(frozen=True)
class Plan:
    """Which channels a jet has: value, first derivatives, second ones, Laplacian; in that order.

    Attributes:
        first: Coordinates of the first derivatives.
        second: Pairs (i, j), i <= j, of the second derivatives; both must be in ``first``.
        laplacian: Coordinates that the Laplacian sums over, all in ``first``; () for none.
        adjoint: A network with one output may compute first derivatives by an explicit reverse
            pass instead (no second derivatives then).
    """

    first: tuple[int, ...] = ()
    second: tuple[tuple[int, int], ...] = ()
    laplacian: tuple[int, ...] = ()
    adjoint: bool = False

    def __post_init__(self) -> None:
        needed = {i for pair in self.second for i in pair} | set(self.laplacian)
        if not needed <= set(self.first):
            raise OptionError("second derivatives need the first ones by the same coordinates")
        if self.adjoint and self.order > 1:
            raise OptionError("the adjoint engine gives first derivatives only")

    @staticmethod
    def of(wanted: Wanted, *, adjoint: bool = False) -> Plan:
        """The channels that ``wanted`` needs."""
        return Plan(wanted.first, wanted.second, wanted.laplacian, adjoint)

    @property
    def order(self) -> int:
        """Highest order of differentiation: 0, 1 or 2."""
        return 2 if self.second or self.laplacian else int(bool(self.first))

    @property
    def channels(self) -> int:
        """Number of channels, the value included."""
        return 1 + len(self.first) + len(self.second) + bool(self.laplacian)

    def channel(self, *key: int | str) -> int:
        """Position of a derivative: ``channel(i)``, ``channel(i, j)``, ``channel("laplacian")``.

        Raises:
            OptionError: The plan has no such channel.
        """
        if key == ("laplacian",) and self.laplacian:
            return self.channels - 1
        if len(key) == 1 and key[0] in self.first:
            return 1 + self.first.index(key[0])
        if len(key) == 2:
            for c, pair in enumerate(self.second, start=1 + len(self.first)):
                if pair == key or pair[::-1] == key:
                    return c
        raise OptionError(f"this jet has no channel {key}")

    def seed(self, points: Tensor) -> Jet:
        """The jet of the coordinates themselves.

        Args:
            points: [N, d].
        """
        n, d = points.shape
        rest = points.new_zeros(self.channels - 1, n, d)
        for i in self.first:
            rest[self.channel(i) - 1, :, i] = 1.0
        return Jet(self, torch.cat([points[None], rest]))


@dataclass(frozen=True)
class Jet:
    """Values of ``width`` functions at N points with the derivatives of a plan.

    Sums and products of jets, and of a jet with numbers or tensors [N, width] or [width] that do
    not depend on the coordinates, obey the rules of differentiation.

    Attributes:
        plan: Which channels.
        stack: [C, N, width]; channel 0 is the value.
    """

    plan: Plan
    stack: Tensor

    @property
    def value(self) -> Tensor:
        """[N, width]."""
        return self.stack[0]

    def first(self, i: int) -> Tensor:
        """Derivative by coordinate i, [N, width]."""
        return self.stack[self.plan.channel(i)]

    def second(self, i: int, j: int) -> Tensor:
        """Second derivative, [N, width]."""
        return self.stack[self.plan.channel(i, j)]

    @property
    def laplacian(self) -> Tensor:
        """[N, width]."""
        return self.stack[self.plan.channel("laplacian")]

    def columns(self, which: slice | Sequence[int]) -> Jet:
        """Some of the functions."""
        return Jet(self.plan, self.stack[:, :, which])

    @staticmethod
    def cat(jets: Sequence[Jet]) -> Jet:
        """Jets of the same plan side by side, as columns."""
        return Jet(jets[0].plan, torch.cat([jet.stack for jet in jets], dim=2))

    @staticmethod
    def constant(plan: Plan, value: Tensor) -> Jet:
        """Functions that do not depend on the coordinates.

        Args:
            plan: Which channels.
            value: [N, width].
        """
        return Jet(plan, F.pad(value[None], (0, 0, 0, 0, 0, plan.channels - 1)))

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Jet:
        """``value @ weight.T + bias`` and its derivatives.

        Args:
            weight: [out, width].
            bias: [out].
        """
        c, n, width = self.stack.shape
        z = (self.stack.reshape(c * n, width) @ weight.T).view(c, n, weight.shape[0])
        return Jet(self.plan, z) if bias is None else Jet(self.plan, z) + bias

    def elementwise(self, function: Elementwise) -> Jet:
        """A function of one variable, applied to each of the functions.

        Args:
            function: ``function(z, order)`` returns the value and as many derivatives, each of the
                shape of z and differentiable in what it depends on.
        """
        plan, z = self.plan, self.stack
        s = function(z[0], plan.order)
        out = [s[0]]
        out += [s[1] * self.first(i) for i in plan.first]
        for i, j in plan.second:
            out.append(s[2] * self.first(i) * self.first(j) + s[1] * self.second(i, j))
        if plan.laplacian:
            squares = _sum([self.first(i).square() for i in plan.laplacian])
            out.append(s[2] * squares + s[1] * self.laplacian)
        return Jet(plan, torch.stack(out))

    def __add__(self, other: Jet | Tensor | float) -> Jet:
        if isinstance(other, Jet):
            return Jet(self.plan, self.stack + other.stack)
        return Jet(self.plan, torch.cat([self.stack[:1] + other, self.stack[1:]]))

    __radd__ = __add__

    def __neg__(self) -> Jet:
        return Jet(self.plan, -self.stack)

    def __sub__(self, other: Jet | Tensor | float) -> Jet:
        return self + (-other)

    def __rsub__(self, other: Tensor | float) -> Jet:
        return -self + other

    def __mul__(self, other: Jet | Tensor | float) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.plan, self.stack * other)
        f, g, plan = self, other, self.plan
        out = [f.value * g.value]
        out += [f.first(i) * g.value + f.value * g.first(i) for i in plan.first]
        for i, j in plan.second:
            mixed = f.first(i) * g.first(j) + f.first(j) * g.first(i)
            out.append(f.second(i, j) * g.value + mixed + f.value * g.second(i, j))
        if plan.laplacian:
            mixed = _sum([f.first(i) * g.first(i) for i in plan.laplacian])
            out.append(f.laplacian * g.value + 2.0 * mixed + f.value * g.laplacian)
        return Jet(plan, torch.stack(out))

    __rmul__ = __mul__


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
