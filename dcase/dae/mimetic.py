"""The mimetic network of the pendulum: averages and differences along the edges of a fixed graph.

One block, with ``W`` a weight for every edge and channel, ``G`` the differences and ``A`` the
averages of the two ends of an edge (the paper's appendix A.2, after Eliasof et al. 2022):

======================================  ========================================================
equation                                variable
======================================  ========================================================
W = silu(L_w [t_i, t_j, |r_i - r_j|])   ``begin_layer`` (t: a learnable type of each node)
g = W G z,  a = W A z                   ``ends``
q = [g, a, g a, g^2, a^2]               ``products``
e = tanh L_2 tanh tvnorm L_1 tanh q     ``h``; published: L_2 is L_1
dz/dtau = -G^T W e_1 + A^T W (e_2+..)   ``rate``
======================================  ========================================================

``tvnorm`` takes the mean over the channels off and divides by sqrt(sum of squares + 1e-3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcase.dae.skeleton import ResidualNetwork, StepSizes
from dcase.errors import OptionError

#: The published size: 2.9 million parameters are used (see :class:`MimeticNetwork`).
PAPER: dict[str, int] = {"latent": 120, "layers": 8}
#: A size for one core.
SMALL: dict[str, int] = {"latent": 32, "layers": 4}

_NORM_EPS = 1e-3
# The distance of two nodes at one place has no derivative; this rounds it off there, [scaled^2].
_DISTANCE_EPS = 1e-12


class Orthonormal(nn.Module):
    """Parametrisation of a matrix with orthonormal columns: the Q of a free matrix's Q R.

    R has a positive diagonal, so that a matrix that is orthonormal already is its own Q. The result
    is orthonormal to rounding error in whatever dtype the module is in, and for any values of the
    parameters. ``torch.nn.utils.parametrizations.orthogonal`` is neither: it stores an orthonormal
    factor, which keeps float32's error when moved to float64, or signs among the parameters, which
    a weight decay turns into zeros.
    """

    def forward(self, free: Tensor) -> Tensor:
        """Q of [latent, inputs]."""
        q, r = torch.linalg.qr(free)
        return q * r.diagonal().sign()

    def right_inverse(self, k: Tensor) -> Tensor:
        """A free matrix whose Q is ``k``: itself."""
        return k


def semi_orthogonal(latent: int, inputs: int, generator: torch.Generator) -> nn.Linear:
    """A learnable ``weight`` [latent, inputs] with orthonormal columns: K_o; K_c is its transpose.

    Raises:
        OptionError: If ``latent < inputs``, when no such matrix exists.
    """
    if latent < inputs:
        raise OptionError(f"the latent space needs at least {inputs} channels, got {latent}")
    linear = nn.Linear(inputs, latent, bias=False)
    nn.init.orthogonal_(linear.weight, generator=generator)
    nn.utils.parametrize.register_parametrization(linear, "weight", Orthonormal())
    return linear


class MimeticContext(NamedTuple):
    """What the layers share: K [latent, 2 dim], and W [B, E, latent] within a layer."""

    k: Tensor
    weight: Tensor | None = None


class MimeticBlock(nn.Module):
    """The weights of one layer."""

    def __init__(self, latent: int, type_size: int, duplicate: bool, generator: torch.Generator):
        super().__init__()
        width = 5 * latent
        self.edge = nn.Linear(2 * type_size + 1, latent)
        self.first = nn.Linear(width, width, bias=False)
        self.second = None if duplicate else nn.Linear(width, width, bias=False)
        for linear in (self.edge, self.first, self.second):
            if linear is not None:
                _draw_uniform_(linear, generator)


class MimeticNetwork(ResidualNetwork):
    """Differences and averages over the edges of one graph, the same for every sample.

    With ``latent=120, layers=8`` it has 2.9 million parameters. The paper counts 5.8 million: its
    code holds a second 600 x 600 matrix in every block that is never used, the first being applied
    twice. ``duplicate=False`` uses a second one, and has those 5.8 million.

    Args:
        n_nodes: Nodes N.
        edges: Pairs (i, j) of nodes [E, 2], every edge once; its difference is z_j - z_i.
        dim: Coordinates per node.
        latent: Channels per node, at least ``2 * dim``.
        layers: Steps of pseudo-time.
        type_size: Numbers that tell nodes apart (one learnable vector a node).
        steps: Step sizes; default: learnable, starting at 1e-4 as published.
        position_scale: Positions are divided by it inside the network.
        velocity_scale: Velocities are divided by it.
        duplicate: Apply one matrix twice in a block, as published.
        seed: For the weights, or a generator.

    Raises:
        OptionError: If an edge names no node or joins a node to itself, or a size is impossible.
    """

    source: Tensor
    target: Tensor
    gather: Tensor
    scatter: Tensor

    def __init__(
        self,
        *,
        n_nodes: int,
        edges: Tensor | Sequence[tuple[int, int]],
        dim: int = 2,
        latent: int = 120,
        layers: int = 8,
        type_size: int = 8,
        steps: StepSizes | None = None,
        position_scale: float = 1.0,
        velocity_scale: float = 1.0,
        duplicate: bool = True,
        seed: int | torch.Generator = 0,
    ):
        super().__init__()
        pairs = torch.as_tensor(edges, dtype=torch.long).reshape(-1, 2)
        if len(pairs) == 0 or pairs.min() < 0 or pairs.max() >= n_nodes:
            raise OptionError(f"edges must join nodes 0..{n_nodes - 1}, got {pairs.tolist()}")
        if (pairs[:, 0] == pairs[:, 1]).any():
            raise OptionError("an edge joins a node to itself; leave it out")
        step_sizes = check_network(layers, steps, position_scale, velocity_scale)
        self.n_layers = layers
        self.dim = dim
        self.position_scale = position_scale
        self.velocity_scale = velocity_scale
        generator = as_generator(seed)
        self.k = semi_orthogonal(latent, 2 * dim, generator)
        self.types = nn.Parameter(torch.randn(n_nodes, type_size, generator=generator))
        self.blocks = nn.ModuleList(
            MimeticBlock(latent, type_size, duplicate, generator) for _ in range(layers)
        )
        self.step_sizes = step_sizes
        self.register_buffer("source", pairs[:, 0].contiguous(), persistent=False)
        self.register_buffer("target", pairs[:, 1].contiguous(), persistent=False)
        # On a handful of nodes a dense matrix product is far cheaper than indexing and scattering.
        difference = torch.zeros(len(pairs), n_nodes)
        difference[torch.arange(len(pairs)), pairs[:, 0]] = -1.0
        difference[torch.arange(len(pairs)), pairs[:, 1]] = 1.0
        average = 0.5 * difference.abs()
        gather = torch.stack([difference, average], 1).flatten(0, 1)
        scatter = torch.stack([-difference, *[average] * 4], 1).flatten(0, 1).T.contiguous()
        self.register_buffer("gather", gather, persistent=False)  # [2 E, N]
        self.register_buffer("scatter", scatter, persistent=False)  # [N, 5 E]

    def open(self, r: Tensor, v: Tensor) -> tuple[Tensor, MimeticContext]:
        """Latent state [B, N, latent] of positions and velocities [B, N, dim]."""
        context = MimeticContext(self.k.weight)
        return self.lift(r, v, context), context

    def close(self, z: Tensor, context: MimeticContext) -> tuple[Tensor, Tensor]:
        """Positions and velocities [B, N, dim] of a latent state."""
        return self.lower(z, context)

    def lower(self, dz: Tensor, context: MimeticContext) -> tuple[Tensor, Tensor]:
        """The same as :meth:`close`, which is linear."""
        r, v = (dz @ context.k).split(self.dim, -1)
        return r * self.position_scale, v * self.velocity_scale

    def lift(self, dr: Tensor, dv: Tensor | None, context: MimeticContext) -> Tensor:
        """K_c^T of changes in physical units."""
        if dv is None:
            return dr @ (context.k[:, : self.dim].T / self.position_scale)
        x = torch.cat([dr / self.position_scale, dv / self.velocity_scale], -1)
        return x @ context.k.T

    def begin_layer(self, layer: int, z: Tensor, context: MimeticContext) -> MimeticContext:
        """Weights of the edges, from the nodes' types and their distance at this point."""
        r = z @ context.k[:, : self.dim]  # [B, N, dim], scaled
        d = r[:, self.target] - r[:, self.source]
        distance = (d.square().sum(-1, keepdim=True) + _DISTANCE_EPS).sqrt()
        edge = self.block(layer).edge
        types = torch.cat([self.types[self.source], self.types[self.target]], -1)  # [E, 2 types]
        # The same as one Linear of [types, distance], without copying the types to every sample.
        constant = F.linear(types, edge.weight[:, :-1], edge.bias)
        return context._replace(weight=F.silu(constant + distance * edge.weight[:, -1]))

    def rate(self, layer: int, z: Tensor, context: MimeticContext) -> Tensor:
        """dz/dtau [B, N, latent]."""
        block = self.block(layer)
        assert context.weight is not None, "begin_layer comes first"
        second = block.first if block.second is None else block.second
        n, e, c = z.shape[0], context.weight.shape[1], z.shape[2]
        w = context.weight[:, :, None]
        ends = torch.matmul(self.gather, z).view(n, e, 2, c) * w
        products = torch.cat([ends, ends[:, :, :1] * ends[:, :, 1:], ends.square()], 2)
        h = F.linear(products.view(n * e, 5 * c).tanh(), block.first.weight)
        # Layer norm divides by the root of the MEAN square, the published norm by that of the sum.
        width = h.shape[-1]
        h = F.layer_norm(h, (width,), eps=_NORM_EPS / width).mul_(width**-0.5)
        h = F.linear(h.tanh(), second.weight).tanh()
        return torch.matmul(self.scatter, (h.view(n, e, 5, c) * w).view(n, 5 * e, c))

    def block(self, layer: int) -> MimeticBlock:
        """The weights of one layer."""
        block = self.blocks[layer]
        assert isinstance(block, MimeticBlock)
        return block

    def steps(self) -> Tensor:
        """Steps of pseudo-time [n_layers]."""
        return self.step_sizes()


def as_generator(seed: int | torch.Generator) -> torch.Generator:
    """The generator itself, or a new one with this seed."""
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator().manual_seed(seed)


def check_network(
    layers: int, steps: StepSizes | None, position_scale: float, velocity_scale: float
) -> StepSizes:
    """The steps to use; raises :class:`OptionError` where an option common to networks is wrong."""
    if layers < 1:
        raise OptionError(f"a network needs at least one layer, got {layers}")
    if not (position_scale > 0 and velocity_scale > 0):
        raise OptionError("position_scale and velocity_scale must be above zero")
    if steps is None:
        return StepSizes(layers)
    if steps.root.numel() != layers:
        raise OptionError(f"{steps.root.numel()} steps for {layers} layers; give one for each")
    return steps


@torch.no_grad()
def _draw_uniform_(linear: nn.Linear, generator: torch.Generator) -> None:
    """As torch draws a linear layer, uniform within 1 / sqrt(inputs), but from a generator."""
    bound = linear.in_features**-0.5
    linear.weight.uniform_(-bound, bound, generator=generator)
    if linear.bias is not None:
        linear.bias.uniform_(-bound, bound, generator=generator)
