"""A network of accelerations: r' = v, v' = a(r, v), over the physical time of the prediction.

The large space is that of positions and velocities itself (K the identity), the layers are equal
Runge-Kutta steps through the time between input and target, and all of them share one network of
messages along the constraints' pairs. It knows that velocities are the derivatives of positions and
how long a prediction takes; forces it has to learn, including those of the constraint unless the
method takes care of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcase.dae.skeleton import ResidualNetwork
from dcase.errors import OptionError


class MechanicalNetwork(ResidualNetwork):
    """See the module.

    Args:
        pairs: [E, 2] interacting nodes; -1 is the fixed origin.
        types: Kind of each node [N]; nodes of one kind share their embedding.
        dim: d.
        duration: Time between input and target, in the unit of the velocities.
        layers: Runge-Kutta steps.
        hidden: Features of nodes and messages.
        rounds: Rounds of messages.
        acceleration_scale: Typical acceleration.
        velocity_scale: Typical velocity.
        seed: Of the weights.
    """

    first: Tensor
    second: Tensor
    to_first: Tensor
    to_second: Tensor

    def __init__(
        self,
        pairs: Sequence[Sequence[int]] | Tensor,
        types: Sequence[int],
        dim: int,
        *,
        duration: float,
        layers: int = 8,
        hidden: int = 64,
        rounds: int = 2,
        acceleration_scale: float = 1.0,
        velocity_scale: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        if layers < 1 or hidden < 1 or rounds < 1:
            raise OptionError("layers, hidden and rounds must be at least 1")
        if not duration > 0:
            raise OptionError(f"duration must be positive, got {duration}")
        self.n_layers, self.duration = layers, duration
        self.acceleration_scale, self.velocity_scale = acceleration_scale, velocity_scale
        n = len(types)
        pairs = torch.as_tensor(pairs, dtype=torch.long).reshape(-1, 2)
        pairs = torch.where(pairs < 0, n, pairs)  # the origin is one more node, the last
        self.register_buffer("first", pairs[:, 0], persistent=False)
        self.register_buffer("second", pairs[:, 1], persistent=False)
        rows = torch.arange(len(pairs))
        ends = []
        for end in (0, 1):
            to = torch.zeros(n + 1, len(pairs))
            to[pairs[:, end], rows] = 1.0
            ends.append(to[:n])
        self.register_buffer("to_first", ends[0], persistent=False)
        self.register_buffer("to_second", ends[1], persistent=False)
        kinds = torch.tensor([*types, max(types) + 1])
        self.register_buffer("kinds", kinds, persistent=False)

        self.embedding = nn.Embedding(int(kinds.max()) + 1, hidden)
        seen = 2 + 2 * dim  # of a pair: distance, its rate of change, and the vectors
        self.place = nn.Linear(2 * dim, hidden)
        self.message = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2 * hidden + seen, hidden), nn.SiLU(), nn.Linear(hidden, 2 * hidden)
            )
            for _ in range(rounds)
        )
        self.update = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            for _ in range(rounds)
        )
        self.out = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, dim))
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = (3.0 / module.in_features) ** 0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, generator=generator)
        # At first there is no acceleration: training starts from uniform motion.
        last = self.out[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)

    def open(self, r: Tensor, v: Tensor) -> tuple[Tensor, Any]:
        """[B, 2, N, d]."""
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
        """Equal steps of physical time [n_layers]."""
        return self.embedding.weight.new_full((self.n_layers,), self.duration / self.n_layers)

    def rate(self, layer: int, z: Tensor, context: Any) -> Tensor:
        """(v, a)."""
        r, v = z[:, 0], z[:, 1]
        return torch.stack([v, self.acceleration(r, v)], 1)

    def acceleration(self, r: Tensor, v: Tensor) -> Tensor:
        """Accelerations [B, N, d]."""
        origin = r.new_zeros(len(r), 1, r.shape[2])
        r_all, v_all = torch.cat([r, origin], 1), torch.cat([v, origin], 1)
        between = r_all[:, self.second] - r_all[:, self.first]
        relative = (v_all[:, self.second] - v_all[:, self.first]) / self.velocity_scale
        distance = torch.linalg.vector_norm(between, dim=-1, keepdim=True)
        unit = between / distance.clamp_min(1e-6)
        stretch = (unit * relative).sum(-1, keepdim=True)
        seen = torch.cat([distance, stretch, between, relative], -1)
        placed = self.place(torch.cat([r_all, v_all / self.velocity_scale], -1))
        h = self.embedding(self.kinds) + placed
        for message, update in zip(self.message, self.update, strict=True):
            told = message(torch.cat([h[:, self.first], h[:, self.second], seen], -1))
            back, forth = told.chunk(2, -1)
            gathered = self.to_first @ back + self.to_second @ forth
            node = h[:, :-1]
            node = node + update(torch.cat([node, gathered], -1))
            h = torch.cat([node, h[:, -1:]], 1)
        return self.acceleration_scale * self.out(h[:, :-1])
