"""What the registry has to know of an architecture."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dcase.errors import OptionError

Hook = Callable[..., Any] | str


def hook(value: Hook) -> Callable[..., Any]:
    """The function of a hook: itself, or what ``"package.module:name"`` names."""
    if not isinstance(value, str):
        return value
    module, _, name = value.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and its named sizes.

    Attributes:
        name: Public name.
        build: ``build(num_elements, **hyper_parameters) -> nn.Module``; the module has a ``cutoff``
            and maps ``(species, graph)`` to per-atom energies.
        sizes: Hyper-parameters by preset name.
        paper_activation: The activation of the original publication.
        aliases: Other names it answers to.
        departures: What is wrong with the published implementation and differs in
            ``variant="default"``; one clause each, to follow "the published implementation: ".
        limits: What holds in every variant and who uses a potential should know; one clause each.
        by_elements: ``build`` takes the list of atomic numbers in place of ``num_elements``, for
            features that depend on the element and are not learned.
        kernel: Optional hook: ``(potential, tabulate, filter_error) -> CompiledKernel``, the
            compiled form; see :func:`dcase.potentials.kernels.deployed.deploy`.
        kernel_plan: Optional hook, in its place: ``(network, plan) -> Written``, the network as
            instructions of the kernel that architectures share
            (:mod:`dcase.potentials.kernels.networks`).
        stack: Optional hook: ``(networks, activation) -> module``, which evaluates several networks
            of one shape at once: called with ``(species, graph)`` it returns per-atom energies
            [k, n_atoms] and their slopes by the distances [k, n_pairs].
        training_kernel: Optional hook: ``potential -> kernel``, energies and forces of a batch
            with a compiled gradient by the weights; raises an ``OptionError`` that says why where
            this potential has none (:func:`dcase.potentials.kernels.forms.training_form` asks).
        defaults: Hyper-parameters by name, where ``build`` does not declare them itself.
        own: Whether it is a class from outside of dcase (:mod:`dcase.potentials.networks.own`).

    Hooks are functions, or ``"package.module:name"``, which is imported when it is needed: networks
    know nothing of their compiled forms, and loading one does not load the others.

    Three hyper-parameters mean the same in every architecture that has them:

    * ``variant``: ``"default"``, or ``"paper"`` for the published implementation to the letter;
    * ``placement``: where the chosen activation goes: ``"published"`` (where the DC paper put
      IReLU; elsewhere ``paper_activation`` stays) or ``"all"``;
    * ``normalization``: whether the BatchNorm layers stay (the DC paper's denormalization takes
      them out).
    """

    name: str
    build: Callable[..., nn.Module]
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    paper_activation: str = "silu"
    aliases: tuple[str, ...] = ()
    departures: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    by_elements: bool = False
    kernel: Hook | None = None
    kernel_plan: Hook | None = None
    stack: Hook | None = None
    training_kernel: Hook | None = None
    defaults: dict[str, Any] | None = None
    own: bool = False

    def hyper_parameters(self) -> dict[str, Any]:
        """Names and defaults of everything that can be set."""
        if self.defaults is not None:
            return dict(self.defaults)
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.build).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }


LARGEST_SIZE = 100_000
LARGEST_CUTOFF = 1000.0  # A; in a periodic liquid, 10 A have about 400 neighbours, 1000 A 4e8


def check_sizes(sizes: dict[str, tuple[int, int]], cutoff: float) -> None:
    """Refuse hyper-parameters that no network can be built with.

    Args:
        sizes: ``{name: (value, least)}``.
        cutoff: A.

    Raises:
        OptionError: If a size is below its least value or absurd, or the cutoff is.
    """
    for name, (size, least) in sizes.items():
        if size < least:
            raise OptionError(f"{name} must be at least {least}, got {size}")
        if size > LARGEST_SIZE:
            raise OptionError(f"{name} must be at most {LARGEST_SIZE}, got {size}")
    if not 0 < cutoff <= LARGEST_CUTOFF:
        raise OptionError(f"cutoff must be positive and at most {LARGEST_CUTOFF:g} A, got {cutoff}")
