"""ForceNet: messages from Cartesian edge features (Hu et al. 2021, arXiv:2103.01436).

Open Catalyst's form of it, with the energy head of the DC paper: the force decoder is taken off and
forces are the derivative of the energy. Notation: ``h_i`` features of atom i, ``u_ij`` the unit
vector from i to j, ``r_i`` atomic radii, ``fc`` the cutoff envelope, (.) the elementwise product.

    h_i    = Dense(basis(properties of the element))
    e_ij   = basis(u_ij, (d, d - r_j, d - r_i, d - r_j - r_i) / rc)                     (sec. 3)
    F_ij   = fc(d) MLP(Dense(e_ij), h_j, h_i)                                           (eq. 3)
    m_i    = sum_j F_ij (.) A h_j + c (.) A h_i                                         (eq. 2)
    h_i   <- h_i + Dense(act(BN(Dense(m_i))))
    E      = sum_i [w . act(Dense(h_i)) + b]                                            read-out

The components of ``u_ij`` make this network see angles cheaply, and make it **not invariant to
rotation**: turn the molecule and the energy changes, so that forces exert a torque and angular
momentum is not conserved. Training on rotated frames teaches the symmetry (``augment_rotations``),
and ``frames`` averages over a finite group of rotations; see
:mod:`dcase.potentials.graphs.rotations`.

The published implementation (``variant="paper"``) moreover has an envelope ``cos(pi d / 2 rc)``
that ends with a slope, and replaces what falls below 1e-3 of the four scaled distances by 1e-3:
with the published radii a C-C bond of 1.40 A, the length of aromatic ones, is just there, and the
force jumps. The bound keeps distances positive, which neither Gaussians nor sines ask for: the
default variant has none. It also gives each atom the bias b of the read-out, not each system.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dcase.activations import get_activation
from dcase.errors import OptionError
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.graphs.rotations import FRAMES, rotation_group
from dcase.potentials.networks.architecture import Architecture, check_sizes
from dcase.potentials.networks.bases import GaussianBasis, PolynomialEnvelope
from dcase.potentials.networks.cartesian import SineBasis, SphericalHarmonics
from dcase.potentials.networks.element_features import atomic_radii, continuous_features
from dcase.potentials.networks.float64_buffers import ExactBuffers

BASES = ("gauss", "sphallmul")

# Pairs, times orientations, that are held in memory at once: some 0.5 GB of size md17.
_PAIRS_AT_ONCE = 20_000


class Interaction(nn.Module):
    """One interaction block.

    Args:
        hidden: Size H of the atom features.
        num_features: Size of the edge features.
        depth_mlp_edge: Hidden layers of the filter's MLP.
        depth_mlp_node: Hidden layers of the update's MLP.
        activation: Name of the activation.
    """

    def __init__(
        self,
        hidden: int,
        num_features: int,
        depth_mlp_edge: int,
        depth_mlp_node: int,
        activation: str,
    ):
        super().__init__()
        self.edge_embedding = nn.Linear(num_features, hidden)
        # The three column blocks of the filter MLP's first layer.
        self.edge_in = nn.Linear(hidden, hidden)
        self.source_in = nn.Linear(hidden, hidden, bias=False)
        self.target_in = nn.Linear(hidden, hidden, bias=False)
        self.filter_mlp = nn.Sequential()
        for _ in range(depth_mlp_edge):
            self.filter_mlp.append(get_activation(activation))
            self.filter_mlp.append(nn.Linear(hidden, hidden))
        if depth_mlp_edge == 0:
            self.filter_mlp.append(nn.BatchNorm1d(hidden))
        self.atom_in = nn.Linear(hidden, hidden)
        self.self_weight = nn.Parameter(torch.empty(1, hidden))
        self.update = nn.Sequential(nn.Linear(hidden, hidden))
        for _ in range(depth_mlp_node):
            self.update.append(nn.BatchNorm1d(hidden))
            self.update.append(get_activation(activation))
            self.update.append(nn.Linear(hidden, hidden))
        if depth_mlp_node == 0:
            self.update.append(nn.BatchNorm1d(hidden))
        _xavier(self)
        bound = math.sqrt(6.0 / (4 * hidden))  # the first layer's three blocks are one matrix
        for block in (self.edge_in, self.source_in, self.target_in):
            nn.init.uniform_(block.weight, -bound, bound)
        nn.init.xavier_uniform_(self.self_weight)

    def forward(
        self, h: Tensor, source: Tensor, target: Tensor, features: Tensor, envelope: Tensor
    ) -> Tensor:
        """The update of ``h``, shape [n_atoms, H].

        Args:
            h: Features, shape [n_atoms, H].
            source: Atom j of each edge, int64, shape [n_edges].
            target: Atom i of each edge, int64, shape [n_edges].
            features: Of each edge, shape [n_edges, num_features].
            envelope: Weight of each edge, shape [n_edges, 1].
        """
        x = self.atom_in(h)
        message = self.self_weight * x
        if len(source):  # else there is nothing that batch statistics could be taken of
            # Two linear maps in a row are one: a product of small matrices saves one of edges.
            weight = self.edge_in.weight @ self.edge_embedding.weight
            bias = self.edge_in(self.edge_embedding.bias)
            mixed = nn.functional.linear(features, weight, bias)
            mixed = mixed + self.source_in(h).index_select(0, source)
            mixed = mixed + self.target_in(h).index_select(0, target)
            filters = self.filter_mlp(mixed) * envelope
            message = message.index_add(0, target, filters * x.index_select(0, source))
        return self.update(message)


class ForceNet(ExactBuffers):
    """Per-atom energies from an :class:`~dcase.potentials.graphs.graph.AtomicGraph`.

    Args:
        elements: Atomic numbers, in the order of their index.
        hidden_channels: Size of the atom features.
        num_interactions: Number of interaction blocks.
        basis: Edge features: ``"gauss"`` (Gaussians of each component of the unit vector and each
            distance, as in the DC paper) or ``"sphallmul"`` (spherical harmonics times radial
            functions, as published for ForceNet's best results).
        num_freqs: Gaussians or sines of each number.
        max_n: ``"sphallmul"``: spherical harmonics of degree 0 ... max_n - 1.
        depth_mlp_edge: Hidden layers of the filter's MLP.
        depth_mlp_node: Hidden layers of the update's MLP.
        decoder_channels: Size of the read-out's hidden layer.
        cutoff: A.
        activation: Name of the activation, used everywhere, as the DC paper's IReLU replacement.
        frames: Rotations to average the energy over in evaluation (training uses the network as it
            is, on rotated frames if the recipe says so): ``"none"``, ``"octahedral"`` (24) or
            ``"icosahedral"`` (60); costs that many evaluations.
        variant: ``"paper"``: envelope with a slope at the cutoff, scaled distances bounded by 1e-3,
            one bias for each system.
        normalization: Keep the BatchNorm layers. They are always built; the registry takes them
            out.

    Raises:
        OptionError: If a size is not positive, a name is unknown, or an element has no features.
    """

    #: The conformance checks measure rotation, mirror and torque, as expected failures.
    rotation_invariant = False

    properties: Tensor
    radii: Tensor
    rotations: Tensor

    def __init__(
        self,
        elements: list[int],
        *,
        hidden_channels: int = 64,
        num_interactions: int = 3,
        basis: str = "sphallmul",
        num_freqs: int = 50,
        max_n: int = 3,
        depth_mlp_edge: int = 2,
        depth_mlp_node: int = 1,
        decoder_channels: int = 64,
        cutoff: float = 5.0,
        activation: str = "irelu",
        frames: str = "none",
        variant: str = "default",
        normalization: bool = False,
    ):
        super().__init__()
        sizes = {
            "hidden_channels": (hidden_channels, 1),
            "num_interactions": (num_interactions, 0),
            "num_freqs": (num_freqs, 2),
            "max_n": (max_n, 1),
            "depth_mlp_edge": (depth_mlp_edge, 0),
            "depth_mlp_node": (depth_mlp_node, 0),
            "decoder_channels": (decoder_channels, 1),
        }
        check_sizes(sizes, cutoff)
        for name, value, known in (("basis", basis, BASES), ("frames", frames, FRAMES)):
            if value not in known:
                raise OptionError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        self.cutoff = float(cutoff)
        self.to_the_letter = variant == "paper"
        self.register_buffer("radii", atomic_radii(elements), persistent=False)
        self.register_buffer("properties", continuous_features(elements), persistent=False)
        self.register_buffer("rotations", rotation_group(frames), persistent=False)

        self.harmonics = SphericalHarmonics(max_n - 1) if basis == "sphallmul" else None
        self.numbers_basis: nn.Module
        if self.harmonics is None:
            self.numbers_basis = GaussianBasis(1.0, num_freqs)
            self.radial = None
            num_features = 7 * num_freqs
        else:
            self.numbers_basis = SineBasis(num_freqs)
            self.radial = nn.Linear(4 * num_freqs, 4)
            num_features = 4 * self.harmonics.size
        self.embedding = nn.Linear(self.properties.shape[1] * num_freqs, hidden_channels)
        self.interactions = nn.ModuleList(
            Interaction(hidden_channels, num_features, depth_mlp_edge, depth_mlp_node, activation)
            for _ in range(num_interactions)
        )
        self.envelope = PolynomialEnvelope(cutoff, 5)
        self.out_in = nn.Linear(hidden_channels, decoder_channels)
        self.out_act = get_activation(activation)
        self.out = nn.Linear(decoder_channels, 1)

    def forward(self, species: Tensor, graph: AtomicGraph) -> Tensor:
        """Per-atom energies in the network's unit.

        Args:
            species: Index of each atom's element, int64, shape [n_atoms].
            graph: The atoms and their pairs.

        Returns:
            Shape [n_atoms].
        """
        vectors = graph.vectors()
        distances = torch.linalg.vector_norm(vectors, dim=1)
        units = vectors / distances.unsqueeze(-1)  # from i to j
        count = None
        if self.to_the_letter:
            count = torch.bincount(graph.system, minlength=graph.n_systems)[graph.system]
        copies = len(self.rotations)
        if self.training or copies == 1:
            return self._atom_energies(species, graph.pairs, units, distances, count)
        arguments = (species, graph.pairs, units, distances, count)
        at_once = max(1, _PAIRS_AT_ONCE // max(1, len(distances)))
        if copies <= at_once:
            return self._sum_over(self.rotations, *arguments) / copies
        # Many: what the gradient needs of each part is computed again when its turn comes.
        parts = [
            checkpoint(self._sum_over, turns, *arguments, use_reentrant=False)
            for turns in self.rotations.split(at_once)
        ]
        return torch.stack(parts).sum(0) / copies

    def _sum_over(
        self,
        rotations: Tensor,
        species: Tensor,
        pairs: Tensor,
        units: Tensor,
        distances: Tensor,
        count: Tensor | None,
    ) -> Tensor:
        """Energies [n_atoms] summed over ``rotations`` [n, 3, 3]; the rest as below."""
        copies = len(rotations)
        # All orientations as one batch of systems that do not see each other.
        turned = torch.einsum("gxy,py->gpx", rotations, units).flatten(0, 1)
        first = torch.arange(copies, device=species.device) * len(species)
        energies = self._atom_energies(
            species.repeat(copies),
            (pairs.unsqueeze(1) + first.unsqueeze(-1)).flatten(1),
            turned,
            distances.repeat(copies),
            None if count is None else count.repeat(copies),
        )
        return energies.view(copies, -1).sum(0)

    def _atom_energies(
        self,
        species: Tensor,
        pairs: Tensor,
        units: Tensor,
        distances: Tensor,
        count: Tensor | None,
    ) -> Tensor:
        """Energies [n_atoms] from pairs [2, n_pairs], their directions and lengths.

        ``count`` [n_atoms] is the number of atoms of each one's system, where they share a bias.
        """
        dtype = self.embedding.weight.dtype
        properties = self.numbers_basis(self.properties).to(dtype).flatten(1)
        h = self.embedding(properties).index_select(0, species)
        i, j = pairs
        source, target = torch.cat([j, i]), torch.cat([i, j])
        features = self._edge_features(species[source], species[target], units, distances, dtype)
        weight = self._envelope(distances).to(dtype).unsqueeze(-1)
        weight = torch.cat([weight, weight])
        for block in self.interactions:
            h = h + block(h, source, target, features, weight)
        decoded = self.out_act(self.out_in(h))
        if count is None:
            return self.out(decoded).squeeze(-1)
        return (decoded @ self.out.weight.T).squeeze(-1) + self.out.bias / count.to(dtype)

    def _edge_features(
        self, source: Tensor, target: Tensor, units: Tensor, distances: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Features [n_edges, num_features]; elements ``source``, ``target`` [n_edges]."""
        d = torch.cat([distances, distances])
        u = torch.cat([units, -units])
        r_j, r_i = self.radii[source], self.radii[target]
        scaled = torch.stack([d, d - r_j, d - r_i, d - r_j - r_i], dim=1) / self.cutoff
        if self.to_the_letter:
            scaled = scaled.clamp(min=1e-3)
        if self.harmonics is None:
            numbers = torch.cat([(u + 1.0) / 2.0, scaled], dim=1)
            return self.numbers_basis(numbers, dtype).flatten(1)
        assert self.radial is not None
        radial = self.radial(self.numbers_basis(scaled, dtype).flatten(1))  # [n_edges, 4]
        harmonics = self.harmonics(u).to(dtype)  # [n_edges, max_n^2]
        return (harmonics.unsqueeze(-1) * radial.unsqueeze(1)).flatten(1)

    def _envelope(self, distances: Tensor) -> Tensor:
        if self.to_the_letter:
            return torch.cos(distances.clamp(max=self.cutoff) * (0.5 * math.pi / self.cutoff))
        return self.envelope(distances)


def _xavier(module: nn.Module) -> None:
    """Xavier's uniform weights and zero biases, as published."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


ARCHITECTURE = Architecture(
    "forcenet",
    ForceNet,
    sizes={
        # Open Catalyst's ForceNet with the DC paper's basis, the size of its tables.
        "paper": {
            "hidden_channels": 512,
            "num_interactions": 5,
            "basis": "gauss",
            "num_freqs": 50,
            "depth_mlp_edge": 2,
            "depth_mlp_node": 1,
            "decoder_channels": 512,
            "cutoff": 6.0,
        },
        # MDsim's MD17 setting (512 channels, 5 blocks) is for GPUs; this one trains on a CPU.
        "md17": {
            "hidden_channels": 64,
            "num_interactions": 3,
            "basis": "sphallmul",
            "num_freqs": 50,
            "max_n": 3,
            "decoder_channels": 64,
            "cutoff": 5.0,
        },
        "tiny": {
            "hidden_channels": 16,
            "num_interactions": 2,
            "basis": "sphallmul",
            "num_freqs": 8,
            "max_n": 3,
            "decoder_channels": 16,
            "cutoff": 4.0,
        },
    },
    paper_activation="silu",
    departures=(
        "the force jumps when a pair crosses the cutoff (cos(pi d / 2 rc) ends with a slope)",
        "the energy has a kink where a bond is as long as its radii add up to (C-C at 1.40 A)",
        "one bias for each system, whatever its size: separate fragments do not add up",
    ),
    limits=(
        "not invariant to rotation (the energy changes when a molecule is turned, forces exert a "
        "torque on it, angular momentum is not conserved)",
    ),
    by_elements=True,
    kernel_plan="dcase.potentials.kernels.networks:forcenet",
)
