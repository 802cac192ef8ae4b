"""``dcase baseline``: what any network has to beat on these frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dcase.cli.notices import Notices
from dcase.cli.options import (
    Number,
    count,
    frame_count,
    json_option,
    reading_options,
    seed_option,
)
from dcase.cli.structures import load_frames
from dcase.data.dataset import AtomicDataset
from dcase.data.frames import Reading
from dcase.data.splits import split
from dcase.errors import DataError
from dcase.files import check_writable, write_json


@click.command()
@click.argument("data")
@click.option(
    "--test",
    "test_file",
    default=None,
    metavar="FILE",
    help="Frames to test on; default: those of DATA that are left.",
)
@reading_options
@click.option(
    "--target",
    type=click.Choice(["energy", "forces", "energy+forces"]),
    default=None,
    help="What the pair potential is fitted to; default: all labels there are.",
)
@click.option(
    "--energy-weight",
    type=Number(min=0.0, min_open=True),
    default=0.01,
    show_default=True,
    help="Of squared energy errors beside those of forces, 1/A^2.",
)
@frame_count("--n-train", help="Frames to fit; default: 0.8, with --test 0.9.")
@frame_count("--n-val", help="Frames that decide on the ridge; default: 0.1.")
@frame_count("--n-test", help="Frames to test on; default: the rest.")
@seed_option("Of the split.")
@click.option(
    "--cutoff",
    type=Number(min=1.0),
    default=6.0,
    show_default=True,
    help="Of the pair potential, A.",
)
@count("--parameters", default=1160, help="About how many the pair potential has.")
@json_option()
def baseline(
    data: str,
    test_file: str | None,
    reading: Reading,
    target: str | None,
    energy_weight: float,
    n_train: int | float | None,
    n_val: int | float | None,
    n_test: int | float | None,
    seed: int,
    cutoff: float,
    parameters: int,
    json_file: str | None,
) -> None:
    """Errors of the simplest models on the frames in DATA.

    DATA is an .npz of MD17 or rMD17, an .lmdb of OC22 or OC20, extxyz, .traj or .db.

    \b
    mean          the mean energy, and no forces
    composition   a sum of atomic energies, and no forces
    pairs         a pair potential, linear in its parameters, with the forces
                  that follow from it; least squares with a ridge that the
                  validation frames decide on

    A network that is not clearly better than these has not learned the forces between its atoms.
    """
    from dcase.cli.show import error_table, results_console
    from dcase.potentials.fitting.baseline import KINDS, fit_baseline
    from dcase.potentials.fitting.evaluation import evaluate_potential

    if json_file:
        check_writable(json_file)

    def read(file: str) -> AtomicDataset:
        return load_frames(file, reading, notify=Notices().note)

    dataset = read(data)
    if test_file is None:
        parts = split(len(dataset), n_train or 0.8, 0.1 if n_val is None else n_val, seed, n_test)
        if not len(parts.test):
            raise DataError(f"no frames of {data} are left to test on; lower --n-train")
        tested = dataset.subset(parts.test)
    else:
        parts = split(len(dataset), n_train or 0.9, 0.1 if n_val is None else n_val, seed)
        tested = _some(read(test_file), n_test, seed)
    train = dataset.subset(parts.train)
    validation = dataset.subset(parts.val) if len(parts.val) else None
    chosen = target or _all_labels(train)
    rows: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        fitted = fit_baseline(
            train,
            chosen,
            kind=kind,
            validation=validation,
            cutoff=cutoff,
            num_parameters=parameters,
            energy_weight=energy_weight,
            seed=seed,
        )
        rows[kind] = evaluate_potential(fitted, replace(tested, stress=None)).metrics  # type: ignore[arg-type]
        rows[kind]["parameters"] = fitted.num_parameters
    rows["pairs"] |= {"ridge": fitted.ridge, "target": chosen, "cutoff_angstrom": cutoff}
    name = Path(test_file or data).name
    title = f"MAE on {len(tested)} frames of {name}; {len(train)} fitted"
    shown = {f"{kind} ({metrics['parameters']})": metrics for kind, metrics in rows.items()}
    results_console().print(error_table(shown, title))
    if json_file:
        where = {"data": data, "test": test_file or data, "seed": seed}
        counts = {"n_train": len(train), "n_val": len(parts.val), "n_test": len(tested)}
        write_json(json_file, {**where, **counts, "baselines": rows})


def _all_labels(train: AtomicDataset) -> str:
    found = [
        name
        for name, values in (("energy", train.energies), ("forces", train.forces))
        if values is not None
    ]
    return "+".join(found) or "energy"  # without labels the fit says what is missing


def _some(dataset: AtomicDataset, count: int | float | None, seed: int) -> AtomicDataset:
    """So many of the frames, drawn with ``seed``; all if that is None."""
    if count is None:
        return dataset
    return dataset.subset(split(len(dataset), count, 0, seed, 0).train)
