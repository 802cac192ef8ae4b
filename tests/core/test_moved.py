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


@pytest.mark.parametrize(
    "statements",
    [
        "from dcase.potentials.graph import AtomicGraph as a\n"
        "from dcase.potentials.graphs.graph import AtomicGraph as b",
        "from dcase.potentials.graphs.graph import AtomicGraph as b\n"
        "from dcase.potentials.graph import AtomicGraph as a",
        "from dcase.potentials.gemnet.layers import Dense as a\n"
        "from dcase.potentials.networks.gemnet.layers import Dense as b",
        "from dcase.md_runs.report import write_report as a\n"
        "from dcase.md_runs.report.report import write_report as b",
        "from dcase.md_runs.checks import run_checks as a\n"
        "from dcase.md_runs.checks.conformance import run_checks as b",
        "from dcase.md_runs.bench import bench_md as a\n"
        "from dcase.md_runs.bench.measure import bench_md as b",
    ],
)
def test_in_a_new_process(statements):
    code = f"{statements}\nassert a is b"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_name_that_never_was():
    with pytest.raises(ModuleNotFoundError, match=r"dcase\.potentials\.nothing"):
        importlib.import_module("dcase.potentials.nothing")
