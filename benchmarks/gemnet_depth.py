"""Why IReLU everywhere diverges in the published GemNet, and does not here: one table.

    python benchmarks/gemnet_depth.py [--size paper] [--frames 2]

Forces of fresh networks (root mean square, in the network's unit) on aspirin frames, and of the
same networks with all weights 10 %, 20 % ... larger: what training does to weights within a few
hundred steps. Beside them the mean square of the messages after the last block.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch

from dcase.data.md17 import load_md17
from dcase.errors import PaperVariantWarning
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.networks.registry import create_potential
from dcase.rescaling import LabelScale

FACTORS = (1.0, 1.1, 1.2, 1.5)
ROWS = (
    ("paper", "silu", "published"),
    ("paper", "irelu", "published"),
    ("paper", "irelu", "all"),
    ("default", "silu", "published"),
    ("default", "irelu", "published"),
    ("default", "irelu", "all"),
)


def forces_by_factor(potential, graph) -> tuple[list[float], float]:
    """Force rms for each of ``FACTORS``, and the mean square of the last messages at 1."""
    messages: list[float] = []
    last = potential.network.blocks[-1].after_concat
    last.register_forward_hook(
        lambda _, __, out: messages.append(float(out.detach().square().mean()))
    )
    weights = list(potential.parameters())
    start = [w.detach().clone() for w in weights]
    found = []
    for factor in FACTORS:
        with torch.no_grad():
            for weight, value in zip(weights, start, strict=True):
                weight.copy_(factor * value)
        _, forces = potential.energies_and_forces(graph)
        found.append(float(forces.square().mean().sqrt()))
    return found, messages[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="paper")
    parser.add_argument("--frames", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_md17("aspirin", source="xtb").subset(np.arange(options.frames))
    heads = "".join(f"{f'x {factor:g}':>10}" for factor in FACTORS)
    print(f"{'variant':8} {'activation':10} {'placement':10}{'messages':>10}{heads}")
    for variant, activation, placement in ROWS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PaperVariantWarning)
            potential = create_potential(
                "gemnet-t",
                elements=data.elements,
                size=options.size,
                activation=activation,
                variant=variant,
                placement=placement,
            )
        batch = FrameBatches(data, potential.cutoff, LabelScale()).batch(torch.arange(len(data)))
        species = potential.species_of[batch.graph.numbers]
        potential.network.fit_scale_factors([(species, batch.graph)])
        forces, messages = forces_by_factor(potential, batch.graph)
        cells = "".join(f"{value:10.2g}" for value in (messages, *forces))
        print(f"{variant:8} {activation:10} {placement:10}{cells}", flush=True)


if __name__ == "__main__":
    main()
