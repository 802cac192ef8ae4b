"""ISO17: molecular dynamics of 129 isomers of C7O2H10, energies and forces (PBE+vdW-TS).

Schuett et al., NeurIPS 2017 (arXiv:1706.08566), section 5.3; http://quantum-machine.org/datasets.
Published as ASE databases, with ``total_energy`` (eV) among a row's key-value pairs and
``atomic_forces`` (eV/A) in its data:

====================  ==========================================================================
``reference.db``      404 000 conformations: 80 % of the steps of 80 % of the isomers
``test_within.db``    101 000: the other steps of these isomers
``test_other.db``     130 000: all steps of the other isomers
``train_ids.txt``     rows of ``reference.db`` (from 1) that SchNet was trained on: 400 000
``validation_ids.txt``  ... and validated on: 4 000
====================  ==========================================================================

``reference_eq.db`` and ``test_eq.db`` hold relaxed structures, without forces; they are not used.
A row takes a tenth of a millisecond and more to decode, so only those that are drawn are read, and
what was read is kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.db import connect

from dcase.archives import read_arrays
from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.data.download import cache_folder, fetch
from dcase.data.splits import SplitFrames, Splits, split
from dcase.errors import DataError, DcaseError, OptionError
from dcase.files import atomic_path, check_readable, reason

URL = "http://quantum-machine.org/datasets/iso17.tar.gz"
THEORY = "PBE+vdW-TS"
# Names for people, by file.
PARTS = {
    "reference": "reference.db",
    "within": "test_within.db",
    "other": "test_other.db",
}
N_TRAIN, N_VAL, N_TEST = 400_000, 4_000, 10_000
_LABELS = {"energy": "total_energy", "forces": "atomic_forces"}


@dataclass(frozen=True)
class Iso17Files:
    """The published files.

    Attributes:
        reference: To train and validate on.
        within: Unseen steps of known isomers, or None.
        other: Unknown isomers, or None.
        train_ids: Rows of ``reference`` (from 0) that the authors trained on, or None.
        validation_ids: ... validated on, or None.
    """

    reference: Path
    within: Path | None = None
    other: Path | None = None
    train_ids: np.ndarray | None = None
    validation_ids: np.ndarray | None = None


def find_iso17(
    source: str | os.PathLike[str] = "auto",
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Iso17Files:
    """The files of ISO17.

    Args:
        source: A folder that holds them (or a folder ``iso17`` that does), a single database in
            place of ``reference.db``, or ``"auto"``: those of the cache folder, else the authors'
            archive, downloaded (an interrupted download goes on).
        cache_dir: See :func:`dcase.data.download.cache_folder`.
        progress: Show a bar on stderr.

    Raises:
        DataError: If they are not there or cannot be had.
    """
    if str(source) == "auto":
        folder = cache_folder(cache_dir) / "iso17"
        for name in (*PARTS.values(), "train_ids.txt", "validation_ids.txt"):
            fetch(URL, cache_dir=folder, extract=f"iso17/{name}", progress=progress)
        return find_iso17(folder)
    path = Path(source)
    if path.is_file():
        return Iso17Files(path)
    if not path.is_dir():
        raise DataError(f"no such file or folder: {path}")
    for folder in (path, path / "iso17"):
        if (folder / PARTS["reference"]).is_file():
            tests = {p: folder / PARTS[p] for p in ("within", "other")}
            return Iso17Files(
                folder / PARTS["reference"],
                **{p: file if file.is_file() else None for p, file in tests.items()},
                train_ids=_ids(folder / "train_ids.txt"),
                validation_ids=_ids(folder / "validation_ids.txt"),
            )
    raise DataError(
        f"{path} is not ISO17: it holds no reference.db; unpack iso17.tar.gz, or use --source auto"
    )


def load_iso17(
    source: str | os.PathLike[str] = "auto",
    *,
    n_train: int | float | None = None,
    n_val: int | float | None = None,
    n_test: int | None = None,
    seed: int = 0,
    need: Sequence[str] = ("energy", "forces"),
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> SplitFrames:
    """ISO17 with its published split: train and validate on known isomers, test on both kinds.

    Training and validation frames are drawn from ``train_ids.txt`` and ``validation_ids.txt``, or
    without these from all of ``reference.db``. Test frames are drawn from ``test_within.db``
    (``splits.test``) and ``test_other.db`` (``further``), where they are there.

    Args:
        source: See :func:`find_iso17`.
        n_train: Training frames, a number or a share; None: all, at most 400 000.
        n_val: Validation frames, the same; None: all, at most 4 000; where they are not listed, one
            for each hundred to train.
        n_test: Test frames of each kind, at most; None: at most 10 000; 0: none.
        seed: Draws the frames. A larger number contains the smaller ones.
        need: Labels that every frame must have; the other one is read where all frames have it.
        cache_dir: See :func:`dcase.data.download.cache_folder`.
        progress: Show on stderr how it goes.

    Raises:
        OptionError: If a number makes no sense.
        DataError: If files are missing or damaged, frames lack labels, or there are too few.
    """
    files = find_iso17(source, cache_dir=cache_dir, progress=progress)
    train, val = _drawn(files, n_train, n_val, seed)

    def read(file: Path, rows: np.ndarray) -> AtomicDataset:
        return read_rows(file, rows, need=need, cache_dir=cache_dir, progress=progress)

    parts = {"train": read(files.reference, np.concatenate([train, val]))}
    most = N_TEST if n_test is None else n_test
    for name, file in (("within", files.within), ("other", files.other)):
        if file is not None and most:
            total = count_rows(file)
            rows = split(total, min(most, total), 0, seed, 0).train
            parts[name] = read(file, np.sort(rows))
    # The same labels everywhere: the dataset is one.
    together = [parts["train"], *([parts["within"]] if "within" in parts else [])]
    whole = AtomicDataset.concatenate(together, parts["train"].info)
    n, n_within = len(train) + len(val), len(whole) - len(train) - len(val)
    return SplitFrames(
        whole,
        Splits(np.arange(len(train)), np.arange(len(train), n), np.arange(n, n + n_within)),
        "known isomers" if n_within else "",
        {"unknown isomers": parts["other"]} if "other" in parts else {},
    )


def read_iso17(
    source: str | os.PathLike[str] = "auto",
    part: str = "reference",
    *,
    n_frames: int | None = None,
    seed: int = 0,
    need: Sequence[str] = ("energy", "forces"),
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> AtomicDataset:
    """Frames of one part of ISO17, for instance to cross-validate on.

    Args:
        source: See :func:`find_iso17`.
        part: ``"reference"``, ``"within"`` or ``"other"``.
        n_frames: How many, drawn at random; None: all.
        seed: Draws them.
        need: See :func:`load_iso17`.
        cache_dir: See :func:`dcase.data.download.cache_folder`.
        progress: Show on stderr how it goes.

    Raises:
        OptionError: If there is no such part.
        DataError: If files are missing or damaged, frames lack labels, or there are too few.
    """
    if part not in PARTS:
        raise OptionError(f"part must be one of {', '.join(PARTS)}; got {part!r}")
    file = getattr(find_iso17(source, cache_dir=cache_dir, progress=progress), part)
    if file is None:
        raise DataError(f"{source} has no {PARTS[part]}")
    total = count_rows(file)
    wanted = total if n_frames is None else n_frames
    rows = np.sort(split(total, wanted, 0, seed, 0).train)
    return read_rows(file, rows, need=need, cache_dir=cache_dir, progress=progress)


def count_rows(file: Path) -> int:
    """Rows of a database.

    Raises:
        DataError: If it is none.
    """
    check_readable(file)
    try:
        with connect(file, type="db") as database:
            return database.count()
    except Exception as error:  # ASE's reader raises whatever it stumbles on
        raise DataError(f"{file} is not an ASE database, or damaged: {_short(error)}") from error


def read_rows(
    file: Path,
    rows: np.ndarray,
    *,
    need: Sequence[str] = ("energy", "forces"),
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> AtomicDataset:
    """Rows of one of ISO17's databases, from the cache if they have been read before.

    Args:
        file: The database.
        rows: Which, from 0, in the order wanted; shape [n].
        need: See :func:`load_iso17`.
        cache_dir: See :func:`dcase.data.download.cache_folder`.
        progress: Show on stderr how it goes.

    Raises:
        DataError: If a row is not there, is damaged or lacks a label.
    """
    status = file.stat()
    digest = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    digest.update(np.asarray(rows, dtype="<i8").tobytes())
    kept = cache_folder(cache_dir) / "iso17" / f"{file.stem}_{digest.hexdigest()[:16]}.npz"
    info = DatasetInfo("iso17", "C7O2H10", THEORY, str(file))
    arrays = _kept(kept)
    if arrays is None:
        arrays = _decode(file, rows, progress)
        try:
            with atomic_path(kept) as temporary, open(temporary, "wb") as handle:
                np.savez(handle, **arrays)  # type: ignore[arg-type]
        except DcaseError:
            pass  # a read-only cache costs time only
    for label in need:
        if np.isnan(arrays[label]).any():
            bad = np.isnan(arrays[label]).reshape(len(arrays[label]), -1).any(axis=1).argmax()
            frame = bad if label == "energy" else np.searchsorted(arrays["ptr"], bad, "right") - 1
            raise DataError(f"{file}: row {rows[frame] + 1} has no {_LABELS[label]}")
    energies, forces = (
        None if np.isnan(arrays[label]).any() else arrays[label] for label in ("energy", "forces")
    )
    return AtomicDataset(
        arrays["numbers"].astype(np.int64),
        arrays["positions"],
        arrays["ptr"],
        energies,
        forces,
        info=info,
    )


def _kept(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays of the cache; None if they are not there or not whole."""
    try:
        file = read_arrays(path)
        return {k: file[k] for k in ("numbers", "positions", "ptr", "energy", "forces")}
    except (DataError, KeyError):
        return None


