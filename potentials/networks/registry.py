"""Architectures by name, their hyper-parameters and size presets, and the networks."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

from dcase.errors import OptionError
from dcase.moved import lazy_names
from dcase.normalization import denormalize as remove_normalization
from dcase.options import check_size
from dcase.own_code import entry_points, is_own, load_entry_point, load_own, loaded
from dcase.potentials.networks import cgcnn, dimenet, forcenet, gemnet, painn, schnet
from dcase.potentials.networks.architecture import Architecture
from dcase.potentials.networks.own import GROUP, own_architecture

VARIANTS = ("default", "paper")
PLACEMENTS = ("published", "all")
# Hyper-parameters that are set by name in every architecture alike (see Architecture).
COMMON = ("activation", "variant", "placement", "normalization")

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        schnet.ARCHITECTURE,
        cgcnn.ARCHITECTURE,
        dimenet.ARCHITECTURE,
        forcenet.ARCHITECTURE,
        gemnet.ARCHITECTURE,
        painn.ARCHITECTURE,
    )
}


def get_architecture(name: str) -> Architecture:
    """Look an architecture up: here, in installed packages, or among code that has been named.

    Nothing of a user's own code runs (:func:`find_architecture` does that).

    Raises:
        OptionError: If there is none of that name; the message lists those there are.
    """
    wanted = name.lower()
    for architecture in ARCHITECTURES.values():
        if wanted == architecture.name or wanted in architecture.aliases:
            return architecture
    own = loaded(name)
    if own is not None:
        return own_architecture(own.value, own.name, own.path)
    offered = load_entry_point(GROUP, name)
    if offered is not None:
        return own_architecture(offered, entry_points(GROUP)[wanted].name)
    there = ", ".join([*ARCHITECTURES, *(entry.name for entry in entry_points(GROUP).values())])
    raise OptionError(f"unknown architecture {name!r}; there are: {there}, or FILE.py:CLASS")


def find_architecture(wanted: str | type[nn.Module]) -> Architecture:
    """An architecture by name, or from code that is named here and now, which runs.

    Args:
        wanted: A name, ``"mynet.py:MyNet"``, ``"package.module:MyNet"``, or a class.

    Raises:
        OptionError: If there is none, or the code fails.
    """
    if isinstance(wanted, str) and not is_own(wanted):
        return get_architecture(wanted)
    return get_architecture(load_own(wanted).name)


def resolve_hyper_parameters(name: str, size: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Defaults < size preset < ``overrides``, complete and checked.

    Raises:
        OptionError: For an unknown size or hyper-parameter, or a value of the wrong type.
    """
    architecture = get_architecture(name)
    if size not in architecture.sizes and not architecture.own:
        raise OptionError(
            f"{name} has no size {size!r}; there are: {', '.join(architecture.sizes)}"
        )
    defaults = architecture.hyper_parameters()
    values = {**defaults, **architecture.sizes.get(size, {})}
    for key, value in overrides.items():
        if value is None:
            continue
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; it has: {', '.join(defaults)}"
            raise OptionError(f"{name} has no hyper-parameter {key!r}{hint}")
        kind = type(defaults[key])
        check_size(key, value)
        try:
            if kind is bool and not isinstance(value, bool):
                raise TypeError
            converted = kind(value)
        except (TypeError, ValueError, OverflowError):
            converted = None
        if converted is None or (kind is int and converted != float(value)):
            raise OptionError(f"{key} must be a {kind.__name__}, got {value!r}")
        values[key] = converted
    return values


def build_network(
    name: str, hyper_parameters: dict[str, Any], elements: list[int], *, seed: int = 0
) -> nn.Module:
    """A network with fresh weights from complete hyper-parameters.

    Args:
        name: Of the architecture.
        hyper_parameters: All of them, as a checkpoint stores them.
        elements: Atomic numbers it is to know, ascending.
        seed: Of the initial weights; global random state is not touched.
    """
    architecture = get_architecture(name)
    # Modules draw their initial weights from the global generator: borrow it, and give it back.
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which also seeds the generators of every GPU.
        torch.random.default_generator.manual_seed(seed)
        which = elements if architecture.by_elements else len(elements)
        network = architecture.build(which, **hyper_parameters)
    if not hyper_parameters.get("normalization", True):
        remove_normalization(network)
    return network


# What makes potentials was here until 0.1.
__getattr__ = lazy_names(
    __name__,
    {
        "build_potential": "dcase.potentials.potential",
        "create_potential": "dcase.potentials.create",
        "element_numbers": "dcase.potentials.create",
        "potential_caveats": "dcase.potentials.create",
        "potential_limits": "dcase.potentials.create",
    },
)
