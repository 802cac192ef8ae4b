"""Potentials and structures for the tests of dcase.potentials."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

from dcase.errors import PaperVariantWarning
from dcase.potentials.graphs.graph import AtomicGraph, build_graph
from dcase.potentials.networks.registry import create_potential
from dcase.potentials.potential import Potential
from dcase.rescaling import LabelScale

OFFSETS = {1: -13.587222780835477, 6: -1029.4889999755, 8: -2041.8396277138027}


def ethanol(rattle: float = 0.05, seed: int = 0) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms = Atoms(atoms.numbers, atoms.positions)
    atoms.positions += np.random.default_rng(seed).normal(0, rattle, (len(atoms), 3))
    return atoms


def crystal(seed: int = 0) -> Atoms:
    """Ethanol in a triclinic cell that is shorter than twice the cutoff."""
    atoms = ethanol(seed=seed)
    atoms.set_cell([[5.1, 0.3, 0.0], [0.4, 4.6, -0.2], [0.0, 0.5, 4.3]])
    atoms.pbc = True
    return atoms


def lively(
    architecture: str = "schnet",
    activation: str = "irelu",
    *,
    force: float = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 3,
    **options,
) -> Potential:
    """A potential whose forces are as large as those of real molecules (``force`` eV/A, rms).

    Fresh weights give forces of 1e-4 eV/A on energies of 1 eV, among which a wrong force drowns.
    Deep stacks of IReLU, being polynomials of high degree, are drawn smaller until they are of
    moderate size: else a denser structure than this has forces beyond all float32.
    """
    options = {"elements": ["H", "C", "O"], "size": "tiny", **options}
    potential = create_potential(architecture, activation=activation, seed=1, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in potential.network.named_parameters():
            if "embedding" in name:
                continue
            size = 0.5 if weight.ndim == 1 else 1 / math.sqrt(math.prod(weight.shape[1:]))
            weight.copy_(size * torch.randn(weight.shape, generator=generator))
    atoms = ethanol()
    atoms.numbers = np.where(
        np.isin(atoms.numbers, potential.elements), atoms.numbers, potential.elements[0]
    )
    graph = build_graph(atoms.numbers, atoms.positions, potential.cutoff)
    while not potential.energies(graph).abs().max() < 1e3:
        with torch.no_grad():
            for name, weight in potential.network.named_parameters():
                if "embedding" not in name:
                    weight.mul_(0.8)
    potential.with_dtype(dtype)
    _, forces = potential.energies_and_forces(graph)
    rms = float(forces.square().mean().sqrt())
    potential.set_scale(LabelScale(force / rms, OFFSETS, "number", "atomic"))
    return potential


def graph_of(potential: Potential, atoms: Atoms) -> AtomicGraph:
    """The graph of ``atoms`` up to the potential's cutoff."""
    return build_graph(
        atoms.numbers, atoms.positions, potential.cutoff, atoms.cell.array, atoms.pbc
    )


def lively_as_trained(architecture: str, **options) -> Potential:
    """A float64 potential with BatchNorm statistics as after training.

    The paper variant comes without its warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaperVariantWarning)
        potential = lively(architecture, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(8)
    for module in potential.network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return potential
