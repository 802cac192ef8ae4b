"""Time and memory of a force call per atom, from molecules to 100 000 atoms.

    python benchmarks/system_size.py
    python benchmarks/system_size.py --atoms 21 1000 100000 --forms compiled --out results

Periodic boxes of H, C, N and O at a constant density, atoms on a jittered lattice in random order
(``--order lattice``: neighbours in space are near in memory), SchNet of size md17 (64 features, 3
interactions, 5 A), through dcase's calculator. Every size and form runs in a process of its own:

* force call: median of calls with positions that move a little, so that the neighbour list (skin
  0.5 A) lasts, as it does in most steps of a simulation;
* neighbours: a search for pairs up to cutoff + skin, which a simulation makes every 10 to 50 steps;
* memory: the largest resident memory of the process, less what it held before the first call (by
  then it has evaluated a box of 50 atoms); the search is included. Less than 1 MB is not shown.

PyTorch's way (``eager``) is left out from the size on for which, by the size before, memory would
not do. Writes system_size.csv, .json and .png with ``--out``.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from common import load, machine, write_results

from dcase.plotting import BLUE, GREEN, ORANGE, new_figure, save
from dcase.potentials.calculator import DTYPES, DCCalculator
from dcase.potentials.graphs.graph import build_graph
from dcase.potentials.networks.registry import create_potential

DENSITY = 0.1  # atoms/A^3, as of water or an organic crystal
JITTER = 0.12  # of the lattice's spacing
MOVE = 0.01  # A
SKIN = 0.5  # A
SHARE = 0.6  # of the memory that is free, which PyTorch's way may be expected to take
FORMS = {"compiled": True, "eager": False}
LEAST_GROWTH = 1 << 20  # bytes; less says nothing about the system


def box(n_atoms: int, order: str, seed: int = 0) -> Atoms:
    """A periodic cube of random elements on a jittered lattice, some of its sites empty.

    Args:
        n_atoms: As many.
        order: ``"random"`` or ``"lattice"``.
        seed: Of everything random.
    """
    rng = np.random.default_rng(seed)
    side = round((n_atoms / DENSITY) ** (1 / 3), 6)
    sites = int(np.ceil(round(n_atoms ** (1 / 3), 6)))
    taken = rng.permutation(sites**3)[:n_atoms]
    if order == "lattice":
        taken.sort()
    lattice = np.stack(np.unravel_index(taken, (sites,) * 3), axis=1)
    positions = (lattice + rng.uniform(-JITTER, JITTER, (n_atoms, 3))) * (side / sites)
    numbers = rng.choice([1, 6, 7, 8], size=n_atoms, p=[0.5, 0.3, 0.1, 0.1])
    return Atoms(numbers=numbers, positions=positions, cell=[side] * 3, pbc=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One size in one form, in this process."""
    torch.set_num_threads(options.threads)
    potential = create_potential("schnet", elements="HCNO", size="md17", filter_knots=128).eval()
    calculator = DCCalculator(
        potential,
        device="cpu",
        dtype=options.dtype,
        skin=SKIN,
        allow_isolated=True,
        optimize=FORMS[options.only],
    )
    small = box(50, options.order)  # loads and compiles what is needed whatever the size
    small.calc = calculator
    small.get_forces()
    build_graph(small.numbers, small.positions, calculator.potential.cutoff, small.cell, small.pbc)
    atoms = box(options.atoms[0], options.order)
    atoms.calc = calculator
    before = _resident()
    begun = time.perf_counter()
    atoms.get_forces()
    first = time.perf_counter() - begun
    rng, times = np.random.default_rng(1), []
    start = atoms.get_positions()
    while len(times) < options.calls and (len(times) < 3 or sum(times) < options.seconds):
        atoms.set_positions(start + rng.uniform(-MOVE, MOVE, start.shape))
        begun = time.perf_counter()
        atoms.get_forces()
        times.append(time.perf_counter() - begun)
    grown = _peak() - before
    call = statistics.median(times)
    searches = []
    for _ in range(3):
        begun = time.perf_counter()
        cutoff = calculator.potential.cutoff + SKIN
        graph = build_graph(atoms.numbers, atoms.positions, cutoff, atoms.cell.array, atoms.pbc)
        searches.append(time.perf_counter() - begun)
    n = len(atoms)
    return {
        "atoms": n,
        "form": options.only,
        "pairs_per_atom": round(graph.pairs.shape[1] / n, 2),
        "call_ms": round(call * 1e3, 4),
        "call_us_per_atom": round(call / n * 1e6, 4),
        "neighbours_us_per_atom": round(statistics.median(searches) / n * 1e6, 4),
        "first_call_us_per_atom": round(first / n * 1e6, 4),
        "memory_kB_per_atom": round(grown / n / 1e3, 4) if grown >= LEAST_GROWTH else None,
        "calls": len(times),
    }


