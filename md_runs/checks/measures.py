"""The conformance checks themselves: each measures one number and says how.

Every function takes a :class:`~dcase.md_runs.checks.subject.Subject` and returns the number and a
line about it; :mod:`dcase.md_runs.checks.conformance` holds the limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from ase import Atoms
from torch.autograd.gradcheck import GradcheckError, gradcheck, gradgradcheck

from dcase.data.dataset import AtomicDataset
from dcase.md_runs.checks.subject import (
    Predicted,
    Subject,
    copy_potential,
    displaced,
    orthogonal,
)
from dcase.potentials.fitting.batches import FrameBatches
from dcase.rescaling import LabelScale

_JUST = 1e-6  # A inside and outside the cutoff

# ------------------------------------------------------------------------------------------------
# Derivatives


def force_components(subject: Subject) -> tuple[float, str]:
    """Forces against fourth-order differences of the energy, component by component."""
    atoms = subject.given
    components = np.arange(3 * len(atoms))
    if len(components) > 30:
        components = np.sort(subject.rng().choice(components, 30, replace=False))

    def energy(k: int, t: float) -> float:
        step = np.zeros(3 * len(atoms))
        step[components[k]] = t
        return subject(displaced(atoms, step.reshape(-1, 3))).energy

    expected = -subject(atoms).forces.ravel()[components]
    return subject.best_step(energy, expected, subject.force_scale)


def force_directions(subject: Subject) -> tuple[float, str]:
    """Forces against differences of the energy along the force and random directions."""
    atoms = subject.given
    forces = subject(atoms).forces
    directions = subject.rng().normal(size=(5, len(atoms), 3))
    directions[0] = forces  # along the force the expected slope is |F|: the most telling one
    directions /= np.linalg.norm(directions, axis=(1, 2), keepdims=True)

    def energy(k: int, t: float) -> float:
        return subject(displaced(atoms, t * directions[k])).energy

    expected = -np.einsum("kax,ax->k", directions, forces)
    return subject.best_step(energy, expected, float(np.linalg.norm(forces)) or 1.0)


def stress(subject: Subject) -> tuple[float, str]:
    """Stress against differences of the energy by strain, in the tight crystal."""
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


def training_gradient(subject: Subject) -> tuple[float, str]:
    """Gradient of a loss on energies and forces by the parameters: what training follows."""
    potential = copy_potential(subject.potential)
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
    subject: Subject, seed: int
) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """The energy (in units of F x 1 A) as a function of up to 6 neighbouring atoms' positions."""
    atoms = displaced(subject.given, subject.rng(seed).normal(0, 0.03, (len(subject.given), 3)))
    graph = subject.graph(atoms)
    chosen = np.argsort(atoms.get_distances(0, range(len(atoms))), kind="stable")[:6].copy()
    index = torch.as_tensor(chosen, device=subject.device)
    factor = subject.potential.scale.constant / subject.force_scale

    def energy(x: torch.Tensor) -> torch.Tensor:
        positions = graph.positions.index_copy(0, index, x)
        return subject.potential.energies(replace(graph, positions=positions)) * factor

    return energy, graph.positions[index].clone().requires_grad_(True)


def autograd(subject: Subject, second: bool) -> tuple[float, str]:
    """``torch.autograd.gradcheck`` of the energy by positions, or ``gradgradcheck``."""
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


def translation(subject: Subject) -> tuple[float, str]:
    """A shift of the whole system changes nothing."""
    reference = subject(subject.given)
    moved = subject(displaced(subject.given, np.array([11.3, -7.1, 4.9])))
    return subject.error(moved, reference.energy, reference.forces), "by 14 A"


def orthogonal_map(subject: Subject, determinant: int) -> tuple[float, str]:
    """Rotations (determinant 1) and mirrors (-1) leave the energy and turn the forces."""
    reference = subject(subject.given)
    worst = 0.0
    for seed in range(3):
        q = orthogonal(subject.rng(seed), determinant)
        turned = subject.given.copy()
        turned.positions = turned.positions @ q
        turned.set_cell(turned.cell.array @ q)
        worst = max(worst, subject.error(subject(turned), reference.energy, reference.forces @ q))
    return worst, "three random orientations"


def permutation(subject: Subject) -> tuple[float, str]:
    """The order of the atoms does not matter."""
    order = subject.rng().permutation(len(subject.given))
    reference, permuted = subject(subject.given), subject(subject.given[order])
    return subject.error(permuted, reference.energy, reference.forces[order]), "random order"


def batch(subject: Subject) -> tuple[float, str]:
    """A system in a batch of others is as if alone."""
    frames = [
        subject.given,
        subject.molecule,
        subject.crystal,
        displaced(subject.molecule, subject.rng().normal(0, 0.1, (len(subject.molecule), 3))),
    ]
    smaller = [
        subject.molecule[[a for a in range(len(subject.molecule)) if a != k]]
        for k in reversed(range(len(subject.molecule)))
    ]
    frames += [s for s in smaller if len(s) > 0][:1]
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


def fragments(subject: Subject) -> tuple[float, str]:
    """Energies of fragments out of each other's reach add up, and forces stay."""
    one = subject.molecule
    other = one.copy()
    other.positions = one.positions @ orthogonal(subject.rng(), -1) + np.array([60.0, 50.0, 40.0])
    other.positions *= 1.0 + 2.0 * subject.potential.cutoff / 60.0  # other lengths as well
    apart = other.positions.mean(0) - one.positions.mean(0)
    other.positions -= apart - 1e3 * apart / np.linalg.norm(apart)
    together = subject(one + other)
    a, b = subject(one), subject(other)
    forces = np.concatenate([a.forces, b.forces])
    return subject.error(together, a.energy + b.energy, forces), "two molecules 1000 A apart"


def supercell(subject: Subject) -> tuple[float, str]:
    """A crystal of n cells has n times the energy of one, and the same forces."""
    repeats = (2, 1, 2)
    one = subject(subject.crystal)
    many = subject(subject.crystal.repeat(repeats))
    n = int(np.prod(repeats))
    return subject.error(many, n * one.energy, np.tile(one.forces, (n, 1))), "2 x 1 x 2 cells"


def net_force(subject: Subject) -> tuple[float, str]:
    """The forces add up to nothing."""
    forces = subject(subject.given).forces
    return float(np.abs(forces.sum(axis=0)).max()) / subject.force_scale, ""


def net_torque(subject: Subject) -> tuple[float, str]:
    """So do the torques of a molecule."""
    forces = subject(subject.molecule).forces
    arms = subject.molecule.positions - subject.molecule.positions.mean(0)
    extent = float(np.abs(arms).max()) or 1.0
    scale = float(np.sqrt(np.mean(forces**2))) or 1.0
    return float(np.abs(np.cross(arms, forces).sum(axis=0)).max()) / (scale * extent), ""


def cutoff_jump(subject: Subject) -> tuple[float, str]:
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

        def at(d: float, atoms: Atoms = atoms, direction: np.ndarray = direction) -> Predicted:
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
