"""Libraries of C files: kept whole and private, compiled for a bounded time, or explained."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from processes import GUARD

from dcase.errors import KernelWarning
from dcase.potentials.kernels import build, cache, compiler
from dcase.potentials.kernels.compiler import CompilerError, compilers

load = build.load_library.__wrapped__

CODE = "double answer(double x) { return 42 * x; }\nint size(void) { return sizeof(REAL); }\n"


def works():
    try:
        return bool(compilers())
    except CompilerError:
        return False


needs_compiler = pytest.mark.skipif(not works(), reason="there is no C compiler here")
needs_posix = pytest.mark.skipif(os.name != "posix", reason="permissions and scripts of POSIX")


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A small source; an empty cache."""
    monkeypatch.setenv("DCASE_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.c").write_text(CODE)
    compiler._compiler.cache_clear()
    return folder


def answer(library):
    library.answer.restype, library.answer.argtypes = ctypes.c_double, [ctypes.c_double]
    return library.answer(0.5)


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "kernels").iterdir())


def put(path, content):
    """As another file: this process has the old one in its memory."""
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o600)


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@needs_compiler
def test_libraries_are_compiled_once_and_kept(sources, tmp_path, monkeypatch):
    assert answer(load("answer", "double", sources=sources)) == 21.0
    (library,) = kept(tmp_path)  # nothing half made is left
    assert library.suffix == ".so"
    monkeypatch.setattr(compiler.Compiler, "compile", None)  # is not called again
    assert answer(load("answer", "double", sources=sources)) == 21.0
    assert kept(tmp_path) == [library]


@needs_compiler
@needs_posix
def test_everything_that_changes_a_library_is_in_its_name(sources, tmp_path, monkeypatch):
    def names_after(what, count):
        assert load("answer", "double", sources=sources) is not None, what
        assert len(kept(tmp_path)) == count, what

    program = compilers()[0].words[0]
    names_after("first", 1)
    monkeypatch.setenv("CC", f"{program} -DANSWER=1")
    names_after("the compiler's arguments", 2)
    monkeypatch.setenv("CC", f"{program} -DANSWER=2")
    names_after("other arguments", 3)
    wrapper = script(tmp_path / "wrapped", f'exec {program} "$@"')
    monkeypatch.setenv("CC", str(wrapper))
    names_after("the compiler's place", 4)
    compiler._compiler.cache_clear()
    script(wrapper, f'exec {program} -DANSWER=3 "$@"')
    names_after("the compiler itself", 5)
    monkeypatch.setattr(build, "_processor", lambda: "another processor")
    names_after("the processor", 6)
    (sources / "answer.h").write_text("/* a header beside it */")
    names_after("headers", 7)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DFLAG"))
    names_after("flags", 8)
    monkeypatch.setenv("CPATH", str(tmp_path))
    compiler._compiler.cache_clear()
    names_after("the environment", 9)
    assert load("answer", "double", sources=sources, exact=True) is not None
    assert load("answer", "float", sources=sources) is not None
    assert len(kept(tmp_path)) == 11


def test_the_processor_is_told_by_all_its_features():
    known = build._processor()
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    for line in text.splitlines():
        if line.startswith(("flags", "Features", "model name")):
            assert line in known


@needs_compiler
@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_library_with_a_flipped_bit_is_made_anew(sources, tmp_path, place, bit):
    load("answer", "double", sources=sources)
    (library,) = kept(tmp_path)
    right = library.read_bytes()
    wrong = bytearray(right)
    wrong[int(place * (len(right) - 1))] ^= 1 << bit
    put(library, bytes(wrong))
    assert answer(load("answer", "double", sources=sources)) == 21.0
    (library,) = kept(tmp_path)
    assert library.read_bytes() == right


@needs_compiler
@pytest.mark.parametrize("left", [0.0, 0.3, 0.99])
def test_a_truncated_library_is_made_anew(sources, tmp_path, left):
    """Loaded, it would end the process with SIGBUS."""
    load("answer", "double", sources=sources)
    (library,) = kept(tmp_path)
    right = library.read_bytes()
    put(library, right[: int(left * len(right))])
    assert answer(load("answer", "double", sources=sources)) == 21.0
    (library,) = kept(tmp_path)
    assert library.read_bytes() == right


@needs_compiler
@needs_posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_libraries_are_not_kept_where_others_can_write(sources, tmp_path, mode):
    folder = tmp_path / "cache" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.warns(KernelWarning, match="can be written to by others"):
        library = load("answer", "double", sources=sources)
    assert answer(library) == 21.0
    assert kept(tmp_path) == []
    assert Path(library._name).parent.stat().st_mode & 0o777 == 0o700


