"""Energies of isolated atoms, given or found in the data, and networks that are held to them.

With given energies ``E0[z]`` the potential is ``E = sum_i (C (e_i - e0[z_i]) + E0[z_i])``, where
``e0[z]`` is what the network gives an atom of that element alone: an isolated atom has the energy
``E0[z]`` exactly, whatever the weights. In training the lone atoms are systems of every batch;
afterwards the constants ``C e0[z]`` go into the offsets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError, OptionError
from dcase.files import check_readable
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.potential import Potential

ALONE_A = 6.0
"""A periodic frame of one atom is an isolated one if its images are farther away than this."""
_PAIR = re.compile(r"\"?\b([A-Z][a-z]?)\b\"?\s*[=:\s]\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)")


def e0s_text(given: str) -> str:
    """``--e0s`` as a recipe keeps it: "isolated", or "H=-13.6,O=-2041.8" (also from a file).

    Raises:
        OptionError: If it is neither, nor a file with a line or entry for every element.
        DcaseError: If the file cannot be read.
    """
    if given == "isolated":
        return given
    text = given
    if "=" not in given:
        check_readable(Path(given))
        text = Path(given).read_text(encoding="utf-8", errors="replace")
    return ",".join(f"{chemical_symbols[z]}={e!r}" for z, e in _parse(text, given).items())


def _parse(text: str, what: str) -> dict[int, float]:
    found = {}
    for symbol, energy in _PAIR.findall(text):
        if symbol not in atomic_numbers:
            raise OptionError(f"--e0s {what}: {symbol!r} is no element")
        found[atomic_numbers[symbol]] = float(energy)
    if not found or re.search(r"[A-Za-z0-9]", _PAIR.sub("", text)):
        raise OptionError(f"--e0s {what}: expected energies in eV, as in H=-13.6,O=-2041.8")
    return dict(sorted(found.items()))


def isolated_energies(dataset: AtomicDataset) -> dict[int, float]:
    """Mean energies in eV of the frames of one isolated atom, by atomic number."""
    if dataset.energies is None:
        return {}
    found: dict[int, list[float]] = {}
    for f in np.flatnonzero(dataset.n_atoms == 1):
        if dataset.cells is not None and dataset.pbc is not None and dataset.pbc[f].any():
            vectors = dataset.cells[f][dataset.pbc[f]]
            if np.linalg.norm(vectors, axis=1).min() < ALONE_A:
                continue  # a crystal
        number = int(dataset.numbers[dataset.ptr[f]])
        found.setdefault(number, []).append(float(dataset.energies[f]))
    return {z: float(np.mean(energies)) for z, energies in sorted(found.items())}


def choose_e0s(offset: str, dataset: AtomicDataset) -> dict[int, float] | None:
    """Energies of isolated atoms by atomic number, or None: offsets are fitted.

    Args:
        offset: Of the recipe: ``"isolated"``, ``"H=-13.6,..."``, or a rule of
            :func:`dcase.rescaling.fit_offsets`; with ``"atomic"``, isolated atoms are used if the
            data have one of every element.
        dataset: All frames.

    Raises:
        OptionError: If an element is not among the given ones.
        DataError: If there is no isolated atom of an element.
    """
    if "=" in offset:
        found = _parse(offset, offset)
        if missing := [z for z in dataset.elements if z not in found]:
            raise OptionError(f"--e0s gives no energy of {_symbols(missing)}")
        return {z: found[z] for z in dataset.elements}
    if offset not in ("isolated", "atomic"):
        return None
    found = isolated_energies(dataset)
    missing = [z for z in dataset.elements if z not in found]
    if missing and offset == "isolated":
        raise DataError(
            f"--e0s isolated: there is no labelled frame of an isolated {_symbols(missing)} atom"
        )
    return None if missing else found


def _symbols(numbers: list[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in numbers)


@dataclass(frozen=True)
class LoneAtoms:
    """One atom of every element, evaluated with every batch.

    Attributes:
        elements: Atomic numbers, ascending.
    """

    elements: tuple[int, ...]

    def joined(self, graph: AtomicGraph) -> AtomicGraph:
        """The graph with the atoms behind it, each a system of its own."""
        k, device = len(self.elements), graph.numbers.device
        cells = graph.cells
        return replace(
            graph,
            numbers=torch.cat([graph.numbers, torch.tensor(self.elements, device=device)]),
            positions=torch.cat([graph.positions, graph.positions.new_zeros(k, 3)]),
            system=torch.cat([graph.system, graph.n_systems + torch.arange(k, device=device)]),
            n_systems=graph.n_systems + k,
            cells=None if cells is None else torch.cat([cells, cells.new_zeros(k, 3, 3)]),
        )

    def subtract(self, energies: Tensor, graph: AtomicGraph) -> Tensor:
        """Energies of ``graph`` less those of its atoms alone, from those of the joined graph.

        Args:
            energies: Shape [n_systems + n_elements].
            graph: As given to :meth:`joined`.
        """
        elements = torch.tensor(self.elements, device=graph.numbers.device)
        own, alone = energies[: graph.n_systems], energies[graph.n_systems :]
        which = torch.searchsorted(elements, graph.numbers)
        return own - graph.sum_over_atoms(alone.index_select(0, which))


def settle(potential: Potential) -> None:
    """Shift the offsets so that isolated atoms have the energies that the offsets were."""
    elements = tuple(potential.elements)
    device = potential.device
    graph = AtomicGraph(
        numbers=torch.tensor(elements, device=device),
        positions=torch.zeros(len(elements), 3, dtype=torch.float64, device=device),
        system=torch.arange(len(elements), device=device),
        n_systems=len(elements),
        pairs=torch.zeros(2, 0, dtype=torch.int64, device=device),
    )
    with torch.no_grad():
        alone = potential.atom_energies(graph).double().cpu() * potential.scale.constant
    offsets = potential.scale.offsets
    shifted = {z: offsets[z] - float(e) for z, e in zip(elements, alone, strict=True)}
    potential.set_scale(replace(potential.scale, offsets=shifted))
