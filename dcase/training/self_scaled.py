r"""Quasi-Newton with a dense inverse Hessian: BFGS, self-scaled BFGS and self-scaled Broyden.

With ``s`` the step, ``y`` the change of the gradient and ``H`` the inverse Hessian:

    H <- 1/tau [H - H y y^T H / y^T H y + phi v v^T] + s s^T / y^T s
    v  = sqrt(y^T H y) [s / y^T s - H y / y^T H y]

| symbol | here | |
|---|---|---|
| b = s^T H^-1 s / y^T s | ``b`` | curvature expected over curvature found; H^-1 s = -step g |
| h = y^T H y / y^T s | ``h`` | the same of the inverse |
| a = b h - 1 >= 0 | ``a`` | |
| phi | ``phi`` | 1: BFGS, 0: DFP |
| tau | ``tau`` | scaling, <= 1; 1: none |

Self-scaling (Al-Baali, Comput. Optim. Appl. 9, 191, 1998) takes H as too small where the curvature
found is below that expected (b > 1). Proposed for PINNs by Urban, Stefanou and Pons
(arXiv 2405.04230) and Kiyani et al. (arXiv 2501.16371).

The update is of rank two, ``H <- H / tau + p p^T -+ q q^T``. It is put off to the product ``H g``
of the next iteration and done with it, some rows at a time while they are in the cache; the new
direction follows from old products. An iteration so reads and writes the matrix once, and the
matrix stays symmetric bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dcase.errors import OptionError
from dcase.training.line_search import Trial
from dcase.training.quasi_newton import QuasiNewton

KINDS = ("bfgs", "ssbfgs", "ssbroyden")
LARGEST = 12_000  # parameters: 1.15 GB in float64
GENEROUS = 10.0  # H starts as this times the step over the change of gradient, 1 / curvature
ROWS = 48  # at a time on a CPU; 8000 of them in float64 are 3 MB


def broyden_numbers(kind: str, b: float, h: float, size: int) -> tuple[float, float]:
    """The numbers ``phi`` and ``tau`` of the update (see the module's text).

    Args:
        kind: ``"bfgs"``, ``"ssbfgs"`` or ``"ssbroyden"`` (of Urban et al.; theta below is the place
            in Broyden's family of updates of the Hessian: 0 BFGS, 1 DFP).
        b: Curvature expected over that found.
        h: The same of the inverse.
        size: Number of parameters.
    """
    tau = min(1.0, 1.0 / b)
    if kind == "bfgs":
        return 1.0, 1.0
    if kind == "ssbfgs":
        return 1.0, tau
    a = max(b * h - 1.0, 1e-15)
    rho = min(1.0, h * (1.0 - math.sqrt(a / (1.0 + a))))
    # Within these bounds the updated matrix is positive definite.
    theta = max((rho - 1.0) / a, min(1.0 / rho, (1.0 - b) / b))
    sigma = 1.0 + a * theta
    root = sigma ** (-1.0 / max(size - 1, 1))
    if theta > 0:
        tau *= min(root, 1.0 / theta)
    else:
        tau = min(tau * root, sigma)
    return (1.0 - theta) / sigma, tau


class SelfScaled(QuasiNewton):
    """BFGS or a self-scaled member of Broyden's family, with a dense matrix.

    Args:
        params: Parameters, at most :data:`LARGEST` numbers.
        kind: ``"bfgs"``, ``"ssbfgs"`` or ``"ssbroyden"``.
        options: See :class:`QuasiNewton`.

    Raises:
        OptionError: If there are too many parameters for a matrix.
    """

    def __init__(self, params: Iterable[Any], kind: str = "ssbroyden", **options: float):
        super().__init__(params, **options)
        if self.size > LARGEST:
            gigabytes = self.size**2 * self.parameters[0].element_size() / 1e9
            raise OptionError(
                f"{kind} keeps a matrix of parameters times parameters, {gigabytes:.1f} GB for "
                f"{self.size}; beyond {LARGEST} parameters use optimizer lbfgs"
            )
        self.kind = kind

    def _direction(self, gradient: Tensor) -> Tensor:
        if not self.memory["updates"]:
            return gradient.neg()
        known = self.memory.get("next")
        return self._product(gradient).neg_() if known is None else known

    def _forget_point(self) -> None:
        super()._forget_point()
        self.memory.pop("next", None)

    def _restart(self) -> None:
        super()._restart()
        self.memory.pop("next", None)

    def _learn(self, s: Tensor, y: Tensor, start: Trial, found: Trial) -> None:
        memory = self.memory
        sy = float(torch.dot(s, y))
        if memory["updates"]:
            hg = self._product(found.gradient)
            hy = hg + s / found.step  # as the direction was -H g
            sbs = -found.step * float(torch.dot(s, start.gradient))
        else:
            scale = GENEROUS * float(torch.dot(s, s)) / sy
            self._begin(scale)
            hg, hy = scale * found.gradient, scale * y
            sbs = float(torch.dot(s, s)) / scale
        yhy = float(torch.dot(y, hy))
        b, h = sbs / sy, yhy / sy
        # All are positive but for rounding and overflow.
        if not (0 < b < math.inf and 0 < h < math.inf):
            self._restart()
            return
        phi, tau = broyden_numbers(self.kind, b, h, self.size)

        # The update as [s, hy] [[ss, sh], [sh, hh]] [s, hy]^T, of unit vectors s and hy ...
        s_norm, hy_norm = float(s.norm()), float(hy.norm())
        ss = (phi * h / tau + 1.0) / sy * s_norm**2
        sh = -phi / tau / sy * s_norm * hy_norm
        hh = (phi - 1.0) / tau / yhy * hy_norm**2
        # ... and along its axes: +-p p^T +- q q^T is symmetric also in floating point.
        middle, radius = (ss + hh) / 2, math.hypot((ss - hh) / 2, sh)
        angle = math.atan2(2 * sh, ss - hh) / 2
        axes = torch.stack([s / s_norm, hy / hy_norm])  # [2, size]
        turn = torch.tensor(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]],
            dtype=s.dtype,
            device=s.device,
        )
        values = torch.tensor([middle + radius, middle - radius], dtype=s.dtype, device=s.device)
        pq = values.abs().sqrt().unsqueeze(1) * (turn @ axes)
        signed = values.sign().unsqueeze(1) * pq
        memory.update(grow=1.0 / tau, left=pq.T.contiguous(), right=signed)  # [size, 2], [2, size]
        memory["next"] = -(hg / tau + signed.T @ (pq @ found.gradient))
        memory["updates"] += 1

    def _begin(self, scale: float) -> None:
        """H = scale times the identity."""
        matrix = self.memory.get("matrix")
        if matrix is None:
            matrix = self.parameters[0].new_zeros(self.size, self.size)
            self.memory["matrix"] = matrix
        else:
            matrix.zero_()
        matrix.diagonal().fill_(scale)
        self.memory["left"] = None

    def _product(self, vector: Tensor) -> Tensor:
        """``H vector``, with the update that was put off."""
        matrix, left, right = (self.memory[name] for name in ("matrix", "left", "right"))
        if left is None:
            return torch.mv(matrix, vector)
        grow, result = self.memory["grow"], torch.empty_like(vector)
        rows = ROWS if matrix.device.type == "cpu" else self.size
        for first in range(0, self.size, rows):
            part = matrix[first : first + rows]
            part.addmm_(left[first : first + rows], right, beta=grow)
            torch.mv(part, vector, out=result[first : first + rows])
        self.memory["left"] = None
        return result
