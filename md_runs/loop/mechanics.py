"""Momenta, degrees of freedom and conserved vectors of a set of atoms."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from dcase.md_runs.loop.ensembles import ensemble_named
from dcase.md_runs.loop.freedom import LINEAR_MOMENT, inertia, moving_dof, unmoved
from dcase.units import FS, KB


def keeps_still(atoms: Atoms, ensemble: str) -> tuple[bool, bool]:
    """Whether centre of mass and rotation are taken out: ``(translation, rotation)``.

    See :func:`dcase.md_runs.loop.freedom.unmoved`.
    """
    return unmoved(atoms, ensemble_named(ensemble).conserves_momentum)


def degrees_of_freedom(atoms: Atoms, ensemble: str) -> int:
    """Degrees of freedom that move; see :func:`dcase.md_runs.loop.freedom.moving_dof`."""
    return moving_dof(atoms, ensemble_named(ensemble).conserves_momentum)


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
