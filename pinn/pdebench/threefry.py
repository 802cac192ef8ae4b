"""JAX's random numbers without JAX: PDEBench's initial states can be drawn again, bit by bit.

Threefry-2x32 with 20 rounds (Salmon et al., SC11, 2011) in the arrangement of JAX before
``jax_threefry_partitionable``: the counters 0..n-1 are cut in two halves which make the two words
of the blocks. The names and arguments follow ``jax.random``; only what PDEBench uses is here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)

Key = tuple[int, int]


def threefry_2x32(key: Key, counters: np.ndarray) -> np.ndarray:
    """Encrypt ``counters`` (uint32, flat): one uint32 each, the halves being the block's words."""
    if len(counters) % 2:
        return threefry_2x32(key, np.append(counters, np.uint32(0)))[:-1]
    first, second = (half.astype(np.uint32) for half in np.split(counters, 2))
    words = [np.array([part], dtype=np.uint32) for part in key]
    words.append(words[0] ^ words[1] ^ _PARITY)
    first += words[0]
    second += words[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            first += second
            second = (second << np.uint32(bits)) | (second >> np.uint32(32 - bits))
            second ^= first
        first += words[(group + 1) % 3]
        second += words[(group + 2) % 3] + np.uint32(group + 1)
    return np.concatenate((first, second))


def prng_key(seed: int) -> Key:
    """The key of a non-negative seed."""
    return (seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF


def split(key: Key) -> tuple[Key, Key]:
    """Two new keys."""
    a, b, c, d = (int(word) for word in threefry_2x32(key, np.arange(4, dtype=np.uint32)))
    return (a, b), (c, d)


def random_bits(key: Key, shape: Sequence[int]) -> np.ndarray:
    """uint32 numbers of ``shape``."""
    size = int(np.prod(shape))
    return threefry_2x32(key, np.arange(size, dtype=np.uint32)).reshape(shape)


def uniform(key: Key, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """float32 numbers in ``[low, high)``."""
    mantissa = (random_bits(key, shape) >> np.uint32(9)) | np.uint32(0x3F800000)
    unit = mantissa.view(np.float32) - np.float32(1.0)
    low32, high32 = np.float32(low), np.float32(high)
    return np.maximum(low32, unit * (high32 - low32) + low32)


def randint(key: Key, shape: Sequence[int], low: int, high: int) -> np.ndarray:
    """int64 numbers in ``[low, high)``: two words to each, so that no value is favoured."""
    span = np.uint32(high - low)
    upper, lower = (random_bits(part, shape) for part in split(key))
    multiplier = np.uint32((1 << 16) % (high - low))
    multiplier = multiplier * multiplier % span
    return low + ((upper % span * multiplier + lower % span) % span).astype(np.int64)


def choice(key: Key, shape: Sequence[int], probabilities: Sequence[float]) -> np.ndarray:
    """Indices drawn with ``probabilities`` (with replacement)."""
    cumulated = np.cumsum(np.asarray(probabilities, dtype=np.float32), dtype=np.float32)
    drawn = cumulated[-1] * (np.float32(1.0) - uniform(key, shape))
    return np.searchsorted(cumulated, drawn)
