"""The learning problem of a potential: energies (or another quantity), forces and stress."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from dcase.derivatives import pair_virials
from dcase.errors import OptionError
from dcase.potentials.fitting.batches import LabelledGraph
from dcase.potentials.fitting.lone_atoms import LoneAtoms
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.potential import Potential
from dcase.potentials.quantity import ENERGY, Quantity


class GradientKernel(Protocol):
    """A compiled gradient (:class:`dcase.potentials.kernels.training.TrainingKernel`)."""

    def __call__(
        self, species: Tensor, graph: AtomicGraph, *, forces: bool
    ) -> tuple[Tensor, Tensor]:
        """Atom energies [n_atoms] and forces [n_atoms, 3] in the network's unit."""
        ...

    def with_pulls(self, species: Tensor, graph: AtomicGraph) -> tuple[Tensor, Tensor, Tensor]:
        """These, and the derivatives of the energy by the pairs' vectors, [n_pairs, 3]."""
        ...


class EnergyForces:
    """Residuals of energies, forces and stress in the network's unit.

    Stress is counted as ``(sigma - sigma_label) v / C`` with one volume v for all frames, that of
    an atom: what a strain of one costs an atom, of the size of its energy and of a force times a
    bond length, so that a weight means about the same for every material.

    Args:
        constant: C in eV, to report errors in meV and meV/A.
        per_atom: Divide each energy residual by the number of atoms.
        forces: Whether forces are needed at all (energy-only training is much cheaper).
        quantity: What is learned; its residuals are the term of its key.
        alone: Atoms whose energies the network is held to 0 for; None: to nothing.
        kernel: Energies and forces of the model's network with a compiled gradient, where it has
            such.
        volume: v in A^3, where there is a stress to learn; None: there is none.

    Raises:
        OptionError: If forces or stress of what is no energy are asked for.
    """

    def __init__(
        self,
        constant: float,
        *,
        per_atom: bool = False,
        forces: bool = True,
        quantity: Quantity = ENERGY,
        kernel: GradientKernel | None = None,
        alone: LoneAtoms | None = None,
        volume: float | None = None,
    ):
        if forces and not quantity.is_energy:
            raise OptionError(f"{quantity} has no forces: it is no energy")
        if volume is not None and not quantity.is_energy:
            raise OptionError(f"{quantity} has no stress: it is no energy")
        self.per_atom = per_atom
        self.forces = forces
        self.quantity = quantity
        self.kernel = kernel
        self.alone = alone
        self.volume = volume
        factor, unit = (constant * 1e3, "meV") if quantity.unit == "eV" else (
            constant, quantity.unit
        )  # fmt: skip
        self.display = {quantity.key: (factor, f"{unit}/atom" if per_atom else unit)}
        if forces:
            self.display["forces"] = (constant * 1e3, "meV/A")
        if volume is not None:
            self.display["stress"] = (constant * 1e3 / volume, "meV/A^3")

    def terms(self, model: nn.Module, batch: LabelledGraph, training: bool) -> dict[str, Tensor]:
        """``{"energy": [n_systems], "forces": [n_free_atoms, 3]}`` in the network's dtype.

        ``"energy"`` is the key of the quantity, where that is another one.

        Atoms that the calculation behind the labels held in place have no part in the forces; where
        some are held in part, the forces are all components along free directions, [n_components].
        ``"stress"``, where there is one to learn: all nine components of the frames that have a
        label, [n_frames, 3, 3]; none where no frame of the batch has.
        """
        assert isinstance(model, Potential)
        residuals: dict[str, Tensor] = {}
        with_forces = self.forces and batch.forces is not None
        with_stress = self.volume is not None and batch.stress is not None
        graph = batch.graph if self.alone is None else self.alone.joined(batch.graph)
        strain_gradient = None
        if self.kernel is not None:
            species = model.species(graph.numbers)
            if with_stress:
                atoms, forces, pulls = self.kernel.with_pulls(species, graph)
                of_pair = graph.system.index_select(0, graph.pairs[0])
                vectors = graph.vectors()
                strain_gradient = pair_virials(vectors, pulls, of_pair, graph.n_systems)
            else:
                atoms, forces = self.kernel(species, graph, forces=with_forces)
            energies = self.quantity.read_out(atoms, graph)
        elif with_stress:
            energies, forces, strain_gradient = model.energies_forces_and_strain_gradient(
                graph, create_graph=training
            )
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
        if strain_gradient is not None:
            residuals["stress"] = self._stress_error(strain_gradient, batch).to(model.dtype)
        if batch.energies is not None:
            error = energies - batch.energies
            if self.per_atom:
                error = error / torch.bincount(batch.graph.system, minlength=batch.graph.n_systems)
            residuals[self.quantity.key] = error.to(model.dtype)
        return residuals

    def _stress_error(self, strain_gradient: Tensor, batch: LabelledGraph) -> Tensor:
        """Of the frames with a label, [n_frames, 3, 3], in the network's unit.

        Args:
            strain_gradient: dE/d eps, [at least n_systems, 3, 3], in the network's unit.
            batch: With labels of stress.
        """
        assert self.volume is not None
        assert batch.stress is not None
        assert batch.graph.cells is not None
        there = torch.isfinite(batch.stress).all(dim=2).all(dim=1)
        volumes = torch.linalg.det(batch.graph.cells[there]).abs()
        found = strain_gradient[: batch.graph.n_systems][there] / volumes[:, None, None]
        return (found - batch.stress[there]) * self.volume
