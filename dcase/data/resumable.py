"""The HTTP part of :mod:`dcase.data.download`: a pooch downloader that resumes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from dcase.errors import DataError

ATTEMPTS = 3
BLOCK = 1 << 16


class DownloadError(DataError):
    """The network, or the server at the other end, did not deliver."""


def megabytes(size: float) -> str:
    """A size for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


class ResumableDownloader:
    """Downloads to ``<target>.part``, going on from what is there; called by pooch.

    Args:
        target: The file this will become; names the ``.part`` file.
        timeout: Seconds for connecting and for each read.
        progress: Whether to show a bar on stderr.
    """

    def __init__(self, target: Path, timeout: float | tuple[float, float], progress: bool) -> None:
        self.part = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
        self.timeout = (float(connect), float(read))
        self.progress = progress

    def __call__(self, url: str, output_file: str | IO[bytes], pooch: Any = None) -> None:
        """Fetch ``url`` and move it to ``output_file`` (pooch's temporary file).

        Raises:
            DownloadError: If the server cannot be reached, refuses, or stops midway for good.
            DataError: If another process is at it, or there is no room.
        """
        _resolve(url, self.timeout[0])
        with open(self.part, "ab") as part:
            _lock(part, self.part)
            for attempt in range(1, ATTEMPTS + 1):
                before = part.seek(0, os.SEEK_END)
                error = self._attempt(url, part)
                if error is None:
                    break
                # Only a try that got us nowhere counts as the last one.
                if attempt == ATTEMPTS or part.seek(0, os.SEEK_END) <= before:
                    raise error
            part.flush()
            os.fsync(part.fileno())
            os.replace(self.part, str(output_file))
        self.note.unlink(missing_ok=True)

    def _attempt(self, url: str, part: IO[bytes]) -> DownloadError | None:
        """One request; the error of a connection that broke after it had begun."""
        import requests

        host = urlsplit(url).netloc
        have = part.seek(0, os.SEEK_END)
        try:
            with self._ask(url, have) as response:
                if response.status_code == 416 and have:
                    # Nothing left to send: complete, or not the file we began.
                    if response.headers.get("Content-Range", "") == f"bytes */{have}":
                        return None
                    part.truncate(0)
                    return self._attempt(url, part)
                if response.status_code not in (200, 206):
                    raise DownloadError(
                        f"{host} answers {response.status_code} {response.reason} for {url}"
                    )
                total = self._begin(response, part, have, url)
                return self._receive(response, part, total, url)
        except requests.exceptions.ConnectTimeout as error:
            raise DownloadError(
                f"no network: {host} does not answer within {self.timeout[0]:g} s"
            ) from error
        except requests.exceptions.Timeout as error:
            raise DownloadError(
                f"{host} sent nothing for {self.timeout[1]:g} s; the same command goes on later"
            ) from error
        except requests.exceptions.ConnectionError as error:
            raise DownloadError(f"no network: cannot connect to {host}") from error

    def _ask(self, url: str, have: int) -> Any:
        import requests

        # Compressed transfer would make byte positions meaningless.
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            validator = self._validator(url)
            if validator:
                headers["If-Range"] = validator  # a changed file comes whole, as a 200
        return requests.get(url, headers=headers, stream=True, timeout=self.timeout)

    def _validator(self, url: str) -> str:
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return str(note["validator"]) if note["url"] == url else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _begin(self, response: Any, part: IO[bytes], have: int, url: str) -> int | None:
        """Set the part file to where the answer starts; returns the size of the whole file."""
        headers = response.headers
        if response.status_code == 206:
            span, _, size = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if span.partition("-")[0] != str(have):
                part.truncate(0)
                raise DownloadError(
                    "the server sent another part of the file than it was asked for; try again"
                )
            total = int(size) if size.isdigit() else None
        else:
            part.truncate(0)
            have = 0
            length = headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        if total is not None:
            free = shutil.disk_usage(self.part.parent).free
            if free < total - have:
                raise DataError(
                    f"{megabytes(total - have)} to download, but only {megabytes(free)} free in "
                    f"{self.part.parent}; free space, or set DCASE_DATA_DIR to another folder"
                )
        tag = headers.get("ETag", "")
        validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
        self.note.write_text(json.dumps({"url": url, "validator": validator}))
        return total

    def _receive(
        self, response: Any, part: IO[bytes], total: int | None, url: str
    ) -> DownloadError | None:
        import requests

        done = part.seek(0, os.SEEK_END)
        reason: Exception | None = None
        with _bar(self.progress, self.part.stem, done, total) as show:
            try:
                for block in response.iter_content(BLOCK):
                    part.write(block)
                    done += len(block)
                    show(done)
            except requests.exceptions.RequestException as error:
                # Includes a read timeout: what came so far is worth keeping.
                reason = error
        part.flush()
        if reason is None and (total is None or done == total):
            return None
        if total is not None and done > total:
            part.truncate(0)
            return DownloadError(f"{url} sent more than it announced; try again")
        of = "" if total is None else f" of {megabytes(total)}"
        failure = DownloadError(
            f"the connection to {urlsplit(url).netloc} broke after {megabytes(done)}{of}; "
            "the same command goes on from there"
        )
        failure.__cause__ = reason
        return failure


def _resolve(url: str, seconds: float) -> None:
    """Look the host up, for a bounded time: a dead name server can hold requests for a minute.

    Raises:
        DownloadError: If the name is not found in time.
    """
    import requests

    if requests.utils.get_environ_proxies(url):
        return  # the proxy looks names up
    parts = urlsplit(url)
    outcome: list[OSError | None] = []

    def look_up() -> None:
        try:
            socket.getaddrinfo(parts.hostname, parts.port or 80)
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise DownloadError(f"no network: {parts.hostname} is not found within {seconds:g} s")
    if outcome[0] is not None:
        raise DownloadError(f"no network: {parts.hostname} is not found") from outcome[0]


def _lock(handle: IO[bytes], path: Path) -> None:
    """Keep two processes from writing one part file (where the system has flock)."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise DataError(f"another process is downloading {path.stem}; wait for it") from error
        # Some network file systems know no locks: go on without.


@contextmanager
def _bar(wanted: bool, name: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    if not wanted:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda done: bar.update(task, completed=done)
