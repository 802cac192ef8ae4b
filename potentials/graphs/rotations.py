"""Rotations: finite groups of them to average over, and random ones to train on."""

from __future__ import annotations

import math
from itertools import permutations, product

import torch
from torch import Tensor

FRAMES = ("none", "octahedral", "icosahedral")


def rotation_group(name: str) -> Tensor:
    """The rotations of a regular body, float64, shape [n, 3, 3].

    An average over a group is exactly invariant to its members, and smooth, conservative and
    extensive as what it averages. To other rotations it is invariant up to the spherical harmonics
    that the group leaves in: degrees 4, 6, 8, ... for the octahedron and 6, 10, 12, ... for the
    icosahedron, against 1, 2, 3, ... of the network alone.

    Frames from the principal axes of the molecule (FAENet, arXiv:2305.05577) would be cheaper and
    exactly invariant, but they jump where two moments of inertia are equal (methane, benzene), and
    one frame for all atoms makes two distant molecules feel each other.

    Args:
        name: ``"none"`` (the identity), ``"octahedral"`` (24) or ``"icosahedral"`` (60).
    """
    if name == "none":
        return torch.eye(3, dtype=torch.float64).unsqueeze(0)
    if name == "octahedral":
        signed = [
            torch.diag(torch.tensor(signs, dtype=torch.float64))[list(order)]
            for order in permutations(range(3))
            for signs in product((1.0, -1.0), repeat=3)
        ]
        return torch.stack([m for m in signed if torch.linalg.det(m) > 0])
    # The 120 unit icosians, two quaternions for each rotation of the icosahedron: (+-1, 0, 0, 0),
    # (+-1, +-1, +-1, +-1) / 2 and (+-phi, +-1, +-1/phi, 0) / 2 with their even permutations.
    phi = (1.0 + math.sqrt(5.0)) / 2.0
    quaternions = [[1.0 if k == axis else 0.0 for k in range(4)] for axis in range(4)]
    quaternions += [[s / 2.0 for s in signs] for signs in product((1.0, -1.0), repeat=4)]
    for order in permutations(range(4)):
        swaps = sum(order[a] > order[b] for a in range(4) for b in range(a + 1, 4))
        if swaps % 2 == 0:
            for s, t, r in product((1.0, -1.0), repeat=3):
                values = (s * phi / 2.0, t / 2.0, r / (2.0 * phi), 0.0)
                quaternions.append([values[k] for k in order])
    found: list[Tensor] = []
    for matrix in quaternions_to_matrices(torch.tensor(quaternions, dtype=torch.float64)):
        if not any(torch.allclose(matrix, other, atol=1e-9) for other in found):  # q and -q
            found.append(matrix)
    return torch.stack(found)


def quaternions_to_matrices(quaternions: Tensor) -> Tensor:
    """Rotation matrices [n, 3, 3] of quaternions (w, x, y, z), shape [n, 4], of any length."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=1).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """Uniformly distributed rotations, float64, shape [count, 3, 3], on the generator's device."""
    drawn = torch.randn(count, 4, generator=generator, dtype=torch.float64, device=generator.device)
    return quaternions_to_matrices(drawn)
