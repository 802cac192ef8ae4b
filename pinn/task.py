"""A problem as the core's trainer sees it: batches of points, and residuals by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dcase.objective import Term
from dcase.pinn.conditions import Placement, wall_points
from dcase.pinn.derivatives.engines import choose_engine
from dcase.pinn.derivatives.names import Named, Wanted, trace, wanted
from dcase.pinn.equations import residual_names
from dcase.pinn.problem import PDEProblem
from dcase.pinn.settings import PointSettings


@dataclass(frozen=True)
class Pass:
    """Points that go through the network together, because they need the same derivatives.

    Attributes:
        points: [n, d]; one tensor for as long as the points stay, so that models can keep what
            depends on points alone.
        asked: The derivatives.
        groups: Which groups the points belong to, in order: 0 the equation's, then those of the
            soft conditions.
        sizes: Points of each of them.
    """

    points: Tensor
    asked: Wanted
    groups: Sequence[int]
    sizes: Sequence[int]


@dataclass(frozen=True)
class PointBatch:
    """All points of a step, and what conditions know at theirs (by group)."""

    passes: Sequence[Pass]
    known: Sequence[Mapping[str, Tensor]]

    @property
    def interior(self) -> Tensor:
        """The points of the equation."""
        first = self.passes[0]
        return first.points[: first.sizes[0]]

    def describe(self) -> str:
        """For messages."""
        return f"{sum(len(p.points) for p in self.passes)} points"


class PinnTask:
    """The residuals of a problem (the core's ``Problem``) at its points (the core's batches).

    Terms: every residual of the equation under its own name, then those of the soft conditions.

    Args:
        problem: What is to be solved.
        points: How many points, and where.
        dtype: Of the points that the network sees.
        device: Of the points.
        seed: Of the points.
        engine: ``"auto"``, ``"autograd"``, ``"jet"`` or ``"adjoint"``.
        compile: Compile the jets; pays for runs of thousands of steps.
        causal: Steepness of causal weights (2203.07404, eq. 2.8), in units of the weighted loss; 0:
            none.
        causal_chunks: Number of time slices of the causal weights.
        joint: Send all points through the network as one batch (BatchNorm then sees what it sees in
            codes that do so) and work out every derivative at all of them.
        extra: Further points of the equation [n, d] (from residual-based refinement).
        weights: Of the terms, instead of those that the settings give; or None.
    """

    def __init__(
        self,
        problem: PDEProblem,
        points: PointSettings,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        seed: int = 0,
        engine: str = "auto",
        compile: bool = False,
        causal: float = 0.0,
        causal_chunks: int = 32,
        joint: bool = False,
        extra: Tensor | None = None,
        weights: Mapping[str, float] | None = None,
    ):
        self.problem, self.settings = problem, points
        self.dtype, self.device, self.seed = dtype, torch.device(device), seed
        self.engine, self.compile = engine, compile
        self.causal, self.causal_chunks, self.joint = causal, causal_chunks, joint
        self.extra = extra
        self._weights = dict(weights) if weights else None
        self.equation = problem.equation
        self.soft = [c for c in problem.conditions if not c.hard]
        fields, coordinates = tuple(self.equation.fields), tuple(self.equation.coordinates)
        self.asked = [trace(self.equation)]
        self.asked += [wanted(c.wanted(problem.domain), coordinates, fields) for c in self.soft]
        if joint:
            names = dict.fromkeys(name for w in self.asked for name in w.names)
            self.asked = [wanted(list(names), coordinates, fields)] * len(self.asked)
        self._batch: PointBatch | None = None
        self._drawn = -1
        self.redraw(0)

    # ------------------------------------------------------------------ the core's Problem

    @property
    def term_names(self) -> list[str]:
        """Names of all terms, those of the equation first."""
        return term_names_of(self.problem)

    @property
    def residual_names(self) -> list[str]:
        """Names of the equation's terms."""
        return residual_names(self.equation)

    @property
    def display(self) -> dict[str, tuple[float, str]]:
        """Residuals are in the equation's own units."""
        return dict.fromkeys(self.term_names, (1.0, ""))

    def terms(self, model: nn.Module, batch: PointBatch, training: bool) -> dict[str, Tensor]:
        """Residuals by name, each [n]."""
        given = self._derivatives(model, batch)
        found = dict(self.equation.residuals(given[0]))
        if self.causal > 0:
            found = self._causal(found, batch.interior[:, -1])
        for condition, known, d in zip(self.soft, batch.known[1:], given[1:], strict=True):
            found |= condition.residuals(d, known)
        return found

    def _derivatives(self, model: nn.Module, batch: PointBatch) -> list[Any]:
        """The named derivatives of each group."""
        given: list[Any] = [None] * len(batch.known)
        for one in batch.passes:
            engine = choose_engine(model, one.asked, self.engine, compile=self.compile)
            everywhere = engine(model, one.points, one.asked)
            for group, d in zip(one.groups, _split(everywhere, one.sizes), strict=True):
                given[group] = d
        return given

    def residuals_at(self, model: nn.Module, points: Tensor) -> dict[str, Tensor]:
        """The equation's residuals at points [n, d]."""
        engine = choose_engine(model, self.asked[0], self.engine)
        return dict(self.equation.residuals(engine(model, points, self.asked[0])))

    def _causal(self, residuals: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        """Residuals times the root of their causal weight, which is not differentiated.

        The loss of a time slice counts only once the slices before it are solved: weight
        ``exp(-causal * sum of the earlier slices' losses)`` (2203.07404).
        """
        low, high = self.problem.domain.low("t"), self.problem.domain.high("t")
        n = self.causal_chunks
        chunk = ((t - low) / (high - low) * n).long().clamp(0, n - 1)
        with torch.no_grad():
            scales = self.term_weights()
            loss = torch.zeros(n, dtype=t.dtype, device=t.device)
            count = torch.zeros_like(loss).index_add(0, chunk, torch.ones_like(t)).clamp(min=1)
            for name, r in residuals.items():
                loss += torch.zeros_like(loss).index_add(0, chunk, scales[name] * r * r) / count
            earlier = torch.cumsum(loss, 0) - loss
            root = torch.exp(-0.5 * self.causal * earlier)[chunk]
        return {name: root * r for name, r in residuals.items()}

    # ------------------------------------------------------------------ the core's batches

    def batches(self, steps_per_epoch: int) -> FixedPoints:
        """The points as the trainer's samples; every step sees all of them."""
        kind = DrawnPoints if self.settings.resample else FixedPoints
        return kind(self, steps_per_epoch)

    def batch(self) -> PointBatch:
        """All points."""
        assert self._batch is not None
        return self._batch

    def redraw(self, epoch: int) -> bool:
        """Draw the points anew if it is time, and say if it is.

        Both are functions of seed and epoch, so that a resume has the same points and steps.
        """
        every = self.settings.resample
        drawn = epoch // every if every else 0
        if drawn != self._drawn:
            self._drawn = drawn
            self._batch = self._draw(self.seed + 7919 * drawn)
        return bool(every) and epoch > 0 and epoch % every == 0

    def _draw(self, seed: int) -> PointBatch:
        s, domain = self.settings, self.problem.domain
        interior = domain.sample(s.interior, s.sampler, seed)
        if s.at_start:  # further points of the equation at the first time, as DeepXDE has them
            start = domain.face(s.at_start, "t", domain.low("t"), s.sampler, seed + 1)
            interior = torch.cat([interior, start])
        if s.on_walls:
            share = Placement(max(1, s.on_walls // len(domain.space)), s.sampler, seed)
            walls = [wall_points(domain, c, "both", share) for c in domain.space]
            interior = torch.cat([interior, *walls])
        if self.extra is not None:
            interior = torch.cat([interior, self.extra.double()])
        points: list[Tensor] = [interior]
        known: list[dict[str, Tensor]] = [{}]
        for number, condition in enumerate(self.soft, 2):
            n = s.initial if condition.kind == "initial" else s.boundary
            placement = Placement(n, s.sampler, seed + number)
            where, values = condition.place(domain, placement)
            points.append(where)
            known.append({name: self._to(v) for name, v in values.items()})
        together: dict[Wanted, list[int]] = {}
        for index, asked in enumerate(self.asked):
            together.setdefault(asked, []).append(index)
        passes = [
            Pass(
                self._to(torch.cat([points[i] for i in groups])),
                asked,
                groups,
                [len(points[i]) for i in groups],
            )
            for asked, groups in together.items()
        ]
        return PointBatch(passes, known)

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)

    def describe(self) -> str:
        """Points, for messages."""
        assert self._batch is not None
        return self._batch.describe()

    # ------------------------------------------------------------------ weights

    def residual_scales(self) -> dict[str, float]:
        """Typical size of every residual, for weights that make units comparable."""
        fields = self.problem.field_scales()
        initial = self.problem.initial
        slopes: dict[str, float] = {}
        if initial is not None:
            grid = self.problem.domain.sample(4096, "sobol", 0)
            space = self.problem.domain.space
            for k, coordinate in enumerate(space):
                orders = [int(j == k) for j in range(len(space))]
                rms = initial.derivative(grid, orders).square().mean(0).sqrt().tolist()
                slopes |= {f"{f}_{coordinate}": r for f, r in zip(initial.fields, rms, strict=True)}
        values: dict[str, float] = {}
        for name, (mean, std) in fields.items():
            values[name] = (mean * mean + std * std) ** 0.5
            for coordinate in self.equation.coordinates:
                size = std / (0.25 * self.problem.domain.length(coordinate))
                values[f"{name}_{coordinate}"] = max(slopes.get(f"{name}_{coordinate}", 0.0), size)
        own = getattr(self.equation, "residual_scales", None)
        scales = own(SimpleNamespace(**values)) if own else {}
        scales = {name: float(scales.get(name, 1.0)) or 1.0 for name in self.residual_names}
        for condition in self.soft:
            for term in condition.term_names():
                name = term.split(" ")[1]
                first = name.split("_")[0]
                size = values.get(name, 1.0) if "_" in name else fields.get(first, (0.0, 1.0))[1]
                scales[term] = size or 1.0
        return scales

    def term_weights(self) -> dict[str, float]:
        """Weight of every term: its own of the settings, over the square of its scale."""
        if self._weights is None:
            scales = self.residual_scales()
            if not self.settings.scaled:
                scales = dict.fromkeys(scales, 1.0)
            self._weights = {
                name: self.settings.weight(name) / scale**2 for name, scale in scales.items()
            }
        return self._weights

    def objective_terms(self) -> dict[str, Term]:
        """For the core's :class:`~dcase.objective.Objective`.

        Raises:
            OptionError: If a weight is given for a term that there is not.
        """
        self.settings.check_weights(self.term_names)
        return {name: Term(weight=w) for name, w in self.term_weights().items()}


def term_names_of(problem: PDEProblem) -> list[str]:
    """Names of the terms of a problem, those of the equation first."""
    soft = [name for c in problem.conditions if not c.hard for name in c.term_names()]
    return [*residual_names(problem.equation), *soft]


class FixedPoints:
    """Points that stay, as the trainer's samples: a sample is a step with all points.

    Args:
        task: Has the points.
        steps: Steps an epoch.
    """

    def __init__(self, task: PinnTask, steps: int):
        self.task, self.steps = task, steps

    def __len__(self) -> int:
        return self.steps

    def batch(self, indices: Tensor) -> PointBatch:
        """All points, whatever the indices."""
        return self.task.batch()


class DrawnPoints(FixedPoints):
    """Points that are drawn anew from time to time."""

    def set_epoch(self, epoch: int) -> bool:
        """Returns whether there are new points."""
        return self.task.redraw(epoch)


def _split(d: Named, sizes: Sequence[int]) -> list[Named]:
    """The derivatives of consecutive groups of points."""
    if len(sizes) == 1:
        return [d]
    parts = {name: d[name].split(list(sizes)) for name in d}
    return [Named({n: p[k] for n, p in parts.items()}) for k in range(len(sizes))]
