import io
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.symbols import symbols2numbers

from dcase.data import md17
from dcase.data.decorrelation import lag_one
from dcase.data.md17 import FallbackWarning, embedded_file, list_datasets, load_md17
from dcase.data.molecules import MOLECULES, get_molecule, structure
from dcase.errors import DataError, OptionError

KCAL = units.kcal / units.mol


def npz(molecule, layout="md17", n=3, energy=-1000.0):
    z = symbols2numbers(get_molecule(molecule).formula)
    rng = np.random.default_rng(0)
    r, f = rng.normal(size=(2, n, len(z), 3))
    arrays = {"R": r, "z": np.array(z), "E": np.full((n, 1), energy), "F": f}
    if layout == "rmd17":
        arrays = {
            "coords": r,
            "nuclear_charges": np.array(z),
            "energies": np.full(n, energy),
            "forces": f,
            "old_energies": np.full(n, energy + 1),
            "old_forces": f,
        }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def online(server, monkeypatch):
    """MD17's and rMD17's servers, here."""
    monkeypatch.setattr("dcase.data.molecules.MD17_URL", server.url("/md17/"))
    monkeypatch.setattr(md17, "RMD17_URL", server.url("/rmd17"))
    for name in ("aspirin", "toluene"):
        server.files[f"/md17/md17_{name}.npz"] = npz(name)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        for name in ("ethanol", "aspirin"):
            content = npz(name, "rmd17")
            entry = tarfile.TarInfo(f"rmd17/npz_data/rmd17_{name}.npz")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    server.files["/rmd17"] = buffer.getvalue()
    return server


@pytest.fixture
def offline(server, monkeypatch):
    """Addresses at which nobody listens."""
    url = server.url("/")
    server.stop()
    monkeypatch.setattr("dcase.data.molecules.MD17_URL", url)
    monkeypatch.setattr(md17, "RMD17_URL", url)
    return server


def load(name, source="auto", labels=None, folder=None, **options):
    return load_md17(name, source, labels, cache_dir=folder, progress=False, **options)


def test_auto_downloads_md17_and_then_uses_the_cache(online, tmp_path):
    data = load("asp", folder=tmp_path)
    assert (data.info.name, data.info.level_of_theory) == ("md17", "PBE+vdW-TS")
    assert data.info.molecule == "aspirin"
    assert data.energies[0] == -1000.0 * KCAL
    load("asp", folder=tmp_path)
    assert len(online.requests) == 1


def test_rmd17_from_its_archive(online, tmp_path):
    data = load("ethanol", "rmd17", folder=tmp_path)
    assert (data.info.name, data.info.level_of_theory) == ("rmd17", "PBE/def2-SVP")
    old = load("ethanol", "rmd17", "md17", folder=tmp_path)
    assert old.energies[0] == pytest.approx(-999.0 * KCAL, abs=1e-9)
    assert load("aspirin", labels="rmd17", folder=tmp_path).info.name == "rmd17"
    assert len(online.requests) == 1


def test_no_network_falls_back_loudly(offline, tmp_path):
    said = []
    data = load("aspirin", folder=tmp_path, notify=said.append)
    assert said == [
        "no network: training on the embedded GFN2-xTB aspirin set (1000 frames, 500 K), "
        "NOT on MD17's DFT labels"
    ]
    assert (data.info.name, data.info.level_of_theory) == ("xtb", "GFN2-xTB")
    assert len(data) == 1000
    with pytest.warns(FallbackWarning, match="NOT on MD17's DFT labels"):
        load("ethanol", folder=tmp_path)


def test_server_trouble_is_named(server, monkeypatch, tmp_path):
    monkeypatch.setattr("dcase.data.molecules.MD17_URL", server.url("/"))
    said = []
    load("aspirin", folder=tmp_path, notify=said.append)
    assert "404" in said[0]
    assert "NOT on MD17's DFT labels" in said[0]


def test_asking_by_name_does_not_fall_back(offline, tmp_path):
    for source, labels in (("md17", None), ("rmd17", None), ("auto", "md17"), ("auto", "rmd17")):
        with warnings.catch_warnings(), pytest.raises(DataError, match="no network") as error:
            load("aspirin", source, labels, folder=tmp_path)
        assert str(tmp_path) in str(error.value)
        assert "\n" not in str(error.value)


