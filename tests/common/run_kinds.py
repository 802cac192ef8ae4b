"""Kinds of run that go through the record, small: what the conformance test runs.

A kind knows how to begin a run of a few steps, how to change one thing about it, and what of its
folder is the result (without times). ``on_step`` is called from the inside of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from processes import die_at_write

from dcase.runs import Place, fingerprint


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: Of the kind.
        begin: ``begin(out, change, on_step, resume=, overwrite=)``.
        place: Its files, given ``out``.
        result: What it computed, given ``out``, as a digest.
        changes: What can be changed about it, each of which a resume must refuse.
        refusal: What the refusal of each change says.
        resumable: Whether it can be gone on with.
        asks: Whether it needs to be told to go on (else the same command does).
    """

    name: str
    begin: Callable[..., Any]
    place: Callable[[Path], Place]
    result: Callable[[Path], str]
    changes: dict[str, str]
    resumable: bool = True
    asks: bool = True


def nothing(*_: Any) -> None:
    """No step is watched."""


# ------------------------------------------------------------------------------------- training


@cache
def water() -> Any:
    from dcase.data.dataset import AtomicDataset

    rng = np.random.default_rng(3)
    shape = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    noise = 0.05 * rng.standard_normal((14, 3, 3))
    return AtomicDataset(
        numbers=np.tile([8, 1, 1], 14),
        positions=(shape + noise).reshape(-1, 3),
        ptr=3 * np.arange(15),
        energies=40.0 * (noise**2).sum(axis=(1, 2)) - 2000.0,
        forces=(-80.0 * noise).reshape(-1, 3),
    )


def recipe(change: str | None, **more: Any) -> Any:
    from dcase.potentials.fitting.recipe import load_recipe

    chosen = {
        "model.size": "tiny",
        "training.epochs": 4,
        "training.batch_size": 4,
        "training.checkpoint_every": 1e-9,  # after every step
        "training.lr": 2e-3 if change == "settings" else 4e-3,
        "acceleration.filter_table": 0,
        **more,
    }
    return load_recipe("default", chosen)


def frames(change: str | None) -> Any:
    """The frames, or as many of the same shape with other energies."""
    dataset = water()
    return replace(dataset, energies=dataset.energies * 1.5) if change == "data" else dataset


def train(out: Path, change: str | None, on_step: Callable[..., None], **options: Any) -> None:
    from dcase.data.splits import split
    from dcase.potentials.fitting.fit_potential import fit_potential

    splits = split(14, 8, 4, 1 if change == "split" else 0)
    fit_potential(frames(change), splits, recipe(change), out / "a.pt", on_step=on_step, **options)


def cross_validate(
    out: Path, change: str | None, on_step: Callable[..., None], **options: Any
) -> None:
    from dcase.potentials.fitting.cross_validation import cross_validate, make_folds

    folds = make_folds(14, 2, 1 if change == "folds" else 0)
    chosen = recipe(change, **{"training.epochs": 2})
    cross_validate(frames(change), folds, chosen, out / "a.pt", on_step=on_step, **options)


def weights(path: Path) -> str:
    from dcase.potentials.ensemble import load_model

    return fingerprint(dict(load_model(path).state_dict()))


def training_place(out: Path) -> Place:
    from dcase.potentials.fitting import fit_potential

    return fit_potential.training_place(out / "a.pt")


def folds_place(out: Path) -> Place:
    from dcase.potentials.fitting import cross_validation

    return cross_validation.cross_validation_place(out / "a.pt")


# ------------------------------------------------------------------- active learning, labels


