"""Why a SchNet with the shifted softplus written as it is printed becomes NaN, and what cures it.

Section 4.3 of the SchNet report (Oesch, Loan and Ha, 2024): ``ssp(x) = ln(e^x / 2 + 1/2)``
overflows in float32 above x = 88.72, and overfitting 8 frames of aspirin drives the inputs of the
activations there within a few epochs. Two causes, each with its own cure:

* the formula; ``softplus(x) - ln 2`` is the same function and finite for every x
  (:func:`dcase.activations.ssp`);
* the labels: total energies of -406,757 kcal/mol, learned as they are. All weights grow at the
  learning rate until the output is that large, and the product of the layers' gains grows as their
  power. With the energies offset in float64 (:mod:`dcase.rescaling`) nothing has to grow.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcase import plotting
from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError, DivergedError, OptionError
from dcase.objective import Objective, Term
from dcase.potentials.experiments.naive_ssp import (
    OVERFLOW,
    NaiveShiftedSoftplus,
    activation_table,
)
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.fitting.energy_forces import EnergyForces
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.networks.schnet import SchNet
from dcase.potentials.potential import Potential
from dcase.rescaling import LabelScale, fit_label_scale
from dcase.training.settings import TrainSettings
from dcase.training.trainer import Progress, Trainer
from dcase.units import KCAL_PER_MOL

N_FRAMES = 8
LAYERS = ("interaction 0", "interaction 1", "interaction 2", "output")
PUBLISHED = dict(zip(LAYERS, (8.78, 56.92, 300.01, math.nan), strict=True))
"""Table 5 of the report: the largest input of each activation at the fourth epoch."""
PUBLISHED_EPOCH = 4
RUNS = {
    "naive": "as printed, total energies",
    "stable": "softplus - ln 2, total energies",
    "offset": "softplus - ln 2, energies offset in float64",
}


# ------------------------------------------------------------------------------------------------
# The run


def run_ssp_failure(
    frames: AtomicDataset,
    epochs: int = 1000,
    seed: int = 0,
    *,
    target: str = "energy",
    on_epoch: Callable[[str, Progress], None] | None = None,
) -> dict[str, Any]:
    """Overfit 8 frames three times from the same weights, and watch the activations' inputs.

    SchNet and training are the report's (sections 2.2.6, 2.2.7): 3 interactions, 64 features, 300
    Gaussians every 0.1 A with gamma = 10 / A^2 and no cutoff function, Adam at 1e-3, float32. One
    batch of 8, so that an epoch is a step.

    Args:
        frames: Of aspirin with MD17's labels in the report; 8 of them are drawn if there are more.
        epochs: Of each run; one that becomes NaN ends there.
        seed: Of weights and frames.
        target: ``"energy"``, or ``"energy+forces"`` with the report's loss (rho = 0.01).
        on_epoch: Called with the run's name after each epoch.

    Returns:
        Plain values: ``"n_frames"``, ``"seed"``, ``"epochs"``, ``"target"``, ``"activation"`` (of
        :func:`activation_table`) and ``"runs"``, each with ``"name"``, ``"title"``, ``"status"``
        (``"finished"`` or ``"NaN"``), ``"epochs"`` (passed, or in which it became NaN),
        ``"history"`` (a dictionary an epoch: ``"epoch"``, ``"loss"`` in the labels' unit and the
        largest input of each of :data:`LAYERS`, and of the ``"filters"``), ``"last"`` (the last of
        them), ``"largest"`` (over all epochs), ``"energy_mae_kcal_mol"`` and
        ``"forces_mae_kcal_mol_angstrom"`` (None after NaN, and where there is no such label).

    Raises:
        DataError: If there are fewer than 8 frames, or a label is missing.
        OptionError: For an unknown target.
    """
    if target not in ("energy", "energy+forces"):
        raise OptionError(f"target must be energy or energy+forces, got {target!r}")
    if len(frames) < N_FRAMES:
        raise DataError(f"the experiment needs {N_FRAMES} frames, there are {len(frames)}")
    if frames.energies is None or (frames.forces is None and "forces" in target):
        raise DataError(f"the frames lack labels of {target}")
    if len(frames) > N_FRAMES:
        drawn = np.random.default_rng(seed).permutation(len(frames))[:N_FRAMES]
        frames = frames.subset(np.sort(drawn))
    runs = [_overfit(name, frames, epochs, seed, target, on_epoch) for name in RUNS]
    return {
        "n_frames": N_FRAMES,
        "seed": seed,
        "epochs": epochs,
        "target": target,
        "activation": activation_table(),
        "runs": runs,
    }


def report_network(elements: Sequence[int], seed: int, *, naive: bool = False) -> SchNet:
    """The report's SchNet; the same weights whichever form of the activation.

    Args:
        elements: Atomic numbers.
        seed: Of the weights; global random state is not touched.
        naive: With :class:`NaiveShiftedSoftplus`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        network = SchNet(
            len(elements),
            hidden_channels=64,
            num_filters=64,
            num_interactions=3,
            num_gaussians=300,
            cutoff=30.0,
            activation="ssp",
        )
    network.basis.width = 1.0 / math.sqrt(2.0 * 10.0)  # gamma = 1 / (2 width^2) = 10 / A^2
    network.envelope = _NoCutoff()  # type: ignore[assignment]
    if naive:
        for owner, attribute in _activations(network).values():
            setattr(owner, attribute, NaiveShiftedSoftplus())
    return network


