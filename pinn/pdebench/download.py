"""Fetches PDEBench's published files (DaRUS, the University of Stuttgart's data repository).

Takamoto et al., "PDEBench Datasets", doi:10.18419/darus-2986. The addresses and MD5 checksums are
those of the publishers' own list. A broken download is taken up again by the same command.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dcase.data.download import fetch
from dcase.errors import OptionError

_SERVER = "https://darus.uni-stuttgart.de/api/access/datafile"


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name, its number at DaRUS, its MD5, and about how many GB it has."""

    name: str
    number: int
    md5: str
    gigabytes: float

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{_SERVER}/{self.number}"


def _advection(beta: float, number: int, md5: str) -> RemoteFile:
    return RemoteFile(f"1D_Advection_Sols_beta{beta:.1f}.hdf5", number, md5, 8.2)


ADVECTION = {
    0.1: _advection(0.1, 255672, "b4be2fc3383f737c76033073e6d2ccfb"),
    0.2: _advection(0.2, 255671, "d47b52c1be4b6bcaa8748a8df2f5fbb8"),
    0.4: _advection(0.4, 255674, "d595bbfd2c659df995a93cd40d6ea568"),
    0.7: _advection(0.7, 255666, "f89030c240a1e90b55649776854a84c2"),
    1.0: _advection(1.0, 255675, "1fe41923a4123db55bf4e89bea32e142"),
    2.0: _advection(2.0, 255677, "0e9beff98693089c38e213a1f2b9ac43"),
    4.0: _advection(4.0, 255676, "a87b03ff425496360e2732921805f47d"),
    7.0: _advection(7.0, 255664, "72a286ad2fcba574bd20bc045ba82d58"),
}
FLOW = RemoteFile(
    "1D_CFD_Rand_Eta1.e-8_Zeta1.e-8_periodic_Train.hdf5",
    135485,
    "ad22fe08b8abc721179dbb34f2cc8b2a",
    12.4,
)
DIFFUSION_REACTION = RemoteFile(
    "2D_diff-react_NA_NA.h5", 133017, "b8d0b86064193195ddc30c33be5dc949", 13.2
)


def remote_file(task: str, beta: float = 0.1) -> RemoteFile:
    """The published file of a task.

    Args:
        task: ``"advection"``, ``"cfd"`` or ``"diffusion-reaction"``.
        beta: Speed, of advection.

    Raises:
        OptionError: If there is no such file.
    """
    if task == "advection":
        if beta not in ADVECTION:
            speeds = ", ".join(f"{b:g}" for b in ADVECTION)
            raise OptionError(f"no published file has beta = {beta:g}; there are {speeds}")
        return ADVECTION[beta]
    if task == "cfd":
        return FLOW
    if task == "diffusion-reaction":
        return DIFFUSION_REACTION
    raise OptionError(f"unknown task {task!r}; tasks: advection, cfd, diffusion-reaction")


def download(
    file: RemoteFile,
    folder: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    url: str | None = None,
) -> Path:
    """Fetch a published file, or find it fetched.

    What has arrived stays in ``<file>.part`` until the whole file has the published checksum.

    Args:
        file: Which; see :func:`remote_file`.
        folder: Where to put it; None: the user's cache of dcase.
        progress: Show a bar on stderr.
        url: Another address of the same file (a mirror); its checksum must be the published one.

    Returns:
        The file.

    Raises:
        DownloadError: If there is no network, or the server refuses or stops midway.
        DataError: If the checksum is wrong, or there is not enough room.
    """
    return fetch(
        url or file.url,
        known_hash=f"md5:{file.md5}",
        cache_dir=folder,
        progress=progress,
        filename=file.name,
    )
