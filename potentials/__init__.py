"""Energy models, their graphs, and the ASE calculator.

``create_potential`` is the public entry; it is loaded lazily because it needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcase.moved import keep_old_names, lazy_names

if TYPE_CHECKING:
    from dcase.potentials.create import create_potential
    from dcase.potentials.potential import Potential, load_potential

__all__ = ["Potential", "create_potential", "load_potential"]

_LAZY = {
    "create_potential": "dcase.potentials.create",
    "Potential": "dcase.potentials.potential",
    "load_potential": "dcase.potentials.potential",
}

# Where modules of this package were until 0.1, and where they are.
keep_old_names(
    __name__,
    {
        "architecture": "networks.architecture",
        "baseline": "fitting.baseline",
        "basis": "networks.bases",
        "batching": "fitting.batches",
        "calibration": "fitting.calibration",
        "cartesian": "networks.cartesian",
        "cgcnn": "networks.cgcnn",
        "convolution": "networks.pair_convolution",
        "cross_validation": "fitting.cross_validation",
        "deployed": "kernels.deployed",
        "dimenet": "networks.dimenet",
        "edges": "graphs.edges",
        "element_features": "networks.element_features",
        "energy_forces": "fitting.energy_forces",
        "ensemble_evaluation": "fitting.ensemble_evaluation",
        "evaluation": "fitting.evaluation",
        "exact": "networks.float64_buffers",
        "fit": "fitting.fit_potential",
        "fold_processes": "fitting.fold_processes",
        "forcenet": "networks.forcenet",
        "gemnet": "networks.gemnet",
        "graph": "graphs.graph",
        "linear_growth": "networks.linear_growth",
        "linear_potential": "fitting.linear_potential",
        "recipe": "fitting.recipe",
        "registry": "networks.registry",
        "rotations": "graphs.rotations",
        "schnet": "networks.schnet",
        "spherical": "networks.spherical",
        "spline": "networks.splines",
        "stacked": "networks.stacked_schnet",
    },
)

__getattr__ = lazy_names(__name__, _LAZY)
