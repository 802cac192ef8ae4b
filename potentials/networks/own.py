"""Networks from outside of the package: a class of a user's, or of an installed package.

The contract of such a class is that of the networks here, see :func:`own_architecture`; that it
keeps it is tried out in :mod:`dcase.potentials.networks.contract`.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from torch import nn

from dcase.activations import get_activation
from dcase.errors import OptionError
from dcase.own_code import entry_points, reason
from dcase.potentials.networks.architecture import Architecture

GROUP = "dcase.architectures"
"""Entry points of packages that bring networks: each a class, or an Architecture."""

TAKEN = ("elements", "size", "seed", "denormalize", "normalization", "architecture")
"""Names that ``create_potential`` has its own use for."""


def own_architecture(value: Any, name: str, path: str = "") -> Architecture:
    """What the registry has to know of a class of a user's.

    ``MyNet(num_elements, *, cutoff=5.0, ...)`` is a ``torch.nn.Module`` with a ``cutoff`` in A that
    maps ``(species, graph)`` to per-atom energies, shape [n_atoms]. Its further arguments, which
    have defaults, are its hyper-parameters. One named ``activation`` is the name of an activation,
    and gets what ``--activation`` says. With an attribute ``by_elements = True`` the class gets
    the list of atomic numbers in place of ``num_elements``.

    Args:
        value: The class; an :class:`Architecture` is returned as it is.
        name: What it is known by.
        path: Its file, for messages.

    Raises:
        OptionError: If it is something else.
    """
    if isinstance(value, Architecture):
        return value
    if not (inspect.isclass(value) and issubclass(value, nn.Module)):
        raise OptionError(f"{name} must be a subclass of torch.nn.Module")
    parameters = _parameters(value, name)
    defaults = {key: p.default for key, p in parameters.items()}
    for key, default in defaults.items():
        if key in TAKEN:
            raise OptionError(f"{name}: dcase has its own use for the name {key!r}; call it else")
        if type(default) not in (bool, int, float, str):
            raise OptionError(
                f"{name}: hyper-parameter {key!r} needs a default that is a number, text, True or "
                "False, so that a checkpoint can record it"
            )
    activation = defaults.get("activation", "")
    if activation != "":
        get_activation(activation)  # one of dcase's names
    return Architecture(
        name=name,
        build=partial(_build, value, name, path),
        paper_activation=activation,
        by_elements=bool(getattr(value, "by_elements", False)),
        defaults={**defaults, "normalization": True},
        own=True,
    )


def package_of(name: str) -> dict[str, str]:
    """Name and version of the installed package that brings an architecture, or nothing."""
    entry = entry_points(GROUP).get(name.lower())
    if entry is None or entry.dist is None:
        return {}
    return {"name": entry.dist.name, "version": entry.dist.version}


def _parameters(value: type[nn.Module], name: str) -> dict[str, inspect.Parameter]:
    """The hyper-parameters among the arguments."""
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = [p for p in inspect.signature(value).parameters.values() if p.kind not in fixed]
    if not found or found[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise OptionError(
            f"{name}: __init__ must take the number of elements first: "
            "def __init__(self, num_elements, *, cutoff=5.0, ...)"
        )
    return {p.name: p for p in found[1:]}


def _build(
    value: type[nn.Module], name: str, path: str, elements: Any, **hyper_parameters: Any
) -> nn.Module:
    hyper_parameters.pop("normalization", None)  # of every class: BatchNorm can be taken out
    try:
        return value(elements, **hyper_parameters)
    except OptionError:
        raise
    except Exception as error:  # the user's own code
        raise OptionError(f"{name} cannot be made: {reason(error, path or None)}") from error
