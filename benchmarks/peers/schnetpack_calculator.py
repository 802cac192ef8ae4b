"""SchNetPack's calculator in ASE's velocity Verlet, on request; runs in SchNetPack's environment.

    .venv-schnetpack/bin/python schnetpack_calculator.py start.npz '{"architecture": "schnet", ...}'

``benchmarks/md_step.py`` starts it and hands over the start (numbers, positions, momenta), the
sizes and the weights of a dcase SchNet or PaiNN. It says ``ready PARAMETERS LIST DEVIATION`` (the
neighbour list that proved fastest; the largest difference of its forces from those handed over,
eV/A); then every line ``turn`` is answered by the seconds of a step, its processor seconds, and the
seconds of a force call. It ends with its standard input.

What is timed is SchNetPack's ``SpkCalculator`` with its ``AtomsConverter`` as they are; only the
model is given, not read from a file.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase_turns import Dynamics
from schnetpack_step import build  # mends an import of SchNetPack's, so it comes first

# isort: split
from schnetpack.interfaces.ase_interface import SpkCalculator
from schnetpack.transform import (
    ASENeighborList,
    MatScipyNeighborList,
    SkinNeighborList,
    TorchNeighborList,
)

SKIN = 0.5  # A, dcase's own
LISTS = {
    "matscipy": MatScipyNeighborList,
    "ase": ASENeighborList,
    "torch": TorchNeighborList,
    "skin+matscipy": lambda cutoff: SkinNeighborList(
        MatScipyNeighborList(cutoff), cutoff_skin=SKIN
    ),
    "skin+torch": lambda cutoff: SkinNeighborList(TorchNeighborList(cutoff), cutoff_skin=SKIN),
}
TRIALS = 3  # turns of each list
# Layers of dcase's networks and SchNetPack's, by the pattern of their names
LAYERS = {
    r"interactions\.(\d+)\.filter_in": r"interactions.\1.filter_network.0",
    r"interactions\.(\d+)\.filter_out": r"interactions.\1.filter_network.1",
    r"interactions\.(\d+)\.atom_in": r"interactions.\1.in2f",
    r"interactions\.(\d+)\.atom_out": r"interactions.\1.f2out.0",
    r"interactions\.(\d+)\.update": r"interactions.\1.f2out.1",
    r"filters": r"filter_net",
    r"messages\.(\d+)\.dense": r"interactions.\1.interatomic_context_net.0",
    r"messages\.(\d+)\.split": r"interactions.\1.interatomic_context_net.1",
    r"updates\.(\d+)\.mix": r"mixing.\1.mu_channel_mix",
    r"updates\.(\d+)\.dense": r"mixing.\1.intraatomic_context_net.0",
    r"updates\.(\d+)\.split": r"mixing.\1.intraatomic_context_net.1",
}


class Calculator(SpkCalculator):
    """SchNetPack's, of a model in memory."""

    def __init__(
        self,
        model: torch.nn.Module,
        neighbours: Any,
        dtype: torch.dtype,
        energy_unit: str = "eV",
    ):
        self._given = model
        super().__init__("", neighbours, energy_unit=energy_unit, dtype=dtype)

    def _load_model(self, model_file: str) -> torch.nn.Module:
        return self._given.to(torch.float64).eval()  # as SchNetPack does with what it reads


def converted(stored: dict[str, np.ndarray], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """SchNetPack's state from dcase's weights; energies get the label scale, no offset."""
    state = model.state_dict()
    weights = {k[7:]: torch.from_numpy(v) for k, v in stored.items() if k.startswith("weight:")}
    scale = float(stored["scale"])
    found = {
        "output_modules.0.outnet.0.weight": weights["out_in.weight"],
        "output_modules.0.outnet.0.bias": weights["out_in.bias"],
        "output_modules.0.outnet.1.weight": weights["out.weight"] * scale,
        "output_modules.0.outnet.1.bias": weights["out.bias"] * scale,
    }
    embedding = state["representation.embedding.weight"].clone()
    embedding[torch.from_numpy(stored["elements"])] = weights["embedding.weight"]
    found["representation.embedding.weight"] = embedding
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".")
        for pattern, theirs in LAYERS.items():
            if match := re.fullmatch(pattern, layer):
                found[f"representation.{match.expand(theirs)}.{kind}"] = value
    return {**state, **found}


def fastest(atoms: Atoms, make: Any, steps: int, timestep: float, cutoff: float) -> str:
    """The neighbour list with the shortest step."""
    times = {}
    for name, neighbours in LISTS.items():
        atoms.calc = make(neighbours(cutoff))
        dynamics = Dynamics(atoms, steps, timestep)
        try:
            times[name] = min(dynamics.turn().step for _ in range(TRIALS))
        except Exception as error:  # a list that does not work here is none to choose
            print(f"schnetpack: {name} fails: {error!r}", file=sys.stderr)
        atoms.set_positions(dynamics.start[0])
        atoms.set_momenta(dynamics.start[1])
    return min(times, key=times.__getitem__)


def main() -> None:
    path, h = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(h["threads"])
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    atoms = Atoms(numbers=stored["numbers"], positions=stored["positions"])
    atoms.set_momenta(stored["momenta"])
    model = build(h, int(stored["elements"].max()))
    model.load_state_dict(converted(stored, model))

    def make(neighbours: Any) -> Calculator:
        return Calculator(model, neighbours, getattr(torch, h["dtype"]))

    best = fastest(atoms, make, min(h["steps"], 10), h["timestep"], h["cutoff"])
    atoms.calc = make(LISTS[best](h["cutoff"]))
    deviation = np.abs(atoms.get_forces() - stored["forces"]).max()
    dynamics = Dynamics(atoms, h["steps"], h["timestep"])
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print("ready", parameters, best, deviation, flush=True)
    for line in sys.stdin:
        if line.strip() != "turn":
            sys.exit(f"unknown request {line.strip()!r}")
        turn = dynamics.turn()
        print(turn.step, turn.step_cpu, turn.force, flush=True)


if __name__ == "__main__":
    main()
