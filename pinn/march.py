"""Training a network of modes, one short window of time after another.

Each window is one :class:`~dcase.training.trainer.Trainer`, as everywhere; its start is the end of
the window before. Windows that are done are kept together in one file from time to time, and a run
that was stopped goes on with the first that is not; as a window is a function of its start and the
seed, it then comes to the same result.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcase import checkpoint
from dcase.errors import CheckpointError, OptionError
from dcase.objective import Objective, Term
from dcase.pinn.conditions import Initial, Neumann, Periodic
from dcase.pinn.derivatives.names import trace
from dcase.pinn.domains import Domain
from dcase.pinn.equations import ModeHints, residual_names
from dcase.pinn.initial import GridState
from dcase.pinn.problem import PDEProblem
from dcase.pinn.settings import PinnSettings, Stage, parse_stages
from dcase.pinn.solution import Solution, Window
from dcase.pinn.solver import Fit, Outcome
from dcase.pinn.spectral import Modes, SpectralNetwork, at_cells, fit_modes, modes_of
from dcase.training.logs import MetricsLog
from dcase.training.progress import Progress
from dcase.training.settings import TrainSettings
from dcase.training.trainer import Trainer

MARCH_VERSION = 1


@dataclass(frozen=True)
class Step:
    """One window of the march.

    Attributes:
        start: First time.
        end: Last time.
        modes: Modes an axis.
    """

    start: float
    end: float
    modes: int


def parse_march(text: str, domain: Domain) -> list[Step]:
    """Windows from ``"0.5:0.05:64,2:0.1:32"``: until 0.5 of length 0.05 with 64 modes, and so on.

    Raises:
        OptionError: If it cannot be read, goes back in time, or does not reach the end.
    """
    steps: list[Step] = []
    now, last = domain.low("t"), domain.high("t")
    for part in text.split(","):
        try:
            until, length, modes = part.strip().split(":")
            end, size, count = float(until), float(length), int(modes)
        except ValueError:
            raise OptionError(f"cannot read {part!r} of march: write UNTIL:LENGTH:MODES") from None
        if not (size > 0 and count > 0 and end > now):
            raise OptionError(f"{part!r} of march does not lead forward from t = {now:g}")
        end = min(end, last)
        n = max(1, round((end - now) / size))
        edges = [now + (end - now) * k / n for k in range(n + 1)]
        steps += [Step(a, b, count) for a, b in itertools.pairwise(edges)]
        now = end
    if now < last * (1 - 1e-9):
        raise OptionError(f"march ends at t = {now:g}, but the domain at {last:g}")
    return steps


class ModeTask:
    """The projected residuals of a window, as the core's ``Problem`` and samples.

    Args:
        problem: On the window.
        hints: Sizes of the residuals.
    """

    def __init__(self, problem: PDEProblem, hints: ModeHints):
        self.problem, self.equation = problem, problem.equation
        self.asked = trace(self.equation)
        self.hints = hints

    @property
    def display(self) -> dict[str, tuple[float, str]]:
        """Residuals are in the equation's own units."""
        return dict.fromkeys(self.names, (1.0, ""))

    @property
    def names(self) -> list[str]:
        """Names of the terms."""
        return residual_names(self.equation)

    term_names = names

    def terms(self, model: nn.Module, batch: Any, training: bool) -> dict[str, Tensor]:
        """Each residual on the modes, [times * modes]."""
        assert isinstance(model, SpectralNetwork)
        d = model.grid_derivatives(self.asked)
        return {name: model.project(r) for name, r in self.equation.residuals(d).items()}

    def objective_terms(self) -> dict[str, Term]:
        """Weights that put all residuals into units of their typical size."""
        sizes = self.hints.residuals
        return {name: Term(weight=1.0 / sizes.get(name, 1.0) ** 2) for name in self.names}

    def describe(self) -> str:
        """For messages."""
        return "modes on a grid"

    def __len__(self) -> int:
        return 1

    def batch(self, indices: Tensor | None = None) -> ModeTask:
        """The one sample there is; the network knows its collocation points."""
        return self


def mode_kinds(problem: PDEProblem) -> list[str]:
    """``"fourier"`` or ``"cosine"`` for each spatial coordinate.

    Raises:
        OptionError: If the problem is neither periodic nor no-flux in one of them, or has no
            initial state.
    """
    if problem.initial is None or "t" not in problem.domain.intervals:
        raise OptionError("a network of modes needs time and an initial state")
    kinds: dict[str, str] = {}
    for condition in problem.conditions:
        if isinstance(condition, Periodic):
            kinds[condition.coordinate] = "fourier"
        elif isinstance(condition, Neumann) and condition.can_be_hard:
            kinds |= dict.fromkeys(condition.coordinates, "cosine")
        elif not isinstance(condition, Initial):
            raise OptionError(
                f"a network of modes cannot keep a condition of kind {condition.kind}"
            )
    missing = [name for name in problem.domain.space if name not in kinds]
    if missing:
        raise OptionError(
            f"a network of modes needs periodic or no-flux coordinates; {missing[0]} is neither"
        )
    return [kinds[name] for name in problem.domain.space]


