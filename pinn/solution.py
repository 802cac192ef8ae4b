"""A trained solution: one network a window of time, evaluated anywhere, kept as a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcase import checkpoint
from dcase.errors import CheckpointError, OptionError
from dcase.pinn.conditions import Periodic
from dcase.pinn.initial import GridState
from dcase.pinn.problem import PDEProblem
from dcase.versions import versions

VERSION = 1
CHUNK = 16384  # points evaluated at a time


@dataclass(frozen=True)
class Window:
    """A network and the times that it is for.

    Attributes:
        start: First time.
        end: Last time.
        model: Points [N, d] -> fields [N, F].
        state: What the window started from where that is a state on a grid, to be stored with it.
    """

    start: float
    end: float
    model: nn.Module
    state: GridState | None = None


class Solution:
    """Fields as functions of space and time.

    Args:
        coordinates: Names of the columns of points.
        fields: Names of the fields.
        windows: In order of time; one without times for a problem without time.
    """

    def __init__(self, coordinates: Sequence[str], fields: Sequence[str], windows: list[Window]):
        self.coordinates, self.fields = tuple(coordinates), tuple(fields)
        self.windows = windows

    @torch.no_grad()
    def __call__(self, points: Tensor) -> dict[str, Tensor]:
        """Fields at points [N, d], each [N], float64 on the CPU.

        Times outside all windows are given to the first or last network.
        """
        points = torch.as_tensor(points, dtype=torch.float64)
        result = torch.empty(len(points), len(self.fields), dtype=torch.float64)
        which = torch.zeros(len(points), dtype=torch.long)
        if len(self.windows) > 1:
            ends = torch.tensor([w.end for w in self.windows[:-1]], dtype=torch.float64)
            which = torch.bucketize(points[:, -1].contiguous(), ends)
        for number, window in enumerate(self.windows):
            index = torch.nonzero(which == number).squeeze(1)
            for part in index.split(CHUNK):
                result[part] = _values(window.model, points[part])
        return {name: result[:, k] for k, name in enumerate(self.fields)}

    def on_grid(self, axes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Fields on the tensor grid of ``axes`` (by coordinate, in order), ``[nx, (ny,) nt]``.

        Raises:
            OptionError: If the axes are not those of the coordinates.
        """
        if tuple(axes) != self.coordinates:
            raise OptionError(
                f"axes must be {', '.join(self.coordinates)} in this order, got {', '.join(axes)}"
            )
        shape = [len(axis) for axis in axes.values()]
        grid = torch.cartesian_prod(
            *[torch.as_tensor(a, dtype=torch.float64) for a in axes.values()]
        )
        values = self(grid.reshape(-1, len(shape)))
        return {name: v.reshape(shape).numpy() for name, v in values.items()}

    def state_at(self, t: float, axes: Mapping[str, np.ndarray], problem: PDEProblem) -> GridState:
        """The fields at one time on a spatial grid, as the start of what comes next."""
        values = self.on_grid({**axes, "t": np.array([t])})
        periodic = [c.coordinate for c in problem.conditions if isinstance(c, Periodic)]
        domain = dict(problem.domain.intervals)
        return GridState(axes, {n: v[..., 0] for n, v in values.items()}, domain, periodic)


@torch.no_grad()
def _values(model: nn.Module, points: Tensor) -> Tensor:
    first = next(model.parameters())
    training = model.training
    model.eval()
    try:
        return model(points.to(first.device, first.dtype)).to("cpu", torch.float64)
    finally:
        model.train(training)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What a network needs to be the same again; a network of modes can work out most of itself."""
    own = getattr(model, "essentials", None)
    return own() if own else model.state_dict()


def save_solution(
    path: str | os.PathLike[str], solution: Solution, description: dict[str, Any]
) -> None:
    """Write a solution: weights and the states that windows started from.

    Args:
        path: Target file.
        solution: Trained.
        description: Plain values that the reader needs to build the networks again.
    """
    windows = []
    for window in solution.windows:
        state = window.state
        windows.append(
            {
                "start": window.start,
                "end": window.end,
                "weights": {k: v.cpu() for k, v in _weights(window.model).items()},
                "state": None
                if state is None
                else {
                    "axes": {n: torch.from_numpy(a) for n, a in state.axes.items()},
                    "values": {
                        n: torch.from_numpy(np.ascontiguousarray(v))
                        for n, v in state.values.items()
                    },
                    "periodic": list(state.periodic),
                    "domain": {n: list(i) for n, i in state.domain.items()},
                },
            }
        )
    content = {
        "coordinates": list(solution.coordinates),
        "fields": list(solution.fields),
        "windows": windows,
        "description": description,
        "versions": versions(),
    }
    checkpoint.save(path, "pinn", VERSION, content)


def read_solution(
    path: str | os.PathLike[str],
    build: Callable[[dict[str, Any], float, float, GridState | None], nn.Module],
) -> tuple[Solution, dict[str, Any]]:
    """Read what :func:`save_solution` wrote.

    Args:
        path: The file.
        build: Called with weights, start, end and state of each window; makes its network.

    Returns:
        The solution and its description.

    Raises:
        CheckpointError: If the file is missing, damaged, or does not fit the networks.
    """
    content = checkpoint.load(path, "pinn", VERSION)
    windows = []
    try:
        for part in content["windows"]:
            state = None
            if part["state"] is not None:
                saved = part["state"]
                state = GridState(
                    {n: a.numpy() for n, a in saved["axes"].items()},
                    {n: v.numpy() for n, v in saved["values"].items()},
                    saved["domain"],
                    saved["periodic"],
                )
            model = build(part["weights"], part["start"], part["end"], state)
            windows.append(Window(part["start"], part["end"], model, state))
        solution = Solution(content["coordinates"], content["fields"], windows)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: parts are missing or do not fit the network ({reason})"
        ) from error
    return solution, content["description"]
