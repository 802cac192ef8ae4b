"""Modules and names where they were before they moved, so that users' scripts go on working.

A module that has moved is the same object under both names.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any


class _SameModule(importlib.abc.Loader):
    """Hands out the module of another name, as it is."""

    def __init__(self, name: str):
        self.name = name
        self._spec: Any = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # which importlib has replaced by the old name's


class MovedModules(importlib.abc.MetaPathFinder):
    """Finds modules of one package where they are now.

    Args:
        package: Full name of the package.
        rooms: ``{old name: new name}``, both below the package.
    """

    def __init__(self, package: str, rooms: Mapping[str, str]):
        self.names = {f"{package}.{old}": f"{package}.{new}" for old, new in rooms.items()}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The specification of a moved module, as importlib wants it."""
        head, dot, tail = fullname, "", ""
        if head not in self.names:  # a module of a folder that has moved
            head, dot, tail = fullname.rpartition(".")
        if head not in self.names:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, _SameModule(self.names[head] + dot + tail), is_package=False
        )


def keep_old_names(package: str, rooms: Mapping[str, str]) -> None:
    """Make modules of ``package`` importable by their old names too (see :class:`MovedModules`)."""
    # First: else a folder that has moved would have its modules found, and made, a second time.
    sys.meta_path.insert(0, MovedModules(package, rooms))


def lazy_names(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``module`` that fetches names from elsewhere when they are asked for.

    Args:
        module: Its full name.
        homes: ``{name: full name of the module it is in now}``.
    """

    def fetch(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return fetch
