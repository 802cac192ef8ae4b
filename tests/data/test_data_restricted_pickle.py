"""Pickles of frames: what is read, what is refused, and that nothing is ever run."""

import io
import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from oc22_files import fields, old_pyg, pyg, slab
from torch_geometric.data import Batch, Data

from dcase.data.restricted_pickle import load_fields
from dcase.errors import DataError


def data(**values):
    return pickle.dumps(Data(**values), protocol=-1)


@pytest.mark.parametrize("make", [pyg, old_pyg])
def test_fields_of_both_versions(make):
    atoms = slab(0)
    found = load_fields(make(atoms, 5), "f")
    for name, value in fields(atoms, 5).items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.numpy().dtype
            np.testing.assert_array_equal(found[name], value.numpy())
        else:
            assert found[name] == value
    assert "edge_index" not in found  # None in version 1's


def test_pyg_itself_cannot_use_the_old_pickles():
    """Else the test above would prove nothing."""
    with pytest.raises(RuntimeError, match="older version"):
        print(pickle.loads(old_pyg(slab(0))))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6.0).reshape(2, 3).T,  # strides
        torch.arange(10)[3:7],  # an offset
        torch.tensor([True, False]),
        torch.tensor(2.5, dtype=torch.float64),
        torch.zeros(0, 3),
        torch.ones(3).expand(4, 3),
        torch.ones(2, requires_grad=True),
        torch.ones(2, dtype=torch.float16),
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        np.array([True, False]),
        np.float32(1.5),
        np.int64(3),
        "random12",
        [1, 2],
        torch.Size([2, 3]),
    ],
    ids=repr,
)
def test_values(value, protocol):
    found = load_fields(pickle.dumps(Data(v=value), protocol), "f")["v"]
    expected = value.detach().numpy() if isinstance(value, torch.Tensor) else value
    assert np.shape(found) == np.shape(expected)
    assert np.all(found == np.asarray(expected))


def test_dropped_fields_and_shared_tensors():
    t = torch.arange(3.0)
    found = load_fields(data(a=t, b=t, c={"deep": [1]}, d=None, e=torch.float32), "f")
    assert sorted(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], found["b"])


# ----------------------------------------------------------------------------------- refusals