def _activations(network: SchNet) -> dict[str, tuple[nn.Module, str]]:
    """Where each activation is: the module that has it, and the attribute."""
    found: dict[str, tuple[nn.Module, str]] = {}
    for number, block in enumerate(network.interactions):
        found[f"interaction {number}"] = (block, "act")
        found[f"filter {number}"] = (block, "filter_act")
    return {**found, "output": (network, "out_act")}


class _NoCutoff(nn.Module):
    """1 at every distance: the report cuts nothing off."""

    def forward(self, distances: Tensor) -> Tensor:
        return torch.ones_like(distances)


def _overfit(
    name: str,
    frames: AtomicDataset,
    epochs: int,
    seed: int,
    target: str,
    on_epoch: Callable[[str, Progress], None] | None,
) -> dict[str, Any]:
    scale = LabelScale(KCAL_PER_MOL)
    if name == "offset":
        scale = LabelScale(KCAL_PER_MOL, fit_label_scale(frames, offset="atomic").offsets)
    network = report_network(frames.elements, seed, naive=name == "naive")
    potential = Potential(
        network, frames.elements, architecture="schnet", hyper_parameters={}, scale=scale
    )
    largest: dict[str, float] = {}
    for layer, (owner, attribute) in _activations(network).items():
        getattr(owner, attribute).register_forward_pre_hook(_watch(largest, layer))
    # The report's loss sums the three components of a force, the objective takes their mean.
    terms = {"energy": Term(weight=1.0)}
    if target == "energy+forces":
        terms = {"energy": Term(weight=0.01), "forces": Term(weight=3.0)}
    history: list[dict[str, float]] = []

    def record(epoch: int, loss: float) -> None:
        row = {layer: largest[layer] for layer in LAYERS}
        # max() would take a number that comes before NaN for larger than it.
        filters = np.max([largest[f"filter {i}"] for i in range(3)])
        history.append({"epoch": epoch, "loss": loss, **row, "filters": float(filters)})

    def stepped(progress: Progress) -> None:
        record(progress.step, progress.loss)
        if on_epoch:
            on_epoch(name, progress)

    settings = TrainSettings(
        epochs=epochs, batch_size=N_FRAMES, lr=1e-3, schedule="constant", seed=seed
    )
    objective = Objective(EnergyForces(scale.constant, forces="forces" in terms), terms)
    data = FrameBatches(frames, potential.cutoff, scale)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(potential, objective, data, None, settings, Path(folder), on_step=stepped)
        try:
            trainer.fit()
            status = "finished"
        except DivergedError:
            status = "NaN"
            record(len(history) + 1, math.nan)
    errors = evaluate_potential(potential, frames).metrics if status == "finished" else {}
    return {
        "name": name,
        "title": RUNS[name],
        "status": status,
        "epochs": len(history),
        "history": history,
        "last": history[-1],
        "largest": {
            layer: float(np.max([row[layer] for row in history])) for layer in (*LAYERS, "filters")
        },
        "energy_mae_kcal_mol": errors.get("energy_mae_kcal_mol"),
        "forces_mae_kcal_mol_angstrom": errors.get("forces_mae_kcal_mol_angstrom"),
    }


