"""An ensemble in one pass against its members one by one: milliseconds for energies and forces.

    python benchmarks/ensemble_pass.py [--members 5] [--molecule aspirin] [--size md17]

All ways evaluate the same weights, interleaved, on one thread; medians. "PyTorch" is autograd
through the network, "stacked" the batched pass of dcase.potentials.networks.stacked_schnet,
"compiled" the kernel that DCCalculator uses on the CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from dcase.data.molecules import structure
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.kernels.deployed import deploy
from dcase.potentials.networks.registry import create_potential


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--molecule", default="aspirin")
    parser.add_argument("--size", default="md17")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    atoms = structure(options.molecule)
    members = [
        create_potential(
            elements=sorted(set(atoms.symbols)), size=options.size, seed=seed, filter_knots=128
        ).eval()
        for seed in range(options.members)
    ]
    for member in members:
        member.requires_grad_(False)
    ensemble = Ensemble(members).eval()
    graph = build_graph(atoms.numbers, atoms.positions, ensemble.cutoff)
    pairs = graph.pairs.numpy()
    one, several = deploy(members[0]), deploy(ensemble)
    ways = {
        "one, PyTorch": lambda: members[0](graph),
        f"{options.members} one by one, PyTorch": lambda: [m(graph) for m in members],
        f"{options.members} stacked": lambda: ensemble(graph),
        "one, compiled": lambda: one(atoms.numbers, atoms.positions, pairs),
        f"{options.members} compiled": lambda: several(atoms.numbers, atoms.positions, pairs),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats + 10):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if repeat >= 10:
                times[name].append((time.perf_counter() - begun) * 1e3)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    first = medians["one, PyTorch"]
    print(f"{options.molecule}, SchNet {options.size}, float32, one thread, {platform.machine()}")
    print(f"{'':32s} {'ms':>8s} {'of one in PyTorch':>18s}")
    for name, value in medians.items():
        print(f"{name:32s} {value:8.3f} {value / first:18.2f}")
    if options.json:
        options.json.write_text(json.dumps({"ms": medians, "options": str(vars(options))}))


if __name__ == "__main__":
    main()
