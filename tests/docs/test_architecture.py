"""docs/architecture.md names what there is: paths, modules, environment variables."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("dcase", "potentials", "md_runs", "pinn", "cli")
ROOTS = (*PACKAGES, "tests", "benchmarks", "docs")
WORDS = re.findall(r"(?<![\w./-])[\w-]+(?:/[\w-]+)*(?:/|\.\w+)?(?![\w/])", TEXT)
PATHS = sorted(
    {
        word
        for word in WORDS
        if word.endswith(("/", ".py", ".md", ".c", ".h"))
        or ("/" in word and word.split("/")[0] in ROOTS)
    }
)


def read_in_code() -> set[str]:
    """Names of environment variables that a package reads, where they are written out."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "environ" not in text and "getenv" not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                key = None
                if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                    key = node.slice
                elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    "os.environ.get", "os.getenv",
                ):  # fmt: skip
                    key = node.args[0]
                if isinstance(key, ast.Constant):
                    found.add(key.value)
    return found


def test_the_document_is_read():
    assert {"potentials/networks/registry.py", "dcase/runs.py", "loop/", "options.py"} <= set(PATHS)
    assert len(PATHS) > 50


@pytest.mark.parametrize("name", PATHS)
def test_every_path_exists(name):
    """From the root where it begins there, else within a package."""
    if name.split("/")[0] in ROOTS:
        assert (ROOT / name).exists()
    else:
        assert any((ROOT / package / name).exists() for package in PACKAGES)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(dcase\.[\w.]+)`", TEXT))))
def test_every_module_and_name_exists(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


def test_every_environment_variable_is_told_of():
    found = read_in_code()
    assert "DCASE_DATA_DIR" in found
    assert {name for name in found if f"`{name}`" not in TEXT} == set()
