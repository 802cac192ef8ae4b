"""Atoms closer than a kernel's tables are made for: evaluated in PyTorch, and only they.

So close do atoms come where a simulation breaks; what it says of that has to be right, but need not
be fast. Systems evaluated together that have nothing to do with these atoms keep the kernel's
results, so that copies of a system do not depend on each other.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dcase.derivatives import apply_strain
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.kernels.compiled import CompiledKernel, KernelResult, PotentialLike


class ExactNetwork:
    """A potential's network as it is now, evaluated by PyTorch and autograd.

    Args:
        potential: On the CPU; its weights are copied.
    """

    def __init__(self, potential: PotentialLike):
        self.network: Any = copy.deepcopy(potential.network).eval().requires_grad_(False)
        self.cutoff = potential.cutoff

    def where_close(
        self,
        found: KernelResult,
        kernel: CompiledKernel,
        species: np.ndarray,
        positions: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None,
    ) -> KernelResult:
        """What the kernel has found, with the right results where pairs are too close for it.

        Args:
            found: By the kernel.
            kernel: Of the same network.
            species: As of :meth:`CompiledKernel.__call__`.
            positions: Likewise.
            pairs: Likewise.
            offsets: Likewise.
        """
        r = positions[pairs[1]] - positions[pairs[0]]
        if offsets is not None:
            r = r + offsets
        distances = np.sqrt((r * r).sum(axis=1))
        inside = distances < self.cutoff
        pairs, distances = pairs[:, inside], distances[inside]
        offsets = None if offsets is None else offsets[inside]
        # All that the close pairs are connected to.
        n = len(species)
        net = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(n, n))
        label = connected_components(net, directed=False)[1]
        mine = np.isin(label, label[pairs[0, distances < kernel.nearest]])

        def part(which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
            place = np.cumsum(which) - 1
            some = which[pairs[0]]
            return (
                positions[which], species[which], place[pairs[:, some]],
                None if offsets is None else offsets[some],
            )  # fmt: skip

        energies, forces, virial = self._evaluate(*part(mine))
        result = KernelResult(
            found.energies.copy(), found.forces.copy(), virial, found.neighbours, found.closest
        )
        result.energies[mine], result.forces[mine] = energies, forces
        if not mine.all():
            rest = kernel.prepare(*part(~mine))
            rest.evaluate()
            virial += rest.result.virial
        return result

    def _evaluate(
        self,
        positions: np.ndarray,
        species: np.ndarray,
        pairs: np.ndarray,
        offsets: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies, forces and virial in the network's unit, float64."""
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.from_numpy(positions.astype(np.float64)).requires_grad_(True)
            system = torch.zeros(len(x), dtype=torch.int64)
            # In a cell of unit vectors, offsets are shifts.
            strained, cells, strain = apply_strain(
                x, torch.eye(3, dtype=torch.float64).unsqueeze(0), system
            )
            shifts = np.zeros((pairs.shape[1], 3)) if offsets is None else offsets
            graph = AtomicGraph(
                numbers=system,
                positions=strained,
                system=system,
                n_systems=1,
                pairs=torch.from_numpy(pairs),
                shifts=torch.from_numpy(shifts),
                cells=cells,
            )
            energies = self.network(torch.from_numpy(species), graph).double()
            by_x, by_strain = torch.autograd.grad(energies.sum(), [x, strain])
        return energies.detach().numpy(), -by_x.numpy(), by_strain[0].numpy()
