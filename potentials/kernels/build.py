"""Small C files compiled when they are first needed, and kept for the user.

There is no need of a compiler: where there is none, or it fails, one warning says so and callers
have a slower way in PyTorch. Libraries are kept (:mod:`dcase.potentials.kernels.cache`) under a
name that tells source, compiler, its arguments and processor apart.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import platform
import tempfile
import warnings
from pathlib import Path

from dcase.errors import KernelWarning
from dcase.potentials.kernels import cache
from dcase.potentials.kernels.compiler import SECONDS, Compiler, CompilerError, compilers

NO_COMPILER = "no C compiler works here; up to 40 times slower"
SOURCES = Path(__file__).parent
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
# Sums may be reordered, which vectorisation needs; NaN and infinity are left alone, and so are
# the processor's rounding modes, which -ffast-math would change for the whole process.
FAST = ("-fassociative-math", "-fno-signed-zeros", "-freciprocal-math")
EXACT = ("-ffp-contract=off",)


@functools.cache
def load_library(
    name: str,
    real: str,
    *,
    sources: Path = SOURCES,
    exact: bool = False,
    seconds: float = SECONDS,
) -> ctypes.CDLL | None:
    """The library of ``NAME.c`` for floating point type ``real``, compiled if it is not there yet.

    Args:
        name: Of the source.
        real: ``"float"`` or ``"double"``.
        sources: Folder of the source and its headers.
        exact: Every operation in the order written and rounded by itself.
        seconds: For which a compiler may run.

    Returns:
        The library, or None where it cannot be made, which a
        :class:`~dcase.errors.KernelWarning` explains.
    """
    source = sources / f"{name}.c"
    reasons = []
    try:
        for compiler in compilers():
            try:
                return _load(source, real, compiler, exact, seconds)
            except CompilerError as error:
                reasons.append(str(error))
    except (CompilerError, OSError) as error:
        reasons.append(str(error))
    warnings.warn(
        f"no compiled form, PyTorch is used, up to 40 times slower: {'; '.join(reasons)}",
        KernelWarning,
        stacklevel=2,
    )
    return None


def _load(source: Path, real: str, compiler: Compiler, exact: bool, seconds: float) -> ctypes.CDLL:
    """As :func:`load_library`, by one compiler.

    Raises:
        CompilerError: If it cannot be made.
    """
    arithmetic = EXACT if exact else FAST
    reason = ""
    # A compiler may not know this processor, or (Apple's) have no OpenMP.
    for extra in itertools.product((_native_flag(), ()), (("-fopenmp",), ())):
        flags = (*FLAGS, *arithmetic, *extra[0], *extra[1], f"-DREAL={real}")
        name = f"{source.stem}-{real}-{_key(source, compiler, flags)}"
        library = _kept(name)
        if library is not None:
            return library
        with tempfile.TemporaryDirectory(prefix="dcase-") as folder:
            made = Path(folder) / "kernel.so"
            try:
                compiler.compile(source, flags, made, seconds)
                return _keep(made, name)
            except (CompilerError, OSError) as error:
                reason = reason or str(error)
                if compiler.hung:
                    break
    raise CompilerError(reason)


def _kept(name: str) -> ctypes.CDLL | None:
    """The library of an earlier build, if there is one that is whole and can be loaded."""
    try:
        path = cache.find(cache.user_folder(), name)
        return None if path is None else ctypes.CDLL(str(path))
    except OSError:  # no such place, or a library without what it needs
        return None


def _keep(made: Path, name: str) -> ctypes.CDLL:
    """Load a library from the user's cache, or from a folder of this process if that fails.

    Raises:
        OSError: If it cannot be loaded.
    """
    try:
        path = cache.keep(made, cache.user_folder(), name)
    except OSError as error:
        library = ctypes.CDLL(str(cache.keep(made, cache.temporary_folder(), name)))
        warnings.warn(
            f"compiled forms cannot be kept and are made anew by every process: {error} "
            "(another place: $DCASE_DATA_DIR)",
            KernelWarning,
            stacklevel=4,
        )
        return library
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # damaged on the way, or a disk that nothing may be loaded from
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(cache.keep(made, cache.temporary_folder(), name)))


def _native_flag() -> tuple[str, ...]:
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return ("-mcpu=native",) if arm else ("-march=native",)


def _key(source: Path, compiler: Compiler, flags: tuple[str, ...]) -> str:
    """Of everything that a library depends on."""
    texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
    words = (*compiler.identity, "flags", *flags, "processor", _processor())
    found = hashlib.sha256()
    for part in [*texts, *(word.encode(errors="surrogateescape") for word in words)]:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:24]


_TELLING = (
    "flags", "Features", "vendor_id", "cpu family", "model", "stepping", "CPU implementer",
    "CPU architecture", "CPU variant", "CPU part",
)  # fmt: skip
"""Lines of /proc/cpuinfo that -march=native depends on; "model" begins "model name", too."""


def _processor() -> str:
    """What the processor can do: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}"
    known = {line for line in lines if line.startswith(_TELLING)}
    return platform.machine() + "\n".join(sorted(known))
