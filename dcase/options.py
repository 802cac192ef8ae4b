"""Types of options that come from files and command lines, checked in one place."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from dcase.errors import OptionError

_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


def check_types(instance: Any) -> None:
    """Check every field of a dataclass against its annotation, and make numbers plain Python ones.

    An int is welcome where a float is expected, a bool nowhere but where a bool is expected.

    Raises:
        OptionError: For a field of another type, or a number that is NaN or infinite.
    """
    hints = typing.get_type_hints(type(instance))
    for name in (field.name for field in fields(instance)):
        hint = hints[name]
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = [typing.get_origin(k) or k for k in (typing.get_args(hint) if union else (hint,))]
        value = getattr(instance, name)
        kind = next((k for k in kinds if _is(value, k)), None)
        if kind is None:
            wanted = [_WORDS.get(k, "a table") for k in kinds if k is not type(None)]
            raise OptionError(f"{name} must be {' or '.join(wanted)}, got {value!r}")
        if kind in (int, float):  # NumPy's scalars do not belong in checkpoints
            object.__setattr__(instance, name, kind(value))


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, Integral)
    if kind is float:
        return isinstance(value, Real) and math.isfinite(value)
    return isinstance(value, kind)
