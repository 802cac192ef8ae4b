"""Does a test fail when a line is wrong? ``make mutants`` breaks the code once per mutant and asks.

A mutant is one small change to one line that decides a number or what happens to a user's data:

    {"file": "md_runs/analysis/drift.py", "old": "a + b", "new": "a - b",
     "tests": ["tests/md_runs/analysis/test_md_drift.py"], "why": "optional remark"}

They are listed by area in ``mutants/*.json``. ``old`` must occur exactly once in ``file`` as it is
now: a mutant that does not is *stale*, which is an error (``test_mutants.py`` of the normal tests
says so at once; who changes such a line changes its mutant too). Each mutant is written into a copy
of the tree, and its ``tests`` (arguments of pytest) run there until the first failure. It is
*killed* by a failure, and *survives* if all pass: then either a test is missing or the change makes
no difference, and such a mutant is taken off the list. The tests are run once on the unchanged copy
first, since tests that fail anyway would kill everything.

Results are kept in a JSON file, by mutant, with the digests of the mutated file and of its tests:
another start takes those that are still true and goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[2]
LISTS = Path(__file__).parent / "mutants"
LEFT_OUT = (".git", ".venv*", "__pycache__", ".*_cache", "*.run", "runs", "quickstart", "build")
# A mutant that loops for ever is found by this, seconds; generous, for slow machines.
HANG = 900.0
# Each trial is a process; torch and the like are imported once for all of them, dcase in each.
START = "forkserver"
PRELOAD = ["torch", "torch_geometric", "scipy.optimize", "ase.io", "ase.build", "h5py", "pytest"]


@dataclass(frozen=True)
class Mutant:
    """One change of the code and the tests that should notice."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str = ""
    area: str = ""

    @property
    def id(self) -> str:
        """Of the change alone."""
        text = json.dumps([self.file, self.old, self.new])
        return f"{self.area}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def apply(self, root: Path) -> str | None:
        """The mutated text of the file; None if the mutant is stale."""
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if self.old == self.new or text.count(self.old) != 1:
            return None
        return text.replace(self.old, self.new)


def read_mutants(folder: Path = LISTS) -> list[Mutant]:
    """All mutants of the lists in ``folder``; a list's name is their area."""
    found = []
    for path in sorted(folder.glob("*.json")):
        for entry in json.loads(path.read_text(encoding="utf-8")):
            tests = entry["tests"]
            tests = tests.split() if isinstance(tests, str) else tests
            found.append(Mutant(**{**entry, "tests": tuple(tests), "area": path.stem}))
    twice = [name for name, count in Counter(m.id for m in found).items() if count > 1]
    if twice:
        raise ValueError(f"mutants listed twice: {', '.join(twice)}")
    return found


def problems(mutants: Sequence[Mutant], root: Path) -> list[str]:
    """One line for each mutant that is stale, or whose tests are not there."""
    lines = []
    for mutant in mutants:
        if mutant.apply(root) is None:
            count = (root / mutant.file).is_file() and (root / mutant.file).read_text(
                encoding="utf-8"
            ).count(mutant.old)
            lines.append(f"{mutant.id}: {mutant.file} holds {mutant.old!r} {int(count)} times")
        missing = [t for t in mutant.tests if not (root / t.split("::")[0]).exists()]
        if missing or not mutant.tests:
            lines.append(f"{mutant.id}: no such tests: {' '.join(missing) or 'none named'}")
    return lines


def copy_tree(root: Path, target: Path) -> None:
    """The tree without environments and caches; symbolic links stay links."""
    shutil.copytree(root, target, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))


def digest(mutant: Mutant, root: Path) -> str:
    """Of all that decides a mutant's outcome, but for the rest of the code."""
    state = hashlib.sha256()
    for name in (mutant.file, *(t.split("::")[0] for t in mutant.tests)):
        for path in sorted((root / name).rglob("*.py")) or [root / name]:
            state.update(path.read_bytes())
    return state.hexdigest()[:16]


def _pytest(folder: str, tests: Sequence[str], log: str) -> None:
    """Target of a process: the tests in ``folder``, which lead a process group of their own."""
    os.setsid()
    with open(log, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    os.environ |= {
        "PYTHONPATH": folder,
        "PYTHONDONTWRITEBYTECODE": "1",  # same size, same second: would be taken for unchanged
        "OMP_NUM_THREADS": "1",
        "DCASE_DATA_DIR": str(Path(folder).parent / "data"),
    }
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    import pytest

    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])))


