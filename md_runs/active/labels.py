"""Labels from any ASE calculator, one frame a file, so that none is ever computed twice."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from dcase.data.state import hand_over, stated_charge, unpaired_electrons
from dcase.errors import DataError, OptionError
from dcase.files import write_json

XTB = "xtb"


@dataclass(frozen=True)
class Labeller:
    """Where labels come from.

    Attributes:
        name: ``"xtb"`` or ``"module:factory"``.
        factory: Gives a fresh ASE calculator. Each frame gets its own: one that remembers the last
            frame would make labels depend on the order, and a resumed run differ.
        theory: Level of theory, for checkpoints and reports.
    """

    name: str
    factory: Callable[[], Any]
    theory: str


def find_labeller(name: str = XTB, theory: str | None = None) -> Labeller:
    """A labeller by name.

    Args:
        name: ``"xtb"`` (GFN2-xTB through tblite), or where a function without arguments is that
            returns an ASE calculator: ``"package.module:function"`` or ``"file.py:function"``.
        theory: Its level of theory; default: GFN2-xTB, or the name.

    Raises:
        OptionError: If there is no such thing, or it gives no calculator.
        MissingExtraError: If tblite is not installed.
    """
    if name == XTB:
        from dcase.data.generate import LABEL_ACCURACY
        from dcase.data.molecules import XTB_THEORY
        from dcase.data.xtb import xtb_calculator

        xtb_calculator()  # say at once that tblite is missing
        return Labeller(XTB, lambda: xtb_calculator(LABEL_ACCURACY), theory or XTB_THEORY)
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise OptionError(
            f"labeller must be xtb, module:function or file.py:function, not {name!r}"
        )
    try:
        factory = getattr(_module(place), attribute, None)
    except Exception as error:  # the user's own code
        raise OptionError(f"labeller {name}: cannot import {place}: {_reason(error)}") from error
    if not callable(factory):
        raise OptionError(f"labeller {name}: {place} has no function {attribute!r}")
    try:
        calculator = factory()
    except Exception as error:
        raise OptionError(f"labeller {name}: {attribute}() failed: {_reason(error)}") from error
    if not hasattr(calculator, "get_property"):
        raise OptionError(
            f"labeller {name}: {attribute}() must return an ASE calculator, not "
            f"{type(calculator).__name__}"
        )
    return Labeller(name, factory, theory or name)


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise OptionError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def label_frames(
    frames: Sequence[Atoms],
    labeller: Labeller,
    folder: Path,
    wanted: int,
    *,
    max_force_eV_A: float = np.inf,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Atoms], list[str]]:
    """Label frames in their order until enough have succeeded.

    Every label is written to a file of its own as soon as it is there; an interrupted call goes on
    after the last one. A frame whose calculation fails, or whose forces are beyond the limit, is
    left out with a note.

    Args:
        frames: Structures.
        labeller: What computes the labels.
        folder: For the files.
        wanted: Frames to label.
        max_force_eV_A: Largest force on an atom that is kept, eV/A.
        progress: Called with the number of labels and ``wanted``.

    Returns:
        Frames with energy (eV) and forces (eV/A) in a ``SinglePointCalculator``, and notes.

    Raises:
        DataError: If no frame at all could be labelled; its files are removed, so that the next
            call tries again.
    """
    labelled: list[Atoms] = []
    notes: list[str] = []
    files = []
    for number, frame in enumerate(frames):
        if len(labelled) >= wanted:
            break
        path = folder / f"{number:03d}.json"
        files.append(path)
        if progress is not None:
            progress(len(labelled), wanted)
        label = _stored(path, frame)
        if label is None:
            label = _compute(frame, labeller)
            write_json(path, {"positions": frame.positions, **_electrons(frame), **label})
        trouble = label.get("failed") or _beyond(label["forces"], max_force_eV_A)
        if trouble:
            notes.append(f"frame {number} left out: {trouble}")
            continue
        kept = frame.copy()
        kept.calc = SinglePointCalculator(
            kept, energy=float(label["energy"]), forces=np.array(label["forces"], dtype=np.float64)
        )
        labelled.append(kept)
    if frames and not labelled:
        for path in files:
            path.unlink(missing_ok=True)
        reason = notes[-1].split(": ", 1)[1]
        raise DataError(
            f"{labeller.name} could not label any of {len(files)} frames; the last: {reason}"
        )
    if progress is not None:
        progress(len(labelled), wanted)
    return labelled, notes


def _compute(frame: Atoms, labeller: Labeller) -> dict[str, Any]:
    """Energy (eV) and forces (eV/A), or why there are none."""
    atoms = frame.copy()
    try:
        atoms.calc = hand_over(atoms, labeller.factory(), "the frame to label")
        # The method's own, whatever restraints or holds the atoms
        energy = float(atoms.get_potential_energy(apply_constraint=False))
        forces = np.asarray(atoms.get_forces(apply_constraint=False), dtype=np.float64)
    except DataError:  # charge and spin that cannot be
        raise
    except Exception as error:  # an SCF that does not converge has as many names as programs
        return {"failed": _reason(error)}
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        return {"failed": "energy or forces are not finite numbers"}
    return {"energy": energy, "forces": forces}


def _stored(path: Path, frame: Atoms) -> dict[str, Any] | None:
    """A label computed before, if it is of this frame."""
    try:
        label = json.loads(path.read_text(encoding="utf-8"))
        same = np.array_equal(np.asarray(label["positions"]), frame.positions)
        same = same and {k: label[k] for k in _SPIN if k in label} == _electrons(frame)
        return label if same and ("failed" in label or "forces" in label) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


_SPIN = ("charge", "unpaired_electrons")


def _electrons(frame: Atoms) -> dict[str, Any]:
    """What is said of the charge and spin of a frame; empty where nothing is."""
    said = (stated_charge(frame), unpaired_electrons(frame))
    return {name: value for name, value in zip(_SPIN, said, strict=True) if value}


def _beyond(forces: Any, limit: float) -> str:
    largest = float(np.linalg.norm(np.asarray(forces), axis=1).max())
    return f"a force of {largest:.3g} eV/A (limit {limit:g} eV/A)" if largest > limit else ""


def check_labels(given: Atoms, again: Atoms, labeller: Labeller, where: str) -> None:
    """Refuse labels that the labeller does not reproduce: two levels of theory must not be mixed.

    Args:
        given: A frame with the labels it came with.
        again: The same frame with the labeller's.
        labeller: Named in the message.
        where: Where the frame came from.

    Raises:
        DataError: If energies differ by more than 0.1 eV or forces by more than 0.1 eV/A.
    """
    one, two = given.calc.results, again.calc.results  # type: ignore[union-attr]
    energy = abs(float(one["energy"]) - float(two["energy"]))
    force = float(np.abs(np.asarray(one["forces"]) - np.asarray(two["forces"])).max())
    if energy > 0.1 or force > 0.1:
        raise DataError(
            f"the labels of {where} are not those of the labeller ({labeller.theory}): for the "
            f"same frame energies differ by {energy:.3g} eV, forces by {force:.3g} eV/A; label its "
            "frames with the same method, or give another --labeller"
        )
