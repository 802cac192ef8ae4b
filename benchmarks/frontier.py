"""What CPU time buys: force errors of dcase and of other programs, and their MD steps.

    python benchmarks/frontier.py --train rmd17_aspirin_train_01.npz \\
        --test rmd17_aspirin_test_01.npz
    python benchmarks/frontier.py --train TRAIN --test TEST --only mace:32x0e --budgets 600

One molecule of rMD17 with the labels of MD17, 950 frames to train, 50 to validate (the same ones
for all, of the training file of an official split), all frames of the test file. Every entry of the
grid (program, network, budget) trains in a process of its own with one thread. A program gets its
own published or recommended settings and a schedule that ends with the budget; they are in the
docstrings of ``peers/*_train.py``:

    dcase:A        dcase train md17 --model A --cpu-limit BUDGET: the default recipe
    sgdml          sGDML 1.0.3                              (make peer-sgdml)
    schnetpack:A   SchNetPack 2.1.1's SchNet and PaiNN      (make peer-schnetpack)
    mace:32x0e     MACE 0.3.16                              (make peer-mace)

What is written of an entry: the CPU seconds that its process took, starting Python, reading files
and neighbours included, as the operating system counts them; mean absolute errors on the test
frames; ms of a step of dynamics by the fastest way that the program offers on one thread, from the
same frame at 300 K, 0.5 fs: ``dcase bench`` for dcase, the program's calculator in ASE's velocity
Verlet for the others (processor time). The fastest of some rounds counts, since a machine has other
work. dcase's compiled forms are built once per machine and kept; a first short training, which
counts for none, sees to that.

Every entry is a file in ``--out``; one that is there is not measured again (delete it for that), so
that a benchmark that was stopped goes on. ``frontier_results.py`` makes the picture and the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from common import PEERS, load, machine

from dcase.data.splits import split
from dcase.files import read_json, write_json
from dcase.md_runs.loop.mechanics import draw_momenta

N_TRAIN, N_VAL, SEED = 950, 50, 0  # seed: dcase train's own
TIMESTEP, TEMPERATURE = 0.5, 300.0  # fs, K
STEPS, ROUNDS = 40, 5  # of a peer's dynamics
OWN_STEPS, OWN_ROUNDS = 500, 20  # of dcase bench
BUDGETS = (20.0, 60.0, 180.0)  # CPU s


@dataclass(frozen=True)
class Program:
    """Who takes part.

    Attributes:
        network: As the program or its script calls it.
        peer: ``make peer-PEER`` makes its environment, ``peers/PEER_train.py`` is its script; "":
            dcase itself.
    """

    network: str
    peer: str = ""

    @property
    def python(self) -> Path:
        """Of its environment."""
        if not self.peer:
            return Path(sys.executable)
        return PEERS / f".venv-{self.peer}" / "bin" / "python"


PROGRAMS = {
    "dcase:schnet": Program("schnet"),
    "dcase:painn": Program("painn"),
    "sgdml": Program("sgdml", "sgdml"),
    "schnetpack:schnet": Program("schnet", "schnetpack"),
    "schnetpack:painn": Program("painn", "schnetpack"),
    "schnetpack:painn-64": Program("painn-64", "schnetpack"),
    "mace:32x0e": Program("32x0e", "mace"),
    "mace:128x0e+128x1o": Program("128x0e+128x1o", "mace"),
}
LARGE_OR_SMALL = ("schnetpack:painn-64", "mace:128x0e+128x1o")  # on request
USUAL = tuple(name for name in PROGRAMS if name not in LARGE_OR_SMALL)


@dataclass(frozen=True)
class Entry:
    """A program and what it may take (CPU s)."""

    program: str
    budget: float

    @property
    def name(self) -> str:
        """Of its file, without an ending."""
        return f"{self.program.replace(':', '-')}-{self.budget:g}s"


class Failed(Exception):
    """A process of an entry ended with an error."""


def grid(programs: list[str], budgets: list[float]) -> list[Entry]:
    """Small budgets first, so that a benchmark that is stopped has something of everybody."""
    return [Entry(program, budget) for budget in sorted(budgets) for program in programs]


def pending(entries: list[Entry], folder: Path, about: dict[str, Any]) -> list[Entry]:
    """Those that are not measured yet.

    Raises:
        SystemExit: If the folder holds an entry of other frames.
    """
    left = []
    for entry in entries:
        path = folder / f"{entry.name}.json"
        if not path.exists():
            left.append(entry)
        elif (measured := read_json(path)["about"]) != about:
            raise SystemExit(f"{path} is of other frames ({measured}): take another --out")
    return left


def mean_errors(
    energies: np.ndarray, forces: np.ndarray, frames: dict[str, np.ndarray]
) -> dict[str, float]:
    """Mean absolute errors on the test frames, kcal/mol and kcal/mol/A.

    Raises:
        Failed: If there is not one number for each label, or one is not finite.
    """
    found = {}
    for name, values in (("energy", energies), ("forces", forces)):
        labels = frames["test_energies" if name == "energy" else "test_forces"]
        if values.shape != labels.shape or not np.isfinite(values).all():
            raise Failed(f"{name}: shape {values.shape} for {labels.shape}, or not finite")
        found[f"{name}_mae"] = float(np.abs(values - labels).mean())
    return found


def prepared(train: Path, test: Path) -> dict[str, np.ndarray]:
    """What all programs get; the keys are those of ``peers/contest.py``."""
    with np.load(train) as a, np.load(test) as b:
        first, second = ({name: file[name] for name in file.files} for file in (a, b))
    parts = split(len(first["coords"]), N_TRAIN, N_VAL, SEED)
    chosen = {
        "train": (first, parts.train),
        "val": (first, parts.val),
        "test": (second, np.arange(len(second["coords"]))),
    }
    atoms = Atoms(numbers=first["nuclear_charges"], positions=second["coords"][0])
    draw_momenta(atoms, TEMPERATURE, np.random.default_rng(SEED))
    found = {
        "numbers": first["nuclear_charges"].astype(np.int64),
        "start_positions": atoms.get_positions(),
        "start_momenta": atoms.get_momenta(),
    }
    for part, (file, index) in chosen.items():
        for key, theirs in (
            ("positions", "coords"),
            ("energies", "old_energies"),
            ("forces", "old_forces"),
        ):
            found[f"{part}_{key}"] = file[theirs][index]
    return found


def run(command: list[str | Path], log: Path) -> float:
    """CPU seconds of a process with one thread, and of its children that it waited for.

    Raises:
        Failed: If it ends with an error; the end of what it wrote.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with log.open("a") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **threads}
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
    if child.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise Failed(f"{command[1]} ... ended with {child.returncode}; {log} ends:\n{last}")
    return usage.ru_utime + usage.ru_stime


