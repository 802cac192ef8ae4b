"""Ensembles: the mean of several potentials, and how far they are apart.

    E = 1/k sum_m E_m        F = 1/k sum_m F_m = -dE/dx        (conservative, as each member's are)
    s^2 = 1/(k-1) sum_m (x_m - <x>)^2

The spread over members trained from other weights, or on other folds of the data, is small where
the training data determine the function and grows away from them (query by committee; Behler, Int.
J. Quantum Chem. 115, 1032 (2015); Lakshminarayanan et al., NeurIPS 2017). It is no error bar before
it has been compared with errors: ``dcase evaluate`` does that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from dcase import checkpoint
from dcase.derivatives import stress_voigt
from dcase.errors import CheckpointError, OptionError
from dcase.own_code import Code, named_code
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.networks.architecture import hook
from dcase.potentials.networks.registry import get_architecture
from dcase.potentials.potential import FORMAT_VERSION as POTENTIAL_VERSION
from dcase.potentials.potential import (
    MIGRATIONS,
    Potential,
    find_checkpoint,
    potential_from_document,
)
from dcase.potentials.quantity import Quantity
from dcase.runs import fingerprint
from dcase.versions import versions

FORMAT_VERSION = 1
Paths = str | os.PathLike[str]


class Ensemble(nn.Module):
    """Mean energies, forces and stress of several potentials, with standard deviations.

    Members of one shape are evaluated in one batched pass where their architecture has one
    (``stack``), others one by one.

    Args:
        members: At least two potentials of energies, of one dtype and device. Elements known are
            those that all members know.
        metadata: Plain values; default: what all members share of theirs.

    Raises:
        OptionError: For fewer than two members, members without a common element, or labels of
            different levels of theory.
    """

    def __init__(self, members: Sequence[Potential], metadata: dict[str, Any] | None = None):
        super().__init__()
        if len(members) < 2:
            raise OptionError(f"an ensemble needs at least two potentials, got {len(members)}")
        theories = {member.level_of_theory for member in members}
        if len(theories) > 1:
            raise OptionError(
                f"the members were trained on different levels of theory: {', '.join(theories)}"
            )
        quantities = {member.quantity for member in members}
        if len(quantities) > 1:
            names = ", ".join(sorted(quantity.name for quantity in quantities))
            raise OptionError(f"the members predict different quantities: {names}")
        self.members = nn.ModuleList(members)
        common = set.intersection(*(set(member.elements) for member in members))
        if not common:
            raise OptionError("the members have no element in common")
        self.elements = sorted(common)
        self.metadata = _shared(members) if metadata is None else dict(metadata)
        self._stack: nn.Module | None = None

    @property
    def _potentials(self) -> list[Potential]:
        return list(self.members)  # type: ignore[arg-type]

    @property
    def first(self) -> Potential:
        """The first member; what holds for all (architecture, quantity) can be read from it."""
        return self._potentials[0]

    @property
    def quantity(self) -> Quantity:
        """What the members predict."""
        return self.first.quantity

    @property
    def cutoff(self) -> float:
        """The largest cutoff of all members, A."""
        return max(member.cutoff for member in self._potentials)

    @property
    def dtype(self) -> torch.dtype:
        """The networks' floating point type."""
        return self.first.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.first.device

    @property
    def level_of_theory(self) -> str:
        """Of the training labels."""
        return self.first.level_of_theory

    def __len__(self) -> int:
        return len(self.members)

    def with_dtype(self, dtype: torch.dtype) -> Ensemble:
        """Convert the networks in place (offsets and geometry stay float64) and return self."""
        for member in self._potentials:
            member.with_dtype(dtype)
        self._stack = None
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Ensemble:
        self._stack = None  # made anew on the new device
        super()._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> Ensemble:
        """As in torch; the stacked copy of the weights is made anew afterwards."""
        self._stack = None
        super().train(mode)
        return self

    def fingerprint(self) -> str:
        """Digest of all that its predictions depend on: the members' fingerprints, in order."""
        return fingerprint([member.fingerprint() for member in self._potentials])

    def describe(self) -> str:
        """One line: how many, and the first of them."""
        return f"ensemble of {len(self)}: {self.first.describe()}"

    # ------------------------------------------------------------------- prediction

    def members_forward(
        self, graph: AtomicGraph, *, stress: bool = False, forces: bool = True
    ) -> dict[str, Tensor]:
        """What every member predicts.

        Args:
            graph: One or more systems; pairs must cover :attr:`cutoff`.
            stress: Also the stress (all systems periodic).
            forces: Also the forces; in vain where the quantity is no energy.

        Returns:
            Detached float64 tensors: ``"energy"`` eV [k, n_systems], ``"energies"`` eV per atom
            [k, n_atoms], ``"forces"`` eV/A [k, n_atoms, 3], and if asked ``"stress"`` eV/A^3
            [k, n_systems, 6].
        """
        if self._can_stack() and (forces or stress):
            return self._together(graph, stress)
        results = []
        for member in self._potentials:
            own = _within(graph, member.cutoff) if member.cutoff < self.cutoff else graph
            results.append(member(own, stress=stress, forces=forces))
        return {name: torch.stack([result[name] for result in results]) for name in results[0]}

    def forward(
        self, graph: AtomicGraph, *, stress: bool = False, forces: bool = True
    ) -> dict[str, Tensor]:
        """Means and standard deviations (over members, with k - 1).

        Args:
            graph: One or more systems; pairs must cover :attr:`cutoff`.
            stress: Also the stress (all systems periodic).
            forces: Also the forces.

        Returns:
            As :meth:`~dcase.potentials.potential.Potential.forward`, and ``"energy_std"`` eV
            [n_systems], ``"forces_std"`` eV/A [n_atoms, 3]; of another quantity ``NAME_std``.
        """
        each = self.members_forward(graph, stress=stress, forces=forces)
        result = {name: values.mean(0) for name, values in each.items()}
        for name in (self.quantity.key, "forces"):
            if name in each:
                result[f"{name}_std"] = each[name].std(0)
        return result

    def _can_stack(self) -> bool:
        first = self.first
        return get_architecture(first.architecture).stack is not None and all(
            member.quantity.is_energy
            and member.architecture == first.architecture
            and member.hyper_parameters == first.hyper_parameters
            and member.elements == first.elements
            and member.dtype == first.dtype
            for member in self._potentials
        )

    @torch.no_grad()
    def _together(self, graph: AtomicGraph, stress: bool) -> dict[str, Tensor]:
        first = self.first
        if self._stack is None:
            stack = get_architecture(first.architecture).stack
            assert stack is not None
            networks = [member.network for member in self._potentials]
            self._stack = hook(stack)(networks, first.hyper_parameters.get("activation", ""))
            assert self._stack is not None
        if stress and graph.cells is None:
            raise ValueError("the stress needs a periodic system")
        graph = replace(graph, positions=graph.positions.detach())
        e, slopes = self._stack(first.species(graph.numbers), graph)
        scale = e.new_tensor([m.scale.constant for m in self._potentials], dtype=torch.float64)
        offsets = torch.stack([m.offsets[graph.numbers] for m in self._potentials])
        energies = e.double() * scale[:, None] + offsets  # [k, n_atoms]
        r = graph.vectors()
        slope = slopes.double() * scale[:, None]  # dE/dd, [k, n_pairs]
        i, j = graph.pairs
        pull = (slope / torch.linalg.vector_norm(r, dim=1)).T.unsqueeze(-1) * r.unsqueeze(1)
        forces = pull.new_zeros(graph.n_atoms, len(self), 3)  # pull: [n_pairs, k, 3]
        forces.index_add_(0, i, pull).index_add_(0, j, pull, alpha=-1.0)
        totals = energies.new_zeros(graph.n_systems, len(self))
        result = {
            "energy": totals.index_add_(0, graph.system, energies.T.contiguous()).T,
            "energies": energies,
            "forces": forces.transpose(0, 1),
        }
        if stress:
            assert graph.cells is not None
            # dE/d eps_ab = sum_p (dE/dd) r_a r_b / d, of each system
            outer = pull.unsqueeze(-1) * r[:, None, None, :]
            virial = outer.new_zeros(graph.n_systems, len(self), 3, 3)
            virial.index_add_(0, graph.system[i], outer)
            cells = graph.cells.repeat_interleave(len(self), 0)
            voigt = stress_voigt(virial.reshape(-1, 3, 3), cells)
            result["stress"] = voigt.view(graph.n_systems, len(self), 6).transpose(0, 1)
        return result

    # ------------------------------------------------------------------------ files

    def to_document(self) -> dict[str, Any]:
        """The content of a checkpoint."""
        return {
            "members": [
                {"format_version": POTENTIAL_VERSION, **member.to_document()}
                for member in self._potentials
            ],
            "metadata": self.metadata,
            "versions": versions(),
        }

    def save(self, path: Paths) -> None:
        """Write one checkpoint that holds all members (plain tensors and values, atomic).

        Raises:
            DcaseError: If the file cannot be written.
        """
        checkpoint.save(path, "ensemble", FORMAT_VERSION, self.to_document())


