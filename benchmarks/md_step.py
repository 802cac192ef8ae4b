"""Time of a step of molecular dynamics of aspirin, and of a force call, beside other programs.

    python benchmarks/md_step.py schnet schnet:eager schnetpack:schnet products ase
    python benchmarks/md_step.py schnet schnetpack:schnet --hidden 128 --layers 6 --gaussians 50
    python benchmarks/md_step.py gemnet-t gemnet-t:eager --threads 2 --out benchmarks/results

Contestants (A is any architecture of the registry):

    A                  dcase's calculator in ASE's velocity Verlet, compiled where that is possible
    A:eager            the same weights in PyTorch (optimize=False)
    A:exact            (schnet, painn) the same without splines for the filters, in PyTorch
    A:tabulated        these in the compiled form (optimize=True)
    schnet:dcase-md    dcase's own run (dcase md), all records included; :eager as above
    schnetpack:A       SchNetPack's calculator in ASE's velocity Verlet, with the weights of
                       A:exact, in its own environment (make peer-schnetpack)
    products           the matrix products of the same SchNet's nodes for energy and forces alone,
                       by torch.mm: the arithmetic of it
    ase                ASE's velocity Verlet with a calculator that returns zeros

Every turn of a contestant begins at the same positions and momenta (300 K, 0.5 fs) and takes
``--steps`` steps, then as many force calls. Turns are interleaved, so that a change of the
machine's speed meets every contestant alike; the median of the rounds counts, the first round
warms up.

All SchNets are the shipped aspirin potential, set into a larger network where --hidden, --layers or
--gaussians ask for more (widened.py), so that the molecule moves as aspirin does. Where it does not
fit (smaller sizes, another activation or cutoff) and for the other architectures weights are random
and their energies scaled down, so that atoms move freely, by less than an Angstrom in a turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from common import Peer, load, machine, write_results
from peers.ase_turns import Dynamics, Turn
from widened import widened

from dcase.data.molecules import structure
from dcase.md_runs.loop.mechanics import draw_momenta
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import run_md
from dcase.potentials.calculator import DTYPES, DCCalculator
from dcase.potentials.networks.registry import (
    ARCHITECTURES,
    create_potential,
    resolve_hyper_parameters,
)
from dcase.potentials.potential import Potential
from dcase.rescaling import LabelScale

TIMESTEP, TEMPERATURE = 0.5, 300.0  # fs, K
SPLINED = ("schnet", "painn")  # have filter_knots
KNOTS = 128  # the default recipe's filter_knots
FREE_FORCE = 1e-3  # eV/A; largest of an untrained potential, which so lets atoms move freely
OWN_STEPS = 500  # of a run of dcase md, at least
Take = Callable[[], Turn]


@dataclass(frozen=True)
class Setting:
    """What all contestants share."""

    size: str
    overrides: dict[str, Any]
    activation: str
    dtype: str
    steps: int
    seed: int

    def atoms(self) -> Atoms:
        """Aspirin with momenta, the same for all."""
        atoms = structure("aspirin")
        draw_momenta(atoms, TEMPERATURE, np.random.default_rng(self.seed))
        return atoms

    def chosen(self, architecture: str) -> dict[str, Any]:
        """Hyper-parameters besides the preset's; the sizes asked for are SchNet's alone."""
        own = self.overrides if architecture == "schnet" else {}
        return {"activation": self.activation, **own}

    def hyper_parameters(self, architecture: str) -> dict[str, Any]:
        """All hyper-parameters."""
        return resolve_hyper_parameters(architecture, self.size, self.chosen(architecture))

    def potential(self, architecture: str, knots: int = KNOTS) -> tuple[Potential, bool]:
        """The same weights at every call; and whether they are trained ones."""
        own = self.chosen(architecture)
        if architecture in SPLINED:
            own["filter_knots"] = knots
        found = (
            widened(self.hyper_parameters("schnet"), knots) if architecture == "schnet" else None
        )
        if found:
            return found, True
        elements = sorted(set(self.atoms().symbols))
        potential = create_potential(architecture, elements=elements, size=self.size, **own).eval()
        atoms = self.atoms()
        atoms.calc = DCCalculator(potential, optimize=False)
        largest = float(np.abs(atoms.get_forces()).max())
        potential.set_scale(LabelScale(FREE_FORCE / largest))
        return potential, False


def in_ase(setting: Setting, calculator: Calculator) -> Take:
    """ASE's velocity Verlet with this calculator."""
    atoms = setting.atoms()
    atoms.calc = calculator
    return Dynamics(atoms, setting.steps, TIMESTEP).turn


