"""How far ForceNet potentials are from invariance to rotation, bare and averaged over groups.

    python benchmarks/rotation_error.py aspirin_forcenet.pt --source rmd17_aspirin_train_01.npz

Frames are evaluated in float64 as they stand and turned at random four times. Printed are the mean
changes of the energy and (turned back) of the force components, the torque over root mean square
force times radius, the errors against the labels as given and turned, and the time of an evaluation
as a multiple of the bare network's.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from dcase.data.md17 import load_md17
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.graphs.rotations import FRAMES, random_rotations
from dcase.potentials.networks.registry import build_potential
from dcase.potentials.potential import Potential, load_potential


def averaged(potential: Potential, frames: str) -> Potential:
    """The same weights in float64, averaged over a group."""
    options = {**potential.hyper_parameters, "frames": frames}
    other = build_potential(potential.architecture, options, potential.elements)
    other.load_state_dict(potential.state_dict())
    other.set_scale(potential.scale)
    return other.with_dtype(torch.float64)


def row(potential: Potential, frames: list) -> dict[str, float]:
    """The figures of one potential."""
    turns = random_rotations(4, torch.Generator().manual_seed(0)).numpy()
    found: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    def predict(x: np.ndarray, numbers: np.ndarray) -> tuple[float, np.ndarray]:
        result = potential(build_graph(numbers, x, potential.cutoff))
        return float(result["energy"]), result["forces"].numpy()

    for atoms in frames:
        x, labels = atoms.positions - atoms.positions.mean(0), atoms.get_forces()
        started = time.perf_counter()
        energy, forces = predict(x, atoms.numbers)
        seconds = time.perf_counter() - started
        scale = np.sqrt((forces**2).mean()) * np.abs(x).max()
        torque = np.linalg.norm(np.cross(x, forces).sum(0)) / scale
        note(seconds=seconds, torque=torque, given=1e3 * np.abs(forces - labels).mean())
        for turn in turns:
            e, f = predict(x @ turn.T, atoms.numbers)
            back = f @ turn
            note(energy=1e3 * abs(e - energy), force=1e3 * np.abs(back - forces).mean())
            note(turned=1e3 * np.abs(back - labels).mean())
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {**means, "seconds": min(found["seconds"])}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--molecule", default="aspirin")
    parser.add_argument("--source", default="auto", help="as of dcase train md17")
    parser.add_argument("--labels", default="md17")
    parser.add_argument("--frames", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_md17(options.molecule, options.source, options.labels)
    chosen = [dataset.frame(k) for k in range(len(dataset) - options.frames, len(dataset))]
    print("| model | frames | dE, meV | dF, meV/A | torque | error as given | turned | time |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for path in options.models:
        bare = 0.0
        for frames in FRAMES:
            r = row(averaged(load_potential(path), frames), chosen)
            bare = bare or r["seconds"]
            print(
                f"| {path} | {frames} | {r['energy']:.3g} | {r['force']:.3g} | {r['torque']:.2g}"
                f" | {r['given']:.0f} | {r['turned']:.0f} | {r['seconds'] / bare:.0f} |"
            )


if __name__ == "__main__":
    main()
