"""Conformance checks: is this potential conservative, invariant, smooth and exactly differentiable?

The same suite runs on a user's model (``dcase check``) and in dcase's own tests, for every
architecture. Each check measures one number and compares it with a limit that is stated beside it.
Errors of forces are divided by the root mean square force F of the structure, errors of energies by
F x 1 A plus the network's own energy per atom, so that the limits mean the same for a soft and a
stiff model.

Finite differences are taken with several steps and the best is reported. A wrong force misses by
the same amount with every step, so nothing is hidden; but no single step suits both a smooth model,
where the step may be large, and IReLU, whose second derivative jumps at every kink inside it.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.md.verlet import VelocityVerlet
from torch.autograd.gradcheck import GradcheckError, gradcheck, gradgradcheck

from dcase.data.dataset import AtomicDataset
from dcase.md_runs.check_structures import crystal_of, default_structure
from dcase.md_runs.frequency import highest_frequency
from dcase.potentials.batching import FrameBatches
from dcase.potentials.calculator import DCCalculator
from dcase.potentials.graph import AtomicGraph, build_graph
from dcase.potentials.potential import Potential, load_potential, potential_from_document
from dcase.rescaling import LabelScale
from dcase.units import FS, KB

# Of the finite differences in Angstrom (also relative changes of parameters, and strains).
_STEPS = {"float64": (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5), "float32": (1e-1, 3e-2, 1e-2)}
_JUST = 1e-6  # A inside and outside the cutoff


@dataclass(frozen=True)
class CheckResult:
    """One measured number and its limit.

    Attributes:
        name: What was checked.
        passed: ``value <= limit`` (True as well where the check was skipped: nothing failed).
        value: The number; NaN where skipped, or where the check itself failed to run.
        limit: Its limit.
        unit: Of both; ``"F"`` is the root mean square force, see the module text.
        detail: One line on how it was measured, or why it failed or was skipped.
        skipped: The check does not apply to this structure, dtype or device.
    """

    name: str
    passed: bool
    value: float
    limit: float
    unit: str = ""
    detail: str = ""
    skipped: bool = False


def run_checks(
    potential_or_path: Potential | str | Path,
    atoms: Atoms | None = None,
    *,
    dtype: str = "float64",
    device: str | None = None,
    progress: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Run every check on a potential.

    Args:
        potential_or_path: A potential (copied, never changed) or a checkpoint.
        atoms: Structure to check on, periodic or not; default: the molecule it was trained on, or
            another one of its elements. It is rattled by 0.05 A, so that there are forces.
        dtype: ``"float64"``, or ``"float32"`` with limits as wide as its rounding; checks that
            rounding would drown are skipped there.
        device: Where to evaluate; default as the calculator's.
        progress: Called with each result as soon as it is there.

    Returns:
        One result a check, in a fixed order. A check that raises is a failed check.

    Raises:
        DcaseError: If the potential cannot be loaded, or not evaluated on this structure at all.
    """
    potential = (
        potential_or_path
        if isinstance(potential_or_path, Potential)
        else load_potential(potential_or_path)
    )
    if atoms is None:
        atoms = default_structure(potential)
    subject = _Subject(potential, atoms, dtype, device)
    results = []
    for check in _CHECKS:
        result = _run(check, subject)
        results.append(result)
        if progress is not None:
            progress(result)
    return results


def format_table(results: Iterable[CheckResult]) -> str:
    """The results as plain text, one check a line."""
    lines = [f"{'check':32}  {'':7}  {'value':>9}  {'limit':>9}  unit"]
    for r in results:
        numbers = f"{r.value:9.1e}  {r.limit:9.1e}" if not r.skipped else f"{'-':>9}  {'-':>9}"
        line = f"{r.name:32}  {_verdict(r):7}  {numbers}  {r.unit}"
        lines.append(line.rstrip() if r.passed and not r.skipped else f"{line:72}  {r.detail}")
    return "\n".join(lines)