@needs_compiler
@needs_posix
def test_libraries_are_not_kept_where_somebody_else_is_at_home(sources, tmp_path):
    folder = tmp_path / "cache" / "kernels"
    folder.mkdir(parents=True, mode=0o700)
    if os.getuid() == 0:
        os.chown(folder, 12345, -1)
    else:
        pytest.skip("only root can give a folder away")
    with pytest.warns(KernelWarning, match="belongs to somebody else"):
        assert answer(load("answer", "double", sources=sources)) == 21.0
    assert kept(tmp_path) == []


@needs_compiler
@needs_posix
@pytest.mark.parametrize("how", ["others can write to it", "link", "somebody else's"])
def test_a_library_that_is_not_ours_is_not_loaded(sources, tmp_path, monkeypatch, how):
    load("answer", "double", sources=sources)
    (library,) = kept(tmp_path)
    if how == "link":
        moved = library.rename(tmp_path / "elsewhere.so")
        library.symlink_to(moved)
    elif how == "somebody else's":
        if os.getuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(library, 12345, -1)
    else:
        library.chmod(0o666)
    made = []
    compile_ = compiler.Compiler.compile
    monkeypatch.setattr(
        compiler.Compiler, "compile", lambda *a, **b: (made.append(1), compile_(*a, **b))
    )
    assert answer(load("answer", "double", sources=sources)) == 21.0
    assert made == [1]
    (library,) = kept(tmp_path)
    assert not library.is_symlink()
    assert library.stat().st_mode & 0o777 == 0o600


@needs_compiler
@needs_posix
@pytest.mark.parametrize("where", ["/proc/nowhere", "/dev/null/nowhere", "full"])
def test_without_a_place_to_keep_libraries(sources, tmp_path, monkeypatch, where):
    if where == "full":

        def full(handle):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("dcase.files.os.fsync", full)
        reason = "cannot write to .*No space left"
        # The temporary folder is on another disk.
        monkeypatch.setattr(cache, "temporary_folder", lambda: tmp_path)
        keep = cache.keep

        def elsewhere(made, folder, name):
            if folder == tmp_path:
                monkeypatch.undo()
            return keep(made, folder, name)

        monkeypatch.setattr(cache, "keep", elsewhere)
    else:
        monkeypatch.setenv("DCASE_DATA_DIR", where)
        reason = "nowhere"
    with pytest.warns(KernelWarning, match=f"cannot be kept.*{reason}") as told:
        assert answer(load("answer", "double", sources=sources)) == 21.0
    assert len(told) == 1
    assert "\n" not in str(told[0].message)


@needs_compiler
def test_the_file_and_its_name_reach_the_disk_before_it_counts(sources, tmp_path, monkeypatch):
    seen = []
    fsync, replace = os.fsync, os.replace

    def note_sync(handle):
        seen.append("folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "file")
        return fsync(handle)

    def note_move(*paths):
        seen.append("move")
        return replace(*paths)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_move)
    load("answer", "double", sources=sources)
    if not Path("/proc/self/fd").exists():
        pytest.skip("nothing says what a handle is of")
    assert seen[:2] == ["file", "move"]
    assert seen[-1] == "folder"


@needs_posix
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("/nowhere/cc", "is not there, or is no program"),
        ("{folder}/plain", "is not there, or is no program"),
        ("{folder}", "is not there, or is no program"),
        ("'", "cannot be understood"),
        ("gcc 'unended", "cannot be understood"),
        ("''", "is not there, or is no program"),
        ("{folder}/fails -m64", "fails with exit status 3: what is wrong"),
        ("{folder}/lies", "makes no library"),
        ("{folder}/writes", "invalid ELF header|file too short|not a mach-o"),
        ("{folder}/damaged", "cannot be run"),
    ],
)
def test_a_bad_compiler_is_one_line(sources, tmp_path, monkeypatch, words, reason):
    (tmp_path / "plain").write_text("text")
    script(tmp_path / "fails", "echo what is wrong >&2\nexit 3")
    script(tmp_path / "lies", "exit 0")
    script(
        tmp_path / "writes",
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo no library > "$2"; shift; done',
    )
    (tmp_path / "damaged").write_bytes(b"\x7fELF no program")
    (tmp_path / "damaged").chmod(0o755)
    monkeypatch.setenv("CC", words.format(folder=tmp_path))
    with pytest.warns(KernelWarning, match=reason) as told:
        assert load("answer", "double", sources=sources) is None
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert not (tmp_path / "cache" / "kernels").exists() or kept(tmp_path) == []


