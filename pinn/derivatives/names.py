"""Names of fields and derivatives (``u``, ``u_t``, ``u_xx``, ``lap_u``), and what they ask for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dcase.errors import OptionError

#: The coordinate that a Laplacian leaves out.
TIME = "t"

Kind = Literal["coordinate", "value", "first", "second", "laplacian"]


@dataclass(frozen=True)
class Request:
    """One name, taken apart.

    Attributes:
        name: As it was asked for.
        kind: What it is.
        field: Index of the field (-1 for a coordinate).
        indices: Coordinates: (), (i,) for a first derivative or a coordinate, (i, j) with i <= j
            for a second derivative, all spatial ones for a Laplacian.
    """

    name: str
    kind: Kind
    field: int
    indices: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What an equation needs of a network; made by :func:`wanted` or :func:`trace`.

    Attributes:
        coordinates: Names of the columns of the points.
        fields: Names of the columns of the network's output.
        names: What was asked for, as asked.
        requests: The same, taken apart.
        first: Coordinates (indices) by which first derivatives are needed, those that second
            derivatives and Laplacians build on included; ascending.
        second: Pairs (i, j), i <= j, of second derivatives asked for by name.
        laplacian: Indices of the spatial coordinates where a Laplacian is asked for, else ().
    """

    coordinates: tuple[str, ...]
    fields: tuple[str, ...]
    names: tuple[str, ...]
    requests: tuple[Request, ...] = field(repr=False)
    first: tuple[int, ...]
    second: tuple[tuple[int, int], ...]
    laplacian: tuple[int, ...]

    @property
    def order(self) -> int:
        """Highest order of differentiation: 0, 1 or 2."""
        return 2 if self.second or self.laplacian else int(bool(self.first))


def wanted(names: Iterable[str], coordinates: Iterable[str], fields: Iterable[str]) -> Wanted:
    """Take names apart.

    ``u`` is a field, ``x`` a coordinate, ``u_x`` a first and ``u_xt`` (or ``u_tx``) a second
    derivative, ``lap_u`` the Laplacian over all coordinates but ``t``.

    Args:
        names: What is needed; duplicates are dropped.
        coordinates: Names of the columns of the points.
        fields: Names of the columns of the network's output.

    Raises:
        OptionError: For an unknown name (with the closest known one), a third derivative, or names
            of coordinates and fields that clash.
    """
    coordinates, fields = tuple(coordinates), tuple(fields)
    vocabulary = _Vocabulary(coordinates, fields)
    names = tuple(dict.fromkeys(names))
    requests = tuple(vocabulary.parse(name) for name in names)
    second = sorted({_pair(r.indices) for r in requests if r.kind == "second"})
    laplacian = next((r.indices for r in requests if r.kind == "laplacian"), ())
    first = {r.indices[0] for r in requests if r.kind == "first"}
    first |= {i for pair in second for i in pair} | set(laplacian)
    return Wanted(
        coordinates=coordinates,
        fields=fields,
        names=names,
        requests=requests,
        first=tuple(sorted(first)),
        second=tuple(second),
        laplacian=laplacian,
    )


def trace(equation: Any) -> Wanted:
    """Find out which names ``equation.residuals(d)`` reads, by running it once on dummy numbers.

    Args:
        equation: Has ``coordinates``, ``fields`` and ``residuals(d) -> dict[str, Tensor]``.

    Raises:
        OptionError: It reads an unknown name, or does not return a dict of tensors.
    """
    recorder = _Recorder(_Vocabulary(tuple(equation.coordinates), tuple(equation.fields)))
    with torch.no_grad():
        result = equation.residuals(recorder)
    kind = type(equation).__name__
    if not isinstance(result, Mapping) or not all(isinstance(v, Tensor) for v in result.values()):
        raise OptionError(f"{kind}.residuals must return a dict of tensors by name")
    if not result:
        raise OptionError(f"{kind}.residuals returned no residual at all")
    return wanted(recorder.__dict__["_seen"], equation.coordinates, equation.fields)