def print_results(results: Iterable[CheckResult], console: Any = None) -> None:
    """Print the results as a table.

    Args:
        results: From :func:`run_checks`.
        console: Of rich; a new one on standard output by default.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "", box=None, pad_edge=False)
    for heading in ("value", "limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit")
    table.add_column("how", style="dim")
    colours = {"ok": "green", "skipped": "yellow", "FAILED": "bold red"}
    for r in results:
        verdict = _verdict(r)
        numbers = ("", "") if r.skipped else (f"{r.value:.1e}", f"{r.limit:.1e}")
        table.add_row(
            r.name,
            f"[{colours[verdict]}]{verdict}[/]",
            *numbers,
            r.unit,
            r.detail.replace("[", r"\["),
        )
    (console or Console()).print(table)


def _verdict(result: CheckResult) -> str:
    return "skipped" if result.skipped else "ok" if result.passed else "FAILED"


# ------------------------------------------------------------------------------------------------
# What the checks share


class _Skip(Exception):
    """Raised by a check that does not apply; the message says why."""


class _Prediction(NamedTuple):
    energy: float  # eV
    energies: np.ndarray  # eV, [n_atoms]
    forces: np.ndarray  # eV/A, [n_atoms, 3]
    stress: np.ndarray | None  # eV/A^3, [6]


class _Subject:
    """The potential under test, the structures it is tested on, and its scales.

    Attributes:
        potential: A copy, in the dtype and on the device of the test.
        given: The structure, rattled, as periodic as it came.
        molecule: The same atoms without periodicity.
        crystal: The same atoms, periodic in three directions.
        force_scale: Root mean square force component of ``given``, eV/A.
        energy_scale: F x 1 A + the network's root mean square energy per atom, eV.
    """

    def __init__(self, potential: Potential, atoms: Atoms, dtype: str, device: str | None):
        self.source, self.dtype = potential, dtype
        calculator = self.calculator(device=device, skin=0.0)
        self.potential, self.device = calculator.potential, calculator.device
        self.given = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        self.given.rattle(0.05, rng=self.rng())
        calculator.get_potential_energy(self.given)  # unknown elements, NaN, ... : one clear error
        self.molecule = Atoms(self.given.numbers, self.given.positions)
        self.crystal = self.given.copy() if self.given.pbc.all() else crystal_of(self.molecule)
        reference = self(self.given)
        rms = float(np.sqrt(np.mean(reference.forces**2)))
        self.force_scale = rms if rms > 0 else 1.0
        own = reference.energies - self.potential.offsets.cpu().numpy()[self.given.numbers]
        self.energy_scale = self.force_scale + float(np.sqrt(np.mean(own**2)))

    @staticmethod
    def rng(seed: int = 0) -> np.random.Generator:
        return np.random.default_rng([seed, 20231002])

    def calculator(self, **options: Any) -> DCCalculator:
        settings = {"dtype": self.dtype, "device": getattr(self, "device", None), **options}
        return DCCalculator(self.source, allow_isolated=True, **settings)

    def graph(self, atoms: Atoms) -> AtomicGraph:
        return build_graph(
            atoms.numbers, atoms.positions, self.potential.cutoff, atoms.cell.array, atoms.pbc
        ).to(self.device)

    def __call__(self, atoms: Atoms, *, stress: bool = False) -> _Prediction:
        """Evaluate with a fresh neighbour list."""
        result = self.potential(self.graph(atoms), stress=stress)
        numpy = {name: value.cpu().numpy() for name, value in result.items()}
        return _Prediction(
            float(numpy["energy"][0]),
            numpy["energies"],
            numpy["forces"],
            numpy["stress"][0] if stress else None,
        )

    def error(self, found: _Prediction, energy: float, forces: np.ndarray) -> float:
        """The larger of the errors of energy and forces, in units of their scales."""
        return max(
            abs(found.energy - energy) / self.energy_scale,
            float(np.abs(found.forces - forces).max()) / self.force_scale,
        )

    def best_step(
        self, function: Callable[[int, float], float], expected: np.ndarray, scale: float
    ) -> tuple[float, str]:
        """The error of ``expected[k] = d function(k, t)/dt`` at t = 0, with the best step.

        Fourth order: ``f' = [8 (f(h) - f(-h)) - (f(2h) - f(-2h))] / 12 h + O(h^4)``.
        """
        errors = {}
        for h in _STEPS[self.dtype]:
            slopes = [
                (
                    8 * (function(k, h) - function(k, -h))
                    - (function(k, 2 * h) - function(k, -2 * h))
                )
                / (12 * h)
                for k in range(len(expected))
            ]
            errors[h] = float(np.abs(np.array(slopes) - expected).max()) / scale
        best = min(errors, key=lambda h: errors[h])
        return errors[best], f"{len(expected)} derivatives, best step {best:g}"


def _displaced(atoms: Atoms, displacement: np.ndarray) -> Atoms:
    moved = atoms.copy()
    moved.positions += displacement
    return moved


def _orthogonal(rng: np.random.Generator, determinant: int) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * (determinant * np.sign(np.linalg.det(q)))


# ------------------------------------------------------------------------------------------------
# Derivatives


def _force_components(subject: _Subject) -> tuple[float, str]:
    atoms = subject.given
    components = np.arange(3 * len(atoms))
    if len(components) > 30:
        components = np.sort(subject.rng().choice(components, 30, replace=False))

    def energy(k: int, t: float) -> float:
        step = np.zeros(3 * len(atoms))
        step[components[k]] = t
        return subject(_displaced(atoms, step.reshape(-1, 3))).energy

    expected = -subject(atoms).forces.ravel()[components]
    return subject.best_step(energy, expected, subject.force_scale)


def _force_directions(subject: _Subject) -> tuple[float, str]:
    atoms = subject.given
    forces = subject(atoms).forces
    directions = subject.rng().normal(size=(5, len(atoms), 3))
    directions[0] = forces  # along the force the expected slope is |F|: the most telling one
    directions /= np.linalg.norm(directions, axis=(1, 2), keepdims=True)

    def energy(k: int, t: float) -> float:
        return subject(_displaced(atoms, t * directions[k])).energy

    expected = -np.einsum("kax,ax->k", directions, forces)
    return subject.best_step(energy, expected, float(np.linalg.norm(forces)) or 1.0)


def _stress(subject: _Subject) -> tuple[float, str]:
    crystal = subject.crystal
    stress = subject(crystal, stress=True).stress
    assert stress is not None
    pairs = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]  # Voigt xx, yy, zz, yz, xz, xy

    def energy(k: int, t: float) -> float:
        strain = np.eye(3)
        i, j = pairs[k]
        strain[i, j] += t / 2  # symmetric: t in all for xx, t/2 twice for xy
        strain[j, i] += t / 2
        strained = crystal.copy()
        strained.set_cell(crystal.cell.array @ strain, scale_atoms=True)
        return subject(strained).energy / crystal.get_volume()

    rms = float(np.sqrt(np.mean(stress**2)))
    return subject.best_step(energy, stress, rms or 1.0)


def _training_gradient(subject: _Subject) -> tuple[float, str]:
    # The gradient of a loss on energies and forces by the parameters: what training follows.
    potential = _copy(subject.potential)
    parameters = list(potential.parameters())
    rng = subject.rng()
    graph = subject.graph(subject.given)
    weight = torch.as_tensor(rng.normal(size=(graph.n_atoms, 3)), device=subject.device)

    def loss(create_graph: bool) -> torch.Tensor:
        energies, forces = potential.energies_and_forces(graph, create_graph=create_graph)
        return (energies.sum() + (weight * forces).sum()) * potential.scale.constant

    gradients = torch.autograd.grad(loss(True), parameters, allow_unused=True)
    starts = [p.detach().clone() for p in parameters]
    directions = [
        torch.as_tensor(rng.normal(size=p.shape), device=p.device).to(p.dtype)
        * (p.detach().square().mean().sqrt() + 1e-3)
        for p in parameters
    ]
    parts = [
        float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None
    ]

    def moved(_: int, t: float) -> float:
        with torch.no_grad():
            for p, start, d in zip(parameters, starts, directions, strict=True):
                p.copy_(start + t * d)
        return float(loss(False).detach())

    scale = float(np.linalg.norm(parts)) or 1.0
    return subject.best_step(moved, np.array([sum(parts)]), scale)


def _local_energy(
    subject: _Subject, seed: int
) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """The energy (in units of F x 1 A) as a function of up to 6 neighbouring atoms' positions."""
    atoms = _displaced(subject.given, subject.rng(seed).normal(0, 0.03, (len(subject.given), 3)))
    graph = subject.graph(atoms)
    chosen = np.argsort(atoms.get_distances(0, range(len(atoms))), kind="stable")[:6].copy()
    index = torch.as_tensor(chosen, device=subject.device)
    factor = subject.potential.scale.constant / subject.force_scale

    def energy(x: torch.Tensor) -> torch.Tensor:
        positions = graph.positions.index_copy(0, index, x)
        return subject.potential.energies(replace(graph, positions=positions)) * factor

    return energy, graph.positions[index].clone().requires_grad_(True)


