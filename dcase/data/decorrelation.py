"""How far frames of a trajectory remember each other."""

from __future__ import annotations

import numpy as np


def lag_one(values: np.ndarray, walker: np.ndarray) -> float:
    """Correlation of frames with the next frame of the same walker, all components pooled.

    Args:
        values: Shape [n_frames, ...]; each component is centred over all frames.
        walker: Which walker made the frame, shape [n_frames].

    Returns:
        About 0 for independent frames, 1 for frozen ones; NaN where there are no pairs.
    """
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    flat = flat - flat.mean(axis=0)
    pairs = np.flatnonzero(walker[1:] == walker[:-1])
    variance = (flat**2).sum(axis=1).mean() if len(flat) else 0.0
    if len(pairs) == 0 or variance == 0.0:
        return float("nan")
    return float((flat[pairs] * flat[pairs + 1]).sum(axis=1).mean() / variance)


def align(
    positions: np.ndarray, reference: np.ndarray, vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Frames turned onto a reference (Kabsch), so that tumbling does not pass for decorrelation.

    Args:
        positions: Shape [n_frames, n_atoms, 3].
        reference: Shape [n_atoms, 3].
        vectors: Turned along, e.g. forces; shape [n_frames, n_atoms, 3].

    Returns:
        Centred, rotated positions and rotated vectors.
    """
    centred = positions - positions.mean(axis=1, keepdims=True)
    target = reference - reference.mean(axis=0)
    u, _, vt = np.linalg.svd(np.einsum("fai,aj->fij", centred, target))
    # No mirror images: flip the weakest axis where the best orthogonal map is improper.
    u[:, :, -1] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotation = u @ vt
    return centred @ rotation, vectors @ rotation


def memory_of(
    positions: np.ndarray, energies: np.ndarray, forces: np.ndarray, walker: np.ndarray
) -> dict[str, float]:
    """Lag-1 autocorrelation of energies, forces and positions of stored frames.

    Args:
        positions: Shape [n_frames, n_atoms, 3].
        energies: Shape [n_frames].
        forces: Shape [n_frames, n_atoms, 3].
        walker: Which walker made the frame, shape [n_frames].
    """
    turned, turned_forces = align(positions, positions[0], forces)
    return {
        "energies": lag_one(energies, walker),
        "forces": lag_one(turned_forces, walker),
        "positions": lag_one(turned, walker),
    }
