"""Fresh potentials from names and sizes, and what is to be said about one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from ase.data import atomic_numbers
from torch import nn

from dcase.activations.registry import find_activation
from dcase.errors import OptionError, PaperVariantWarning
from dcase.own_code import loaded
from dcase.potentials.networks.architecture import Architecture
from dcase.potentials.networks.contract import check_network
from dcase.potentials.networks.registry import (
    PLACEMENTS,
    VARIANTS,
    find_architecture,
    get_architecture,
    resolve_hyper_parameters,
)
from dcase.potentials.potential import Potential, build_potential


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
    architecture: str | type[nn.Module] = "schnet",
    *,
    elements: Iterable[str | int],
    size: str = "md17",
    activation: str = "irelu",
    variant: str = "default",
    placement: str = "published",
    denormalize: bool | None = None,
    seed: int = 0,
    **hyper_parameters: Any,
) -> Potential:
    """A potential with fresh weights, usable at once.

    Args:
        architecture: ``"schnet"``, ``"cgcnn"``, ``"dimenet++"``, ``"forcenet"``, ``"gemnet-t"`` or
            ``"painn"``; or a network of your own: a class, ``"mynet.py:MyNet"`` or
            ``"package.module:MyNet"`` (see
            :func:`dcase.potentials.networks.own.own_architecture`), which is tried out on a few
            atoms first.
        elements: Symbols or atomic numbers the potential knows.
        size: Preset: ``"paper"``, ``"md17"`` or ``"tiny"``; a network of your own has none.
        activation: Name, see :func:`dcase.activations.activation_names`, or ``"original"`` for the
            one the architecture was published with, or one of your own: ``"myact.py:MyAct"``.
        variant: ``"default"``, or ``"paper"`` for the published implementation to the letter, with
            a warning that names what is wrong with it.
        placement: Where the activation goes: ``"published"`` (where the DC paper put IReLU) or
            ``"all"``.
        denormalize: Take BatchNorm layers out; default: yes, but not in the paper variant, and not
            from a network of your own.
        seed: Seed of the initial weights; global random state is not touched.
        hyper_parameters: Any hyper-parameter of the architecture by name (overrides the preset).

    Returns:
        A float32 potential on the CPU; energies in eV.

    Raises:
        OptionError: For an unknown name or an impossible value, or a network of your own that does
            not keep the contract.
    """
    found = find_architecture(architecture)
    for word, value, allowed in (
        ("variant", variant, VARIANTS),
        ("placement", placement, PLACEMENTS),
    ):
        if value not in allowed:
            raise OptionError(f"{word} must be {' or '.join(allowed)}, got {value!r}")
    if activation == "original":
        activation = found.paper_activation or "silu"
    activation = find_activation(activation)  # a clear error before anything is built
    keep = (variant == "paper" or found.own) if denormalize is None else not denormalize
    common = {
        "activation": activation,
        "variant": variant,
        "placement": placement,
        "normalization": keep,
    }
    known = found.hyper_parameters()
    if "normalization" in known and hyper_parameters.get("normalization") is not None:
        raise OptionError("normalization is set by denormalize: False keeps it, True takes it out")
    # An architecture without BatchNorm has nothing to take out, and so on.
    common = {key: value for key, value in common.items() if key in known}
    values = resolve_hyper_parameters(found.name, size, {**hyper_parameters, **common})
    potential = build_potential(found.name, values, element_numbers(elements), seed=seed)
    if found.own:
        own = loaded(found.name)
        check_network(potential.network, potential.elements, found.name, own.path if own else "")
    if caveats := potential_caveats(potential):
        warnings.warn(caveats, PaperVariantWarning, stacklevel=2)
    return potential


def potential_caveats(potential: Potential) -> str:
    """What is wrong with a potential of the paper variant, as a sentence, or ``""``."""
    architecture = _architecture(potential)
    if architecture is None or potential.hyper_parameters.get("variant") != "paper":
        return ""
    if not architecture.departures:
        return ""
    return (
        f"{architecture.name}, the published implementation: {'; '.join(architecture.departures)}"
    )


def potential_limits(potential: Potential) -> str:
    """What the architecture does not promise in any variant, as a sentence, or ``""``."""
    architecture = _architecture(potential)
    if architecture is None or not architecture.limits:
        return ""
    return f"{architecture.name}: {'; '.join(architecture.limits)}"


def _architecture(potential: Potential) -> Architecture | None:
    """As registered; None for a network that was put together by hand."""
    try:
        return get_architecture(potential.architecture)
    except OptionError:
        return None