def active(out: Path, change: str | None, on_step: Callable[..., None], **options: Any) -> None:
    from contextlib import contextmanager

    from ase import Atoms
    from ase.calculators.emt import EMT

    from dcase.md_runs.active.labels import Labeller
    from dcase.md_runs.active.loop import ActiveLearning
    from dcase.md_runs.active.settings import ActiveSettings
    from dcase.md_runs.active.start import Start

    @contextmanager
    def bar(title: str) -> Any:
        yield on_step

    shape = [[0, 0, 0], [2.35, 0, 0], [1.2, 2.05, 0], [1.2, 0.7, 1.95]]
    start = Start(
        structure=Atoms("Cu4", shape), count=4, rattle_A=0.2 if change == "data" else 0.15
    )
    settings = ActiveSettings(
        rounds=1, per_round=2, members=2, walkers=2, steps=20, temperatures_K=(400.0,),
        timestep_fs=3.0, frame_every=5, training_steps=4,
        max_uncertainty_eV_A=5.0, seed=1 if change == "settings" else 0,
    )  # fmt: skip
    lr = {"training.lr": 1e-3} if change == "recipe" else {}
    labeller = Labeller("emt", EMT, "EMT")
    ActiveLearning(
        start, labeller, recipe(None, **lr), settings, out / "a", bar=bar, **options
    ).run()


def active_place(out: Path) -> Place:
    from dcase.md_runs.active.folder import ActiveFolder

    return ActiveFolder(out / "a").place


def generate(
    out: Path, change: str | None, on_step: Callable[..., None], *, resume: bool = False,
    overwrite: bool = False,
) -> None:  # fmt: skip
    from dcase.data import generate as module

    temperature = 400.0 if change == "settings" else 300.0
    source = "[H][H]" if change == "data" else "O"
    module.generate(
        source, 4, temperature=temperature, timestep=0.5, interval=2.0, equilibrate=2.0, walkers=2,
        out=out / "a.npz", resume=not overwrite, progress=on_step,
    )  # fmt: skip


def generate_place(out: Path) -> Place:
    from dcase.data.generate_state import place_of

    return place_of(out / "a.npz")


def labels(out: Path) -> str:
    with np.load(out / "a.npz") as file:
        return fingerprint({name: file[name] for name in "REF"})


# ------------------------------------------------------------------------------- simulations


@cache
def hydride(seed: int) -> Any:
    from dcase.potentials.networks.registry import create_potential

    return create_potential(elements="HO", size="tiny", seed=seed, filter_knots=32)


def molecule(change: str | None) -> Any:
    """Water with a network, and what can be another about it."""
    from md_models import spring_molecule

    from dcase.potentials.calculator import DCCalculator

    atoms = spring_molecule("H2O")
    atoms.set_cell([9.0, 9.0, 9.5 if change == "cell" else 9.0])
    if change == "masses":
        atoms.set_masses(2.0 * atoms.get_masses())
    elif change == "boundaries":
        atoms.pbc = True
    elif change == "data":
        atoms.positions[0, 0] += 1e-9
    elif change == "charges":
        atoms.set_initial_charges([0.1, 0.0, -0.1])
    dtype = "float32" if change == "dtype" else "float64"
    atoms.calc = DCCalculator(hydride(int(change == "weights")), dtype=dtype)
    return atoms


def simulation(copies: int | None) -> Callable[..., None]:
    def begin(out: Path, change: str | None, on_step: Callable[..., None], **options: Any) -> None:
        from dcase.md_runs.loop import engine, replica_batch
        from dcase.md_runs.replicas import run_replicas
        from dcase.md_runs.settings import MDSettings
        from dcase.md_runs.simulate import run_md

        settings = MDSettings(
            steps=30, equilibrate=2, checkpoint_every=5, traj_every=5, force_timestep=True,
            temperature_K=50.0, timestep_fs=0.1, seed=1 if change == "settings" else 0,
        )  # fmt: skip
        options["progress"] = on_step
        with (  # both at every checkpoint, however short ago the last was
            mock.patch.multiple(engine, PROGRESS_SECONDS=-1.0, SAVE_SECONDS=0.0),
            mock.patch.object(replica_batch, "PROGRESS_SECONDS", -1.0),
        ):
            if copies is not None:
                run_replicas(molecule(change), settings, copies, out / "a", **options)
            elif run_md(molecule(change), settings, out / "a", **options).status == "interrupted":
                raise KeyboardInterrupt

    return begin


