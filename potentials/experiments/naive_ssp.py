"""The shifted softplus operation by operation, as printed, beside the stable form and exact values.

Only for :mod:`dcase.potentials.experiments.ssp_failure`: no activation that can be chosen by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcase.activations import ssp

OVERFLOW = math.log(torch.finfo(torch.float32).max)
"""Largest x with a finite e^x in float32, 88.72."""
INPUTS = (-1e4, -100.0, -10.0, 0.0, 10.0, 20.0, 40.0, 50.0, 80.0, 88.0, 89.0, 300.0, 1e3, 1e4)


class NaiveShiftedSoftplus(nn.Module):
    """``ln(e^x / 2 + 1/2)`` operation by operation, as the report first wrote it.

    Only for this experiment: it is inf above 88.72 and its derivatives NaN; its second derivative,
    which training on forces needs, is wrong from about 44, where its square overflows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x, any shape."""
        return torch.log(0.5 * torch.exp(x) + 0.5)


def activation_table(inputs: Sequence[float] = INPUTS) -> list[dict[str, float]]:
    """Value, slope and curvature in float32 of both forms, by autograd, beside exact ones.

    Args:
        inputs: Where.

    Returns:
        A dictionary an input: ``x``, ``exp``, and ``value``, ``slope``, ``curvature`` each with
        ``_naive``, ``_ours`` and ``_exact``.
    """
    rows = []
    for x in inputs:
        row = {"x": float(x), "exp": float(torch.exp(torch.tensor(x, dtype=torch.float32)))}
        for name, function in (("naive", NaiveShiftedSoftplus()), ("ours", ssp)):
            at = torch.tensor(x, dtype=torch.float32, requires_grad=True)
            value = function(at)
            (slope,) = torch.autograd.grad(value, at, create_graph=True)
            (curvature,) = torch.autograd.grad(slope, at)
            for word, number in (("value", value), ("slope", slope), ("curvature", curvature)):
                row[f"{word}_{name}"] = number.item()
        row |= exact_ssp(float(x))
        rows.append(row)
    return rows


def exact_ssp(x: float) -> dict[str, float]:
    """``value_exact``, ``slope_exact`` and ``curvature_exact`` in float64, without cancellation."""
    small = math.exp(-abs(x))
    return {
        "value_exact": max(x, 0.0) + math.log1p(small) - math.log(2.0),
        "slope_exact": (1.0 if x > 0 else small) / (1.0 + small),
        "curvature_exact": small / (1.0 + small) ** 2,
    }
