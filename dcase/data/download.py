"""Downloads that can be taken up again, are checked, and end in a whole file or none."""

from __future__ import annotations

import errno
import logging
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pooch

from dcase.data.npz import file_sha256
from dcase.data.resumable import DownloadError, ResumableDownloader, megabytes
from dcase.errors import DataError, DcaseError, OptionError
from dcase.files import atomic_path, write_text

__all__ = ["DownloadError", "cache_folder", "fetch", "verified"]


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where downloads are kept: ``cache_dir``, else $DCASE_DATA_DIR, else the user's cache."""
    if cache_dir is not None:
        return Path(cache_dir)
    chosen = os.environ.get("DCASE_DATA_DIR")
    return Path(chosen) if chosen else Path(pooch.os_cache("dcase"))


def fetch(
    url: str,
    *,
    known_hash: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    timeout: float | tuple[float, float] = (5.0, 30.0),
    extract: str | None = None,
    filename: str | None = None,
) -> Path:
    """A file from the web, downloaded once.

    What has arrived is kept in ``<file>.part`` and the next call goes on from there (where the
    server knows HTTP ranges). The whole file replaces any old one atomically, its SHA-256 is
    written to ``<file>.sha256`` (in the format of ``sha256sum``) and checked at every later use.

    Args:
        url: http or https address.
        known_hash: Checksum the file must have: SHA-256, or ``"md5:..."`` as pooch has it.
        cache_dir: Folder; see :func:`cache_folder`.
        progress: Show a bar on stderr.
        timeout: Seconds to wait for the connection and for each piece of data; one number stands
            for both. It also bounds the wait for the name server.
        extract: Path of one member of a .tar(.gz, .bz2, .xz) to unpack beside the archive; only
            this member is read, and its own path is not used for writing.
        filename: Name in the cache; None: the last part of the URL.

    Returns:
        The file, or the unpacked member.

    Raises:
        DownloadError: If there is no network, the server refuses, stalls or stops midway.
        DataError: If the file has a wrong checksum, the disk is full, or the archive is damaged or
            lacks the member.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise OptionError(f"can only download http and https addresses, got {url!r}")
    folder = cache_folder(cache_dir)
    target = folder / (filename or Path(urlsplit(url).path).name or "download")
    if extract is not None:
        member = folder / Path(extract).name
        if verified(member):
            return member
    if not verified(target, known_hash):
        _download(url, target, known_hash, ResumableDownloader(target, timeout, progress))
    if extract is None:
        return target
    _extract(target, extract, member, progress)
    return member


def verified(path: Path, known_hash: str | None = None) -> bool:
    """Whether ``path`` is there and is what was downloaded.

    Raises:
        DataError: If it is there, but its checksum is not the recorded (or the known) one.
    """
    if not path.is_file():
        return False
    record = path.with_name(path.name + ".sha256")
    try:
        if record.is_file():
            words = record.read_text(encoding="utf-8").split()
            good = bool(words) and words[0] == file_sha256(path)
        else:
            good = True  # put there by hand: take it as it is, and record it from now on
        if good and known_hash is not None:
            good = pooch.hashes.hash_matches(path, known_hash)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not good:
        raise DataError(
            f"{path} has changed since it was downloaded (wrong checksum); "
            f"delete it and {record.name} to fetch it again"
        )
    if not record.is_file():
        _record(path)
    return True


def _record(path: Path) -> None:
    try:
        write_text(path.with_name(path.name + ".sha256"), f"{file_sha256(path)}  {path.name}\n")
    except DcaseError:
        if os.access(path.parent, os.W_OK):  # a read-only cache of a cluster is fine without
            raise


def _download(
    url: str, target: Path, known_hash: str | None, downloader: ResumableDownloader
) -> None:
    import requests

    where = f"cannot write to {target.parent}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _quiet_pooch():
            pooch.retrieve(
                url,
                known_hash=known_hash,
                fname=target.name,
                path=target.parent,
                downloader=downloader,
            )
        _record(target)
    except DcaseError:
        raise
    except requests.exceptions.RequestException as error:
        raise DownloadError(f"cannot download {url}: {error}".splitlines()[0]) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"the disk is full, {where}; free space, or set DCASE_DATA_DIR to another folder"
            ) from error
        raise DataError(
            f"{where}: {error.strerror or error}; set DCASE_DATA_DIR to another folder"
        ) from error
    except ValueError as error:  # pooch says so of a wrong checksum, and deletes the file
        raise DataError(
            f"what {url} sent has a wrong checksum (expected {known_hash}); it was deleted, try "
            "again or look for a proxy that changes downloads"
        ) from error


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Keep pooch from logging: what it has to say is in our errors and checksum files."""

    def refuse(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    logger = pooch.get_logger()
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)


def _extract(archive: Path, name: str, target: Path, progress: bool) -> None:
    """Unpack one regular file of a tar to ``target``, atomically."""
    from rich.console import Console

    console = Console(stderr=True, quiet=not progress)
    try:
        with (
            console.status(f"looking for {name} in {archive.name} (minutes for a large archive)"),
            tarfile.open(archive, "r:*") as tar,
        ):
            for member in tar:
                if member.name.removeprefix("./") != name:
                    continue
                source = tar.extractfile(member) if member.isfile() else None
                if source is None:
                    raise DataError(f"{name} in {archive} is a link or folder, not a file")
                with source, atomic_path(target) as path, open(path, "wb") as out:
                    while block := source.read(1 << 20):
                        out.write(block)
                _record(target)
                return
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive} is damaged; delete it to fetch it again") from error
    except OSError as error:  # bz2 reports damage as an OSError without errno
        if error.errno is not None:
            raise DataError(f"cannot read {archive}: {error.strerror}") from error
        raise DataError(f"{archive} is damaged; delete it to fetch it again") from error
    raise DataError(f"{archive} has no member {name} ({megabytes(archive.stat().st_size)})")