def dcase_train(network: str, source: Path, molecule: str, budget: float, out: Path) -> list[Any]:
    """The command of a training, as a user gives it."""
    options = ["-m", molecule, "--source", source, "--labels", "md17", "--model", network]
    counts = ["--n-train", str(N_TRAIN), "--n-val", str(N_VAL), "--cpu-limit", f"{budget:g}"]
    command = [sys.executable, "-m", "dcase", "train", "md17"]
    return [*command, *options, *counts, "--threads", "1", "--out", out, "--overwrite"]


def measure_dcase(entry: Entry, frames: Path, options: argparse.Namespace, log: Path) -> Any:
    """CPU seconds, errors and steps of an entry of dcase's; all by its commands."""
    folder = frames.parent
    model, network = folder / "model.pt", PROGRAMS[entry.program].network
    train, molecule = options.train, options.molecule
    # Builds the compiled forms where this machine has none yet.
    run(dcase_train(network, train, molecule, 2, folder / "first.pt"), folder / "first.log")
    cpu = run(dcase_train(network, train, molecule, entry.budget, model), log)
    with np.load(frames) as file:
        start = Atoms(numbers=file["numbers"], positions=file["start_positions"])
    ase.io.write(folder / "start.xyz", start)
    one = ["--threads", "1", "--json"]
    tested, timed = folder / "tested.json", folder / "timed.json"
    dcase: list[str | Path] = [sys.executable, "-m", "dcase"]
    run([*dcase, "evaluate", model, options.test, "--labels", "md17", *one, tested], log)
    steps = ["--timestep", str(TIMESTEP), "--temperature", str(TEMPERATURE)]
    steps += ["--steps", str(OWN_STEPS), "--rounds", str(OWN_ROUNDS)]
    run([*dcase, "bench", model, folder / "start.xyz", *steps, *one, timed], log)
    metrics, bench = read_json(tested), read_json(timed)
    metrics = metrics.get("metrics", metrics)
    return {
        "cpu_s": cpu,
        "energy_mae": metrics["energy_mae_kcal_mol"],
        "forces_mae": metrics["forces_mae_kcal_mol_angstrom"],
        "step_ms": min(bench["timing"]["rounds_ms"]),
        "words": "dcase md's own loop, float32",
    }


