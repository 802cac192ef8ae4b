"""Everything that decides how a network for a constrained system is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dcase.dae.methods import MethodSettings
from dcase.dae.projection import ProjectionSettings
from dcase.dae.systems import system_named
from dcase.errors import OptionError
from dcase.options import check_types
from dcase.training.settings import TrainSettings

NETWORKS = ("mechanical", "molecular", "mimetic", "equivariant")
SIZES = ("small", "paper")


@dataclass(frozen=True)
class DaeSettings:
    """Settings of a run.

    Attributes:
        system: ``"pendulum"`` or ``"water"``.
        method: ``"none"``, ``"auxiliary"``, ``"penalty"``, ``"end"``, ``"smooth"`` (the paper's) or
            ``"manifold"`` (the flow itself runs along the constraint).
        network: ``"mechanical"`` (pendulum) or ``"molecular"`` (water): accelerations, integrated
            over the time of the prediction; or the paper's: ``"mimetic"`` (pendulum) or
            ``"equivariant"`` (water; needs e3nn).
        size: Of the published networks: ``"small"`` or ``"paper"``.
        k: Simulation steps to predict ahead (0.01 s for the pendulum, 0.1 fs for water).
        n_train: Training samples.
        n_validation: Validation samples, which choose the epoch that is kept.
        n_test: Test samples.
        split: ``"random"``: the paper's; ``"blocks"``: three stretches of time.
        eta: Weight of the auxiliary loss.
        gamma: Strength of the penalty, per unit of the flow's time: pseudo-time in the published
            networks, s or fs in the mechanical and molecular ones.
        penalty_metric: H of the penalty, ``"identity"`` or ``"gram"`` for (J J^T)^-1.
        projection: ``"newton"``, ``"cg"`` or ``"descent"`` (the paper's).
        projection_gradient: ``"implicit"``, ``"tangent"`` or ``"unrolled"``.
        projection_iterations: At most.
        tolerance: Largest violation that projections leave, m or A; 0: the paper's.
        velocity_weight: Of the velocities' error in the loss; long roll-outs need it. The paper has
            positions only.
        layers: Integration steps of the mechanical and molecular networks; 0: one for each 0.025 s
            or 1.25 fs.
        hidden: Their features.
        epochs: Passes over the training samples.
        batch_size: Samples a step.
        lr: Learning rate.
        schedule: Of the learning rate: ``"constant"`` (the paper's) or ``"cosine"``.
        clip_value: Largest element of the gradient; 0: no limit.
        dtype: ``"float64"`` or ``"float32"``.
        time_limit: Seconds of training over all sittings; None: none.
        cpu_limit: The same in CPU seconds, of all threads.
        seed: Of split, weights and order.
    """

    system: str
    method: str = "manifold"
    network: str = "mechanical"
    size: str = "small"
    k: int = 20
    n_train: int = 100
    n_validation: int = 200
    n_test: int = 1000
    split: str = "random"
    eta: float = 10.0
    gamma: float = 10.0
    penalty_metric: str = "identity"
    projection: str = "newton"
    projection_gradient: str = "implicit"
    projection_iterations: int = 100
    tolerance: float = 0.0
    velocity_weight: float = 0.0
    layers: int = 0
    hidden: int = 64
    epochs: int = 50
    batch_size: int = 10
    lr: float = 1e-3
    schedule: str = "constant"
    clip_value: float = 0.1
    dtype: str = "float64"
    time_limit: float | None = None
    cpu_limit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        system = system_named(self.system)
        choices = {"network": NETWORKS, "size": SIZES, "dtype": ("float64", "float32")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise OptionError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        if self.network not in system.networks:
            raise OptionError(
                f"the {self.network} network is not for {self.system}; it has: "
                f"{', '.join(system.networks)}"
            )
        for name in ("k", "n_train", "n_validation", "n_test", "hidden"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tolerance", "velocity_weight", "layers"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.dtype == "float32" and 0 < self.tolerance < 1e-5:
            raise OptionError(
                f"single precision cannot reach a tolerance of {self.tolerance:g}; use at least "
                "1e-5, or float64"
            )
        self.method_settings()
        self.train_settings()

    @property
    def duration(self) -> float:
        """Time from input to target, s or fs."""
        return self.k * system_named(self.system).step

    def method_settings(self) -> MethodSettings:
        """Those of the method."""
        projection = ProjectionSettings(
            self.projection,
            self.tolerance or None,
            self.projection_iterations,
            self.projection_gradient,
        )
        return MethodSettings(
            self.method, self.eta, self.gamma, self.penalty_metric, projection=projection
        )

    def train_settings(self) -> TrainSettings:
        """Those of the trainer."""
        return TrainSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            schedule=self.schedule,
            final_lr=0.01 if self.schedule == "cosine" else 0.0,
            clip_value=self.clip_value,
            time_limit=self.time_limit,
            cpu_limit=self.cpu_limit,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def changed(self, **changes: Any) -> DaeSettings:
        """With other values."""
        return replace(self, **changes)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> DaeSettings:
        """Settings from plain values.

        Raises:
            OptionError: For an unknown name or an impossible value.
        """
        unknown = sorted(set(values) - {f.name for f in fields(DaeSettings)})
        if unknown:
            raise OptionError(f"unknown setting {unknown[0]!r}")
        return DaeSettings(**values)


def default_settings(system: str, network: str | None = None, size: str = "small") -> DaeSettings:
    """What is known to work, or (size ``"paper"``) what the paper did.

    Args:
        system: ``"pendulum"`` or ``"water"``.
        network: None: the system's first; with size ``"paper"``, the paper's.
        size: See :class:`DaeSettings`.

    Raises:
        OptionError: For an unknown system or network.
    """
    known = system_named(system)
    if network is None:
        network = known.networks[-1] if size == "paper" else known.networks[0]
    values: dict[str, Any] = {"network": network, "size": size}
    if network in ("mechanical", "molecular"):
        values |= {"velocity_weight": 1.0, "lr": 3e-3, "schedule": "cosine", "clip_value": 0.0}
        if system == "water":  # its constraint is only nearly obeyed by the data
            # The flow's time is in fs: a penalty of 10 would be stiff for its steps.
            values |= {"k": 50, "method": "none", "gamma": 0.1}
        return DaeSettings(system, **values)
    if system == "water":
        values |= {"k": 50, "epochs": 30, "dtype": "float64" if size == "paper" else "float32"}
    if size == "paper":
        limit = 200 if system == "pendulum" else 100
        values |= {"projection": "descent", "projection_iterations": limit}
        values |= {"projection_gradient": "unrolled", "method": "none"}
    return DaeSettings(system, **values)
