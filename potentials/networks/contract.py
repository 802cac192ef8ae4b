"""Whether a network from outside keeps the contract, tried out on a few atoms.

A network that is wrong in one of these ways trains all the same, and what it gives is no potential;
so it is refused before it is trained. What a good potential may lack (invariance to rotation, a
smooth cutoff) is said, not refused.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcase.errors import NetworkWarning, OptionError
from dcase.own_code import reason
from dcase.potentials.graphs.graph import AtomicGraph, build_graph
from dcase.potentials.networks.architecture import LARGEST_CUTOFF

SAME = 1e-8
"""Largest difference, in float64, of what should be the same; relative to the largest energy."""
STEP_A = 1e-4
SLOPE = 1e-5
"""Largest relative error of the gradient against central differences."""
JUMP = 1e-3
"""Largest step at the cutoff, relative to what a pair at half of it does to the energies."""


def check_network(network: nn.Module, elements: list[int], name: str, path: str = "") -> None:
    """Try a network out on random structures of six atoms, and less.

    Args:
        network: In the dtype it is made in; a copy is tried out, also in float64 and with weights
            moved a little, lest zeros in a fresh network hide what is wrong.
        elements: Atomic numbers it knows, in the order of its species.
        name: For messages.
        path: Its file, to name the line in which it fails.

    Raises:
        OptionError: In one line: no ``cutoff``, no parameters, it fails, another shape than
            [n_atoms], NaN, no derivative or a wrong one, energies that depend on the order of the
            atoms, on other systems of the batch or on where the origin is.

    Warns:
        NetworkWarning: If energies change as the structure turns, or jump at the cutoff.
    """
    cutoff = _cutoff(network, name)
    if not any(True for _ in network.parameters()):
        raise OptionError(f"{name} has no parameters to train")
    trial = _Trial(copy.deepcopy(network).eval(), elements, name, path, cutoff)
    first = trial.structure()
    trial(first)
    trial.network = _moved(trial.network.double())
    energies = trial(first)
    if energies.dtype != torch.float64:
        raise OptionError(
            f"{name}: with weights in float64 its energies are {energies.dtype}; compute in the "
            "dtype of the weights"
        )
    _same(trial, first, energies)
    _slopes(trial, first)
    _alone(trial)
    _remarks(trial, first, energies)


def _cutoff(network: nn.Module, name: str) -> float:
    try:
        cutoff = float(network.cutoff)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError) as error:
        raise OptionError(
            f"{name} has no cutoff: set self.cutoff, in A, in its __init__"
        ) from error
    if not 0.0 < cutoff <= LARGEST_CUTOFF:
        raise OptionError(
            f"{name}: its cutoff must be positive and at most {LARGEST_CUTOFF:g} A, not {cutoff:g}"
        )
    return cutoff


def _moved(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.to(parameter))
    return network


@dataclass
class _Structure:
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray | None = None

    def moved(self, positions: np.ndarray) -> _Structure:
        return replace(self, positions=positions)


@dataclass
class _Trial:
    """A network, and structures to try it on."""

    network: nn.Module
    elements: list[int]
    name: str
    path: str
    cutoff: float

    def structure(self) -> _Structure:
        """Six atoms on a distorted grid, some of them out of reach of each other."""
        rng = np.random.default_rng(0)
        spacing = min(1.5, 0.45 * self.cutoff)
        grid = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 2], [1, 2, 0]])
        positions = spacing * (grid + rng.uniform(-0.2, 0.2, grid.shape))
        return _Structure(np.resize(self.elements, len(grid)), positions)

    def graph(self, structure: _Structure) -> AtomicGraph:
        """Its pairs, found anew."""
        pbc = None if structure.cell is None else np.ones(3, dtype=bool)
        place = (structure.numbers, structure.positions, self.cutoff, structure.cell, pbc)
        return build_graph(*place)

    def __call__(self, structure: _Structure | AtomicGraph) -> Tensor:
        """Per-atom energies, seen to be such.

        Raises:
            OptionError: If it fails, or gives something else.
        """
        graph = structure if isinstance(structure, AtomicGraph) else self.graph(structure)
        species = torch.searchsorted(torch.tensor(sorted(self.elements)), graph.numbers)
        n = graph.n_atoms
        what = f"{n} atoms in {graph.pairs.shape[1]} pairs"
        try:
            found: Any = self.network(species, graph)
        except Exception as error:  # the user's own code
            said = reason(error, self.path or None)
            hint = ""
            if "Double" in str(error) or "same dtype" in str(error):
                hint = (
                    "; positions are float64 always: convert what is made of them, as in "
                    "graph.vectors().to(self.embedding.weight.dtype)"
                )
            raise OptionError(f"{self.name} fails on {what}: {said}{hint}") from error
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise OptionError(f"{self.name} must return a tensor of energies, not {kind}")
        if found.shape != (n,):
            raise OptionError(
                f"{self.name} must return one energy per atom, shape [{n}] for {what}, not "
                f"{list(found.shape)}"
            )
        if not torch.isfinite(found).all():
            raise OptionError(f"{self.name} gives NaN or infinite energies for {what}")
        return found


def _differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > SAME * (1e-6 + torch.maximum(a.abs().max(), b.abs().max())))


def _same(trial: _Trial, first: _Structure, energies: Tensor) -> None:
    """What must not change the energies."""
    name = trial.name
    if _differ(trial(first), energies):
        raise OptionError(
            f"{name} gives other energies each time, also in evaluation mode; what is random "
            "belongs under `if self.training`"
        )
    order = np.array([3, 0, 5, 1, 4, 2])
    swapped = _Structure(first.numbers[order], first.positions[order])
    if _differ(trial(swapped), energies[order]):
        raise OptionError(
            f"{name}: energies depend on the order of the atoms; graph.pairs has each pair once, "
            "so treat i and j alike, or use dcase.potentials.graphs.edges.directed_edges"
        )
    one, two = trial.graph(first), trial.graph(swapped.moved(0.93 * swapped.positions))
    if _differ(trial(_together(one, two))[: one.n_atoms], energies):
        raise OptionError(
            f"{name}: energies depend on the other systems of a batch; graph.system says which "
            "system an atom is of"
        )
    if _differ(trial(first.moved(first.positions + 2.7)), energies):
        raise OptionError(
            f"{name}: energies depend on where the origin is; use graph.vectors(), not positions"
        )
    box = 2.2 * trial.cutoff
    crystal = replace(first, cell=np.array([[box, 0, 0], [0.1 * box, box, 0], [0, 0.2, box]]))
    assert crystal.cell is not None
    other = crystal.moved(
        crystal.positions + np.array([0, 1, 0, -1, 1, 0])[:, None] * crystal.cell[0]
    )
    if _differ(trial(crystal), trial(other)):
        raise OptionError(
            f"{name}: energies of a crystal change as an atom moves by a lattice vector; use "
            "graph.vectors(), which minds periodic images"
        )


def _together(one: AtomicGraph, two: AtomicGraph) -> AtomicGraph:
    return AtomicGraph(
        numbers=torch.cat([one.numbers, two.numbers]),
        positions=torch.cat([one.positions, two.positions]),
        system=torch.cat([one.system, two.system + 1]),
        n_systems=2,
        pairs=torch.cat([one.pairs, two.pairs + one.n_atoms], 1),
    )


def _gradient(trial: _Trial, structure: _Structure, create_graph: bool) -> Tensor:
    graph = trial.graph(structure)
    graph = replace(graph, positions=graph.positions.requires_grad_(True))
    total = trial(graph).sum()
    found = None
    if total.requires_grad:
        (found,) = torch.autograd.grad(
            total, graph.positions, create_graph=create_graph, allow_unused=True
        )
    return torch.zeros_like(graph.positions) if found is None else found


def _slopes(trial: _Trial, first: _Structure) -> None:
    """Forces are the exact derivative, and can be trained on."""
    name = trial.name
    gradient = _differentiated(trial, lambda: _gradient(trial, first, True), "differentiated")
    if not torch.isfinite(gradient).all():
        raise OptionError(f"{name}: forces are NaN or infinite where the energies are not")
    rng = np.random.default_rng(1)
    largest = 0.0
    for _ in range(3):
        way = rng.normal(size=first.positions.shape)
        up, down = (trial(first.moved(first.positions + s * STEP_A * way)).sum() for s in (1, -1))
        slope = float((up - down).detach()) / (2 * STEP_A)
        exact = float((gradient.detach() * torch.from_numpy(way)).sum())
        size = max(abs(slope), float(gradient.detach().abs().max()), 1e-9)
        if abs(slope - exact) > SLOPE * size:
            raise OptionError(
                f"{name}: its forces are not the derivative of its energies ({exact:.6g} by "
                f"autograd, {slope:.6g} by differences); no detach(), .data, .item(), NumPy or "
                "rounding on the way from positions to energies"
            )
        largest = max(largest, abs(slope))
    if largest == 0.0:
        raise OptionError(f"{name}: energies do not depend on where the atoms are")
    parameters = [p for p in trial.network.parameters() if p.requires_grad]

    def twice() -> list[Tensor | None]:
        loss = gradient.square().sum()
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    by_weights = _differentiated(trial, twice, "differentiated twice, as training on forces does")
    if not all(g is None or torch.isfinite(g).all() for g in by_weights):
        raise OptionError(f"{name}: gradients of the forces by the weights are NaN or infinite")


def _differentiated(trial: _Trial, make: Callable[[], Any], how: str) -> Any:
    try:
        return make()
    except OptionError:
        raise
    except Exception as error:  # the user's own code
        said = reason(error, trial.path or None)
        raise OptionError(f"{trial.name} cannot be {how}: {said}") from error


def _alone(trial: _Trial) -> None:
    """One atom without neighbours, and two: where vectors vanish by symmetry."""
    one = _Structure(np.array(trial.elements[:1]), np.zeros((1, 3)))
    two = _pair(trial, 0.5 * trial.cutoff)
    parameters = [p for p in trial.network.parameters() if p.requires_grad]
    for structure, what in ((one, "an atom without neighbours"), (two, "two atoms")):

        def slopes(structure: _Structure = structure) -> list[Tensor]:
            gradient = _gradient(trial, structure, True)
            loss = trial(structure).sum() + gradient.square().sum()
            by_weights = torch.autograd.grad(loss, parameters, allow_unused=True)
            return [gradient, *(g for g in by_weights if g is not None)]

        found = _differentiated(trial, slopes, f"differentiated ({what})")
        if not all(torch.isfinite(g).all() for g in found):
            raise OptionError(f"{trial.name}: {_NAN} ({what})")


_NAN = (
    "forces or their gradients are NaN where something vanishes by symmetry; a length sqrt(x^2) "
    "has no slope at 0: take sqrt(x^2 + eps)"
)


def _pair(trial: _Trial, distance: float) -> _Structure:
    numbers = np.array([trial.elements[0], trial.elements[-1]])
    return _Structure(numbers, np.array([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]]) * distance)


def _remarks(trial: _Trial, first: _Structure, energies: Tensor) -> None:
    """What is worth a word."""
    rng = np.random.default_rng(2)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    if _differ(trial(first.moved(first.positions @ turn.T)), energies):
        warnings.warn(
            f"{trial.name}: energies change as a structure turns; train with --augment-rotations",
            NetworkWarning,
            stacklevel=4,
        )
    apart, inside, half = (
        trial(_pair(trial, factor * trial.cutoff)).sum().detach()
        for factor in (1.001, 1 - 1e-7, 0.5)
    )
    step, size = float((inside - apart).abs()), float((half - apart).abs())
    if step > JUMP * size and size > 0:
        warnings.warn(
            f"{trial.name}: the energy of a pair jumps at the cutoff, by {step / size:.1%} of what "
            "it is at half of it, so that simulations will not conserve energy; multiply what goes "
            "over a pair by a function that is 0 there",
            NetworkWarning,
            stacklevel=4,
        )