def measure_peer(entry: Entry, frames: Path, options: argparse.Namespace, log: Path) -> Any:
    """CPU seconds, errors and steps of an entry of another program's."""
    program = PROGRAMS[entry.program]
    model, tested = frames.parent / "model", frames.parent / "tested.npz"
    script: list[str | Path] = [program.python, PEERS / f"{program.peer}_train.py"]
    about = {"network": program.network, "cpu_s": entry.budget}
    cpu = run([*script, "fit", frames, model, json.dumps(about)], log)
    about = {**about, "timestep": TIMESTEP, "steps": STEPS, "rounds": ROUNDS}
    run([*script, "test", frames, model, json.dumps(about), tested], log)
    with np.load(tested) as found, np.load(frames) as known:
        return {
            "cpu_s": cpu,
            **mean_errors(found["energies"], found["forces"], dict(known)),
            "step_ms": float(found["step_s"].min()) * 1e3,
            "parameters": int(found["parameters"]),
            "words": str(found["words"]),
        }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True, metavar="FILE")
    parser.add_argument("--test", type=Path, required=True, metavar="FILE")
    parser.add_argument("--molecule", default="aspirin", help="what the files hold")
    parser.add_argument(
        "--only", nargs="+", default=list(USUAL), metavar="PROGRAM", help=", ".join(PROGRAMS)
    )
    parser.add_argument(
        "--budgets", nargs="+", type=float, default=list(BUDGETS), help="CPU seconds"
    )
    parser.add_argument("--out", type=Path, default=Path("frontier"), help="folder of the entries")
    options = parser.parse_args()
    if unknown := [name for name in options.only if name not in PROGRAMS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(PROGRAMS)}")
    if min(options.budgets) <= 0:
        parser.error("--budgets must be positive")
    for path in (options.train, options.test):
        if not path.is_file():
            parser.error(f"no file {path}")
    for name in options.only:
        if not PROGRAMS[name].python.exists():
            parser.error(f"{name} needs its own environment: make peer-{PROGRAMS[name].peer}")
    return options


def main() -> None:
    """Measure what is not there yet, one entry after the other."""
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    about = {
        "molecule": options.molecule,
        "train": options.train.name,
        "test": options.test.name,
        "n_train": N_TRAIN,
        "n_val": N_VAL,
    }
    entries = grid(options.only, options.budgets)
    left = pending(entries, options.out, about)
    print(f"{len(entries)} entries, {len(entries) - len(left)} of them measured before")
    failed = []
    for entry in left:
        log = options.out / f"{entry.name}.log"
        log.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            frames = Path(folder) / "frames.npz"
            np.savez(frames, **prepared(options.train, options.test))  # type: ignore[arg-type]
            measure = measure_peer if PROGRAMS[entry.program].peer else measure_dcase
            before = load()
            try:
                found = measure(entry, frames, options, log)
            except Failed as error:
                print(f"{entry.name}: {error}", file=sys.stderr, flush=True)
                failed.append(entry.name)
                continue
        facts = {**machine(), "load": f"{before}, {load()}"}
        row = {**dataclasses.asdict(entry), **found, "about": about, **facts}
        write_json(options.out / f"{entry.name}.json", row)
        print(
            f"{entry.name}: {found['cpu_s']:.1f} CPU s, energy {found['energy_mae']:.3f} kcal/mol, "
            f"forces {found['forces_mae']:.3f} kcal/mol/A, {found['step_ms']:.3g} ms a step",
            flush=True,
        )
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}; the same command tries them again")


if __name__ == "__main__":
    main()
