"""A training step of SchNetPack's SchNet or PaiNN, on request; runs in SchNetPack's environment.

    .venv-schnetpack/bin/python schnetpack_step.py batch.npz '{"architecture": "schnet", ...}'

``benchmarks/training_step.py`` starts it and hands over frames and pairs (``batch.npz``) and the
sizes. It says ``ready PARAMETERS``; then every line ``step`` is answered by the step's processor
seconds, wall seconds and loss (before the step). It ends with its standard input.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.data.dataloader

if not hasattr(torch.utils.data.dataloader, "T_co"):
    # SchNetPack 2.1.1 imports this name, which torch 2.13 no longer has, for an annotation.
    torch.utils.data.dataloader.T_co = TypeVar("T_co", covariant=True)  # type: ignore[attr-defined]

import schnetpack
from schnetpack import properties


def irelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.relu(x).square()


ACTIVATIONS = {"ssp": schnetpack.nn.shifted_softplus, "silu": F.silu, "irelu": irelu}


def build(h: dict[str, Any], highest_number: int) -> torch.nn.Module:
    """SchNetPack's potential: distances, SchNet or PaiNN, atom-wise energies, autograd forces."""
    activation = ACTIVATIONS[h["activation"]]
    common: dict[str, Any] = {
        "n_atom_basis": h["hidden_channels"],
        "n_interactions": h["num_interactions"],
        "cutoff_fn": schnetpack.nn.CosineCutoff(h["cutoff"]),
        "activation": activation,
        # By default a table of 100 elements, which Adam would have to go through.
        "nuclear_embedding": torch.nn.Embedding(highest_number + 1, h["hidden_channels"]),
    }
    if h["architecture"] == "painn":
        representation = schnetpack.representation.PaiNN(
            radial_basis=schnetpack.nn.BesselRBF(h["num_radial"], h["cutoff"]),
            epsilon=h["softening"] ** 2,
            **common,
        )
    else:
        representation = schnetpack.representation.SchNet(
            n_filters=h["num_filters"],
            radial_basis=schnetpack.nn.GaussianRBF(h["num_gaussians"], h["cutoff"]),
            **common,
        )
    return schnetpack.model.NeuralNetworkPotential(
        input_modules=[schnetpack.atomistic.PairwiseDistances()],
        representation=representation,
        output_modules=[
            schnetpack.atomistic.Atomwise(
                n_in=h["hidden_channels"], activation=activation, output_key=properties.energy
            ),
            schnetpack.atomistic.Forces(),
        ],
    ).train()


def main() -> None:
    path, options = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    with np.load(path) as stored:
        batch = {name: torch.from_numpy(stored[name]) for name in stored.files}
    model = build(options, int(batch["numbers"].max()))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    source, target = batch["pairs"]
    known = {
        properties.Z: batch["numbers"],
        properties.idx_m: batch["system"],
        properties.idx_i: torch.cat([source, target]),
        properties.idx_j: torch.cat([target, source]),
        properties.offsets: torch.zeros(2 * len(source), 3),
    }

    def step() -> float:
        optimizer.zero_grad()
        out = model({**known, properties.R: batch["positions"].detach().clone()})
        energies, forces = out[properties.energy], out[properties.forces]
        assert energies.shape == batch["energies"].shape
        assert forces.shape == batch["forces"].shape
        loss = 0.01 * (energies - batch["energies"]).square().mean()
        loss = loss + (forces - batch["forces"]).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    print("ready", sum(p.numel() for p in model.parameters() if p.requires_grad), flush=True)
    for line in sys.stdin:
        if line.strip() != "step":
            sys.exit(f"unknown request {line.strip()!r}")
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(cpu, wall, loss, flush=True)


if __name__ == "__main__":
    main()
