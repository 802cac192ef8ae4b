"""The learning problem of a potential: energies (or another quantity) and forces, as terms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dcase.errors import OptionError
from dcase.potentials.fitting.batches import LabelledGraph
from dcase.potentials.fitting.lone_atoms import LoneAtoms
from dcase.potentials.potential import Potential
from dcase.potentials.quantity import ENERGY, Quantity


class EnergyForces:
    """Residuals of energies and forces in the network's unit.

    Args:
        constant: C in eV, to report errors in meV and meV/A.
        per_atom: Divide each energy residual by the number of atoms.
        forces: Whether forces are needed at all (energy-only training is much cheaper).
        quantity: What is learned; its residuals are the term of its key.
        alone: Atoms whose energies the network is held to 0 for; None: to nothing.
        kernel: Energies and forces of the model's network with a compiled gradient, where it has
            such: ``(species, graph, forces=True) -> [n_atoms], [n_atoms, 3]``.

    Raises:
        OptionError: If forces of what is no energy are asked for.
    """

    def __init__(
        self,
        constant: float,
        *,
        per_atom: bool = False,
        forces: bool = True,
        quantity: Quantity = ENERGY,
        kernel: Callable[..., tuple[Tensor, Tensor]] | None = None,
        alone: LoneAtoms | None = None,
    ):
        if forces and not quantity.is_energy:
            raise OptionError(f"{quantity} has no forces: it is no energy")
        self.per_atom = per_atom
        self.forces = forces
        self.quantity = quantity
        self.kernel = kernel
        self.alone = alone
        factor, unit = (constant * 1e3, "meV") if quantity.unit == "eV" else (
            constant, quantity.unit
        )  # fmt: skip
        self.display = {quantity.key: (factor, f"{unit}/atom" if per_atom else unit)}
        if forces:
            self.display["forces"] = (constant * 1e3, "meV/A")

    def terms(self, model: nn.Module, batch: LabelledGraph, training: bool) -> dict[str, Tensor]:
        """``{"energy": [n_systems], "forces": [n_free_atoms, 3]}`` in the network's dtype.

        ``"energy"`` is the key of the quantity, where that is another one.

        Atoms that the calculation behind the labels held in place have no part in the forces; where
        some are held in part, the forces are all components along free directions, [n_components].
        """
        assert isinstance(model, Potential)
        residuals: dict[str, Tensor] = {}
        with_forces = self.forces and batch.forces is not None
        graph = batch.graph if self.alone is None else self.alone.joined(batch.graph)
        if self.kernel is not None:
            species = model.species(graph.numbers)
            atoms, forces = self.kernel(species, graph, forces=with_forces)
            energies = self.quantity.read_out(atoms, graph)
        elif with_forces:
            with torch.enable_grad():
                energies, forces = model.energies_and_forces(graph, create_graph=training)
        else:
            energies = model.energies(graph)
        if self.alone is not None:
            energies = self.alone.subtract(energies, batch.graph)
        if with_forces:
            assert batch.forces is not None
            error = (forces[: batch.graph.n_atoms] - batch.forces).to(model.dtype)
            residuals["forces"] = batch.free_components(error)
        if batch.energies is not None:
            error = energies - batch.energies
            if self.per_atom:
                error = error / torch.bincount(batch.graph.system, minlength=batch.graph.n_systems)
            residuals[self.quantity.key] = error.to(model.dtype)
        return residuals
