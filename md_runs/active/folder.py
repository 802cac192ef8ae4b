"""The folder of an active learning run: what is in it, and whose it is."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcase.errors import OptionError, SimulationError
from dcase.files import write_json
from dcase.md_runs.active.settings import ActiveSettings

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}(\.\w+)?")  # as dcase.files.atomic_path names them


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
    def state(self) -> Path:
        """Settings, inputs and status."""
        return self.root / "active.json"

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

    def sweep(self) -> None:
        """Remove temporary files that a kill in the middle of an atomic write has left."""
        for path in self.root.rglob(".*"):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the files of a run, and nothing else."""
        for path in (self.first, self.labelled, self.ensemble, self.curve, self.figure):
            path.unlink(missing_ok=True)
        for path in [self.first_labels, *self.root.glob("round-[0-9][0-9]*")]:
            shutil.rmtree(path, ignore_errors=True)
        self.state.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run.

    Raises:
        SimulationError: If it is missing or damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SimulationError(f"cannot read {path}: {error}; use --overwrite") from error


def begin(
    folder: ActiveFolder, state: dict[str, Any], settings: ActiveSettings, *,
    resume: bool, overwrite: bool,
) -> None:  # fmt: skip
    """Take possession of the folder, or make sure that the run in it is this one.

    Args:
        folder: Of the run.
        state: What identifies the run, as plain values: ``settings``, ``recipe``, ``inputs``.
        settings: The same settings.
        resume: Go on with the run there (a folder without one is begun).
        overwrite: Replace it.

    Raises:
        OptionError: If there is a run and neither flag is given, nothing to resume, or another run.
    """
    if resume and overwrite:
        raise OptionError("resume and overwrite exclude each other")
    exists = folder.state.exists()
    if exists and not (resume or overwrite):
        raise OptionError(
            f"{folder.root} already holds an active learning run: use --resume to go on, "
            "--overwrite to start again, or --out for another folder"
        )
    if resume and not exists and not folder.root.exists():
        raise OptionError(f"nothing to resume: there is no active learning run in {folder.root}")
    if overwrite:
        folder.clear()
    elif exists:
        before = read_json(folder.state)
        changed = settings.differences(before.get("settings", {}))
        plain = json.loads(json.dumps(state))
        changed += [
            f"another {what}"
            for key, what in (
                ("recipe", "training recipe"),
                ("inputs", "start, test set or labeller"),
            )
            if before.get(key) != plain[key]
        ]
        done = max(
            (int(p.parent.name[6:]) for p in folder.root.glob("round-*/round.json")), default=0
        )
        if settings.rounds < done:
            raise OptionError(
                f"the run already has {done} rounds and cannot be cut to {settings.rounds}"
            )
        if changed:
            raise OptionError(
                f"cannot resume with other settings ({'; '.join(changed)}): only rounds may change"
            )
    folder.sweep()
    write_json(folder.state, state)
