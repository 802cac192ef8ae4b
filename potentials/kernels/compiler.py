"""The C compiler: which one, what it is, and running it for a bounded time."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

SECONDS = 60.0
"""For which a compiler may run; the largest source takes about 4."""
_VERSION_SECONDS = 10.0
_SETTINGS = ("CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH", "GCC_EXEC_PREFIX")
"""Variables of the environment that change what a compiler makes."""


class CompilerError(Exception):
    """There is no library to be had from a compiler; one line that says why."""


class Compiler:
    """A C compiler.

    Args:
        words: The program and its first arguments.
        name: For messages.

    Attributes:
        hung: Whether it has once run out of time; it is not run again.
    """

    def __init__(self, words: tuple[str, ...], name: str):
        self.words, self.name = words, name
        self.hung = False

    @functools.cached_property
    def identity(self) -> tuple[str, ...]:
        """Tells compilers apart that make different libraries of the same source.

        Raises:
            CompilerError: If it does not answer.
        """
        path = os.path.realpath(shutil.which(self.words[0]) or self.words[0])
        try:
            found = os.stat(path)
        except OSError as error:
            raise CompilerError(f"{self.name} is not there: {error.strerror}") from error
        version = self._run([*self.words, "--version"], _VERSION_SECONDS)[1]
        settings = [f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ]
        return (path, str(found.st_size), str(found.st_mtime_ns), *self.words, version, *settings)

    def compile(
        self, source: Path, flags: tuple[str, ...], target: Path, seconds: float = SECONDS
    ) -> None:
        """Make a shared library.

        Args:
            source: A C file.
            flags: Arguments.
            target: Where to put it.
            seconds: After which the compiler is killed.

        Raises:
            CompilerError: If there is no library then.
        """
        shared = "-dynamiclib" if sys.platform == "darwin" else "-shared"
        command = [*self.words, *flags, shared, "-o", str(target), str(source), "-lm"]
        status, _, said = self._run(command, seconds)
        if status != 0:
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            telling = [line for line in lines if "error" in line.lower()] or lines
            why = f": {telling[0][:200]}" if telling else ""
            raise CompilerError(f"{self.name} fails with exit status {status}{why}")
        if not target.exists():
            raise CompilerError(f"{self.name} makes no library")

    def _run(self, command: list[str], seconds: float) -> tuple[int, str, str]:
        """Exit status, output and errors of a command.

        Not by pipes, which a child that outlives the command would keep open.
        """
        if self.hung:
            raise CompilerError(f"{self.name} hangs")
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env={**os.environ, "LC_ALL": "C"},
                    start_new_session=True,  # a group of its own, to be killed as a whole
                )
            except (OSError, ValueError) as error:  # ValueError: a zero byte in $CC
                raise CompilerError(f"{self.name} cannot be run: {error}") from error
            try:
                status = _wait(process, seconds)
            except subprocess.TimeoutExpired as error:
                self.hung = True
                raise CompilerError(
                    f"{self.name} was stopped: not done after {seconds:g} s"
                ) from error
            finally:
                if process.returncode is None:  # also after Ctrl-C
                    _kill(process)
            return status, _text(out), _text(err)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(20_000).decode("utf-8", errors="replace")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    return process.wait(timeout=seconds)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def compilers() -> list[Compiler]:
    """The one that $CC names, and no other; else that of this Python, cc, gcc, clang.

    Raises:
        CompilerError: If there is none.
    """
    asked = os.environ.get("CC", "").strip()
    if asked:
        name = f"the compiler that $CC names ({asked})"
        try:
            words = tuple(shlex.split(asked))
        except ValueError as error:
            raise CompilerError(f"{name} cannot be understood: {error}") from error
        if not words or shutil.which(words[0]) is None:
            raise CompilerError(f"{name} is not there, or is no program")
        return [_compiler(words, name)]
    found: list[Compiler] = []
    for text in (sysconfig.get_config_var("CC") or "", "cc", "gcc", "clang"):
        words = tuple(shlex.split(text))
        if words and shutil.which(words[0]) and words not in [one.words for one in found]:
            found.append(_compiler(words, words[0]))
    if not found:
        raise CompilerError("there is no C compiler (gcc or clang) here")
    return found


@functools.cache
def _compiler(words: tuple[str, ...], name: str) -> Compiler:
    return Compiler(words, name)
