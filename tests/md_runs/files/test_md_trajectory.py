"""H5MD: what is in the file, and what comes back out."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from md_models import spring_molecule

from dcase.errors import SimulationError
from dcase.md_runs.files.trajectory import (
    read_observables,
    read_positions,
    read_series,
    read_trajectory,
    rows_of,
)
from dcase.md_runs.simulate import MDSettings, run_md
from dcase.units import FS


@pytest.fixture(scope="module")
def molecule_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("molecule") / "run"
    atoms = spring_molecule("CH3CH2OH")
    return run_md(atoms, MDSettings(steps=60, equilibrate=30, traj_every=5), out), atoms


@pytest.fixture(scope="module")
def crystal_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("crystal") / "run"
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.01, seed=0)
    atoms.calc = EMT()
    return run_md(atoms, MDSettings(steps=20, equilibrate=0, timestep_fs=2.0), out), atoms


def test_layout_follows_h5md_1_1(molecule_run):
    result, atoms = molecule_run
    with h5py.File(result.out / "trajectory.h5") as file:
        assert file["h5md"].attrs["version"].tolist() == [1, 1]
        assert file["h5md/creator"].attrs["name"] == "dcase"
        assert "name" in file["h5md/author"].attrs
        assert file["h5md/modules/units"].attrs["version"].tolist() == [1, 0]
        group = file["particles/atoms"]
        for name, unit in (("position", "Angstrom"), ("velocity", "Angstrom fs-1")):
            assert group[f"{name}/value"].shape == (13, 9, 3)
            assert group[f"{name}/value"].dtype == np.float64
            assert group[f"{name}/value"].attrs["unit"] == unit
            assert group[f"{name}/step"][:].tolist() == list(range(0, 61, 5))
            assert group[f"{name}/time"].attrs["unit"] == "fs"
            assert group[f"{name}/time"][1] == 2.5
        assert np.array_equal(group["species"][:], atoms.numbers)
        assert np.array_equal(group["mass"][:], atoms.get_masses())
        assert group["mass"].attrs["unit"] == "u"
        assert group["box"].attrs["dimension"] == 3
        assert list(group["box"].attrs["boundary"]) == ["none"] * 3
        assert "edges" not in group["box"]
        for name in file["observables"]:  # MDAnalysis reads them by frame number
            assert file[f"observables/{name}/value"].shape == (13,)
            assert file[f"observables/{name}/value"].dtype == np.float64
        assert file["observables/total_energy/value"].attrs["unit"] == "eV"


def test_periodic_box(crystal_run):
    result, atoms = crystal_run
    with h5py.File(result.out / "trajectory.h5") as file:
        box = file["particles/atoms/box"]
        assert list(box.attrs["boundary"]) == ["periodic"] * 3
        assert np.array_equal(box["edges/value"][2], np.array(atoms.cell))
    back = read_trajectory(result.out)[0]
    assert back.pbc.all()
    assert np.array_equal(np.array(back.cell), np.array(atoms.cell))


def test_frames_come_back_as_atoms(molecule_run):
    result, atoms = molecule_run
    images = read_trajectory(result.out)
    last = images[-1]
    assert last.info["step"] == 60
    assert last.info["time_fs"] == 30.0
    assert np.array_equal(last.get_positions(), result.atoms.get_positions())
    assert last.get_velocities() == pytest.approx(result.atoms.get_velocities(), rel=1e-12)
    series = read_series(result.out)
    assert last.get_potential_energy() == series["potential_energy"][-1]
    assert last.get_kinetic_energy() == pytest.approx(series["kinetic_energy"][-1], rel=1e-12)
    last.calc = atoms.calc  # the energy in the file is that of the positions in the file
    assert last.get_potential_energy() == pytest.approx(series["potential_energy"][-1], rel=1e-13)
    assert [a.info["step"] for a in read_trajectory(result.out, slice(0, None, 6))] == [0, 30, 60]


def test_series_observables_and_positions_agree(molecule_run):
    result, _ = molecule_run
    series, observables = read_series(result.out), read_observables(result.out)
    assert np.array_equal(series["total_energy"][::5], observables["total_energy"])
    times, positions, first = read_positions(result.out)
    assert np.array_equal(times, observables["time"])
    assert np.array_equal(positions[0], first.get_positions())


def test_rows_survive_the_file_to_the_last_bit(molecule_run):
    result, _ = molecule_run
    frames, series = rows_of(result.out / "trajectory.h5")
    assert frames.tobytes() == (result.out / "state" / "frames.f64").read_bytes()
    assert series.tobytes() == (result.out / "state" / "series.f64").read_bytes()


def test_missing_damaged_and_foreign_files(tmp_path):
    with pytest.raises(SimulationError, match="there is no trajectory"):
        read_trajectory(tmp_path)
    (tmp_path / "trajectory.h5").write_bytes(b"no HDF5")
    with pytest.raises(SimulationError, match="not an HDF5 file"):
        read_series(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(SimulationError, match="not an H5MD trajectory"):
        read_trajectory(tmp_path / "other.h5")


def test_mdanalysis_reads_it(molecule_run):
    mda = pytest.importorskip("MDAnalysis")
    result, _ = molecule_run
    universe = mda.Universe(
        str(result.out / "final.extxyz"),
        str(result.out / "trajectory.h5"),
        topology_format="XYZ",
        format="H5MD",
    )
    assert len(universe.trajectory) == 13
    frame = universe.trajectory[4]
    expected = read_trajectory(result.out)[4]
    assert frame.time == pytest.approx(0.01)  # ps
    assert universe.atoms.positions == pytest.approx(expected.positions, abs=1e-5)
    in_ps = expected.get_velocities() * FS * 1e3
    assert universe.atoms.velocities == pytest.approx(in_ps, abs=1e-4)
    assert frame.data["potential_energy"] == expected.get_potential_energy()
