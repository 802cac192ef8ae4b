import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from ase import units

from dcase.data.download import cache_folder
from dcase.data.molecules import get_molecule
from dcase.data.npz import read_npz
from dcase.errors import DataError, OptionError

REAL = Path(__file__).parents[3] / "shared" / "data"
KCAL = units.kcal / units.mol
Z = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], dtype=np.uint8)


def real_file(name, source):
    """Real frames: those beside the checkout, else those that ``dcase data fetch`` has brought."""
    chosen = get_molecule(name)
    if source == "md17":
        beside, fetched = REAL / "md17" / "md17_ethanol_first2000.npz", chosen.md17_file
    else:
        beside = REAL / "rmd17" / f"rmd17_{name}_train_01.npz"
        fetched = Path(chosen.rmd17_member).name
    for path in (beside, cache_folder() / source / fetched):
        if path.is_file():
            return path
    pytest.skip(
        f"no real frames: `dcase data fetch {chosen.name} --source {source}` downloads them"
    )


def md17(n=4, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "R": rng.normal(size=(n, 9, 3)),
        "z": Z,
        "E": rng.normal(size=(n, 1)) - 97208.0,
        "F": rng.normal(size=(n, 9, 3)),
    }
    arrays.update(changes)
    return {key: value for key, value in arrays.items() if value is not None}


def rmd17(n=4):
    rng = np.random.default_rng(0)
    return {
        "nuclear_charges": Z,
        "coords": rng.normal(size=(n, 9, 3)),
        "energies": rng.normal(size=n),
        "forces": rng.normal(size=(n, 9, 3)),
        "old_energies": rng.normal(size=n),
        "old_forces": rng.normal(size=(n, 9, 3)),
        "old_indices": np.arange(n),
    }


def saved(folder, arrays, name="md17_ethanol.npz"):
    np.savez(folder / name, **arrays)
    return folder / name


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_md17_layout_and_units(tmp_path, shape):
    arrays = md17()
    arrays["E"] = arrays["E"].reshape(shape)
    data = read_npz(saved(tmp_path, arrays))
    assert len(data) == 4
    np.testing.assert_array_equal(data.energies, arrays["E"].ravel() * KCAL)
    np.testing.assert_array_equal(data.forces.reshape(4, 9, 3), arrays["F"] * KCAL)
    np.testing.assert_array_equal(data.positions.reshape(4, 9, 3), arrays["R"])
    assert data.energies.dtype == data.forces.dtype == data.positions.dtype == np.float64
    info = data.info
    assert (info.name, info.molecule, info.level_of_theory) == ("md17", "ethanol", "PBE+vdW-TS")
    assert info.label_unit == "kcal/mol"
    assert len(info.sha256) == 64


def test_rmd17_layout_has_two_label_sets(tmp_path):
    arrays = rmd17()
    path = saved(tmp_path, arrays, "rmd17_ethanol.npz")
    new, old = read_npz(path), read_npz(path, labels="md17")
    np.testing.assert_array_equal(new.energies, arrays["energies"] * KCAL)
    np.testing.assert_array_equal(read_npz(path, labels="rmd17").energies, new.energies)
    np.testing.assert_array_equal(old.energies, arrays["old_energies"] * KCAL)
    np.testing.assert_array_equal(old.forces, arrays["old_forces"].reshape(-1, 3) * KCAL)
    assert (new.info.name, new.info.level_of_theory) == ("rmd17", "PBE/def2-SVP")
    assert (old.info.name, old.info.level_of_theory) == ("md17", "PBE+vdW-TS")


def test_labels_a_file_has_not(tmp_path):
    arrays = rmd17()
    del arrays["old_forces"]
    with pytest.raises(DataError, match="no MD17 labels"):
        read_npz(saved(tmp_path, arrays), labels="md17")
    with pytest.raises(DataError, match="no rmd17 labels"):
        read_npz(saved(tmp_path, md17()), labels="rmd17")
    xtb = saved(tmp_path, md17(theory=np.array("GFN2-xTB")))
    assert read_npz(xtb).info.name == "xtb"
    assert read_npz(xtb).info.level_of_theory == "GFN2-xTB"
    with pytest.raises(DataError, match="GFN2-xTB"):
        read_npz(xtb, labels="md17")
    with pytest.raises(OptionError, match="'dft'"):
        read_npz(xtb, labels="dft")


def test_what_a_file_says_of_itself_wins(tmp_path):
    arrays = md17(theory=np.array(b"CCSD(T)"), name=np.array(b"ethanol"))
    info = read_npz(saved(tmp_path, arrays, "own.npz")).info
    assert (info.name, info.molecule, info.level_of_theory) == ("own", "ethanol", "CCSD(T)")
    # A name that the atoms contradict is not believed, nor is MD17 assumed of any file.
    info = read_npz(saved(tmp_path, md17(), "aspirin.npz")).info
    assert (info.molecule, info.level_of_theory) == ("", "unknown")


