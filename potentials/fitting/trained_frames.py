"""Which frames a potential was trained on: errors on those are no errors on new ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from dcase.data.dataset import AtomicDataset
from dcase.data.label_check import frame_keys

MOST = 20_000
"""Frames, beyond which a checkpoint does not keep their keys (16 characters each)."""


def keys_of(dataset: AtomicDataset, frames: np.ndarray) -> str:
    """Keys of the frames in one string for a checkpoint; ``""`` if they are too many."""
    if len(frames) > MOST:
        return ""
    return "".join(key.hex() for key in frame_keys(dataset.subset(frames)))


def trained_on(potential: Any, dataset: AtomicDataset) -> int:
    """How many of the frames a potential, or a member of an ensemble, was trained on.

    By elements, positions (to 1e-3 A) and cell, whatever file they are in. 0 also where a
    checkpoint has no keys: it is older, or of too many frames.
    """
    members = getattr(potential, "members", None) or [potential]
    known: set[str] = set()
    for member in members:
        keys = str(member.metadata.get("split", {}).get("train_keys", ""))
        known.update(keys[i : i + 16] for i in range(0, len(keys), 16))
    return sum(key.hex() in known for key in frame_keys(dataset)) if known else 0