def start_coefficients(problem: PDEProblem, kinds: list[str], count: int) -> Tensor:
    """Coefficients [fields, modes] of the initial state.

    A state on a grid of cell centres is represented by all the modes that the grid determines,
    then cut to ``count``.
    """
    state, domain = problem.initial, problem.domain
    assert state is not None
    grids = []
    for name, kind in zip(domain.space, kinds, strict=True):
        cells = 4 * count if kind == "fourier" else 2 * count
        if isinstance(state, GridState):
            cells = len(state.axes[name])
        grids.append(Modes(domain.low(name), domain.length(name), "cosine", 1).grid(cells))
    points = torch.cartesian_prod(*grids).reshape(-1, len(grids))
    values = state.derivative(points, [0] * len(grids)).T
    order = [state.fields.index(name) for name in problem.equation.fields]
    values = values[order].reshape(len(order), *(len(g) for g in grids))
    modes = []
    for name, kind, grid in zip(domain.space, kinds, grids, strict=True):
        most = (len(grid) - 1) // 2 if kind == "fourier" else len(grid)
        modes.append(Modes(domain.low(name), domain.length(name), kind, min(count, most)))
    return fit_modes(values, modes)


def with_count(c: Tensor, kinds: list[str], count: int) -> Tensor:
    """Coefficients cut or padded to ``count`` modes an axis."""
    for axis, kind in enumerate(kinds, 1):
        size = c.shape[axis]
        if kind == "cosine":
            parts = [_resize(c, axis, count)]
        else:
            half = (size - 1) // 2
            constant, cosines, sines = c.split([1, half, half], axis)
            parts = [constant, _resize(cosines, axis, count), _resize(sines, axis, count)]
        c = torch.cat(parts, axis)
    return c


def _resize(c: Tensor, axis: int, count: int) -> Tensor:
    if c.shape[axis] >= count:
        return c.narrow(axis, 0, count)
    shape = list(c.shape)
    shape[axis] = count - c.shape[axis]
    return torch.cat([c, c.new_zeros(shape)], axis)


def build_window(
    problem: PDEProblem, settings: PinnSettings, start: Tensor, kinds: list[str]
) -> tuple[SpectralNetwork, ModeHints]:
    """The network of a window, from the coefficients that it starts with."""
    domain = problem.domain
    modes = [
        modes_of(domain, name, kind, size)
        for name, kind, size in zip(domain.space, kinds, start.shape[1:], strict=True)
    ]
    hints = ModeHints()
    if hasattr(problem.equation, "mode_hints"):
        values = at_cells(start, modes)
        k = modes[0].wave_numbers
        if len(modes) == 2:
            k = (k[:, None] ** 2 + modes[1].wave_numbers ** 2).sqrt()
        state = dict(zip(problem.equation.fields, values, strict=True))
        hints = problem.equation.mode_hints(state, k)
    least = max(len(m) for m in modes)
    network = SpectralNetwork(
        domain,
        problem.equation.fields,
        kinds,
        start,
        grid=max(least, round(settings.oversample * least)),
        times=settings.times,
        hidden=settings.hidden,
        width=settings.width,
        activation=settings.activation,
        hints=hints,
        train_hidden=settings.train_hidden,
        generator=torch.Generator().manual_seed(settings.seed),
        dtype=getattr(torch, settings.dtype),
    )
    return network, hints


