"""Everything that decides how a network is trained on a problem."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from dcase.activations import canonical_name
from dcase.errors import OptionError
from dcase.options import check_types
from dcase.pinn.derivatives.engines import ENGINES
from dcase.pinn.domains import SAMPLERS
from dcase.training.settings import OPTIMIZERS

INITS = ("glorot", "variance", "stable", "lsuv")
NETWORKS = ("mlp", "modes")
HARD = ("initial", "periodic", "neumann", "dirichlet")


@dataclass(frozen=True)
class PointSettings:
    """How many points, where, and what the terms weigh.

    Attributes:
        interior: Collocation points of the equation (of a window).
        initial: Points of a soft initial condition that has none of its own.
        boundary: Points of each soft boundary condition.
        at_start: Further collocation points at the first time.
        on_walls: Further collocation points on the walls.
        sampler: "sobol", "lhs", "uniform", "hammersley" or "grid".
        resample: Epochs after which new points are drawn; 0: never (quasi-Newton methods need
            points that stay).
        steps_per_epoch: Steps between two rows of the log.
        scaled: Divide residuals by their typical size, so that units do not weigh.
        weights: Factors of terms by name; "equation" for all residuals of the equation.
    """

    interior: int = 2000
    initial: int = 512
    boundary: int = 256
    at_start: int = 0
    on_walls: int = 0
    sampler: str = "sobol"
    resample: int = 0
    steps_per_epoch: int = 10
    scaled: bool = True
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        if self.sampler not in SAMPLERS:
            raise OptionError(
                f"unknown sampler {self.sampler!r}; choose from {', '.join(SAMPLERS)}"
            )
        for name in ("interior", "initial", "boundary", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("at_start", "on_walls", "resample"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, weight in self.weights.items():
            if not weight >= 0:
                raise OptionError(f"the weight of {name} must not be negative, got {weight}")

    def weight(self, term: str) -> float:
        """The factor of a term."""
        if term in self.weights:
            return self.weights[term]
        kind = term.split(" ")[0] if " " in term else "equation"
        return self.weights.get(kind, 1.0)

    def check_weights(self, terms: list[str]) -> None:
        """Refuse weights of terms that there are not.

        Raises:
            OptionError: Naming the terms.
        """
        kinds = {term.split(" ")[0] if " " in term else "equation" for term in terms}
        for name in self.weights:
            if name not in terms and name not in kinds and name not in ("initial", *HARD):
                raise OptionError(
                    f"there is no term {name!r} to weigh; the terms are: {', '.join(terms)}"
                )


@dataclass(frozen=True)
class Stage:
    """One optimiser, for so many steps or such a share of the time limit.

    Attributes:
        optimizer: See :class:`~dcase.training.settings.TrainSettings`.
        steps: Steps, or None for a share of the time.
        share: Of the time (of a window), or None: to its end.
    """

    optimizer: str
    steps: int | None = None
    share: float | None = None


def parse_stages(text: str) -> list[Stage]:
    """``"adam:1000,lbfgs"`` or ``"adam:20%,ssbroyden"``.

    Raises:
        OptionError: For anything else.
    """
    stages = []
    for part in text.split(","):
        name, _, amount = part.strip().partition(":")
        if name not in OPTIMIZERS:
            raise OptionError(f"unknown optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
        try:
            if not amount:
                stages.append(Stage(name))
            elif amount.endswith("%"):
                stages.append(Stage(name, share=float(amount[:-1]) / 100))
            else:
                stages.append(Stage(name, steps=int(amount)))
        except ValueError:
            raise OptionError(
                f"cannot read {part.strip()!r}: write OPTIMIZER, OPTIMIZER:STEPS or OPTIMIZER:20%"
            ) from None
        last = stages[-1]
        if (last.steps is not None and last.steps < 1) or (
            last.share is not None and not 0 < last.share <= 1
        ):
            raise OptionError(f"{part.strip()!r}: a stage takes at least one step, at most 100%")
    return stages


@dataclass(frozen=True)
class PinnSettings:
    """Network, conditions and optimisation.

    Attributes:
        network: "mlp", or "modes": sines or cosines in space whose coefficients are a network of
            time, on many short windows (see dcase.pinn.spectral; takes march, times, hidden, ...).
        activation: Any of dcase.activations.
        width: Hidden neurons a layer.
        depth: Hidden layers.
        residual: Skip connections h + act(W h) / depth.
        batch_norm: BatchNorm before each activation, as in the DC paper's comparison.
        init: "glorot" (normal), "variance", "stable" or "lsuv" (see dcase.initialization).
        scale_inputs: Feed coordinates scaled to unit spread (the chain rule keeps units).
        scale_outputs: Let the network give fields in units of their initial spread.
        hard: Conditions that hold exactly: of "initial,periodic,neumann,dirichlet"; "none".
        modes: Sines and cosines of the embedding of a hard periodic (cosines: no-flux) coordinate.
        smooth: Fourier modes that a hard periodic initial state keeps; 0: all of them.
        windows: Windows of time, trained one after another.
        march: Windows of a network of modes: UNTIL:LENGTH:MODES, separated by commas.
        times: Collocation times in a window of a network of modes.
        hidden: Its functions of time.
        oversample: Its collocation cells an axis, in units of what its modes need at least.
        train_hidden: Train the hidden layer of its functions of time too.
        target: Mean square of the residuals, in units of their typical size, at which one of its
            windows is done.
        viscosity: Artificial viscosity of equations that take one.
        optimizer: Stages such as "adam:1000,lbfgs" or "adam:20%,ssbroyden"; the last one may go on
            to the end of the time. Without a time limit shares are of max_steps.
        lr: Learning rate of adam and soap.
        schedule: "constant", "cosine" or "exponential" (of adam and soap).
        final_lr: Learning rate at the end of a schedule, as a fraction of lr.
        history: Pairs that L-BFGS keeps.
        balance: "none", "gradient-norm" or "ntk".
        balance_every: Steps between balancings.
        causal: Steepness of causal weights in stages of adam and soap; 0: none.
        engine: "auto", "autograd", "jet" or "adjoint".
        compile: Compile the jets: a wait of about a minute, and no gain on a CPU.
        dtype: "float32" or "float64"; quasi-Newton methods want float64.
        refine: Rounds of residual-based refinement (RAR) of the collocation points.
        max_steps: Of a last stage without a number of steps.
        time_limit: Seconds of training over all windows, stages and sittings; None: none.
        cpu_limit: The same in CPU seconds, of all threads.
        checkpoint_every: Seconds between saves.
        seed: Of weights and points.
        points: Collocation points and weights.
    """

    network: str = "mlp"
    activation: str = "tanh"
    width: int = 40
    depth: int = 6
    residual: bool = False
    batch_norm: bool = False
    init: str = "lsuv"
    scale_inputs: bool = True
    scale_outputs: bool = True
    hard: str = "initial,periodic,neumann,dirichlet"
    modes: int = 8
    smooth: int = 64
    windows: int = 1
    march: str = ""
    times: int = 8
    hidden: int = 6
    oversample: float = 1.5
    train_hidden: bool = False
    target: float = 1e-6
    viscosity: float = 0.0
    optimizer: str = "adam:10%,lbfgs"
    lr: float = 1e-3
    schedule: str = "constant"
    final_lr: float = 0.0
    history: int = 100
    balance: str = "none"
    balance_every: int = 100
    causal: float = 0.0
    engine: str = "auto"
    compile: bool = False
    dtype: str = "float64"
    refine: int = 0
    max_steps: int = 5000
    time_limit: float | None = None
    cpu_limit: float | None = None
    checkpoint_every: float = 60.0
    seed: int = 0
    points: PointSettings = field(default_factory=PointSettings)

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "activation", canonical_name(self.activation))
        for name, known in (
            ("network", NETWORKS),
            ("init", INITS),
            ("engine", ENGINES),
            ("dtype", ("float32", "float64")),
        ):
            if getattr(self, name) not in known:
                raise OptionError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        for name in ("width", "depth", "modes", "windows", "max_steps", "times", "hidden"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.oversample < 1:
            raise OptionError(f"oversample must be at least 1, got {self.oversample}")
        for name in ("target", "causal", "refine", "viscosity", "smooth"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must not be negative, got {getattr(self, name)}")
        for kind in self.hard_kinds():
            if kind not in HARD:
                raise OptionError(
                    f"hard conditions are of {', '.join(HARD)} (or none); got {kind!r}"
                )
        parse_stages(self.optimizer)

    def hard_kinds(self) -> list[str]:
        """The kinds of conditions that are hard."""
        kinds = [kind.strip() for kind in self.hard.split(",") if kind.strip()]
        return [] if kinds == ["none"] else kinds

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def changed(self, **changes: Any) -> PinnSettings:
        """A copy with some fields changed; those of :class:`PointSettings` by their own names.

        Raises:
            OptionError: For an unknown name or an impossible value.
        """
        own = {f.name for f in fields(self)}
        inner = {f.name for f in fields(self.points)}
        for name in changes:
            if name not in own | inner:
                raise OptionError(f"unknown setting {name!r}")
        points = replace(self.points, **{k: v for k, v in changes.items() if k in inner})
        return replace(self, points=points, **{k: v for k, v in changes.items() if k in own})


def from_dict(values: dict[str, Any]) -> PinnSettings:
    """Settings from plain values.

    Raises:
        OptionError: For an unknown name or an impossible value.
    """
    values = dict(values)
    points = values.pop("points", {})
    return PinnSettings().changed(**values, **points)
