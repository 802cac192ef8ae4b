"""Settings that work well for each problem, where a user gives none (see docs/results.md)."""

from __future__ import annotations

from dcase.pinn.problem import PDEProblem
from dcase.pinn.settings import PinnSettings

#: By problem. A network of modes needs no smoothing of the initial state: it carries its seam.
RECIPES: dict[str, dict[str, object]] = {
    "advection": {
        "network": "modes",
        "march": "2:0.2:256",
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
        "march": "0.05:0.025:128,0.5:0.05:96,1.5:0.1:64,5:0.25:48",
        "optimizer": "lbfgs:40",
        "width": 16,
        "history": 10,
        "oversample": 1.0,
    },
}

#: The same for a coordinate network.
COORDINATE_RECIPES: dict[str, dict[str, object]] = {
    "advection": {"optimizer": "adam:20%,lbfgs"},
    "cfd": {"optimizer": "adam:20%,lbfgs", "windows": 5, "modes": 12, "viscosity": 0.003},
    # Its initial state is noise, which no coordinate network can start from exactly.
    "diffusion-reaction": {"optimizer": "adam:20%,lbfgs", "hard": "neumann", "modes": 6},
}


def default_settings(problem: PDEProblem, network: str | None = None) -> PinnSettings:
    """For a problem by its name.

    Args:
        problem: The problem.
        network: ``"mlp"`` for a coordinate network where the recipe has one of modes.
    """
    recipes = COORDINATE_RECIPES if network == "mlp" else RECIPES
    recipe = recipes.get(problem.name, {})
    return PinnSettings().changed(**recipe)
