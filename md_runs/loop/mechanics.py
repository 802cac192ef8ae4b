"""Momenta, degrees of freedom and conserved vectors of a set of atoms."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from dcase.md_runs.loop.constrain import normal_space, only_bonds
from dcase.md_runs.loop.ensembles import ensemble_named
from dcase.units import FS, KB

LINEAR_MOMENT = 1e-6
"""A principal moment of inertia below this share of the largest one counts as zero."""


def keeps_still(atoms: Atoms, ensemble: str) -> tuple[bool, bool]:
    """Whether the centre of mass and the rotation are taken out: ``(translation, rotation)``.

    Where the ensemble does not conserve momentum, nothing is removed. Fixed atoms break Newton's
    third law, so nothing is removed either; fixed bond lengths do not. Rotation is conserved only
    without walls.
    """
    if not ensemble_named(ensemble).conserves_momentum or not only_bonds(atoms) or len(atoms) < 2:
        return False, False
    return True, not bool(np.any(atoms.pbc))


def is_linear(atoms: Atoms) -> bool:
    """Whether all atoms lie on one line (two atoms always do)."""
    moments = np.linalg.eigvalsh(inertia(atoms.get_positions(), atoms.get_masses()))
    return bool(moments[0] <= LINEAR_MOMENT * moments[-1])


def degrees_of_freedom(atoms: Atoms, ensemble: str) -> int:
    """Degrees of freedom that move.

    3N - 6 for a molecule (3N - 5 if linear), 3N - 3 with periodic boundaries, 3N under Langevin;
    less the rank of the fixed bond lengths. With other constraints what ASE counts.
    """
    if not only_bonds(atoms):
        return int(atoms.get_number_of_degrees_of_freedom())
    translation, rotation = keeps_still(atoms, ensemble)
    removed = 3 if translation else 0
    if rotation:
        removed += 2 if is_linear(atoms) else 3
    return 3 * len(atoms) - removed - len(normal_space(atoms))


def inertia(positions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Inertia tensor about the centre of mass, ``(3, 3)`` amu A^2."""
    r = positions - masses @ positions / masses.sum()
    return np.einsum("i,ij,ij->", masses, r, r) * np.eye(3) - np.einsum("i,ij,ik->jk", masses, r, r)


def angular_momentum(positions: np.ndarray, momenta: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Angular momentum about the centre of mass.

    Args:
        positions: A, shape [..., N, 3].
        momenta: Shape [..., N, 3].
        masses: amu, shape [N].

    Returns:
        Shape [..., 3], units of ``momenta`` times A.
    """
    r = positions - (masses @ positions / masses.sum())[..., None, :]
    # (sum_i r_i x p_i) from the 3x3 moment sum r p^T: np.cross is slow for a few atoms
    m = np.swapaxes(r, -1, -2) @ momenta
    return np.stack(
        [m[..., 1, 2] - m[..., 2, 1], m[..., 2, 0] - m[..., 0, 2], m[..., 0, 1] - m[..., 1, 0]],
        axis=-1,
    )


def remove_translation(atoms: Atoms) -> None:
    """Set the momentum of the centre of mass to zero, leaving all relative motion as it is."""
    masses = atoms.get_masses()
    momenta = atoms.get_momenta()
    atoms.set_momenta(momenta - np.outer(masses, momenta.sum(axis=0) / masses.sum()))


def remove_rotation(atoms: Atoms) -> None:
    """Set the angular momentum to zero: ``v_i -= omega x r_i`` with ``I omega = L``.

    The pseudo-inverse leaves alone the axis of a linear molecule, about which nothing can turn
    (``ase.md.velocitydistribution.ZeroRotation`` divides by that moment's rounding error).
    """
    masses, positions = atoms.get_masses(), atoms.get_positions()
    momenta = atoms.get_momenta()
    tensor = inertia(positions, masses)
    turn = angular_momentum(positions, momenta, masses)
    omega = np.linalg.pinv(tensor, rcond=LINEAR_MOMENT, hermitian=True) @ turn
    r = positions - masses @ positions / masses.sum()
    atoms.set_momenta(momenta - masses[:, None] * np.cross(omega, r))


def still(atoms: Atoms, ensemble: str) -> None:
    """Remove the motions that ``ensemble`` conserves. Temperature is not restored.

    Projecting a Maxwell-Boltzmann draw leaves the remaining degrees of freedom exactly canonical;
    scaling the temperature back up (ASE's default) would heat them by 3N / (3N - 6).
    """
    translation, rotation = keeps_still(atoms, ensemble)
    if translation:
        remove_translation(atoms)
    if rotation:
        remove_rotation(atoms)


def draw_momenta(atoms: Atoms, temperature_K: float, rng: np.random.Generator) -> None:
    """Maxwell-Boltzmann momenta from ``rng``."""
    import ase.md.velocitydistribution as ase_velocities

    thermalize: Any = getattr(ase_velocities, "thermalize_momenta", None)
    if thermalize is not None:
        thermalize(atoms, temperature_K, rng=rng)
    else:  # ASE before 3.29
        ase_velocities.MaxwellBoltzmannDistribution(atoms, temperature_K=temperature_K, rng=rng)


def temperature(kinetic_energy: Any, n_dof: int) -> Any:
    """Kinetic temperature ``2 K / (n_dof k)`` in K, of one energy or many; 0 if nothing moves."""
    return 2.0 * kinetic_energy / (n_dof * KB) if n_dof > 0 else 0.0 * kinetic_energy


def momentum_norms(
    positions: np.ndarray, momenta: np.ndarray, masses: np.ndarray, *, periodic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """|momentum of the centre of mass| in amu A/fs and |angular momentum| in amu A^2/fs.

    The angular momentum is NaN with periodic boundaries, where it is not conserved.

    Args:
        positions: A, shape [..., N, 3].
        momenta: ASE's units, shape [..., N, 3].
        masses: amu, shape [N].
        periodic: Whether any direction is.

    Returns:
        Two arrays, shape [...].
    """
    momenta = momenta * FS
    linear = np.linalg.norm(momenta.sum(axis=-2), axis=-1)
    if periodic:
        return linear, np.full_like(linear, np.nan)
    return linear, np.linalg.norm(angular_momentum(positions, momenta, masses), axis=-1)
