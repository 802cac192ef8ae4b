"""Time of a training step (energies and forces, double backward, Adam), beside other libraries.

    python benchmarks/training_step.py dimenet++ pyg:dimenet++
    python benchmarks/training_step.py schnet schnet:exact pyg:schnet schnetpack:schnet
    python benchmarks/training_step.py painn painn:autograd schnetpack:painn --activation silu
    python benchmarks/training_step.py schnet pyg:schnet --batch 20 --out benchmarks/results

Every contestant trains on the same rMD17 aspirin frames, in float32, with the loss and the
hyper-parameters of dcase's preset; a peer has the same sizes and the same neighbours (all of them).
Rounds of some steps are interleaved, so that a change of the machine's speed meets every contestant
alike; the median of the rounds counts. "building" is what is done to find pairs, neighbourhoods or
triplets of a batch, as a share of the step's processor time. For torch_geometric's DimeNet++ both
lists are found by plain torch code outside the timed part (its own needs compiled extensions), to
its advantage; so is SchNetPack's neighbour list. ":exact" is dcase without splines for the filters,
":autograd" with them but without the compiled gradient.

SchNetPack has an environment of its own (``make peer-schnetpack``) and runs there as a process that
takes its steps, and times them, in turn with the others.

A new architecture takes part by its registry name; a new peer is one function in ``CONTESTANTS``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Peer, write_results
from torch import Tensor, nn

from dcase.data.dataset import AtomicDataset
from dcase.data.md17 import load_md17
from dcase.potentials.fitting.batches import FrameBatches, LabelledGraph
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.graphs.edges import directed_edges, neighbourhoods, triplets
from dcase.potentials.kernels.forms import training_form
from dcase.potentials.networks.registry import (
    ARCHITECTURES,
    create_potential,
    resolve_hyper_parameters,
)
from dcase.rescaling import fit_label_scale


@dataclass(frozen=True)
class Setting:
    """What all contestants share."""

    dataset: AtomicDataset
    size: str
    activation: str
    batch: int

    def frames(self, cutoff: float) -> FrameBatches:
        """All frames with their pairs and rescaled labels."""
        return FrameBatches(self.dataset, cutoff, fit_label_scale(self.dataset))

    def chosen(self) -> Tensor:
        """The frames of the timed batch."""
        return torch.arange(self.batch)


@dataclass(frozen=True)
class Contestant:
    """One thing to time.

    Attributes:
        parameters: Number of trained numbers.
        step: A whole training step. One that runs in another process returns its processor and
            wall seconds; otherwise the caller takes the time.
        building: The part of ``step`` that finds pairs, neighbourhoods or triplets; None: unknown
            or outside the step.
    """

    parameters: int
    step: Callable[[], tuple[float, float] | None]
    building: Callable[[], Any] | None = None


def _adam_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def dcase_architecture(
    name: str, filter_knots: int = 128, *, compiled: bool = True
) -> Callable[[Setting], Contestant]:
    """A network of the registry, as ``dcase train`` runs it (128: the default recipe's)."""

    def prepare(setting: Setting) -> Contestant:
        options: dict[str, Any] = {}
        if "filter_knots" in ARCHITECTURES[name].hyper_parameters():
            options["filter_knots"] = filter_knots
        potential = create_potential(
            name,
            elements=setting.dataset.elements,
            size=setting.size,
            activation=setting.activation,
            **options,
        ).train()
        kernel = training_form(potential)[0] if compiled else None
        frames, problem = setting.frames(potential.cutoff), EnergyForces(1.0, kernel=kernel)

        def loss() -> Tensor:
            terms = problem.terms(potential, frames.batch(setting.chosen()), training=True)
            return 0.01 * terms["energy"].square().mean() + terms["forces"].square().mean()

        def building() -> None:
            graph = frames.batch(setting.chosen()).graph
            neighbourhoods(torch.cat([graph.pairs[1], graph.pairs[0]]), graph.n_atoms)

        count = sum(p.numel() for p in potential.parameters())
        return Contestant(count, _adam_step(potential, loss), building)

    return prepare


def _peer(
    build: Callable[[dict[str, Any], LabelledGraph], nn.Module], architecture: str
) -> Callable[[Setting], Contestant]:
    """A network called as ``model(z, pos, batch)`` with forces by autograd."""

    def prepare(setting: Setting) -> Contestant:
        h = resolve_hyper_parameters(architecture, setting.size, {"activation": setting.activation})
        batch = setting.frames(h["cutoff"]).batch(setting.chosen())
        assert batch.energies is not None
        assert batch.forces is not None
        model = build(h, batch)
        energies, forces = batch.energies.float(), batch.forces.float()
        positions = batch.graph.positions.float()

        def loss() -> Tensor:
            x = positions.detach().requires_grad_(True)
            energy = model(batch.graph.numbers, x, batch.graph.system).squeeze(1)
            (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            return 0.01 * (energy - energies).square().mean() + (gradient + forces).square().mean()

        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return Contestant(count, _adam_step(model, loss))

    return prepare


def _pyg_activation(name: str) -> nn.Module:
    from dcase.activations import get_activation

    return nn.SiLU() if name == "silu" else get_activation(name)


def _pyg_dimenet(h: dict[str, Any], batch: LabelledGraph) -> nn.Module:
    from torch_geometric.nn.models import DimeNetPlusPlus, dimenet

    graph = batch.graph
    edges = directed_edges(graph)
    kj, ij = triplets(edges, graph.n_atoms)
    ji = (ij + len(edges) // 2) % len(edges)
    i, j, k = edges.target[ji], edges.source[ji], edges.source[kj]
    lists = (edges.target, edges.source, i, j, k, kj, ji)
    dimenet.radius_graph = lambda *args, **options: torch.stack([edges.source, edges.target])
    dimenet.triplets = lambda index, num_nodes: lists
    model = DimeNetPlusPlus(
        hidden_channels=h["hidden_channels"],
        out_channels=1,
        num_blocks=h["num_interactions"],
        int_emb_size=h["int_emb_size"],
        basis_emb_size=h["basis_emb_size"],
        out_emb_channels=h["out_emb_channels"],
        num_spherical=h["num_spherical"],
        num_radial=h["num_radial"],
        cutoff=h["cutoff"],
        envelope_exponent=h["envelope_exponent"],
        num_before_skip=h["num_before_skip"],
        num_after_skip=h["num_after_skip"],
        num_output_layers=h["num_output_layers"],
        output_initializer="glorot_orthogonal",
    )
    for block in model.output_blocks:
        block.act = _pyg_activation(h["activation"])
    return model


def _pyg_schnet(h: dict[str, Any], batch: LabelledGraph) -> nn.Module:
    from torch_geometric.nn.models import SchNet

    class KnownPairs(nn.Module):
        def forward(self, pos: Tensor, system: Tensor) -> tuple[Tensor, Tensor]:
            i, j = batch.graph.pairs
            index = torch.stack([torch.cat([i, j]), torch.cat([j, i])])
            return index, (pos[index[0]] - pos[index[1]]).norm(dim=-1)

    model = SchNet(
        hidden_channels=h["hidden_channels"],
        num_filters=h["num_filters"],
        num_interactions=h["num_interactions"],
        num_gaussians=h["num_gaussians"],
        cutoff=h["cutoff"],
        interaction_graph=KnownPairs(),
    )
    model.act = _pyg_activation(h["activation"])
    for block in model.interactions:
        block.act = block.mlp[1] = _pyg_activation(h["activation"])
    return model


def _schnetpack(architecture: str) -> Callable[[Setting], Contestant]:
    """SchNetPack's network, in a process of its own environment (peers/schnetpack_step.py)."""

    def prepare(setting: Setting) -> Contestant:
        chosen = {"activation": setting.activation}
        h = resolve_hyper_parameters(architecture, setting.size, chosen)
        batch = setting.frames(h["cutoff"]).batch(setting.chosen())
        assert batch.energies is not None
        assert batch.forces is not None
        options = {**h, "architecture": architecture, "threads": torch.get_num_threads()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "batch.npz"
            np.savez(
                path,
                numbers=batch.graph.numbers.numpy(),
                positions=batch.graph.positions.float().numpy(),
                system=batch.graph.system.numpy(),
                pairs=batch.graph.pairs.numpy(),
                energies=batch.energies.float().numpy(),
                forces=batch.forces.float().numpy(),
            )
            name, script = f"schnetpack:{architecture}", "schnetpack_step.py"
            peer = Peer(name, "schnetpack", script, path, json.dumps(options))

        def step() -> tuple[float, float]:
            cpu, wall, _ = peer.ask("step")
            return cpu, wall

        return Contestant(int(peer.first[0]), step)

    return prepare


CONTESTANTS: dict[str, Callable[[Setting], Contestant]] = {
    **{name: dcase_architecture(name) for name in ARCHITECTURES},
    **{
        f"{name}:exact": dcase_architecture(name, filter_knots=0)
        for name in ARCHITECTURES
        if "filter_knots" in ARCHITECTURES[name].hyper_parameters()
    },
    **{
        f"{name}:autograd": dcase_architecture(name, compiled=False) for name in ("schnet", "painn")
    },
    "pyg:schnet": _peer(_pyg_schnet, "schnet"),
    "pyg:dimenet++": _peer(_pyg_dimenet, "dimenet++"),
    **{f"schnetpack:{name}": _schnetpack(name) for name in ("schnet", "painn")},
}


def measure(contestants: dict[str, Contestant], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Interleaved medians over the rounds of means over some steps, one row a contestant, ms.

    Training takes one step after the other: several in a turn, after one that is not counted, so
    that what another contestant has left in the caches does not count either.

    Wall time is what a user waits; processor time (over all threads) is what remains comparable
    where other programs share the machine.
    """
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, contestant in contestants.items():
            contestant.step()
            started, cpu = time.perf_counter(), time.process_time()
            own = [contestant.step() for _ in range(steps)]
            wall, cpu = time.perf_counter() - started, time.process_time() - cpu
            told = [times for times in own if times is not None]
            if told:
                cpu, wall = (sum(column) for column in zip(*told, strict=True))
            wall, cpu = wall / steps, cpu / steps
            build = time.process_time()
            if contestant.building is not None:
                contestant.building()
            build = time.process_time() - build
            if turn:  # the first round warms up
                times[name].append((wall * 1e3, cpu * 1e3, build * 1e3))
    rows = []
    for name, contestant in contestants.items():
        walls, cpus, builds = zip(*times[name], strict=True)
        cpu = statistics.median(cpus)
        share = round(100 * statistics.median(builds) / cpu, 2) if contestant.building else None
        rows.append(
            {
                "name": name,
                "parameters": contestant.parameters,
                "step_ms": round(statistics.median(walls), 2),
                "fastest_ms": round(min(walls), 2),
                "slowest_ms": round(max(walls), 2),
                "cpu_ms": round(cpu, 2),
                "building_percent": share,
            }
        )
    return rows


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--molecule", default="aspirin")
    parser.add_argument("--source", default="auto", help="as of dcase train md17")
    parser.add_argument("--labels", default=None)
    parser.add_argument("--size", default="md17")
    parser.add_argument("--activation", default="irelu")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for training_step.csv and .json")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in CONTESTANTS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(CONTESTANTS)}")
    torch.set_num_threads(options.threads)
    dataset = load_md17(options.molecule, options.source, options.labels)
    torch.manual_seed(0)
    setting = Setting(
        dataset.subset(range(options.batch)), options.size, options.activation, options.batch
    )
    rows = measure(
        {name: CONTESTANTS[name](setting) for name in options.names}, options.rounds, options.steps
    )
    print(f"{'':16} {'parameters':>10}  {'step':>9}  {'range':>17}  {'processor':>9}  building")
    for row in rows:
        share = row["building_percent"]
        print(
            f"{row['name']:16} {row['parameters']:>10,}  {row['step_ms']:>6.1f} ms"
            f"  {row['fastest_ms']:>6.1f} - {row['slowest_ms']:>5.1f} ms  {row['cpu_ms']:>6.1f} ms"
            f"  {'-' if share is None else f'{share:.1f} %'}"
        )
    if options.out:
        about = {k: str(v) for k, v in vars(options).items() if k != "out"}
        write_results(options.out, "training_step", rows, about)


if __name__ == "__main__":
    main()
