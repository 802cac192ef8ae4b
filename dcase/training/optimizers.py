"""The optimiser that the settings name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dcase.training.quasi_newton import LBFGS
from dcase.training.self_scaled import SelfScaled
from dcase.training.settings import TrainSettings
from dcase.training.soap import SOAP


def make_optimizer(
    settings: TrainSettings, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """An optimiser of ``parameters``.

    Raises:
        OptionError: If it cannot be had for these parameters (too many of them, their dtypes).
    """
    s = settings
    if s.optimizer == "lbfgs":
        return LBFGS(parameters, s.history)
    if s.quasi_newton:
        return SelfScaled(parameters, s.optimizer)
    betas = (s.beta1, s.beta2)
    if s.optimizer == "soap":
        groups, every = _groups(parameters), s.basis_every
        return SOAP(groups, s.lr, betas, s.eps, weight_decay=s.weight_decay, every=every)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
    # On small models Adam takes a good part of a step; fused it takes a third of "foreach".
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return kind(
        _groups(parameters),
        lr=s.lr,
        weight_decay=s.weight_decay,
        betas=betas,
        eps=s.eps,
        amsgrad=s.amsgrad,
        fused=True if fused else None,
        foreach=None if fused else True,
    )


def _groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameters by the share of the learning rate that they take (``lr_factor``; else all)."""
    groups: dict[float, list[nn.Parameter]] = {}
    for p in parameters:
        groups.setdefault(float(getattr(p, "lr_factor", 1.0)), []).append(p)
    return [{"params": members, "factor": factor} for factor, members in groups.items()]
