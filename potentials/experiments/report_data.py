"""Frames of the SchNet report: files by pattern, none twice, and the report's splits."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass, replace

from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits, split
from dcase.errors import DataError, OptionError
from dcase.potentials.experiments.report_published import Setup

SHARE_TEST, SHARE_VALIDATION = 0.2, 0.05  # of a set that is smaller than the report's


@dataclass(frozen=True)
class Sources:
    """Where the frames come from.

    Attributes:
        md17: For :func:`dcase.data.md17.load_md17`, or file names; ``{molecule}`` stands for the
            molecule, ``*`` for anything. All files that are found are read.
        labels: Of files with two label sets.
        qm9: For :func:`dcase.data.qm9.load_qm9`; None: what is here without a download.
        iso17: For :func:`dcase.data.iso17.read_iso17`; None: there is none.
        qm9_target: Which property.
    """

    md17: tuple[str, ...] = ("auto",)
    labels: str | None = None
    qm9: str | None = None
    iso17: str | None = None
    qm9_target: str = "U0"


def load_system(
    system: str,
    sources: Sources,
    *,
    most: int = 60_000,
    seed: int = 0,
    notify: Callable[[str], None] | None = None,
) -> AtomicDataset:
    """The frames of a system, each of them once.

    Args:
        system: ``"qm9"``, ``"iso17"`` or a molecule of MD17.
        sources: Where from.
        most: Frames to read of ISO17, where each takes its time; drawn at random.
        seed: Of that draw, and of generated frames.
        notify: See :func:`dcase.data.md17.load_md17`.

    Raises:
        DataError: If there are none; the line says why.
    """
    if system == "qm9":
        return _qm9(sources, notify)
    if system == "iso17":
        return _iso17(sources, most, seed)
    from dcase.data.md17 import SOURCES, load_md17

    parts: list[AtomicDataset] = []
    for source in sources.md17:
        names = [source] if source in SOURCES else _files(source.replace("{molecule}", system))
        parts += [load_md17(system, n, sources.labels, seed=seed, notify=notify) for n in names]
    if not parts:
        raise DataError(f"no file {' or '.join(sources.md17)} of {system}")
    theories = sorted({part.info.level_of_theory for part in parts})
    if len(theories) > 1:
        raise DataError(
            f"the sources of {system} have labels of {' and of '.join(theories)}, which do not mix"
        )
    if len(parts) == 1:
        return parts[0]
    info = replace(parts[0].info, source=" ".join(p.info.source for p in parts), sha256="")
    return without_repeats(AtomicDataset.concatenate(parts, info))


def _files(pattern: str) -> list[str]:
    """Files by name or pattern; one that is not there is left for the reader to complain of."""
    if glob.has_magic(pattern):
        return sorted(glob.glob(pattern))
    return [pattern]


def qm9_is_here() -> bool:
    """Whether QM9 can be had without a download."""
    from dcase.data.download import cache_folder
    from dcase.data.qm9_files import qm9pack_folder

    cached = any((cache_folder(None) / "qm9").glob("*.npz"))
    return cached or qm9pack_folder(needed=False) is not None


def _qm9(sources: Sources, notify: Callable[[str], None] | None) -> AtomicDataset:
    from dcase.data.qm9 import load_qm9

    if sources.qm9 is not None:
        return load_qm9(sources.qm9_target, sources.qm9, notify=notify)
    if not qm9_is_here():
        raise DataError("QM9 is not here: pip install qm9pack, or give --qm9-source")
    return load_qm9(sources.qm9_target, notify=notify)


def _iso17(sources: Sources, most: int, seed: int) -> AtomicDataset:
    if sources.iso17 is None:
        raise DataError("ISO17 is not here: give --iso17-source")
    from dcase.data.iso17 import count_rows, find_iso17, read_iso17

    there = count_rows(find_iso17(sources.iso17).reference)
    return read_iso17(sources.iso17, n_frames=min(most, there), seed=seed)


def without_repeats(dataset: AtomicDataset) -> AtomicDataset:
    """The frames without those that have been before (files of several splits overlap)."""
    first: dict[bytes, int] = {}
    for index, (begin, end) in enumerate(zip(dataset.ptr[:-1], dataset.ptr[1:], strict=True)):
        key = dataset.numbers[begin:end].tobytes() + dataset.positions[begin:end].tobytes()
        first.setdefault(key, index)
    if len(first) == len(dataset):
        return dataset
    return dataset.subset(sorted(first.values()))


def report_split(
    n_frames: int, setup: Setup, seed: int, *, train: int | None = None, test: int | None = None
) -> Splits:
    """The report's numbers of frames, or as much of them as there is.

    Args:
        n_frames: Frames there are.
        setup: The report's numbers.
        seed: Of the draw.
        train: Training frames instead.
        test: Test frames instead; else the report's, at most a fifth of all.

    Raises:
        OptionError: If they are too few.
    """
    wanted = test or max(1, min(setup.n_test, int(SHARE_TEST * n_frames)))
    rest = n_frames - wanted
    most = min(setup.n_train, rest)
    val = max(1, min(1_000, int(SHARE_VALIDATION * min(train or most, rest))))
    count = train or min(setup.n_train, rest - val)
    if count < 1 or count + val > rest:
        raise OptionError(
            f"{count} training, {val} validation and {wanted} test frames were asked for, but "
            f"there are only {n_frames}; use --train and --test with smaller numbers"
        )
    # The test frames come first of the permutation: they are the same whatever --train.
    parts = split(n_frames, wanted, 0, seed)
    return Splits(train=parts.test[:count], val=parts.test[rest - val :], test=parts.train)
