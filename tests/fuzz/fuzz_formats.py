"""Every kind of file that dcase reads: how to make a small one, and how to read all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_mutations as mutations
import numpy as np
import torch


def digest(value: Any) -> str:
    """Equal for equal content: arrays, tensors, plain values, and objects of these."""
    result = hashlib.sha256()
    for part in _parts(value):
        result.update(part)
    return result.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield from _parts(value.detach().numpy())
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield f"{key}:".encode()
            yield from _parts(value[key])
    elif isinstance(value, list | tuple):
        yield f"[{len(value)}".encode()
        for item in value:
            yield from _parts(item)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _parts({k: v for k, v in vars(value).items() if k not in ("source", "sha256")})
    else:
        yield repr(value).encode()


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: Of the kind.
        file: Name of the file.
        make: Writes one at a path.
        read: Reads all of it.
        mutate: The damage.
        ours: Whether dcase alone writes it, so that it can have checksums.
    """

    name: str
    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    mutate: Callable[[bytes, int], bytes] = mutations.damaged
    ours: bool = False


# ------------------------------------------------------------------------------------- atoms


def _frames() -> list[Any]:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    rng = np.random.default_rng(0)
    frames = []
    for _ in range(4):
        atoms = Atoms("OH2", rng.normal(0, 1, (3, 3)), cell=[8, 8, 9], pbc=True)
        atoms.calc = SinglePointCalculator(
            atoms, energy=float(rng.normal()), forces=rng.normal(0, 1, (3, 3))
        )
        frames.append(atoms)
    return frames


def _write_frames(path: Path) -> None:
    import ase.io

    ase.io.write(path, _frames())


def _read_atoms(path: Path) -> Any:
    from dcase.data.atoms_files import read_atoms

    return vars(read_atoms(path))


def _write_npz(path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        path,
        z=np.array([8, 1, 1], dtype=np.uint8),
        R=rng.normal(0, 1, (5, 3, 3)),
        E=rng.normal(0, 1, (5, 1)),
        F=rng.normal(0, 1, (5, 3, 3)),
        name="water",
        theory="test",
        e_unit="eV",
    )


def _read_npz(path: Path) -> Any:
    from dcase.data.npz import read_npz

    return vars(read_npz(path))


def _write_iso17(path: Path) -> None:
    from ase.db import connect

    with connect(path) as database:
        for atoms in _frames():
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            atoms.calc, atoms.pbc = None, False
            row = {"total_energy": energy}
            database.write(atoms, key_value_pairs=row, data={"atomic_forces": forces})


def _read_iso17(path: Path) -> Any:
    from dcase.data.iso17 import count_rows, read_rows

    rows = np.arange(min(count_rows(path), 10))
    cache = path.parent / "cache"
    return vars(read_rows(path, rows, cache_dir=cache, progress=False))


def _write_lmdb(path: Path) -> None:
    import pickle

    import lmdb
    from torch_geometric.data import Data

    environment = lmdb.open(str(path), map_size=2**22, subdir=False)
    with environment.begin(write=True) as transaction:
        for number, atoms in enumerate(_frames()):
            data = Data(
                pos=torch.tensor(atoms.positions),
                cell=torch.tensor(atoms.cell.array)[None],
                atomic_numbers=torch.tensor(atoms.numbers, dtype=torch.float32),
                y=atoms.get_potential_energy(),
                force=torch.tensor(atoms.get_forces()),
            )
            transaction.put(b"%d" % number, pickle.dumps(data, protocol=-1))
        transaction.put(b"length", pickle.dumps(4))
    environment.close()


def _read_lmdb(path: Path) -> Any:
    from dcase.data.lmdb_frames import read_lmdb

    return vars(read_lmdb(path))


# --------------------------------------------------------------------------- what dcase writes


def _write_potential(path: Path) -> None:
    from dcase.potentials.networks.registry import resolve_hyper_parameters
    from dcase.potentials.potential import build_potential

    values = resolve_hyper_parameters(
        "schnet", "md17", {"num_filters": 4, "hidden_channels": 4, "num_interactions": 1}
    )
    build_potential("schnet", values, [1, 8]).save(path)


def _read_potential(path: Path) -> Any:
    from dcase.potentials.ensemble import load_model

    model = load_model(path)
    return [model.state_dict(), vars(model.scale), model.metadata, model.hyper_parameters]


def _write_state(path: Path) -> None:
    from dcase import checkpoint

    rng = np.random.default_rng(0)
    weights = {name: torch.tensor(rng.normal(0, 1, (6, 5))) for name in ("a", "b")}
    content = {
        "identity": {"data": "x"},
        "settings": {"epochs": 3, "lr": 0.1},
        "terms": {"energy": [1.0, "l2", 1.0]},
        "model": weights,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": weights["a"]}}, "param_groups": []},
        "best_weights": list(weights.values()),
        "epoch": 2,
    }
    checkpoint.save(path, "training", 1, content)


def _read_state(path: Path) -> Any:
    from dcase.training.state import load_state

    run = {"identity": {"data": "x"}, "settings": {"lr": 0.1}}
    return load_state(path, run | {"terms": {"energy": [1.0, "l2", 1.0]}})


