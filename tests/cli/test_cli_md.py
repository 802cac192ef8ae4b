"""``dcase md`` and ``dcase relax``."""

import json
import re

import ase.io
import numpy as np
import pytest
from ase import units

from dcase.cli import md as md_command
from dcase.data.md17 import embedded_file
from dcase.data.molecules import get_molecule, structure
from dcase.md_runs.analysis import dt_scan as scan
from dcase.md_runs.files.trajectory import read_series
from dcase.potentials.calculator import DCCalculator

# The list, on which people build scripts.
KEYS = {
    "steps", "timestep_fs", "temperature_K", "dtype", "device", "seed", "model",
    "level_of_theory", "wall_time_s", "energy_drift",
}  # fmt: skip
DRIFT_KEYS = {
    "slope_mev_per_atom_ps", "slope_stderr_mev_per_atom_ps", "slope_kt_per_ns_dof",
    "rms_mev_per_atom", "max_deviation_mev_per_atom", "drift_ratio", "verdict",
}  # fmt: skip


@pytest.fixture
def short(model):
    return ["md", "--model", model, "--steps", "20", "--equilibrate", "0", "--device", "cpu"]


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


# ------------------------------------------------------------------------------- what it does


def test_md_works_with_nothing_else(dcase, empty_folder):
    done = dcase("md", "--steps", "20")
    assert done.code == 0, done.err
    assert "no aspirin_irelu.pt here, using the one shipped with" in done.err
    report = report_of(empty_folder / "md_run")
    assert report.keys() >= KEYS
    assert report["energy_drift"].keys() >= DRIFT_KEYS
    assert report["formula"] == "C9H8O4"
    assert (report["timestep_fs"], report["temperature_K"]) == (0.5, 300.0)


def test_report_has_the_documented_keys(dcase, short, model, empty_folder):
    done = dcase(*short, "--seed", "3", "--dtype", "float64", "--temperature", "50", "--out", "m")
    assert done.code == 0, done.err
    report = report_of(empty_folder / "m")
    assert report.keys() >= KEYS
    assert report["energy_drift"].keys() >= DRIFT_KEYS
    assert (report["steps"], report["seed"], report["dtype"]) == (20, 3, "float64")
    assert report["temperature_K"] == 50.0
    assert report["level_of_theory"] == "GFN2-xTB"
    assert report["device"] == "cpu"
    assert model.name in report["model"]
    # The report on standard output, all else on standard error.
    assert "verdict" in done.out
    assert "report: m/report.html" in done.out
    assert "20 steps of 0.5 fs, nve, 50 K, float64 on cpu" in done.err
    assert (empty_folder / "m" / "trajectory.h5").exists()


