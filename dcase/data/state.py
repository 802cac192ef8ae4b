"""What a frame carries besides its structure, and what of that is no state but a label.

Of ASE's Atoms, elements, positions, cell, periodicity and tags stand in arrays of a dataset or a
trajectory. All else that belongs to the *system* is its :class:`FrameState`: ``info``, per-atom
arrays (initial charges, magnetic moments, masses, momenta, the user's own) and constraints. Every
path keeps it: files, datasets, checkpoints, trajectories, selections, labelling.

Results of a calculation - energies, forces, stress, under whatever name - are no state: positions
move on, and a label that stays behind is wrong. :func:`is_label` knows them, :func:`bare` drops
them, and :func:`with_results` attaches what the calculator at hand says.

**Charge** is the sum of ASE's initial charges or ``info["charge"]``. **Spin** is the number of
unpaired electrons 2S: ``info["multiplicity"]`` - 1, else ``info["spin"]``, else the sum of the
initial magnetic moments. ``info["spin"]`` is read as 2S (PySCF's convention) or as the multiplicity
2S + 1 (OMol25's), whichever the number of electrons allows: one of them is even, the other odd.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, dict2constraint
from ase.io.jsonio import decode, encode

from dcase.errors import DataError

CONSTRAINTS_KEY = "dcase_constraints"
"""Where our extxyz files keep constraints that the format has no column for."""

MODEL_KEY = "dcase_model"
"""Where our files say whose energy and forces they hold."""

_STRUCTURE = ("numbers", "positions")
_WORDS = ("energ", "force", "stress", "virial", "hessian", "dipole", "polarizab")
_NAMES = ("charges", "magmom", "magmoms", "bec", MODEL_KEY, "energy_std", "uncertainty_ev_a")
_NESTED = ("key_value_pairs", "data")  # of a row of ASE's database


def is_label(name: str, extra: Iterable[str] = ()) -> bool:
    """Whether a key of ``info`` or ``arrays`` names the result of a calculation.

    Args:
        name: Of the key, e.g. ``REF_energy``, ``dft_forces``, ``virials``.
        extra: Keys that were given as labels.
    """
    low = str(name).lower()
    return (
        name in extra
        or low in _NAMES
        or low.startswith("ref_")
        or any(word in low for word in _WORDS)
    )


@dataclass(frozen=True)
class FrameState:
    """What a frame carries besides elements, positions, cell and periodicity.

    Attributes:
        info: As in ASE, without labels.
        arrays: By name, one entry an atom: ``initial_charges``, ``initial_magmoms``, ``masses``
            (where they are not the elements'), ``momenta``, ``tags``, the user's own.
        constraints: ASE's, as their dictionaries.
    """

    info: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    constraints: tuple[dict[str, Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.info or self.arrays or self.constraints)

    @staticmethod
    def of(
        atoms: ase.Atoms, *, without: Iterable[str] = (), labels: Iterable[str] = ()
    ) -> FrameState:
        """The state of ``atoms``.

        Args:
            atoms: ASE atoms.
            without: Arrays that are kept elsewhere.
            labels: Keys that hold labels, besides those that :func:`is_label` knows.
        """
        left_out, labels = {*_STRUCTURE, *without}, tuple(labels)
        info = {k: v for k, v in atoms.info.items() if k not in _NESTED}
        for nested in _NESTED:
            for name, value in dict(atoms.info.get(nested) or {}).items():
                info.setdefault(name, value)
        stored = info.pop(CONSTRAINTS_KEY, None)
        constraints = _constraints(atoms) if stored is None else _listed(stored)
        return FrameState(
            {k: v for k, v in info.items() if not is_label(k, labels)},
            {
                k: v.copy()
                for k, v in atoms.arrays.items()
                if k not in left_out and not is_label(k, labels)
            },
            constraints,
        )

    def put_on(self, atoms: ase.Atoms) -> None:
        """Give ``atoms`` this state; what it does not speak of stays as it is."""
        atoms.info.update(self.info)
        for name, values in self.arrays.items():
            atoms.arrays.pop(name, None)  # which may be of another type or shape
            atoms.new_array(name, np.array(values))
        if self.constraints:
            atoms.set_constraint([dict2constraint(one) for one in self.constraints])

    def without(self, *names: str) -> FrameState:
        """The same without these arrays."""
        kept = {k: v for k, v in self.arrays.items() if k not in names}
        return FrameState(self.info, kept, self.constraints)

    def identity(self) -> str:
        """What tells one system from another: charge, spin, isotopes; "" where nothing is said."""
        said = {k: self.info[k] for k in ("charge", "spin", "multiplicity") if self.info.get(k)}
        for name in ("initial_charges", "initial_magmoms", "masses"):
            if np.any(self.arrays.get(name, 0)):
                said[name] = self.arrays[name].tolist()
        return json.dumps(said, default=str) if said else ""

    def to_text(self) -> str:
        """As JSON; what of ``info`` is no JSON is left out."""
        info = {k: v for k, v in self.info.items() if isinstance(k, str) and _is_plain(v)}
        return str(encode([info, dict(self.arrays), list(self.constraints)]))

    @staticmethod
    def from_text(text: str) -> FrameState:
        """Inverse of :meth:`to_text`."""
        info, arrays, constraints = decode(text, always_array=False)
        return FrameState(
            info, {k: np.asarray(v) for k, v in arrays.items()}, _as_lists(constraints)
        )


def bare(atoms: ase.Atoms, labels: Iterable[str] = ()) -> ase.Atoms:
    """A copy with all its state, without calculator and without any label."""
    state = FrameState.of(atoms, labels=labels)
    frame = atoms.copy()
    frame.info = dict(state.info)
    for name in [n for n in frame.arrays if n not in (*_STRUCTURE, *state.arrays)]:
        del frame.arrays[name]
    if CONSTRAINTS_KEY in atoms.info:
        state.put_on(frame)
    return frame


def with_results(atoms: ase.Atoms, calculator: Any, model: str = "") -> ase.Atoms:
    """:func:`bare` with what a calculator says of it: its own energy, forces, stress.

    Args:
        atoms: Structure.
        calculator: Asked, or, where it has just computed these positions, read; None: no results.
        model: Its name, for ``info["dcase_model"]``.
    """
    frame = bare(atoms)
    if calculator is None:
        return frame
    work = atoms.copy()
    work.calc = calculator
    results: dict[str, Any] = {
        "energy": float(work.get_potential_energy(apply_constraint=False)),
        "forces": np.array(work.get_forces(apply_constraint=False)),
    }
    computed = getattr(calculator, "results", None) or {}
    for name in ("free_energy", "stress"):
        if computed.get(name) is not None:
            results[name] = computed[name]
    frame.calc = SinglePointCalculator(frame, **results)
    if model:
        frame.info[MODEL_KEY] = model
    return frame


def for_extxyz(atoms: ase.Atoms) -> ase.Atoms:
    """The atoms as an extxyz file can keep them: constraints without a column go into ``info``."""
    constraints = atoms.constraints
    if not constraints or (len(constraints) == 1 and isinstance(constraints[0], FixAtoms)):
        return atoms
    copy = atoms.copy()
    copy.calc = atoms.calc
    copy.info[CONSTRAINTS_KEY] = encode(list(_constraints(atoms)))
    return copy


# --- charge and spin ------------------------------------------------------------------------------


def stated_charge(atoms: ase.Atoms, where: str = "the structure") -> float | None:
    """Total charge in units of e, or None where nothing says it.

    Args:
        atoms: Asked for ``info["charge"]`` and initial charges.
        where: For the message.

    Raises:
        DataError: If the two contradict each other, or one is no number.
    """
    return _charge(atoms.info, atoms.arrays, where)


def total_charge(atoms: ase.Atoms, where: str = "the structure") -> float:
    """The same; 0 where nothing says it."""
    charge = stated_charge(atoms, where)
    return 0.0 if charge is None else charge


def unpaired_electrons(atoms: ase.Atoms, where: str = "the structure") -> int | None:
    """Number of unpaired electrons 2S, or None where nothing says it.

    Raises:
        DataError: If what is said is impossible for the number of electrons, or contradicts itself.
    """
    return _unpaired(atoms.numbers, atoms.info, atoms.arrays, where)


def _charge(info: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: str) -> float | None:
    partial = arrays.get("initial_charges")
    summed = None if partial is None or not np.any(partial) else float(np.sum(partial))
    if summed is not None and abs(summed - round(summed)) < 0.01:
        summed = float(round(summed))
    if info.get("charge") is None:
        return summed if summed is not None or partial is None else 0.0
    charge = _number(info["charge"], "charge", where)
    if summed is not None and abs(summed - charge) > 0.01:
        raise DataError(
            f'{where}: info["charge"] is {charge:g}, but the initial charges of its atoms sum to '
            f"{summed:g}: correct one of them"
        )
    return charge


def _unpaired(
    numbers: np.ndarray, info: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: str
) -> int | None:
    charge = _charge(info, arrays, where) or 0.0
    electrons = int(np.sum(numbers)) - round(charge)
    found: dict[str, int] = {}
    if info.get("multiplicity") is not None:
        found["multiplicity"] = _whole(info["multiplicity"], "multiplicity", where) - 1
    if info.get("spin") is not None:
        spin = _whole(info["spin"], "spin", where)
        found["spin"] = spin if (electrons - spin) % 2 == 0 else spin - 1
    for name, unpaired in found.items():
        if unpaired < 0 or unpaired > electrons or (electrons - unpaired) % 2:
            raise DataError(
                f'{where}: info["{name}"] = {info[name]} is impossible for its {electrons} '
                f"electrons (charge {charge:g}): correct it, or the charge"
            )
    if len(set(found.values())) > 1:
        raise DataError(
            f'{where}: info["multiplicity"] = {info["multiplicity"]} and info["spin"] = '
            f"{info['spin']} contradict each other: correct one of them"
        )
    if found:
        return next(iter(found.values()))
    moments = arrays.get("initial_magmoms")
    if moments is None or moments.ndim != 1 or not moments.any():
        return None
    return abs(round(float(moments.sum())))


def _number(value: Any, name: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f'{where}: info["{name}"] = {value!r} is not a number') from error
    if not np.isfinite(number):
        raise DataError(f'{where}: info["{name}"] = {value!r} is not a number')
    return number


def _whole(value: Any, name: str, where: str) -> int:
    number = _number(value, name, where)
    if number != round(number) or number < 0:
        raise DataError(
            f'{where}: info["{name}"] = {value} is not a whole number: give the number of unpaired '
            "electrons as spin, or the multiplicity"
        )
    return int(number)


def hand_over(atoms: ase.Atoms, calculator: Any, where: str = "the structure") -> Any:
    """Tell a calculator the charge and spin of ``atoms``, as far as it takes them.

    Parameters named ``charge``, ``multiplicity``, ``mult`` or ``uhf`` are set, and a charge of
    ``info`` alone becomes initial charges, whose sum other calculators take (tblite, xtb, DFTB+).

    Args:
        atoms: Structure; its initial charges may be set.
        calculator: A fresh one.
        where: For messages.

    Returns:
        The calculator.

    Raises:
        DataError: If charge and spin are impossible, or the calculator was made for another charge.
    """
    charge, unpaired = stated_charge(atoms, where), unpaired_electrons(atoms, where)
    parameters = getattr(calculator, "parameters", None) or {}
    if charge is not None:
        fixed = parameters.get("charge")
        if fixed not in (None, 0) and abs(float(fixed) - charge) > 0.01:
            raise DataError(
                f"{where} has charge {charge:g}, but its calculator was made for charge {fixed}"
            )
        if "charge" in parameters and float(fixed or 0.0) != charge:
            calculator.set(charge=int(charge) if charge == round(charge) else charge)
        if charge and not np.any(atoms.get_initial_charges()):
            atoms.set_initial_charges(np.full(len(atoms), charge / len(atoms)))
    if unpaired is not None:
        for name, value in (("multiplicity", unpaired + 1), ("mult", unpaired + 1)):
            if name in parameters and parameters[name] != value:
                calculator.set(**{name: value})
        if "uhf" in parameters and parameters["uhf"] != unpaired:
            calculator.set(uhf=unpaired)
    return calculator


# --- what a potential was trained on --------------------------------------------------------------


def electrons_of(
    numbers: np.ndarray, ptr: np.ndarray, states: Iterable[FrameState] | None
) -> dict[str, Any]:
    """The charges and spins of frames, for a checkpoint.

    Args:
        numbers: Atomic numbers, shape [n_atoms_total].
        ptr: Frame f owns atoms ``ptr[f]:ptr[f+1]``.
        states: Of the frames; None: none has any.

    Returns:
        ``charges`` (e, ascending; 0 where nothing is said), ``unpaired`` (electrons, ascending, of
        the frames that say it) and ``stated`` (whether any frame says its charge).
    """
    if states is None:
        return {"charges": [0.0], "unpaired": [], "stated": False}
    charges, unpaired, stated = set(), set(), False
    for number, state in enumerate(states):
        where = f"frame {number}"
        charge = _charge(state.info, state.arrays, where)
        stated = stated or charge is not None
        charges.add(round(charge or 0.0, 2) + 0.0)
        try:
            spin = _unpaired(
                numbers[ptr[number] : ptr[number + 1]], state.info, state.arrays, where
            )
        except DataError:  # not needed to train, and no reason not to
            continue
        if spin is not None:
            unpaired.add(spin)
    return {"charges": sorted(charges), "unpaired": sorted(unpaired), "stated": stated}


def joined_electrons(found: Iterable[Any]) -> dict[str, Any] | None:
    """Of several potentials; None where one of them does not say."""
    parts = list(found)
    if not parts or not all(isinstance(part, dict) for part in parts):
        return None
    return {
        "charges": sorted({c for part in parts for c in part["charges"]}),
        "unpaired": sorted({s for part in parts for s in part["unpaired"]}),
        "stated": any(part["stated"] for part in parts),
    }


def other_electrons(
    trained: Mapping[str, Any] | None, used: Mapping[str, Any], what: str = "the structure"
) -> str:
    """A line where the charge or spin is another than a potential was trained on, or "".

    Args:
        trained: From the checkpoint; None: of an older dcase, which did not know.
        used: Of what it is used on.
        what: What that is, for the line.
    """
    if trained is None:
        return ""
    said = []
    other = [c for c in used["charges"] if c not in trained["charges"]]
    if other:
        of = _listing(trained["charges"]) + ("" if trained["stated"] else " (none was given)")
        said.append(f"was trained on total charge {of}, {what} has {_listing(other)}")
    spins = [s for s in used["unpaired"] if trained["unpaired"] and s not in trained["unpaired"]]
    if spins:
        said.append(
            f"was trained on {_listing(trained['unpaired'])} unpaired electrons, {what} has "
            f"{_listing(spins)}"
        )
    if not said:
        return ""
    return f"the potential {'; it '.join(said)}: energies and forces are of another system"


def _listing(values: Iterable[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


# --- constraints and JSON -------------------------------------------------------------------------


def _constraints(atoms: ase.Atoms) -> tuple[dict[str, Any], ...]:
    found = []
    for constraint in atoms.constraints:
        try:
            found.append(json.loads(encode(constraint.todict())))
        except (AttributeError, NotImplementedError, TypeError):  # a user's own class: not kept
            continue
    return _as_lists([decode(json.dumps(one)) for one in found])


def _listed(stored: Any) -> tuple[dict[str, Any], ...]:
    """Constraints of a file: JSON text, or what ASE's reader has made of it."""
    try:
        return _as_lists(decode(stored) if isinstance(stored, str) else list(stored))
    except (TypeError, ValueError) as error:
        raise DataError(f'info["{CONSTRAINTS_KEY}"] is damaged: {stored!r}'[:200]) from error


def _as_lists(constraints: Iterable[Any]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(one) for one in constraints)


def _is_plain(value: Any) -> bool:
    try:
        encode(value)
    except (TypeError, ValueError):
        return False
    return True
