"""Kinds for ``kill.py``: potentials, simulations, labels, and the commands made of several runs."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import run_kinds
import torch
from ase.io import read
from kill import Kind, Rows
from md_models import spring_molecule

from dcase.cli.main import entry_point
from dcase.data.splits import split
from dcase.md_runs.files.trajectory import read_series
from dcase.md_runs.relax import relax
from dcase.md_runs.replicas import run_replicas
from dcase.md_runs.report.replica_report import write_replica_report
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import run_md
from dcase.potentials.calculator import DCCalculator
from dcase.potentials.ensemble import load_model
from dcase.potentials.fitting.cross_validation import cross_validate, make_folds
from dcase.potentials.fitting.fit_potential import fit_potential
from dcase.potentials.fitting.recipe import load_recipe
from dcase.potentials.networks.registry import create_potential

TIMES = (
    "elapsed_s",
    "cpu_s",
    "cpu_seconds",
    "cpu",
    "costs",
    "seconds",
    "elapsed",
    "wall_time_s",
    "begun",
    "training",
)
"""Columns and entries that no two runs have in common."""
OFTEN = 0.02  # seconds between two saves: some steps are made again, not all

REPORT_RECIPE = """
[model]
size = "tiny"
hyper_parameters = { num_interactions = 1 }
[labels]
rescale = "none"
[training]
batch_size = 4
schedule = "constant"
checkpoint_every = 0.02
[acceleration]
filter_table = 0
"""


def kinds(folder: Path) -> list[Kind]:
    """All of them; ``folder`` gets what they read."""
    tiny = folder / "tiny.toml"
    tiny.write_text(REPORT_RECIPE)
    potential = create_potential(elements="HO", size="tiny", seed=0, filter_knots=32)

    def water() -> Any:
        atoms = spring_molecule("H2O")
        atoms.calc = DCCalculator(potential, dtype="float64")
        return atoms

    def table(out: Path, resume: bool) -> None:
        command(
            "reproduce", "report-table2", "-m", "ethanol", "--source", "xtb", "--recipe", tiny,
            "--train", "24", "--test", "10", "--epochs", "4", "--task", "forces", "--quiet",
            "--out", out,
        )  # fmt: skip

    return [
        Kind("train", train, weights_of("a.pt"), table_rows("a.run/metrics.csv")),
        Kind("cross-validate", folds, weights_of("a.pt", "a.run/fold-*.pt"),
             table_rows("a.run/fold-*.run/metrics.csv")),
        Kind("md, nve", md("nve", water), _of_md, _rows_of_md),
        Kind("md, langevin", md("langevin", water), _of_md, _rows_of_md),
        Kind("md --replicas", functools.partial(replicas, water), _of_md, _rows_of_replicas),
        Kind("relax", downhill, _of_relax, _rows_of_relax),
        Kind("active-learn", active, weights_of("a/ensemble.pt"), table_rows("a/**/metrics.csv")),
        Kind("data generate", labels, names_only, _rows_of_labels),
        Kind("quickstart", quickstart, weights_of("a/ethanol_irelu.pt"), _rows_of_quickstart),
        Kind("reproduce", table, _of_reproduce, _rows_of_reproduce),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------ what they do


def train(out: Path, resume: bool) -> None:
    chosen = {"training.epochs": 12, "training.checkpoint_every": OFTEN}
    fit_potential(
        run_kinds.water(), split(14, 8, 4, 0), run_kinds.recipe(None, **chosen), out / "a.pt",
        resume=resume, draw=False,
    )  # fmt: skip


def folds(out: Path, resume: bool) -> None:
    chosen = {"training.epochs": 4, "training.checkpoint_every": OFTEN}
    recipe = run_kinds.recipe(None, **chosen)
    cross_validate(run_kinds.water(), make_folds(14, 2, 0), recipe, out / "a.pt", resume=resume)


def md(ensemble: str, atoms: Callable[[], Any]) -> Callable[[Path, bool], None]:
    settings = MDSettings(
        steps=400, equilibrate=30, checkpoint_every=10, log_every=1, traj_every=2, timestep_fs=0.1,
        temperature_K=50.0, force_timestep=True, ensemble=ensemble,
    )  # fmt: skip

    def work(out: Path, resume: bool) -> None:
        with mock.patch("dcase.md_runs.loop.engine.SAVE_SECONDS", OFTEN):
            run_md(atoms(), settings, out / "a", resume=resume)

    return work


def replicas(atoms: Callable[[], Any], out: Path, resume: bool) -> None:
    settings = MDSettings(
        steps=200, equilibrate=20, checkpoint_every=10, log_every=1, traj_every=5, timestep_fs=0.1,
        temperature_K=50.0, force_timestep=True,
    )  # fmt: skip

    def conclude(status: str) -> None:
        write_replica_report(out / "a", status)

    run_replicas(atoms(), settings, 3, out / "a", resume=resume, conclude=conclude)


def downhill(out: Path, resume: bool) -> None:
    """There is nothing to go on with: ``--overwrite``, as its user would."""
    atoms = spring_molecule("CH4")
    atoms.rattle(0.1, seed=2)
    relax(atoms, out=out / "a", overwrite=resume)


def active(out: Path, resume: bool) -> None:
    run_kinds.active(out, None, run_kinds.nothing, resume=resume)


def labels(out: Path, resume: bool) -> None:
    with mock.patch("dcase.data.generate.SAVE_EVERY", 0.0):
        run_kinds.generate(out, None, run_kinds.nothing, resume=resume)


def quickstart(out: Path, resume: bool) -> None:
    """Begun anew after a kill; a number of epochs in place of the time limit."""
    from dcase.md_runs.analysis import dt_scan as scan

    chosen = {
        "model.size": "tiny", "training.epochs": 2, "training.checkpoint_every": OFTEN,
        "acceleration.filter_table": 0,
    }  # fmt: skip
    recipe = load_recipe("default", chosen)
    with (
        mock.patch("dcase.cli.train_run.chosen_recipe", return_value=recipe),
        mock.patch.object(scan, "dt_scan", functools.partial(scan.dt_scan, duration_fs=0.2)),
    ):
        command(
            "quickstart", "--molecule", "ethanol", "--steps", "20", "--out", out / "a",
            *(["--overwrite"] if resume else []),
        )  # fmt: skip


def command(*arguments: Any) -> None:
    """A command line that has to succeed."""
    try:
        entry_point([str(a) for a in arguments])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"exit status {end.code}") from end


# ------------------------------------------------------------------------------- what came of them


def names_in(folder: Path) -> list[str]:
    """All files but locks: what a kill has left half written is to be swept."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".lock"))
    return sorted(str(p.relative_to(folder)) for p in files)


