"""One line on which form of a potential is at work, and why not the compiled one."""

from __future__ import annotations

from typing import Any

from dcase.errors import OptionError


def form_of(calculator: Any) -> str:
    """The form that a :class:`~dcase.potentials.calculator.DCCalculator` evaluates."""
    if calculator.deployed is not None:
        return "form    compiled"
    if calculator.optimize is False:
        return "form    PyTorch, as asked"
    from dcase.potentials.kernels.deployed import deploy

    try:
        deploy(calculator.potential)
    except OptionError as error:
        return f"form    PyTorch, which is slower: {error}"
    return "form    PyTorch"


def training_form_of(potential: Any, kernel: Any, wanted: bool) -> str:
    """How a training gets its gradients.

    Args:
        potential: Trained.
        kernel: Its compiled gradient, or None.
        wanted: Whether the recipe allows it.
    """
    if kernel is not None:
        return "form    compiled gradient"
    if not wanted:
        return "form    autograd, as the recipe says"
    from dcase.potentials.kernels.training import why_none
    from dcase.potentials.networks.registry import get_architecture

    if get_architecture(potential.architecture).training_kernel is None:
        reason = f"{potential.architecture} has no compiled gradient"
    else:
        reason = why_none(potential)
    return f"form    autograd: {reason}" if reason else "form    autograd"
