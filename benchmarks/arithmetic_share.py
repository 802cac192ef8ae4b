"""How much faster a force call can get, and does: eager, compiled, and its matrix products alone.

    python benchmarks/arithmetic_share.py
    python benchmarks/arithmetic_share.py gemnet-t --threads 2 --out benchmarks/results

For every architecture, energy and forces of one aspirin molecule, random weights:

    eager      dcase's calculator with optimize=False: PyTorch and autograd
    compiled   the same weights with optimize=True
    products   the matrix products of the eager call alone (mm, addmm, bmm, baddbmm), recorded and
               taken again one after the other, by PyTorch, into memory that is there already

``eager / products`` bounds what can be gained without less arithmetic: the products would have to
cost all the time. Turns of the three are interleaved; medians of the rounds count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from common import load, machine, write_results
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dcase.data.molecules import structure
from dcase.errors import OptionError
from dcase.potentials.calculator import DTYPES, DCCalculator
from dcase.potentials.networks.registry import ARCHITECTURES, create_potential

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default: torch.mm,
    aten.addmm.default: torch.addmm,
    aten.bmm.default: torch.bmm,
    aten.baddbmm.default: torch.baddbmm,
}
STRETCH = 1e-4  # A; moves the atoms between calls, so that nothing is taken from memory
Call = Callable[[], Any]


class Products(TorchDispatchMode):
    """Records the matrix products of what runs inside.

    Attributes:
        calls: Operation, operands (with the layout they had), and room for the result.
        operations: Multiplications and additions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Tensor], dict[str, Any], Tensor]] = []
        self.operations = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let it happen, and remember it."""
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            operands = [torch.empty_strided(a.shape, a.stride(), dtype=a.dtype) for a in args]
            for operand, given in zip(operands, args, strict=True):
                operand.copy_(given)
            room = torch.empty_like(result)
            self.calls.append((PRODUCTS[func], operands, kwargs or {}, room))
            self.operations += 2 * result.numel() * args[-1].shape[-2]
        return result

    def replay(self) -> None:
        """All of them again."""
        for operation, operands, options, room in self.calls:
            operation(*operands, **options, out=room)


def force_call(atoms: Atoms, calculator: DCCalculator) -> Call:
    """Energy and forces, at positions that differ a little from call to call."""
    start = atoms.positions.copy()
    shifts = np.random.default_rng(0).normal(0, STRETCH, (16, *start.shape))
    turn = iter(range(10**9))

    def call() -> None:
        atoms.positions[:] = start + shifts[next(turn) % len(shifts)]
        calculator.calculate(atoms, ["energy", "forces"])

    return call


def contestants(
    architecture: str, size: str, activation: str, dtype: str
) -> tuple[dict[str, Call], float]:
    """What is timed, and the floating point operations of the products."""
    atoms = structure("aspirin")
    elements = sorted(set(atoms.symbols))
    options: dict[str, Any] = {"filter_knots": 128} if architecture == "schnet" else {}
    potential = create_potential(
        architecture, elements=elements, size=size, activation=activation, **options
    ).eval()
    calculators = {"eager": DCCalculator(potential, device="cpu", dtype=dtype, optimize=False)}
    try:
        calculators["compiled"] = DCCalculator(potential, device="cpu", dtype=dtype, optimize=True)
    except OptionError as error:
        print(f"{architecture} has no compiled form: {error}")
    calls = {name: force_call(atoms.copy(), each) for name, each in calculators.items()}
    calls["eager"]()
    recorded = Products()
    with recorded, torch.no_grad():
        calls["eager"]()
    return {**calls, "products": recorded.replay}, float(recorded.operations)


def measure(calls: dict[str, Call], rounds: int, seconds: float) -> dict[str, float]:
    """Median milliseconds a call; every round takes about ``seconds`` of each."""
    repeats = {}
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        repeats[name] = max(1, round(seconds / (time.perf_counter() - begin)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - begin) / repeats[name] * 1e3)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE", help=", ".join(ARCHITECTURES))
    parser.add_argument("--size", default="md17")
    parser.add_argument("--activation", default="irelu")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each in every round")
    parser.add_argument("--out", type=Path, help="folder for arithmetic_share.csv and .json")
    options = parser.parse_args()
    names = options.names or list(ARCHITECTURES)
    if unknown := [name for name in names if name not in ARCHITECTURES]:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(ARCHITECTURES)}")
    torch.set_num_threads(options.threads)
    before, rows = load(), []
    for name in names:
        calls, operations = contestants(name, options.size, options.activation, options.dtype)
        ms = measure(calls, options.rounds, options.seconds)
        compiled = ms.get("compiled", float("nan"))
        rows.append(
            {
                "architecture": name,
                "eager_ms": ms["eager"],
                "compiled_ms": compiled,
                "products_ms": ms["products"],
                "products_gflop": operations * 1e-9,
                "products_gflop_s": operations * 1e-6 / ms["products"],
                "gain": ms["eager"] / compiled,
                "gain_bound": ms["eager"] / ms["products"],
            }
        )
    facts = {
        **machine(),
        "threads": options.threads,
        "load before and after": f"{before}, {load()}",
    }
    print("; ".join(f"{name}: {value}" for name, value in facts.items()))
    print(
        f"aspirin, {options.size}, {options.activation}, {options.dtype}: ms a force call, medians "
        f"of {options.rounds} rounds"
    )
    print("| architecture | eager | compiled | products alone | GFLOP | GFLOP/s |", end="")
    print(" eager / compiled | eager / products |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row['architecture']} | {row['eager_ms']:.2f} | {row['compiled_ms']:.2f} | "
            f"{row['products_ms']:.2f} | {row['products_gflop']:.3f} | "
            f"{row['products_gflop_s']:.0f} | {row['gain']:.1f} | {row['gain_bound']:.1f} |"
        )
    if options.out:
        about = {k: str(v) for k, v in vars(options).items() if k != "out"}
        about["load"] = facts["load before and after"]
        write_results(options.out, "arithmetic_share", rows, about)


if __name__ == "__main__":
    main()
