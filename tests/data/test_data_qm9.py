"""QM9's files: the archive's .xyz format, qm9pack's tables, the cache, and the whole set."""

import csv
import io
import tarfile

import numpy as np
import pytest
from ase import units

from dcase.data import qm9_files
from dcase.data.qm9 import TARGETS, atom_references, get_target, load_qm9
from dcase.data.qm9_files import (
    COLUMNS,
    parse_xyz,
    qm9pack_folder,
    read_archive,
    read_qm9pack,
    read_uncharacterized,
)
from dcase.data.splits import split
from dcase.errors import DataError, MissingExtraError, OptionError

# dsgdb9nsd_000001.xyz and ..._000004.xyz of the archive, as they are there.
METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t\
-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""
ACETYLENE = """4
gdb 4\t0.\t35.6100361\t35.6100361\t0.\t16.28\t-0.2845\t0.0506\t0.3351\t59.5248\t0.026841\t\
-77.308427\t-77.305527\t-77.304583\t-77.327429\t8.574\t
C\t 0.5995394918\t 0.\t 1.\t-0.207019
C\t-0.5995394918\t 0.\t 1.\t-0.207019
H\t-1.6616385861\t 0.\t 1.\t 0.207019
H\t 1.6616385861\t 2.1997*^-6\t 1.\t 0.207019
549.7648\t549.7648\t795.2713\t795.2713\t2078.1639\t3419.0019\t3522.1638
C#C\tC#C
InChI=1S/C2H2/c1-2/h1-2H\tInChI=1S/C2H2/c1-2/h1-2H
"""
UNSURE = METHANE.replace("gdb 1\t", "gdb 21725\t")
# Nine lines of heading, and one below.
LIST = """1 heading
2
3
4
5
6
7
8
9
    21725   C1NCCC1=O   CC(C)=O   0.1
4 below
"""


