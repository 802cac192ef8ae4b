"""A network of forces within and between water molecules, integrated over the prediction's time.

As :mod:`dcase.dae.mechanical`, with what is known of molecules without a field: accelerations are
forces over masses, forces act along the distances of pairs and are opposite for the two atoms,
those within a molecule depend on its three distances, and those between molecules on the distance
of the two atoms alone. Turned, moved and renumbered systems are therefore accelerated alike, and
momentum and angular momentum are conserved, whatever the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcase.dae.skeleton import ResidualNetwork
from dcase.errors import OptionError

MASSES = (15.999, 1.008)  # amu; O, H
REACH = 3.0  # A: where the inverse powers are 1
POWERS = (2, 3, 4, 6, 8, 10)
LENGTHS = (0.957, 0.957, 1.513)  # A; about which distances are seen
SPREAD = 0.05  # A


class MolecularNetwork(ResidualNetwork):
    """See the module.

    Args:
        molecules: Number of molecules, atoms in the order O, H, H.
        duration: Time between input and target, fs.
        layers: Runge-Kutta steps.
        hidden: Width of the network of forces within a molecule.
        seed: Of the weights.
    """

    masses: Tensor
    first: Tensor
    second: Tensor
    kind: Tensor

    def __init__(
        self, molecules: int, *, duration: float, layers: int = 4, hidden: int = 64, seed: int = 0
    ):
        super().__init__()
        if layers < 1 or hidden < 1 or molecules < 1:
            raise OptionError("molecules, layers and hidden must be at least 1")
        if not duration > 0:
            raise OptionError(f"duration must be positive, got {duration}")
        self.n_layers, self.duration, self.molecules = layers, duration, molecules
        masses = torch.tensor([MASSES[0], MASSES[1], MASSES[1]]).repeat(molecules)
        self.register_buffer("masses", masses[:, None], persistent=False)
        first, second = torch.triu_indices(3 * molecules, 3 * molecules, 1)
        between = first // 3 != second // 3
        first, second = first[between], second[between]
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        kind = (first % 3 > 0).long() + (second % 3 > 0).long()  # OO, OH, HH
        self.register_buffer("kind", kind, persistent=False)

        def mlp() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(3, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
                nn.Linear(hidden, 1),
            )  # fmt: skip

        self.bond, self.angle = mlp(), mlp()
        generator = torch.Generator().manual_seed(seed)
        for part in (self.bond, self.angle):
            for layer in part:
                if isinstance(layer, nn.Linear):
                    bound = (3.0 / layer.in_features) ** 0.5
                    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                    nn.init.zeros_(layer.bias)
            last = part[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)  # at first there are no forces
        self.pair = nn.Parameter(torch.zeros(3, len(POWERS)))

    def open(self, r: Tensor, v: Tensor) -> tuple[Tensor, Any]:
        """[B, 2, N, 3]."""
        return torch.stack([r, v], 1), None

    def close(self, z: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """Positions and velocities."""
        return z[:, 0], z[:, 1]

    def lower(self, dz: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """Their changes."""
        return dz[:, 0], dz[:, 1]

    def lift(self, dr: Tensor, dv: Tensor | None, context: Any) -> Tensor:
        """Their changes as one."""
        return torch.stack([dr, torch.zeros_like(dr) if dv is None else dv], 1)

    def steps(self) -> Tensor:
        """Equal steps of physical time [n_layers], fs."""
        return self.pair.new_full((self.n_layers,), self.duration / self.n_layers)

    def begin_layer(self, layer: int, z: Tensor, context: Any) -> Any:
        """Forces between molecules, which hardly change within a step [B, N, 3]."""
        return self._between(z[:, 0])

    def rate(self, layer: int, z: Tensor, context: Any) -> Tensor:
        """(v, a)."""
        forces = self._within(z[:, 0]) + context
        return torch.stack([z[:, 1], forces / self.masses], 1)

    def acceleration(self, r: Tensor) -> Tensor:
        """A/fs^2 [B, N, 3]."""
        return (self._within(r) + self._between(r)) / self.masses

    def _between(self, r: Tensor) -> Tensor:
        """Pair forces in amu A/fs^2, from inverse powers of the distance, by kinds of atoms."""
        apart = r[:, self.second] - r[:, self.first]
        inverse = apart.square().sum(-1).clamp_min(1e-2).rsqrt()
        scaled = REACH * inverse
        powers = torch.stack([scaled**n for n in POWERS], -1)  # [B, P, powers]
        strength = 1e-3 * (powers * self.pair[self.kind]).sum(-1)
        push = (strength * inverse).unsqueeze(-1) * apart
        return torch.zeros_like(r).index_add(1, self.second, push).index_add(1, self.first, -push)

    def _within(self, r: Tensor) -> Tensor:
        """Forces along the three distances of each molecule, of all three, amu A/fs^2."""
        o, a, b = r.reshape(len(r), self.molecules, 3, 3).unbind(2)
        sides = torch.stack([a - o, b - o, b - a], 2)  # [B, M, 3, 3]
        lengths = torch.linalg.vector_norm(sides, dim=-1)
        seen = (lengths - lengths.new_tensor(LENGTHS)) / SPREAD
        d1, d2, h = seen.unbind(-1)
        # The hydrogens are alike: the two bonds share a network, the third side sees them evenly.
        bonds = self.bond(torch.stack([seen, torch.stack([d2, d1, h], -1)], -2)).squeeze(-1)
        side = self.angle(torch.stack([d1 + d2, d1 * d2, h], -1))
        strength = 1e-2 * torch.cat([bonds, side], -1)
        f1, f2, f3 = (strength / lengths).unsqueeze(-1).mul(sides).unbind(2)
        return torch.stack([-f1 - f2, f1 - f3, f2 + f3], 2).reshape(r.shape)
