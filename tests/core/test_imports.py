"""Imports run one way: no circles, and no package imports what stands above or beside it.

Every import statement counts: at the top, inside functions, and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import dcase

ROOT = Path(dcase.__file__).parent
LINKED = ("potentials", "md_runs", "pinn", "cli")

# Package: what it may import of dcase, beside itself and what it contains.
CORE = ("dcase",)
MAY_IMPORT = {
    "dcase": (),
    "dcase.dae": CORE,
    "dcase.potentials": CORE,
    "dcase.pinn": CORE,
    "dcase.md_runs": (*CORE, "dcase.potentials"),
    "dcase.cli": (*CORE, "dcase.potentials", "dcase.md_runs", "dcase.pinn", "dcase.dae"),
}
# Room: neighbours that it must not know.
MUST_NOT_IMPORT = {
    "dcase.potentials.graphs": (
        "networks", "kernels", "fitting", "experiments", "potential", "ensemble", "calculator",
        "create", "quantity",
    ),
    "dcase.potentials.networks": (
        "kernels", "fitting", "experiments", "potential", "ensemble", "calculator", "create",
    ),
    "dcase.potentials.kernels": (
        "fitting", "experiments", "potential", "ensemble", "calculator", "create",
    ),
    "dcase.potentials.fitting": ("experiments", "calculator"),
}  # fmt: skip
FACES = ("dcase", "dcase.__main__")  # they only hand out what is elsewhere


@cache
def modules() -> dict[str, Path]:
    """All modules by name; the linked folders are walked by their own."""
    found = {}
    for base in (ROOT, *(ROOT / name for name in LINKED)):
        for path in sorted(base.resolve().rglob("*.py")):
            relative = path.relative_to(base.resolve())
            if base == ROOT and relative.parts[0] in LINKED:
                continue
            parts = ["dcase", *base.relative_to(ROOT).parts, *relative.with_suffix("").parts]
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imported(module: str, text: str, known) -> set[str]:
    """The modules among ``known`` that a module's text imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name in known and name != module}


@cache
def graph() -> dict[str, set[str]]:
    return {name: imported(name, path.read_text(), modules()) for name, path in modules().items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """What is left after taking away, in turns, all that import nothing, or that nothing imports.

    Modules that reach each other are among it, and what lies between two such sets.
    """
    left = {name: set(targets) for name, targets in edges.items()}
    while left:
        used = set().union(*left.values())
        loose = [n for n, targets in left.items() if not targets & left.keys() or n not in used]
        if not loose:
            return [sorted(left)]
        for name in loose:
            del left[name]
        for targets in left.values():
            targets.intersection_update(left)
    return []


def package_of(module: str) -> str:
    return max((p for p in MAY_IMPORT if f"{module}.".startswith(f"{p}.")), key=len)


def test_the_walk_sees_every_package():
    assert {package_of(name) for name in modules()} == set(MAY_IMPORT)
    assert len(modules()) > 300
    assert "dcase.training.steps" in graph()["dcase.training.trainer"]
    assert "dcase.potentials.potential" in graph()["dcase.potentials.calculator"]


def test_circles_are_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(edges) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": set(), "c": {"a", "b"}}) == []


def test_there_are_no_import_circles():
    assert circles(graph()) == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_stands_below_them(package):
    wrong = [
        f"{module} -> {target}"
        for module, targets in graph().items()
        for target in sorted(targets)
        if package_of(module) == package
        and module not in FACES
        and package_of(target) not in (package, *MAY_IMPORT[package])
    ]
    assert wrong == []


@pytest.mark.parametrize("room", MUST_NOT_IMPORT)
def test_rooms_do_not_know_their_neighbours(room):
    package = room.rpartition(".")[0]
    names = [f"{package}.{name}" for name in MUST_NOT_IMPORT[room]]
    assert not [name for name in names if name not in modules()], "a neighbour has moved"
    wrong = [
        f"{module} -> {target}"
        for module, targets in graph().items()
        for target in sorted(targets)
        if f"{module}.".startswith(f"{room}.")
        and any(f"{target}.".startswith(f"{name}.") for name in names)
    ]
    assert wrong == []
