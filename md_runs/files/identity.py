"""What makes a simulation the one it is: its structure, its potential, their precision."""

from __future__ import annotations

from typing import Any

from ase import Atoms

from dcase.runs import Identity, fingerprint

PLACES = ("label", "directory", "command", "atoms")
"""Parameters of ASE's calculators that say where they work, not what they compute."""


def run_identity(
    kind: str, atoms: Atoms, settings: dict[str, Any], *, momenta: bool = False
) -> Identity:
    """The identity of a run that moves ``atoms``; only ``steps`` may change on a resume.

    Args:
        kind: The command.
        atoms: The starting structure, with its calculator.
        settings: All choices as plain values.
        momenta: Whether the momenta of the structure matter.
    """
    calculator: Any = atoms.calc
    tabulated = {"optimize": True} if getattr(calculator, "optimize", None) else {}
    return Identity(
        kind=kind,
        settings={**settings, **tabulated},
        free=("steps",),
        data=structure_fingerprints(atoms, momenta=momenta),
        model=calculator_fingerprint(calculator),
        dtype=str(getattr(calculator, "dtype", "float64")).removeprefix("torch."),
    )


def structure_fingerprints(atoms: Atoms, *, momenta: bool = False) -> dict[str, str]:
    """Digests of everything about a structure that a run depends on, by name."""
    parts: dict[str, Any] = {
        "elements": atoms.numbers,
        "positions": atoms.get_positions(),
        "masses": atoms.get_masses(),
        "cell": atoms.cell.array,
        "periodic boundaries": atoms.pbc,
        "charges": atoms.get_initial_charges(),
        "magnetic moments": atoms.get_initial_magnetic_moments(),
        "constraints": [_plain(_told(constraint)) for constraint in atoms.constraints],
    }
    if momenta:
        parts["momenta"] = atoms.get_momenta()
    return {name: fingerprint(value)[:16] for name, value in parts.items()}


def calculator_fingerprint(calculator: Any) -> str:
    """Digest of a calculator: of all its weights where it can say so, else of its parameters.

    What an ASE calculator does not list among its ``parameters`` is not seen here; a resumed run
    compares the energy at the checkpoint besides.
    """
    own = getattr(calculator, "fingerprint", None)
    if callable(own):
        return str(own())
    kind = type(calculator)
    parameters = dict(getattr(calculator, "parameters", None) or {})
    plain = {str(key): _plain(value) for key, value in parameters.items() if key not in PLACES}
    return fingerprint(f"{kind.__module__}.{kind.__qualname__}", plain)


def _told(constraint: Any) -> dict[str, Any]:
    """What a constraint says of itself, or where it says nothing, its attributes."""
    say = getattr(constraint, "todict", None)
    told = say() if callable(say) else None
    return told or {"name": type(constraint).__qualname__, "kwargs": vars(constraint)}


def _plain(value: Any) -> Any:
    """The value, its items, or where it has no digest the name of its type."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    try:
        fingerprint(value)
    except TypeError:
        return type(value).__name__
    return value