def run_tests(folder: Path, tests: Sequence[str], log: Path) -> tuple[int | None, float]:
    """The exit code of pytest (None: hung), and seconds."""
    context = multiprocessing.get_context(START)
    if START == "forkserver":
        context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_pytest, args=(str(folder), list(tests), str(log)))
    began = time.monotonic()
    process.start()
    process.join(HANG)
    hung = process.exitcode is None
    if hung:
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
    return None if hung else process.exitcode, time.monotonic() - began


def last_line(log: Path) -> str:
    """What failed, or the last line, of pytest's output."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])[:200]


def try_mutant(mutant: Mutant, folder: Path, log: Path) -> dict:
    """Write the mutant into ``folder``, run its tests, and put the file back."""
    path, text = folder / mutant.file, mutant.apply(folder)
    if text is None:
        return {"outcome": "stale", "seconds": 0.0, "by": ""}
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(text, encoding="utf-8")
        code, seconds = run_tests(folder, mutant.tests, log)
    finally:
        path.write_text(before, encoding="utf-8")
    # 1: tests failed; 2: stopped, e.g. by an error at import; negative: a signal.
    outcome = "survived" if code == 0 else "no tests" if code in (4, 5) else "killed"
    return {
        "outcome": outcome,
        "seconds": round(seconds, 1),
        "by": "hangs" if code is None else last_line(log) if code else "",
    }


def write_results(path: Path, results: dict[str, dict]) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def table(results: Sequence[dict]) -> str:
    """Outcomes by area, and the mutants that were not killed."""
    areas = sorted({r["area"] for r in results})
    kinds = ("killed", "survived", "stale", "no tests")
    lines = [f"{'area':<12}" + "".join(f"{kind:>10}" for kind in kinds)]
    for area in [*areas, "all"]:
        count = Counter(r["outcome"] for r in results if area in (r["area"], "all"))
        lines.append(f"{area:<12}" + "".join(f"{count[kind]:>10}" for kind in kinds))
    for r in results:
        if r["outcome"] != "killed":
            lines.append(f"\n{r['outcome']}: {r['id']} {r['file']}\n  - {r['old']}\n  + {r['new']}")
    return "\n".join(lines)


def hunt(
    mutants: Sequence[Mutant], root: Path, out: Path, *, jobs: int = 1, baseline: bool = True
) -> list[dict]:
    """Try the mutants; results go to ``out`` as they come.

    Raises:
        SystemExit: If the tests fail on the unchanged tree.
    """
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    digests = {m.id: digest(m, root) for m in mutants}
    todo = [m for m in mutants if known.get(m.id, {}).get("digest") != digests[m.id]]
    with tempfile.TemporaryDirectory(prefix="dcase-mutants-") as temporary:
        folders: Queue[Path] = Queue()
        for job in range(jobs):
            copy_tree(root, Path(temporary) / str(job) / "tree")
            folders.put(Path(temporary) / str(job) / "tree")
        if baseline and todo:
            folder = folders.get()
            tests = sorted({t for m in todo for t in m.tests})
            log = folder.parent / "log"
            code, _ = run_tests(folder, tests, log)
            folders.put(folder)
            if code != 0:
                raise SystemExit(f"the tests fail without any mutant: {last_line(log)}")

        def one(mutant: Mutant) -> None:
            folder = folders.get()
            try:
                found = try_mutant(mutant, folder, folder.parent / "log")
            finally:
                folders.put(folder)
            known[mutant.id] = {
                "id": mutant.id,
                **found,
                "digest": digests[mutant.id],
                **asdict(mutant),
                "tests": list(mutant.tests),
            }
            write_results(out, known)
            print(f"{found['outcome']:>8}  {mutant.id}  {found['by']}", flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, todo))
    return [known[m.id] for m in mutants]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 if a mutant survived or is stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutants whose id or file contains this")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"), help="the results")
    parser.add_argument("--lists", type=Path, default=LISTS, help="folder of lists of mutants")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--no-baseline", action="store_true", help="skip the unchanged tree")
    options = parser.parse_args(arguments)
    mutants = [m for m in read_mutants(options.lists) if options.only in f"{m.id} {m.file}"]
    stale = problems(mutants, ROOT)
    if stale:
        print("\n".join(stale), file=sys.stderr)
        return 1
    if options.fresh:
        options.out.unlink(missing_ok=True)
    results = hunt(mutants, ROOT, options.out, jobs=options.jobs, baseline=not options.no_baseline)
    print(table(results))
    return int(any(r["outcome"] != "killed" for r in results))


if __name__ == "__main__":
    raise SystemExit(main())
