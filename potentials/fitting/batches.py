"""Training frames with their pairs, and batches of them without per-frame Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor

from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError
from dcase.potentials.graphs.graph import AtomicGraph, coincident_atoms, half_neighbour_list
from dcase.potentials.graphs.rotations import random_rotations
from dcase.potentials.quantity import ENERGY, Quantity
from dcase.rescaling import LabelScale, offset_energies


@dataclass(frozen=True)
class LabelledGraph:
    """A batch: the graph and its labels in the network's unit.

    Attributes:
        graph: The systems.
        energies: ``(E - offset) / C``, or the same of another quantity, float64, shape [n_systems],
            or None.
        forces: ``F / C``, float64, shape [n_atoms, 3], or None.
        frames: Indices of the frames in the dataset, for error messages.
        free: Which atoms are not held in place, bool, shape [n_atoms], or None: all are free. With
            ``axes`` which of their directions are free, shape [n_atoms, 3].
        axes: Free directions as rows (:attr:`AtomicDataset.free_axes`), shape [n_atoms, 3, 3], or
            None: no atom is held in part.
        stress: ``sigma / C``, 1/A^3, float64, shape [n_systems, 3, 3], NaN where a frame has none,
            or None.
    """

    graph: AtomicGraph
    energies: Tensor | None
    forces: Tensor | None
    frames: Tensor
    free: Tensor | None = None
    axes: Tensor | None = None
    stress: Tensor | None = None

    def __len__(self) -> int:
        return self.graph.n_systems

    def free_components(self, vectors: Tensor) -> Tensor:
        """What vectors of atoms [n_atoms, 3] have along free directions.

        Returns:
            Shape [n_free_atoms, 3], or with ``axes`` [n_free_components].
        """
        if self.axes is not None:
            vectors = torch.einsum("nij,nj->ni", self.axes.to(vectors.dtype), vectors)
        return vectors if self.free is None else vectors[self.free]

    def describe(self) -> str:
        """For error messages: which frames these are."""
        shown = ", ".join(str(int(f)) for f in self.frames[:20])
        return f"frames {shown}" + (", ..." if len(self.frames) > 20 else "")


def _ranges(ptr: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenated ranges ``ptr[c]:ptr[c+1]`` and which c (0, 1, ...) each entry belongs to."""
    counts = ptr[chosen + 1] - ptr[chosen]
    owner = torch.repeat_interleave(torch.arange(len(chosen), device=ptr.device), counts)
    starts = torch.cumsum(counts, 0) - counts
    inside = torch.arange(int(counts.sum()), device=ptr.device) - starts[owner]
    return ptr[chosen][owner] + inside, owner