def dcase_calculator(
    architecture: str, optimize: bool | None = None, knots: int = KNOTS
) -> Callable[[Setting], Take]:
    """A calculator of dcase's."""

    def prepare(setting: Setting) -> Take:
        potential, _ = setting.potential(architecture, knots)
        calculator = DCCalculator(potential, device="cpu", dtype=setting.dtype, optimize=optimize)
        return in_ase(setting, calculator)

    return prepare


def dcase_md(optimize: bool | None = None) -> Callable[[Setting], Take]:
    """A run of dcase's into a folder, every step recorded, as ``dcase md`` does it."""

    def prepare(setting: Setting) -> Take:
        potential, trained = setting.potential("schnet")
        if not trained:
            raise SystemExit(
                "schnet:dcase-md needs a molecule that holds together: the shipped potential's "
                "activation and cutoff, and at least its sizes"
            )
        atoms = setting.atoms()
        atoms.calc = DCCalculator(potential, device="cpu", dtype=setting.dtype, optimize=optimize)
        settings = MDSettings(
            timestep_fs=TIMESTEP,
            temperature_K=TEMPERATURE,
            steps=max(OWN_STEPS, setting.steps),
            equilibrate=0,
            keep_momenta=True,
        )

        def turn() -> Turn:
            with tempfile.TemporaryDirectory() as folder:
                result = run_md(atoms, settings, Path(folder) / "run")
            if not result.finished:
                raise SystemExit(f"the run of dcase md {result.status}")
            return Turn(result.wall_time_s / result.steps, np.nan, np.nan)

        return turn

    return prepare


class Zeros(Calculator):
    """No forces: what is left is ASE."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = ()
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3))}


def products(setting: Setting) -> Take:
    """Products of [atoms, n] and [n, m] matrices only: forward, and backward to the positions."""
    h, n = setting.hyper_parameters("schnet"), len(setting.atoms())
    hidden, filters, layers = h["hidden_channels"], h["num_filters"], h["num_interactions"]
    half = hidden // 2
    layer = [(hidden, filters), (filters, hidden), (hidden, hidden)]
    forward = [*layer * layers, (hidden, half)]
    back = [(m, k) for k, m in reversed(forward)][:-1]  # the embedding is a constant
    generator = torch.Generator().manual_seed(0)
    dtype = DTYPES[setting.dtype]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    work = [(random(n, k), random(k, m), torch.empty(n, m, dtype=dtype)) for k, m in forward + back]

    def turn() -> Turn:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(setting.steps):
            for a, b, c in work:
                torch.mm(a, b, out=c)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Turn(wall / setting.steps, cpu / setting.steps, wall / setting.steps)

    return turn


def schnetpack(architecture: str) -> Callable[[Setting], Take]:
    """SchNetPack's calculator, in a process of its own (peers/schnetpack_calculator.py)."""

    def prepare(setting: Setting) -> Take:
        name = f"schnetpack:{architecture}"
        atoms, (potential, _) = setting.atoms(), setting.potential(architecture, knots=0)
        atoms.calc = DCCalculator(potential, device="cpu", dtype=setting.dtype, optimize=False)
        options = {**setting.hyper_parameters(architecture), "architecture": architecture}
        options |= {"threads": torch.get_num_threads(), "dtype": setting.dtype}
        options |= {"steps": setting.steps, "timestep": TIMESTEP}
        weights = potential.network.state_dict()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "start.npz"
            np.savez(
                path,
                numbers=atoms.numbers,
                positions=atoms.positions,
                momenta=atoms.get_momenta(),
                forces=atoms.get_forces(),
                elements=np.array(potential.elements),
                scale=potential.scale.constant,
                **{f"weight:{key}": value.numpy() for key, value in weights.items()},
            )
            script = "schnetpack_calculator.py"
            peer = Peer(name, "schnetpack", script, path, json.dumps(options))
        _, neighbours, deviation = peer.first
        print(f"{name}: neighbours by {neighbours}; its forces are {architecture}:exact's up to "
              f"{float(deviation):.1e} eV/A")  # fmt: skip
        if not float(deviation) < 1e-3 * float(np.abs(atoms.get_forces()).max()):
            raise SystemExit(f"{name} does not compute the same forces")
        return lambda: Turn(*peer.ask("turn"))

    return prepare


