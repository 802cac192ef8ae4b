r"""Networks that keep conditions exactly: embeddings of coordinates, and hard initial states.

.. math:: \psi(x, t) = \psi_0(x) + s(t)\, b(x)\, \sigma N(e(x, t)) + g(x)

========  ==========================================================================================
symbol    what it is
========  ==========================================================================================
e         embedding: a coordinate scaled to unit spread; or sin and cos of it (periodic: Dong & Ni,
          J. Comput. Phys. 435, 110242 (2021)); or cos only (zero slope at both walls)
N         the network
sigma     initial spread of each field, so that N is of the order of one
psi_0     the initial state where it is hard; else the initial mean of each field
s         ``(t - t0) / T`` where the initial state is hard, else 1
b, g      vanishes on, and interpolates between, the walls with hard Dirichlet values; else 1, 0
========  ==========================================================================================

All but N depends on the points alone and is kept for as long as the points stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from dcase.errors import OptionError
from dcase.pinn.conditions import Dirichlet, Initial, Neumann, Periodic
from dcase.pinn.derivatives.jets import Jet, Plan
from dcase.pinn.domains import Domain
from dcase.pinn.initial import InitialState
from dcase.pinn.problem import PDEProblem


class Embedding:
    """Coordinates as the features that a network sees.

    Args:
        domain: Intervals.
        kinds: ``"scaled"``, ``"plain"``, ``"periodic"`` or ``"cosine"``, one a coordinate.
        modes: Sines and cosines, or cosines, of an embedded coordinate.
    """

    def __init__(self, domain: Domain, kinds: Sequence[str], modes: int):
        self.domain, self.kinds, self.modes = domain, list(kinds), modes
        per_kind = {"scaled": 1, "plain": 1, "periodic": 2 * modes, "cosine": modes}
        self.width = sum(per_kind[kind] for kind in self.kinds)

    def __call__(self, seed: Jet) -> Jet:
        """Jet of the coordinates -> jet of the features."""
        parts = []
        for k, (name, kind) in enumerate(zip(self.domain.coordinates, self.kinds, strict=True)):
            x = seed.columns([k])
            low, length = self.domain.low(name), self.domain.length(name)
            if kind == "plain":
                parts.append(x)
            elif kind == "scaled":  # a uniform coordinate then has mean 0 and variance 1
                parts.append((x - (low + 0.5 * length)) * (math.sqrt(12.0) / length))
            else:
                period = length if kind == "periodic" else 2.0 * length
                k_all = torch.arange(1, self.modes + 1, dtype=x.stack.dtype, device=x.stack.device)
                phase = (x - low) * (2.0 * math.pi / period * k_all)
                parts.append(phase.elementwise(_cosine))
                if kind == "periodic":
                    parts.append(phase.elementwise(_sine))
        # Each of unit variance: sin and cos have 1/2.
        return Jet.cat(
            [
                p if kind in ("scaled", "plain") else p * math.sqrt(2.0)
                for p, kind in zip(parts, self._part_kinds(), strict=True)
            ]
        )

    def _part_kinds(self) -> list[str]:
        return [k for kind in self.kinds for k in ([kind, kind] if kind == "periodic" else [kind])]


class FieldModel(nn.Module):
    """A network with an embedding before it and hard conditions after it.

    Args:
        body: Features [N, embedding.width] -> [N, F]; has ``jet`` for engines other than autograd.
        embedding: Of the coordinates.
        domain: Intervals of the coordinates.
        fields: Names of the fields.
        scales: Mean and standard deviation by field.
        initial: The hard initial state, or None.
        walls: Hard Dirichlet conditions.
    """

    def __init__(
        self,
        body: nn.Module,
        embedding: Embedding,
        domain: Domain,
        fields: Sequence[str],
        scales: Mapping[str, tuple[float, float]],
        initial: InitialState | None = None,
        walls: Sequence[Dirichlet] = (),
    ):
        super().__init__()
        self.mean: Tensor
        self.spread: Tensor
        self.body, self.embedding, self.domain = body, embedding, domain
        self.fields, self.initial, self.walls = tuple(fields), initial, list(walls)
        dtype = next(body.parameters()).dtype
        columns = [scales[name] for name in self.fields]
        self.register_buffer("mean", torch.tensor([m for m, _ in columns], dtype=dtype))
        self.register_buffer("spread", torch.tensor([s for _, s in columns], dtype=dtype))
        self._kept: Any = WeakIdKeyDictionary()

    def forward(self, points: Tensor) -> Tensor:
        """Fields [N, F] at points [N, d], differentiable in both points and weights."""
        if points.requires_grad:  # nested autograd: nothing may be kept
            return self._combine(points, Plan(), differentiable=True).value
        return self.jet_at(points, Plan()).value

    def jet(self, seed: Jet) -> Jet:
        """Fields and their derivatives from the jet of the coordinates."""
        return self.jet_at(seed.value, seed.plan)

    def jet_at(self, points: Tensor, plan: Plan) -> Jet:
        """Fields and their derivatives at points [N, d]."""
        kept = self._kept.setdefault(points, {})
        if plan not in kept:
            with torch.no_grad():
                seed = plan.seed(points)
                kept[plan] = (self.embedding(seed), *self._surroundings(seed))
        features, factor, base = kept[plan]
        return self._outside(self._body(features), factor, base)

    def _combine(self, points: Tensor, plan: Plan, *, differentiable: bool) -> Jet:
        seed = plan.seed(points)
        factor, base = self._surroundings(seed, differentiable=differentiable)
        return self._outside(self._body(self.embedding(seed)), factor, base)

    def _body(self, features: Jet) -> Jet:
        if features.plan.order == 0:
            return Jet(features.plan, self.body(features.value)[None])
        return self.body.jet(features)  # type: ignore[operator]

    def _outside(self, inner: Jet, factor: Jet | None, base: Jet | None) -> Jet:
        inner = inner * self.spread
        if factor is not None:
            inner = inner * factor
        return inner + (self.mean if base is None else base)

    def _surroundings(
        self, seed: Jet, *, differentiable: bool = False
    ) -> tuple[Jet | None, Jet | None]:
        """What the network is multiplied by, and what is added to it."""
        factor, base = None, None
        names = self.domain.coordinates
        if self.initial is not None:
            base = self._state_jet(seed, differentiable)
            t = seed.columns([len(names) - 1])
            factor = (t - self.domain.low("t")) * (1.0 / self.domain.length("t"))
        for wall in self.walls:
            k = names.index(wall.coordinate)
            low, high = self.domain.intervals[wall.coordinate]
            x = (seed.columns([k]) - low) * (1.0 / (high - low))
            vanishing = {"low": x, "high": 1.0 - x, "both": x * (1.0 - x) * 4.0}[wall.side]
            held = torch.tensor(
                [float(f in wall.values) for f in self.fields], dtype=x.stack.dtype
            ).to(x.stack.device)
            vanishing = vanishing * held + (1.0 - held)
            factor = vanishing if factor is None else factor * vanishing
            if self.initial is None:  # else the initial state is taken to keep the walls
                values = [float(wall.values.get(f, 0.0)) for f in self.fields]  # type: ignore[arg-type]
                mean = self.mean.to(x.stack)
                target = torch.tensor(values, dtype=x.stack.dtype, device=x.stack.device)
                shift = mean * (1.0 - held) + target * held
                base = Jet.constant(seed.plan, shift.expand(len(x.value), -1))
        return factor, base

    def _state_jet(self, seed: Jet, differentiable: bool) -> Jet:
        """The initial state and its derivatives, those by time being zero."""
        assert self.initial is not None
        points, plan, state = seed.value, seed.plan, self.initial
        space = len(self.domain.space)

        def derivative(*by: int) -> Tensor:
            orders = [by.count(k) for k in range(space)]
            if sum(orders) < len(by):  # differentiated by time
                return points.new_zeros(len(points), len(self.fields))
            if differentiable:
                return _StateAt.apply(points, state, tuple(orders))
            return state.derivative(points, orders).to(points)

        channels = [derivative(), *(derivative(i) for i in plan.first)]
        channels += [derivative(i, j) for i, j in plan.second]
        if plan.laplacian:
            parts = [derivative(i, i) for i in plan.laplacian]
            channels.append(torch.stack(parts).sum(0))
        return Jet(plan, torch.stack(channels))


class _StateAt(torch.autograd.Function):
    """Values of a state that autograd can differentiate by the points, as often as it likes."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, state: InitialState, orders: tuple[int, ...]) -> Tensor:
        ctx.state, ctx.orders = state, orders
        ctx.save_for_backward(points)
        return state.derivative(points, orders).to(points)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (points,) = ctx.saved_tensors
        columns = []
        for k in range(points.shape[1]):
            if k >= len(ctx.orders):
                columns.append(torch.zeros_like(points[:, 0]))
                continue
            orders = tuple(o + (j == k) for j, o in enumerate(ctx.orders))
            columns.append((grad * _StateAt.apply(points, ctx.state, orders)).sum(1))
        return torch.stack(columns, 1), None, None


