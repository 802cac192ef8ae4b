"""MACE within a CPU budget; runs in MACE's environment (contest.py).

The defaults of ``mace_run_train`` (mace-torch 0.3.16), built by its own functions: Adam (amsgrad)
at 0.01, batches of 10, weight decay 5e-7, clipping 10, errors weighed 1 (energy per atom) and 100
(forces) in eV and A, correlation 3, spherical harmonics to 3, two layers, ``--E0s average``; and
what its documentation recommends: EMA 0.99 and the second stage, which weighs energies by 1000, for
the last quarter. Networks are the sizes of its tutorials and README: ``32x0e`` (32 channels,
invariant messages, 4 A) and ``128x0e+128x1o`` (5 A). In float32: float64, the default, takes twice
the time. Instead of the learning rate that waits for a plateau, which no budget of minutes reaches,
it follows a cosine that ends with the budget.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from contest import Budget, Data, Fitted, main
from mace import data as mace_data
from mace import modules, tools
from mace.calculators import MACECalculator
from mace.tools import torch_geometric
from mace.tools.model_script_utils import configure_model
from mace.tools.scripts_utils import get_optimizer, get_params_options
from mace.tools.train import take_step
from torch_ema import ExponentialMovingAverage

UNIT = units.kcal / units.mol  # eV
NETWORKS = {
    "32x0e": ["--num_channels=32", "--max_L=0", "--r_max=4.0"],
    "128x0e+128x1o": ["--num_channels=128", "--max_L=1", "--r_max=5.0"],
}
DTYPE = "float32"
SECOND_STAGE = 0.75  # of the budget, when it begins


def settings(network: str) -> Any:
    """As ``mace_run_train`` parses them."""
    parser = tools.build_default_arg_parser()
    arguments = ["--name=mace", "--E0s=average", "--ema", "--swa", f"--default_dtype={DTYPE}"]
    found, _ = tools.check_args(parser.parse_args([*arguments, *NETWORKS[network]]))
    found.compute_energy = found.compute_forces = True
    found.compute_dipole = found.compute_polarizability = False
    return found


def frames(
    numbers: np.ndarray,
    positions: np.ndarray,
    args: Any,
    labels: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[list[Any], list[Any]]:
    """Configurations, and graphs of them, with labels in eV and A where given."""
    keys = mace_data.KeySpecification(
        info_keys={"energy": "label_energy"}, arrays_keys={"forces": "label_forces"}
    )
    table = tools.get_atomic_number_table_from_zs(numbers)
    configurations = []
    for index, x in enumerate(positions):
        atoms = Atoms(numbers=numbers, positions=x)
        if labels is not None:
            atoms.info["label_energy"] = float(labels[0][index]) * UNIT
            atoms.arrays["label_forces"] = labels[1][index] * UNIT
        configurations.append(mace_data.config_from_atoms(atoms, key_specification=keys))
    graphs = [
        mace_data.AtomicData.from_config(each, z_table=table, cutoff=args.r_max)
        for each in configurations
    ]
    return configurations, graphs


def fit(data: Data, options: dict[str, Any], path: str) -> None:
    budget = Budget(options["cpu_s"])
    torch.set_num_threads(1)
    tools.set_default_dtype(DTYPE)
    torch.manual_seed(0)
    args = settings(options["network"])
    table = tools.get_atomic_number_table_from_zs(data["numbers"])
    labels = data["train_energies"], data["train_forces"]
    configurations, graphs = frames(data["numbers"], data["train_positions"], args, labels)
    alone = mace_data.compute_average_E0s(configurations, table)
    energies = np.array([alone[z] for z in table.zs])
    loader = torch_geometric.dataloader.DataLoader(
        graphs, batch_size=args.batch_size, shuffle=True, drop_last=True
    )
    args.avg_num_neighbors = modules.compute_avg_num_neighbors(loader)
    model, outputs = configure_model(args, loader, energies, heads=["Default"], z_table=table)
    optimizer = get_optimizer(args, get_params_options(args, model))
    losses = [
        modules.WeightedEnergyForcesLoss(args.energy_weight, args.forces_weight),
        modules.WeightedEnergyForcesLoss(args.swa_energy_weight, args.swa_forces_weight),
    ]
    average = ExponentialMovingAverage(model.parameters(), decay=args.ema_decay)
    steps = 0
    print(f"{budget.share():.2f} of the time before the first step")
    while budget.share() < 1:
        for batch in loader:
            if budget.share() >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = args.lr * budget.cosine()
            loss = losses[budget.share() >= SECOND_STAGE]
            take_step(
                model, loss, batch, optimizer, average, outputs, args.clip_grad, torch.device("cpu")
            )
            steps += 1
    average.copy_to()
    torch.save(model, path)
    print(f"{steps} steps")


def load(data: Data, options: dict[str, Any], path: str) -> Fitted:
    torch.set_num_threads(1)
    tools.set_default_dtype(DTYPE)
    logging.disable(logging.WARNING)
    args = settings(options["network"])
    model = torch.load(path, weights_only=False)  # written by this script

    def predict(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, graphs = frames(data["numbers"], positions, args)
        energies, forces = [], []
        for batch in torch_geometric.dataloader.DataLoader(graphs, batch_size=20):
            out = model(batch.to_dict(), compute_force=True)
            # total energies in float32 would be rounded by 1e-3 kcal/mol and more
            known = {k: batch.to_dict()[k] for k in ("node_attrs", "batch")}
            alone = model.atomic_energies_fn.atomic_energies.double().reshape(-1)
            offset = torch.zeros(len(out["energy"]), dtype=torch.float64)
            offset.index_add_(0, known["batch"], known["node_attrs"].double() @ alone)
            energies.append((out["interaction_energy"].detach().double() + offset).numpy())
            forces.append(out["forces"].detach().numpy())
        together = np.concatenate(forces).reshape(positions.shape)
        return np.concatenate(energies) / UNIT, together / UNIT

    def calculator(atoms: Atoms, steps: int, timestep: float) -> Calculator:
        return MACECalculator(model_paths=path, device="cpu", default_dtype=DTYPE)

    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Fitted(predict, calculator, count, f"MACECalculator, {DTYPE}")


if __name__ == "__main__":
    main(fit, load)