def _decode(file: Path, rows: np.ndarray, progress: bool) -> dict[str, np.ndarray]:
    """The rows as arrays; labels that are not there are NaN."""
    from rich.console import Console

    numbers: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    energies: list[float] = []
    forces: list[np.ndarray] = []
    console = Console(stderr=True, quiet=not progress)
    what = f"reading {file.name}, kept for the next time"
    try:
        with connect(file, type="db") as database, console.status(what) as status:
            for done, row_number in enumerate(rows):
                row = database.get(id=int(row_number) + 1)
                numbers.append(np.asarray(row.numbers, dtype=np.uint8))
                positions.append(np.asarray(row.positions, dtype=np.float64))
                energies.append(float(row.key_value_pairs.get(_LABELS["energy"], np.nan)))
                found = row.data.get(_LABELS["forces"])
                blank = np.full(positions[-1].shape, np.nan)
                forces.append(blank if found is None else np.asarray(found, dtype=np.float64))
                if forces[-1].shape != positions[-1].shape:
                    raise DataError(
                        f"{file}: {_LABELS['forces']} of row {row.id} have shape {forces[-1].shape}"
                    )
                if done % 1000 == 0:
                    status.update(f"{what}: {done} of {len(rows)} frames")
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{file} has no row {int(row_number) + 1}") from error
    except Exception as error:  # ASE's reader raises whatever it stumbles on
        raise DataError(f"{file} is not an ASE database, or damaged: {_short(error)}") from error
    return {
        "numbers": np.concatenate(numbers),
        "positions": np.concatenate(positions),
        "ptr": np.concatenate([[0], np.cumsum([len(z) for z in numbers])]).astype(np.int64),
        "energy": np.array(energies),
        "forces": np.concatenate(forces),
    }


