"""Projection onto the constraint manifold: the nearest positions that obey c(y) = 0.

    y* = argmin 1/2 |y* - y|^2_M  subject to  c(y*) = 0        (the paper's eq. 12)

with the metric M = W^-1 (masses; default 1). Three ways there:

* ``"newton"``: steps of the linearised problem (eq. 10), with (J W J^T) solved directly, block by
  block, and with the correction along the manifold that makes the limit the nearest point;
* ``"cg"``: the same with (J W J^T) solved by conjugate gradients from products alone;
* ``"descent"``: the paper's experiments, y <- y - a W J^T c, with a step length for each sample
  that is halved until mean |c| does not grow. It ends near the nearest point, not at it.

There are no weights in a projection, so its derivative needs none of the iterations: it follows
from the conditions that hold at y*. With H = sum_i lam_i (Hessian of c_i) and the multipliers lam,

    M (y* - y) + J^T lam = 0,  c(y*) = 0   =>   dy* = S M dy,  S = (M + H)^-1 on the tangent space,

and the backward pass solves this system by conjugate gradients on the tangent space, where M + H is
positive definite at a minimum. Memory does not grow with the number of iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcase.dae.constraints import Constraint, Linearized
from dcase.dae.linear import Solver
from dcase.errors import OptionError
from dcase.options import check_types

WAYS = ("newton", "cg", "descent")
GRADIENTS = ("implicit", "tangent", "unrolled")
HALVINGS = {"newton": 8, "cg": 8, "descent": 20}


@dataclass(frozen=True)
class ProjectionSettings:
    """How to project.

    Attributes:
        way: ``"newton"``, ``"cg"`` or ``"descent"`` (see the module).
        tolerance: Largest violation that is left, in the constraint's unit; None: the constraint's
            own.
        max_iterations: After which a sample is left as it is.
        gradient: ``"implicit"``: as above, exact at the nearest point; ``"tangent"``: without H,
            exact where there was nothing to project; ``"unrolled"``: through all iterations, which
            keeps all of them in memory.
    """

    way: str = "newton"
    tolerance: float | None = None
    max_iterations: int = 100
    gradient: str = "implicit"

    def __post_init__(self) -> None:
        check_types(self)
        if self.way not in WAYS:
            raise OptionError(f"a projection goes by {', '.join(WAYS)}; got {self.way!r}")
        if self.gradient not in GRADIENTS:
            raise OptionError(
                f"the gradient of a projection is one of {', '.join(GRADIENTS)}; "
                f"got {self.gradient!r}"
            )
        if self.tolerance is not None and not self.tolerance > 0:
            raise OptionError(f"tolerance must be positive, got {self.tolerance}")
        if self.max_iterations < 1:
            raise OptionError(f"max_iterations must be at least 1, got {self.max_iterations}")


@dataclass(frozen=True)
class Projected:
    """Where a projection ended.

    Attributes:
        r: [B, N, d].
        iterations: Of each sample [B].
        converged: Whether each sample is within the tolerance [B].
    """

    r: Tensor
    iterations: Tensor
    converged: Tensor


def project(
    r: Tensor,
    constraint: Constraint,
    settings: ProjectionSettings | None = None,
    *,
    weight: Tensor | None = None,
) -> Projected:
    """The nearest positions on the constraint manifold; differentiable in ``r``.

    A sample's result does not depend on the rest of its batch.

    Args:
        r: Positions [B, N, d].
        constraint: The manifold.
        settings: How; default: Newton with implicit gradient.
        weight: Inverse masses [N, 1], if heavy nodes are to move less; None: all the same.
    """
    settings = settings or ProjectionSettings()
    if settings.gradient == "unrolled":
        return _iterate(r, constraint, settings, weight)
    counts: list[Tensor] = []
    found = _Implicit.apply(r, constraint, settings, weight, counts)
    return Projected(found, *counts)


class _Implicit(torch.autograd.Function):
    """The projection as one operation, with the derivative of the problem it solves."""

    @staticmethod
    def forward(
        ctx: Any,
        r: Tensor,
        constraint: Constraint,
        settings: ProjectionSettings,
        weight: Tensor | None,
        counts: list[Tensor],
    ) -> Tensor:
        with torch.no_grad():
            found = _iterate(r, constraint, settings, weight)
        counts += [found.iterations, found.converged]
        ctx.save_for_backward(r, found.r)
        ctx.problem = constraint, settings, weight
        return found.r

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        r, y = ctx.saved_tensors
        constraint, settings, weight = ctx.problem
        problem = _Local(constraint.for_newton(), y, weight, settings.way == "cg")
        bent = settings.gradient == "implicit"
        if bent:
            problem.multipliers(r - y)
        # S g in the metric: (1 + P W H) s = P W g, s tangential; the gradient is M s.
        s = problem.tangential(_scaled(upstream, weight))
        if bent:
            s = problem.solve_bent(s, tolerance=1e-13 if y.dtype == torch.float64 else 1e-6)
        gradient = s if weight is None else s / weight
        return gradient, None, None, None, None


def velocity_on_manifold(
    r: Tensor, v: Tensor, constraint: Constraint, *, weight: Tensor | None = None
) -> Tensor:
    """The nearest velocities that keep the constraint: J v = 0 [B, N, d]."""
    here = constraint.for_newton().at(r)
    return v - _scaled(here.vjp(here.gram(weight).solve(here.jvp(v))), weight)


# ------------------------------------------------------------------------------------------------
# Iterations


def _iterate(
    r: Tensor, constraint: Constraint, settings: ProjectionSettings, weight: Tensor | None
) -> Projected:
    """Iterate each sample until it has converged."""
    tolerance = settings.tolerance or constraint.tolerance
    descent = settings.way == "descent"
    # Descent is the paper's: it follows the equations as they are given.
    equations = constraint if descent else constraint.for_newton()
    y = r
    iterations = torch.zeros(len(r), dtype=torch.long, device=r.device)
    step = torch.ones(len(r), dtype=r.dtype, device=r.device)
    if weight is not None and descent:
        step /= weight.max()
    converged = torch.zeros(len(r), dtype=torch.bool, device=r.device)
    for _ in range(settings.max_iterations + 1):
        if descent:
            move, near = None, None
        else:
            move, near = _newton_move(r, y, equations, weight, settings.way == "cg", iterations)
        with torch.no_grad():
            converged = _largest(constraint.violation(y)) < tolerance
            if near is not None:
                converged &= near < tolerance
            active = ~converged & (iterations < settings.max_iterations)
            if not bool(active.any()):
                break
        if move is None:
            move = -_scaled(equations.vjp(y, equations(y)), weight)
        y, step = _advance(y, move, step, active, equations, settings.way)
        iterations = iterations + active
    with torch.no_grad():  # on the manifold is what counts; a sample may fall short of the nearest
        converged = _largest(constraint.violation(y)) < tolerance
    return Projected(y, iterations, converged)


def _newton_move(
    r: Tensor, y: Tensor, c: Constraint, weight: Tensor | None, cg: bool, iterations: Tensor
) -> tuple[Tensor, Tensor]:
    """Newton's step towards the nearest point, and how far along the manifold that still is [B].

    The step is n + s: n = -W J^T (J W J^T)^-1 c leads to the manifold, s along it to the nearest
    point. Far from the manifold s would lead astray, so the first step of a sample is n alone; and
    when a sample does not settle, n alone is better than none.
    """
    problem = _Local(c, y, weight, cg)
    normal = -_scaled(problem.here.vjp(problem.solver.solve(c(y))), weight)
    away = r - y
    problem.multipliers(away)
    along = problem.tangential(away)
    gap = along.detach().abs().flatten(1).amax(1)
    first = (iterations == 0).detach()
    late = iterations >= 12
    gap = torch.where(late, torch.zeros_like(gap), gap)
    if bool((first | late).all()):
        return normal, gap
    bent = problem.bend(normal)
    aim = along - problem.tangential(_scaled(bent, weight))
    s = problem.solve_bent(aim, tolerance=1e-3 if c.tolerance > 1e-9 else 1e-10, most=8)
    keep = (first | late)[:, None, None]
    return torch.where(keep, normal, normal + s), gap


def _advance(
    y: Tensor, move: Tensor, step: Tensor, active: Tensor, c: Constraint, way: str
) -> tuple[Tensor, Tensor]:
    """Move the active samples, each by a share of its step that lets mean |c| not grow."""
    with torch.no_grad():
        before = c(y).abs().mean(1)
        # On the manifold, rounding and the curvature of a step along it may let |c| grow a little.
        allowed = before if way == "descent" else torch.maximum(before, _slack(c, y))
        share = step.clone()
        good = torch.ones_like(active)
        for halving in range(HALVINGS[way] + 1):
            after = c(y + share[:, None, None] * move).abs().mean(1)
            # NaN counts as growth.
            good = ~active | (after <= allowed)
            if halving == 0:
                at_once = good
            if bool(good.all()):
                break
            share = torch.where(good, share, 0.5 * share)
        # Newton's own length is tried each time.
        following = torch.where(active & at_once, 1.5 * share, share) if way == "descent" else step
        share = torch.where(active, share, torch.zeros_like(share))
    return y + share[:, None, None] * move, following


def _slack(c: Constraint, y: Tensor) -> Tensor:
    """Mean |c| below which a Newton step is taken as it is."""
    return torch.full((len(y),), max(c.tolerance, 1e-3), dtype=y.dtype, device=y.device)


class _Local:
    """The problem about positions y: multipliers, the tangent space, and systems on it."""

    def __init__(self, c: Constraint, y: Tensor, weight: Tensor | None, cg: bool):
        self.here, self.weight = c.at(y), weight
        self.solver: Solver = (
            _ByProducts(self.here, weight, y.dtype) if cg else self.here.gram(weight)
        )
        self.lam: Tensor | None = None

    def tangential(self, a: Tensor) -> Tensor:
        """P a: the part of a with J P a = 0, W J^T taken off."""
        return a - _scaled(self.here.vjp(self.solver.solve(self.here.jvp(a))), self.weight)

    def multipliers(self, away: Tensor) -> None:
        """Those of the nearest point, were y it: r - y = W J^T lam, by least squares."""
        self.lam = self.solver.solve(self.here.jvp(away))

    def bend(self, a: Tensor) -> Tensor:
        """H a."""
        assert self.lam is not None
        return self.here.curvature(self.lam, a)

    def solve_bent(self, aim: Tensor, *, tolerance: float, most: int = 200) -> Tensor:
        """Solve (1 + P W H) s = aim on the tangent space, by conjugate gradients in the metric M.

        A sample stops at negative curvature, which there is not at a minimum, with what it has.
        """

        def product(a: Tensor) -> Tensor:
            return a + self.tangential(_scaled(self.bend(a), self.weight))

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * b if self.weight is None else a * b / self.weight).flatten(1).sum(1)

        return conjugate_gradients(product, dot, aim, tolerance, most)


class _ByProducts:
    """(J W J^T) x = b by conjugate gradients, from products with J and J^T alone."""

    def __init__(self, here: Linearized, weight: Tensor | None, dtype: torch.dtype):
        self.here, self.weight = here, weight
        self.tolerance = 1e-13 if dtype == torch.float64 else 1e-6

    def solve(self, b: Tensor) -> Tensor:
        def product(lam: Tensor) -> Tensor:
            return self.here.jvp(_scaled(self.here.vjp(lam), self.weight))

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(1)

        return conjugate_gradients(product, dot, b, self.tolerance, 10 * b.shape[1])


def conjugate_gradients(product: Any, dot: Any, aim: Tensor, tolerance: float, most: int) -> Tensor:
    """Solve A x = aim for every sample, A symmetric in the scalar product ``dot``.

    Args:
        product: A x.
        dot: Scalar products [B].
        aim: Right-hand sides [B, ...].
        tolerance: Of the residual, relative to ``aim``.
        most: Iterations.
    """
    shape = (-1,) + (1,) * (aim.dim() - 1)
    x, residual, direction = torch.zeros_like(aim), aim, aim
    size = dot(residual, residual)
    goal = tolerance**2 * size
    for _ in range(most):
        active = size > goal
        if not bool(active.any()):
            break
        image = product(direction)
        bend = dot(direction, image)
        active &= bend > 0
        if not bool(active.any()):
            break
        zero = torch.zeros_like(size)
        share = torch.where(active, size / torch.where(active, bend, zero + 1), zero)
        x = x + share.view(shape) * direction
        residual = residual - share.view(shape) * image
        now = dot(residual, residual)
        turn = torch.where(active, now / torch.where(active, size, zero + 1), zero)
        direction = residual + turn.view(shape) * direction
        # A sample that has stopped keeps its x: its size is below its goal from here on.
        size = torch.where(active, now, zero)
    return x


def _scaled(a: Tensor, weight: Tensor | None) -> Tensor:
    return a if weight is None else weight * a


def _largest(violation: Tensor) -> Tensor:
    return violation.amax(1)
