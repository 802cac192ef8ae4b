"""Windows of a march: which there are, what a network of modes starts from, and its network."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from dcase.errors import OptionError
from dcase.pinn.conditions import Initial, Neumann, Periodic
from dcase.pinn.domains import Domain
from dcase.pinn.equations import ModeHints
from dcase.pinn.initial import GridState
from dcase.pinn.problem import PDEProblem
from dcase.pinn.settings import PinnSettings
from dcase.pinn.spectral import Modes, SpectralNetwork, at_cells, fit_modes, modes_of


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


def read_window(
    content: dict[str, Tensor], problem: PDEProblem, settings: PinnSettings, kinds: list[str]
) -> SpectralNetwork:
    """The network with these :meth:`~dcase.pinn.spectral.SpectralNetwork.essentials`."""
    model, _ = build_window(problem, settings, content["start"].double(), kinds)
    model.load_state_dict({**model.state_dict(), **content})
    return model