class FrameBatches:
    """All frames of a dataset as tensors on one device, pairs found once.

    Args:
        dataset: Frames and labels.
        cutoff: A.
        scale: Label scale.
        device: Where the tensors live.
        frames: Numbers of these frames in the file they come from, for error messages; default: in
            ``dataset``.
        quantity: What the dataset's ``energies`` are: decides what the offsets come to.

    Attributes:
        apart: What to say where most atoms (of frames of more than one) have no neighbour within
            the cutoff: the file is likely in other units. Else "".

    Raises:
        DataError: If atoms of a frame are in the same place.
    """

    def __init__(
        self,
        dataset: AtomicDataset,
        cutoff: float,
        scale: LabelScale,
        device: torch.device | str = "cpu",
        frames: np.ndarray | None = None,
        quantity: Quantity = ENERGY,
    ):
        self.frames = torch.arange(len(dataset)) if frames is None else torch.tensor(frames)
        pairs, shifts, ptr = [], [], [0]
        lonely: list[tuple[int, int]] = []  # frame and atom
        periodic = dataset.pbc is not None and bool(dataset.pbc.any())
        for f in range(len(dataset)):
            atoms = slice(int(dataset.ptr[f]), int(dataset.ptr[f + 1]))
            cell = pbc = None
            if periodic and dataset.cells is not None and dataset.pbc is not None:
                cell, pbc = dataset.cells[f], dataset.pbc[f]
            p, s = half_neighbour_list(dataset.positions[atoms], cutoff, cell, pbc)
            n = atoms.stop - atoms.start
            if n > 1:
                number, alone = int(self.frames[f]), np.ones(n, dtype=bool)
                alone[p] = False
                lonely += [(number, int(a)) for a in np.flatnonzero(alone)]
            offsets = None if s is None else s @ np.asarray(cell, dtype=np.float64)
            if which := coincident_atoms(dataset.positions[atoms], p, offsets):
                raise DataError(
                    f"frame {int(self.frames[f])}: {which}; leave the frame out, or mend it"
                )
            pairs.append(p.astype(np.int32))  # half the memory of large datasets
            # Small whole numbers: as float64 they would be more than half of what is kept of pairs.
            far = s is not None and np.abs(s).max(initial=0.0) > np.iinfo(np.int16).max
            kept = np.zeros((p.shape[1], 3)) if s is None else s
            shifts.append(kept.astype(np.int32 if far else np.int16))
            ptr.append(ptr[-1] + p.shape[1])
        crowds = int(dataset.n_atoms[dataset.n_atoms > 1].sum())
        self.apart = ""
        if 2 * len(lonely) > crowds:
            self.apart = (
                f"{len(lonely)} of {crowds} atoms have no neighbour within {cutoff:g} A (the first "
                f"is atom {lonely[0][1]} of frame {lonely[0][0]}); are the positions in Angstrom?"
            )

        def tensor(value: np.ndarray | None, factor: float = 1.0) -> Tensor | None:
            if value is None:
                return None
            return torch.as_tensor(value * factor if factor != 1.0 else value, device=device)

        self.numbers = torch.as_tensor(dataset.numbers, device=device)
        self.positions = torch.as_tensor(dataset.positions, device=device)
        self.atom_ptr = torch.as_tensor(dataset.ptr, device=device)
        self.pairs = torch.as_tensor(np.concatenate(pairs, axis=1), device=device)
        self.pair_ptr = torch.as_tensor(np.array(ptr), device=device)
        self.shifts = tensor(np.concatenate(shifts)) if periodic else None
        self.cells = tensor(dataset.cells) if periodic else None
        inverse = 1.0 / scale.constant
        self.energies = None
        if dataset.energies is not None:
            values = dataset.energies
            if scale.offsets:
                weights = quantity.atom_weights(dataset)
                values = values - offset_energies(dataset, scale.offsets, weights)
            self.energies = tensor(values, inverse)
        self.forces = tensor(dataset.forces, inverse)
        self.stress = None
        if dataset.stress is not None:
            self.stress = tensor(voigt_6_to_full_3x3_stress(dataset.stress), inverse)
        self.free = None if dataset.fixed is None else tensor(~dataset.fixed)
        self.axes = None if dataset.free_axes is None else tensor(dataset.directions)
        if self.axes is not None:
            self.free = self.axes.any(dim=2)

    def __len__(self) -> int:
        return len(self.atom_ptr) - 1

    def batch(self, indices: Tensor) -> LabelledGraph:
        """The frames ``indices`` (int64, shape [n]) as one batch."""
        frames = self.frames[indices.cpu()]
        indices = indices.to(self.atom_ptr.device)
        atoms, system = _ranges(self.atom_ptr, indices)
        edges, owner = _ranges(self.pair_ptr, indices)
        counts = self.atom_ptr[indices + 1] - self.atom_ptr[indices]
        first_atom = torch.cumsum(counts, 0) - counts
        graph = AtomicGraph(
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            system=system,
            n_systems=len(indices),
            pairs=self.pairs[:, edges] + first_atom[owner],
            shifts=None if self.shifts is None else self.shifts[edges].double(),
            cells=None if self.cells is None else self.cells[indices],
        )
        return LabelledGraph(
            graph,
            None if self.energies is None else self.energies[indices],
            None if self.forces is None else self.forces[atoms],
            frames,
            None if self.free is None else self.free[atoms],
            None if self.axes is None else self.axes[atoms],
            None if self.stress is None else self.stress[indices],
        )

    def in_order(self, batch_size: int) -> Iterable[LabelledGraph]:
        """All frames in order, ``batch_size`` at a time."""
        for chunk in torch.arange(len(self)).split(batch_size):
            yield self.batch(chunk)


class RotatedFrames:
    """Frames turned at random, every epoch anew: teaches a network the rotations it does not know.

    Each system's positions, forces and cell are turned together, by proper rotations, uniformly
    distributed. How a frame is turned is a function of seed, epoch and frame, whatever batch and
    process it falls into, so that a resumed run goes on exactly.

    Args:
        frames: What to turn.
        seed: Of the rotations.
    """

    def __init__(self, frames: FrameBatches, seed: int):
        self.frames, self.seed = frames, seed
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.frames)

    def set_epoch(self, epoch: int) -> None:
        """Draw the rotations of an epoch (the trainer calls it)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        self.rotations = random_rotations(len(self), generator)

    def batch(self, indices: Tensor) -> LabelledGraph:
        """The frames ``indices`` (int64, shape [n]) as one batch."""
        plain = self.frames.batch(indices)
        graph = plain.graph
        turns = self.rotations[indices.cpu()].to(graph.positions.device)
        own = turns.index_select(0, graph.system)

        def turned(vectors: Tensor) -> Tensor:
            return torch.einsum("nxy,ny->nx", own, vectors)

        cells = None if graph.cells is None else graph.cells @ turns.transpose(1, 2)
        return replace(
            plain,
            graph=replace(graph, positions=turned(graph.positions), cells=cells),
            forces=None if plain.forces is None else turned(plain.forces),
            axes=None if plain.axes is None else plain.axes @ own.transpose(1, 2),
            stress=None if plain.stress is None else turns @ plain.stress @ turns.transpose(1, 2),
        )
