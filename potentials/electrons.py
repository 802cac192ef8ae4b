"""Whether a potential is used on the total charge and spin that it was trained on.

A network sees elements and positions only: energies and forces it gives of an ion are those of
whatever it was trained on. Checkpoints record the charges and spins of their frames
(``metadata["electrons"]``); those of an older dcase do not, and nothing is said.
"""

from __future__ import annotations

from typing import Any

import ase
import numpy as np

from dcase.data.dataset import AtomicDataset
from dcase.data.state import FrameState, electrons_of, joined_electrons, other_electrons


def trained_electrons(potential: Any) -> dict[str, Any] | None:
    """Charges and spins of the frames that a potential or an ensemble was trained on, if known."""
    members = getattr(potential, "members", None)
    own = getattr(potential, "metadata", None) or {}
    if members is None or "electrons" in own:
        return joined_electrons([own.get("electrons")])
    return joined_electrons([member.metadata.get("electrons") for member in members])


def electrons_line(potential: Any, what: ase.Atoms | AtomicDataset) -> str:
    """A line where charge or spin is another than that trained on, or "".

    Raises:
        DataError: If the structure contradicts itself about its charge.
    """
    trained = trained_electrons(potential)
    if trained is None:
        return ""
    if isinstance(what, AtomicDataset):
        return other_electrons(trained, what.electrons(), "the data")
    ends = np.array([0, len(what)])
    used = electrons_of(what.numbers, ends, [FrameState(what.info, what.arrays)])
    return other_electrons(trained, used)