def _autograd(subject: _Subject, second: bool) -> tuple[float, str]:
    # gradcheck draws random vectors from the global generator: lend it, and put it back.
    devices = [subject.device] if subject.device.type == "cuda" else []
    reason = ""
    for attempt in range(3):
        energy, x = _local_energy(subject, attempt)
        one = torch.ones(1, dtype=torch.float64, device=subject.device, requires_grad=True)
        try:
            with torch.random.fork_rng(devices=devices):
                if second:
                    gradgradcheck(
                        energy, (x,), (one,), eps=1e-7, atol=1e-4, rtol=1e-3, nondet_tol=1e-6
                    )
                else:
                    gradcheck(energy, (x,), eps=1e-5, atol=1e-4, nondet_tol=1e-6)
        except GradcheckError as error:
            # A kink of the activation inside the step is bad luck at one geometry in many; a wrong
            # derivative is wrong at all of them.
            reason = " ".join(str(error).split())[:160]
        else:
            return 0.0, f"{x.shape[0]} atoms" + (f", geometry {attempt + 1}" if attempt else "")
    return 1.0, reason


# ------------------------------------------------------------------------------------------------
# Symmetries and sums


def _translation(subject: _Subject) -> tuple[float, str]:
    reference = subject(subject.given)
    moved = subject(_displaced(subject.given, np.array([11.3, -7.1, 4.9])))
    return subject.error(moved, reference.energy, reference.forces), "by 14 A"


