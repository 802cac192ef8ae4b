"""Networks applied again and again, beside the true motion and predictors that need no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcase.dae.evaluation import RollOut, constant_velocity, identity, of_model, roll_out
from dcase.dae.pendulum import pendulum_energy
from dcase.dae.settings import DaeSettings
from dcase.dae.systems import system_named
from dcase.dae.trajectories import Pairs, Trajectory, make_pairs
from dcase.errors import OptionError

SIMPLE = ("constant velocity", "identity")
STARTS = 20


@dataclass(frozen=True)
class TrueStates:
    """True motion, a prediction's time between states.

    Attributes:
        positions: [n + 1, B, N, d].
        velocities: [n + 1, B, N, d].
        unseen: Whether all of it lies after the last frame that training or validation used.
    """

    positions: np.ndarray
    velocities: np.ndarray
    unseen: bool


def true_states(
    trajectory: Trajectory, pairs: Sequence[Pairs], n: int, count: int = STARTS
) -> TrueStates:
    """True states to compare ``n`` applications with, from equally spaced starts.

    They lie after all frames of training and validation if the trajectory is long enough, else
    anywhere from the first training frame on.

    Args:
        trajectory: Has them.
        pairs: Of every run that is compared, with one time from start to target.
        n: Applications.
        count: Starts.

    Raises:
        OptionError: If the trajectory is too short.
    """
    ahead = pairs[0].ahead
    last = len(trajectory) - 1 - n * ahead
    begin = min(int(p.train.min()) for p in pairs)
    if n < 1 or last < begin:
        most = (len(trajectory) - 1 - begin) // ahead
        raise OptionError(f"a roll-out of the data may have 1 to {most} applications, not {n}")
    used = 1 + max(int(max(p.train.max(), p.validation.max())) + p.ahead for p in pairs)
    unseen = used <= last
    starts = np.unique(np.linspace(used if unseen else begin, last, count).round().astype(int))
    frames = starts + ahead * np.arange(n + 1)[:, None]
    return TrueStates(trajectory.positions[frames], trajectory.velocities[frames], unseen)


def pairs_of(settings: DaeSettings, trajectory: Trajectory) -> Pairs:
    """The pairs a run was made with."""
    s = settings
    counts = s.n_train, s.n_validation, s.n_test
    return make_pairs(trajectory, s.k, *counts, seed=s.seed, split=s.split)


def roll_outs(
    models: Mapping[str, tuple[Any, DaeSettings]], trajectory: Trajectory, n: int
) -> tuple[dict[str, RollOut], bool]:
    """Roll-outs of networks, of constant velocity and of the identity, from the same starts.

    Args:
        models: Network and settings by label; all of one system and one k.
        trajectory: The truth.
        n: Applications.

    Returns:
        Roll-outs by label, and whether the motion was never seen in training.

    Raises:
        OptionError: If the runs do not fit each other, or the trajectory is too short.
    """
    settings = [s for _, s in models.values()]
    for name, what in (("system", "systems"), ("k", "times (k)")):
        several = sorted({getattr(s, name) for s in settings})
        if len(several) > 1:
            values = ", ".join(map(str, several))
            raise OptionError(f"the runs have different {what}: {values}; compare runs of one")
    first = settings[0]
    truth = true_states(trajectory, [pairs_of(s, trajectory) for s in settings], n)
    found: dict[str, RollOut] = {}
    for label, (model, s) in models.items():
        weight = next(model.parameters())
        found[label] = _follow(of_model(model), model, truth, s, weight, trajectory)
    model = next(iter(models.values()))[0]
    like = torch.zeros((), dtype=torch.float64)
    simple = {"constant velocity": constant_velocity(first.duration), "identity": identity}
    for label, predictor in simple.items():
        found[label] = _follow(predictor, model, truth, first, like, trajectory)
    return found, truth.unseen


def _follow(
    predictor: Any,
    model: Any,
    truth: TrueStates,
    settings: DaeSettings,
    like: Tensor,
    trajectory: Trajectory,
) -> RollOut:
    r, v = (
        torch.as_tensor(a).to(like.device, like.dtype) for a in (truth.positions, truth.velocities)
    )
    energy = energy_of(trajectory)
    return roll_out(predictor, r, v, model.constraint, settings.duration, energy)


def energy_of(trajectory: Trajectory) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Total energy [B] in J of positions and velocities, for the pendulum; else None."""
    if trajectory.system != "pendulum":
        return None
    gravity = float(trajectory.settings.get("gravity", 9.82))

    def energy(r: Tensor, v: Tensor) -> Tensor:
        found = pendulum_energy(r.double().cpu().numpy(), v.double().cpu().numpy(), gravity)
        return torch.as_tensor(found)

    return energy


def roll_out_rows(found: RollOut, settings: DaeSettings) -> list[dict[str, float]]:
    """Error and violations after 1, 2, 5, 10, 20, 50 ... applications, and the last.

    Returns:
        ``applications``, ``time``, the error in the unit of tables, ``mean_violation``,
        ``max_violation``, and ``energy_change`` where there is one.
    """
    system = system_named(settings.system)
    n = len(found.time) - 1
    chosen = {m * 10**power for power in range(6) for m in (1, 2, 5)}
    rows = []
    for step in sorted({s for s in chosen if s < n} | {n}):
        row = {
            "applications": step,
            "time": float(found.time[step]),
            system.mae: float(system.factor * found.error[step]),
            "mean_violation": float(found.mean[step]),
            "max_violation": float(found.worst[step]),
        }
        if found.energy is not None:
            row["energy_change"] = float(found.energy[step])
        rows.append(row)
    return rows
