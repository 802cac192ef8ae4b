"""The folder of an active learning run: what is in it, and whose it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcase.errors import SimulationError
from dcase.runs import Place


@dataclass(frozen=True)
class RoundFolder:
    """Paths of one round; each file is written whole when its stage is done.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def ensemble(self) -> Path:
        """Trained on all labels up to here."""
        return self.root / "ensemble.pt"

    @property
    def members(self) -> Path:
        """Folder of the members' own checkpoints and training states."""
        return self.root / "members"

    @property
    def sample(self) -> Path:
        """Folder of the walkers' runs."""
        return self.root / "sample"

    @property
    def chosen(self) -> Path:
        """Frames to label, in order; the last ones take the place of frames that fail."""
        return self.root / "chosen.extxyz"

    @property
    def labels(self) -> Path:
        """Folder with the label of one frame a file."""
        return self.root / "labels"

    @property
    def labelled(self) -> Path:
        """New frames with labels."""
        return self.root / "labelled.extxyz"

    @property
    def record(self) -> Path:
        """Numbers of the round; there once the round is over."""
        return self.root / "round.json"


@dataclass(frozen=True)
class ActiveFolder:
    """Paths of an active learning run.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def place(self) -> Place:
        """What belongs to a run."""
        made = (
            self.first_labels,
            self.first,
            self.labelled,
            self.ensemble,
            self.curve,
            self.figure,
        )
        return Place(self.root, (*(path.name for path in made), "round-[0-9][0-9]*"))

    @property
    def first_labels(self) -> Path:
        """Folder with the labels of the first frames that were made or checked here."""
        return self.root / "first-labels"

    @property
    def first(self) -> Path:
        """The first labelled frames."""
        return self.root / "first.extxyz"

    @property
    def labelled(self) -> Path:
        """All labelled frames so far."""
        return self.root / "labelled.extxyz"

    @property
    def ensemble(self) -> Path:
        """The last ensemble."""
        return self.root / "ensemble.pt"

    @property
    def curve(self) -> Path:
        """Errors against the number of labels."""
        return self.root / "learning_curve.json"

    @property
    def figure(self) -> Path:
        """The same as a picture."""
        return self.root / "learning_curve.png"

    def round(self, number: int) -> RoundFolder:
        """The folder of round 0, 1, ..."""
        return RoundFolder(self.root / f"round-{number:02d}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run.

    Raises:
        SimulationError: If it is missing or damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SimulationError(f"cannot read {path}: {error}; use --overwrite") from error