def test_settings_reach_the_run(dcase, short, empty_folder):
    done = dcase(
        *short, "--ensemble", "bussi", "--timestep", "0.25", "--taut", "50", "--friction", "0.1",
        "--log-every", "2", "--traj-every", "5", "--checkpoint-every", "7", "--out", "m", "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.err == ""
    settings = report_of(empty_folder / "m")["settings"]
    expected = {
        "ensemble": "bussi", "timestep_fs": 0.25, "taut_fs": 50.0, "friction_per_fs": 0.1,
        "log_every": 2, "traj_every": 5, "checkpoint_every": 7, "equilibrate": 0, "steps": 20,
    }  # fmt: skip
    assert {key: settings[key] for key in expected} == expected


def test_defaults_are_those_of_the_library():
    from dcase.md_runs.settings import MDSettings

    defaults = {p.name: p.default for p in md_command.md.params}
    library = MDSettings().to_dict()
    for option, name in (
        ("temperature", "temperature_K"),
        ("timestep", "timestep_fs"),
        ("friction", "friction_per_fs"),
        ("taut", "taut_fs"),
        *((n, n) for n in ("ensemble", "steps", "equilibrate", "seed", "checkpoint_every")),
    ):
        assert defaults[option] == library[name]


def test_reference_frames_give_h_of_r(dcase, short, empty_folder):
    reference = embedded_file(get_molecule("ethanol"))
    done = dcase(*short, "--reference", reference, "--out", "m")
    assert done.code == 0, done.err
    report = report_of(empty_folder / "m")
    assert report["h_of_r"]["reference_frames"] == 1000
    assert "put in the order" not in done.err


def test_reference_frames_in_another_order_are_matched_by_their_bonds(dcase, short, empty_folder):
    """Hydrogens in other places: elements agree line by line, bonds do not."""
    atoms, order = structure("ethanol"), [0, 1, 2, 8, 7, 6, 5, 4, 3]
    assert (atoms.numbers[order] == atoms.numbers).all()
    ase.io.write("shuffled.extxyz", [atoms[order], atoms[order]])
    ase.io.write("same.extxyz", [atoms, atoms])
    found = {}
    for name in ("shuffled", "same"):
        done = dcase(*short, "--temperature", "50", "--reference", f"{name}.extxyz", "--out", name)
        assert done.code == 0, done.err
        assert ("atoms put in the order of" in done.err) == (name == "shuffled")
        found[name] = report_of(empty_folder / name)
        assert not found[name]["stability"]["collapsed"]
    assert found["shuffled"]["h_of_r"] == found["same"]["h_of_r"]
    deviations = [one["stability"]["largest_deviation_A"] for one in found.values()]
    assert deviations[0] == pytest.approx(deviations[1], abs=0.02)  # a methyl's may be swapped


def test_keep_momenta_keeps_them_without_a_word_of_equilibration(dcase, model, empty_folder):
    atoms = structure("ethanol")
    velocities = np.tile([0.002, 0, 0], (9, 1))
    velocities[8] += [0, 0.02, 0]  # A/fs: one hydrogen kicked, the whole moving
    atoms.set_velocities(velocities / units.fs)
    ase.io.write("kicked.extxyz", atoms)
    kept = ["md", "--model", model, "--keep-momenta", "--steps", "3", "--device", "cpu"]
    done = dcase(*kept, "--structure", "kicked.extxyz", "--out", "kicked")
    assert done.code == 0, done.err
    series = read_series(empty_folder / "kicked")
    assert series["kinetic_energy"][0] == pytest.approx(atoms.get_kinetic_energy(), rel=1e-6)
    expected = 0.002 * atoms.get_masses().sum()
    assert series["com_momentum"][0] == pytest.approx(
        np.hypot(expected, 0.02 * atoms.get_masses()[8]), rel=1e-6
    )
    done = dcase(*kept, "--structure", "kicked.extxyz", "--equilibrate", "5", "--out", "not")
    assert done.code == 1
    assert "keep_momenta and 5 steps of equilibration exclude each other" in done.err
    assert not (empty_folder / "not").exists()
    done = dcase(*kept, "--structure", "ethanol", "--out", "cold")
    assert done.code == 0, done.err
    assert "the structure holds no momenta" in done.err


def test_a_run_goes_on_when_an_atom_leaves_and_says_so(dcase, model, empty_folder):
    atoms = structure("ethanol")
    velocities = np.zeros((9, 3))
    away = atoms.positions[8] - atoms.positions[:8].mean(axis=0)
    velocities[8] = 0.3 * away / np.linalg.norm(away)  # A/fs: 4.7 eV
    atoms.set_velocities(velocities / units.fs)
    ase.io.write("kicked.extxyz", atoms)
    leaving = ["md", "--model", model, "--keep-momenta", "--structure", "kicked.extxyz",
               "--steps", "150", "--temperature", "1000", "--device", "cpu"]  # fmt: skip
    done = dcase(*leaving, "--out", "stops")
    assert done.code == 1
    assert "broke" in done.out + done.err
    done = dcase(*leaving, "--on-broken-bond", "flag", "--out", "goes")
    assert done.code == 0, done.err
    assert "150 of 150 steps" in done.out
    assert re.search(r"bonds +.*H8 broke after", done.out)
    final = ase.io.read("goes/final.extxyz")
    # The atom is beyond every cutoff, and has been alone since.
    assert np.linalg.norm(final.positions[8] - final.positions[:8], axis=1).min() > 8.0
    energies = read_series(empty_folder / "goes")["potential_energy"]
    assert np.isfinite(energies).all()


def test_dt_scan_is_in_the_report(dcase, short, empty_folder, short_scan):
    done = dcase(*short, "--dt-scan", "--timestep", "0.01", "--out", "m")
    assert done.code == 0, done.err
    entries = report_of(empty_folder / "m")["dt_scan"]
    assert [e["timestep_fs"] for e in entries] == [0.01, 0.005, 0.0025]
    assert all({"rms_mev_per_atom", "ratio_to_next"} <= e.keys() for e in entries)


@pytest.mark.parametrize("error", [KeyboardInterrupt, "scan blew up"])
def test_a_scan_that_fails_keeps_the_report(dcase, short, empty_folder, monkeypatch, error):
    from dcase.errors import SimulationError

    def fail(*_args, **_options):
        raise SimulationError(error) if isinstance(error, str) else error

    monkeypatch.setattr(scan, "dt_scan", fail)
    done = dcase(*short, "--dt-scan", "--out", "m")
    assert done.code == (1 if isinstance(error, str) else 130)
    assert report_of(empty_folder / "m")["status"] == "finished"
    assert "report: m/report.html" in done.out
    assert "the time-step scan did not finish" in done.err


# --------------------------------------------------------------------- resuming and replacing


@pytest.mark.slow
def test_resume_with_more_steps_equals_one_run(dcase, short, empty_folder):
    options = ["--checkpoint-every", "5"]
    assert dcase(*short, *options, "--out", "parts").code == 0
    done = dcase(*short, *options, "--steps", "30", "--out", "parts", "--resume")
    assert done.code == 0, done.err
    assert dcase(*short, *options, "--steps", "30", "--out", "whole").code == 0
    parts, whole = read_series(empty_folder / "parts"), read_series(empty_folder / "whole")
    assert len(parts["time"]) == 31
    for name, values in whole.items():
        np.testing.assert_array_equal(parts[name], values)


def test_ctrl_c_stops_and_can_be_resumed(dcase, short, empty_folder, press_ctrl_c):
    log = empty_folder / "m" / "log.txt"
    # Steps so small that no potential can break a bond.
    many = [*short, "--timestep", "1e-4", "--checkpoint-every", "10", "--out", "m"]
    press_ctrl_c(lambda: log.exists() and log.read_text().count("\n") > 20)
    done = dcase(*many, "--steps", "1000000000")
    assert done.code == 130
    assert "--resume goes on" in done.err
    report = report_of(empty_folder / "m")
    assert report["status"] == "interrupted"
    steps = report["steps"] + 5
    done = dcase(*many, "--steps", str(steps), "--resume")
    assert done.code == 0, done.err
    assert report_of(empty_folder / "m")["steps"] == steps


def test_an_earlier_run_is_not_overwritten(dcase, short, empty_folder):
    assert dcase(*short, "--out", "m").code == 0
    before = (empty_folder / "m" / "report.json").read_bytes()
    done = dcase(*short, "--seed", "1", "--out", "m")
    assert done.code == 1
    assert "m already exists and holds a run" in done.message
    assert (empty_folder / "m" / "report.json").read_bytes() == before
    assert dcase(*short, "--seed", "1", "--out", "m", "--overwrite").code == 0
    assert report_of(empty_folder / "m")["seed"] == 1


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (["--timestep", "0.4"], "timestep_fs was 0.5, now 0.4"),
        (["--ensemble", "langevin"], "ensemble was 'nve', now 'langevin'"),
        (["--steps", "5"], "cannot be cut to 5"),
        (["--structure", "moved.xyz"], "other positions"),
    ],
)
def test_resume_with_changed_options(dcase, short, empty_folder, changed, reason):
    assert dcase(*short, "--out", "m").code == 0
    atoms = structure("ethanol")
    atoms.rattle(0.01, seed=1)
    ase.io.write("moved.xyz", atoms)
    before = (empty_folder / "m" / "report.json").read_bytes()
    done = dcase(*short, *changed, "--out", "m", "--resume")
    assert done.code == 1
    assert reason in done.message
    assert (empty_folder / "m" / "report.json").read_bytes() == before