def _orthogonal_map(subject: _Subject, determinant: int) -> tuple[float, str]:
    reference = subject(subject.given)
    worst = 0.0
    for seed in range(3):
        q = _orthogonal(subject.rng(seed), determinant)
        turned = subject.given.copy()
        turned.positions = turned.positions @ q
        turned.set_cell(turned.cell.array @ q)
        worst = max(worst, subject.error(subject(turned), reference.energy, reference.forces @ q))
    return worst, "three random orientations"


def _permutation(subject: _Subject) -> tuple[float, str]:
    order = subject.rng().permutation(len(subject.given))
    reference, permuted = subject(subject.given), subject(subject.given[order])
    return subject.error(permuted, reference.energy, reference.forces[order]), "random order"


def _batch(subject: _Subject) -> tuple[float, str]:
    frames = [
        subject.given,
        subject.molecule,
        subject.crystal,
        _displaced(subject.molecule, subject.rng().normal(0, 0.1, (len(subject.molecule), 3))),
    ]
    smaller = [
        subject.molecule[[a for a in range(len(subject.molecule)) if a != k]]
        for k in reversed(range(len(subject.molecule)))
    ]
    frames += [s for s in smaller if len(s) > 0 and not _isolated(subject, s)][:1]
    frames = [f for f in frames if not _isolated(subject, f)]
    if len(frames) < 2:
        raise _Skip("every frame made of this structure has an isolated atom")
    dataset = AtomicDataset.from_frames(frames)
    batches = FrameBatches(dataset, subject.potential.cutoff, LabelScale(), subject.device)
    order = list(reversed(range(len(frames))))
    result = subject.potential(batches.batch(torch.tensor(order)).graph)
    energies, forces = result["energy"].cpu().numpy(), result["forces"].cpu().numpy()
    worst, start = 0.0, 0
    for energy, f in zip(energies, order, strict=True):
        single = subject(frames[f])
        stop = start + len(frames[f])
        worst = max(worst, subject.error(single, energy, forces[start:stop]))
        start = stop
    return worst, f"{len(frames)} systems of {len(set(map(len, frames)))} sizes"


def _isolated(subject: _Subject, atoms: Atoms) -> bool:
    pairs = subject.graph(atoms).pairs
    return len(atoms) > 1 and len(torch.unique(pairs)) < len(atoms)