def build_model(
    problem: PDEProblem,
    make_body: Callable[[int, int], nn.Module],
    *,
    modes: int = 8,
    scale_inputs: bool = True,
    scale_outputs: bool = True,
) -> FieldModel:
    """A network for a problem, its hard conditions built in.

    Args:
        problem: Conditions with ``hard=True`` are built in.
        make_body: Called with the numbers of inputs and outputs.
        modes: Of the embedding of periodic and no-flux coordinates.
        scale_inputs: Scale coordinates to unit spread.
        scale_outputs: Shift and scale fields by their initial mean and spread.

    Raises:
        OptionError: If hard conditions do not go together.
    """
    domain = problem.domain
    kinds = dict.fromkeys(domain.coordinates, "scaled" if scale_inputs else "plain")
    state, walls = None, []
    for condition in problem.conditions:
        if not condition.hard:
            continue
        if isinstance(condition, Initial):
            state = condition.state
        elif isinstance(condition, Periodic):
            kinds[condition.coordinate] = "periodic"
        elif isinstance(condition, Neumann):
            if set(condition.fields) != set(problem.equation.fields):
                raise OptionError("a hard no-flux condition is for all fields of the equation")
            kinds |= dict.fromkeys(condition.coordinates, "cosine")
        elif isinstance(condition, Dirichlet):
            walls.append(condition)
    embedding = Embedding(domain, list(kinds.values()), modes)
    fields = problem.equation.fields
    scales = problem.field_scales()
    if not scale_outputs:
        scales = dict.fromkeys(scales, (0.0, 1.0))
    body = make_body(embedding.width, len(fields))
    return FieldModel(body, embedding, domain, fields, scales, state, walls)


def _cosine(z: Tensor, order: int) -> list[Tensor]:
    c, s = torch.cos(z), torch.sin(z)
    return [c, -s, -c][: order + 1]


def _sine(z: Tensor, order: int) -> list[Tensor]:
    c, s = torch.cos(z), torch.sin(z)
    return [s, c, -s][: order + 1]