class Runs:
    """Calls a function on being unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def exploits(marker):
    """Pickles that write a file when they are loaded carelessly."""
    touch = Runs(os.system, f"touch {marker}")
    stored = io.BytesIO()
    torch.save(touch, stored, _use_new_zipfile_serialization=False)
    zipped = io.BytesIO()
    torch.save(touch, zipped)
    nested = {
        "legacy": stored.getvalue(),
        "zip": zipped.getvalue(),
        "plain": pickle.dumps(touch),
    }
    load = torch.storage._load_from_bytes
    return {
        "call": pickle.dumps(touch),
        "field": data(pos=torch.ones(2), y=touch),
        "eval": data(y=Runs(eval, f"open({str(marker)!r}, 'w').close()")),
        "getattr": data(y=Runs(getattr, "text", "format")),
        "dotted": _dotted(marker),
        "import": data(y=Runs(__import__, "antigravity")),
        **{f"storage {kind}": data(y=Runs(load, blob)) for kind, blob in nested.items()},
        "old": old_pyg(slab(0), y=touch),
        "size": data(y=Runs(torch.Size, touch)),
    }


def _dotted(marker):
    """Protocol 4 may name an attribute of an attribute of something harmless."""

    def text(value):
        return b"\x8c" + bytes([len(value)]) + value.encode()

    command = text(f"touch {marker}"[:255])
    return b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + command + b"\x85R."


KINDS = sorted(exploits("marker"))


@pytest.mark.parametrize("kind", KINDS)
def test_exploits_are_refused_and_not_run(tmp_path, kind):
    marker = tmp_path / "run"
    with pytest.raises(DataError) as caught:
        load_fields(exploits(marker)[kind], "shard.lmdb: entry 3")
    message = str(caught.value)
    assert message.startswith("shard.lmdb: entry 3: refused: ")
    assert message.endswith("(nothing in it was run)")
    assert "\n" not in message
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["call", "field", "eval", "storage legacy", "dotted"])
def test_the_exploits_work(tmp_path, kind):
    """Else the test above would prove nothing."""
    marker = tmp_path / "run"
    pickle.loads(exploits(marker)[kind])
    assert marker.exists()


class Rewrites:
    """BUILD on something that is shared between loads."""

    def __init__(self, what, state):
        self.what, self.state = what, state

    def pickled(self):
        head, tail = pickle.dumps(self.what, 2), pickle.dumps(self.state, 2)
        return head[:-1] + tail[2:-1] + b"b."


@pytest.mark.parametrize(
    "what",
    [Data, OrderedDict, torch.Size, np.dtype, np.ndarray, torch.float32,
     torch._utils._rebuild_tensor_v2, torch.storage._load_from_bytes],
    ids=lambda what: getattr(what, "__name__", str(what)),
)  # fmt: skip
@pytest.mark.parametrize("state", [{"evil": 1}, (None, {"__setstate__": 1, "_call": 2}), ()])
def test_a_pickle_cannot_change_how_the_next_is_read(what, state):
    before = load_fields(pyg(slab(1)), "f")
    with pytest.raises(DataError):
        load_fields(Rewrites(what, state).pickled(), "f")
    after = load_fields(pyg(slab(1)), "f")
    assert before.keys() == after.keys()
    np.testing.assert_array_equal(before["pos"], after["pos"])


def tensor_like(size, stride, offset=0):
    """A tensor whose shape claims what its storage may not hold."""
    storage = torch.ones(4).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float, _internal=True)
    rebuild = torch._utils._rebuild_tensor_v2
    return data(v=Runs(rebuild, typed, offset, size, stride, False, OrderedDict()))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"hello",
        pickle.dumps({"pos": 1}),
        pickle.dumps(None),
        pickle.dumps(3.5),
        pyg(slab(0))[:-200],
        tensor_like((5,), (1,)),
        tensor_like((2,), (1,), 3),
        tensor_like((2,), (1,), -1),
        tensor_like((2,), (-1,), 2),
        tensor_like((2, 2), (1,)),
        tensor_like((10**6, 10**6), (0, 0)),
        data(v=np.array([{}])),
        data(v=np.zeros(2, dtype="f8,i4")),
        b"\x80\x04" + b"(" * 10 + b".",
        b"\x80\x02I" + b"9" * 10 + b"\nQ.",  # a persistent id
    ],
)
def test_damaged_pickles_are_one_line(blob):
    with pytest.raises(DataError) as caught:
        load_fields(blob, "here")
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value)


def test_other_classes_of_pyg_are_refused():
    batch = Batch.from_data_list([Data(pos=torch.ones(1, 3))])
    with pytest.raises(DataError, match=r"refused: its pickle names 'torch_geometric"):
        load_fields(pickle.dumps(batch), "f")


def test_names_in_messages_stay_short_and_on_one_line():
    name = b"a\nb" * 100
    blob = b"\x80\x04\x8c\x01m" + b"X" + struct.pack("<I", len(name)) + name + b"\x93."
    with pytest.raises(DataError, match="refused") as caught:
        load_fields(blob, "f")
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_tuples_of_tuples_do_not_overflow_the_stack():
    nested = b"}N" + b"\x85" * 2_000_000 + b"Ns."  # hashed as a key: ends the process
    with pytest.raises(DataError, match="more than 2000 tuples"):
        load_fields(nested, "x")
    # The same bytes in numbers are no tuples.
    many = np.frombuffer(b"\x85" * 80_000, np.float64)
    assert np.array_equal(load_fields(data(pos=many), "x")["pos"], many)


def test_many_views_of_one_number_take_no_memory():
    number = torch.zeros(1, dtype=torch.float64)
    wide = {f"k{i}": number.expand(10**8) for i in range(200)}  # 160 GB if they were copied
    blob = data(**wide)
    assert len(blob) < 100_000
    found = load_fields(blob, "x")
    assert all(value.strides == (0,) for value in found.values())
