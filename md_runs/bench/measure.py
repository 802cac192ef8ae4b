"""How fast simulations are on this machine, and where the time of a step goes.

What is timed is the engine of ``run_md`` itself, recording and checkpoints as by default, in a
temporary folder. Methods of the objects that take part are timed one by one
(:mod:`dcase.md_runs.bench.stopwatch`), so that the parts of a step add up to the step.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ase import Atoms

from dcase.errors import OptionError
from dcase.md_runs.bench.machine import busy, machine
from dcase.md_runs.bench.rounds import OneCopy, Replicas, Rounds, WholeRun
from dcase.md_runs.bench.stopwatch import PARTS
from dcase.md_runs.files.provenance import describe_calculator
from dcase.md_runs.settings import MDSettings
from dcase.potentials.calculator import DCCalculator

FORMAT = 1
"""Of :meth:`BenchResult.to_dict`."""
MS_PER_DAY = 86_400e3


@dataclass(frozen=True)
class Timing:
    """Of one form of the potential.

    Attributes:
        potential: ``"compiled"`` or ``"PyTorch"``.
        loop: ``"compiled"``, ``"CUDA graph"``, ``"ASE"`` or, of replicas, ``"batch"``: who does the
            steps. The parts of a CUDA graph are not told apart: all of it counts as ``model``.
        steps: Of each round.
        rounds_ms: Milliseconds a step, of each round.
        ms_per_step: Their median. With replicas, a step is one of all of them.
        parts_ms: Milliseconds a step in ``neighbours`` (search, selection, layout), ``model``,
            ``integrator`` (with the watch over every step, and ASE where it does the steps) and
            ``io`` (rows, checkpoints). They add up to ``ms_per_step``.
        parts_percent: The same in per cent of a step.
        steps_per_search: Steps between searches for neighbours; None if there was none.
        ns_per_day: Of all replicas together.
        steps_per_s: Of all replicas together.
        atom_steps_per_s: Atoms times steps, of all replicas together.
        timers_percent: What timing the parts has added to a step, at most.
        whole_run: A run with everything it has.
    """

    potential: str
    loop: str
    steps: int
    rounds_ms: tuple[float, ...]
    ms_per_step: float
    parts_ms: dict[str, float]
    parts_percent: dict[str, float]
    steps_per_search: float | None
    ns_per_day: float
    steps_per_s: float
    atom_steps_per_s: float
    timers_percent: float
    whole_run: WholeRun


@dataclass(frozen=True)
class BenchResult:
    """What :func:`bench_md` has measured.

    Attributes:
        machine: See :func:`dcase.md_runs.bench.machine.machine`.
        system: ``formula``, ``n_atoms``, ``n_pairs`` (within the cutoff), ``cutoff_A``,
            ``periodic`` (three truth values), ``replicas`` (None: a single copy).
        settings: ``model``, ``level_of_theory``, ``dtype``, ``device``, ``timestep_fs``,
            ``temperature_K``, ``rounds``, ``seed``.
        timing: Of the potential as its calculator evaluates it.
        plain: Of the same weights in PyTorch, if they were to be compared.
        warnings: One line each.
    """

    machine: dict[str, Any]
    system: dict[str, Any]
    settings: dict[str, Any]
    timing: Timing
    plain: Timing | None
    warnings: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """How many times longer a step takes in PyTorch; None if that was not measured."""
        return self.plain.ms_per_step / self.timing.ms_per_step if self.plain else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, with the number of this format."""
        return {"format": FORMAT, **asdict(self), "ratio": self.ratio}


