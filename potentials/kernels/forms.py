"""Which form of a potential is at work, and why it is not the compiled one."""

from __future__ import annotations

from typing import Any

import torch

from dcase.errors import OptionError
from dcase.potentials.kernels.compiled import PotentialLike
from dcase.potentials.networks.architecture import hook
from dcase.potentials.networks.registry import get_architecture

COMPILED, PYTORCH = "compiled", "PyTorch"


def training_form(potential: PotentialLike) -> tuple[Any, str]:
    """The compiled gradient that the architecture brings for a potential.

    Returns:
        The kernel, or None; and why there is none, or "".
    """
    architecture = get_architecture(potential.architecture)
    if architecture.training_kernel is None:
        return None, f"{architecture.name} has no compiled gradient"
    try:
        return hook(architecture.training_kernel)(potential), ""
    except OptionError as error:
        return None, str(error)


def form_line(compiled: bool, reason: str = "") -> str:
    """The form in a few words, for displays and records.

    Args:
        compiled: Whether it is the compiled one.
        reason: Why it is not; of the compiled one, what else there is to say.
    """
    if not compiled:
        return f"{PYTORCH} - {reason}" if reason else PYTORCH
    threads = torch.get_num_threads()
    line = f"{COMPILED} (C, {f'up to {threads} threads' if threads > 1 else '1 thread'})"
    return f"{line} - {reason}" if reason else line


def form_of_training(potential: PotentialLike, kernel: Any, wanted: bool) -> str:
    """How a training gets its gradients, in a few words.

    Args:
        potential: Trained.
        kernel: Its compiled gradient, or None.
        wanted: Whether the recipe allows it.
    """
    reason = "" if kernel else training_form(potential)[1] if wanted else "as the recipe says"
    return form_line(kernel is not None, reason)
