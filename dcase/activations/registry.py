"""Activations by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dcase.activations.modules import (
    IELU,
    IGELU,
    ISELU,
    ISSP,
    SSP,
    ClippedReLU,
    Erf,
    IClippedReLU,
    IErf,
    ILeakyReLU,
    IReLU,
    ISiLU,
    ISoftplus,
    LogCosh,
    Softplus,
)
from dcase.activations.silu import SiLU
from dcase.errors import OptionError
from dcase.own_code import (
    Own,
    entry_points,
    is_own,
    load_entry_point,
    load_own,
    loaded,
    reason,
)

#: Every activation by its canonical name.
ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "irelu": IReLU,
    "ileaky_relu": ILeakyReLU,
    "ielu": IELU,
    "iselu": ISELU,
    "isilu": ISiLU,
    "igelu": IGELU,
    "isoftplus": ISoftplus,
    "issp": ISSP,
    "log_cosh": LogCosh,
    "iclipped_relu": IClippedReLU,
    "ierf": IErf,
    "ssp": SSP,
    "silu": SiLU,
    "softplus": Softplus,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "clipped_relu": ClippedReLU,
    "erf": Erf,
    "sigmoid": nn.Sigmoid,
}

GROUP = "dcase.activations"
"""Entry points of packages that bring activations: classes of modules without parameters."""

#: Other names people use, and the canonical name each stands for.
ALIASES: dict[str, str] = {
    "itanh": "log_cosh",
    "logcosh": "log_cosh",
    "shifted_softplus": "ssp",
    "swish": "silu",
    "iswish": "isilu",
    "ileakyrelu": "ileaky_relu",
    "leakyrelu": "leaky_relu",
    "ishifted_softplus": "issp",
}


def activation_names() -> list[str]:
    """Return the canonical names that :func:`get_activation` knows, aliases left out."""
    return list(ACTIVATIONS)


def canonical_name(name: str) -> str:
    """Return the registry name for a name in any case, with hyphens or an alias.

    Raises:
        OptionError: when there is no such activation; the message names the closest ones.
    """
    if loaded(name) is not None:
        return name
    key = str(name).strip().lower().replace("-", "_").replace(" ", "_")
    key = ALIASES.get(key, key)
    if key in ACTIVATIONS or key in entry_points(GROUP):
        return key
    close = difflib.get_close_matches(key, [*ACTIVATIONS, *ALIASES], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    raise OptionError(f"unknown activation '{name}'{hint} choose from {', '.join(ACTIVATIONS)}")


def get_activation(name: str | nn.Module, **kwargs: Any) -> nn.Module:
    """Make the activation of that name.

    Args:
        name: a name in :func:`activation_names`, an alias, or a module (returned as it is).
        **kwargs: options of that activation (``negative_slope``, ``alpha``, ``tau``).

    Returns:
        A new module without parameters.

    Raises:
        OptionError: unknown name, or an option that this activation does not have.
    """
    if isinstance(name, nn.Module):
        if kwargs:
            raise OptionError("options cannot be given together with an activation module")
        return name
    key = canonical_name(name)
    own = loaded(key)
    if own is not None or key not in ACTIVATIONS:
        return _own_activation(load_entry_point(GROUP, key) if own is None else own.value, key, own)
    try:
        return ACTIVATIONS[key](**kwargs)
    except TypeError as error:
        given = ", ".join(kwargs)
        raise OptionError(f"activation '{key}' does not take these options: {given}") from error


def find_activation(name: str) -> str:
    """The name that :func:`get_activation` knows an activation by, once its code has run.

    Args:
        name: A name, or ``"myact.py:MyAct"`` or ``"package.module:MyAct"``: code that is named here
            and now, which runs.

    Raises:
        OptionError: If there is none, the code fails, or is no activation: a module without
            parameters that maps every number by itself, and has a derivative.
    """
    if not is_own(name):
        canonical_name(name)
        return name
    own = load_own(name)
    get_activation(own.name)
    return own.name


def _own_activation(value: Any, name: str, own: Own | None) -> nn.Module:
    """A module of a class from outside, seen to be an activation."""
    if not (isinstance(value, type) and issubclass(value, nn.Module)):
        raise OptionError(f"activation {name} must be a subclass of torch.nn.Module")
    x = torch.linspace(-6.0, 6.0, 24, dtype=torch.float64).view(2, 12).requires_grad_(True)
    path = own.path if own else None
    try:
        module = value()
        y = module.double()(x)
        each = torch.stack([module(number) for number in x.flatten().unbind(0)])
        (slope,) = torch.autograd.grad(y.sum(), x)
        module = value()
    except Exception as error:  # the user's own code
        raise OptionError(f"activation {name} fails: {reason(error, path)}") from error
    if any(True for _ in module.parameters()):
        raise OptionError(
            f"activation {name} has parameters; one that is trained belongs into the network"
        )
    if not (torch.isfinite(y).all() and torch.isfinite(slope).all()):
        raise OptionError(f"activation {name} or its slope is NaN or infinite between -6 and 6")
    same = y.shape == x.shape and torch.allclose(y.flatten(), each)
    if not same:
        raise OptionError(f"activation {name} must map every number by itself")
    return module