def archive():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        # Not in the order of their numbers.
        texts = {4: ACETYLENE, 21725: UNSURE, 1: METHANE}
        files = {f"dsgdb9nsd_{number:06d}.xyz": text.encode() for number, text in texts.items()}
        # Of a size at which an interrupted download has something to go on from.
        files["readme"] = np.random.default_rng(0).bytes(400_000)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def online(server, monkeypatch):
    """figshare, here, and no qm9pack."""
    monkeypatch.setattr(qm9_files, "ARCHIVE_URL", server.url("/archive"))
    monkeypatch.setattr(qm9_files, "UNCHARACTERIZED_URL", server.url("/list"))
    monkeypatch.setattr(qm9_files.importlib.util, "find_spec", lambda name: None)
    server.files = {"/archive": archive(), "/list": LIST.encode()}
    return server


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A qm9pack of two molecules, with its quirks of format."""
    folder = tmp_path / "site" / "qm9pack" / "data"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise ImportError('needs pandas')\n")
    header = ["XYZ_file", "Index", "SMILES", "Elements", "XYZ_Ang", *COLUMNS.values()]
    for part, text in ((1, METHANE), (2, ACETYLENE)):
        index, numbers, positions, values = parse_xyz(text)
        symbols = "[" + ",".join({1: "'H'", 6: "'C'"}[z] for z in numbers) + "]"
        xyz = "[" + ",".join(
            "[" + ",".join(f"{x:.0f}." if x == round(x) else repr(x) for x in row) + "]"
            for row in positions
        ) + "]"  # fmt: skip
        with open(folder / f"qm9_part{part}.csv", "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(header)
            writer.writerow([f"dsgdb9nsd_{index:06d}.xyz", index, "C", symbols, xyz, *values])
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


# ----------------------------------------------------------------------------------- formats


def test_an_xyz_file_of_the_archive():
    index, numbers, positions, values = parse_xyz(ACETYLENE)
    assert index == 4
    assert numbers == [6, 6, 1, 1]
    assert positions[3] == [1.6616385861, 2.1997e-6, 1.0]
    found = dict(zip(COLUMNS, values, strict=True))
    assert found["mu"] == 0.0
    assert found["r2"] == 59.5248
    assert found["U0"] == -77.308427
    assert found["Cv"] == 8.574
    assert found["gap"] == pytest.approx(found["lumo"] - found["homo"], abs=1e-4)


@pytest.mark.parametrize(
    "text",
    ["", "5\n", METHANE.replace("gdb", "abc"), METHANE[:300], METHANE.replace("C\t-0", "Q\t-0")],
)
def test_other_text_is_refused_with_the_name_of_the_file(text):
    with pytest.raises(DataError, match=r"some\.xyz is not a file of QM9") as caught:
        parse_xyz(text, "some.xyz")
    assert "\n" not in str(caught.value)


def test_qm9pack_is_read_without_importing_it(package):
    assert qm9pack_folder() == package
    molecules = read_qm9pack(progress=False)
    assert molecules.index.tolist() == [1, 4]
    assert molecules.ptr.tolist() == [0, 5, 9]
    _, numbers, positions, values = parse_xyz(ACETYLENE)
    assert molecules.numbers[5:].tolist() == numbers
    assert np.array_equal(molecules.positions[5:], positions)
    assert [molecules.properties[name][1] for name in COLUMNS] == values


def test_a_damaged_table_is_one_line(package):
    text = (package / "qm9_part2.csv").read_text()
    (package / "qm9_part2.csv").write_text(text[:-60])
    with pytest.raises(DataError, match=r"qm9_part2\.csv is damaged") as caught:
        read_qm9pack(progress=False)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(online):
    with pytest.raises(MissingExtraError, match=r"dcase\[qm9\]"):
        load_qm9("U0", "qm9pack", progress=False)


# ----------------------------------------------------------------------------------- sources


def test_download_leaves_out_what_the_authors_list_and_is_kept(online, tmp_path):
    data = load_qm9("U0", cache_dir=tmp_path, progress=False)
    assert len(data) == 2
    assert data.info.quantity == "U0"
    assert data.energies == pytest.approx(np.array([-40.47893, -77.308427]) * units.Hartree)
    asked = len(online.requests)
    again = load_qm9("homo", cache_dir=tmp_path, progress=False)
    assert len(online.requests) == asked
    assert again.energies == pytest.approx(np.array([-0.3877, -0.2845]) * units.Hartree)
    assert np.array_equal(again.positions, data.positions)


def test_interrupted_download_goes_on(online, tmp_path):
    qm9_files.fetch(online.url("/list"), filename="uncharacterized.txt", cache_dir=tmp_path / "qm9")
    online.drops = 1
    assert len(load_qm9("mu", cache_dir=tmp_path, progress=False)) == 2
    assert any("Range" in headers for _, headers in online.requests)


def test_without_a_network_the_package_is_named(online, tmp_path):
    online.files.clear()
    with pytest.raises(DataError, match="404.*pip install qm9pack") as caught:
        load_qm9("mu", cache_dir=tmp_path, progress=False)
    assert "\n" not in str(caught.value)


def test_a_copy_of_the_archive_or_its_folder(tmp_path, online):
    (tmp_path / "a.tar.bz2").write_bytes(archive())
    assert len(read_archive(tmp_path / "a.tar.bz2", progress=False).index) == 3
    (tmp_path / "uncharacterized.txt").write_text(LIST)
    whole = load_qm9("alpha", tmp_path / "a.tar.bz2", progress=False)
    assert whole.energies.tolist() == [13.21, 16.28]
    with tarfile.open(tmp_path / "a.tar.bz2") as tar:
        tar.extractall(tmp_path / "xyz", filter="data")
    assert len(load_qm9("alpha", tmp_path / "xyz", progress=False)) == 3
    assert not online.requests


def test_bad_archives_are_one_line(tmp_path):
    damaged = tmp_path / "a.tar.bz2"
    damaged.write_bytes(archive()[:-100])
    with pytest.raises(DataError, match="damaged"):
        load_qm9("U0", damaged, progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no molecules"):
        load_qm9("U0", tmp_path / "empty", progress=False)
    with pytest.raises(DataError, match="no such file"):
        load_qm9("U0", tmp_path / "nothing", progress=False)
    (tmp_path / "uncharacterized.txt").write_text("<html>log in</html>")
    with pytest.raises(DataError, match="names no molecules"):
        read_uncharacterized(tmp_path / "uncharacterized.txt")


def test_a_damaged_cache_says_what_to_delete(online, tmp_path):
    load_qm9("U0", cache_dir=tmp_path, progress=False)
    kept = tmp_path / "qm9" / "figshare.npz"
    kept.write_bytes(kept.read_bytes()[:500])
    with pytest.raises(DataError, match=r"figshare\.npz is damaged .*; delete it"):
        load_qm9("U0", cache_dir=tmp_path, progress=False)


# ----------------------------------------------------------------------------------- targets


def test_atomisation_energies_are_what_is_left_without_the_atoms(package):
    left = load_qm9("U0_atom", "qm9pack", progress=False)
    # -40.47893 - (-37.846772 - 4 * 0.500273) Hartree: methane, by hand.
    assert left.energies[0] == pytest.approx(-0.631066 * units.Hartree, abs=1e-9)
    references = atom_references("U0")
    total = load_qm9("U0", "qm9pack", progress=False)
    assert total.atom_references == references
    assert left.energies[1] == pytest.approx(
        total.energies[1] - 2 * references[6] - 2 * references[1], abs=1e-9
    )
    assert set(atom_references("mu").values()) == {0.0}


def test_free_atoms_obey_the_ideal_gas():
    """H = U + kT and U = U0 + 3/2 kT for a free atom at 298.15 K, to the digits printed."""
    thermal = units.kB * 298.15
    for z in (1, 6, 7, 8, 9):
        u0, u, h = (atom_references(name)[z] for name in ("U0", "U", "H"))
        assert u - u0 == pytest.approx(1.5 * thermal, abs=3e-5)
        assert h - u == pytest.approx(thermal, abs=3e-5)


def test_names_of_targets():
    assert get_target("u0").name == "U0"
    assert get_target("CV").unit == "cal/mol/K"
    assert set(TARGETS) >= set(COLUMNS)
    with pytest.raises(OptionError, match="no target 'U1'; it has: mu, alpha"):
        get_target("U1")


@pytest.mark.parametrize(
    ("target", "unit", "value"),
    [
        ("mu", "Debye", 0.0),
        ("alpha", "a0^3", 13.21),
        ("homo", "eV", -0.3877 * 27.21138602),
        ("lumo", "eV", 0.1171 * 27.21138602),
        ("gap", "eV", 0.5048 * 27.21138602),
        ("r2", "a0^2", 35.3641),
        ("zpve", "eV", 0.044749 * 27.21138602),
        ("U0", "eV", -40.47893 * 27.21138602),
        ("U", "eV", -40.476062 * 27.21138602),
        ("H", "eV", -40.475117 * 27.21138602),
        ("G", "eV", -40.498597 * 27.21138602),
        ("Cv", "cal/mol/K", 6.469),
    ],
)
def test_every_target_of_methane_in_its_unit(package, tmp_path, target, unit, value):
    data = load_qm9(target, "qm9pack", cache_dir=tmp_path, progress=False)
    assert data.energies[0] == pytest.approx(value, rel=1e-7)
    assert get_target(target).unit == unit


def test_zero_point_energy_is_half_of_the_vibrations(package, tmp_path):
    """The unit by physics: half the sum of the wave numbers in methane's file, in eV."""
    waves = [float(word) for word in METHANE.splitlines()[7].split()]
    data = load_qm9("zpve", "qm9pack", cache_dir=tmp_path, progress=False)
    assert data.energies[0] == pytest.approx(0.5 * sum(waves) * units.invcm, rel=1e-3)


