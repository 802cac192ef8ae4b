"""What an active learning run is asked to do."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dcase.errors import OptionError

STRATEGIES = ("uncertainty", "random")
"""Which sampled frames are labelled: those the ensemble disagrees about most, or any."""


@dataclass(frozen=True)
class ActiveSettings:
    """Settings of an active learning run.

    Attributes:
        rounds: Times that frames are sampled, chosen and labelled; the ensemble is trained once
            more than that.
        per_round: Frames labelled in a round.
        members: Potentials in the ensemble; each validates on other frames and starts from other
            weights.
        strategy: ``uncertainty``: label the frames that the members disagree about most, no two
            alike; ``random``: as many frames of the same sampling, drawn at random.
        temperatures_K: Of the Langevin dynamics; the walkers take them in turn.
        walkers: Trajectories in a round, from labelled frames drawn at random.
        steps: Time steps of a walker.
        timestep_fs: fs.
        friction_per_fs: Langevin friction, 1/fs.
        frame_every: Steps between the frames that may be chosen.
        max_uncertainty_eV_A: A walker stops where the members' standard deviation of the force on
            an atom is larger, eV/A; that frame may be chosen too. None: half of the median force
            on an atom in the labelled frames.
        until_trusted: End before the last round once no walker is stopped by its uncertainty.
        max_force_eV_A: Labelled frames with a larger force on an atom are left out, eV/A.
        training_steps: Optimizer steps of a member, to the nearest epoch, however many labels there
            are; None: the epochs of the recipe.
        validation: Share of the labelled frames that a member validates on.
        dtype: Precision of the dynamics.
        seed: Of everything random.
    """

    rounds: int = 5
    per_round: int = 20
    members: int = 4
    strategy: str = "uncertainty"
    temperatures_K: tuple[float, ...] = (300.0,)
    walkers: int = 10
    steps: int = 1000
    timestep_fs: float = 0.5
    friction_per_fs: float = 0.02
    frame_every: int = 10
    max_uncertainty_eV_A: float | None = None
    until_trusted: bool = False
    max_force_eV_A: float = 50.0
    training_steps: int | None = None
    validation: float = 0.1
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            OptionError: With the name of the setting and what it may be.
        """
        object.__setattr__(self, "temperatures_K", tuple(float(t) for t in self.temperatures_K))
        if self.strategy not in STRATEGIES:
            raise OptionError(
                f"strategy must be one of {', '.join(STRATEGIES)}, not {self.strategy!r}"
            )
        for name, least in (
            ("rounds", 0), ("per_round", 1), ("members", 2), ("walkers", 1), ("steps", 1),
            ("frame_every", 1), ("seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise OptionError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.training_steps is not None and self.training_steps < 1:
            raise OptionError(f"training_steps must be at least 1, not {self.training_steps}")
        limit = self.max_uncertainty_eV_A
        for name, value in (
            *(("temperatures_K", t) for t in self.temperatures_K),
            ("timestep_fs", self.timestep_fs),
            ("friction_per_fs", self.friction_per_fs),
            ("max_uncertainty_eV_A", 1.0 if limit is None else limit),
            ("max_force_eV_A", self.max_force_eV_A),
        ):
            if not (math.isfinite(value) and value > 0.0):
                raise OptionError(f"{name} must be a number > 0, not {value!r}")
        if not self.temperatures_K:
            raise OptionError("temperatures_K must hold at least one temperature")
        if not 0.0 <= self.validation < 1.0:
            raise OptionError(f"validation must be in [0, 1), not {self.validation!r}")

    def seed_of(self, *numbers: int) -> int:
        """A seed for one purpose: the same for the same numbers, unrelated for others."""
        return int(np.random.SeedSequence([self.seed, *numbers]).generate_state(1)[0])

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return {**asdict(self), "temperatures_K": list(self.temperatures_K)}
