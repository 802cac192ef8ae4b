"""Types of options that come from files and command lines, checked in one place."""

from __future__ import annotations

import math
import os
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from dcase.errors import OptionError

LARGEST_COUNT = 10**12
"""More steps, frames, points, ... than any run ends with."""
LARGEST_NUMBER = 1e15
LARGEST_SEED = 2**63 - 1

_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


def check_types(instance: Any) -> None:
    """Check every field of a dataclass against its annotation, and make numbers plain Python ones.

    An int is welcome where a float is expected, a bool nowhere but where a bool is expected.

    Raises:
        OptionError: For a field of another type, or a number that is NaN, infinite or beyond what
            :func:`check_size` lets through.
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
            raise OptionError(f"{name} must be {' or '.join(wanted)}, got {_told(value)}")
        if not isinstance(value, float):  # of those, each class knows best how large they may be
            check_size(name, value)
        if kind in (int, float):  # NumPy's scalars do not belong in checkpoints
            object.__setattr__(instance, name, kind(value))


def check_size(name: str, value: Any) -> None:
    """Refuse numbers that no computer or no physics knows what to do with.

    Lists and tables are looked through; what is no number passes.

    Args:
        name: Of the option, for the message.
        value: A whole number, at most ``LARGEST_COUNT`` either way (a seed: ``LARGEST_SEED``); any
            other, at most ``LARGEST_NUMBER``, and not NaN.

    Raises:
        OptionError: Naming the limit.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_size(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_size(name, item)
    elif isinstance(value, bool) or not isinstance(value, Real):
        return
    elif isinstance(value, Integral):
        value = int(value)
        limit = LARGEST_SEED if name.endswith("seed") else LARGEST_COUNT
        if abs(value) > limit:
            raise OptionError(f"{name} must be at most {limit:.0e}, got {_short(value)}")
    elif not math.isfinite(value):
        raise OptionError(f"{name} must be a finite number, got {value}")
    elif abs(float(value)) > LARGEST_NUMBER:
        raise OptionError(f"{name} must be at most {LARGEST_NUMBER:.0e}, got {value:g}")


def _told(value: Any) -> str:
    if isinstance(value, Integral) and abs(int(value)) >= 10**30:
        return _short(value)
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."


def _short(value: Any) -> str:
    """A number as text, where Python refuses to write out thousands of digits too."""
    return str(value) if abs(value) < 10**30 else f"a number of {int(value).bit_length()} bits"


def check_memory(needed: float, what: str) -> None:
    """Refuse what cannot fit in this machine, before it is begun.

    Args:
        needed: Bytes, by a low estimate.
        what: For the message: "1000 replicas of 21 atoms".

    Raises:
        OptionError: With the estimate and what there is.
    """
    have = memory()
    if needed > have:
        raise OptionError(
            f"{what} would need at least {needed / 1e9:.3g} GB of memory, and this machine has "
            f"{have / 1e9:.3g} GB; ask for less"
        )


def memory() -> float:
    """Bytes of memory that this process may use at most; infinite where the system does not say."""
    try:
        found = float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return math.inf
    with suppress(OSError, ValueError):  # the limit of a container
        found = min(found, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, Integral)
    if kind is float:
        # A whole number may be too large for a float; that it is too large is said later.
        return isinstance(value, Integral) or (isinstance(value, Real) and math.isfinite(value))
    return isinstance(value, kind)
