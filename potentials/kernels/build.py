"""Small C files compiled when they are first needed, and kept for the user.

There is no need of a compiler: where there is none, or it fails, callers have a slower way in
PyTorch. Libraries are kept in the user's cache under a name that tells source, compiler, flags and
processor apart, in a folder that nobody else can write to.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pooch

SOURCES = Path(__file__).parent
SECONDS = 60.0
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
# Sums may be reordered, which vectorisation needs; NaN and infinity are left alone, and so are
# the processor's rounding modes, which -ffast-math would change for the whole process.
FAST = ("-fassociative-math", "-fno-signed-zeros", "-freciprocal-math")
EXACT = ("-ffp-contract=off",)


@functools.cache
def load_library(
    name: str, real: str, *, sources: Path = SOURCES, exact: bool = False
) -> ctypes.CDLL | None:
    """The library of ``NAME.c`` for floating point type ``real``, compiled if it is not there yet.

    Args:
        name: Of the source.
        real: ``"float"`` or ``"double"``.
        sources: Folder of the source and its headers.
        exact: Every operation in the order written and rounded by itself.

    Returns:
        The library, or None where it cannot be made (no compiler, no place to keep it).
    """
    compiler = _compiler()
    if compiler is None:
        return None
    source = sources / f"{name}.c"
    arithmetic = EXACT if exact else FAST
    try:
        # A compiler may not know this processor, or (Apple's) have no OpenMP.
        for extra in itertools.product((_native_flag(), ()), (("-fopenmp",), ())):
            flags = (*FLAGS, *arithmetic, *extra[0], *extra[1], f"-DREAL={real}")
            library = _folder() / f"{name}-{real}-{_digest(source, compiler, flags)}.so"
            for _ in range(2):
                if not (library.exists() or _compile(source, compiler, flags, library)):
                    break
                try:
                    return ctypes.CDLL(str(library))
                except OSError:  # damaged, or without what it needs: once more, then otherwise
                    library.unlink(missing_ok=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return None


def _compiler() -> tuple[str, ...] | None:
    """The C compiler: $CC, that of this Python, or cc."""
    for words in (os.environ.get("CC", ""), sysconfig.get_config_var("CC") or "", "cc", "gcc"):
        parts = shlex.split(words)
        if parts and shutil.which(parts[0]):
            return tuple(parts)
    return None


def _native_flag() -> tuple[str, ...]:
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return ("-mcpu=native",) if arm else ("-march=native",)


def _digest(source: Path, compiler: tuple[str, ...], flags: tuple[str, ...]) -> str:
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, timeout=SECONDS, check=False
    ).stdout
    texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
    words = [*texts, version, " ".join(flags).encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join(words)).hexdigest()[:24]


def _processor() -> str:
    """What the processor can do: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        known = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
        return platform.machine() + "".join(sorted(set(known)))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}"


def _folder() -> Path:
    """Where libraries are kept.

    Raises:
        PermissionError: If others could put a library there.
    """
    chosen = os.environ.get("DCASE_DATA_DIR")
    folder = (Path(chosen) if chosen else Path(pooch.os_cache("dcase"))) / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others can write to {folder}")
    return folder


def _compile(
    source: Path, compiler: tuple[str, ...], flags: tuple[str, ...], library: Path
) -> bool:
    """Make ``library``, whole or not at all; whether that worked."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        target = Path(folder) / "kernel.so"
        shared = "-dynamiclib" if sys.platform == "darwin" else "-shared"
        command = [*compiler, *flags, shared, "-o", str(target), str(source), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
        except (subprocess.TimeoutExpired, OSError):
            return False
        if done.returncode != 0 or not target.exists():
            return False
        target.replace(library)
        return True
