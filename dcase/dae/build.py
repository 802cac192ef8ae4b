"""Networks from settings and data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dcase.dae.methods import ConstrainedNetwork
from dcase.dae.settings import DaeSettings
from dcase.dae.skeleton import ResidualNetwork, StepSizes
from dcase.dae.systems import system_named

STEPS = {"pendulum": 0.025, "water": 1.25}  # s, fs: integration steps


def measure_scales(
    r: np.ndarray, v: np.ndarray, v_later: np.ndarray, duration: float
) -> dict[str, float]:
    """Root mean squares that put networks to scale, from training samples [n, N, d].

    Returns:
        Those of ``position``, ``velocity`` and ``acceleration``, and the number of ``nodes`` and
        ``dim`` (as floats).
    """

    def rms(a: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(a, dtype=np.float64)))) or 1.0

    return {
        "position": rms(r),
        "velocity": rms(v),
        "acceleration": rms((v_later - v) / duration),
        "nodes": float(r.shape[1]),
        "dim": float(r.shape[2]),
    }


def build_model(settings: DaeSettings, scales: dict[str, float]) -> ConstrainedNetwork:
    """A network with its method, untrained.

    Args:
        settings: Which.
        scales: From :func:`measure_scales`.
    """
    system = system_named(settings.system)
    n_nodes, dim = int(scales["nodes"]), int(scales["dim"])
    constraint = system.constraint(n_nodes)
    network = _network(settings, scales, n_nodes, dim, constraint.pairs)
    model = ConstrainedNetwork(network, constraint, settings.method_settings())
    return model.to(getattr(torch, settings.dtype))


def _network(
    settings: DaeSettings, scales: dict[str, float], n_nodes: int, dim: int, pairs: Any
) -> ResidualNetwork:
    layers = settings.layers or max(2, round(settings.duration / STEPS[settings.system]))
    if settings.network == "molecular":
        from dcase.dae.molecular import MolecularNetwork

        return MolecularNetwork(
            n_nodes // 3,
            duration=settings.duration,
            layers=layers,
            hidden=settings.hidden,
            seed=settings.seed,
        )
    if settings.network == "mechanical":
        from dcase.dae.mechanical import MechanicalNetwork

        return MechanicalNetwork(
            pairs,
            range(n_nodes),
            dim,
            duration=settings.duration,
            layers=layers,
            hidden=settings.hidden,
            acceleration_scale=scales["acceleration"],
            velocity_scale=scales["velocity"],
            seed=settings.seed,
        )
    options: dict[str, Any]
    if settings.network == "mimetic":
        from dcase.dae.mimetic import PAPER, SMALL, MimeticNetwork

        options = dict(PAPER if settings.size == "paper" else SMALL)
        options |= {
            "n_nodes": n_nodes,
            "edges": [pair for pair in pairs.tolist() if min(pair) >= 0],
            "dim": dim,
        }
        kind: Any = MimeticNetwork
    else:
        from dcase.dae import equivariant

        options = dict(equivariant.PAPER if settings.size == "paper" else equivariant.SMALL)
        kind = equivariant.EquivariantNetwork
    if settings.size == "small":
        # The published first step of 1e-4 takes hundreds of updates to grow to a useful one. Water
        # moves by a hundredth of its size, and starts from nearly nothing all the same.
        start = 0.1 if settings.network == "mimetic" else 1e-3
        options["steps"] = StepSizes(options["layers"], start=start, low=1e-4, high=1.0)
    network = kind(
        position_scale=scales["position"],
        velocity_scale=scales["velocity"],
        seed=settings.seed,
        **options,
    )
    if settings.size == "paper":
        for name, parameter in network.named_parameters():
            if "parametrizations" in name:  # K, which the authors train at a tenth of the rate
                parameter.lr_factor = 0.1
    return network