def _watch(largest: dict[str, float], layer: str) -> Callable[..., None]:
    """A hook that notes the largest input of an activation."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest[layer] = inputs[0].detach().max().item()

    return hook


# ------------------------------------------------------------------------------------------------
# Tables and the figure


def failure_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row an activation layer, for CSV: the report's Table 5 beside our three runs.

    Args:
        result: Of :func:`run_ssp_failure`.

    Returns:
        Rows with ``layer``, ``report`` and ``report_exp``, and for each run ``<name>_last`` and
        ``<name>_exp``, the largest input in its last epoch and its float32 exponential.
    """
    rows = []
    for layer in LAYERS:
        row: dict[str, Any] = {"layer": layer, "report": PUBLISHED[layer]}
        row["report_exp"] = _exp32(PUBLISHED[layer])
        for run in result["runs"]:
            row[f"{run['name']}_last"] = run["last"][layer]
            row[f"{run['name']}_exp"] = _exp32(run["last"][layer])
        rows.append(row)
    return rows


def failure_text(result: Mapping[str, Any]) -> str:
    """Both tables as Markdown.

    Args:
        result: Of :func:`run_ssp_failure`.
    """
    runs = result["runs"]
    lines = [
        "Table 5 of the SchNet report: largest input of the shifted softplus, by layer, when "
        f"{result['n_frames']} frames are overfitted ({result['target']})",
        "",
        f"| layer | report, epoch {PUBLISHED_EPOCH} | e^x | "
        + " | ".join(f"{run['title']}: epoch {run['epochs']}" for run in runs)
        + " |",
        "|---" * (3 + len(runs)) + "|",
    ]
    for row in failure_rows(result):
        cells = [_number(row["report"]), _number(row["report_exp"])]
        cells += [_number(row[f"{run['name']}_last"]) for run in runs]
        lines.append(f"| {row['layer']} | " + " | ".join(cells) + " |")
    for word, values in (
        ("outcome", [run["status"] for run in runs]),
        ("energy MAE, kcal/mol", [_number(run["energy_mae_kcal_mol"]) for run in runs]),
        ("force MAE, kcal/mol/A", [_number(run["forces_mae_kcal_mol_angstrom"]) for run in runs]),
    ):
        lines.append(f"| {word} | {'NaN' if word == 'outcome' else '-'} | | {' | '.join(values)} |")
    lines += [
        "",
        "ln(e^x / 2 + 1/2) in float32, and its derivatives by autograd: as printed, as softplus - "
        "ln 2 (ours), and exact",
        "",
        "| x | value: printed | ours | exact | slope: printed | ours | exact "
        "| curvature: printed | ours | exact |",
        "|---" * 10 + "|",
    ]
    for row in result["activation"]:
        cells = [
            _number(row[f"{word}_{form}"])
            for word in ("value", "slope", "curvature")
            for form in ("naive", "ours", "exact")
        ]
        lines.append(f"| {row['x']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def failure_figure(result: Mapping[str, Any], path: str | Path) -> None:
    """The largest input of any activation against the epoch, for the three runs, as PNG.

    Args:
        result: Of :func:`run_ssp_failure`.
        path: Where to.
    """
    figure, (ax,) = plotting.new_figure(size=(6.4, 3.8))
    colors = (plotting.RED, plotting.ORANGE, plotting.BLUE)
    for layer, (run, color) in enumerate(zip(result["runs"], colors, strict=True)):
        epochs = [row["epoch"] for row in run["history"]]
        inputs = [max(row[layer] for layer in LAYERS) for row in run["history"]]
        known = [(e, x) for e, x in zip(epochs, inputs, strict=True) if math.isfinite(x)]
        if not known:
            continue
        style = {"color": color, "linewidth": 1.4, "zorder": 5 - layer, "label": run["title"]}
        if run["status"] == "NaN":
            style |= {"linestyle": (0, (2, 2)), "linewidth": 2.6}  # over the one it coincides with
        ax.loglog(*zip(*known, strict=True), **style)
        if run["status"] == "NaN":
            ax.plot(*known[-1], "x", color=color, markersize=8, markeredgewidth=2, zorder=6)
            ax.annotate("NaN", known[-1], xytext=(8, -4), textcoords="offset points", color=color)
    ax.axhline(OVERFLOW, color=plotting.GREY, linewidth=0.9, linestyle="--")
    ax.text(1.0, OVERFLOW * 1.1, "overflow of exp in float32", fontsize=8, color=plotting.GREY)
    ax.set_xlabel("epoch (one step on 8 frames)")
    ax.set_ylabel("largest input of an activation")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    plotting.save(figure, path)


def _exp32(x: float) -> float:
    return torch.exp(torch.tensor(x, dtype=torch.float32)).item()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
