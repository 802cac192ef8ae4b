"""What :mod:`dcase.data.generate` keeps on disk while it runs, and what it writes at the end."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ase
import numpy as np

from dcase.data.molecules import XTB_THEORY
from dcase.errors import DataError
from dcase.files import atomic_path
from dcase.runs import Place

Progress = Callable[[int, int], None]
DAMAGED = (zipfile.BadZipFile, zlib.error)
Frame = tuple[np.ndarray, float, np.ndarray]


@dataclass(frozen=True)
class State:
    """A run between two segments. Replaced, never changed, so that Ctrl-C finds it whole.

    Attributes:
        walker: The walker at work; -1 before the first is equilibrated.
        positions: A, shape [n_atoms, 3].
        momenta: ASE units, shape [n_atoms, 3].
        rng: State of the walker's numpy bit generator.
        interval_steps: Steps between frames; 0 until measured.
        tau_fs: Measured autocorrelation time of the potential energy, fs, or None.
        failures: Segments dropped in a row.
        frames: What is stored so far: coordinates, energy, forces.
        walkers: The walker of each stored frame.
        temperatures: Kinetic temperature at each stored frame, K.
        notes: What was dropped.
    """

    walker: int
    positions: np.ndarray
    momenta: np.ndarray
    rng: Any
    interval_steps: int = 0
    tau_fs: float | None = None
    failures: int = 0
    frames: tuple[Frame, ...] = ()
    walkers: tuple[int, ...] = ()
    temperatures: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @staticmethod
    def empty(n_atoms: int) -> State:
        """Nothing done yet."""
        return State(-1, np.zeros((n_atoms, 3)), np.zeros((n_atoms, 3)), None)

    def moved(self, atoms: ase.Atoms, rng: np.random.Generator, **changes: Any) -> State:
        """This state with the dynamics at ``atoms`` and ``rng``."""
        return replace(
            self,
            positions=atoms.positions.copy(),
            momenta=atoms.get_momenta(),
            rng=rng.bit_generator.state,
            **changes,
        )

    def stored(
        self, atoms: ase.Atoms, rng: np.random.Generator, frame: Frame, temperature: float
    ) -> State:
        """This state with one more frame."""
        return self.moved(
            atoms,
            rng,
            failures=0,
            frames=(*self.frames, frame),
            walkers=(*self.walkers, self.walker),
            temperatures=(*self.temperatures, temperature),
        )

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stored coordinates [n, N, 3], energies [n], forces [n, N, 3]."""
        shape = (len(self.frames), *self.positions.shape)
        return (
            np.array([frame[0] for frame in self.frames], dtype=np.float32).reshape(shape),
            np.array([frame[1] for frame in self.frames], dtype=np.float64),
            np.array([frame[2] for frame in self.frames], dtype=np.float32).reshape(shape),
        )


def place_of(out: Path) -> Place:
    """The folder beside ``out`` that an unfinished run keeps."""
    return Place(out.with_name(out.name + ".part"), files=("state.npz",))


def state_path(out: Path) -> Path:
    """The state in that folder."""
    return place_of(out).folder / "state.npz"


def save_state(out: Path, state: State) -> None:
    """Write the state atomically: a kill leaves the old one or the new one."""
    positions, energies, forces = state.arrays()
    scalars = {
        "walker": state.walker,
        "rng": state.rng,
        "interval_steps": state.interval_steps,
        "tau_fs": state.tau_fs,
        "failures": state.failures,
        "notes": list(state.notes),
    }
    with atomic_path(state_path(out)) as path, open(path, "wb") as handle:
        np.savez(
            handle,
            R=positions,
            E=energies,
            F=forces,
            walkers=np.asarray(state.walkers, dtype=np.int64),
            temperatures=np.asarray(state.temperatures, dtype=np.float64),
            positions=state.positions,
            momenta=state.momenta,
            scalars=np.array(json.dumps(scalars)),
        )


def load_state(out: Path, atoms: ase.Atoms) -> State:
    """The state of an unfinished run, or an empty one if there is none.

    Raises:
        DataError: If the file is damaged.
    """
    path = state_path(out)
    if not path.exists():
        return State.empty(len(atoms))
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            stored = {key: file[key] for key in file.files}
        scalars = json.loads(str(stored["scalars"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, *DAMAGED) as error:
        raise DataError(f"{path} is damaged; start anew (--overwrite)") from error
    notes = tuple(scalars.pop("notes"))
    return State(
        positions=stored["positions"],
        momenta=stored["momenta"],
        frames=tuple(
            (r, float(e), f) for r, e, f in zip(stored["R"], stored["E"], stored["F"], strict=True)
        ),
        walkers=tuple(stored["walkers"].tolist()),
        temperatures=tuple(stored["temperatures"].tolist()),
        notes=notes,
        **scalars,
    )


def load_finished(out: Path, settings: dict[str, Any]) -> bool:
    """Whether ``out`` is the finished result of these settings.

    Raises:
        DataError: If ``out`` is something else, which must not be overwritten unasked.
    """
    if not out.exists():
        return False
    try:
        with open(out, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            found = json.loads(str(file["metadata"]))["settings"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, *DAMAGED) as error:
        raise DataError(
            f"{out} exists and was not made by dcase; choose another file, or start anew "
            "(resume off) to replace it"
        ) from error
    _same_settings(out, found, settings)
    return True


def _same_settings(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise DataError(
                f"{path} was made with {key} = {found.get(key)}, now it is {wanted.get(key)}; "
                "choose another file, or start anew (resume off) to replace it"
            )


def write_result(
    out: Path,
    name: str,
    numbers: np.ndarray,
    frames: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    report: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Write the MD17-layout npz.

    Args:
        out: The file.
        name: Molecule.
        numbers: Atomic numbers, shape [n_atoms].
        frames: Coordinates (A), energies (kcal/mol), forces (kcal/mol/A), walker of each frame.
        report: What was measured.
        settings: What was asked for; compared when the same command is given again.
    """
    positions, energies, forces, walker = frames
    metadata = {
        "settings": settings,
        "units": {"R": "A", "E": "kcal/mol", "F": "kcal/mol/A"},
        "versions": {package: _version(package) for package in ("dcase", "tblite", "ase", "numpy")},
        **report,
    }
    electrons: dict[str, Any] = {}
    if settings.get("charge"):
        electrons["charge"] = np.array(settings["charge"])
    if settings.get("unpaired_electrons"):
        electrons["multiplicity"] = np.array(settings["unpaired_electrons"] + 1)
    with atomic_path(out) as path, open(path, "wb") as handle:
        np.savez_compressed(
            handle,
            R=positions,
            z=np.asarray(numbers, dtype=np.uint8),
            E=energies,
            F=forces,
            walker=walker,
            name=np.array(name),
            theory=np.array(XTB_THEORY),
            metadata=np.array(json.dumps(metadata)),
            **electrons,
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


@contextmanager
def progress_callback(
    progress: bool | Progress, total: int, description: str
) -> Iterator[Progress]:
    """A function to report progress to: the caller's, a rich bar on stderr, or none."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)
