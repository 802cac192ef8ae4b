"""MD17 by name: from the cache, the network, the files dcase ships, or GFN2-xTB on the spot."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np

from dcase.data.dataset import AtomicDataset
from dcase.data.download import DownloadError, cache_folder, fetch, verified
from dcase.data.frames import Reading, read_frames
from dcase.data.molecules import (
    MD17_THEORY,
    MOLECULES,
    RMD17_ARCHIVE,
    RMD17_THEORY,
    RMD17_URL,
    XTB_THEORY,
    Molecule,
    find_molecule,
    get_molecule,
)
from dcase.data.npz import read_npz, same_formula
from dcase.data.xtb import tblite_installed
from dcase.errors import DataError, OptionError

SOURCES = ("auto", "md17", "rmd17", "xtb")
GENERATED_FRAMES = 1000
GENERATED_TEMPERATURE = 500.0


class FallbackWarning(UserWarning):
    """Other labels are used than the ones that were asked for."""


@dataclass(frozen=True)
class DatasetRow:
    """One line of ``dcase data list``.

    Attributes:
        molecule: The name dcase uses.
        source: ``"md17"``, ``"rmd17"`` or ``"xtb"``, as :func:`load_md17` takes it.
        level_of_theory: Method of the labels.
        frames: How many; None where it is known only after the download.
        where: File if it is here, else the URL or command it comes from.
        cached: Whether it can be used without a network or a computation.
    """

    molecule: str
    source: str
    level_of_theory: str
    frames: int | None
    where: str
    cached: bool


def embedded_file(molecule: Molecule) -> Path | None:
    """The GFN2-xTB frames that ship with dcase (aspirin and ethanol), or None."""
    file = resources.files("dcase.data.embedded") / f"{molecule.name}_gfn2xtb.npz"
    path = Path(str(file))
    return path if path.is_file() else None


def load_md17(
    molecule: str,
    source: str | os.PathLike[str] = "auto",
    labels: str | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    notify: Callable[[str], None] | None = None,
    seed: int = 0,
    progress: bool = True,
    reading: Reading | None = None,
) -> AtomicDataset:
    """Frames of an MD17 molecule, in eV and A.

    Args:
        molecule: Name or abbreviation, see :func:`dcase.data.molecules.get_molecule`.
        source: Where from:

            * ``"auto"``: the cached MD17 file; else download it; else, when that fails, the
              GFN2-xTB frames that ship with dcase (aspirin, ethanol), or for other molecules 1000
              frames generated into the cache (needs tblite). The fallback is announced through
              ``notify``, and does not happen where ``labels`` are asked for by name.
            * ``"md17"``, ``"rmd17"``: that one, from the cache or the network, or an error.
            * ``"xtb"``: the GFN2-xTB frames, shipped or generated.
            * anything else: a file of frames, of any molecule, read as it is.
        labels: ``"md17"`` or ``"rmd17"``; see :func:`dcase.data.npz.read_npz`. With "auto",
            ``"rmd17"`` means the rMD17 file.
        cache_dir: See :func:`dcase.data.download.cache_folder`.
        notify: Called with one line when other labels are used than MD17's. None: a
            :class:`FallbackWarning`.
        seed: Seed of generated frames (the shipped ones were made with 0 and do not change).
        progress: Show bars on stderr.
        reading: Units and level of theory that a file does not say.

    Raises:
        DataError: If the molecule is unknown, nothing can be had, or a file is damaged or holds
            another molecule.
        MissingExtraError: If ``"xtb"`` needs tblite and it is not installed.
        OptionError: If ``labels`` cannot be understood.
    """
    if source not in SOURCES:
        return _from_file(Path(source), labels, molecule, reading, notify)
    if reading is not None and reading != Reading():
        raise OptionError(f"units and theory are for files of one's own, not for source {source}")
    chosen = get_molecule(molecule)
    if labels not in (None, "md17", "rmd17"):
        raise OptionError(f"labels must be 'md17' or 'rmd17', got {labels!r}")
    folder = cache_folder(cache_dir)
    if source == "rmd17" or (source == "auto" and labels == "rmd17"):
        return _checked(_rmd17_file(chosen, folder, progress), labels, chosen)
    if source == "xtb":
        if labels is not None:
            raise DataError(
                f"source xtb has {XTB_THEORY} labels, not {labels}'s; drop one of the two"
            )
        return _from_xtb(chosen, folder, seed, progress)
    try:
        path = fetch(
            chosen.md17_url,
            cache_dir=folder / "md17",
            filename=chosen.md17_file,
            progress=progress,
        )
    except DownloadError as error:
        if source == "md17" or labels is not None:
            raise DataError(
                f"{error}; put {chosen.md17_file} into {folder / 'md17'}, or use source 'xtb'"
            ) from error
        _announce(chosen, folder, seed, notify, str(error))
        return _from_xtb(chosen, folder, seed, progress)
    return _checked(path, "md17", chosen)


def list_datasets(cache_dir: str | os.PathLike[str] | None = None) -> list[DatasetRow]:
    """What there is, molecule by molecule, and what of it is here. Reads no large file."""
    folder = cache_folder(cache_dir)
    rows = []
    for molecule in MOLECULES:
        md17 = folder / "md17" / molecule.md17_file
        rows.append(
            DatasetRow(
                molecule.name,
                "md17",
                MD17_THEORY,
                molecule.n_md17 or None,
                str(md17) if md17.is_file() else molecule.md17_url,
                md17.is_file(),
            )
        )
        rmd17 = folder / "rmd17" / Path(molecule.rmd17_member).name
        rows.append(
            DatasetRow(
                molecule.name,
                "rmd17",
                RMD17_THEORY,
                None,
                str(rmd17) if rmd17.is_file() else f"{RMD17_URL} ({molecule.rmd17_member})",
                rmd17.is_file(),
            )
        )
        xtb = embedded_file(molecule) or _generated_file(molecule, folder, 0)
        rows.append(
            DatasetRow(
                molecule.name,
                "xtb",
                XTB_THEORY,
                GENERATED_FRAMES,
                str(xtb) if xtb.is_file() else f"dcase data generate {molecule.name}",
                xtb.is_file(),
            )
        )
    return rows


def _generated_file(molecule: Molecule, folder: Path, seed: int) -> Path:
    return folder / "xtb" / f"{molecule.name}_gfn2xtb_seed{seed}.npz"


def _from_file(
    path: Path,
    labels: str | None,
    name: str,
    reading: Reading | None,
    notify: Callable[[str], None] | None,
) -> AtomicDataset:
    """Frames of a file; of a molecule that is known, the formula has to be right."""
    if path.suffix != ".npz" and not path.exists():
        raise DataError(f"source must be {', '.join(SOURCES)} or a file, got {str(path)!r}")
    reading = replace(reading or Reading(), labels=labels)
    dataset = read_frames(path, reading, need=("energy", "forces"), notify=notify)
    molecule = find_molecule(name)
    if molecule is not None:
        _same_molecule(dataset, molecule)
    return dataset


def _same_molecule(dataset: AtomicDataset, molecule: Molecule) -> None:
    numbers = dataset.numbers[: dataset.ptr[1]]
    if not same_formula(numbers, molecule):
        raise DataError(
            f"{dataset.info.source} is not {molecule.full_name} ({molecule.formula}): "
            f"it holds {dataset.frame(0).get_chemical_formula()}"
        )


def _of_cache(path: Path, labels: str | None, molecule: Molecule) -> AtomicDataset:
    dataset = read_npz(path, labels)
    _same_molecule(dataset, molecule)
    return dataset


def _checked(path: Path, labels: str | None, molecule: Molecule) -> AtomicDataset:
    """Read a file of the cache; say how to get rid of it if it is no good."""
    try:
        return _of_cache(path, labels, molecule)
    except DataError as error:
        if "labels" in str(error):  # a wish the file does not grant, not damage
            raise
        # A portal's login page, saved under the name of a dataset, would otherwise stay for good.
        raise DataError(f"{error} (delete {path} and {path.name}.sha256 to download anew)") from (
            error
        )


def _rmd17_file(molecule: Molecule, folder: Path, progress: bool) -> Path:
    try:
        return fetch(
            RMD17_URL,
            cache_dir=folder / "rmd17",
            filename=RMD17_ARCHIVE,
            extract=molecule.rmd17_member,
            progress=progress,
        )
    except DownloadError as error:
        raise DataError(
            f"{error}; put {Path(molecule.rmd17_member).name} into {folder / 'rmd17'}, or use "
            "source 'xtb'"
        ) from error


def _from_xtb(molecule: Molecule, folder: Path, seed: int, progress: bool) -> AtomicDataset:
    """The shipped frames, or generated ones (which are kept)."""
    path = embedded_file(molecule)
    if path is None:
        path = _generated_file(molecule, folder, seed)
        if not verified(path):
            from dcase.data.generate import generate  # only here: it pulls in ase.md

            generate(
                molecule.name,
                GENERATED_FRAMES,
                temperature=GENERATED_TEMPERATURE,
                seed=seed,
                out=path,
                progress=progress,
            )
    return _of_cache(path, None, molecule)


def _announce(
    molecule: Molecule,
    folder: Path,
    seed: int,
    notify: Callable[[str], None] | None,
    reason: str,
) -> None:
    """Say loudly that the labels are not MD17's, or raise if there is nothing to fall back on."""
    # Whatever went wrong, the reason is in brackets; "no network" must not be said twice.
    why = "no network" if reason.startswith("no network") else f"no download ({reason})"
    embedded = embedded_file(molecule)
    generated = _generated_file(molecule, folder, seed)
    if embedded is not None:
        with np.load(embedded, allow_pickle=False) as file:
            settings = json.loads(str(file["metadata"]))["settings"]
        message = (
            f"{why}: training on the embedded {XTB_THEORY} {molecule.full_name} set "
            f"({settings['n_frames']} frames, {settings['temperature_K']:g} K), "
            "NOT on MD17's DFT labels"
        )
    elif generated.is_file() or tblite_installed():
        doing = "using the cached" if generated.is_file() else "generating (this takes minutes) a"
        message = (
            f"{why}: {doing} {XTB_THEORY} {molecule.full_name} set ({GENERATED_FRAMES} frames, "
            f"{GENERATED_TEMPERATURE:g} K), NOT MD17's DFT labels"
        )
    else:
        raise DataError(
            f"{why}, and no frames of {molecule.full_name} are shipped: put {molecule.md17_file} "
            f"into {folder / 'md17'}, or pip install 'dcase[xtb]' to generate {XTB_THEORY} frames"
        )
    if notify is None:
        warnings.warn(message, FallbackWarning, stacklevel=3)
    else:
        notify(message)
