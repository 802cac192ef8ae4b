"""``log.txt``: what a run did and when, for people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from dcase.errors import DcaseError


class RunLog:
    """Appends lines to a file, and passes events on to the user.

    Args:
        path: The file.
        notify: Called with each event, one line.
    """

    def __init__(self, path: Path, notify: Callable[[str], None] | None = None) -> None:
        self.path, self.notify = path, notify

    def open(self, *, fresh: bool) -> None:
        """Begin: with an empty file, or after what is there."""
        if fresh:
            self._write("", mode="w")

    def head(self, facts: dict[str, Any]) -> None:
        """What is run, one fact a line."""
        for key, value in facts.items():
            if key in ("format", "status", "warnings", "uncertainty"):
                continue
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            self._write(f"# {key}: {value}\n")
        self._write("# step of steps | total energy [eV] | potential energy [eV]\n")

    def line(self, text: str) -> None:
        """An event."""
        self._write(f"{text}\n")
        if self.notify is not None:
            self.notify(text)

    def step(self, step: int, steps: int, potential: float, atoms: Atoms) -> None:
        """Where the run is, at a checkpoint; 17 digits, so that nothing is hidden by rounding."""
        with np.errstate(all="ignore"):
            kinetic = float(atoms.get_kinetic_energy())
        self._write(f"{step} of {steps} | {potential + kinetic:.12g} | {potential:.12g}\n")

    def _write(self, text: str, mode: str = "a") -> None:
        try:
            with open(self.path, mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise DcaseError(f"cannot write {self.path}: {error.strerror or error}") from error