def bench_md(
    atoms: Atoms,
    *,
    steps: int | None = None,
    rounds: int = 5,
    replicas: int | None = None,
    compare: bool = False,
    timestep_fs: float = 0.5,
    temperature_K: float = 300.0,
    seed: int = 0,
) -> BenchResult:
    """Time molecular dynamics of ``atoms``: NVE, everything else as ``run_md`` does it by default.

    First comes a whole run with equilibration, then rounds of steps from where it ended; with
    ``compare``, rounds of both forms in turn, from the same state. The temporary folder is gone
    afterwards, also after an error or Ctrl-C.

    Args:
        atoms: With a calculator of dcase; left as they are.
        steps: Of a round; None: as many as take about a second.
        rounds: At least 1.
        replicas: So many copies in one batch; None: a single copy, as usual.
        compare: Also time the same weights in PyTorch (``optimize=False``).
        timestep_fs: fs.
        temperature_K: Of the first momenta and of the equilibration, K.
        seed: Of everything random.

    Raises:
        OptionError: If an option makes no sense, the calculator is none of dcase's, or there is no
            compiled form to compare with.
        SimulationError: If a run blows up, or the time step is past the stability limit.
        DCCalculatorError: If the potential cannot evaluate the structure.
        KeyboardInterrupt: At Ctrl-C.
    """
    for name, value in (("steps", steps), ("rounds", rounds), ("replicas", replicas)):
        if value is not None and (isinstance(value, bool) or value != int(value) or value < 1):
            raise OptionError(f"{name} must be a whole number >= 1, not {value!r}")
    calculator: Any = atoms.calc
    if not isinstance(calculator, DCCalculator):
        raise OptionError("bench_md needs a potential of dcase: set atoms.calc = DCCalculator(...)")
    settings = MDSettings(
        timestep_fs=timestep_fs, temperature_K=temperature_K, seed=seed, equilibrate=0
    )
    facts = machine(calculator.device)  # before this program adds to the load
    calculators = [calculator, *([_plain(calculator)] if compare else [])]
    system = _system(atoms, calculator, replicas)
    notes = [text for text in (busy(facts),) if text]
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dcase-bench-")))
        subjects: list[Rounds] = []
        for number, one in enumerate(calculators):
            copy = atoms.copy()
            copy.calc = one
            folder = root / str(number)
            subject: Rounds = (
                OneCopy(copy, settings, folder, notes)
                if replicas is None
                else Replicas(copy, settings, folder, notes, replicas)
            )
            stack.callback(subject.close)
            subject.prepare(steps)
            subjects.append(subject)
        for subject in subjects:
            subject.origin = subjects[0].origin
            subject.rewind()
            subject.watch(stack)
        for _ in range(rounds):
            for subject in subjects:
                subject.round()
        timing, *plain = [_timing(subject, timestep_fs, replicas or 1) for subject in subjects]
    return BenchResult(
        machine=facts,
        system=system,
        settings={
            **describe_calculator(calculator),
            "timestep_fs": timestep_fs,
            "temperature_K": temperature_K,
            "rounds": rounds,
            "seed": seed,
        },
        timing=timing,
        plain=plain[0] if plain else None,
        warnings=tuple(dict.fromkeys(notes)),  # both forms may say the same
    )


def _timing(rounds: Rounds, timestep_fs: float, copies: int) -> Timing:
    total, done = sum(rounds.rounds_s), rounds.steps * len(rounds.rounds_s)
    rounds_ms = tuple(1e3 * seconds / rounds.steps for seconds in rounds.rounds_s)
    step = median(rounds_ms)
    watch = rounds.stopwatch
    shares = {part: watch.seconds[part] / total for part in PARTS}
    return Timing(
        potential=rounds.potential,
        loop=rounds.loop,
        steps=rounds.steps,
        rounds_ms=rounds_ms,
        ms_per_step=step,
        parts_ms={part: share * step for part, share in shares.items()},
        parts_percent={part: 100.0 * share for part, share in shares.items()},
        steps_per_search=done * copies / rounds.searches if rounds.searches else None,
        ns_per_day=copies * timestep_fs * 1e-6 * MS_PER_DAY / step,
        steps_per_s=copies * 1e3 / step,
        atom_steps_per_s=copies * len(rounds.atoms) * 1e3 / step,
        timers_percent=100.0 * watch.cost_per_call() * watch.calls / total,
        whole_run=rounds.whole,
    )


def _plain(calculator: DCCalculator) -> DCCalculator:
    """The same weights in PyTorch."""
    if calculator.deployed is None:
        raise OptionError(f"there is no compiled form to compare with: {calculator.form}")
    return DCCalculator(
        calculator.potential,
        device=calculator.device,
        dtype=calculator.dtype,
        skin=calculator.skin,
        allow_isolated=calculator.allow_isolated,
        optimize=False,
    )


def _system(atoms: Atoms, calculator: DCCalculator, replicas: int | None) -> dict[str, Any]:
    copy = atoms.copy()
    copy.calc = calculator
    copy.get_potential_energy()  # what the potential refuses is refused here
    return {
        "formula": atoms.get_chemical_formula(),
        "n_atoms": len(atoms),
        "n_pairs": int(calculator.neighbour_list(copy).graph(copy).pairs.shape[1]),
        "cutoff_A": float(calculator.potential.cutoff),
        "periodic": [bool(value) for value in atoms.pbc],
        "replicas": replicas,
    }
