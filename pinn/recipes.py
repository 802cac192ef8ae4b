"""Settings that work well for each problem, where a user gives none (see docs/results.md)."""

from __future__ import annotations

from dcase.pinn.problem import PDEProblem
from dcase.pinn.settings import PinnSettings

#: By problem. A network of modes needs no smoothing of the initial state: it carries its seam.
RECIPES: dict[str, dict[str, object]] = {
    "advection": {
        "network": "modes",
        "march": "2:0.1:256",
        "optimizer": "lbfgs:60",
        "width": 16,
        "smooth": 0,
    },
    "cfd": {
        "network": "modes",
        "march": "1:0.0025:96",
        "optimizer": "lbfgs:40",
        "width": 16,
        "history": 10,
        "viscosity": 0.003,
        "smooth": 0,
    },
    "diffusion-reaction": {
        "network": "modes",
        "march": "0.05:0.0125:128,0.2:0.025:96,0.5:0.05:96,1.5:0.1:64,5:0.1:48",
        "optimizer": "lbfgs:40",
        "width": 16,
        "hidden": 5,
        "history": 10,
        "oversample": 1.0,
    },
}


def default_settings(problem: PDEProblem, network: str | None = None) -> PinnSettings:
    """For a problem by its name.

    Args:
        problem: The problem.
        network: ``"mlp"`` for a coordinate network where the recipe has one of modes.
    """
    recipe = RECIPES.get(problem.name, {})
    if network is not None and recipe.get("network", "mlp") != network:
        recipe = {}
    return PinnSettings().changed(**recipe)