# ------------------------------------------------------------------------------ what it refuses


def write_inputs():
    with open("text.xyz", "w") as file:
        file.write("no structure")
    with open("text.pt", "w") as file:
        file.write("no checkpoint")
    open("empty.pt", "w").close()
    for name, symbols, z in (("cl", "ClH", 1.3), ("nan", "OH", np.nan), ("far", "OH", 50.0)):
        ase.io.write(f"{name}.xyz", ase.Atoms(symbols, [[0, 0, 0], [0, 0, z]]))


@pytest.mark.parametrize("command", ["md", "relax"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "nowhere.pt"], "nowhere.pt: no such file"),
        (["--model", "folder"], "folder is a folder"),
        (["--model", "text.pt"], "text.pt: not a dcase checkpoint"),
        (["--model", "empty.pt"], "empty.pt is empty"),
        (["--structure", "nowhere.xyz"], "no such file, and no molecule of that name"),
        (["--structure", "folder"], "folder is a folder"),
        (["--structure", "text.xyz"], "text.xyz: cannot be read as a structure"),
        (["--structure", "nan.xyz"], "nan.xyz: the position of atom 1 is not finite"),
        (["--structure", "cl.xyz"], "not trained on Cl; it knows H, C, O"),
        (["--structure", "far.xyz"], "no neighbour within the cutoff"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available here"),
        (["--out", "file/x"], "cannot write"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    dcase, model, empty_folder, command, options, reason
):
    (empty_folder / "folder").mkdir()
    (empty_folder / "file").write_text("in the way")
    write_inputs()
    before = sorted(p.name for p in empty_folder.iterdir())
    done = dcase(command, "--model", model, "--steps", "5", *options)
    assert done.code == 1
    assert reason in done.message
    assert done.out == ""
    assert sorted(p.name for p in empty_folder.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--resume"], "nothing to resume: there is no run in md_run"),
        (["--reference", "nowhere.npz"], "no such file: nowhere.npz"),
        (["--reference", embedded_file(get_molecule("aspirin"))], "its frames are not C2H6O"),
        (["--ensemble", "langevin", "--temperature", "0"], "temperature_K must be a number > 0"),
    ],
)
def test_md_refuses_before_there_is_a_folder(dcase, short, empty_folder, options, reason):
    done = dcase(*short, *options)
    assert done.code == 1
    assert reason in done.message
    assert list(empty_folder.iterdir()) == []