def test_other_molecules_are_generated(offline, tmp_path, monkeypatch):
    pytest.importorskip("tblite", reason="generating needs tblite")
    monkeypatch.setattr(md17, "GENERATED_FRAMES", 2)
    calls = []

    def generate(name, n_frames, *, out, seed, **options):
        calls.append((name, n_frames, seed))
        out.parent.mkdir(parents=True)
        out.write_bytes(npz(name, n=n_frames))
        return out

    monkeypatch.setattr("dcase.data.generate.generate", generate)
    said = []
    assert len(load("toluene", folder=tmp_path, notify=said.append, seed=3)) == 2
    assert "generating" in said[0]
    assert "NOT MD17's DFT labels" in said[0]
    load("toluene", folder=tmp_path, notify=said.append, seed=3)
    assert "using the cached" in said[1]
    load("toluene", "xtb", folder=tmp_path, seed=3)
    assert calls == [("toluene", 2, 3)]


def test_nothing_to_fall_back_on(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(md17, "tblite_installed", lambda: False)
    with pytest.raises(DataError, match=r"md17_toluene\.npz into .*dcase\[xtb\]"):
        load("toluene", folder=tmp_path)


def test_xtb_needs_no_network(offline, tmp_path):
    assert load("asp", "xtb", folder=tmp_path).info.name == "xtb"
    with pytest.raises(DataError, match="drop one"):
        load("asp", "xtb", "md17", folder=tmp_path)


def test_a_path(tmp_path):
    (tmp_path / "mine.npz").write_bytes(npz("ethanol"))
    data = load("ethanol", tmp_path / "mine.npz")
    assert data.info.level_of_theory == "unknown"
    assert len(load("ethanol", str(tmp_path / "mine.npz"))) == 3
    with pytest.raises(DataError, match="is not aspirin"):
        load("aspirin", tmp_path / "mine.npz")
    with pytest.raises(DataError, match="no such file"):
        load("aspirin", tmp_path / "none.npz")
    with pytest.raises(DataError, match="source must be auto, md17, rmd17, xtb"):
        load("aspirin", "rmd71")


def test_wrong_words():
    with pytest.raises(DataError, match="unknown molecule"):
        load("water")
    with pytest.raises(OptionError, match="labels"):
        load("aspirin", labels="dft")


def test_a_login_page_instead_of_data(online, tmp_path):
    online.files["/md17/md17_aspirin.npz"] = b"<html>please log in</html>"
    with pytest.raises(DataError, match="not an npz file") as error:
        load("aspirin", folder=tmp_path)
    assert "delete" in str(error.value)


def test_list(online, tmp_path):
    load("aspirin", folder=tmp_path)
    rows = list_datasets(tmp_path)
    assert len(rows) == 3 * len(MOLECULES)
    by = {(row.molecule, row.source): row for row in rows}
    assert by["aspirin", "md17"].cached
    assert by["aspirin", "md17"].frames == 211762
    assert not by["toluene", "md17"].cached
    assert by["toluene", "md17"].where.startswith("http")
    assert by["ethanol", "xtb"].cached
    assert by["toluene", "xtb"].where == "dcase data generate toluene"
    assert by["uracil", "rmd17"].level_of_theory == "PBE/def2-SVP"


@pytest.mark.parametrize("name", ["aspirin", "ethanol"])
class TestEmbedded:
    def test_frames(self, name):
        path = embedded_file(get_molecule(name))
        assert path.stat().st_size < 700_000
        data = load(name, "xtb")
        assert len(data) == 1000
        assert data.info.molecule == name
        assert (data.frame(0).numbers == structure(name).numbers).all()

    def test_frames_are_decorrelated(self, name):
        with np.load(embedded_file(get_molecule(name)), allow_pickle=False) as file:
            energies, forces, walker = file["E"], file["F"], file["walker"]
            metadata = json.loads(str(file["metadata"]))
        assert abs(lag_one(energies, walker)) < 0.2
        assert abs(lag_one(forces, walker)) < 0.2
        assert metadata["lag_1_autocorrelation"]["energies"] == pytest.approx(
            lag_one(energies, walker)
        )
        assert metadata["mean_kinetic_temperature_K"] == pytest.approx(500, abs=15)
        # Equipartition: the potential energy is around 3N kT / 2 above the minimum.
        spread = energies.std() * KCAL / (units.kB * 500)
        assert spread == pytest.approx(np.sqrt(3 * len(forces[0]) / 2), rel=0.3)

    def test_labels_belong_to_the_stored_coordinates(self, name):
        pytest.importorskip("tblite", reason="GFN2-xTB needs tblite")
        from dcase.data.xtb import xtb_calculator

        for atoms in (load(name, "xtb").frame(i) for i in (0, 999)):
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            atoms.calc = xtb_calculator(accuracy=0.001)
            assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-6)
            np.testing.assert_allclose(atoms.get_forces(), forces, atol=2e-5)

    def test_the_command_is_written_down(self, name):
        readme = Path(embedded_file(get_molecule(name))).parent / "embedded.json"
        entry = json.loads(readme.read_text())[f"{name}_gfn2xtb.npz"]
        assert entry["command"].startswith(f"dcase data generate {name} --frames 1000")