def simulation_place(copies: int | None) -> Callable[[Path], Place]:
    def place(out: Path) -> Place:
        from dcase.md_runs.files.replica_folder import ReplicaFolder
        from dcase.md_runs.files.run_folder import RunFolder

        return (RunFolder if copies is None else ReplicaFolder)(out / "a").place

    return place


def journals(out: Path) -> str:
    """All rows and frames, with their checksums: what trajectories and reports are made of."""
    return fingerprint([np.fromfile(p, "u1") for p in sorted((out / "a" / "state").glob("*.f64"))])


def relaxation(out: Path, change: str | None, on_step: Callable[..., None], **options: Any) -> None:
    from md_models import spring_molecule

    from dcase.md_runs.relax import relax

    atoms = spring_molecule("CH4")
    atoms.rattle(0.1, seed=2)
    relax(atoms, out=out / "a", progress=on_step, **options)


def relaxation_place(out: Path) -> Place:
    from dcase.md_runs.relax import FILES

    return Place(out / "a", files=FILES, goes_on=False)


def descent(out: Path) -> str:
    return fingerprint(np.fromfile(out / "a" / "relaxation.extxyz", "u1"))


# ------------------------------------------------------------------------ equations, dynamics


def advection(out: Path, change: str | None) -> Path:
    from dcase.pinn.pdebench.generate import write_advection

    path = out / f"{'other' if change == 'data' else 'wave'}.hdf5"
    if not path.exists():
        write_advection(path, [0], seed=2 if change == "data" else 1, cells=64, times=21)
    return path


def pinn(network: str) -> Callable[..., None]:
    def begin(out: Path, change: str | None, on_step: Callable[..., None], **options: Any) -> None:
        from dcase.pinn.run import Source, train
        from dcase.pinn.settings import PinnSettings

        # Beside the run's folder, which has to stay as it is.
        source = Source("advection", str(advection(out.parent, change)))
        settings = PinnSettings(width=8, smooth=0, checkpoint_every=1e-9)
        if network == "modes":
            optimizer = "lbfgs:4" if change == "settings" else "lbfgs:3"
            settings = settings.changed(
                network="modes", march="1:0.5:8,2:0.5:8", optimizer=optimizer
            )
        else:
            settings = settings.changed(
                depth=2, modes=3, optimizer="adam:12,lbfgs:4",
                interior=64, boundary=16, initial=16,
                lr=1e-3 if change == "settings" else 5e-3,
            )  # fmt: skip
        if change == "dtype":
            settings = settings.changed(dtype="float32")
        train(source, settings, out / "a", pictures=False, on_step=on_step, **options)

    return begin


def pinn_place(out: Path) -> Place:
    return Place(out / "a", files=("*",))


def solution(out: Path) -> str:
    metrics = json.loads((out / "a" / "metrics.json").read_text())
    same = ("fields", "terms", "steps", "status", "violation", "best")
    model = torch.load(out / "a" / "model.pt", weights_only=True)
    weights = {k: v for k, v in model.items() if k in ("weights", "windows")}
    assert weights
    return fingerprint({k: metrics[k] for k in same if k in metrics}, weights)


@cache
def swing(seed: int) -> Any:
    from dcase.dae.pendulum import simulate_pendulum

    return simulate_pendulum(1100 + seed, substeps=2)


