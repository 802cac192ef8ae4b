"""The learning problem of a potential: energies and forces, as terms of an objective."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcase.potentials.batching import LabelledGraph
from dcase.potentials.potential import Potential


class EnergyForces:
    """Residuals of energies and forces in the network's unit.

    Args:
        constant: C in eV, to report errors in meV and meV/A.
        per_atom: Divide each energy residual by the number of atoms.
        forces: Whether forces are needed at all (energy-only training is much cheaper).
    """

    def __init__(self, constant: float, *, per_atom: bool = False, forces: bool = True):
        self.per_atom = per_atom
        self.forces = forces
        self.display = {"energy": (constant * 1e3, "meV/atom" if per_atom else "meV")}
        if forces:
            self.display["forces"] = (constant * 1e3, "meV/A")

    def terms(self, model: nn.Module, batch: LabelledGraph, training: bool) -> dict[str, Tensor]:
        """``{"energy": [n_systems], "forces": [n_free_atoms, 3]}`` in the network's dtype.

        Atoms that the calculation behind the labels held in place have no part in the forces.
        """
        assert isinstance(model, Potential)
        residuals: dict[str, Tensor] = {}
        if self.forces and batch.forces is not None:
            with torch.enable_grad():
                energies, forces = model.energies_and_forces(batch.graph, create_graph=training)
            error = (forces - batch.forces).to(model.dtype)
            residuals["forces"] = error if batch.free is None else error[batch.free]
        else:
            energies = model.energies(batch.graph)
        if batch.energies is not None:
            error = energies - batch.energies
            if self.per_atom:
                error = error / torch.bincount(batch.graph.system, minlength=batch.graph.n_systems)
            residuals["energy"] = error.to(model.dtype)
        return residuals