def test_sgdml_units(tmp_path):
    path = saved(tmp_path, md17(e_unit=np.array("eV"), r_unit=np.array("Ang")))
    assert read_npz(path).energies[0] == pytest.approx(-97208, abs=5)
    assert read_npz(path).info.label_unit == "eV"
    with pytest.raises(DataError, match="unknown unit"):
        read_npz(saved(tmp_path, md17(e_unit=np.array("furlong"))))
    with pytest.raises(DataError, match="unknown unit"):
        read_npz(saved(tmp_path, md17(r_unit=np.array("cubit"))))
    bohr = read_npz(saved(tmp_path, md17(r_unit=np.array("bohr"))))
    np.testing.assert_allclose(bohr.positions, units.Bohr * md17()["R"].reshape(-1, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"F": None}, "no key 'F'"),
        ({"E": None}, "no key 'E'"),
        ({"R": None}, "not an MD17 or rMD17 file"),
        ({"z": Z[:5]}, "expected .frames, 5, 3"),
        ({"z": Z.reshape(1, -1)}, "list of atomic numbers"),
        ({"z": Z + 0.5}, "list of atomic numbers"),
        ({"z": Z * 0}, "between 1 and 118"),
        ({"E": np.zeros(3)}, "shape .3,., expected .4."),
        ({"E": np.zeros((1, 4))}, "shape .1, 4."),
        ({"F": np.zeros((4, 9))}, "'F' has shape"),
        ({"R": np.zeros((4, 27))}, "'R' has shape"),
        ({"E": np.array([0.0, 1.0, np.nan, 2.0])}, "energies of frame 2 is NaN"),
        ({"F": np.full((4, 9, 3), np.inf)}, "forces of frame 0 is NaN or inf"),
        ({"E": np.array(["a"] * 4)}, "not real numbers"),
        ({"R": np.zeros((0, 9, 3)), "E": np.zeros(0), "F": np.zeros((0, 9, 3))}, "no frames"),
    ],
)
def test_bad_content(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as error:
        read_npz(saved(tmp_path, md17(**changes)))
    assert "md17_ethanol.npz" in one_line(error)


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_npz(tmp_path / "nothing.npz")
    (tmp_path / "empty.npz").touch()
    with pytest.raises(DataError, match="is empty"):
        read_npz(tmp_path / "empty.npz")
    (tmp_path / "text.npz").write_text("<html>log in</html>")
    with pytest.raises(DataError, match="not an npz"):
        read_npz(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        read_npz(tmp_path / "one.npy")
    with pytest.raises(DataError, match="is a folder"):
        read_npz(tmp_path)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95, 0.999])
def test_truncated_files(tmp_path, keep):
    path = saved(tmp_path, md17(n=50))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=r"damaged|cut short") as error:
        read_npz(path)
    one_line(error)


def test_flipped_bytes(tmp_path):
    path = tmp_path / "md17_ethanol.npz"
    np.savez_compressed(path, **md17(n=50))
    content = bytearray(path.read_bytes())
    content[2000:2040] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_npz(path)


class Bomb:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_pickles_are_refused_and_not_run(tmp_path):
    trace = tmp_path / "was_run"
    bomb = np.array([Bomb(trace)], dtype=object)
    for key in ("R", "z", "E", "F"):
        with pytest.raises(DataError, match=f"'{key}' holds pickled"):
            read_npz(saved(tmp_path, md17(**{key: bomb})))
    # Even in a key that is not needed.
    read_npz(saved(tmp_path, md17(name=bomb, theory=bomb)))
    (tmp_path / "whole.npz").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(DataError, match="pickles are not loaded"):
        read_npz(tmp_path / "whole.npz")
    assert not trace.exists()


@pytest.mark.data
def test_real_md17_ethanol():
    data = read_npz(real_file("ethanol", "md17"))
    assert len(data) >= 2000
    assert data.info.molecule == "ethanol"
    assert data.info.level_of_theory == "PBE+vdW-TS"
    assert data.energies[0] == pytest.approx(-97208.40600498248 * KCAL, abs=1e-9)


@pytest.mark.data
@pytest.mark.parametrize("name", ["aspirin", "salicylic", "uracil"])
def test_real_rmd17(name):
    path = real_file(name, "rmd17")
    new, old = read_npz(path), read_npz(path, labels="md17")
    assert len(new) == len(old) >= 1000
    assert new.info.molecule.startswith(name)
    # The same frames by two methods: totals differ, forces nearly agree.
    assert abs(new.energies - old.energies).mean() > 1.0
    assert np.corrcoef(new.forces.ravel(), old.forces.ravel())[0, 1] > 0.98
