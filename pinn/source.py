"""Where a run's problem comes from, and the record of a run."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcase.errors import DataError, OptionError
from dcase.pinn.identity import digest
from dcase.pinn.paper import paper_problem, paper_settings
from dcase.pinn.problem import PDEProblem, problem_of
from dcase.pinn.recipes import default_settings
from dcase.pinn.settings import PinnSettings, from_dict
from dcase.pinn.zoo import PROBLEMS
from dcase.runs import RECORD, Identity, Place, fingerprint

PDEBENCH = ("advection", "cfd", "diffusion-reaction")

KIND = "pinn train"
VERSION = 1
"""Raised when the same settings give another run."""

FREE = ("time_limit", "cpu_limit", "checkpoint_every", "source.file")
"""What a resume may change; a Python file may also have moved."""

PICTURES = ("space_time", "slices", "error_time", "spectrum", "conservation", "loss", "points")


@dataclass(frozen=True)
class Source:
    """Where a problem comes from.

    Attributes:
        task: One of PDEBench's, a ready problem, or a Python file with ``problem``.
        file: HDF5 file of a PDEBench task.
        sample: Of the file; negative counts from the end.
        paper: The problem as PDEBench's baseline has it.
    """

    task: str
    file: str | None = None
    sample: int = 0
    paper: bool = False

    def __post_init__(self) -> None:
        if self.file is not None:
            object.__setattr__(self, "file", os.fspath(self.file))

    def problem(self) -> PDEProblem:
        """Read or build it.

        Raises:
            OptionError: For an unknown task, a missing file, or a Python file without ``problem``.
            DataError: If the file cannot be read.
        """
        if self.task in PDEBENCH:
            if not self.file:
                raise OptionError(
                    f"{self.task} needs --file: PDEBench's HDF5 file, or one made by "
                    f"`dcase pinn data {self.task} --samples 1 --out FILE`"
                )
            from dcase.pinn.pdebench.reading import read_sample

            sample = read_sample(self.file, self.sample, self.task)
            return paper_problem(sample) if self.paper else problem_of(sample)
        if self.paper:
            raise OptionError(f"--paper is for PDEBench's tasks ({', '.join(PDEBENCH)})")
        if self.file:
            raise OptionError(f"--file is for PDEBench's tasks ({', '.join(PDEBENCH)})")
        if self.task in PROBLEMS:
            return PROBLEMS[self.task]()
        if self.is_python:
            return problem_from_file(Path(self.task))
        raise OptionError(
            f"unknown equation {self.task!r}; choose from {', '.join([*PDEBENCH, *PROBLEMS])}, "
            "or give a Python file that defines `problem`"
        )

    @property
    def is_python(self) -> bool:
        """Whether it is a user's Python file."""
        return self.task.endswith(".py")

    def settings(self, problem: PDEProblem, network: str | None = None) -> PinnSettings:
        """Where nothing else is asked for; ``network`` if it matters."""
        return paper_settings(self.task) if self.paper else default_settings(problem, network)


def problem_from_file(path: Path) -> PDEProblem:
    """The ``problem`` (or ``problem()``) that a user's Python file defines.

    Raises:
        OptionError: If there is no such file, it fails, or defines none.
    """
    if not path.is_file():
        raise OptionError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location("dcase_user_problem", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        problem = getattr(module, "problem", None)
        if callable(problem):
            problem = problem()
    except (DataError, OptionError):
        raise
    except Exception as error:
        raise OptionError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(problem, PDEProblem):
        raise OptionError(f"{path} must define `problem`, a dcase.pinn.PDEProblem or a function")
    return problem


# ------------------------------------------------------------------------------------------------
# The record


def identity_of(source: Source, problem: PDEProblem, settings: PinnSettings) -> Identity:
    """What makes a run the run it is.

    Args:
        source: A PDEBench file may have moved: its content counts.
        problem: As the source gives it, before :func:`~dcase.pinn.run.prepared`.
        settings: Of the run.
    """
    text = ""
    free: tuple[str, ...] = FREE
    if source.is_python:
        free = (*FREE, "source.task")
        path = Path(source.task)
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return Identity(
        KIND,
        {"source": asdict(source), **settings.to_dict()},
        free=free,
        data=fingerprint(digest(problem), text),
        version=VERSION,
    )


def place_of(folder: str | Path) -> Place:
    """Where a run keeps its files."""
    names = ("model.pt", "metrics.json", "fits", *(f"{name}.png" for name in PICTURES))
    return Place(Path(folder), files=names, empty=True)


def read_record(folder: str | Path) -> tuple[Source, PinnSettings]:
    """Origin and settings of a run; of one made before there was one record for all, too.

    Raises:
        DataError: If the folder holds no run.
    """
    record = Path(folder) / RECORD
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if "identity" not in content:
            return Source(**content["source"]), from_dict(content["settings"])
        if content["kind"] != KIND:
            raise DataError(
                f"{folder} is a run of `dcase {content['kind']}`, not of `dcase {KIND}`"
            )
        settings = dict(content["identity"]["settings"])
        return Source(**settings.pop("source")), from_dict(settings)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder}: no run of `dcase {KIND}` (there is no {RECORD})") from None
    except DataError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{record}: damaged, or not of `dcase {KIND}` ({error})") from error


def finished_metrics(folder: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """``metrics.json`` of a run that its record calls finished, if it is there and whole."""
    if record.get("status") != "finished":
        return None
    try:
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
