"""Old names of modules that have moved lead to the same objects, whoever asks first."""

import importlib
import subprocess
import sys

import pytest

from dcase.moved import MovedModules


def moved():
    for package in ("dcase.md_runs", "dcase.potentials"):
        importlib.import_module(package)
    return [
        pair
        for finder in sys.meta_path
        if isinstance(finder, MovedModules)
        for pair in finder.names.items()
    ]


@pytest.mark.parametrize(("old", "new"), moved())
def test_old_names_are_the_same_modules(old, new):
    module = importlib.import_module(new)
    assert importlib.import_module(old) is module
    assert module.__name__ == module.__spec__.name == new


PAIRS = [  # an old name, its new one, and something in it
    ("dcase.potentials.graph", "dcase.potentials.graphs.graph", "AtomicGraph"),
    ("dcase.potentials.gemnet.layers", "dcase.potentials.networks.gemnet.layers", "Dense"),
    ("dcase.md_runs.report", "dcase.md_runs.report.report", "write_report"),
    ("dcase.md_runs.checks", "dcase.md_runs.checks.conformance", "run_checks"),
    ("dcase.md_runs.bench", "dcase.md_runs.bench.measure", "bench_md"),
]


@pytest.mark.parametrize("first", ["old", pytest.param("new", marks=pytest.mark.slow)])
def test_in_a_new_process(first):
    lines = []
    for old, new, name in PAIRS:
        both = [f"from {old} import {name} as a", f"from {new} import {name} as b"]
        lines += [*(both if first == "old" else reversed(both)), "assert a is b"]
    subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(lines)], check=True)


def test_a_name_that_never_was():
    with pytest.raises(ModuleNotFoundError, match=r"dcase\.potentials\.nothing"):
        importlib.import_module("dcase.potentials.nothing")
