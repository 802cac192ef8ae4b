"""dcase: networks trained on their own derivatives, and put to work.

The public face is small and lazy, so that ``import dcase`` costs nothing::

    from dcase import DCCalculator, load_potential
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dcase._version import __version__

if TYPE_CHECKING:
    from dcase.potentials.calculator import DCCalculator
    from dcase.potentials.potential import load_potential

__all__ = ["DCCalculator", "__version__", "load_potential"]

_LAZY = {
    "DCCalculator": "dcase.potentials.calculator",
    "load_potential": "dcase.potentials.potential",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'dcase' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