def _peak() -> int:
    """Largest resident memory of this process so far, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident() -> int:
    """Resident memory of this process now, bytes; its peak so far where that is not told."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return _peak()
    return int(pages) * resource.getpagesize()


def _free() -> int:
    """Memory that programs can still have, bytes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 8 << 30
    return next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable")) * 1024


def sweep(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sizes and forms, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    for form in options.forms:
        known: float | None = None  # bytes per atom
        for n in sorted(options.atoms):
            if form == "eager" and known is not None and n * known > SHARE * _free():
                print(
                    f"eager, {n} atoms: left out, it would take about {n * known / 1e9:.0f} GB of "
                    f"the {_free() / 1e9:.0f} GB that are free"
                )
                continue
            arguments = [str(n), "--only", form, "--threads", options.threads]
            arguments += ["--order", options.order, "--dtype", options.dtype]
            arguments += ["--calls", options.calls, "--seconds", options.seconds]
            done = subprocess.run(
                [sys.executable, __file__, "--atoms", *map(str, arguments)],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                print(f"{form}, {n} atoms: failed ({done.returncode}), see above")
                continue
            row = json.loads(done.stdout)
            memory = row["memory_kB_per_atom"]
            known = known if memory is None else memory * 1e3
            rows.append(row)
            _print(row)
    return rows


def _print(row: dict[str, Any]) -> None:
    memory = row["memory_kB_per_atom"]
    print(
        f"{row['form']:9} {row['atoms']:>8,} {row['pairs_per_atom']:6.1f}"
        f" {row['call_ms']:>11.2f} {row['call_us_per_atom']:>11.2f}"
        f" {row['neighbours_us_per_atom']:>11.2f}"
        f" {'-' if memory is None else f'{memory:.2f}':>10}",
        flush=True,
    )


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory per atom against the number of atoms."""
    figure, (time_axes, memory_axes) = new_figure(1, 2, size=(8.4, 3.6))
    for form, colour, mark in (("compiled", BLUE, "o"), ("eager", ORANGE, "s")):
        mine = [row for row in rows if row["form"] == form]
        if not mine:
            continue
        n = [row["atoms"] for row in mine]
        label = "force call, compiled" if form == "compiled" else "force call, PyTorch"
        style: dict[str, Any] = {"color": colour, "marker": mark, "label": label}
        time_axes.plot(n, [row["call_us_per_atom"] for row in mine], **style)
        seen = [row for row in mine if row["memory_kB_per_atom"] is not None]
        memory_axes.plot(
            [row["atoms"] for row in seen], [row["memory_kB_per_atom"] for row in seen], **style
        )
    first = [row for row in rows if row["form"] == rows[0]["form"]]
    time_axes.plot(
        [row["atoms"] for row in first],
        [row["neighbours_us_per_atom"] for row in first],
        color=GREEN,
        marker="^",
        linestyle="--",
        label="search for neighbours",
    )
    for axes, what in ((time_axes, "time, µs/atom"), (memory_axes, "peak memory, kB/atom")):
        axes.set(xscale="log", yscale="log", xlabel="atoms", ylabel=what)
        low, high = axes.get_ylim()
        axes.set_ylim(low / 2, high * 2)
    time_axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--atoms", type=int, nargs="+", default=[21, 100, 1000, 10_000, 100_000])
    parser.add_argument("--forms", nargs="+", choices=tuple(FORMS), default=tuple(FORMS))
    parser.add_argument("--order", choices=("random", "lattice"), default="random")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=50, help="at most")
    parser.add_argument("--seconds", type=float, default=10.0, help="of calls, for each size")
    parser.add_argument("--only", choices=tuple(FORMS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="folder for system_size.csv, .json and .png")
    options = parser.parse_args()
    if min(options.atoms) < 2 or options.calls < 3:
        parser.error("--atoms must be at least 2, --calls at least 3")
    if options.only:  # a process of the sweep
        print(json.dumps(measure(options)))
        return
    before = load()
    print("; ".join(f"{name}: {value}" for name, value in machine().items()))
    print(f"threads: {options.threads}; {options.dtype}; {options.order} order of atoms")
    print(f"{'':9} {'':>8} {'pairs':>6} {'':>11} {'call':>11} {'search':>11} {'memory':>10}")
    print(
        f"{'':9} {'atoms':>8} {'/atom':>6} {'call ms':>11} {'us/atom':>11} {'us/atom':>11}"
        f" {'kB/atom':>10}"
    )
    rows = sweep(options)
    print(f"load before and after: {before}, {load()}")
    if options.out and rows:
        about = {k: str(v) for k, v in vars(options).items() if k not in ("out", "only")}
        about |= {"load": f"{before}, {load()}", "atoms_per_A3": str(DENSITY)}
        write_results(options.out, "system_size", rows, about)
        picture(rows, options.out / "system_size.png")


if __name__ == "__main__":
    main()
