"""Seeded, disjoint splits into training, validation and test frames."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
from ase.data import chemical_symbols

from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError, OptionError


@dataclass(frozen=True)
class Splits:
    """Frame indices of a split; disjoint.

    Attributes:
        train: int64, shape [n_train].
        val: int64, shape [n_val], may be empty.
        test: int64, shape [n_test], may be empty.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def __post_init__(self) -> None:
        for key in ("train", "val", "test"):
            value = np.array(getattr(self, key), dtype=np.int64)
            value.setflags(write=False)
            object.__setattr__(self, key, value)
        together = np.concatenate([self.train, self.val, self.test])
        if len(np.unique(together)) != len(together):
            raise DataError("a split must not use a frame twice")

    def hash(self) -> str:
        """SHA-256 of the indices, in order; the same on every machine."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            # The length keeps (1 | 2 3) apart from (1 2 | 3).
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class SplitFrames:
    """Frames to train, to validate and to test on.

    Attributes:
        dataset: All of them.
        splits: Which are which.
        test_name: What the test frames are, e.g. ``"out of domain: val_ood"``; ``""``: they are
            not to be tested on.
        further: More frames to test on, by what they are.
    """

    dataset: AtomicDataset
    splits: Splits
    test_name: str = ""
    further: Mapping[str, AtomicDataset] = field(default_factory=dict)


def elements_not_trained(dataset: AtomicDataset, splits: Splits) -> list[str]:
    """Symbols of elements that other frames hold, but no training frame does."""
    trained = dataset.subset(splits.train).elements
    return [chemical_symbols[z] for z in dataset.elements if z not in trained]


def split(
    n_frames: int,
    n_train: int | float,
    n_val: int | float,
    seed: int,
    n_test: int | float | None = None,
) -> Splits:
    """Split frames at random.

    One permutation is drawn and cut up, so for one seed a larger training set contains the smaller
    ones (learning curves), and ``n_val`` and ``n_test`` do not change the training frames.

    Args:
        n_frames: Frames there are.
        n_train: How many to train on, or a fraction of all in (0, 1).
        n_val: How many to validate on, or a fraction; 0 for none.
        seed: Seed of the permutation.
        n_test: How many to test on, or a fraction; None takes all that are left.

    Raises:
        OptionError: If a number or fraction makes no sense, or training frames come to 0.
        DataError: If more frames are asked for than there are.
    """
    if seed < 0:
        raise OptionError(f"seed must not be negative, got {seed}")
    train = _count("training", n_train, n_frames)
    val = _count("validation", n_val, n_frames)
    rest = max(0, n_frames - train - val)
    test = rest if n_test is None else _count("test", n_test, n_frames)
    if train < 1:
        raise OptionError(f"no frames to train on: {n_train} of {n_frames} were asked for")
    if train + val + test > n_frames:
        asked = f"{train} training + {val} validation" + (
            "" if n_test is None else f" + {test} test"
        )
        raise DataError(
            f"{asked} frames were asked for, but there are only {n_frames}; ask for fewer"
        )
    order = np.random.default_rng(seed).permutation(n_frames).astype(np.int64)
    return Splits(
        train=order[:train],
        val=order[train : train + val],
        test=order[train + val : train + val + test],
    )


def _count(what: str, wanted: int | float, n_frames: int) -> int:
    if isinstance(wanted, Integral) and not isinstance(wanted, bool):
        if wanted < 0:
            raise OptionError(f"the number of {what} frames must not be negative, got {wanted}")
        return int(wanted)
    if isinstance(wanted, float | np.floating) and 0.0 < wanted < 1.0:
        return round(float(wanted) * n_frames)
    raise OptionError(
        f"{what} frames must be a whole number or a fraction between 0 and 1, got {wanted!r}"
    )
