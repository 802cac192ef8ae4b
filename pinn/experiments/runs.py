"""Runs of an experiment: made once, kept, and gone on with where they were stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcase.errors import DivergedError
from dcase.files import write_json
from dcase.pinn.problem import PDEProblem
from dcase.pinn.run import Source, train
from dcase.pinn.settings import PinnSettings


@dataclass(frozen=True)
class PinnRun:
    """One training of an experiment.

    Attributes:
        name: Of its folder.
        label: For tables.
        source: Of its problem.
        settings: Of its training.
    """

    name: str
    label: str
    source: Source
    settings: PinnSettings

    def kept(self, folder: Path) -> dict[str, Any] | None:
        """The result of an earlier sitting, if it was made with the same settings."""
        path = folder / self.name / "metrics.json"
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found.get("settings") == self.settings.to_dict() else None


def perform(
    runs: Sequence[PinnRun],
    problem: PDEProblem,
    folder: Path,
    *,
    pictures: bool = True,
    on_run: Callable[[int, PinnRun, bool], None],
    **callbacks: Any,
) -> list[dict[str, Any]] | None:
    """Make all runs that are not there yet.

    Args:
        runs: All of the same problem.
        problem: The problem.
        folder: Gets a folder for each run.
        pictures: Draw each run.
        on_run: Called before each, with its number and whether it is kept from before.
        **callbacks: ``on_fit`` and ``on_step`` of :func:`dcase.pinn.run.train`.

    Returns:
        ``metrics.json`` of each, with ``label``; or None if interrupted. A run that diverged has
        ``status`` "NaN" and no fields.
    """
    results = []
    for number, run in enumerate(runs):
        kept = run.kept(folder)
        on_run(number, run, kept is not None)
        options = {"pictures": pictures, **callbacks}
        result = kept or _make(run, problem, folder / run.name, options)
        if result is None:
            return None
        results.append({**result, "label": run.label})
    return results


def _make(
    run: PinnRun, problem: PDEProblem, target: Path, options: dict[str, Any]
) -> dict[str, Any] | None:
    record = target / "run.json"
    same = False
    if record.exists() and not (target / "metrics.json").exists():
        same = json.loads(record.read_text(encoding="utf-8"))["settings"] == run.settings.to_dict()
    try:
        metrics, outcome = train(
            run.source,
            run.settings,
            target,
            problem=problem,
            resume=same,
            overwrite=not same,
            **options,
        )
    except DivergedError as error:
        metrics = {
            "status": "NaN",
            "reason": str(error),
            "fields": {},
            "terms": {},
            "settings": run.settings.to_dict(),
        }
        write_json(target / "metrics.json", metrics)
        return metrics
    return None if outcome.status == "interrupted" else metrics