def _fragments(subject: _Subject) -> tuple[float, str]:
    one = subject.molecule
    other = one.copy()
    other.positions = one.positions @ _orthogonal(subject.rng(), -1) + np.array([60.0, 50.0, 40.0])
    other.positions *= 1.0 + 2.0 * subject.potential.cutoff / 60.0  # other lengths as well
    apart = other.positions.mean(0) - one.positions.mean(0)
    other.positions -= apart - 1e3 * apart / np.linalg.norm(apart)
    together = subject(one + other)
    a, b = subject(one), subject(other)
    forces = np.concatenate([a.forces, b.forces])
    return subject.error(together, a.energy + b.energy, forces), "two molecules 1000 A apart"


def _supercell(subject: _Subject) -> tuple[float, str]:
    repeats = (2, 1, 2)
    one = subject(subject.crystal)
    many = subject(subject.crystal.repeat(repeats))
    n = int(np.prod(repeats))
    return subject.error(many, n * one.energy, np.tile(one.forces, (n, 1))), "2 x 1 x 2 cells"


def _net_force(subject: _Subject) -> tuple[float, str]:
    forces = subject(subject.given).forces
    return float(np.abs(forces.sum(axis=0)).max()) / subject.force_scale, ""


def _net_torque(subject: _Subject) -> tuple[float, str]:
    forces = subject(subject.molecule).forces
    arms = subject.molecule.positions - subject.molecule.positions.mean(0)
    extent = float(np.abs(arms).max()) or 1.0
    scale = float(np.sqrt(np.mean(forces**2))) or 1.0
    return float(np.abs(np.cross(arms, forces).sum(axis=0)).max()) / (scale * extent), ""


def _cutoff(subject: _Subject) -> tuple[float, str]:
    """The jump of energy and forces where a pair crosses the cutoff, over the forces inside."""
    cutoff = subject.potential.cutoff
    z = subject.potential.elements
    pair = Atoms([z[0], z[-1]], np.zeros((2, 3)))
    # Along the ray from the centre through the outermost atom the probe meets that atom first.
    radii = subject.molecule.positions - subject.molecule.positions.mean(0)
    outermost = int(np.argmax(np.linalg.norm(radii, axis=1)))
    ray = radii[outermost]
    ray = ray / np.linalg.norm(ray) if np.linalg.norm(ray) > 0 else np.array([0.0, 0.0, 1.0])
    probe = subject.molecule + Atoms([z[-1]], subject.molecule.positions[[outermost]])
    worst, controls = 0.0, []
    for atoms, direction in ((pair, np.array([0.6, 0.0, 0.8])), (probe, ray)):

        def at(d: float, atoms: Atoms = atoms, direction: np.ndarray = direction) -> _Prediction:
            moved = atoms.copy()
            moved.positions[-1] += d * direction
            return subject(moved)

        scan = [at(f * cutoff).forces[-1] for f in np.linspace(0.25, 0.95, 15)]
        control = float(np.linalg.norm(scan, axis=1).max())
        if control == 0:
            return float("inf"), "control: no force inside the cutoff either"
        inside, outside = at(cutoff - _JUST), at(cutoff + _JUST)
        jumps = (
            np.abs(inside.forces - outside.forces).max(),
            np.abs(outside.forces[-1]).max(),  # nothing acts beyond the cutoff
            abs(inside.energy - outside.energy) - 4 * np.spacing(abs(inside.energy)),
        )
        worst = max(worst, float(max(jumps)) / control)
        controls.append(control)
    return worst, f"{_JUST:g} A inside and outside; largest force inside {max(controls):.1e} eV/A"


# ------------------------------------------------------------------------------------------------
# Precision, files, bookkeeping


def _single_precision(subject: _Subject, what: str) -> tuple[float, str]:
    results = []
    for dtype in ("float32", "float64"):
        calculator = subject.calculator(dtype=dtype, device="cpu")
        atoms = subject.given.copy()
        results.append((calculator.get_potential_energy(atoms), calculator.get_forces(atoms)))
    (e32, f32), (e64, f64) = results
    if what == "energy":
        return abs(e32 - e64) / len(subject.given), f"{len(subject.given)} atoms, on the CPU"
    return float(np.abs(f32 - f64).max()) / subject.force_scale, "on the CPU"


def _device(subject: _Subject) -> tuple[float, str]:
    if subject.device.type == "cpu":
        raise _Skip("this is the CPU")
    calculator, atoms = subject.calculator(device="cpu"), subject.given.copy()
    energy, forces = calculator.get_potential_energy(atoms), calculator.get_forces(atoms)
    return subject.error(subject(subject.given), energy, forces), f"{subject.device} against CPU"


