"""Architectures by name, their hyper-parameters and size presets."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from ase.data import atomic_numbers
from torch import nn

from dcase.activations import get_activation
from dcase.errors import OptionError
from dcase.potentials.potential import Potential
from dcase.potentials.schnet import SchNet


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and its named sizes.

    Attributes:
        name: Public name.
        build: ``build(num_elements, **hyper_parameters) -> nn.Module``; the module has a ``cutoff``
            and maps ``(species, graph)`` to per-atom energies.
        sizes: Hyper-parameters by preset name.
        paper_activation: The activation of the original publication.
    """

    name: str
    build: Callable[..., nn.Module]
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    paper_activation: str = "silu"

    def hyper_parameters(self) -> dict[str, Any]:
        """Names and defaults of everything that can be set."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.build).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }


ARCHITECTURES: dict[str, Architecture] = {
    "schnet": Architecture(
        "schnet",
        SchNet,
        sizes={
            # Open Catalyst's largest SchNet, the size of the paper's tables.
            "paper": {
                "hidden_channels": 1024,
                "num_filters": 256,
                "num_interactions": 5,
                "num_gaussians": 200,
                "cutoff": 6.0,
            },
            "md17": {
                "hidden_channels": 64,
                "num_filters": 64,
                "num_interactions": 3,
                "num_gaussians": 25,
                "cutoff": 5.0,
            },
            "tiny": {
                "hidden_channels": 16,
                "num_filters": 16,
                "num_interactions": 2,
                "num_gaussians": 12,
                "cutoff": 4.0,
            },
        },
        paper_activation="ssp",
    ),
}


def get_architecture(name: str) -> Architecture:
    """Look an architecture up.

    Raises:
        OptionError: If there is none of that name; the message lists those there are.
    """
    try:
        return ARCHITECTURES[name.lower()]
    except KeyError:
        raise OptionError(
            f"unknown architecture {name!r}; there are: {', '.join(ARCHITECTURES)}"
        ) from None


def resolve_hyper_parameters(name: str, size: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Defaults < size preset < ``overrides``, complete and checked.

    Raises:
        OptionError: For an unknown size or hyper-parameter, or a value of the wrong type.
    """
    architecture = get_architecture(name)
    if size not in architecture.sizes:
        raise OptionError(
            f"{name} has no size {size!r}; there are: {', '.join(architecture.sizes)}"
        )
    defaults = architecture.hyper_parameters()
    values = {**defaults, **architecture.sizes[size]}
    for key, value in overrides.items():
        if value is None:
            continue
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; it has: {', '.join(defaults)}"
            raise OptionError(f"{name} has no hyper-parameter {key!r}{hint}")
        kind = type(defaults[key])
        try:
            converted = kind(value)
        except (TypeError, ValueError, OverflowError):
            converted = None
        if converted is None or (kind is int and converted != float(value)):
            raise OptionError(f"{key} must be a {kind.__name__}, got {value!r}")
        values[key] = converted
    return values


def element_numbers(elements: Iterable[str | int]) -> list[int]:
    """Sorted atomic numbers from symbols or numbers.

    Raises:
        OptionError: For a symbol that is not an element, or none at all.
    """
    numbers = set()
    for element in elements:
        z = atomic_numbers.get(element) if isinstance(element, str) else int(element)
        if z is None or not 1 <= z <= 118:
            raise OptionError(f"{element!r} is not a chemical element")
        numbers.add(int(z))
    if not numbers:
        raise OptionError("at least one element is needed")
    return sorted(numbers)


def create_potential(
    architecture: str = "schnet",
    *,
    elements: Iterable[str | int],
    size: str = "md17",
    activation: str = "irelu",
    seed: int = 0,
    **hyper_parameters: Any,
) -> Potential:
    """A potential with fresh weights, usable at once.

    Args:
        architecture: ``"schnet"``.
        elements: Symbols or atomic numbers the potential knows.
        size: Preset: ``"paper"``, ``"md17"`` or ``"tiny"``.
        activation: Name, see :func:`dcase.activations.activation_names`.
        seed: Seed of the initial weights; global random state is not touched.
        hyper_parameters: Any hyper-parameter of the architecture by name (overrides the preset).

    Returns:
        A float32 potential on the CPU; energies in eV.

    Raises:
        OptionError: For an unknown name or an impossible value.
    """
    name = get_architecture(architecture).name
    get_activation(activation)  # a clear error before anything is built
    values = resolve_hyper_parameters(name, size, {**hyper_parameters, "activation": activation})
    return build_potential(name, values, element_numbers(elements), seed=seed)


def build_potential(
    name: str, hyper_parameters: dict[str, Any], elements: list[int], *, seed: int = 0
) -> Potential:
    """Build from complete hyper-parameters (as stored in a checkpoint)."""
    architecture = get_architecture(name)
    # Modules draw their initial weights from the global generator: borrow it, and give it back.
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which also seeds the generators of every GPU.
        torch.random.default_generator.manual_seed(seed)
        network = architecture.build(len(elements), **hyper_parameters)
    potential = Potential(network, elements, architecture=name, hyper_parameters=hyper_parameters)
    return potential.eval()
