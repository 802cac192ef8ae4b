"""``dcase train``: potentials from MD17, QM9, ISO17, OC22/OC20, or a user's own frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dcase.cli.notices import Notices
from dcase.cli.options import (
    SectionedCommand,
    count,
    data_dir_option,
    frame_count,
    labels_option,
    reading_options,
)
from dcase.cli.structures import load_frames
from dcase.cli.train_options import target_option, training_options, use_target
from dcase.cli.train_run import RUNNER, SHARES, Load, run_training
from dcase.data.dataset import AtomicDataset
from dcase.data.frames import Reading
from dcase.data.qm9 import TARGETS as QM9_TARGETS
from dcase.data.splits import SplitFrames, Splits, split
from dcase.potentials.fitting.recipe import Recipe

__all__ = ["RUNNER", "Load", "train"]

# Of MD17's protocol; where a set has fewer frames, SHARES of them.
_MD17_FRAMES = (950, 50)
_QM9_TEST = 10_831  # what SchNet's split leaves


@click.group()
def train() -> None:
    """Train a potential and write it as a checkpoint."""


@train.command(cls=SectionedCommand)
@training_options
@click.option(
    "--molecule",
    "-m",
    required=True,
    help="Name or abbreviation: aspirin, asp, salicylic acid, ...",
)
@click.option(
    "--source",
    default="auto",
    show_default=True,
    metavar="auto|md17|rmd17|xtb|FILE",
    help="Where the frames come from; a path is read as dcase train xyz does.",
)
@target_option
@labels_option()
@reading_options(labels=False, keys=False)
@data_dir_option
def md17(
    chosen: dict[str, Any],
    molecule: str,
    source: str,
    target: str | None,
    labels: str | None,
    reading: Reading,
    data_dir: str | None,
) -> None:
    """Train on a molecule of MD17 or rMD17; 950 frames to train and 50 to validate by default.

    The frames are taken from the cache or downloaded. Without a network the GFN2-xTB frames that
    ship with dcase are used, and a warning says so.
    """
    from dcase.data.md17 import SOURCES, load_md17
    from dcase.data.molecules import find_molecule

    known = find_molecule(molecule)
    name = molecule.replace(" ", "_") if known is None else known.name
    use_target(chosen, target)

    def load(recipe: Recipe, notices: Notices) -> AtomicDataset:
        return load_md17(
            molecule, source, labels, cache_dir=data_dir, seed=recipe.training.seed,
            notify=notices if source in SOURCES else notices.note, reading=reading,
        )  # fmt: skip

    run_training(load, chosen, name, _MD17_FRAMES)


@train.command(cls=SectionedCommand)
@training_options
@click.argument("file", type=click.Path())
@target_option
@reading_options
def xyz(
    chosen: dict[str, Any],
    file: str,
    target: str | None,
    reading: Reading,
) -> None:
    """Train on your own frames: extxyz, ASE .traj or .db, .npz, or anything that ASE reads.

    Energies in eV, forces in eV/A, stress in eV/A^3, unless --energy-unit, ... say otherwise.
    Labels: --energy-key/--forces-key, else REF_energy/REF_forces, else energy/forces (also where
    ASE moved them into a calculator). A label that is trained on and missing in any frame is an
    error. By default 95 % of the frames train and 5 % validate.

    The stress of crystals is trained on with --recipe materials or --stress-weight; its sign is
    ASE's (positive in tension). Only frames that are not periodic need none.

    The labels are looked at first (dcase data check FILE): outliers are named, and left out with
    --drop-outliers.
    """
    use_target(chosen, target)

    def load(recipe: Recipe, notices: Notices) -> AtomicDataset:
        return load_frames(file, reading, need=_labels_needed(recipe), notify=notices.note)

    run_training(load, chosen, Path(file).stem, SHARES)


@train.command(cls=SectionedCommand)
@training_options
@click.option(
    "--source",
    required=True,
    metavar="DIR|FILE",
    help="A folder with train/ and, if they are there, val_id/ and val_ood/, each with .lmdb "
    "(S2EF, as published), .extxyz, .traj or .db files; or a folder of such files; or one of them.",
)
@frame_count(
    "--n-test",
    help="Out-of-domain test frames from val_ood/ (or test/): a number, or a fraction below 1; 0: "
    "none. Default: all, at most 25000. Also limits --test.",
)
@click.option(
    "--theory",
    default=None,
    metavar="TEXT",
    help="Level of theory of labels that bear no mark of OC22 or OC20; default: as file names say.",
)
def oc22(
    chosen: dict[str, Any],
    source: str,
    n_test: int | float | None,
    theory: str | None,
) -> None:
    """Train on OC22 or OC20 (structure to energy and forces).

    Of .lmdb files only the frames drawn are read, and nothing pickled in them is run. Validation
    frames come from val_id/ if it is there, else they are split off. If val_ood/ is there, errors
    on it are reported at the end. Forces on fixed atoms are left out (--no-free-atoms counts them).
    By default all frames train, at most 200000; those with a force component above 50 eV/A
    (--max-force) do not.
    """
    from dcase.data.oc22 import MAX_FORCE, load_oc22

    def load(recipe: Recipe, notices: Notices) -> SplitFrames:
        return load_oc22(
            source,
            n_train=chosen["n_train"],
            n_val=chosen["n_val"],
            n_test=n_test,
            seed=recipe.training.seed,
            need=_labels_needed(recipe),
            max_force=recipe.data.max_force or MAX_FORCE,
            theory=theory,
            test_rest=chosen["test_rest"],
            notify=notices,
        )

    run_training(load, chosen, Path(source).resolve().stem, SHARES)


@train.command(cls=SectionedCommand)
@training_options(recipe="qm9")
@click.option(
    "--target",
    required=True,
    metavar="NAME",
    help=f"The property to learn: {', '.join(QM9_TARGETS)}. Energies are in eV, mu in Debye, alpha "
    "in a0^3, r2 in a0^2, Cv in cal/mol/K; ..._atom: less the energies of the free atoms.",
)
@click.option(
    "--source",
    default="auto",
    show_default=True,
    metavar="auto|qm9pack|figshare|PATH",
    help="Where the molecules come from: the package qm9pack (pip install 'dcase[qm9]'), the "
    "authors' archive (downloaded), or a copy of it: dsgdb9nsd.xyz.tar.bz2 or its unpacked folder.",
)
@frame_count(
    "--n-test",
    help="Test molecules, of those left: a number, or a fraction of all below 1; 0: none. "
    f"Default: all, at most {_QM9_TEST}.",
)
@data_dir_option
def qm9(
    chosen: dict[str, Any],
    target: str,
    source: str,
    n_test: int | float | None,
    data_dir: str | None,
) -> None:
    """Train on a property of QM9's 130 831 molecules; 110 000 to train, 10 000 to validate.

    Energies are sums over atoms, orbital energies means, the dipole moment and the electronic
    spatial extent come from one number per atom and the positions. The potential's forces are not
    trained: all molecules are relaxed.
    """
    from dcase.data.qm9 import N_TRAIN, N_VAL, get_target, load_qm9

    target = get_target(target).name
    if chosen["forces_weight"] is None:  # whatever the recipe says: there are none
        chosen["forces_weight"] = 0.0

    def load(recipe: Recipe, notices: Notices) -> SplitFrames:
        dataset = load_qm9(
            target, source, cache_dir=data_dir, notify=notices, progress=not chosen["quiet"]
        )
        n_train, n_val = (
            given if given is not None else min(default, int(share * len(dataset)))
            for given, default, share in (
                (chosen["n_train"], N_TRAIN, 0.841),
                (chosen["n_val"], N_VAL, 0.08),
            )
        )
        wanted = split(len(dataset), n_train, n_val, recipe.training.seed, n_test)
        if n_test is None and not chosen["test_rest"]:
            wanted = Splits(wanted.train, wanted.val, wanted.test[:_QM9_TEST])
        return SplitFrames(dataset, wanted, "rest")

    run_training(load, chosen, f"qm9_{target}", SHARES)


@train.command(cls=SectionedCommand)
@training_options
@click.option(
    "--source",
    default="auto",
    show_default=True,
    metavar="auto|DIR|FILE",
    help="auto: the authors' archive, downloaded; or a folder with its files (reference.db, "
    "test_within.db, test_other.db, train_ids.txt, validation_ids.txt; all but the first may be "
    "missing); or one database.",
)
@target_option
@count(
    "--n-test",
    least=0,
    help="Test frames of known and of unknown isomers each, at most; 0: none. Default: 10000.",
)
@data_dir_option
def iso17(
    chosen: dict[str, Any],
    source: str,
    target: str | None,
    n_test: int | None,
    data_dir: str | None,
) -> None:
    """Train on ISO17: dynamics of C7O2H10 isomers; 400 000 frames to train, 4 000 to validate.

    Only the frames drawn are read. Errors are reported on unseen frames of the isomers trained on,
    and on isomers never seen.
    """
    from dcase.data.iso17 import load_iso17

    use_target(chosen, target)

    def load(recipe: Recipe, notices: Notices) -> SplitFrames:
        return load_iso17(
            source,
            n_train=chosen["n_train"],
            n_val=chosen["n_val"],
            n_test=n_test,
            seed=recipe.training.seed,
            need=_labels_needed(recipe),
            cache_dir=data_dir,
            progress=not chosen["quiet"],
        )

    run_training(load, chosen, "iso17", SHARES)


def _labels_needed(recipe: Recipe) -> tuple[str, ...]:
    weights = {
        "energy": recipe.loss.energy_weight,
        "forces": recipe.loss.forces_weight,
        "stress": recipe.loss.stress_weight,
    }
    return tuple(name for name, weight in weights.items() if weight > 0)
