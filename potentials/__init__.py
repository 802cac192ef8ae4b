"""Energy models, their graphs, and the ASE calculator.

``create_potential`` is the public entry; it is loaded lazily because it needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcase.potentials.potential import Potential, load_potential
    from dcase.potentials.registry import create_potential

__all__ = ["Potential", "create_potential", "load_potential"]

_LAZY = {
    "create_potential": "dcase.potentials.registry",
    "Potential": "dcase.potentials.potential",
    "load_potential": "dcase.potentials.potential",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'dcase.potentials' has no attribute {name!r}")
