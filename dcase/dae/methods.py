"""What a constraint adds to a residual network: four published methods, and the manifold itself.

==============  ====================================================================================
``none``        the network as it is
``auxiliary``   the loss has eta times the mean square of c(y_c) besides
``penalty``     dz/dtau = sigma(z) - gamma K_c^T J^T H c(K_c z), H = 1 or (J J^T)^-1   (eq. 14)
``end``         the output is projected; auxiliary loss and penalty keep it near before
``smooth``      the state is projected after every layer, through K_c (eq. 11); likewise
``manifold``    the flow itself runs along the manifold: sigma is projected on its tangent space,
                velocities obey J v = 0, and what the steps' curvature leaves is projected after
                each layer
==============  ====================================================================================

The first five are the paper's; the last is an index reduction: differentiating c(r) = 0 along the
flow gives J r' = 0, and differentiating J v = 0 gives J v' + (d(J v)/dr) r' = 0; the smallest
changes of r' and v' that obey both are W J^T times multipliers, which solve one small system each
(Ascher and Petzold 1998, ch. 9). ``manifold`` needs no auxiliary loss: there is nothing to violate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dcase.dae.constraints import Constraint
from dcase.dae.projection import ProjectionSettings, project, velocity_on_manifold
from dcase.dae.skeleton import ResidualNetwork, runge_kutta_4
from dcase.errors import OptionError
from dcase.options import check_types

METHODS = ("none", "auxiliary", "penalty", "end", "smooth", "manifold")
PENALTY_METRICS = ("identity", "gram")


@dataclass(frozen=True)
class MethodSettings:
    """Which method, and how strong.

    Attributes:
        method: One of the table above.
        eta: Weight of the auxiliary loss (``auxiliary``, ``end``, ``smooth``).
        gamma: Strength of the penalty (``penalty``, ``end``, ``smooth``).
        penalty_metric: H of the penalty: ``"identity"`` or ``"gram"``, (J J^T)^-1.
        penalty_clamp: Largest change of a coordinate by a stage of the penalty, as a share of the
            coordinate; 0: no limit.
        projection: How ``end``, ``smooth`` and ``manifold`` project.
    """

    method: str = "none"
    eta: float = 10.0
    gamma: float = 10.0
    penalty_metric: str = "identity"
    penalty_clamp: float = 0.1
    projection: ProjectionSettings = field(default_factory=ProjectionSettings)

    def __post_init__(self) -> None:
        check_types(self)
        if self.method not in METHODS:
            raise OptionError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.penalty_metric not in PENALTY_METRICS:
            raise OptionError(
                f"penalty_metric must be one of {', '.join(PENALTY_METRICS)}; "
                f"got {self.penalty_metric!r}"
            )
        for name in ("eta", "gamma", "penalty_clamp"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def has_penalty(self) -> bool:
        """Whether the flow is pulled towards the constraint."""
        return self.method in ("penalty", "end", "smooth") and self.gamma > 0

    @property
    def has_auxiliary(self) -> bool:
        """Whether the loss has the violation in it."""
        return self.method in ("auxiliary", "end", "smooth") and self.eta > 0


@dataclass(frozen=True)
class StatePrediction:
    """What a constrained network gives.

    Attributes:
        r: Positions [B, N, d].
        v: Velocities [B, N, d].
        violated: c before any projection, [B, m] or [B, layers, m]; for the auxiliary loss.
    """

    r: Tensor
    v: Tensor
    violated: Tensor


class ConstrainedNetwork(nn.Module):
    """A residual network under a constraint.

    Args:
        network: Any :class:`~dcase.dae.skeleton.ResidualNetwork`.
        constraint: On the positions.
        settings: The method.
        weight: Inverse masses [N, 1] as metric of projections and of the manifold; None: all the
            same.
    """

    weight: Tensor | None

    def __init__(
        self,
        network: ResidualNetwork,
        constraint: Constraint,
        settings: MethodSettings | None = None,
        *,
        weight: Tensor | None = None,
    ):
        super().__init__()
        self.network, self.constraint = network, constraint
        self.settings = settings or MethodSettings()
        self.register_buffer("weight", weight)

    def forward(self, r: Tensor, v: Tensor) -> StatePrediction:
        """Positions and velocities [B, N, d] later, of those now."""
        network, settings = self.network, self.settings
        z, context = network.open(r, v)
        steps = network.steps()
        violated = []
        for layer in range(network.n_layers):
            shared = network.begin_layer(layer, z, context)

            def rate(at: Tensor, layer: int = layer, shared: Any = shared) -> Tensor:
                return self._rate(layer, at, shared)

            z = runge_kutta_4(rate, z, steps[layer])
            if settings.method in ("smooth", "manifold"):
                at, speed = network.close(z, context)
                violated.append(self.constraint(at))
                z = z + self._correction(at, speed, context)
        r, v = network.close(z, context)
        if settings.method == "end":
            violated = [self.constraint(r)]
            r = project(r, self.constraint, settings.projection, weight=self.weight).r
        elif not violated:
            violated = [self.constraint(r)]
        return StatePrediction(
            r, v, violated[0] if len(violated) == 1 else torch.stack(violated, 1)
        )

    def _correction(self, r: Tensor, v: Tensor, context: Any) -> Tensor:
        """What brings the state back to the manifold.

        K_c has orthonormal rows, so the nearest latent state is K_c^T times the change of the
        positions (in the paper's eq. 10, K_c K_c^T is the identity).
        """
        found = project(r, self.constraint, self.settings.projection, weight=self.weight).r
        dv = None
        if self.settings.method == "manifold":
            dv = velocity_on_manifold(found, v, self.constraint, weight=self.weight) - v
        return self.network.lift(found - r, dv, context)

    def _rate(self, layer: int, z: Tensor, context: Any) -> Tensor:
        """The flow: the network's, and what the method adds."""
        dz = self.network.rate(layer, z, context)
        if self.settings.has_penalty:
            r, _ = self.network.close(z, context)
            return dz - self.network.lift(self._penalty(r), None, context)
        if self.settings.method == "manifold":
            r, v = self.network.close(z, context)
            return dz + self.network.lift(*self._reaction(r, v, dz, context), context)
        return dz

    def _penalty(self, r: Tensor) -> Tensor:
        """Gamma J^T H c [B, N, d], clamped."""
        c = self.constraint(r)
        if self.settings.penalty_metric == "gram":
            c = self.constraint.gram(r, self.weight).solve(c)
        pull = self.settings.gamma * self.constraint.vjp(r, c)
        if self.weight is not None:
            pull = self.weight * pull
        if self.settings.penalty_clamp > 0:
            limit = self.settings.penalty_clamp * r.abs()
            pull = torch.minimum(torch.maximum(pull, -limit), limit)
        return pull

    def _reaction(self, r: Tensor, v: Tensor, dz: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """Changes of r' and v' by the multipliers."""
        here, weight = self.constraint.for_newton().at(r), self.weight
        dr, dv = self.network.lower(dz, context)
        solver = here.gram(weight)

        def pushed(lam: Tensor) -> Tensor:
            push = here.vjp(lam)
            return -push if weight is None else -weight * push

        reaction_r = pushed(solver.solve(here.jvp(dr)))
        turned = here.second(v, dr + reaction_r)
        return reaction_r, pushed(solver.solve(here.jvp(dv) + turned))
