import hashlib
import struct

import numpy as np
import pytest

from dcase.data.splits import Splits, split
from dcase.errors import DataError, OptionError


def test_disjoint_and_complete():
    s = split(1000, 950, 50, seed=1)
    assert (len(s.train), len(s.val), len(s.test)) == (950, 50, 0)
    s = split(1000, 100, 50, seed=1)
    everything = np.concatenate([s.train, s.val, s.test])
    assert sorted(everything) == list(range(1000))
    assert s.train.dtype == s.val.dtype == s.test.dtype == np.int64


def test_seed_decides():
    assert split(100, 50, 10, 3).hash() == split(100, 50, 10, 3).hash()
    assert split(100, 50, 10, 3).hash() != split(100, 50, 10, 4).hash()


def test_hash_is_the_same_everywhere():
    s = Splits(np.array([2, 0]), np.array([1]), np.array([], dtype=int))
    lengths_and_indices = struct.pack("<6q", 2, 2, 0, 1, 1, 0)
    assert s.hash() == hashlib.sha256(lengths_and_indices).hexdigest()
    other = Splits(np.array([2]), np.array([0, 1]), np.array([], dtype=int))
    assert other.hash() != s.hash()


def test_larger_training_sets_contain_smaller_ones():
    small, large = split(100, 20, 10, 0), split(100, 40, 30, 0)
    assert (large.train[:20] == small.train).all()
    assert (split(100, 20, 55, 0, n_test=5).train == small.train).all()


def test_the_global_generator_is_not_touched():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    split(100, 20, 10, 0)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_fractions():
    s = split(1000, 0.8, 0.1, 0)
    assert (len(s.train), len(s.val), len(s.test)) == (800, 100, 100)
    s = split(1000, 10, 0.1, 0, n_test=0.25)
    assert (len(s.train), len(s.val), len(s.test)) == (10, 100, 250)


def test_too_many_frames():
    with pytest.raises(DataError, match="only 100") as error:
        split(100, 90, 20, 0)
    assert "90 training + 20 validation" in str(error.value)
    with pytest.raises(DataError, match="20 test"):
        split(100, 80, 10, 0, n_test=20)


@pytest.mark.parametrize("n_train", [0, -1, 1.5, 950.0, 0.0, float("nan"), True, "10"])
def test_impossible_numbers(n_train):
    with pytest.raises(OptionError):
        split(1000, n_train, 10, 0)


def test_overlap_is_refused():
    with pytest.raises(DataError, match="twice"):
        Splits(np.array([0, 1]), np.array([1]), np.array([2]))


def test_indices_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        split(10, 5, 2, 0).train[0] = 3
