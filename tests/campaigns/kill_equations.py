"""Kinds for ``kill.py``: PINNs, neural DAEs and makers of trajectories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from kill import Kind
from kill_kinds import bits, json_of, names_in, no_rows, table_rows

from dcase.dae import run as dae_run
from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.settings import DaeSettings
from dcase.dae.settings import default_settings as dae_settings
from dcase.dae.trajectories import load_or_make, make_file, make_pairs, read
from dcase.pinn.pdebench.generate import write_advection
from dcase.pinn.run import Source, train
from dcase.pinn.settings import PinnSettings, PointSettings

NETWORK = PinnSettings(
    width=8, depth=2, modes=3, optimizer="adam:40,lbfgs:10", lr=5e-3, smooth=0, windows=2, refine=1,
    hard="periodic", balance="gradient-norm", balance_every=10, checkpoint_every=0.02,
    points=PointSettings(interior=64, boundary=16, initial=16),
)  # fmt: skip
MODES = PinnSettings(
    network="modes", march="2:0.1:8", optimizer="lbfgs:8", smooth=0, checkpoint_every=0.02
)
DAE = dae_settings("pendulum").changed(
    n_train=40, n_validation=20, n_test=10, epochs=6, k=5, layers=2, hidden=8
)


def kinds(folder: Path) -> list[Kind]:
    """All of them; ``folder`` gets what they learn from."""
    waves = str(
        write_advection(folder / "waves.hdf5", [0], seed=1, cells=64, times=21, scheme="exact")
    )
    swing = simulate_pendulum(1100, substeps=2)
    pairs = make_pairs(swing, 5, 40, 20, 10, seed=0)

    def pinn(settings: PinnSettings) -> Callable[[Path, bool], object]:
        source = Source("advection", waves)
        return lambda out, resume: train(source, settings, out, resume=resume, pictures=False)

    def dae(out: Path, resume: bool) -> object:
        before = DaeSettings.train_settings

        def often(self: DaeSettings) -> Any:  # not once a minute: there is to be a state to go on
            return replace(before(self), checkpoint_every=0.02)

        with mock.patch.object(DaeSettings, "train_settings", often):
            return dae_run.train(
                DAE, out, trajectory=swing, pairs=pairs, resume=resume, pictures=False
            )

    def own_file(out: Path, resume: bool) -> object:
        target = out / "swing.h5"
        if resume and target.exists():  # killed after the last write: as the user would see
            return target
        return make_file("pendulum", target, steps=2000, substeps=4)

    def cached(out: Path, resume: bool) -> object:
        return load_or_make("pendulum", cache_dir=out, steps=2000, substeps=4)

    return [
        Kind("pinn train, network", pinn(NETWORK), _of_run, table_rows("fits/*/metrics.csv")),
        Kind("pinn train, modes", pinn(MODES), _of_run, table_rows("fits/march/metrics.csv")),
        Kind("dae train", dae, _of_run, table_rows("metrics.csv")),
        Kind("dae data, file", own_file, _of_files, no_rows),
        Kind("dae data, cache", cached, _of_files, no_rows),
    ]


def _of_run(folder: Path) -> dict[str, Any]:
    """Weights, metrics and what is in the folder."""
    content = torch.load(folder / "model.pt", weights_only=True)
    found: dict[str, Any] = {"files": names_in(folder)}
    found["metrics"] = json_of(folder / "metrics.json")
    found["status"] = json_of(folder / "run.json")["status"]
    parts = content.get("windows") or [content]
    found["weights"] = [bits(part["weights"]) for part in parts]
    return found


def _of_files(folder: Path) -> dict[str, Any]:
    names = names_in(folder)
    return {"files": names, "content": [read(folder / name).fingerprint() for name in names]}
