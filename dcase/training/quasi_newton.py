"""Quasi-Newton optimisers: what all have in common, and L-BFGS.

A step is one iteration: a direction ``d = -H g`` from the curvature seen so far, and a line search
along it for the strong Wolfe conditions. Loss and gradient at the accepted point are kept for the
next iteration, which therefore costs little more than one evaluation (the first step length tried
is 1, and usually taken).

The pair ``s = x_new - x, y = g_new - g`` always comes from one batch: when the batch changes, the
caller says so (``step(closure, fresh=True)``), and the point is evaluated anew.

Use float64: in float32 the search ends when the loss changes in its seventh digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dcase.errors import DivergedError, OptionError
from dcase.training.line_search import Trial, strong_wolfe

IDLE = 10  # iterations in a row that gain nothing but rounding, after which the search has ended


class QuasiNewton(torch.optim.Optimizer):
    """Direction, line search, and what is kept from one iteration to the next.

    Subclasses say what they learn from a step, and the direction that follows. The ``lr`` of the
    parameter group is the step length last accepted; no learning rate goes in.

    Args:
        params: Parameters, all float32 or all float64, on one device.
        c1: Sufficient decrease in the line search.
        c2: Largest slope at an accepted point, relative to the start.

    Attributes:
        accepted: Which call of the closure, from 0, of the last step was at the point where the
            parameters are now; None if none was (the step moved nothing).
    """

    def __init__(self, params: Iterable[Any], *, c1: float = 1e-4, c2: float = 0.9):
        super().__init__(params, {"lr": 1.0})
        if len(self.param_groups) != 1:
            raise OptionError("a quasi-Newton optimizer takes one group of parameters")
        self.parameters: list[Tensor] = self.param_groups[0]["params"]
        kinds = {p.dtype for p in self.parameters}
        if len(kinds) != 1 or not kinds <= {torch.float32, torch.float64}:
            names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise OptionError(
                f"a quasi-Newton optimizer needs all parameters in float32, or all in float64 "
                f"(better), got {names}"
            )
        self.c1, self.c2 = c1, c2
        self.epsilon = torch.finfo(self.parameters[0].dtype).eps
        self.size = sum(p.numel() for p in self.parameters)
        self.accepted: int | None = None
        self.memory.update(stalled=False, idle=0, updates=0, restarts=0)

    @property
    def memory(self) -> dict[str, Any]:
        """All that the next iteration depends on; part of ``state_dict()``."""
        return self.state[self.parameters[0]]

    @property
    def kept(self) -> bool:
        """Whether loss and gradient of the present point are known."""
        return "gradient" in self.memory

    @property
    def stalled(self) -> bool:
        """Whether no further decrease was found, even down the gradient: the end, on this batch."""
        return self.memory["stalled"]

    # ------------------------------------------------------------ for subclasses

    def _direction(self, gradient: Tensor) -> Tensor:
        """Where to go from the point with this gradient [size]."""
        raise NotImplementedError

    def _learn(self, s: Tensor, y: Tensor, start: Trial, found: Trial) -> None:
        """Take a step and the change of the gradient in; ``s . y`` is positive."""
        raise NotImplementedError

    def _restart(self) -> None:
        """Forget all curvature."""
        self.memory["updates"] = 0
        self.memory["restarts"] += 1

    def _forget_point(self) -> None:
        """Forget what belongs to the present point and batch."""
        self.memory.pop("loss", None)
        self.memory.pop("gradient", None)

    # ------------------------------------------------------------ an iteration

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any], fresh: bool = False
    ) -> float:
        """One iteration.

        Args:
            closure: Computes loss and gradients at the present parameters, and returns the loss.
            fresh: The loss is another function than in the last step.

        Returns:
            The loss at the new point.

        Raises:
            DivergedError: If the loss or the gradient is not finite where the step starts.
        """
        calls = 0

        def evaluate() -> tuple[float, Tensor]:
            nonlocal calls
            with torch.enable_grad():
                loss = closure()
            calls += 1
            value = loss.item() if isinstance(loss, Tensor) else float(loss)
            return value, self._gradient()

        memory = self.memory
        self.accepted = None
        if fresh:
            self._forget_point()
            memory["stalled"], memory["idle"] = False, 0
        if not self.kept:
            memory["loss"], memory["gradient"] = evaluate()
            self.accepted = 0
        loss, gradient = memory["loss"], memory["gradient"]
        if not (math.isfinite(loss) and bool(torch.isfinite(gradient).all())):
            self._forget_point()
            raise DivergedError("the loss or its gradient is NaN or infinite where a step starts")
        if memory["stalled"]:
            return loss

        x = torch.cat([p.flatten() for p in self.parameters])

        def at(step: float) -> Trial:
            self._move(x, step, direction)
            loss, g = evaluate()
            return Trial(step, loss, float(torch.dot(g, direction)), g, calls - 1)

        found = None
        while found is None:
            direction = self._direction(gradient)
            start = Trial(0.0, loss, float(torch.dot(gradient, direction)), gradient)
            if math.isfinite(start.slope) and start.slope < 0:
                found = strong_wolfe(
                    at,
                    start,
                    self._first_step(gradient),
                    epsilon=self.epsilon,
                    c1=self.c1,
                    c2=self.c2,
                )
            if found is None:
                if memory["updates"] == 0:  # that was the steepest descent
                    self._move(x, 0.0, direction)
                    memory["stalled"] = True
                    return loss
                self._restart()
        if found.number != calls - 1:
            self._move(x, found.step, direction)

        s, y = found.step * direction, found.gradient - gradient
        # True for any step with both conditions, but for rounding.
        if float(torch.dot(s, y)) > self.epsilon * float(s.norm() * y.norm()):
            self._learn(s, y, start, found)
        else:
            self._forget_point()
        memory["loss"], memory["gradient"] = found.loss, found.gradient
        gained = loss - found.loss > self.epsilon * abs(loss)
        memory["idle"] = 0 if gained else memory["idle"] + 1
        memory["stalled"] = memory["idle"] >= IDLE
        self.accepted = found.number
        self.param_groups[0]["lr"] = found.step
        return found.loss

    def _first_step(self, gradient: Tensor) -> float:
        """1 for a direction that knows curvature; down the gradient, a length of 1 at most."""
        if self.memory["updates"]:
            return 1.0
        return min(1.0, 1.0 / float(gradient.norm()))

    def _gradient(self) -> Tensor:
        parts = [
            p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in self.parameters
        ]
        return torch.cat(parts)

    def _move(self, x: Tensor, step: float, direction: Tensor) -> None:
        """Put the parameters at ``x + step * direction``."""
        point = torch.add(x, direction, alpha=step) if step else x
        parts = point.split([p.numel() for p in self.parameters])
        torch._foreach_copy_(
            self.parameters, [v.view_as(p) for v, p in zip(parts, self.parameters, strict=True)]
        )


class LBFGS(QuasiNewton):
    """Limited-memory BFGS: curvature from the last ``history`` steps (the two-loop recursion).

    Args:
        params: Parameters.
        history: Pairs to keep, each of twice the size of the parameters.
        options: See :class:`QuasiNewton`.
    """

    def __init__(self, params: Iterable[Any], history: int = 100, **options: float):
        super().__init__(params, **options)
        self.history = history
        self.memory.update(steps=[], changes=[], products=[])

    def _direction(self, gradient: Tensor) -> Tensor:
        steps, changes = self.memory["steps"], self.memory["changes"]
        d = gradient.neg()
        if not steps:
            return d
        pairs = list(zip(steps, changes, self.memory["products"], strict=True))
        shares = []
        for s, y, product in reversed(pairs):
            share = torch.dot(s, d) / product
            d.addcmul_(y, share, value=-1)
            shares.append(share)
        s, y, product = pairs[-1]
        d *= product / torch.dot(y, y)
        for (s, y, product), share in zip(pairs, reversed(shares), strict=True):
            d.addcmul_(s, share - torch.dot(y, d) / product)
        return d

    def _learn(self, s: Tensor, y: Tensor, start: Trial, found: Trial) -> None:
        memory = self.memory
        product = torch.dot(s, y)
        for name, value in (("steps", s), ("changes", y), ("products", product)):
            memory[name] = [*memory[name], value][-self.history :]
        memory["updates"] += 1

    def _restart(self) -> None:
        super()._restart()
        self.memory.update(steps=[], changes=[], products=[])
