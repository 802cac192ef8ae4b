"""PyTorch Geometric objects from pickles that cannot be trusted.

A pickle is a program: it names functions and has them called. This reader knows the few names that
a pickled ``torch_geometric.data.Data`` of tensors, NumPy values and plain values consists of, and
stands something of its own in for each of them, so that no code of PyTorch Geometric's runs either
(which also makes files of its version 1, that version 2 refuses, readable). Any other name is
refused when it is met, before anything can be done with it.

The stand-ins accept no attributes from a pickle except where they expect them: one file cannot
change how the next is read.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dcase.errors import DataError

# How PyTorch's storages begin within pickles: its magic number, pickled.
_STORAGE = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
_LARGEST = 10**8  # elements of one array; a stride of 0 makes any size out of nothing
_MOST_TUPLES = 2_000  # in one pickle; hashing a tuple of tuples of ... overflows the stack
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}


def load_fields(data: bytes, where: str) -> dict[str, Any]:
    """The fields of a pickled ``torch_geometric.data.Data``, of version 1 or 2.

    Args:
        data: The pickle.
        where: Names it in error messages, e.g. ``"data.0000.lmdb: entry 7"``.

    Returns:
        Number, text, flat list or NumPy array (also for tensors) by field; fields that are None or
        anything else are left out.

    Raises:
        DataError: If the pickle names anything that such an object does not need (nothing of it is
            run), is damaged, or holds something else.
    """
    try:
        _check_depth(data)
        found = _Unpickler(io.BytesIO(data)).load()
        if not isinstance(found, _Standin):
            raise pickle.UnpicklingError(f"holds a {type(found).__name__}, not a PyG Data object")
        fields = {name: _plain(value) for name, value in _mapping(found).items()}
    except _RefusedError as error:
        raise DataError(f"{where}: refused: {error} (nothing in it was run)") from None
    except Exception as error:  # a damaged pickle can make any operation fail
        reason = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
        raise DataError(f"{where}: damaged, or not a PyTorch Geometric frame ({reason})") from error
    return {key: value for key, value in fields.items() if value is not None}


def _check_depth(data: bytes) -> None:
    """Refuse more tuples than any frame has, before one of them can be a key."""
    codes = b"t\x85\x86\x87\x91"  # of _TUPLES; in numbers they occur by chance
    if sum(data.count(code) for code in codes) > _MOST_TUPLES:
        tuples = (op for op, _, _ in pickletools.genops(data) if op.name in _TUPLES)
        if sum(1 for _ in itertools.islice(tuples, _MOST_TUPLES + 1)) > _MOST_TUPLES:
            raise pickle.UnpicklingError(f"more than {_MOST_TUPLES} tuples")


class _RefusedError(pickle.UnpicklingError):
    """A name that has no business in a frame."""


class _Unpickler(pickle.Unpickler):
    """Knows the names in ``_KNOWN`` and no others."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            named = f"{module}.{name}"
            raise _RefusedError(
                f"its pickle names {named[:80]!r}, which frames have no need of"
            ) from None


# ------------------------------------------------------------------------------------ stand-ins


