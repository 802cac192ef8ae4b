"""Small symmetric systems, many at once: (J W J^T) x = b of every sample.

For distances the matrix is that of the scalar products of the rods' directions, times a constant
that says which rods share a node: it falls into blocks of connected rods, which for a chain are
tridiagonal and for a rigid triangle 3 x 3.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

LONG = 24  # links of a chain from which the recurrence is faster than the dense factorisation


class Solver(Protocol):
    """Solves with a matrix that is factorised already."""

    def solve(self, b: Tensor) -> Tensor:
        """The solution [B, m] for a right-hand side [B, m]."""
        ...


class SymmetricSolver:
    """Positive semi-definite matrices [..., m, m] by Cholesky.

    Equations that say the same thing twice make a matrix singular; a share of 1e-12 (1e-6 in single
    precision) of its trace on the diagonal then chooses the smallest of the solutions.
    """

    def __init__(self, matrix: Tensor):
        factor, info = torch.linalg.cholesky_ex(matrix)
        if bool((info != 0).any()):
            small = 1e-12 if matrix.dtype == torch.float64 else 1e-6
            trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
            eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
            least = torch.finfo(matrix.dtype).tiny ** 0.5
            factor, _ = torch.linalg.cholesky_ex(matrix + (small * trace + least) * eye)
        self.factor = factor

    def solve(self, b: Tensor) -> Tensor:
        """The solution for a right-hand side [..., m]."""
        return torch.cholesky_solve(b.unsqueeze(-1), self.factor).squeeze(-1)


class _Three:
    """3 x 3 matrices by their cofactors: a dozen products instead of a factorisation each."""

    def __init__(self, matrix: Tensor):
        a, b, c = matrix.unbind(-2)
        self.cofactors = torch.stack(
            [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1
        )
        determinant = (a * self.cofactors[..., 0]).sum(-1, keepdim=True)
        # The determinant of a singular matrix is rounding; the floor keeps the step finite.
        scale = matrix.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) / 3.0
        floor = torch.finfo(matrix.dtype).eps * scale**3 + torch.finfo(matrix.dtype).tiny
        self.determinant = determinant.clamp_min(floor)

    def solve(self, b: Tensor) -> Tensor:
        return (self.cofactors @ b.unsqueeze(-1)).squeeze(-1) / self.determinant


class _Tridiagonal:
    """Symmetric tridiagonal matrices by the recurrence of Thomas: work linear in their size."""

    def __init__(self, matrix: Tensor):
        diagonal = matrix.diagonal(dim1=-2, dim2=-1).unbind(-1)
        self.off = matrix.diagonal(offset=1, dim1=-2, dim2=-1).unbind(-1)
        pivots = [diagonal[0]]
        for d, off in zip(diagonal[1:], self.off, strict=True):
            pivots.append(d - off * off / pivots[-1])
        self.pivots = pivots

    def solve(self, b: Tensor) -> Tensor:
        parts = list(b.unbind(-1))
        for i, off in enumerate(self.off):
            parts[i + 1] = parts[i + 1] - off / self.pivots[i] * parts[i]
        parts[-1] = parts[-1] / self.pivots[-1]
        for i in reversed(range(len(self.off))):
            parts[i] = (parts[i] - self.off[i] * parts[i + 1]) / self.pivots[i]
        return torch.stack(parts, -1)


class BlockSolver:
    """Makes solvers of matrices ``shared * (g g^T)``, elementwise, with directions g [B, m, d].

    Args:
        shared: [m, m] constant; two equations of different blocks have 0 here.
    """

    def __init__(self, shared: Tensor):
        blocks = _connected(shared != 0)
        if len({len(b) for b in blocks}) > 1:
            blocks = [list(range(len(shared)))]
        self.size = len(blocks[0])
        order = torch.tensor([i for block in blocks for i in block])
        plain = bool((order == torch.arange(len(order))).all())
        self.order = None if plain else order
        self.inverse = None if plain else order.argsort()
        stacked = torch.stack([shared[b][:, b] for b in blocks])  # [blocks, size, size]
        self.shared = {(stacked.dtype, stacked.device): stacked}
        band = stacked.triu(2).abs().sum() == 0
        self.kind = SymmetricSolver
        if self.size == 3:
            self.kind = _Three  # type: ignore[assignment]
        elif bool(band) and self.size >= LONG:
            self.kind = _Tridiagonal  # type: ignore[assignment]

    def at(self, directions: Tensor) -> Solver:
        """The solver for directions [B, m, d]."""
        key = (directions.dtype, directions.device)
        if key not in self.shared:
            self.shared[key] = next(iter(self.shared.values())).to(*key[::-1])
        g = directions if self.order is None else directions[:, self.order]
        g = g.reshape(len(g), -1, self.size, g.shape[-1])
        return _Blocks(self, self.kind(self.shared[key] * (g @ g.mT)))


class _Blocks:
    """A block-diagonal solver that takes and gives [B, m]."""

    def __init__(self, layout: BlockSolver, blocks: Solver):
        self.layout, self.blocks = layout, blocks

    def solve(self, b: Tensor) -> Tensor:
        layout = self.layout
        ordered = b if layout.order is None else b[:, layout.order]
        x = self.blocks.solve(ordered.reshape(len(b), -1, layout.size)).reshape(b.shape)
        return x if layout.inverse is None else x[:, layout.inverse]


def _connected(linked: Tensor) -> list[list[int]]:
    """Sets of indices that ``linked`` [m, m] connects, each in ascending order."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    count, label = connected_components(csr_array(linked.numpy()), directed=False)
    return [[i for i, k in enumerate(label) if k == block] for block in range(count)]
