"""Ways to project compared: iterations, time, memory, gradients."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcase.dae.constraints import Constraint
from dcase.dae.projection import GRADIENTS, WAYS, ProjectionSettings, project
from dcase.dae.systems import system_named
from dcase.dae.trajectories import Trajectory

PERTURBATIONS = {"pendulum": (1.0, 10.0, 30.0), "water": (1.0, 5.0, 10.0)}
"""Root-mean-square displacements of a node, cm and pm."""

ITERATIONS = {"pendulum": 200, "water": 100}


def samples(trajectory: Trajectory, batch: int, displacement: float, seed: int) -> Tensor:
    """Positions [batch, N, d] on the constraint, displaced at random.

    Args:
        trajectory: Frames are taken from it at equal distances.
        batch: How many.
        displacement: Root mean square of a node's, in the trajectory's length.
        seed: Of the displacement.
    """
    frames = np.linspace(len(trajectory) // 10, len(trajectory) - 1, batch).astype(int)
    r = torch.as_tensor(trajectory.positions[frames], dtype=torch.float64)
    constraint = system_named(trajectory.system).constraint(r.shape[1])
    r = project(r, constraint, ProjectionSettings(tolerance=1e-10)).r
    noise = torch.randn(r.shape, generator=torch.Generator().manual_seed(seed), dtype=r.dtype)
    return r + displacement / r.shape[-1] ** 0.5 * noise


def saved_bytes(r: Tensor, constraint: Constraint, settings: ProjectionSettings) -> int:
    """Bytes that a projection keeps for its backward pass; memory used twice counts once."""
    kept: dict[tuple[int, int], Tensor] = {}  # holding the tensors keeps their addresses theirs

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr(), storage.nbytes()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        project(r.clone().requires_grad_(), constraint, settings)
    return sum(size for _, size in kept)


def gradient(
    r: Tensor, constraint: Constraint, settings: ProjectionSettings, upstream: Tensor
) -> Tensor:
    """The derivative of (projection of r, upstream) by r."""
    at = r.clone().requires_grad_()
    return torch.autograd.grad((project(at, constraint, settings).r * upstream).sum(), at)[0]


def study(
    trajectory: Trajectory,
    *,
    batch: int = 10,
    displacements: Sequence[float] | None = None,
    repeats: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Newton, conjugate gradients and descent on displaced frames, at the paper's tolerance.

    Args:
        trajectory: Pendulum or water.
        batch: Samples at a time.
        displacements: In cm or pm; None: :data:`PERTURBATIONS`.
        repeats: Of which times are medians.
        seed: Of displacements.

    Returns:
        A row for each displacement and way: mean and largest ``iterations``; whether all
        ``converged``; the largest ``violation`` left; ``extra``, how much farther the result lies
        from the input than the nearest point does (relative); ``forward`` time; time of forward
        and backward pass, and kilobytes kept for the latter, with implicit and unrolled gradient;
        and how far the implicit and tangent gradients are from the unrolled one (relative norm),
        the implicit one also with a tolerance of 1e-10.
        The derivative of descent is that of its iterations, which do not end at the nearest point,
        so there the implicit gradient differs by more than rounding.
    """
    system = system_named(trajectory.system)
    constraint = system.constraint(trajectory.positions.shape[1])
    rows = []
    for displacement in displacements or PERTURBATIONS[system.name]:
        r = samples(trajectory, batch, displacement / system.factor, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        upstream = torch.randn(r.shape, generator=generator, dtype=r.dtype)
        nearest = project(r, constraint, ProjectionSettings(tolerance=1e-10)).r
        for way in WAYS:
            limit = ITERATIONS[system.name]
            ways = {g: ProjectionSettings(way, None, limit, g) for g in GRADIENTS}
            found = project(r, constraint, ways["implicit"])
            gradients = {g: gradient(r, constraint, s, upstream) for g, s in ways.items()}
            exact = gradients["unrolled"]
            row: dict[str, Any] = {
                "system": system.name,
                f"displacement ({system.error})": displacement,
                "way": way,
                "iterations mean": float(found.iterations.double().mean()),
                "iterations max": int(found.iterations.max()),
                "converged": "yes" if bool(found.converged.all()) else "no",
                f"violation ({system.length})": float(constraint.violation(found.r).max()),
                "extra": float((found.r - r).norm() / (nearest - r).norm() - 1.0),
                "forward (ms)": _milliseconds(
                    lambda s=ways["implicit"], at=r: project(at, constraint, s), repeats
                ),
            }
            for kind in ("implicit", "unrolled"):
                row[f"{kind} (ms)"] = _milliseconds(
                    lambda s=ways[kind], at=r, up=upstream: gradient(at, constraint, s, up), repeats
                )
                row[f"{kind} (kB)"] = saved_bytes(r, constraint, ways[kind]) / 1e3
            for kind in ("implicit", "tangent"):
                row[f"{kind} - unrolled"] = float((gradients[kind] - exact).norm() / exact.norm())
            row["implicit - unrolled, 1e-10"] = None
            if way != "descent":
                sharp = [
                    gradient(r, constraint, ProjectionSettings(way, 1e-10, limit, g), upstream)
                    for g in ("implicit", "unrolled")
                ]
                difference = (sharp[0] - sharp[1]).norm() / sharp[1].norm()
                row["implicit - unrolled, 1e-10"] = float(difference)
            rows.append(row)
    return rows


def _milliseconds(call: Any, repeats: int) -> float:
    """Median time."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)