def _short(error: Exception) -> str:
    return reason(error)[:160]


def _ids(path: Path) -> np.ndarray | None:
    """Rows from 0 of a list of ids from 1; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        found = np.array([int(word) for word in path.read_text(encoding="utf-8").split()])
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a list of row numbers: {error}") from error
    if not len(found) or found.min() < 1:
        raise DataError(f"{path}: row numbers start at 1")
    return found - 1


def _drawn(
    files: Iso17Files, n_train: int | float | None, n_val: int | float | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the reference to train and to validate on."""

    def count(wanted: int | float | None, there: int, most: int) -> int:
        if wanted is None:
            return min(there, most)
        return round(wanted * there) if isinstance(wanted, float) else wanted

    if files.train_ids is not None and files.validation_ids is not None:
        chosen = []
        for ids, wanted, most in (
            (files.train_ids, n_train, N_TRAIN),
            (files.validation_ids, n_val, N_VAL),
        ):
            n = count(wanted, len(ids), most)
            chosen.append(ids[split(len(ids), n, 0, seed, 0).train] if n else ids[:0])
        return chosen[0], chosen[1]
    total = count_rows(files.reference)
    if n_train is None:  # all that validation leaves; by default one for each hundred
        val = max(1, total // 101) if n_val is None else count(n_val, total, total)
        val = min(val, N_VAL) if n_val is None else val
        train = min(total - val, N_TRAIN)
    else:
        train = count(n_train, total, total)
        val = min(max(1, train // 100), total - train) if n_val is None else count(
            n_val, total, total
        )  # fmt: skip
    found = split(total, train, val, seed, 0)
    return found.train, found.val


__all__ = [
    "Iso17Files",
    "count_rows",
    "find_iso17",
    "load_iso17",
    "read_iso17",
    "read_rows",
]