def test_without_any_compiler(sources, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.warns(KernelWarning, match="there is no C compiler"):
        assert load("answer", "double", sources=sources) is None


@needs_compiler
def test_a_compiler_with_arguments_is_used_with_them(sources, tmp_path, monkeypatch):
    (sources / "answer.c").write_text(CODE.replace("42", "ANSWER"))
    monkeypatch.setenv("CC", f"{compilers()[0].words[0]} -DANSWER=7")
    assert answer(load("answer", "double", sources=sources)) == 3.5


class Pipe:
    """A named pipe that processes hold open: what they say is an event, and so is their end."""

    def __init__(self, path):
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self):
        """What is said next; nothing once nobody is left to say anything."""
        ready, _, _ = select.select([self.fd], [], [], GUARD)
        assert ready, "a process lives on and says nothing"
        return os.read(self.fd, 4096).decode()


@pytest.fixture
def pipe(tmp_path):
    made = Pipe(tmp_path / "pipe")
    yield made
    os.close(made.fd)


@needs_posix
@pytest.mark.parametrize("when", ["asked for its version", "compiling"])
def test_a_compiler_that_hangs_is_ended_with_its_children(
    sources, tmp_path, monkeypatch, when, pipe
):
    hang = f"exec 9> {tmp_path / 'pipe'}\nsleep 1000 & echo there >&9; wait"
    fine = "--version" if when == "compiling" else "--nothing"
    script(tmp_path / "hangs", f'[ "$1" = {fine} ] && exit 0\n{hang}')
    monkeypatch.setenv("CC", str(tmp_path / "hangs"))
    asked = []

    def impatient(process, seconds):
        """The time is up as soon as the child is there: nothing waits for the clock."""
        if when == "compiling" and process.args[-1] == "--version":
            return process.wait()
        asked.append(pipe.read())
        raise subprocess.TimeoutExpired(process.args, seconds)

    monkeypatch.setattr(compiler, "_wait", impatient)
    with pytest.warns(KernelWarning, match="was stopped: not done after"):
        assert load("answer", "double", sources=sources, seconds=7) is None
    assert pipe.read() == ""  # compiler and child are no more
    with pytest.warns(KernelWarning, match="hangs"):
        assert load("answer", "float", sources=sources) is None
    assert asked == ["there\n"]  # once, not for every set of flags


@needs_posix
def test_the_time_limit_is_that_of_the_call(sources, tmp_path, monkeypatch):
    script(tmp_path / "hangs", '[ "$1" = --version ] && exit 0\nexec sleep 1000')
    monkeypatch.setenv("CC", str(tmp_path / "hangs"))
    with pytest.warns(KernelWarning, match=r"was stopped: not done after 0.05 s"):
        assert load("answer", "double", sources=sources, seconds=0.05) is None


@needs_compiler
def test_two_processes_build_at_once(sources, tmp_path):
    code = (
        "import sys; from pathlib import Path; from dcase.potentials.kernels import build\n"
        "import ctypes\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"library = build.load_library('answer', 'double', sources=Path({str(sources)!r}))\n"
        "library.answer.restype = ctypes.c_double\n"
        "print(library.answer(ctypes.c_double(0.5)))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # all are there: now go
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate()[0] == "21.0\n"
        assert process.returncode == 0
    (library,) = kept(tmp_path)
    assert cache._is_whole(library)


@needs_compiler
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize(
    "source", sorted(p.name for p in build.SOURCES.iterdir() if p.suffix in (".h", ".c"))
)
def test_every_header_and_source_stands_alone(source, real):
    """None uses a name of the file that includes it."""
    command = (*compilers()[0].words, "-std=gnu11", "-fsyntax-only", f"-DREAL={real}")
    strict = ("-Wall", "-Wextra", "-Wno-unused-function", "-Wno-unknown-pragmas", "-Werror")
    done = subprocess.run(
        [*command, *strict, "-x", "c", str(build.SOURCES / source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_fork_after_the_temporary_folder_went(sources, tmp_path):
    folder = cache.temporary_folder()
    shutil.rmtree(folder)
    assert cache.temporary_folder() == folder
    assert folder.is_dir()


def test_warnings_of_ours_are_one_line_at_the_command_line(capsys):
    from dcase.cli.main import _one_line_each

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _one_line_each(warnings.showwarning)
        for _ in range(2):
            warnings.warn("no compiled form, because", KernelWarning, stacklevel=1)
    assert capsys.readouterr().err == "WARNING: no compiled form, because\n"
