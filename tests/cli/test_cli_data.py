"""``dcase data`` and ``dcase quickstart``."""

import json

import ase.io
import numpy as np
import pytest
from ase.build import molecule as structure_of
from cli_inputs import save_some

from dcase.data import md17
from dcase.data.download import DownloadError
from dcase.data.molecules import MOLECULES, get_molecule
from dcase.data.xtb import tblite_installed


def test_list_names_every_set_and_how_to_get_it(dcase, empty_folder):
    (empty_folder / "cache" / "md17").mkdir(parents=True)
    here = empty_folder / "cache" / "md17" / get_molecule("benzene").md17_file
    here.write_bytes(b"")
    done = dcase("data", "list", "--data-dir", "cache")
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines() if line.strip()]
    for molecule in MOLECULES:
        assert {row[1] for row in rows if row[0] == molecule.name} == {"md17", "rmd17", "xtb"}
    assert "dcase data fetch uracil --source rmd17" in done.out
    assert "dcase data generate uracil" in done.out
    (row,) = [row for row in rows if row[:2] == ["benzene", "md17"]]
    assert "yes" in row
    assert row[-1].endswith(here.name)
    (row,) = [row for row in rows if row[:2] == ["aspirin", "xtb"]]
    assert "yes" in row


def test_fetch(dcase, monkeypatch, empty_folder):
    save_some("got.npz", "ethanol", 4)
    asked = []

    def fetch(url, **options):
        asked.append((url, options["cache_dir"]))
        return empty_folder / "got.npz"

    monkeypatch.setattr(md17, "fetch", fetch)
    done = dcase("data", "fetch", "eth", "--data-dir", "cache")
    assert done.code == 0, done.err
    assert done.out.startswith("4 frames of ethanol")
    ((url, folder),) = asked
    assert url == get_molecule("ethanol").md17_url
    assert folder.is_relative_to("cache") or folder.is_relative_to(empty_folder / "cache")


def test_fetch_without_a_network(dcase, monkeypatch):
    def refuse(*_args, **_options):
        raise DownloadError("no network: nobody is there")

    monkeypatch.setattr(md17, "fetch", refuse)
    done = dcase("data", "fetch", "ethanol", "--data-dir", "cache")
    assert done.code == 1
    assert done.message.startswith("no network")
    assert "unknown molecule 'foo'" in dcase("data", "fetch", "foo").message


@pytest.mark.skipif(not tblite_installed(), reason="needs tblite")
def test_generate(dcase, empty_folder):
    few = ["data", "generate", "ethanol", "--frames", "2", "--equilibrate", "2", "--interval", "1"]
    done = dcase(*few, "--walkers", "1", "--temperature", "300", "--seed", "4")
    assert done.code == 0, done.err
    assert done.out == "2 frames: ethanol_gfn2xtb.npz\n"
    with np.load("ethanol_gfn2xtb.npz") as file:
        assert file["R"].shape == (2, 9, 3)
        settings = json.loads(str(file["metadata"]))["settings"]
    assert (settings["temperature_K"], settings["seed"]) == (300.0, 4)
    changed = dcase(*few, "--walkers", "1", "--temperature", "400", "--seed", "4")
    assert changed.code == 1
    assert "temperature_K = 300" in changed.message
    assert dcase(*few, "--walkers", "1", "--temperature", "400", "--overwrite").code == 0


@pytest.mark.skipif(not tblite_installed(), reason="needs tblite")
def test_generate_an_ion(dcase, empty_folder):
    from dcase.data.npz import read_npz

    ion = structure_of("OH")
    ion.set_initial_magnetic_moments(None)
    ion.info["spin"] = 0
    ase.io.write("oh.extxyz", ion)
    few = ["data", "generate", "oh.extxyz", "--frames", "1", "--equilibrate", "2"]
    few += ["--interval", "1", "--walkers", "1", "--out"]
    done = dcase(*few, "ion.npz", "--charge", "-1")
    assert done.code == 0, done.err
    found = read_npz("ion.npz")
    assert found.electrons()["charges"] == [-1.0]
    done = dcase(*few, "radical.npz", "--charge", "0")
    assert done.code == 1
    assert 'info["spin"] = 0 is impossible for its 9 electrons' in done.message
    done = dcase(*few, "radical.npz", "--multiplicity", "2")
    assert done.code == 0, done.err
    radical = read_npz("radical.npz")
    assert radical.electrons()["unpaired"] == [1]
    assert radical.energies[0] - found.energies[0] > 1.0  # the electron is bound


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nosuchthing"], "neither a known molecule, nor a file"),
        (["CC(=O)O"], "give --out FILE"),
        (["ethanol", "--timestep", "5"], "timestep must be between 0 and 2 fs"),
    ],
)
@pytest.mark.skipif(not tblite_installed(), reason="needs tblite")
def test_generate_refuses(dcase, empty_folder, arguments, reason):
    done = dcase("data", "generate", *arguments)
    assert done.code == 1
    assert reason in done.message
    assert list(empty_folder.iterdir()) == []


# ------------------------------------------------------------------------------- quickstart


@pytest.mark.pictures
def test_quickstart_makes_everything(dcase, empty_folder, short_scan):
    done = dcase("quickstart", "--molecule", "ethanol", "--train-seconds", "3", "--steps", "20")
    folder = empty_folder / "quickstart"
    # So short a training may give a potential that breaks bonds; the report is there all the same.
    assert done.code in (0, 1)
    assert "Traceback" not in done.err
    for name in ("ethanol_irelu.pt", "parity_forces.png", "relax/relaxed.extxyz"):
        assert (folder / name).is_file()
    report = json.loads((folder / "md" / "report.json").read_text())
    assert report["formula"] == "C2H6O"
    for step in ("1/4", "2/4", "3/4", "4/4"):
        assert step in done.err
    assert "validation (50)" in done.out
    assert "verdict" in done.out


@pytest.mark.parametrize("overwrite", [False, True])
def test_quickstart_leaves_a_folder_of_others_alone(dcase, empty_folder, overwrite):
    (empty_folder / "mine").mkdir()
    (empty_folder / "mine" / "thesis.txt").write_text("years of work")
    done = dcase("quickstart", "--out", "mine", *(["--overwrite"] if overwrite else []))
    assert done.code == 1
    assert ("not made by dcase quickstart" if overwrite else "mine is not empty") in done.message
    assert (empty_folder / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--molecule", "benzene"], 1, "no frames of benzene ship with dcase"),
        (["--molecule", "foo"], 1, "unknown molecule 'foo'"),
        (["--train-seconds", "-1"], 2, "not in the range"),
        (["--train-seconds", "nan"], 2, "not a finite number"),
    ],
)
def test_quickstart_refuses(dcase, empty_folder, arguments, code, reason):
    done = dcase("quickstart", *arguments)
    assert done.code == code
    assert reason in done.err
    assert list(empty_folder.iterdir()) == []
