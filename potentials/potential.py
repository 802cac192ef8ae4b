"""A potential: a network, its read-out, the label scale around it, and where it comes from."""

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
from dcase.derivatives import apply_strain, energy_gradient, stress_voigt
from dcase.errors import CheckpointError, OptionError
from dcase.own_code import Code, is_own, named_code, record_of, required
from dcase.potentials.elements import unknown_elements
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.kernels.deployed import Deployed, deploy
from dcase.potentials.networks.float64_buffers import ExactBuffers
from dcase.potentials.networks.own import package_of
from dcase.potentials.networks.registry import build_network, get_architecture
from dcase.potentials.quantity import ENERGY, Quantity
from dcase.rescaling import LabelScale
from dcase.runs import fingerprint
from dcase.versions import versions

FORMAT_VERSION = 2  # 2: with a quantity; before, all potentials predicted energies
SHIPPED_DIR = Path(__file__).parent / "shipped"


class Potential(ExactBuffers):
    """Energies, forces and stress of atoms, or another quantity of whole systems.

    ``E = sum_i (C e_i + E0[z_i])``: the network's per-atom energies ``e_i`` in the network's dtype,
    summed in float64, times the label scale C, plus per-element offsets in float64. Other
    quantities read out otherwise (:mod:`dcase.potentials.quantity`) and have no forces.

    Args:
        network: Maps ``(species, graph)`` to per-atom energies, and has a ``cutoff`` in A.
        elements: Atomic numbers it knows, ascending.
        architecture: Registry name.
        hyper_parameters: What the network was built from.
        scale: The label scale; unit scale if not given.
        metadata: Plain values: dataset, level of theory, recipe, metrics, versions.
        quantity: What it predicts.
    """

    species_of: Tensor
    offsets: Tensor

    def __init__(
        self,
        network: nn.Module,
        elements: list[int],
        *,
        architecture: str,
        hyper_parameters: dict[str, Any],
        scale: LabelScale | None = None,
        metadata: dict[str, Any] | None = None,
        quantity: Quantity = ENERGY,
    ):
        super().__init__()
        self.network = network
        self.elements = list(elements)
        self.architecture = architecture
        self.hyper_parameters = dict(hyper_parameters)
        self.metadata = dict(metadata or {})
        self.quantity = quantity
        table = torch.full((119,), -1, dtype=torch.int64)
        table[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("species_of", table, persistent=False)
        self.register_buffer("offsets", torch.zeros(119, dtype=torch.float64), persistent=False)
        self.set_scale(scale or LabelScale())

    def set_scale(self, scale: LabelScale) -> None:
        """Replace the label scale."""
        self.scale = scale
        self.offsets = scale.table().to(self.offsets.device)

    @property
    def cutoff(self) -> float:
        """The network's cutoff in A."""
        return float(self.network.cutoff)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """The network's floating point type."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def level_of_theory(self) -> str:
        """Of the training labels, or "none (untrained)"."""
        dataset = self.metadata.get("dataset")
        return dataset["level_of_theory"] if dataset else "none (untrained)"

    def with_dtype(self, dtype: torch.dtype) -> Potential:
        """Convert the network in place (offsets and geometry stay float64) and return self."""
        self.network.to(dtype)
        return self

    def species(self, numbers: Tensor) -> Tensor:
        """Index of each atom's element, int64, of atomic ``numbers`` of any shape.

        Raises:
            OptionError: For elements that it does not know (not while a CUDA graph is recorded).
        """
        inside = numbers.clamp(0, len(self.species_of) - 1)
        found = self.species_of[inside]
        if numbers.is_cuda and torch.cuda.is_current_stream_capturing():
            return found
        if bool(((found < 0) | (inside != numbers)).any()):
            raise OptionError(unknown_elements(numbers.flatten().tolist(), self.elements))
        return found

    def atom_energies(self, graph: AtomicGraph) -> Tensor:
        """Per-atom energies in the network's unit and dtype, shape [n_atoms].

        Raises:
            OptionError: For elements that it does not know.
        """
        known = graph.known
        return self.network(
            self.species_of[graph.numbers] if known else self.species(graph.numbers), graph
        )

    def energies(self, graph: AtomicGraph) -> Tensor:
        """Total energies in the network's unit (no offset), float64, shape [n_systems].

        Of a potential of another quantity: that quantity.

        Raises:
            OptionError: For elements that it does not know.
        """
        return self.quantity.read_out(self.atom_energies(graph).double(), graph)

    def energies_and_forces(
        self, graph: AtomicGraph, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Energies [n_systems] and forces [n_atoms, 3], both in the network's unit, float64.

        The forces are ``-dE/dx`` exactly, by autograd, also under ``torch.no_grad()``.

        Raises:
            OptionError: If the quantity is no energy, or for elements that it does not know.
        """
        if not self.quantity.is_energy:
            raise OptionError(f"{self.quantity} has no forces: it is no energy")
        with torch.inference_mode(False), torch.enable_grad():
            graph = replace(graph, positions=graph.positions.detach().requires_grad_(True))
            energies = self.energies(graph)
            gradient = energy_gradient(energies, graph.positions, create_graph=create_graph)
            return energies, -gradient

    def energies_forces_and_strain_gradient(
        self, graph: AtomicGraph, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`energies_and_forces`, and dE/d eps [n_systems, 3, 3] (:func:`apply_strain`).

        Raises:
            OptionError: If the quantity is no energy, or for elements that it does not know.
            ValueError: If the graph has no cells.
        """
        if not self.quantity.is_energy:
            raise OptionError(f"{self.quantity} has no stress: it is no energy")
        if graph.cells is None:
            raise ValueError("the stress needs cells")
        with torch.inference_mode(False), torch.enable_grad():
            positions = graph.positions.detach().requires_grad_(True)
            strained, cells, strain = apply_strain(positions, graph.cells, graph.system)
            energies = self.energies(replace(graph, positions=strained, cells=cells))
            if not energies.requires_grad:  # no pair within the cutoff
                return energies, torch.zeros_like(positions), torch.zeros_like(strain)
            leaves = positions, strain
            found = torch.autograd.grad(
                energies.sum(), leaves, create_graph=create_graph, allow_unused=True
            )
            gradient, slope = (
                torch.zeros_like(leaf) if one is None else one
                for leaf, one in zip(leaves, found, strict=True)
            )
            return energies, -gradient, slope

    def fingerprint(self) -> str:
        """Digest of all that its predictions depend on, but for the dtype they are computed in."""
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        return fingerprint(
            self.architecture,
            self.hyper_parameters,
            self.elements,
            self.scale.to_dict(),
            self.quantity.to_dict(),
            {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()},
        )

    def deploy(self, *, tabulate: bool = False) -> Deployed:
        """The compiled form that simulations use; see :mod:`dcase.potentials.kernels.deployed`."""
        return deploy(self, tabulate=tabulate)

    def forward(
        self, graph: AtomicGraph, *, stress: bool = False, forces: bool = True
    ) -> dict[str, Tensor]:
        """Physical predictions.

        Args:
            graph: One or more systems; pairs must cover :attr:`cutoff`.
            stress: Also compute the stress (all systems with a cell of three vectors).
            forces: Compute forces; they take three times as long as the energies.

        Returns:
            Detached float64 tensors: ``"energy"`` eV [n_systems], ``"energies"`` eV per atom
            [n_atoms], if asked ``"forces"`` eV/A [n_atoms, 3] and ``"stress"`` eV/A^3
            [n_systems, 6], Voigt. If the quantity is no energy: its values alone, by its name, in
            its unit, [n_systems].

        Raises:
            OptionError: If the stress of what is no energy is asked for, or for elements that it
                does not know.
        """
        if not self.quantity.is_energy:
            if stress:
                raise OptionError(f"{self.quantity} has no stress: it is no energy")
            with torch.no_grad():
                values = self._values(self.atom_energies(graph), graph)
                return {self.quantity.key: self.quantity.read_out(values, graph)}
        if not (forces or stress):
            with torch.no_grad():
                values = self._values(self.atom_energies(graph), graph)
                return {"energy": graph.sum_over_atoms(values), "energies": values}
        cells, strain = graph.cells, None
        # Everything the forces and the stress pass through, lest a caller's no_grad() make them 0.
        with torch.inference_mode(False), torch.enable_grad():
            positions = graph.positions.detach().requires_grad_(True)
            gradients: list[Tensor | None]
            inputs = [positions]
            strained = positions
            if stress:
                if cells is None:
                    raise ValueError("the stress needs cells")
                strained, cells, strain = apply_strain(positions, cells, graph.system)
                inputs.append(strain)
            per_atom = self.atom_energies(replace(graph, positions=strained, cells=cells)).double()
            if per_atom.requires_grad:
                gradients = list(torch.autograd.grad(per_atom.sum(), inputs, allow_unused=True))
            else:
                gradients = [None] * len(inputs)
        constant = self.scale.constant
        with torch.no_grad():
            per_atom = self._values(per_atom, graph)
            gradient = gradients[0]
            result = {
                "energy": graph.sum_over_atoms(per_atom),
                "energies": per_atom,
            }
            if forces:
                result["forces"] = (
                    torch.zeros_like(positions) if gradient is None else gradient * -constant
                )
            if strain is not None:
                slope = gradients[1]
                slope = torch.zeros_like(strain) if slope is None else slope * constant
                assert graph.cells is not None
                result["stress"] = stress_voigt(slope, graph.cells)
        return {name: value.detach() for name, value in result.items()}

    def _values(self, per_atom: Tensor, graph: AtomicGraph) -> Tensor:
        """Per-atom values in the quantity's unit from the network's, float64, shape [n_atoms]."""
        return per_atom.double() * self.scale.constant + self.offsets[graph.numbers]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint (plain tensors and values, atomic).

        Raises:
            DcaseError: If the file cannot be written.
        """
        checkpoint.save(path, "potential", FORMAT_VERSION, self.to_document())

    def to_document(self) -> dict[str, Any]:
        """The content of a checkpoint."""
        own = [self.architecture, *(v for v in self.hyper_parameters.values() if _own(v))]
        return {
            "architecture": self.architecture,
            "code": record_of(own),
            "package": package_of(self.architecture),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "hyper_parameters": self.hyper_parameters,
            "elements": self.elements,
            "cutoff": self.cutoff,
            "units": {"energy": "eV", "length": "Angstrom"},
            "quantity": self.quantity.to_dict(),
            "scale": self.scale.to_dict(),
            "weights": {
                name: value.detach().cpu().clone()
                for name, value in self.network.state_dict().items()
            },
            "metadata": self.metadata,
            "versions": versions(),
        }

    def describe(self) -> str:
        """One line: architecture, activation, elements, size; the quantity if not the energy."""
        symbols = "".join(chemical_symbols[z] for z in self.elements)
        count = sum(p.numel() for p in self.network.parameters())
        activation = self.hyper_parameters.get("activation", "")
        activation = f" ({activation})" if activation else ""
        what = "" if self.quantity == ENERGY else f", predicts {self.quantity}"
        return f"{self.architecture}{activation}, {count:,} parameters, elements {symbols}{what}"


def build_potential(
    name: str, hyper_parameters: dict[str, Any], elements: list[int], *, seed: int = 0
) -> Potential:
    """A potential with fresh weights from complete hyper-parameters, in evaluation mode.

    Arguments as of :func:`dcase.potentials.networks.registry.build_network`.
    """
    network = build_network(name, hyper_parameters, elements, seed=seed)
    potential = Potential(network, elements, architecture=name, hyper_parameters=hyper_parameters)
    return potential.eval()


def potential_from_document(document: dict[str, Any], where: str = "checkpoint") -> Potential:
    """Build a potential from a loaded checkpoint.

    Raises:
        CheckpointError: If parts are missing or do not fit together, or it needs code of a user's
            that was not named (:class:`~dcase.own_code.CodeNeededError`).
    """
    try:
        architecture, hyper_parameters = _known_here(document, where)
        potential = build_potential(
            architecture,
            hyper_parameters,
            [int(z) for z in document["elements"]],
        )
        weights = document["weights"]
        dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
        if len(dtypes) == 1:
            potential.with_dtype(dtypes.pop())
        potential.network.load_state_dict(weights)
        potential.set_scale(LabelScale.from_dict(document["scale"]))
        potential.metadata = dict(document["metadata"])
        potential.quantity = Quantity.from_dict(document["quantity"])
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{where}: parts of the checkpoint are missing or do not fit: {reason}"
        ) from error
    if not all(torch.isfinite(value).all() for value in potential.network.state_dict().values()):
        raise CheckpointError(f"{where}: the weights hold NaN or infinite values")
    return potential.eval()


def _own(value: Any) -> bool:
    return isinstance(value, str) and is_own(value)


def _known_here(document: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Architecture and hyper-parameters by names that are known in this process.

    Raises:
        CheckpointError: If the architecture is not known, or code that is needed was not named.
    """
    architecture, values = document["architecture"], document["hyper_parameters"]
    records = document.get("code", {})
    names = required(records, where)
    for name in filter(_own, [architecture, *values.values()]):
        if name not in names:  # nothing in a file is run because the file says so
            raise CheckpointError(f"{where}: it names code ({name[:60]}) that it does not record")
    architecture = names.get(architecture, architecture)
    values = {k: names.get(v, v) if _own(v) else v for k, v in values.items()}
    try:
        get_architecture(architecture)
    except OptionError as error:
        package = document.get("package") or {}
        hint = (
            f"it comes with the package {package['name']} {package['version']}, which is to be "
            "installed"
            if package
            else "networks of your own are known by their file: --model FILE.py:CLASS"
        )
        raise CheckpointError(f"{where}: {error}; {hint}") from error
    return architecture, values


def _with_quantity(document: dict[str, Any]) -> None:
    """Migrates version 1, in which all potentials predicted energies."""
    document["quantity"] = ENERGY.to_dict()


MIGRATIONS = {1: _with_quantity}


def find_checkpoint(path: str | os.PathLike[str]) -> tuple[Path, bool]:
    """``path`` itself, or the file of that bare name that is shipped with the package.

    Returns:
        The file to read, and whether it is the shipped one.

    Raises:
        CheckpointError: If there is neither.
    """
    given = Path(path)
    if given.exists():
        return given, False
    shipped = SHIPPED_DIR / given.name
    if given.parent == Path() and shipped.is_file():
        return shipped, True
    names = ", ".join(sorted(p.name for p in SHIPPED_DIR.glob("*.pt"))) or "none"
    raise CheckpointError(f"{given}: no such file (potentials shipped with dcase: {names})")


def load_potential(
    path: str | os.PathLike[str], *, code: Code | Sequence[Code] | None = None
) -> Potential:
    """Load a potential, in evaluation mode, on the CPU, in the dtype it was saved in.

    A bare file name that does not exist in the working directory is looked for among the potentials
    shipped with the package.

    Args:
        path: A checkpoint written by :meth:`Potential.save` or ``dcase train``.
        code: Files, modules or classes it may use: those of a network or activation of your own.

    Raises:
        CheckpointError: If the file is missing, damaged, foreign, would run code, or needs code
            that was not named.
    """
    file, _ = find_checkpoint(path)
    document = checkpoint.load(file, "potential", FORMAT_VERSION, MIGRATIONS)
    with named_code(code):
        return potential_from_document(document, str(file))