def _save_and_load(subject: _Subject) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "potential.pt"
        subject.potential.save(path)
        loaded = load_potential(path).to(subject.device)
    before, graph = subject.potential, subject.graph(subject.given)
    if loaded.dtype != before.dtype or loaded.scale != before.scale:
        return float("inf"), "another dtype or label scale came back"
    differences = [
        float((value - before.network.state_dict()[name]).abs().max()) if value.numel() else 0.0
        for name, value in loaded.network.state_dict().items()
    ]
    if subject.device.type == "cpu":  # sums on a GPU are not the same twice
        after = loaded(graph)
        differences += [float((v - after[k]).abs().max()) for k, v in before(graph).items()]
    return max(differences), "weights, scale, energies and forces, bit for bit"


def _calculator_copies(subject: _Subject) -> tuple[float, str]:
    original = subject.calculator()
    copies = {
        "copy": original.copy(),
        "deepcopy": copy.deepcopy(original),
        "pickle": pickle.loads(pickle.dumps(original)),
    }
    atoms = subject.given.copy()
    energy, forces = original.get_potential_energy(atoms), original.get_forces(atoms)
    worst = 0.0
    for other in copies.values():
        found = _Prediction(
            other.get_potential_energy(atoms), np.empty(0), other.get_forces(atoms), None
        )
        worst = max(worst, subject.error(found, energy, forces))
    return worst, ", ".join(copies)


def _skin(subject: _Subject) -> tuple[float, str]:
    """A calculator that keeps its neighbour list, against a fresh search at every step."""
    worst = 0.0
    for start in (subject.molecule, subject.crystal):
        calculator, rng = subject.calculator(skin=0.6), subject.rng()
        atoms = start.copy()
        for step in range(12):
            atoms.positions += rng.normal(0, 0.06, (len(atoms), 3))
            if step == 4 and atoms.pbc.any():
                atoms.positions[0] += atoms.cell.array[0] - atoms.cell.array[2]
            if step == 6 and atoms.pbc.any():
                atoms.wrap()
            if step == 8 and atoms.pbc.any():
                atoms.set_cell(atoms.cell.array * [[0.97], [1.02], [1.0]], scale_atoms=False)
            if step == 10:
                atoms.numbers[:] = atoms.numbers[::-1].copy()
            fresh = subject(atoms)
            energy, forces = calculator.get_potential_energy(atoms), calculator.get_forces(atoms)
            worst = max(worst, subject.error(fresh, energy, forces))
    return worst, "12 moves with wrapping, a cell change and other elements"


# ------------------------------------------------------------------------------------------------
# Dynamics


def _start_of_dynamics(subject: _Subject, seed: int = 1) -> Atoms:
    """The structure with momenta of 300 K and a calculator."""
    atoms = subject.given.copy()
    masses = atoms.get_masses()[:, None]
    noise = subject.rng(seed).normal(size=(len(atoms), 3))
    atoms.set_momenta(np.sqrt(masses * KB * 300.0) * noise)
    atoms.calc = subject.calculator(skin=0.4)
    return atoms


def _time_step(atoms: Atoms) -> float:
    """In fs: 0.5, or 20 steps in the period of the fastest vibration if that is shorter."""
    omega = highest_frequency(atoms)
    return min(0.5, 0.3 / omega) if omega > 0 else 0.5


def _time_reversal(subject: _Subject) -> tuple[float, str]:
    atoms = _start_of_dynamics(subject)
    dt, start, steps = _time_step(atoms), atoms.positions.copy(), 50
    VelocityVerlet(atoms, dt * FS).run(steps)
    travelled = float(np.abs(atoms.positions - start).max())
    atoms.set_momenta(-atoms.get_momenta())
    VelocityVerlet(atoms, dt * FS).run(steps)
    error = float(np.abs(atoms.positions - start).max())
    return error, f"{steps} steps of {dt:.2g} fs there ({travelled:.2f} A) and back"


