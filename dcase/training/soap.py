"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv 2409.11321).

Of every weight matrix W [m, n] with gradient G, the averages of ``G G^T`` [m, m] and ``G^T G``
[n, n] are kept; their eigenvectors Q_L, Q_R turn the gradient, ``G' = Q_L^T G Q_R``; Adam's second
moment and its division happen there, and the result is turned back. The eigenvectors follow the
averages by one step of orthogonal iteration now and then. Vectors (biases) get plain Adam.

A weight that is made of several matrices, such as a layer of which three parts go different ways,
says so by an attribute ``block_shape``: each block has a basis of its own. All matrices of one
shape are worked on together, which is what makes it fast on small networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class SOAP(torch.optim.Optimizer):
    """Adam in the eigenbasis of the Kronecker-factored second moment of the gradient.

    The first step of a matrix only sets its basis: in the eigenbasis of a single gradient, that
    gradient is diagonal, and Adam would blow up the rounding beside the diagonal.

    What is kept of all matrices of one shape, stacked, is in the state of the first of them. One
    that has had a gradient and then has none is taken as having one of zeros.

    Args:
        params: Parameters; tensors of more than two dimensions are taken as matrices whose rows
            are their first one. With an attribute ``block_shape`` (rows, columns): as matrices of
            this shape, beside and below each other.
        lr: Learning rate.
        betas: Adam's decays; the second is also that of the preconditioner.
        eps: Adam's epsilon.
        weight_decay: Decoupled, as in AdamW.
        every: Steps between updates of the basis.
        largest: Dimensions beyond it are left in the coordinates they have (0: plain Adam).

    Raises:
        ValueError: If blocks of that shape do not fill the parameter.
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
        self._stacks: list[tuple[dict[str, Any], _Stack]] = []

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
        self._gather()
        for group, stack in self._stacks:
            state = self.state[stack.members[0]]
            update = self._update(state, stack.gradients(), group, stack.shape is not None)
            if update is None:
                continue
            members: list[Tensor] = list(stack.members)
            if group["weight_decay"]:
                torch._foreach_mul_(members, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(members, stack.apart(update))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's.

        Raises:
            ValueError: If it is a state from before matrices were stacked.
        """
        kept = state_dict["state"].values()
        if any("mean" in state and state["mean"].dim() != 3 for state in kept):
            raise ValueError("an older SOAP")
        super().load_state_dict(state_dict)

    def _gather(self) -> None:
        """Stack the parameters that have a gradient for the first time."""
        known = {id(p) for _, stack in self._stacks for p in stack.members}
        for group in self.param_groups:
            new: dict[tuple[Any, ...], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None and id(p) not in known:
                    new.setdefault((_block_shape(p), p.dtype, p.device), []).append(p)
            self._stacks += [(group, _Stack(shape, ps)) for (shape, *_), ps in new.items()]

    def _update(
        self, state: dict[str, Any], g: Tensor, group: dict[str, Any], turns: bool
    ) -> Tensor | None:
        """What to add to the stack, [n, rows, columns] like ``g``; None: nothing yet.

        Args:
            state: Of the stack, changed.
            g: Its gradients.
            group: Options.
            turns: Whether it has a basis, if it is small enough for one.
        """
        beta1, beta2 = group["betas"]
        if not state:
            state.update(count=0, mean=torch.zeros_like(g), square=torch.zeros_like(g))
            if turns:
                state.update(_factors(g, group["largest"]))
            if "left" in state or "right" in state:
                self._average(state, g, beta2)
                for side in ("left", "right"):
                    if side in state:
                        state[f"{side}_basis"] = torch.linalg.eigh(state[side])[1].flip(-1)
                return None
        state["count"] += 1
        count = state["count"]
        turned = _turn(g, state)
        state["mean"].lerp_(turned, 1 - beta1)  # in the basis, and moved along with it
        state["square"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        root = (state["square"].sqrt() / math.sqrt(1 - beta2**count)).add_(group["eps"])
        update = _turn(state["mean"] / root, state, back=True)
        self._average(state, g, beta2)
        if count % group["every"] == 0:
            _follow(state)
        return update.mul_(-group["lr"] / (1 - beta1**count))

    @staticmethod
    def _average(state: dict[str, Any], g: Tensor, beta2: float) -> None:
        if "left" in state:
            state["left"].baddbmm_(g, g.mT, beta=beta2, alpha=1 - beta2)
        if "right" in state:
            state["right"].baddbmm_(g.mT, g, beta=beta2, alpha=1 - beta2)


class _Stack:
    """Parameters made of blocks of one shape: [rows, columns], or all vectors end to end."""

    def __init__(self, shape: tuple[int, int] | None, members: list[nn.Parameter]):
        self.shape, self.members = shape, members

    def gradients(self) -> Tensor:
        """Of all blocks, [n, rows, columns]; of vectors [1, 1, their lengths together]."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.members]
        if self.shape is None:
            return torch.cat([part.reshape(-1) for part in parts]).view(1, 1, -1)
        rows, columns = self.shape
        return torch.cat(
            [
                part.reshape(len(part) // rows, rows, -1, columns).transpose(1, 2).flatten(0, 1)
                for part in parts
            ]
        )

    def apart(self, blocks: Tensor) -> list[Tensor]:
        """Inverse of :meth:`gradients`: a tensor for each parameter."""
        if self.shape is None:
            parts = blocks.view(-1).split([p.numel() for p in self.members])
            return [part.view_as(p) for part, p in zip(parts, self.members, strict=True)]
        rows, columns = self.shape
        parts = blocks.split([p.numel() // (rows * columns) for p in self.members])
        return [
            part.view(len(p) // rows, -1, rows, columns).transpose(1, 2).reshape(p.shape)
            for part, p in zip(parts, self.members, strict=True)
        ]


def _block_shape(p: nn.Parameter) -> tuple[int, int] | None:
    """Of the matrices that a parameter is made of; None for vectors and scalars."""
    if p.dim() < 2:
        return None
    whole = (len(p), p.numel() // len(p))
    rows, columns = getattr(p, "block_shape", whole)
    if whole[0] % rows or whole[1] % columns:
        raise ValueError(f"blocks of {rows} x {columns} do not fill {whole[0]} x {whole[1]}")
    return rows, columns


def _factors(g: Tensor, largest: int) -> dict[str, Tensor]:
    sizes = {"left": g.shape[1], "right": g.shape[2]}
    # A dimension of one has nothing to turn.
    return {
        side: g.new_zeros(len(g), size, size) for side, size in sizes.items() if 1 < size <= largest
    }


def _turn(g: Tensor, state: dict[str, Any], back: bool = False) -> Tensor:
    """Into the eigenbasis, ``Q_L^T g Q_R``, or back."""
    left, right = state.get("left_basis"), state.get("right_basis")
    if left is not None:
        g = (left if back else left.mT) @ g
    if right is not None:
        g = g @ (right.mT if back else right)
    return g


def _follow(state: dict[str, Any]) -> None:
    """One step of orthogonal iteration; the moments move along with the basis."""
    mean = _turn(state["mean"], state, back=True)
    for axis, side in ((1, "left"), (2, "right")):
        if side not in state:
            continue
        product = state[side] @ state[f"{side}_basis"]
        order = (state[f"{side}_basis"] * product).sum(1).argsort(descending=True, stable=True)
        along = order.unsqueeze(3 - axis).expand_as(state["square"])
        state["square"] = state["square"].gather(axis, along)
        product = product.gather(2, order.unsqueeze(1).expand_as(product))
        state[f"{side}_basis"] = torch.linalg.qr(product)[0]
    state["mean"] = _turn(mean, state)