def bits(weights: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """Tensors, to the last bit."""
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in weights.items()}


def json_of(path: Path) -> dict[str, Any]:
    """What a JSON file holds but for times."""
    return {k: v for k, v in json.loads(path.read_text()).items() if k not in TIMES}


def names_only(folder: Path) -> dict[str, Any]:
    return {"files": names_in(folder)}


def weights_of(*patterns: str) -> Callable[[Path], dict[str, Any]]:
    """Weights of the potentials, and which files there are."""

    def result(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = names_only(folder)
        for path in sorted(p for pattern in patterns for p in folder.glob(pattern)):
            found[str(path.relative_to(folder))] = bits(dict(load_model(path).state_dict()))
        return found

    return result


def no_rows(folder: Path) -> Rows:
    return {}


def table_rows(*patterns: str) -> Callable[[Path], Rows]:
    """Rows of CSV files without times."""

    def rows(folder: Path) -> Rows:
        found: Rows = {}
        for path in sorted(p for pattern in patterns for p in folder.glob(pattern)):
            with open(path, newline="", encoding="utf-8") as file:
                found[str(path.relative_to(folder))] = [
                    tuple(v for k, v in row.items() if k not in TIMES)
                    for row in csv.DictReader(file)
                ]
        return found

    return rows


def _bytes_of(array: Any) -> list[bytes]:
    return [np.ascontiguousarray(row).tobytes() for row in np.asarray(array)]


def _of_md(folder: Path) -> dict[str, Any]:
    return {**names_only(folder), "final": (folder / "a" / "final.extxyz").read_bytes()}


def _rows_of_md(folder: Path) -> Rows:
    series = np.stack(list(read_series(folder / "a").values()), axis=1)
    with h5py.File(folder / "a" / "trajectory.h5") as file:
        atoms = next(iter(file["particles"].values()))
        frames = [atoms[name]["value"][:] for name in ("position", "velocity")]
    return {"series": _bytes_of(series), "frames": _bytes_of(np.concatenate(frames, axis=1))}


def _rows_of_replicas(folder: Path) -> Rows:
    with h5py.File(folder / "a" / "replicas.h5") as file:
        columns = [file["time"][:][:, None], file["potential_energy"][:], file["kinetic_energy"][:]]
        times, places = file["frame_time"][:], file["positions"][:]
    frames = np.concatenate([times[:, None], places.reshape(len(times), -1)], axis=1)
    return {"series": _bytes_of(np.concatenate(columns, axis=1)), "frames": _bytes_of(frames)}


def _of_relax(folder: Path) -> dict[str, Any]:
    found = json_of(folder / "a" / "relax.json")
    return {**names_only(folder), "numbers": found,
            "relaxed": (folder / "a" / "relaxed.extxyz").read_bytes()}  # fmt: skip


def _rows_of_relax(folder: Path) -> Rows:
    images = read(folder / "a" / "relaxation.extxyz", ":")
    return {"frames": [image.positions.tobytes() for image in images]}


def _rows_of_labels(folder: Path) -> Rows:
    with np.load(folder / "a.npz") as file:
        rows = zip(*(_bytes_of(file[name]) for name in ("R", "E", "F", "walker")), strict=True)
        return {"frames": list(rows)}


def _rows_of_quickstart(folder: Path) -> Rows:
    return {
        **table_rows("a/*.run/metrics.csv")(folder),
        "relaxation": [i.positions.tobytes() for i in
                       read(folder / "a" / "relax" / "relaxation.extxyz", ":")],
        "series": _bytes_of(np.stack(list(read_series(folder / "a" / "md").values()), axis=1)),
    }  # fmt: skip


def _of_reproduce(folder: Path) -> dict[str, Any]:
    found = weights_of("runs/*/potential.pt")(folder)
    found["results"] = [json_of(path) for path in sorted(folder.glob("runs/*/result.json"))]
    return found


def _rows_of_reproduce(folder: Path) -> Rows:
    found = table_rows("runs/*/*.run/metrics.csv")(folder)
    for path in sorted(folder.glob("runs/*/losses.npy")):
        found[str(path.relative_to(folder))] = _bytes_of(np.load(path))
    return found
