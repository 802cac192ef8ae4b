"""SchNetPack's SchNet and PaiNN within a CPU budget; runs in SchNetPack's environment (contest.py).

The networks, data and loss of its own configuration (``spktrain experiment=md17``, SchNetPack
2.1.1): PaiNN 128 features and 3 blocks or SchNet 128 and 6, 20 Gaussians to 5 A, batches of 10,
AdamW at 1e-3 without weight decay, mean squared errors with 0.01 (energy) and 0.99 (forces) in
kcal/mol and A, the mean energy taken out, exponential moving average 0.995. Instead of the rate
that waits 75 epochs for a plateau, which no budget of minutes reaches, it follows a cosine that
ends with the budget. ``painn-64`` is PaiNN with 64 features. Neighbours are found once by
MatScipyNeighborList, and batches made by SchNetPack's own collation, in this process: no Lightning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from contest import Budget, Data, Fitted, main
from schnetpack_calculator import LISTS, Calculator, fastest
from schnetpack_step import schnetpack  # mended

# isort: split
from schnetpack import properties
from schnetpack.data.loader import _atoms_collate_fn
from schnetpack.transform import CastTo32, MatScipyNeighborList
from torch_ema import ExponentialMovingAverage

CUTOFF, BATCH, RATE, EMA = 5.0, 10, 1e-3, 0.995
NETWORKS = {"schnet": ("SchNet", 128, 6), "painn": ("PaiNN", 128, 3), "painn-64": ("PaiNN", 64, 3)}


def network(name: str) -> torch.nn.Module:
    """Of SchNetPack's configuration."""
    kind, features, blocks = NETWORKS[name]
    representation = getattr(schnetpack.representation, kind)(
        n_atom_basis=features,
        n_interactions=blocks,
        radial_basis=schnetpack.nn.GaussianRBF(20, CUTOFF),
        cutoff_fn=schnetpack.nn.CosineCutoff(CUTOFF),
    )
    return schnetpack.model.NeuralNetworkPotential(
        input_modules=[schnetpack.atomistic.PairwiseDistances()],
        representation=representation,
        output_modules=[
            schnetpack.atomistic.Atomwise(n_in=features, output_key=properties.energy),
            schnetpack.atomistic.Forces(),
        ],
    )


def frames(numbers: np.ndarray, positions: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """Systems with their neighbours, as SchNetPack's loader collates them."""
    neighbours, cast = MatScipyNeighborList(CUTOFF), CastTo32()
    found = []
    for index, x in enumerate(positions):
        frame = {
            properties.idx: torch.tensor([index]),
            properties.n_atoms: torch.tensor([len(numbers)]),
            properties.Z: torch.from_numpy(numbers.astype(np.int64)),
            properties.R: torch.from_numpy(x - x.mean(0)),
            properties.cell: torch.zeros(1, 3, 3, dtype=torch.float64),
            properties.pbc: torch.zeros(3, dtype=torch.bool),
        }
        found.append(cast(neighbours(frame)))
    return found


def fit(data: Data, options: dict[str, Any], path: str) -> None:
    budget = Budget(options["cpu_s"])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = frames(data["numbers"], data["train_positions"])
    mean = float(data["train_energies"].mean())
    for frame, energy, forces in zip(
        known, data["train_energies"] - mean, data["train_forces"], strict=True
    ):
        frame["label_energy"] = torch.tensor([energy], dtype=torch.float32)
        frame["label_forces"] = torch.from_numpy(forces).float()
    model = network(options["network"]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    average = ExponentialMovingAverage(model.parameters(), decay=EMA)
    steps = 0
    while budget.share() < 1:
        for chosen in torch.randperm(len(known)).split(BATCH):
            if budget.share() >= 1:
                break
            optimizer.param_groups[0]["lr"] = RATE * budget.cosine()
            batch = _atoms_collate_fn([known[int(i)] for i in chosen])
            out = model(batch)
            loss = 0.01 * (out[properties.energy] - batch["label_energy"]).square().mean()
            loss = loss + 0.99 * (out[properties.forces] - batch["label_forces"]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update()
            steps += 1
    average.copy_to()
    torch.save({"weights": model.state_dict(), "mean": mean}, path)
    print(f"{steps} steps")


def load(data: Data, options: dict[str, Any], path: str) -> Fitted:
    torch.set_num_threads(1)
    stored = torch.load(path)
    model = network(options["network"])
    model.load_state_dict(stored["weights"])
    model.eval()

    def predict(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energies, forces = [], []
        for part in np.array_split(positions, max(1, len(positions) // 50)):
            out = model(_atoms_collate_fn(frames(data["numbers"], part)))
            energies.append(out[properties.energy].detach().double().numpy() + stored["mean"])
            forces.append(out[properties.forces].detach().numpy().reshape(part.shape))
        return np.concatenate(energies), np.concatenate(forces)

    def calculator(atoms: Atoms, steps: int, timestep: float) -> Calculator:
        def make(neighbours: Any) -> Calculator:
            return Calculator(model, neighbours, torch.float32, energy_unit="kcal/mol")

        best.append(fastest(atoms, make, steps, timestep, CUTOFF))
        return make(LISTS[best[-1]](CUTOFF))

    best: list[str] = []
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Fitted(predict, calculator, count, "SpkCalculator, its fastest neighbour list, float32")


if __name__ == "__main__":
    main(fit, load)