class _Sealed(type):
    """A class that a pickle's BUILD cannot change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("sets attributes of a class")


class _Standin(metaclass=_Sealed):
    """For Data and its storages: keeps the state, does nothing."""

    __slots__ = ("state",)
    state: dict[str, Any]

    def __new__(cls, *_: Any) -> _Standin:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and not state[1]:
            state = state[0]
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise pickle.UnpicklingError("an object's state is not a table of names")
        self.state = state


class _DType(metaclass=_Sealed):
    """For ``numpy.dtype``: numbers, truth values and text only."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any = None, *_: Any):
        if not isinstance(code, str) or np.dtype(code).kind not in "biufSU":
            raise pickle.UnpicklingError(f"an array of type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|") or any(state[2:5]):
            raise pickle.UnpicklingError("an array of a composite type")
        self.order = "=" if state[1] == "|" else state[1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array(metaclass=_Sealed):
    """For ``numpy.ndarray``, filled by its state."""

    __slots__ = ("value",)

    def __init__(self, value: Any = None, *_: Any):
        self.value = value if isinstance(value, np.ndarray) else None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _decoded(data, dtype, shape, "F" if fortran else "C")


class _Storage(metaclass=_Sealed):
    """For a tensor's storage."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("sets the state of a storage")


class _Function:
    """Something callable with no attributes to tamper with."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("sets the state of a function")


# ------------------------------------------------------------------------------------ functions


def _storage(data: Any) -> _Storage:
    """A tensor's storage; what PyTorch does here by itself would run a pickle in the pickle."""
    if not isinstance(data, bytes | bytearray) or not data.startswith(_STORAGE):
        raise _RefusedError("a tensor in it holds something that is no tensor's")
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _RefusedError("a tensor in it holds something that is no tensor's") from error
    if not isinstance(found, torch.storage.TypedStorage):
        raise pickle.UnpicklingError(f"a tensor's storage is a {type(found).__name__}")
    tensor = torch.empty(0, dtype=found.dtype).set_(found._untyped_storage)
    return _Storage(tensor.float() if tensor.dtype is torch.bfloat16 else tensor)  # for NumPy


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Array:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without storage")
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0 or math.prod(size) > _LARGEST:
        raise pickle.UnpicklingError(f"a tensor of shape {size} and strides {stride}")
    if math.prod(size):
        view = torch.as_strided(storage.tensor, size, stride, offset)  # checks the bounds
    else:
        view = torch.empty(size, dtype=storage.tensor.dtype)
    # No copy: many views of one number cost nothing, many copies would fill the memory.
    return _Array(view.numpy())


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    return _Array(_decoded(data, dtype, shape, order))


def _scalar(dtype: Any, data: Any) -> Any:
    return _decoded(data, dtype, (1,), "C")[0].item()


def _decoded(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array that is not plain numbers")
    return np.frombuffer(bytes(data), dtype.dtype).reshape(
        tuple(map(int, shape)), order="F" if order == "F" else "C"
    )


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocols below 3 write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return str.encode(text, "latin1")


def _ordered(*items: Any) -> dict:
    return dict(*items)


def _size(items: Any) -> tuple[int, ...]:
    return tuple(map(int, items))


_KNOWN: dict[tuple[str, str], Any] = {
    **{
        (f"torch_geometric.data.{module}", name): _Standin
        for module, names in {
            "data": ("Data", "BaseData", "DataEdgeAttr", "DataTensorAttr"),
            "storage": ("BaseStorage", "NodeStorage", "EdgeStorage", "GlobalStorage"),
        }.items()
        for name in names
    },
    ("_codecs", "encode"): _Function(_encode),
    ("collections", "OrderedDict"): _Function(_ordered),
    ("torch", "Size"): _Function(_size),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    **{
        (f"numpy.{core}.{module}", name): _Function(call)
        for core in ("core", "_core")
        for module, name, call in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    **{
        ("torch", name): getattr(torch, name)
        for name in (
            *("float64", "float32", "float16", "bfloat16", "bool", "uint8"),
            *("int8", "int16", "int32", "int64"),
        )
    },
}


# -------------------------------------------------------------------------------------- results


def _mapping(found: _Standin) -> dict[str, Any]:
    """The fields of a Data object: attributes of its own (version 1) or of its store."""
    store = found.state.get("_store")
    if store is None:
        return found.state
    mapping = store.state.get("_mapping") if isinstance(store, _Standin) else None
    if not isinstance(mapping, dict):
        raise pickle.UnpicklingError("a Data object without fields")
    return mapping


def _plain(value: Any) -> Any:
    """``value`` as a caller may have it, or None."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, list | tuple):
        # Flat ones only: a few nested lists that share their items could stand for any number.
        return list(value) if all(isinstance(item, str | int | float) for item in value) else None
    return value if isinstance(value, str | int | float) else None
