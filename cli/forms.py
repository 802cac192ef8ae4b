"""One line on which form of a potential is at work, and why not the compiled one."""

from __future__ import annotations

from typing import Any


def form_of(calculator: Any) -> str:
    """The form that a :class:`~dcase.potentials.calculator.DCCalculator` evaluates."""
    return f"form    {calculator.form}"


def training_form_of(potential: Any, kernel: Any, wanted: bool) -> str:
    """How a training gets its gradients.

    Args:
        potential: Trained.
        kernel: Its compiled gradient, or None.
        wanted: Whether the recipe allows it.
    """
    from dcase.potentials.kernels.forms import form_of_training

    return f"form    {form_of_training(potential, kernel, wanted)}"


def form_of_recipe(recipe: Any, elements: list[int], device: Any) -> str:
    """How trainings by a recipe will get their gradients."""
    from dcase.potentials.fitting.fit_potential import untrained
    from dcase.potentials.kernels.forms import training_form

    potential, wanted = untrained(recipe, elements).to(device), recipe.acceleration.compiled
    return training_form_of(potential, training_form(potential)[0] if wanted else None, wanted)