def _timestep_law(subject: _Subject) -> tuple[float, str]:
    """Halving the time step must quarter the energy error of velocity Verlet.

    Where the curvature of the energy jumps (IReLU), the error of the one step that crosses the jump
    depends on where in the step it lies, so that the ratio holds on average: hence several starts.
    """
    coarse = _time_step(_start_of_dynamics(subject))
    starts, samples, squares = 4, 16, np.zeros(3)
    for start in range(starts):
        for halvings in range(3):
            atoms = _start_of_dynamics(subject, 1 + start)
            dynamics = VelocityVerlet(atoms, coarse / 2**halvings * FS)
            energies = [atoms.get_total_energy()]
            for _ in range(samples):
                dynamics.run(2**halvings)
                energies.append(atoms.get_total_energy())
            squares[halvings] += np.mean((np.array(energies) - energies[0]) ** 2) / starts
    rms = np.sqrt(squares)
    if rms[-1] < 100 * np.spacing(abs(energies[0])):
        raise _Skip("the energy is constant to rounding: nothing to measure")
    ratios = rms[:-1] / rms[1:]
    shown = ", ".join(f"{r:.3f}" for r in ratios)
    return (
        float(np.abs(ratios - 4.0).max()),
        f"ratios {shown} for {coarse:.2g} fs halved twice, {starts} starts of {samples} steps",
    )


# ------------------------------------------------------------------------------------------------
# The list


@dataclass(frozen=True)
class _Check:
    name: str
    function: Callable[..., tuple[float, str]]
    limit: float
    limit32: float | None  # None: not in float32
    unit: str = ""
    arguments: Sequence[Any] = field(default_factory=tuple)


_CHECKS = (
    _Check("forces, every component", _force_components, 1e-6, 1e-2, "F"),
    _Check("forces, along directions", _force_directions, 1e-6, 1e-2, "|F|"),
    _Check("stress", _stress, 1e-6, 1e-2, "rms stress"),
    _Check("gradcheck", _autograd, 0.0, None, "failures", (False,)),
    _Check("gradgradcheck", _autograd, 0.0, None, "failures", (True,)),
    _Check("gradient of a force loss", _training_gradient, 1e-5, None, "its size"),
    _Check("translation", _translation, 1e-9, 1e-4, "F"),
    _Check("rotation", _orthogonal_map, 1e-9, 1e-4, "F", (1,)),
    _Check("mirror", _orthogonal_map, 1e-9, 1e-4, "F", (-1,)),
    _Check("permutation", _permutation, 1e-9, 1e-4, "F"),
    _Check("batch equals single", _batch, 1e-9, 1e-4, "F"),
    _Check("separated fragments add up", _fragments, 1e-9, 1e-4, "F"),
    _Check("supercell is n cells", _supercell, 1e-9, 1e-4, "F"),
    _Check("smooth at the cutoff", _cutoff, 1e-4, 1e-3, "F inside"),
    _Check("sum of forces", _net_force, 1e-10, 1e-4, "F"),
    _Check("torque", _net_torque, 1e-10, 1e-4, "F x radius"),
    _Check("float32 energy", _single_precision, 1e-5, 1e-5, "eV/atom", ("energy",)),
    _Check("float32 forces", _single_precision, 1e-3, 1e-3, "F", ("forces",)),
    _Check("device equals CPU", _device, 1e-9, 1e-3, "F"),
    _Check("save and load", _save_and_load, 0.0, 0.0, "difference"),
    _Check("calculator copies", _calculator_copies, 1e-12, 1e-4, "F"),
    _Check("kept neighbour list", _skin, 1e-9, 1e-4, "F"),
    _Check("time reversal", _time_reversal, 1e-8, None, "A"),
    _Check("dt^2 law", _timestep_law, 0.4, None, "|ratio - 4|"),
)


def _run(check: _Check, subject: _Subject) -> CheckResult:
    limit = check.limit if subject.dtype == "float64" else check.limit32
    try:
        if limit is None:
            raise _Skip("needs float64")
        value, detail = check.function(subject, *check.arguments)
    except _Skip as reason:
        nan = float("nan")
        return CheckResult(check.name, True, nan, check.limit, check.unit, str(reason), True)
    except Exception as error:  # a model that cannot do what a check asks has failed it
        lines = str(error).splitlines() or [""]
        detail = f"{type(error).__name__}: {lines[0]}"
        return CheckResult(check.name, False, float("nan"), limit or 0.0, check.unit, detail)
    return CheckResult(check.name, bool(value <= limit), float(value), limit, check.unit, detail)


def _copy(potential: Potential) -> Potential:
    return potential_from_document(potential.to_document(), "potential").to(potential.device)
