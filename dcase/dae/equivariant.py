"""The equivariant network of the water: scalars and vectors of either parity on every molecule.

A latent state holds, for each molecule, scalars (0e), pseudo-scalars (0o), vectors (1o) and
pseudo-vectors (1e); the atoms' places and velocities open into vectors. One layer (the paper's
appendix A.1, after Batzner et al. 2022):

=============================================  =================================================
equation                                       variable
=============================================  =================================================
R_k = MLP(Bessel(|d_1|), ..)                   ``kernels``: d_1.. the differences of the atoms'
A_ij = f(|c_i - c_j|) sum_k R_k d_k / |d_k|    places and velocities, c centres, f the envelope
m_i = sum_j A_ij (x) L_1 z_j                   ``messages``: times scalars, dot and cross
y_1 = gate(cos(a) L_0 z + sin(a) L_2 m)        ``rate``; a = L_3 m / 10
y_2 = normalised W (z (x) z)                   ``self_product``
dz/dtau = s y_1 + (1 - s) y_2                  ``mix``: s = min(mix^2, 1)
=============================================  =================================================

Rotations, reflections and translations of the input do the same to the output; an exchange of
molecules exchanges the outputs. All molecules are of one kind, so that the published embedding of
kinds would only be a factor on the weights, and is left out.

A pair's vectors and weights do not change within a layer, so that the sum over the published six
edge vectors (the tensor product's ``uvu`` paths) is taken once per layer and not at every stage;
the stages then are dense matrix products over all pairs of molecules, most of which are neighbours
in a droplet. Linear maps, the product of the state with itself, the gate and the radial network
are e3nn's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcase.dae.mimetic import as_generator, check_network, semi_orthogonal
from dcase.dae.skeleton import ResidualNetwork, StepSizes
from dcase.errors import MissingExtraError, OptionError

#: The published size: 2.7 million parameters (the paper's 2.8 count the embedding).
PAPER: dict[str, Any] = {"scalars": 30, "vectors": 20, "layers": 8, "radius": 15.0}
#: A size for one core.
SMALL: dict[str, Any] = {
    "scalars": 8,
    "vectors": 8,
    "layers": 4,
    "radius": 5.0,
    "radial": (24,),
    "neighbours": 12.0,
}

# Range of the basis for differences of velocities, in units of velocity_scale.
_VELOCITY_RANGE = 10.0
# Keep the derivatives of lengths and of the normalisation finite at zero; squared scaled units.
_LENGTH_EPS = 1e-12
_NORM_EPS = 1e-6


class EquivariantContext(NamedTuple):
    """What the layers share.

    Attributes:
        k: K_o [vectors, 2 A] for A atoms in a molecule.
        centre: Where each molecule was at the start [B, M, 1, 3].
        kernels: Within a layer, A of the paths that take scalars [B, 2 scalars, 3 M, M] (3 and the
            receiver, sender) and of those that take vectors [B, 4 vectors, 3 M, M].
    """

    k: Tensor
    centre: Tensor
    kernels: tuple[Tensor, Tensor] | None = None


class EquivariantLayer(nn.Module):
    """The weights of one layer."""

    def __init__(self, scalars: int, vectors: int, radial: Sequence[int]):
        super().__init__()
        from e3nn import nn as e3nn_nn
        from e3nn import o3

        state = hidden_irreps(scalars, vectors)
        # tanh is odd, as what acts on pseudo-scalars has to be.
        gate_irreps = [f"{scalars}x0o + {scalars}x0e", f"{2 * vectors}x0e"]
        self.gate = e3nn_nn.Gate(
            gate_irreps[0],
            [torch.tanh, nn.functional.silu],
            gate_irreps[1],
            [torch.sigmoid],
            f"{vectors}x1o + {vectors}x1e",
        )
        both = scalars + vectors
        message = f"{vectors}x0o + {vectors}x0e + {both}x1o + {both}x1e"
        self.self_connection = o3.Linear(state, self.gate.irreps_in)
        self.send = o3.Linear(state, state)
        self.receive = o3.Linear(message, self.gate.irreps_in)
        self.angle = o3.Linear(message, "0e")
        self.self_product = o3.FullyConnectedTensorProduct(state, state, state)
        self.radial = e3nn_nn.FullyConnectedNet(list(radial), nn.functional.silu)


class EquivariantNetwork(ResidualNetwork):
    """Scalars and vectors on molecules, in e3nn.

    Args:
        scalars: Scalars, and as many pseudo-scalars, of a molecule.
        vectors: Vectors, and as many pseudo-vectors; at least ``2 * atoms``.
        layers: Steps of pseudo-time.
        radius: Molecules whose centres are farther apart do not see each other, A.
        basis: Bessel functions for each length.
        radial: Hidden sizes of the network that weights a pair.
        neighbours: Typical neighbours within ``radius``; messages are divided by its root.
        atoms: Atoms in a molecule; consecutive rows of positions are one molecule.
        steps: Step sizes; default: learnable, starting at 1e-4 as published.
        position_scale: Positions relative to the molecule's centre are divided by it, A.
        velocity_scale: Velocities are divided by it, A/fs.
        seed: For the weights, or a generator.

    Raises:
        MissingExtraError: If the package e3nn is not installed.
        OptionError: If a size is impossible.
    """

    orders: Tensor

    def __init__(
        self,
        *,
        scalars: int = 30,
        vectors: int = 20,
        layers: int = 8,
        radius: float = 15.0,
        basis: int = 8,
        radial: Sequence[int] = (48,),
        neighbours: float = 31.0,
        atoms: int = 3,
        steps: StepSizes | None = None,
        position_scale: float = 1.0,
        velocity_scale: float = 1.0,
        seed: int | torch.Generator = 0,
    ):
        super().__init__()
        try:
            import e3nn.nn
            import e3nn.o3  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                "the equivariant network needs the package e3nn: pip install 'dcase[e3nn]'"
            ) from error
        self.step_sizes = check_network(layers, steps, position_scale, velocity_scale)
        if min(scalars, basis, atoms, *radial) < 1:
            raise OptionError("scalars, basis, atoms and the sizes in radial must be at least 1")
        if not (radius > 0 and neighbours > 0):
            raise OptionError("radius and neighbours must be above zero")
        self.n_layers, self.atoms = layers, atoms
        self.scalars, self.vectors = scalars, vectors
        self.radius, self.neighbours = radius, neighbours
        self.position_scale, self.velocity_scale = position_scale, velocity_scale
        generator = as_generator(seed)
        self.k = semi_orthogonal(vectors, 2 * atoms, generator)
        paths = 2 * scalars + 4 * vectors
        sizes = [2 * atoms * basis, *radial, 2 * atoms * paths]
        self.layers = nn.ModuleList(
            EquivariantLayer(scalars, vectors, sizes) for _ in range(layers)
        )
        self.mix = nn.Parameter(torch.full((layers,), 0.75))
        self.register_buffer("orders", torch.arange(1.0, basis + 1.0), persistent=False)
        # e3nn's weights have unit variance, all of them: the scales are in its formulas.
        for parameter in self.layers.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.register_state_dict_pre_hook(_leave_constants_out)
        self.register_load_state_dict_pre_hook(_leave_constants_out)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> EquivariantNetwork:
        """Moves to another dtype or device as any module, with constants exact in that dtype."""
        super()._apply(fn, recurse)
        self.exact_constants()
        return self

    @torch.no_grad()
    def exact_constants(self) -> None:
        """Write the coupling constants anew.

        e3nn rounds them to the default dtype when a module is built; moved to float64, that error
        would stay.
        """
        from e3nn.o3 import wigner_3j

        for name, buffer in self.named_buffers():
            if "_w3j_" in name and not buffer.is_meta:
                degrees = [int(degree) for degree in name.rsplit("_", 3)[1:]]
                buffer.copy_(wigner_3j(*degrees, dtype=torch.float64))

    def open(self, r: Tensor, v: Tensor) -> tuple[Tensor, EquivariantContext]:
        """Latent state [B, M, 2 scalars + 6 vectors] of positions and velocities [B, M * atoms, 3].

        Raises:
            OptionError: If the atoms are not whole molecules.
        """
        if r.shape[1] % self.atoms:
            raise OptionError(f"{r.shape[1]} atoms are not molecules of {self.atoms} atoms")
        centre = r.unflatten(1, (-1, self.atoms)).mean(2, keepdim=True)
        context = EquivariantContext(self.k.weight, centre)
        relative = (r.unflatten(1, (-1, self.atoms)) - centre).flatten(1, 2)
        return self.lift(relative, v, context), context

    def close(self, z: Tensor, context: EquivariantContext) -> tuple[Tensor, Tensor]:
        """Positions and velocities [B, M * atoms, 3] of a latent state."""
        r, v = self.lower(z, context)
        return (r.unflatten(1, (-1, self.atoms)) + context.centre).flatten(1, 2), v

    def lower(self, dz: Tensor, context: EquivariantContext) -> tuple[Tensor, Tensor]:
        """Positions relative to where the molecules started, and velocities."""
        odd = dz[..., 2 * self.scalars :][..., : 3 * self.vectors].unflatten(-1, (-1, 3))
        r, v = (context.k.T @ odd).split(self.atoms, 2)
        return r.flatten(1, 2) * self.position_scale, v.flatten(1, 2) * self.velocity_scale

    def lift(self, dr: Tensor, dv: Tensor | None, context: EquivariantContext) -> Tensor:
        """K_c^T of changes in physical units: vectors only, the other channels are zero."""
        x, k = dr.unflatten(1, (-1, self.atoms)) / self.position_scale, context.k
        if dv is None:
            k = k[:, : self.atoms]
        else:
            x = torch.cat([x, dv.unflatten(1, (-1, self.atoms)) / self.velocity_scale], 2)
        room = (2 * self.scalars, 3 * self.vectors)
        return nn.functional.pad((k @ x).flatten(2), room)

    def begin_layer(self, layer: int, z: Tensor, context: EquivariantContext) -> EquivariantContext:
        """What the molecules are to each other at this point."""
        r, v = self.close(z, context)
        return context._replace(kernels=self.kernels(layer, r, v))

    def kernels(self, layer: int, r: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A of every pair: see :class:`EquivariantContext`.

        ``A_ji = -A_ij`` (differences change their sign, lengths do not), so that a pair is looked
        at once.
        """
        r, v = r.unflatten(1, (-1, self.atoms)), v.unflatten(1, (-1, self.atoms))
        n_batch, n = r.shape[:2]
        receiver, sender = torch.triu_indices(n, n, 1, device=r.device)
        places = r[:, receiver] - r[:, sender]  # [B, P, atoms, 3]
        speeds = (v[:, receiver] - v[:, sender]) / self.velocity_scale
        length = (places.square().sum(-1) + _LENGTH_EPS).sqrt()
        speed = (speeds.square().sum(-1) + _LENGTH_EPS).sqrt()
        reduced = torch.cat([length / self.radius, speed / _VELOCITY_RANGE], 2)
        # sqrt(2) sin(n pi u) / (pi u), finite at u = 0
        bessel = 2.0**0.5 * self.orders * torch.sinc(reduced[..., None] * self.orders)
        weight = self.layer(layer).radial(bessel.flatten(2))  # [B, P, paths * 2 atoms]
        # A difference of velocities may vanish: its vector is not of unit length but goes to zero.
        unit = torch.cat(
            [
                places / length[..., None],
                speeds / (1.0 + speeds.square().sum(-1)).sqrt()[..., None],
            ],
            2,
        )
        centres = places.mean(2).square().sum(-1).add(_LENGTH_EPS).sqrt()
        scale = (3.0 / (2 * self.atoms * self.neighbours)) ** 0.5
        unit = unit * (scale * envelope(centres / self.radius))[..., None, None]
        kernel = weight.unflatten(2, (-1, 2 * self.atoms)) @ unit  # [B, P, paths, 3]
        pair_of = torch.zeros(n, n, dtype=torch.long, device=r.device)
        sign = r.new_zeros(n, n)
        order = torch.arange(len(receiver), device=r.device)
        pair_of[receiver, sender] = pair_of[sender, receiver] = order
        sign[receiver, sender], sign[sender, receiver] = 1.0, -1.0
        dense = kernel.permute(0, 2, 3, 1).flatten(1, 2).index_select(2, pair_of.flatten())
        dense = (dense * sign.flatten()).view(n_batch, -1, 3 * n, n)
        return dense.split([2 * self.scalars, 4 * self.vectors], 1)

    def messages(self, x: Tensor, kernels: tuple[Tensor, Tensor]) -> Tensor:
        """Sum over the senders of their states [B, M, state] times A: [B, M, message]."""
        n_batch, n = x.shape[:2]
        s, c = self.scalars, self.vectors
        flat = x[..., : 2 * s].mT.unsqueeze(-1)  # [B, 2 s, M, 1]: 0o, 0e
        odd, even = x[..., 2 * s :].unflatten(-1, (2 * c, 3)).transpose(1, 2).split(c, 1)
        # scalar times vector: from 0o a pseudo-vector, from 0e a vector
        scaled = (kernels[0] @ flat).view(n_batch, 2 * s, 3, n)
        # all products of a component of A and one of the sender's vector: [B, 4 c, 3, M, 3]
        outer = (kernels[1] @ torch.cat([even, odd, even, odd], 1)).view(n_batch, 4 * c, 3, n, 3)
        dot = outer[:, : 2 * c].diagonal(dim1=2, dim2=4).sum(-1) * 3.0**-0.5  # 0o, 0e
        turn = outer[:, 2 * c :]
        cross = torch.stack(
            [
                turn[:, :, 1, :, 2] - turn[:, :, 2, :, 1],
                turn[:, :, 2, :, 0] - turn[:, :, 0, :, 2],
                turn[:, :, 0, :, 1] - turn[:, :, 1, :, 0],
            ],
            2,
        ) * (0.5**0.5)  # [B, 2 c, 3, M]: of 1e a vector, of 1o a pseudo-vector
        vectors = torch.cat([scaled[:, s:], cross[:, :c], scaled[:, :s], cross[:, c:]], 1)
        return torch.cat([dot, vectors.flatten(1, 2)], 1).mT

    def rate(self, layer: int, z: Tensor, context: EquivariantContext) -> Tensor:
        """dz/dtau [B, M, state]."""
        assert context.kernels is not None, "begin_layer comes first"
        block = self.layer(layer)
        message = self.messages(block.send(z), context.kernels)
        angle = 0.1 * block.angle(message)  # small at first: the molecule's own state leads
        own = block.self_connection(z)
        convolved = block.gate(angle.cos() * own + angle.sin() * block.receive(message))
        share = self.mix[layer].square().clamp(max=1.0)
        return torch.lerp(self.normalised(block.self_product(z, z)), convolved, share)

    def normalised(self, y: Tensor) -> Tensor:
        """Scalars divided by their root mean square over the channels, vectors by theirs.

        The published code divides by standard deviations over scalars and pseudo-scalars together,
        which a reflection changes; these it does not.
        """
        scalars, vectors = y[..., : 2 * self.scalars], y[..., 2 * self.scalars :]
        scalar_size = scalars.square().mean(-1, keepdim=True)
        vector_size = 3.0 * vectors.square().mean(-1, keepdim=True)
        return torch.cat(
            [
                scalars * (scalar_size + _NORM_EPS).rsqrt(),
                vectors * (vector_size + _NORM_EPS).rsqrt(),
            ],
            -1,
        )

    def layer(self, layer: int) -> EquivariantLayer:
        """The weights of one layer."""
        weights = self.layers[layer]
        assert isinstance(weights, EquivariantLayer)
        return weights

    def steps(self) -> Tensor:
        """Steps of pseudo-time [n_layers]."""
        return self.step_sizes()


def _leave_constants_out(network: nn.Module, *_: Any) -> None:
    """Keep e3nn's constants out of saved weights.

    They follow from the sizes, and their names change when a network is copied (e3nn traces its
    formulas anew).
    """
    for module in network.modules():
        module._non_persistent_buffers_set.update(module._buffers)


def hidden_irreps(scalars: int, vectors: int) -> str:
    """The latent state of a molecule in e3nn's notation, in the order of its channels."""
    return f"{scalars}x0o + {scalars}x0e + {vectors}x1o + {vectors}x1e"


def envelope(u: Tensor) -> Tensor:
    """1 at u = 0 and 0 from u = 1 on, with two continuous derivatives."""
    u = u.clamp(max=1.0)
    return 1.0 - u**3 * (10.0 - 15.0 * u + 6.0 * u**2)
