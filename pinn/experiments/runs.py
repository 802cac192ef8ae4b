"""Runs of an experiment: made once, kept, and gone on with where they were stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcase.errors import DivergedError, RunError
from dcase.pinn.problem import PDEProblem
from dcase.pinn.run import train
from dcase.pinn.settings import PinnSettings
from dcase.pinn.source import Source, finished_metrics, identity_of
from dcase.runs import FAILED, read_record


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

    def kept(self, folder: Path, problem: PDEProblem) -> dict[str, Any] | None:
        """The result of an earlier sitting, if it was made with the same settings and data."""
        record = self._record(folder, problem)
        if record is None:
            return None
        if record["status"] == FAILED and record.get("diverged"):
            return self.diverged(record["diverged"])
        return finished_metrics(folder / self.name, record)

    def begun(self, folder: Path, problem: PDEProblem) -> bool:
        """Whether there is such a run to go on with."""
        return self._record(folder, problem) is not None

    def diverged(self, reason: str) -> dict[str, Any]:
        """The result of a run that came to no end."""
        nothing: dict[str, Any] = {"fields": {}, "terms": {}}
        return {
            "status": "NaN", "reason": reason, **nothing, "settings": self.settings.to_dict()
        }  # fmt: skip

    def _record(self, folder: Path, problem: PDEProblem) -> dict[str, Any] | None:
        """That of the run in the folder, if it is this one; limits count, the file's place not."""
        try:
            record = read_record(folder / self.name)
        except RunError:
            return None
        identity = identity_of(self.source, problem, self.settings)
        places = tuple(name for name in identity.free if name.startswith("source."))
        if record["kind"] != identity.kind:
            return None
        same = not replace(identity, free=places).differences(record["identity"])
        return record if same else None


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
        kept = run.kept(folder, problem)
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
    same = run.begun(target.parent, problem)
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
        return run.diverged(str(error))
    return None if outcome.status == "interrupted" else metrics
