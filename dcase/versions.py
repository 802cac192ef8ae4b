"""Versions of what a result depends on."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

from dcase._version import __version__

PACKAGES = ("ase", "numpy", "torch", "h5py", "matplotlib")


def versions() -> dict[str, str]:
    """Versions of dcase, Python and of the packages that matter, without importing these."""
    found = {"dcase": __version__, "python": platform.python_version()}
    return found | {name: version for name in PACKAGES if (version := _version(name))}


@cache  # each costs milliseconds
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
