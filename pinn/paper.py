r"""PDEBench's baseline and the DC paper's variant of it, to the letter (``--paper``).

Network 6 x 40, Glorot weights, float32, Adam at 1e-3 on all points at once, all weights 1, 15000
steps (1D) or 100 (2D). Each problem keeps what its training script does, mistakes included (numbers
as in PDEBench's scripts and shared/facts: they explain much of tables 3 to 5):

* residuals of a system are *summed* before they are squared, so that errors may cancel;
* compressible flow: the pressure gradient has the wrong sign (PDEBench issue 54; eq. 22 of the
  paper); collocation points are in [0, 1], though the data are on [-1, 1]; all three periodic
  conditions are about the density, between x = 0 and x = 1;
* diffusion-reaction: only u is held flux-free; the data are stored [t, y, x] and read as [t, x, y],
  so that reference and initial state are each other's transposes; of "30 % of the data" 38 points
  at one corner remain.

What is *not* kept, because it could not have been meant: the energy flux of the flow script is an
N x N array by broadcasting (1 GB a step; DeepXDE 1.15 refuses it). Eq. 23 of the paper is used.
The saved times of the 38 points could not be established; 19 evenly spaced ones are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from dcase.pinn.conditions import Condition, Initial, Neumann, Observed, Periodic
from dcase.pinn.domains import Domain
from dcase.pinn.equations import CompressibleFlow, DiffusionReaction
from dcase.pinn.problem import PDEProblem, problem_of
from dcase.pinn.sample import Sample
from dcase.pinn.settings import PinnSettings, PointSettings

STEPS = {"advection": 15_000, "cfd": 15_000, "diffusion-reaction": 100}
OBSERVED = 38


@dataclass(frozen=True)
class PaperFlow(CompressibleFlow):
    """Eqs. 21 to 23 of the paper, summed; the pressure gradient with its minus."""

    def residuals(self, d: Any) -> dict[str, Tensor]:
        """One: the sum of three."""
        mass, momentum, energy = super().residuals(d).values()
        return {"f1+f2+f3": mass + (momentum - 2.0 * d.p_x) + energy}

    def residual_scales(self, scale: Any) -> dict[str, float]:
        """None: everything weighs 1."""
        return {}


@dataclass(frozen=True)
class PaperDiffusionReaction(DiffusionReaction):
    """Eqs. 27 and 28 of the paper, summed."""

    def residuals(self, d: Any) -> dict[str, Tensor]:
        """One: the sum of two."""
        activator, inhibitor = super().residuals(d).values()
        return {"f1+f2": activator + inhibitor}


@dataclass(frozen=True)
class DensityThrice(Periodic):
    """Three conditions under the names of three fields, all of them about the density."""

    named: tuple[str, ...] = ("p", "rho", "v")

    kind: ClassVar[str] = "periodic"

    def term_names(self) -> list[str]:
        """Of the fields that they are not about."""
        return [f"periodic {name}" for name in self.named]

    def wanted(self, domain: Domain) -> list[str]:
        """The density alone."""
        return ["rho"]

    def residuals(self, d: Any, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Three times the same."""
        lower, upper = d.rho.chunk(2)
        return dict.fromkeys(self.term_names(), lower - upper)


def paper_settings(task: str) -> PinnSettings:
    """The baseline's settings for a PDEBench task."""
    points = PointSettings(
        interior=1000,
        boundary=1000,
        at_start=5000,
        on_walls=1000,
        sampler="hammersley",
        steps_per_epoch=min(100, STEPS[task]),
        scaled=False,
    )
    return PinnSettings(
        scale_inputs=False,
        scale_outputs=False,
        hard="none",
        init="glorot",
        optimizer=f"adam:{STEPS[task]}",
        lr=1e-3,
        dtype="float32",
        points=points,
    )


def paper_problem(sample: Sample) -> PDEProblem:
    """The baseline's problem for a PDEBench sample, with the reference that it compares with.

    Raises:
        OptionError: If the sample is of no PDEBench task.
    """
    problem = problem_of(sample)
    initial = next(c for c in problem.conditions if isinstance(c, Initial))
    if sample.task == "advection":
        return problem
    if sample.task == "cfd":
        equation = PaperFlow(problem.equation.eta, problem.equation.zeta, problem.equation.gamma)
        domain = Domain({"x": (0.0, 1.0), "t": problem.domain.intervals["t"]})
        periodic = DensityThrice(coordinate="x", fields=("rho",))
        return replace(problem, equation=equation, domain=domain, conditions=[initial, periodic])
    kinetics = problem.equation
    read = transposed(sample)
    conditions: list[Condition] = [
        Neumann(coordinates=("x", "y"), fields=("u",)),
        initial,
        corner_data(read),
    ]
    return replace(
        problem,
        equation=PaperDiffusionReaction(kinetics.Du, kinetics.Dv, kinetics.k),
        conditions=conditions,
        reference=read,
    )


def transposed(sample: Sample) -> Sample:
    """A 2D sample with x and y mistaken for one another."""
    fields = {name: array.swapaxes(0, 1) for name, array in sample.fields.items()}
    return replace(sample, fields=fields, source=f"{sample.source} (read transposed)")


def corner_data(sample: Sample) -> Observed:
    """The 38 points: the first x, the first two y, 19 times each."""
    x, y, t = (sample.axes[name] for name in ("x", "y", "t"))
    per_row = OBSERVED // 2
    times = np.linspace(0, len(t) - 1, per_row).round().astype(int)
    rows = [(0, j, k) for j in (0, 1) for k in times]
    at = np.array([[x[i], y[j], t[k]] for i, j, k in rows])
    values = {name: np.array([a[r] for r in rows]) for name, a in sample.fields.items()}
    return Observed(at=at, values=values)