def dae(out: Path, change: str | None, on_step: Callable[..., None], **options: Any) -> None:
    from dcase.dae.run import train
    from dcase.dae.settings import default_settings
    from dcase.dae.trajectories import make_pairs

    settings = default_settings("pendulum").changed(
        n_train=16, n_validation=8, n_test=8, epochs=3, k=5, method="auxiliary", layers=2, hidden=4,
        eta=1.0 if change == "settings" else 10.0,
    )  # fmt: skip
    if change == "dtype":
        settings = settings.changed(dtype="float32")
    trajectory = swing(1 if change == "data" else 0)
    pairs = make_pairs(trajectory, 5, 16, 8, 8, seed=0, split=settings.split)
    train(
        settings, out / "a", trajectory=trajectory, pairs=pairs, pictures=False, on_step=on_step,
        **options,
    )  # fmt: skip


# ---------------------------------------------------------------------------------- all of them

MOLECULE = {
    "settings": "seed was 0, now 1", "data": "other positions", "weights": "another model",
    "dtype": "dtype was float64, now float32", "masses": "other masses", "cell": "other cell",
    "boundaries": "other periodic boundaries", "charges": "other charges",
}  # fmt: skip
TRAINING = {"settings": "training.lr was 0.004, now 0.002", "data": "other frames"}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("train", train, training_place, lambda out: weights(out / "a.pt"),
             {**TRAINING, "split": "other split"}),
        Kind("cross-validate", cross_validate, folds_place, lambda out: weights(out / "a.pt"),
             {**TRAINING, "folds": "other folds"}),
        Kind("active-learn", active, active_place, lambda out: weights(out / "a" / "ensemble.pt"),
             {"settings": "seed was 0, now 1", "data": "other start",
              "recipe": "recipe.training.lr was"}),
        Kind("data generate", generate, generate_place, labels,
             {"settings": "temperature_K was 300.0, now 400.0", "data": "source was"}, asks=False),
        Kind("md", simulation(None), simulation_place(None), journals, MOLECULE),
        Kind("md replicas", simulation(2), simulation_place(2), journals, MOLECULE),
        Kind("relax", relaxation, relaxation_place, descent, {}, resumable=False),
        Kind("pinn train", pinn("mlp"), pinn_place, solution,
             {"settings": "lr was", "data": "other", "dtype": "dtype was"}),
        Kind("pinn train, modes", pinn("modes"), pinn_place, solution,
             {"settings": "optimizer was", "data": "other"}),
        Kind("dae train", dae, lambda out: Place(out / "a", files=("*",)), solution,
             {"settings": "eta was", "data": "other", "dtype": "dtype was"}),
    )
}  # fmt: skip


def no_pictures() -> Any:
    """Inside, pictures are files as ever, without what takes half the time of so small a run."""
    return mock.patch("dcase.plotting.png", return_value=b"a picture")


def begin_and_die(name: str, out: Path, number: int) -> None:
    """For a process of its own: begin a run and be killed at a write, see :mod:`processes`."""
    no_pictures().start()
    die_at_write(number)
    KINDS[name].begin(out, None, nothing)


def one_thread() -> None:
    """So that sums have one order in every process."""
    torch.set_num_threads(1)


def table() -> str:
    """What ``tests/runs/test_run_conformance.py`` asks of each kind, as Markdown for the docs."""
    columns = {
        "other settings": lambda k: "settings" in k.changes and "refused",
        "data": lambda k: "data" in k.changes and "refused",
        "weights": lambda k: "weights" in k.changes and "refused",
        "dtype": lambda k: "dtype" in k.changes and "refused",
        "run there, no flag": lambda k: k.asks and "refused",
        "nothing to resume": lambda k: k.resumable and k.asks and "refused",
        "beside a live run": lambda k: "refused",
        "finished, resumed": lambda k: k.resumable and "same",
        "stopped, resumed": lambda k: k.resumable and "same",
        "killed in a write, resumed": lambda k: k.resumable and "same",
        "overwritten": lambda k: "as new",
        "folder moved or removed": lambda k: "ends",
    }
    lines = ["| kind | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for kind in KINDS.values():
        cells = (case(kind) or "" for case in columns.values())
        lines.append(f"| {kind.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
