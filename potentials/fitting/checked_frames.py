"""Frames on their way to a training: their labels looked at, and what spoils it left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dcase.data.label_check import LabelCheck, check_labels
from dcase.data.splits import SplitFrames, Splits
from dcase.errors import DataError
from dcase.potentials.fitting.recipe import DataChoice


def checked_frames(
    frames: SplitFrames, choice: DataChoice, notify: Callable[[str], None]
) -> tuple[SplitFrames, LabelCheck]:
    """Look at the labels of training and validation frames; leave out what ``choice`` says.

    Args:
        frames: With their split; indices stay those of ``frames.dataset``.
        choice: Largest force, and whether outliers go.
        notify: Gets a line about everything found, frames named by their index in the dataset.

    Returns:
        The frames with what is left of the split (test frames as they are), and what was found.

    Raises:
        DataError: If nothing is left to train on.
    """
    used = np.concatenate([frames.splits.train, frames.splits.val])
    found = check_labels(
        frames.dataset.subset(used), max_force=choice.max_force, names=used.tolist()
    )
    dropped: set[int] = set()
    for one in found.findings:
        drop = one.kind == "max force" or (one.outlier and choice.drop_outliers)
        if drop:
            dropped |= {int(used[frame]) for frame in one.frames}
        notify(one.text + _what_of_it(one.kind, one.outlier, drop))
    if not dropped:
        return frames, found
    gone = np.array(sorted(dropped))
    splits = frames.splits
    train, val = (part[~np.isin(part, gone)] for part in (splits.train, splits.val))
    if not len(train):
        raise DataError(
            f"all {len(splits.train)} training frames of {frames.dataset.info.source or 'the set'} "
            "would be left out; raise --max-force, or see dcase data check"
        )
    return replace(frames, splits=Splits(train, val, splits.test)), found


def _what_of_it(kind: str, outlier: bool, dropped: bool) -> str:
    if dropped:
        return ": left out"
    if not outlier:
        return ""
    scale = " (the label scale does not count them)" if kind in ("energy", "forces") else ""
    return f"{scale}; --drop-outliers leaves them out"
