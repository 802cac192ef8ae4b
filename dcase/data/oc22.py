"""OC22 and OC20: folders of LMDB shards or ASE files, and the frames of them to work on.

Only the frames that are asked for are read from LMDB shards: they are counted first, then drawn.
ASE files are read whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dcase.data.atoms_files import read_atoms
from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.data.lmdb_frames import OC20_THEORY, OC22_THEORY, LmdbFile, read_lmdb
from dcase.data.splits import SplitFrames, Splits, split
from dcase.errors import DataError, OptionError

LMDB = (".lmdb",)
ASE_FILES = (".extxyz", ".xyz", ".traj", ".db")

# The paper's numbers of training and test frames (5.1.2); validation is every epoch, so it is less.
MAX_TRAIN, MAX_VAL, MAX_TEST = 200_000, 5_000, 25_000
VAL_SHARE = 0.05
MAX_FORCE = 50.0

_VALIDATION = ("val_id", "val")
_OUT_OF_DOMAIN = ("val_ood", "val_ood_*", "test")


@dataclass
class _Pool:
    """The frames of one folder or file, counted but not read (ASE files: read)."""

    name: str
    files: list[Path]
    need: Sequence[str]
    theory: str | None
    counts: list[int] = field(default_factory=list)
    loaded: dict[int, AtomicDataset] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, file in enumerate(self.files):
            if file.suffix in LMDB:
                with LmdbFile(file) as shard:
                    self.counts.append(len(shard))
            else:
                self.loaded[number] = read_atoms(file, need=self.need)
                self.counts.append(len(self.loaded[number]))

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, chosen: np.ndarray) -> AtomicDataset:
        """The frames ``chosen`` (ascending)."""
        first = np.concatenate([[0], np.cumsum(self.counts)])
        parts = []
        for number, file in enumerate(self.files):
            mine = chosen[(chosen >= first[number]) & (chosen < first[number + 1])] - first[number]
            if len(mine) and number in self.loaded:
                parts.append(self.loaded[number].subset(mine))
            elif len(mine):
                parts.append(read_lmdb(file, mine, need=self.need))
        return join(parts, self.name, self.theory)


def load_oc22(
    source: str | os.PathLike[str],
    *,
    n_train: int | float | None = None,
    n_val: int | float | None = None,
    n_test: int | float | None = None,
    seed: int = 0,
    need: Sequence[str] = ("energy", "forces"),
    max_force: float = MAX_FORCE,
    theory: str | None = None,
    test_rest: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> SplitFrames:
    """Frames of OC22 or OC20, split as published where the folder is.

    ``source`` is a file (.lmdb, .extxyz, .traj, .db), a folder of such files, or a folder with
    ``train/`` and, each optional, ``val_id/`` (or ``val/``: validation) and ``val_ood/`` (or
    ``val_ood_*/``, or ``test/``: test frames). Files lie in these folders directly. Without a
    folder for validation, those frames are split off the training pool.

    Args:
        source: The file or folder.
        n_train: Training frames, a number or a share of the pool; None: all, at most 200 000.
        n_val: Validation frames, the same; None: all of their folder, at most 5 000 and no more
            than train, or 5 % of what is taken from the training pool.
        n_test: Test frames, the same; None: all of their folder, at most 25 000.
        seed: Draws the frames. A larger number contains the smaller ones.
        need: Labels that every frame must have.
        max_force: Training and validation frames in which a free atom has a larger force component
            (eV/A) are left out, with a notice: first steps of relaxations, atoms on top of one
            another. Test frames are never left out.
        theory: Level of theory of labels that bear no mark of OC22 or OC20; None: by "oc22" or
            "oc20" in the name of the source or its files, else unknown.
        test_rest: Without a folder of test frames, test on frames of the training pool that are
            used for nothing else, at most ``n_test``.
        notify: Called with one line when there is something to know.

    Raises:
        OptionError: If a number makes no sense.
        DataError: If there is nothing to read, frames are damaged, refused or without labels, or
            more frames are asked for than there are.
    """
    source = Path(source)
    if not max_force > 0:
        raise OptionError(f"max_force must be positive, got {max_force}")
    folders = published_folders(source)
    pools = {role: _Pool(name, files, need, theory) for role, (name, files) in folders.items()}
    parts: list[AtomicDataset] = []
    sizes: dict[str, int] = {}

    def take(role: str, frames: AtomicDataset) -> None:
        if role != "test":
            frames = _without_spikes(frames, max_force, role, notify)
        parts.append(frames)
        sizes[role] = len(frames)

    pool = pools["train"]
    rest = test_rest and "test" not in pools
    chosen = _draw(pool, n_train, 0 if "val" in pools else n_val, seed, n_test if rest else 0)
    for role, indices in chosen.items():
        if len(indices):
            take(role, pool.read(np.sort(indices)))
    most = min(MAX_VAL, sizes["train"])
    for role, wanted, limit in (("val", n_val, most), ("test", n_test, MAX_TEST)):
        if role in pools and wanted != 0:
            number = min(len(pools[role]), limit) if wanted is None else wanted
            order = _split(pools[role], number, 0, seed, 0).train
            take(role, pools[role].read(np.sort(order)))

    names = {"val": "", "test": "rest of the training pool" if rest else ""}
    if "test" in pools and "test" in sizes:
        inside = pools["test"].name
        names["test"] = f"out of domain: {inside}" if "ood" in inside else inside
    dataset = join(parts, source.stem, theory)
    theory = dataset.info.level_of_theory
    if theory == "unknown":
        theory = _named_theory(source, [file for p in pools.values() for file in p.files])
    info = replace(dataset.info, level_of_theory=theory, source=str(source))
    return SplitFrames(replace(dataset, info=info), _in_a_row(sizes), names["test"])


def published_folders(source: Path) -> dict[str, tuple[str, list[Path]]]:
    """Name and files of the ``"train"``, ``"val"`` and ``"test"`` pools there are in ``source``.

    Raises:
        DataError: If there is no file with frames for training.
    """
    if not source.exists():
        raise DataError(f"no such file or folder: {source}")
    if _is_frames(source):
        return {"train": (source.name, [source])}
    if not source.is_dir():
        raise DataError(f"{source}: not {', '.join(LMDB + ASE_FILES)}, nor a folder of such files")
    here = _files(source)
    if here:
        return {"train": (source.name, here)}
    found: dict[str, tuple[str, list[Path]]] = {}
    for role, patterns in (("train", ("train",)), ("val", _VALIDATION), ("test", _OUT_OF_DOMAIN)):
        for pattern in patterns:
            folders = [f for f in sorted(source.glob(pattern)) if f.is_dir() and _files(f)]
            if folders:
                name = "+".join(folder.name for folder in folders)
                found[role] = (name, [file for folder in folders for file in _files(folder)])
                break
    if "train" not in found:
        there = ", ".join(sorted(f.name for f in source.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{source}: no frames to train on; it must hold {', '.join(LMDB + ASE_FILES)} files, "
            f"or a folder train/ of them (and val_id/, val_ood/); it holds {there}"
        )
    return found


def join(parts: Sequence[AtomicDataset], name: str, theory: str | None = None) -> AtomicDataset:
    """Datasets as one; its checksum is that of the parts' checksums.

    Args:
        parts: The datasets.
        name: Of the whole.
        theory: Level of theory of parts where it is unknown; None: unknown.

    Raises:
        DataError: If the parts are of different levels of theory.
    """
    found = [part.info.level_of_theory for part in parts]
    theories = sorted({theory if theory and t == "unknown" else t for t in found})
    if len(theories) > 1:
        raise DataError(
            f"{name}: mixes labels of {' and '.join(theories)}, whose energies may not compare; "
            "keep them apart, or name the level of theory of the unknown with --theory"
        )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} {part.info.sha256}\n".encode())
    info = DatasetInfo(name, "", theories[0], "", "eV", digest.hexdigest())
    return replace(parts[0], info=info) if len(parts) == 1 else AtomicDataset.concatenate(
        parts, info
    )  # fmt: skip


def _is_frames(path: Path) -> bool:
    """Whether a path is a file of frames by its name (an LMDB may be a folder)."""
    if path.suffix in LMDB:
        return path.is_file() or (path / "data.mdb").is_file()
    return path.suffix in ASE_FILES and path.is_file()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if _is_frames(path)]


def _split(
    pool: _Pool, n_train: int | float, n_val: int | float, seed: int, n_test: int | float
) -> Splits:
    """A split of a pool, errors naming it."""
    try:
        return split(len(pool), n_train, n_val, seed, n_test)
    except DataError as error:
        raise DataError(f"{pool.name}: {error}") from error


def _draw(
    pool: _Pool,
    n_train: int | float | None,
    n_val: int | float | None,
    seed: int,
    n_test: int | float | None,
) -> dict[str, np.ndarray]:
    """Indices into the training pool, by what they are for; n_test None: what is left, or less."""
    n = len(pool)
    train, val, test = (_count(wanted, n) for wanted in (n_train, n_val, n_test))
    if val is None:
        around = min(n, MAX_TRAIN) if train is None else train / (1.0 - VAL_SHARE)
        val = min(MAX_VAL, max(1, round(VAL_SHARE * around)), max(0, n - (train or 1)))
    if train is None:
        train = max(1, min(MAX_TRAIN, n - val - (test or 0)))
    if test is None:
        test = min(MAX_TEST, max(0, n - train - val))
    found = _split(pool, train, val, seed, test)
    return {"train": found.train, "val": found.val, "test": found.test}


def _count(wanted: int | float | None, n_frames: int) -> int | None:
    return round(wanted * n_frames) if isinstance(wanted, float) else wanted


def _without_spikes(
    frames: AtomicDataset, max_force: float, role: str, notify: Callable[[str], None]
) -> AtomicDataset:
    """The frames whose forces on free atoms are at most ``max_force``."""
    if frames.forces is None:
        return frames
    largest = np.maximum.reduceat(frames.largest_free_force(), frames.ptr[:-1])
    keep = np.flatnonzero(largest <= max_force)
    if len(keep) == len(frames):
        return frames
    if not len(keep):
        raise DataError(
            f"all {len(frames)} frames for {_ROLES[role]} have forces above {max_force:g} eV/A; "
            "raise --max-force"
        )
    notify(
        f"{len(frames) - len(keep)} of {len(frames)} frames for {_ROLES[role]} left out: forces "
        f"of up to {largest.max():.0f} eV/A, above --max-force {max_force:g}"
    )
    return frames.subset(keep)


_ROLES = {"train": "training", "val": "validation"}


def _in_a_row(sizes: dict[str, int]) -> Splits:
    """Splits of frames that lie one role after the other."""
    found, start = {}, 0
    for role, size in sizes.items():
        found[role] = np.arange(start, start + size)
        start += size
    none = np.arange(0)
    return Splits(found["train"], found.get("val", none), found.get("test", none))


def _named_theory(source: Path, files: Sequence[Path]) -> str:
    """By "oc22" or "oc20" in the names, if that is clear."""
    names = " ".join([source.name, *(file.name for file in files)]).lower()
    known = [t for mark, t in (("oc22", OC22_THEORY), ("oc20", OC20_THEORY)) if mark in names]
    return known[0] if len(known) == 1 else "unknown"
