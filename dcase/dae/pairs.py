"""Pairs of frames to learn from, and the errors of the predictors that know nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dcase.dae.trajectory_file import Trajectory
from dcase.errors import OptionError


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of frames ``(start, start + ahead)``: what a network maps onto what.

    Attributes:
        train: ``[n_train]`` start frames.
        validation: ``[n_validation]`` start frames.
        test: ``[n_test]`` start frames.
        ahead: Frames from the start to the target.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    ahead: int


def make_pairs(
    trajectory: Trajectory,
    k: int,
    n_train: int,
    n_validation: int = 1000,
    n_test: int = 1000,
    *,
    seed: int,
    discard: int | None = None,
    split: str = "random",
) -> Pairs:
    """Choose pairs of frames ``k`` steps apart for training, validation and test.

    ``random`` is the paper's protocol: starts are shuffled and split. Of the pendulum exactly
    ``discard + n_train + n_validation + n_test + k`` frames are used, so that the training frames
    lie the denser the more there are; of water all frames. Note that a random test pair lies
    between training pairs in time, often a few frames from one.

    ``blocks`` takes the three sets from three stretches of time, one after the other, with ``k``
    steps between them, so that no frame is in two sets: a test on motion never seen. The stretches
    are as long as the sets need (pendulum), or share the whole trajectory in proportion (water).

    Args:
        trajectory: Where from.
        k: Steps from start to target: frames of the pendulum (0.01 s), simulation steps of water
            (0.1 fs; a multiple of the stored stride).
        n_train: Training pairs.
        n_validation: Validation pairs.
        n_test: Test pairs.
        seed: Of the shuffle.
        discard: Frames left out at the start; None: 1000 (pendulum) or 0 (water).
        split: ``"random"`` or ``"blocks"``.

    Raises:
        OptionError: For an impossible option, or if the trajectory has too few frames.
    """
    counts = (n_train, n_validation, n_test)
    if split not in ("random", "blocks"):
        raise OptionError(f"split must be random or blocks, got {split!r}")
    if min(counts) < 1:
        raise OptionError(f"each set needs at least one pair, got {counts}")
    ahead, first = _ahead(trajectory, k), _discard(trajectory, discard)
    pendulum = trajectory.system == "pendulum"
    gaps = 1 if split == "random" else 3
    needed = first + sum(counts) + gaps * ahead
    if needed > len(trajectory):
        raise OptionError(
            f"{sum(counts)} pairs {k} steps apart need {needed} frames "
            f"({needed * trajectory.stride} steps), the trajectory has {len(trajectory)}; make a "
            "longer one or ask for fewer pairs"
        )
    starts = (needed if pendulum else len(trajectory)) - first - gaps * ahead
    rng = np.random.default_rng(seed)
    if split == "random":
        shuffled = first + rng.permutation(starts)
        train, validation, test = np.split(shuffled[: sum(counts)], np.cumsum(counts)[:-1])
        return Pairs(train, validation, test, ahead)
    # Ends of the blocks in proportion; each is at least as long as its set.
    ends = [starts * int(c) // sum(counts) for c in np.cumsum(counts)]
    sets = []
    for index, (begin, end, count) in enumerate(zip([0, *ends], ends, counts, strict=False)):
        sets.append(first + index * ahead + begin + rng.permutation(end - begin)[:count])
    return Pairs(sets[0], sets[1], sets[2], ahead)


def predictor_errors(
    trajectory: Trajectory, k: int, discard: int | None = None
) -> dict[str, float]:
    """Errors of the two predictors that know nothing, over all pairs ``k`` steps apart.

    Args:
        trajectory: Where from.
        k: Steps, as for :func:`make_pairs`.
        discard: Frames left out at the start, as for :func:`make_pairs`.

    Returns:
        ``{"identity": ..., "constant_velocity": ...}``: mean over nodes and pairs of the Euclidean
        norm of the error in the position, in the trajectory's unit of length.

    Raises:
        OptionError: If no pair is ``k`` steps apart.
    """
    ahead, first = _ahead(trajectory, k), _discard(trajectory, discard)
    if first + ahead >= len(trajectory):
        raise OptionError(f"no two frames of {len(trajectory)} are {k} steps apart")
    r = trajectory.positions[first:].astype(np.float64)
    moved = r[ahead:] - r[:-ahead]
    drift = trajectory.velocities[first : len(trajectory) - ahead] * (ahead * trajectory.interval)
    return {
        "identity": float(np.linalg.norm(moved, axis=-1).mean()),
        "constant_velocity": float(np.linalg.norm(moved - drift, axis=-1).mean()),
    }


def _ahead(trajectory: Trajectory, k: int) -> int:
    """Frames in ``k`` steps."""
    stride = trajectory.stride
    if k < 1 or k % stride:
        raise OptionError(f"k must be a positive multiple of the stored stride {stride}, got {k}")
    return k // stride


def _discard(trajectory: Trajectory, discard: int | None) -> int:
    """Frames to leave out at the start: of the pendulum, which starts at rest, the paper's 1000."""
    if discard is None:
        return 1000 if trajectory.system == "pendulum" else 0
    if discard < 0:
        raise OptionError(f"discard must not be negative, got {discard}")
    return discard