def model_from_document(document: dict[str, Any], where: str) -> Potential | Ensemble:
    """Build what :meth:`Potential.to_document` or :meth:`Ensemble.to_document` described.

    Raises:
        CheckpointError: If parts are missing or do not fit together.
    """
    if "members" not in document:
        return potential_from_document(document, where)
    try:
        members = []
        for number, member in enumerate(document["members"], 1):
            one = f"{where}, member {number}"
            checkpoint.migrate(member, POTENTIAL_VERSION, MIGRATIONS, one)
            members.append(potential_from_document(member, one))
        return Ensemble(members, document["metadata"]).eval()  # type: ignore[return-value]
    except (LookupError, TypeError, AttributeError, OptionError) as error:
        raise CheckpointError(
            f"{where}: parts of the ensemble are missing or do not fit: {error}"
        ) from error


def read_document(file: Path) -> dict[str, Any]:
    """The content of a checkpoint of either kind, as plain values; no network is made.

    Raises:
        CheckpointError: If it is missing, damaged, foreign, or would run code.
    """
    _, document = checkpoint.load_any(
        file,
        {"potential": POTENTIAL_VERSION, "ensemble": FORMAT_VERSION},
        {"potential": MIGRATIONS},
    )
    return document


def load_model(
    path: Paths | Sequence[Paths], *, code: Code | Sequence[Code] | None = None
) -> Potential | Ensemble:
    """Load a potential or an ensemble, in evaluation mode, on the CPU, in the dtype of the file.

    Args:
        path: A checkpoint of either kind (a bare name is also looked for among the potentials
            shipped with dcase), or several checkpoints, which together are an ensemble.
        code: Files, modules or classes they may use: those of networks or activations of your own.

    Raises:
        CheckpointError: If a file is missing, damaged, foreign, would run code, or needs code that
            was not named.
        OptionError: If several files do not go together.
    """
    if not isinstance(path, str | os.PathLike):
        loaded = [load_model(one, code=code) for one in path]
        if len(loaded) == 1:
            return loaded[0]
        members = [
            m for one in loaded for m in (one.members if isinstance(one, Ensemble) else [one])
        ]
        return Ensemble(members).eval()  # type: ignore[arg-type, return-value]
    file, _ = find_checkpoint(Path(path))
    document = read_document(file)
    with named_code(code):
        return model_from_document(document, str(file))


def _within(graph: AtomicGraph, cutoff: float) -> AtomicGraph:
    """The pairs closer than ``cutoff`` alone."""
    inside = graph.distances() < cutoff
    return replace(
        graph,
        pairs=graph.pairs[:, inside],
        shifts=None if graph.shifts is None else graph.shifts[inside],
    )


def _shared(members: Sequence[Potential]) -> dict[str, Any]:
    """Entries of the metadata that are the same in all members."""
    first = members[0].metadata
    return {
        key: value
        for key, value in first.items()
        if all(member.metadata.get(key) == value for member in members)
    }


def elements_text(model: Potential | Ensemble) -> str:
    """Symbols of the elements that a model knows, with commas."""
    return ", ".join(chemical_symbols[z] for z in model.elements)