class Named:
    """Fields, derivatives and coordinates by attribute: ``d.u_t``; each a tensor [N].

    Args:
        values: Tensors by name.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.__dict__["_values"] = dict(values)

    def __getattr__(self, name: str) -> Tensor:
        values = self.__dict__.get("_values", {})
        try:
            return values[name]
        except KeyError:
            raise AttributeError(
                f"'{name}' was not computed; what there is: {', '.join(values)}"
            ) from None

    def __getitem__(self, name: str) -> Tensor:
        return self.__dict__["_values"][name]

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__["_values"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__["_values"])

    def __repr__(self) -> str:
        return f"Named({', '.join(self)})"


class _Vocabulary:
    """The names that coordinates and fields allow."""

    def __init__(self, coordinates: tuple[str, ...], fields: tuple[str, ...]) -> None:
        everything = [*coordinates, *fields]
        if not coordinates or not fields:
            raise OptionError("an equation needs at least one coordinate and one field")
        if len(set(everything)) != len(everything):
            raise OptionError(
                f"names of coordinates and fields must all differ: {', '.join(everything)}"
            )
        if "" in everything:
            raise OptionError("a coordinate or field has an empty name")
        self.coordinates, self.fields = coordinates, fields
        self.spatial = tuple(i for i, c in enumerate(coordinates) if c != TIME)

    def parse(self, name: str) -> Request:
        if name in self.coordinates:
            return Request(name, "coordinate", -1, (self.coordinates.index(name),))
        if name in self.fields:
            return Request(name, "value", self.fields.index(name))
        if name.startswith("lap_") and name[4:] in self.fields and self.spatial:
            return Request(name, "laplacian", self.fields.index(name[4:]), self.spatial)
        # The longest field first: with fields "u" and "u_b", "u_b_x" is a derivative of the latter.
        for f in sorted(self.fields, key=len, reverse=True):
            indices = self._split(name[len(f) + 1 :]) if name.startswith(f + "_") else None
            if indices is None:
                continue
            if len(indices) > 2:
                raise OptionError(
                    f"'{name}' is a derivative of order {len(indices)}; the engines go to order 2"
                    " (make an intermediate derivative a field of its own)"
                )
            kind: Kind = "first" if len(indices) == 1 else "second"
            return Request(name, kind, self.fields.index(f), tuple(sorted(indices)))
        raise OptionError(f"unknown name '{name}'{self._hint(name)}")

    def _split(self, letters: str) -> list[int] | None:
        """``"xt"`` -> [0, 1]: a concatenation of names of coordinates, or None."""
        if not letters:
            return None
        for i, c in enumerate(self.coordinates):
            if letters == c:
                return [i]
            if letters.startswith(c):
                rest = self._split(letters[len(c) :].removeprefix("_"))
                if rest is not None:
                    return [i, *rest]
        return None

    def _hint(self, name: str) -> str:
        c = self.coordinates
        known = [*c, *self.fields]
        for f in self.fields:
            known += [f"{f}_{a}" for a in c] + [f"{f}_{a}{b}" for a in c for b in c] + [f"lap_{f}"]
        close = difflib.get_close_matches(name, known, n=1)
        did = f"; did you mean '{close[0]}'?" if close else ";"
        f = self.fields[0]
        return (
            f"{did} coordinates are {', '.join(c)}, fields {', '.join(self.fields)}; derivatives"
            f" are written like '{f}_{c[0]}', '{f}_{c[0] * 2}' or 'lap_{f}'"
        )


class _Recorder:
    """Stands in for :class:`Named` and notes which names are read."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        self.__dict__.update(_vocabulary=vocabulary, _seen={})

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):  # copy, pickle and inspect ask for such; no field is named so
            raise AttributeError(name)
        self.__dict__["_vocabulary"].parse(name)
        # Different numbers of the order of one, so that neither 1/(a - b) nor log(a) is infinite.
        seen = self.__dict__["_seen"]
        number = seen.setdefault(name, 0.5 + 0.0625 * len(seen))
        return torch.full((2,), number, dtype=torch.float64)

    def __getitem__(self, name: str) -> Tensor:
        return getattr(self, name)


def _pair(indices: tuple[int, ...]) -> tuple[int, int]:
    i, j = indices
    return i, j
