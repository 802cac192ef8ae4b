"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv 2409.11321).

Of every weight matrix W [m, n] with gradient G, the averages of ``G G^T`` [m, m] and ``G^T G``
[n, n] are kept; their eigenvectors Q_L, Q_R turn the gradient, ``G' = Q_L^T G Q_R``; Adam's second
moment and its division happen there, and the result is turned back. The eigenvectors follow the
averages by one step of orthogonal iteration now and then. Vectors (biases) get plain Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class SOAP(torch.optim.Optimizer):
    """Adam in the eigenbasis of the Kronecker-factored second moment of the gradient.

    The first step of a matrix only sets its basis: in the eigenbasis of a single gradient, that
    gradient is diagonal, and Adam would blow up the rounding beside the diagonal.

    Args:
        params: Parameters; tensors of more than two dimensions are taken as matrices whose rows
            are their first one.
        lr: Learning rate.
        betas: Adam's decays; the second is also that of the preconditioner.
        eps: Adam's epsilon.
        weight_decay: Decoupled, as in AdamW.
        every: Steps between updates of the basis.
        largest: Dimensions beyond it are left in the coordinates they have (0: plain Adam).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        every: int = 10,
        largest: int = 2048,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"every": every, "largest": largest})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step.

        Args:
            closure: Evaluated first, if given, as in torch's own optimisers.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if p.dim() > 1:
            g = g.reshape(len(p), -1)
        if not state:
            state.update(count=0, mean=torch.zeros_like(g), square=torch.zeros_like(g))
            state.update(_factors(g, group["largest"]))
            if "left" in state or "right" in state:
                self._average(state, g, beta2)
                for side in ("left", "right"):
                    if side in state:
                        state[f"{side}_basis"] = torch.linalg.eigh(state[side])[1].flip(1)
                return
        state["count"] += 1
        count = state["count"]
        state["mean"].lerp_(g, 1 - beta1)
        turned = _turn(g, state)
        state["square"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        root = (state["square"].sqrt() / math.sqrt(1 - beta2**count)).add_(group["eps"])
        update = _turn(_turn(state["mean"], state) / root, state, back=True)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update.view_as(p), alpha=-group["lr"] / (1 - beta1**count))
        self._average(state, g, beta2)
        if count % group["every"] == 0:
            _follow(state)

    @staticmethod
    def _average(state: dict[str, Any], g: Tensor, beta2: float) -> None:
        if "left" in state:
            state["left"].lerp_(g @ g.T, 1 - beta2)
        if "right" in state:
            state["right"].lerp_(g.T @ g, 1 - beta2)


def _factors(g: Tensor, largest: int) -> dict[str, Tensor]:
    if g.dim() != 2:
        return {}
    sizes = {"left": g.shape[0], "right": g.shape[1]}
    # A dimension of one has nothing to turn.
    return {side: g.new_zeros(n, n) for side, n in sizes.items() if 1 < n <= largest}


def _turn(g: Tensor, state: dict[str, Any], back: bool = False) -> Tensor:
    """Into the eigenbasis, ``Q_L^T g Q_R``, or back."""
    left, right = state.get("left_basis"), state.get("right_basis")
    if left is not None:
        g = (left if back else left.T) @ g
    if right is not None:
        g = g @ (right.T if back else right)
    return g


def _follow(state: dict[str, Any]) -> None:
    """One step of orthogonal iteration; the second moment moves with its eigenvectors' order."""
    for axis, side in enumerate(("left", "right")):
        if side not in state:
            continue
        average, basis = state[side], state[f"{side}_basis"]
        product = average @ basis
        order = (basis * product).sum(0).argsort(descending=True, stable=True)
        state["square"] = state["square"].index_select(axis, order)
        state[f"{side}_basis"] = torch.linalg.qr(product[:, order])[0]
