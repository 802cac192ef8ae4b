"""The first labelled frames of an active learning run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError, OptionError
from dcase.md_runs.active.folder import ActiveFolder
from dcase.md_runs.active.frames import rattled, rounded
from dcase.md_runs.active.labels import Labeller, check_labels, label_frames
from dcase.md_runs.active.sampling import FIRST
from dcase.md_runs.active.settings import ActiveSettings

COPIES = 20
"""Rattled copies of a structure, by default."""


@dataclass(frozen=True)
class Start:
    """What a run starts from: labelled frames, or a structure.

    Attributes:
        labelled: Frames with energies and forces by the labeller's method.
        structure: Its rattled copies are labelled first, where there are no labelled frames.
        count: First frames: of the labelled ones as many drawn at random (None: all), of the
            structure so many copies (None: :data:`COPIES`).
        rattle_A: Standard deviation of the coordinates of the last copy, A.
        name: Where it is from, for messages; of a molecule its name.
        molecule: Name of the molecule, or "".
    """

    labelled: AtomicDataset | None = None
    structure: Atoms | None = None
    count: int | None = None
    rattle_A: float = 0.1
    name: str = "the start"
    molecule: str = ""

    def __post_init__(self) -> None:
        """Check that there is one.

        Raises:
            OptionError: If there are none or two.
            DataError: If labels are missing.
        """
        if (self.labelled is None) == (self.structure is None):
            raise OptionError("start from either labelled frames or a structure")
        if self.count is not None and self.count < 2:
            raise OptionError(f"at least 2 first frames are needed, not {self.count}")
        if self.labelled is not None:
            if self.labelled.energies is None or self.labelled.forces is None:
                raise DataError(f"{self.name}: energies and forces are needed for every frame")
            if self.count is not None and self.count > len(self.labelled):
                raise DataError(
                    f"{self.name} has {len(self.labelled)} frames, not the {self.count} asked for"
                )

    @property
    def n_copies(self) -> int:
        """Copies of the structure."""
        return COPIES if self.count is None else self.count

    def identity(self) -> dict[str, Any]:
        """What tells starts apart."""
        if self.labelled is not None:
            return {"labelled": self.labelled.fingerprint(), "count": self.count}
        assert self.structure is not None
        alone = AtomicDataset.from_frames([self.structure])
        return {"structure": alone.fingerprint(), "count": self.count, "rattle_A": self.rattle_A}


def given_frames(
    start: Start, labeller: Labeller, settings: ActiveSettings, folder: ActiveFolder
) -> list[Atoms]:
    """Labelled frames that were given, once the labeller has reproduced the label of one.

    Raises:
        DataError: If it does not.
    """
    given = start.labelled
    assert given is not None
    if start.count is not None:
        rng = np.random.default_rng(settings.seed_of(FIRST))
        given = given.subset(np.sort(rng.permutation(len(given))[: start.count]))
    if len(given) < 2:
        raise DataError(f"{start.name} has only one frame; at least 2 are needed to start from")
    frames = [given.frame(k) for k in range(len(given))]
    one = rounded(frames[:1], folder.first_labels / "frames.extxyz")
    (again,), _ = label_frames(one, labeller, folder.first_labels, 1)
    check_labels(frames[0], again, labeller, start.name)
    return frames


def made_frames(
    start: Start,
    labeller: Labeller,
    settings: ActiveSettings,
    folder: ActiveFolder,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Atoms], list[str]]:
    """Rattled copies of a structure with labels, and notes on those that have none.

    Raises:
        DataError: If less than two could be labelled.
    """
    assert start.structure is not None
    seed = settings.seed_of(FIRST)
    made = rattled(start.structure, start.n_copies, start.rattle_A, seed)
    frames, notes = label_frames(
        rounded(made, folder.first_labels / "frames.extxyz"),
        labeller,
        folder.first_labels,
        len(made),
        max_force_eV_A=settings.max_force_eV_A,
        progress=progress,
    )
    if len(frames) < 2:
        raise DataError(
            f"only {len(frames)} of {len(made)} first frames could be labelled ({notes[0]}); "
            "rattle them less, or give more"
        )
    return frames, notes
