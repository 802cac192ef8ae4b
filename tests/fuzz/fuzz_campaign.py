"""Damage files of every kind and count what their readers make of it: ``make fuzz``."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

OUTCOMES = ("refused", "same", "changed", "unclear", "traceback", "crash")


def run(folder, names, trials, first=0):
    """``{format: [(seed, outcome, detail)]}``; a reader that crashes is started again."""
    jobs = {name: [first, first + trials] for name in names}
    found = {name: [] for name in names}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    worker = Path(__file__).with_name("fuzz_worker.py")
    while jobs:
        done = subprocess.run(
            [sys.executable, worker, folder, json.dumps(jobs)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        begun = None
        for line in done.stdout.splitlines():
            message = json.loads(line)
            begun = message.get("start")
            if "end" in message:
                name, seed, result, detail = message["end"]
                found[name].append((seed, result, detail))
                jobs[name][0] = seed + 1
        if done.returncode:
            if begun is None:
                raise RuntimeError(f"the worker failed between two trials: {done.stderr}")
            name, seed = begun
            found[name].append((seed, "crash", f"exit {done.returncode}: {done.stderr[-500:]}"))
            jobs[name][0] = seed + 1
        jobs = {name: span for name, span in jobs.items() if span[0] < span[1]}
    return found


def table(found):
    """What came of it, a line a format."""
    lines = [f"{'format':16s}{'trials':>9s}" + "".join(f"{o:>11s}" for o in OUTCOMES)]
    for name, trials in found.items():
        count = Counter(result for _, result, _ in trials)
        lines.append(f"{name:16s}{len(trials):9d}" + "".join(f"{count[o]:11d}" for o in OUTCOMES))
    return "\n".join(lines)


def main():
    """The command."""
    from fuzz_formats import FORMATS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="Seed of the first damage.")
    parser.add_argument("--only", action="append", choices=FORMATS)
    parser.add_argument("--show", default="unclear,traceback,crash", help="Outcomes to print.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(folder, given.only or list(FORMATS), given.trials, given.first)
    for name, trials in found.items():
        for seed, result, detail in trials:
            if result in given.show.split(","):
                print(f"{name}, seed {seed}: {result} {detail}\n")
    print(table(found))
    bad = any(r in OUTCOMES[3:] for trials in found.values() for _, r, _ in trials)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
