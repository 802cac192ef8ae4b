"""Everything that decides how a run trains, checked on construction."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from dcase.errors import OptionError
from dcase.options import check_types

QUASI_NEWTON = ("lbfgs", "bfgs", "ssbfgs", "ssbroyden")
OPTIMIZERS = ("adam", "adamw", "soap", *QUASI_NEWTON)
BALANCES = ("none", "gradient-norm", "ntk")
SCHEDULES = ("constant", "cosine", "plateau", "exponential")

LIMITS = ("epochs", "time_limit", "cpu_limit", "checkpoint_every", "early_stopping")
"""Settings that may change between sittings; any other change would make another run of it."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a :class:`~dcase.training.trainer.Trainer`.

    Attributes:
        epochs: Passes over the training set. More (or fewer) may be asked for on a resume; see
            :meth:`~dcase.training.trainer.Trainer.fit` for what schedules then do.
        batch_size: Samples a step (over all processes together); 0: the whole set.
        optimizer: ``"adam"``, ``"adamw"`` or ``"soap"``, which take small steps on batches; or one
            of the quasi-Newton methods, which want the whole set in one batch, float64, and have
            no learning rate: ``"lbfgs"``, or with a matrix of parameters times parameters
            ``"bfgs"``, ``"ssbfgs"`` (self-scaled) or ``"ssbroyden"`` (self-scaled Broyden).
        history: Steps that L-BFGS remembers.
        lr: Peak learning rate.
        weight_decay: As the optimizer defines it.
        beta1: Adam's decay of the gradient mean.
        beta2: Adam's decay of the squared gradient.
        eps: Adam's epsilon. Not negligible once labels are divided by a large C: gradients near it
            turn rescaling into a smaller learning rate.
        amsgrad: Use the AMSGrad variant.
        basis_every: Steps between updates of SOAP's basis.
        schedule: ``"constant"``; ``"cosine"`` to ``final_lr``; ``"exponential"`` to ``final_lr``;
            ``"plateau"``: times ``decay`` after ``patience`` validations without improvement.
        warmup_steps: Linear warm-up from zero; over after a tenth of the run at the latest.
        final_lr: Learning rate at the end, as a fraction of ``lr``.
        decay: Factor of ``"plateau"``.
        patience: Validations of ``"plateau"``.
        ema: Decay of the exponential moving average of the weights; 0: none. Validation and the
            saved model use the average.
        clip_norm: Largest gradient norm; 0: no clipping.
        clip_value: Largest element of the gradient; 0: no clipping.
        balance: ``"none"``; or weights that follow the loss terms, so that their gradients have the
            same norm (``"gradient-norm"``) or their residuals converge at the same rate (``"ntk"``,
            by the trace of the tangent kernel). They multiply the weights of the objective.
        balance_every: Steps between updates of these weights. Quasi-Newton methods set them once,
            before the first step.
        balance_momentum: Share of the old weights in an update.
        target_loss: Stop, as converged, once the weighted loss of a step is below; 0: never.
        early_stopping: Validations without improvement after which to stop; 0: never.
        validate_every: Epochs between validations; the last epoch is always validated.
        time_limit: Seconds of training over all sittings; None: none. Cosine and exponential
            schedules run to their end within it (then the learning rate depends on the clock, and
            only runs without a limit repeat bit for bit).
        cpu_limit: The same in CPU seconds, of all threads of all processes of the run together. Of
            two limits the one that is nearer counts.
        checkpoint_every: Seconds between saves of the training state.
        seed: Of the order of the samples.
    """

    epochs: int = 100
    batch_size: int = 10
    optimizer: str = "adam"
    history: int = 100
    lr: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    amsgrad: bool = False
    basis_every: int = 10
    schedule: str = "cosine"
    warmup_steps: int = 0
    final_lr: float = 0.0
    decay: float = 0.5
    patience: int = 10
    ema: float = 0.0
    clip_norm: float = 0.0
    clip_value: float = 0.0
    balance: str = "none"
    balance_every: int = 100
    balance_momentum: float = 0.9
    target_loss: float = 0.0
    early_stopping: int = 0
    validate_every: int = 1
    time_limit: float | None = None
    cpu_limit: float | None = None
    checkpoint_every: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("balance", BALANCES),
        ):
            if getattr(self, name) not in known:
                raise OptionError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        for name in (
            "epochs",
            "validate_every",
            "patience",
            "history",
            "balance_every",
            "basis_every",
        ):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "eps", "checkpoint_every"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} must be positive, got {getattr(self, name)}")
        for name in (
            "batch_size",
            "target_loss",
            "weight_decay",
            "warmup_steps",
            "clip_norm",
            "clip_value",
            "early_stopping",
        ):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed must be between 0 and {2**32 - 1}, got {self.seed}")
        for name in ("beta1", "beta2", "ema", "balance_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.schedule == "exponential" and not self.final_lr > 0:
            raise OptionError("the exponential schedule needs final_lr > 0")
        if not 0 <= self.final_lr <= 1:
            raise OptionError(f"final_lr is a fraction of lr, got {self.final_lr}")
        if not 0 < self.decay < 1:
            raise OptionError(f"decay must be between 0 and 1, got {self.decay}")
        for name in ("time_limit", "cpu_limit"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise OptionError(f"{name} must be positive, got {limit}")
        for name in ("clip_norm", "clip_value", "weight_decay") if self.quasi_newton else ():
            if getattr(self, name):
                raise OptionError(
                    f"{name} does not go with optimizer {self.optimizer}: its line search needs "
                    f"the gradient of the loss itself; leave {name} at 0"
                )
        if self.amsgrad and self.optimizer not in ("adam", "adamw"):
            raise OptionError(f"amsgrad is a variant of adam and adamw, not of {self.optimizer}")

    @property
    def quasi_newton(self) -> bool:
        """Whether the optimizer is a quasi-Newton method."""
        return self.optimizer in QUASI_NEWTON

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainSettings:
        """Settings from plain values; unknown names are an error.

        Raises:
            OptionError: For an unknown name or an impossible value.
        """
        known = {f.name for f in fields(TrainSettings)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise OptionError(f"unknown training setting {unknown[0]!r}")
        return TrainSettings(**values)