def march(
    problem: PDEProblem,
    settings: PinnSettings,
    folder: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    on_fit: Callable[[Fit, Trainer], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Train a network of modes on a problem; arguments as for :func:`dcase.pinn.solver.solve`."""
    run = _March(problem, settings, Path(folder) / "fits", torch.device(device))
    return run.go(resume, on_fit, on_step)


class _March:
    def __init__(
        self, problem: PDEProblem, settings: PinnSettings, folder: Path, device: torch.device
    ):
        self.problem, self.settings, self.folder, self.device = problem, settings, folder, device
        self.kinds = mode_kinds(problem)
        if not settings.march:
            raise OptionError("a network of modes needs march: UNTIL:LENGTH:MODES,...")
        self.steps = parse_march(settings.march, problem.domain)
        stages = parse_stages(settings.optimizer)
        if len(stages) != 1 or stages[0].share is not None:
            raise OptionError(
                f"a network of modes takes one optimizer, such as lbfgs:40, not "
                f"{settings.optimizer!r}; a coordinate network (--network mlp) takes several"
            )
        self.stage: Stage = stages[0]
        self.solution = Solution(problem.domain.coordinates, problem.equation.fields, [])
        self.terms: dict[str, float] = {}
        self.count, self.elapsed = 0, 0.0

    def go(
        self,
        resume: bool,
        on_fit: Callable[[Fit, Trainer], None] | None,
        on_step: Callable[[Progress], None] | None,
    ) -> Outcome:
        c = start_coefficients(self.problem, self.kinds, self.steps[0].modes)
        names = ["loss", *ModeTask(self.problem, ModeHints()).names]
        columns = ["epoch", "step", "elapsed_s", "lr", *(f"train_{n}" for n in names)]
        log = MetricsLog(self.folder / "march", columns)
        first = 0
        if resume and self._file.exists():
            c, first = self._read(c)
            log.cut_after(first)
        else:
            log.start()
        self._saved = time.monotonic()
        self._started = time.monotonic() - self.elapsed
        status = "finished"
        for number, step in enumerate(self.steps[first:], first):
            window = self.problem.starting_at(step.start, step.end, None)
            c = with_count(c, self.kinds, step.modes)
            model, hints = build_window(window, self.settings, c, self.kinds)
            model = model.to(self.device)
            task = ModeTask(window, hints)
            trainer = Trainer(
                model,
                Objective(task, task.objective_terms()),
                task,  # type: ignore[arg-type]
                None,
                self._train_settings(len(self.steps) - number),
                self.folder / "window",
                on_step=on_step,
            )
            if on_fit:
                on_fit(
                    Fit(number, number, 0, self.stage, step.start, step.end, len(self.steps)),
                    trainer,
                )
            result = trainer.fit()
            self.count += result.steps
            self.elapsed = time.monotonic() - self._started
            if result.status == "time limit":
                status = "time limit"
            if result.status == "interrupted":
                self._save()
                return self._outcome("interrupted")
            self._account(task, model, step)
            log.write(
                {
                    "epoch": number + 1,
                    "step": self.count,
                    "elapsed_s": self.elapsed,
                    "lr": 0.0,
                    **{f"train_{n}": v for n, v in trainer.losses.items()},
                }
            )
            self.solution.windows.append(Window(step.start, step.end, model))
            c = model.end().cpu().double()
            if time.monotonic() - self._saved > self.settings.checkpoint_every:
                self._save()
        self._save()
        return self._outcome(status)

    def _account(self, task: ModeTask, model: SpectralNetwork, step: Step) -> None:
        with torch.no_grad():
            residuals = task.terms(model, None, training=False)
        share = (step.end - step.start) / self.problem.domain.length("t")
        for name, r in residuals.items():
            square = float(r.double().square().mean())
            self.terms[name] = self.terms.get(name, 0.0) + share * square

    def _outcome(self, status: str) -> Outcome:
        label = f"{len(self.steps)} windows, {self.stage.optimizer}"
        fits = [(label, self.folder / "march")]
        return Outcome(self.solution, status, self.count, self.elapsed, self.terms, fits)

    def _train_settings(self, windows_left: int) -> TrainSettings:
        """Of a window, which gets an equal share of the time that is left, if time is limited."""
        s = self.settings
        limit = None
        if s.time_limit is not None:
            left = s.time_limit - (time.monotonic() - self._started)
            limit = max(left / windows_left, 1e-6)
        return TrainSettings(
            epochs=self.stage.steps or 40,
            batch_size=1,
            optimizer=self.stage.optimizer,
            lr=s.lr,
            schedule="constant",
            history=min(s.history, 20),
            target_loss=s.target,
            time_limit=limit,
            validate_every=10**6,
            checkpoint_every=1e9,  # windows are short; they are kept when done
            seed=s.seed,
        )

    # ------------------------------------------------------------------ coming back

    @property
    def _file(self) -> Path:
        return self.folder / "march.pt"

    def _identity(self) -> dict[str, Any]:
        settings = self.settings.to_dict()
        for free in ("time_limit", "checkpoint_every"):
            settings.pop(free)
        return {"equation": repr(self.problem.equation), "settings": settings}

    def _save(self) -> None:
        self._saved = time.monotonic()
        checkpoint.save(
            self._file,
            "pinn-march",
            MARCH_VERSION,
            {
                "identity": self._identity(),
                "windows": [w.model.essentials() for w in self.solution.windows],  # type: ignore[operator]
                "terms": self.terms,
                "count": self.count,
                "elapsed": self.elapsed,
            },
        )

    def _read(self, c: Tensor) -> tuple[Tensor, int]:
        saved = checkpoint.load(self._file, "pinn-march", MARCH_VERSION)
        if saved.get("identity") != self._identity():
            raise CheckpointError(
                f"{self._file}: cannot resume: it was trained with other settings; use the same, "
                "or --overwrite to start again"
            )
        try:
            for content, step in zip(saved["windows"], self.steps, strict=False):
                window = self.problem.starting_at(step.start, step.end, None)
                model = read_window(content, window, self.settings, self.kinds)
                self.solution.windows.append(Window(step.start, step.end, model.to(self.device)))
            self.terms = dict(saved["terms"])
            self.count, self.elapsed = saved["count"], saved["elapsed"]
        except (KeyError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{self._file}: damaged ({reason})") from error
        done = len(self.solution.windows)
        if done:
            last = self.solution.windows[-1].model
            assert isinstance(last, SpectralNetwork)
            c = last.end().cpu().double()
        return c, done


def read_window(
    content: dict[str, Tensor], problem: PDEProblem, settings: PinnSettings, kinds: list[str]
) -> SpectralNetwork:
    """The network with these :meth:`~dcase.pinn.spectral.SpectralNetwork.essentials`."""
    model, _ = build_window(problem, settings, content["start"].double(), kinds)
    model.load_state_dict({**model.state_dict(), **content})
    return model
