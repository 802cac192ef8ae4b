"""``dcase bench``."""

import json
import tempfile

import ase.io
import numpy as np
import pytest
import torch

from dcase.data.molecules import structure
from dcase.md_runs.loop.engine import Simulation
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.potential import find_checkpoint, load_potential

SHIPPED, _ = find_checkpoint("aspirin_irelu.pt")
SHORT = ["--steps", "6", "--rounds", "2"]
needs_compiler = pytest.mark.skipif(
    not available(torch.float64), reason="no C compiler: no compiled form"
)


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def lines(text):
    return {line.strip().split("  ")[0]: line for line in text.splitlines() if line.strip()}


def test_bench_works_with_nothing_else(dcase, empty_folder):
    done = dcase("bench", *SHORT)
    assert done.code == 0, done.err
    assert "no aspirin_irelu.pt here, using the one shipped with" in done.err
    assert "on aspirin (shipped geometry), float32 on cpu" in done.err
    found = lines(done.out)
    assert {"processor", "software", "potential", "system", "whole run"} <= found.keys()
    assert "C9H8O4, 21 atoms, 157 pairs within 5 A, not periodic" in found["system"]
    shares = [
        float(found[part].split("ms")[1].strip(" %"))
        for part in ("neighbours", "model", "integrator", "I/O")
    ]
    assert sum(shares) == pytest.approx(100.0, abs=0.25)  # each rounded to 0.1
    assert list(empty_folder.iterdir()) == []


@needs_compiler
def test_the_file_holds_everything(dcase, empty_folder):
    done = dcase(
        "bench", SHIPPED, *SHORT, "--compare", "--dtype", "float64", "--json", "new/bench.json"
    )
    assert done.code == 0, done.err
    assert "ratio: a step takes" in done.out
    assert "PyTorch, loop of ASE" in done.out
    content = json.loads((empty_folder / "new" / "bench.json").read_text())
    assert content.keys() == {
        "format", "machine", "system", "settings", "timing", "plain", "warnings", "ratio",
    }  # fmt: skip
    assert content["format"] == 1
    assert (content["settings"]["rounds"], content["settings"]["dtype"]) == (2, "float64")
    for name, form in (("timing", "compiled"), ("plain", "PyTorch")):
        timing = content[name]
        assert (timing["potential"], timing["steps"]) == (form, 6)
        assert sum(timing["parts_ms"].values()) == pytest.approx(timing["ms_per_step"])
        assert sum(timing["parts_percent"].values()) == pytest.approx(100.0)
    slower = content["plain"]["ms_per_step"] / content["timing"]["ms_per_step"]
    assert content["ratio"] == pytest.approx(slower)


def test_options_reach_the_run(dcase, empty_folder):
    atoms = structure("aspirin")
    atoms.center(vacuum=3.0)
    atoms.pbc = (True, True, False)
    ase.io.write("slab.extxyz", atoms)
    done = dcase(
        "bench", SHIPPED, "slab.extxyz", *SHORT, "--no-optimize", "--timestep", "0.25",
        "--temperature", "10", "--seed", "7", "--device", "cpu", "--json", "b.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "periodic in xy" in done.out
    content = json.loads((empty_folder / "b.json").read_text())
    expected = {"timestep_fs": 0.25, "temperature_K": 10.0, "seed": 7, "device": "cpu"}
    assert {name: content["settings"][name] for name in expected} == expected
    assert content["system"]["periodic"] == [True, True, False]
    assert content["timing"]["potential"] == "PyTorch"


def test_ensembles_and_replicas(dcase, empty_folder):
    Ensemble([load_potential(SHIPPED)] * 2).save(empty_folder / "two.pt")
    done = dcase("bench", "two.pt", "--structure", "aspirin", *SHORT)
    assert done.code == 0, done.err
    assert ", compiled loop" in done.out
    done = dcase("bench", "two.pt", "--structure", "aspirin", *SHORT, "--replicas", "2")
    assert done.code == 0, done.err
    assert "2 replicas" in done.out
    assert "replica-steps/s" in done.out


def test_threads_are_those_asked_for(dcase, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert dcase("bench", *SHORT, "--threads", "3").code == 0
    assert asked == [3]


# ------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere.pt"], "nowhere.pt: no such file"),
        (["text.pt"], "text.pt: not a dcase checkpoint"),
        ([SHIPPED, "nowhere.xyz"], "no such file, and no molecule of that name"),
        ([SHIPPED, "cl.xyz"], "not trained on Cl; it knows H, C, O"),
        ([SHIPPED, "--structure", "far.xyz"], "no neighbour within the cutoff"),
        ([SHIPPED, "--json", "file/b.json"], "cannot write file/b.json"),
        ([SHIPPED, "--timestep", "30"], "past the stability limit"),
        ([SHIPPED, "--temperature", "30000", "--steps", "200"], "nothing to time"),
        ([SHIPPED, "--device", "cuda:99"], "device 'cuda:99' is not available here"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(dcase, empty_folder, arguments, reason):
    (empty_folder / "text.pt").write_text("no checkpoint")
    (empty_folder / "file").write_text("in the way")
    for name, symbols, z in (("cl", "ClH", 1.3), ("far", "OH", 50.0)):
        ase.io.write(f"{name}.xyz", ase.Atoms(symbols, np.array([[0, 0, 0], [0, 0, z]])))
    before = sorted(path.name for path in empty_folder.iterdir())
    done = dcase("bench", *SHORT, *arguments)
    assert done.code == 1
    assert reason in done.message
    assert done.out == ""
    assert sorted(path.name for path in empty_folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--steps", "0"], "0 is not in the range"),
        (["--steps", "many"], "not a valid integer"),
        (["--rounds", "0"], "0 is not in the range"),
        (["--compare", "--no-optimize"], "exclude each other"),
        ([SHIPPED, "aspirin", "--structure", "ethanol"], "give the structure once"),
    ],
)
def test_wrong_usage(dcase, arguments, reason):
    done = dcase("bench", *arguments)
    assert done.code == 2
    assert reason in done.err


# --------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("phase", ["whole", "rounds"])
def test_ctrl_c_leaves_nothing(dcase, empty_folder, scratch, press_ctrl_c, monkeypatch, phase):
    if phase == "rounds":  # no whole run before them
        from dcase.md_runs.bench.rounds import OneCopy

        def none(self, settings):
            self.origin = self.run.atoms.get_positions(), self.run.atoms.get_momenta()
            return 0.0, 0.0

        monkeypatch.setattr(OneCopy, "whole_run", none)
    steps, advance = [0], Simulation.advance

    def counted(self):
        steps[0] += 1
        return advance(self)

    monkeypatch.setattr(Simulation, "advance", counted)
    press_ctrl_c(lambda: steps[0] > 5)
    # Steps so small that no bond can break.
    done = dcase("bench", "--steps", "100000000", "--timestep", "1e-6", "--json", "b.json")
    assert done.code == 130
    assert done.err.strip().splitlines()[-1].startswith("dcase: stopped")
    assert list(empty_folder.iterdir()) == []
    assert list(scratch.iterdir()) == []
