"""The folder of a run of replicas, and the checkpoint from which all of them go on exactly.

report.json, drift.png, replicas.h5, final.extxyz   written by ``report.write_replica_report``
run.json                          whose folder this is (see ``dcase.runs``)
state/replicas.json               settings, model, versions, status
state/replicas.npz                positions, momenta, random numbers, who was stopped
state/replicas_end.npz            the same where the run ended between two checkpoints, to look at
state/replicas.f64, replica_frames.f64   rows so far, and their checksums (see ``journal``)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.jsonio import decode, encode

from dcase.archives import check_archive
from dcase.data.state import bare
from dcase.files import atomic_path, write_json
from dcase.md_runs.files.journal import sums_of
from dcase.md_runs.files.run_folder import damaged_checkpoint, read_facts
from dcase.runs import Place

FACTS: dict[str, Any] = {
    "format": int,
    "replicas": int,
    "settings": dict,
    "formula": str,
    "numbers": list,
    "n_dof": int,
    "warnings": list,
    "versions": dict,
}
"""What ``replicas.json`` holds at least, and of which type."""


@dataclass(frozen=True)
class ReplicaFolder:
    """Paths of one run of replicas."""

    root: Path

    @property
    def run(self) -> Path:
        """Settings and status."""
        return self.root / "state" / "replicas.json"

    @property
    def checkpoint(self) -> Path:
        """The state to go on from."""
        return self.root / "state" / "replicas.npz"

    @property
    def end(self) -> Path:
        """The state at the end of a run, if that is later; only rows up to it are accounted for."""
        return self.root / "state" / "replicas_end.npz"

    def latest(self) -> ReplicaCheckpoint:
        """The last state there is.

        Raises:
            SimulationError: If it is damaged.
        """
        return ReplicaCheckpoint.load(self.end if self.end.exists() else self.checkpoint)

    @property
    def series(self) -> Path:
        """Journal: step, R potential and R kinetic energies."""
        return self.root / "state" / "replicas.f64"

    @property
    def frames(self) -> Path:
        """Journal: step, positions of all replicas."""
        return self.root / "state" / "replica_frames.f64"

    @property
    def place(self) -> Place:
        """What a run keeps here, for :func:`dcase.runs.claim`."""
        ours = [self.run, self.checkpoint, self.end, self.series, self.frames]
        ours += [sums_of(path) for path in (self.series, self.frames)]
        names = ("report.json", "drift.png", "final.extxyz", "replicas.h5")
        ours += [self.root / name for name in names]
        return Place(self.root, files=tuple(str(path.relative_to(self.root)) for path in ours))

    def read_run(self) -> dict[str, Any]:
        """Settings and status of the run.

        Raises:
            SimulationError: If there is none, or it cannot be read.
        """
        return read_facts(self.run, FACTS, f"{self.root} holds no run of replicas")

    def write_run(self, facts: dict[str, Any]) -> None:
        """Store settings and status atomically."""
        write_json(self.run, facts)


@dataclass
class ReplicaCheckpoint:
    """All that the next step of all replicas depends on.

    Attributes:
        step: Steps done; negative during equilibration.
        wall: Seconds of production so far.
        x: Positions, A, shape [R, n_atoms, 3].
        p: Momenta, ASE's units, shape [R, n_atoms, 3].
        e: Potential energies, eV, shape [R], NaN of those that were stopped.
        series: Rows of the series that belong to this state.
        frames: Frames that belong to this state.
        rngs: States of the random numbers, one a replica.
        trouble: Why replicas were stopped, by their number.
        start: The structure given; None in a checkpoint of a dcase that did not keep it.
    """

    step: int
    wall: float
    x: np.ndarray
    p: np.ndarray
    e: np.ndarray
    series: int
    frames: int
    rngs: list[Any]
    trouble: dict[int, str]
    start: Atoms | None

    def save(self, path: Path) -> None:
        """Write atomically.

        Raises:
            DcaseError: If the disk is full or gone.
        """
        assert self.start is not None
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                step=self.step,
                wall=self.wall,
                x=self.x,
                p=self.p,
                e=self.e,
                series=self.series,
                frames=self.frames,
                rngs=json.dumps(self.rngs),
                trouble=json.dumps(self.trouble),
                start=_as_text(self.start),
            )

    @classmethod
    def load(cls, path: Path) -> ReplicaCheckpoint:
        """Read a checkpoint; nothing in it is executed.

        Raises:
            SimulationError: If it is not one, or is damaged.
        """
        try:
            check_archive(path)
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                x, p = stored["x"], stored["p"]
                if x.shape != p.shape or x.ndim != 3 or x.shape[2] != 3 or x.dtype != np.float64:
                    raise ValueError("positions or momenta have lost their shape")
                return cls(
                    step=int(stored["step"]),
                    wall=float(stored["wall"]),
                    x=x,
                    p=p,
                    e=stored["e"] if "e" in stored else np.full(len(x), np.nan),
                    series=int(stored["series"]),
                    frames=int(stored["frames"]),
                    rngs=json.loads(str(stored["rngs"])),
                    trouble={int(r): w for r, w in json.loads(str(stored["trouble"])).items()},
                    start=Atoms.fromdict(decode(str(stored["start"])))
                    if "start" in stored
                    else None,
                )
        except Exception as error:  # whatever a damaged archive makes zipfile, zlib and NumPy raise
            raise damaged_checkpoint(path, error) from error


def _as_text(atoms: Atoms) -> str:
    """A structure as JSON, without momenta, labels, and what of ``info`` is no JSON."""
    plain = bare(atoms)
    plain.arrays.pop("momenta", None)
    for name in list(plain.info):
        try:
            encode(plain.info[name])
        except TypeError:
            del plain.info[name]
    return str(encode(plain.todict()))