def _write_trajectory(path: Path) -> None:
    from ase.build import molecule

    from dcase.md_runs.files.run_folder import FRAME, SERIES
    from dcase.md_runs.files.trajectory import write_trajectory

    rng = np.random.default_rng(0)
    atoms = molecule("H2O")
    frames = rng.normal(0, 1, (6, len(FRAME) + 18))
    series = rng.normal(0, 1, (20, len(SERIES)))
    frames[:, 0], series[:, 0] = np.arange(6), np.arange(20)
    write_trajectory(path, atoms, frames, series, 0.5, {"model": "x"})


def _read_trajectory(path: Path) -> Any:
    from dcase.md_runs.files import trajectory

    frames = trajectory.read_trajectory(path)
    plain = [[f.positions, f.get_velocities(), f.numbers, f.info, f.cell.array] for f in frames]
    masses = [f.get_masses() for f in frames]
    return [
        plain,
        masses,
        trajectory.rows_of(path),
        trajectory.read_series(path),
        trajectory.read_observables(path),
    ]


def _write_constrained(path: Path) -> None:
    from dcase.dae.pendulum import simulate_pendulum
    from dcase.dae.trajectory_file import write

    write(path, simulate_pendulum(40, n=2))


def _read_constrained(path: Path) -> Any:
    from dcase.dae.trajectory_file import read

    return vars(read(path))


def _write_pdebench(path: Path) -> None:
    from dcase.pinn.pdebench.generate import write_advection

    write_advection(path, [0, 1], beta=0.4, cells=64, times=9, seed=0)


def _read_pdebench(path: Path) -> Any:
    from dcase.pinn.pdebench.reading import describe_file, read_sample

    return [vars(describe_file(path)), vars(read_sample(path, 0)), vars(read_sample(path, 1))]


def _write_recipe(path: Path) -> None:
    from dcase.potentials.fitting.recipe import RECIPE_DIR

    path.write_text((RECIPE_DIR / "default.toml").read_text())


def _read_recipe(path: Path) -> Any:
    from dcase.potentials.fitting.recipe import load_recipe

    return load_recipe(str(path)).to_dict()


def _write_record(path: Path) -> None:
    settings = {"lr": 0.1, "epochs": 3, "table": {"a": [1, 2]}}
    identity = {"kind": "md", "settings": settings, "free": ["epochs"], "data": "ab", "model": "c"}
    record = {
        "format": 1,
        "kind": "md",
        "identity": identity | {"dtype": "float64", "version": 1},
        "status": "finished",
    }
    path.write_text(json.dumps(record, indent=2))


def _read_record(path: Path) -> Any:
    from dcase.runs import Identity, read_record

    record = read_record(path.parent)
    return [record, Identity("md").differences(record["identity"])]


def _write_checkpoint(path: Path) -> None:
    from ase.build import molecule

    from dcase.md_runs.files.run_folder import Checkpoint

    atoms = molecule("H2O")
    rng = np.random.default_rng(0)
    Checkpoint(
        step=5,
        production=True,
        positions=atoms.positions,
        momenta=rng.normal(0, 1, (3, 3)),
        potential_energy=1.0,
        start=atoms,
        dynamics={"rng": np.arange(4)},
        uncertainty={},
        series_rows=5,
        frame_rows=1,
        wall_time_s=1.0,
        equilibration_s=0.5,
    ).save(path)


def _read_checkpoint(path: Path) -> Any:
    from dcase.md_runs.files.run_folder import Checkpoint

    found = vars(Checkpoint.load(path))
    start = found.pop("start")
    return [found, start.positions, start.numbers, start.get_masses(), start.cell.array, start.pbc]


def _write_journal(path: Path) -> None:
    from dcase.md_runs.files.journal import Journal

    rng = np.random.default_rng(0)
    journal = Journal(path, 8)
    for _ in range(5):
        journal.append(rng.normal(0, 1, (7, 8)))
        journal.flush()
    journal.close()


def _read_journal(path: Path) -> Any:
    from dcase.md_runs.files.journal import read_rows, sums_of

    beside = sums_of(path)
    if not beside.exists():  # only the rows are damaged here
        whole = path.with_name("of_whole")
        _write_journal(whole)
        sums_of(whole).rename(beside)
    return np.array(read_rows(path, 8))


FORMATS = {
    f.name: f
    for f in (
        Format("potential", "a.pt", _write_potential, _read_potential, ours=True),
        Format("training state", "state.pt", _write_state, _read_state, ours=True),
        Format("MD17 npz", "a.npz", _write_npz, _read_npz),
        Format("extxyz", "a.extxyz", _write_frames, _read_atoms, mutations.damaged_text),
        Format("ASE traj", "a.traj", _write_frames, _read_atoms),
        Format("ASE db", "a.db", _write_frames, _read_atoms),
        Format("LMDB", "a.lmdb", _write_lmdb, _read_lmdb),
        Format("ISO17 db", "reference.db", _write_iso17, _read_iso17),
        Format("PDEBench HDF5", "a.hdf5", _write_pdebench, _read_pdebench),
        Format("MD trajectory", "trajectory.h5", _write_trajectory, _read_trajectory, ours=True),
        Format("DAE trajectory", "a.h5", _write_constrained, _read_constrained, ours=True),
        Format("recipe", "a.toml", _write_recipe, _read_recipe, mutations.damaged_text),
        Format("run record", "run.json", _write_record, _read_record, mutations.damaged_json),
        Format("MD journal", "series.f64", _write_journal, _read_journal, ours=True),
        Format("MD checkpoint", "checkpoint.npz", _write_checkpoint, _read_checkpoint, ours=True),
    )
}
