"""Activations by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

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
    key = str(name).strip().lower().replace("-", "_").replace(" ", "_")
    key = ALIASES.get(key, key)
    if key in ACTIVATIONS:
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
    try:
        return ACTIVATIONS[key](**kwargs)
    except TypeError as error:
        given = ", ".join(kwargs)
        raise OptionError(f"activation '{key}' does not take these options: {given}") from error
