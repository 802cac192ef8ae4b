"""Physics-informed networks: PDEBench tasks and a user's own equations.

The names that a user needs; everything else is in the modules. See docs/pinn.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcase.pinn.conditions import (
        Boundary,
        Dirichlet,
        Initial,
        Neumann,
        Observed,
        Periodic,
        no_flux,
    )
    from dcase.pinn.domains import Domain
    from dcase.pinn.equations import Advection, CompressibleFlow, DiffusionReaction
    from dcase.pinn.initial import FunctionState, GridState
    from dcase.pinn.problem import PDEProblem, problem_of
    from dcase.pinn.run import prepared, read_run, train
    from dcase.pinn.sample import Sample
    from dcase.pinn.settings import PinnSettings, PointSettings
    from dcase.pinn.solver import solve

_HOMES = {
    "conditions": (
        "Boundary", "Dirichlet", "Initial", "Neumann", "Observed", "Periodic", "no_flux",
    ),
    "domains": ("Domain",),
    "equations": ("Advection", "CompressibleFlow", "DiffusionReaction"),
    "initial": ("FunctionState", "GridState"),
    "problem": ("PDEProblem", "problem_of"),
    "run": ("prepared", "read_run", "train"),
    "sample": ("Sample",),
    "settings": ("PinnSettings", "PointSettings"),
    "solver": ("solve",),
}  # fmt: skip

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Advection",
    "Boundary",
    "CompressibleFlow",
    "DiffusionReaction",
    "Dirichlet",
    "Domain",
    "FunctionState",
    "GridState",
    "Initial",
    "Neumann",
    "Observed",
    "PDEProblem",
    "Periodic",
    "PinnSettings",
    "PointSettings",
    "Sample",
    "no_flux",
    "prepared",
    "problem_of",
    "read_run",
    "solve",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that ``import dcase.pinn`` does not wait for torch."""
    if name in _HOME_OF:
        from importlib import import_module

        return getattr(import_module(f"dcase.pinn.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'dcase.pinn' has no attribute {name!r}")