def test_a_blow_up_exits_with_1_and_keeps_the_report(dcase, short, empty_folder):
    done = dcase(*short, "--timestep", "30", "--force-timestep", "--out", "m")
    assert done.code == 1
    assert "stopped early" in done.err
    assert report_of(empty_folder / "m")["status"].startswith("stopped early")
    assert "report: m/report.html" in done.out


# ----------------------------------------------------------------------------------- relax


def test_relax(dcase, model, empty_folder):
    ase.io.write("bent.xyz", structure("ethanol"))
    options = ["relax", "--model", model, "--structure", "bent.xyz", "--out", "r"]
    done = dcase(*options, "--fmax", "5", "--vibrations")
    assert done.code == 0, done.err
    assert "converged" in done.out
    assert "wavenumbers, 1/cm: " in done.out
    assert len(ase.io.read(empty_folder / "r" / "relaxed.extxyz")) == 9
    again = dcase(*options, "--fmax", "5")
    assert again.code == 1
    assert "r already exists and holds a run: --overwrite starts again" in again.message
    # One step is too few for so small a force: the structure is written, the status says so.
    done = dcase(*options, "--fmax", "1e-6", "--steps", "1", "--overwrite")
    assert done.code == 1
    assert "written: r/relaxed.extxyz" in done.out
    assert "Traceback" not in done.err


def test_relax_in_the_precision_asked_for(dcase, empty_folder):
    atoms = structure("aspirin")
    atoms.calc = DCCalculator("aspirin_irelu.pt", dtype="float64")
    forces = atoms.get_forces()
    for dtype in ("float64", "float32"):
        dcase("relax", "--fmax", "1e-9", "--steps", "0", "--dtype", dtype, "--out", dtype)
        found = ase.io.read(empty_folder / dtype / "relaxed.extxyz").get_forces()
        worst = np.abs(found - forces).max()
        assert worst < 1e-4
        assert (worst < 1e-7) == (dtype == "float64")


def test_relax_refuses_a_cell_that_is_not_there(dcase, model):
    done = dcase("relax", "--model", model, "--cell")
    assert done.code == 1
    assert "periodic" in done.message
