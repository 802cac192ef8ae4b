"""Elements that a potential knows, and what is said of others."""

from __future__ import annotations

from collections.abc import Iterable

from ase.data import chemical_symbols


def unknown_elements(numbers: Iterable[int], known: Iterable[int]) -> str:
    """One line that names the atomic numbers that are not ``known``, and those that are.

    Empty if all are.
    """
    known = sorted(set(known))
    unknown = sorted(set(map(int, numbers)) - set(known))
    if not unknown:
        return ""
    return f"the potential was not trained on {_names(unknown)}; it knows {_names(known)}"


def _names(numbers: list[int]) -> str:
    return ", ".join(map(_name, numbers))


def _name(number: int) -> str:
    if 0 < number < len(chemical_symbols):
        return chemical_symbols[number]
    return f"atomic number {number}"