# ----------------------------------------------------------------------------- the whole set


@pytest.mark.slow
@pytest.mark.data
def test_the_whole_set(tmp_path):
    if qm9pack_folder(needed=False) is None:
        pytest.skip("needs qm9pack")
    data = load_qm9("gap", "qm9pack", cache_dir=tmp_path, progress=False)
    assert len(data) == 130_831 == 133_885 - 3_054
    assert data.elements == [1, 6, 7, 8, 9]
    assert data.n_atoms.max() == 29
    heavy = np.add.reduceat(data.numbers > 1, data.ptr[:-1])
    assert heavy.max() == 9
    # gap = lumo - homo, each rounded to 1e-4 Hartree: two sources of one number agree.
    homo, lumo = (
        load_qm9(t, "qm9pack", cache_dir=tmp_path, progress=False).energies
        for t in ("homo", "lumo")
    )
    assert np.abs(data.energies - (lumo - homo)).max() < 2e-4 * units.Hartree
    # Means of SchNetPack's and PyTorch Geometric's documentation: mu 2.67 Debye, gap 6.86 eV.
    assert data.energies.mean() == pytest.approx(6.86, abs=0.01)
    mu = load_qm9("mu", "qm9pack", cache_dir=tmp_path, progress=False)
    assert mu.energies.mean() == pytest.approx(2.67, abs=0.01)
    # U0 to U: the heat content is positive and small.
    u0, u = (
        load_qm9(t, "qm9pack", cache_dir=tmp_path, progress=False).energies for t in ("U0", "U")
    )
    assert ((u - u0 > 0) & (u - u0 < 0.6)).all()
    parts = split(len(data), 110_000, 10_000, 0)
    assert len(parts.test) == 10_831