CONTESTANTS: dict[str, Callable[[Setting], Take]] = {
    **{name: dcase_calculator(name) for name in ARCHITECTURES},
    **{f"{name}:eager": dcase_calculator(name, False) for name in ARCHITECTURES},
    **{f"{name}:exact": dcase_calculator(name, False, knots=0) for name in SPLINED},
    **{f"{name}:tabulated": dcase_calculator(name, True, knots=0) for name in SPLINED},
    "schnet:dcase-md": dcase_md(),
    "schnet:dcase-md:eager": dcase_md(False),
    **{f"schnetpack:{name}": schnetpack(name) for name in SPLINED},
    "products": products,
    "ase": lambda setting: in_ase(setting, Zeros()),
}


def measure(contestants: dict[str, Take], rounds: int) -> list[dict[str, Any]]:
    """Interleaved medians, one row a contestant, ms; what does not apply is None."""
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    for count in range(rounds + 1):
        for name, take in contestants.items():
            turn = take()
            if count:  # the first round warms up
                turns[name].append(turn)
    rows: list[dict[str, Any]] = []
    for name, taken in turns.items():
        steps = [turn.step for turn in taken]
        row = {
            "name": name,
            "step_ms": _ms(statistics.median(steps)),
            "fastest_ms": _ms(min(steps)),
            "slowest_ms": _ms(max(steps)),
            "cpu_ms": _ms(statistics.median(turn.step_cpu for turn in taken)),
            "force_call_ms": _ms(statistics.median(turn.force for turn in taken)),
        }
        rows.append({**row, "ratio": round(row["step_ms"] / (rows or [row])[0]["step_ms"], 3)})
    return rows


def _ms(seconds: float) -> Any:
    return None if np.isnan(seconds) else round(seconds * 1e3, 4)


def _cell(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.3f}"


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--size", default="md17", help="preset of the architectures")
    parser.add_argument("--hidden", type=int, help="SchNet: features, and filters")
    parser.add_argument("--layers", type=int, help="SchNet: interaction blocks")
    parser.add_argument("--gaussians", type=int, help="SchNet")
    parser.add_argument("--cutoff", type=float, help="SchNet, A")
    parser.add_argument("--activation", default="irelu")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40, help="of a turn")
    parser.add_argument("--seed", type=int, default=0, help="of the momenta")
    parser.add_argument("--out", type=Path, help="folder for md_step.csv and .json")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in CONTESTANTS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(CONTESTANTS)}")
    if options.rounds < 1 or options.steps < 1:
        parser.error("--rounds and --steps must be at least 1")
    torch.set_num_threads(options.threads)
    sizes = {
        "hidden_channels": options.hidden,
        "num_filters": options.hidden,
        "num_interactions": options.layers,
        "num_gaussians": options.gaussians,
        "cutoff": options.cutoff,
    }
    overrides = {name: value for name, value in sizes.items() if value is not None}
    setting = Setting(
        options.size, overrides, options.activation, options.dtype, options.steps, options.seed
    )
    before = load()
    rows = measure({name: CONTESTANTS[name](setting) for name in options.names}, options.rounds)
    facts = {
        **machine(),
        "threads": options.threads,
        "load before and after": f"{before}, {load()}",
    }
    print("; ".join(f"{name}: {value}" for name, value in facts.items()))
    print(f"aspirin, {options.dtype}, {TIMESTEP} fs, ms a step, medians of {options.rounds} rounds")
    print(f"{'':22}     step          range        processor  force call   ratio")
    for row in rows:
        print(
            f"{row['name']:22}{_cell(row['step_ms'])} {_cell(row['fastest_ms'])} -"
            f"{_cell(row['slowest_ms'])}  {_cell(row['cpu_ms'])}   {_cell(row['force_call_ms'])}"
            f"  {row['ratio']:6.2f}"
        )
    if options.out:
        about = {k: str(v) for k, v in vars(options).items() if k != "out"}
        write_results(
            options.out, "md_step", rows, {**about, "load": facts["load before and after"]}
        )


if __name__ == "__main__":
    main()
