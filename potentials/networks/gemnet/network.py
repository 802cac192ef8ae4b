"""GemNet-T with forces from the gradient of the energy (Gasteiger et al., arXiv:2106.08903).

Notation: ``h_a`` atom embeddings, ``m_ca`` message of the edge c->a, ``rbf(d)`` radial basis times
envelope.

    h_a  = Embedding(z_a),   m_ca = act(W [h_c, h_a, rbf(d_ca)])
    h, m <- InteractionBlock(h, m)            num_interactions times
    E    = sum_a sum_j OutputBlock_j(m)_a     after the embedding and after every block

Layer for layer the GemNet-T of Open Catalyst's implementation: the circular basis is the radial
basis times spherical harmonics of the angle, not spherical Bessel functions. Two things differ in
both variants: no neighbour is ever dropped, and the frequencies of the Bessel functions, which are
trained, are the same in the radial and the circular basis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcase.errors import OptionError
from dcase.potentials.graphs.edges import directed_edges
from dcase.potentials.graphs.graph import AtomicGraph
from dcase.potentials.networks.architecture import Architecture, check_sizes
from dcase.potentials.networks.bases import BesselBasis, GaussianBasis, PolynomialEnvelope
from dcase.potentials.networks.gemnet import scaling
from dcase.potentials.networks.gemnet.blocks import (
    EdgeFeatures,
    InteractionBlock,
    OutputBlock,
    Sizes,
)
from dcase.potentials.networks.gemnet.layers import PublishedActivation, ScaledActivation, linear
from dcase.potentials.networks.gemnet.triplets import CircularProjection, geometry

# Of the last layers' initial weights, default variant. As published, the forces of a fresh network
# are 6 times labels of unit variance, and the first hundred steps go into making them smaller.
_OUTPUT_SCALE = 0.05

# Least values; 1 where not given.
_LEAST = {
    "num_interactions": 0,
    "num_before_skip": 0,
    "num_after_skip": 0,
    "num_concat": 0,
    "num_atom": 0,
    "num_gaussians": 2,
    "envelope_exponent": 2,
}


class GemNetT(nn.Module):
    """Per-atom energies from an :class:`~dcase.potentials.graphs.graph.AtomicGraph`.

    Args:
        num_elements: Number of element embeddings.
        emb_size_atom: Size of the atom embeddings.
        emb_size_edge: Size of the messages.
        emb_size_trip: Size of the messages in the sum over triplets.
        emb_size_rbf: Size of the projected radial basis.
        emb_size_cbf: Size of the projected circular basis.
        emb_size_bil_trip: Size after the bilinear layer.
        num_interactions: Number of interaction blocks.
        num_before_skip: Residual layers before the skip connection of the messages.
        num_after_skip: Residual layers after it.
        num_concat: Residual layers after messages and atoms are concatenated.
        num_atom: Residual layers of the atom update and the output blocks.
        num_spherical: Number of spherical harmonics of the angle.
        radial_basis: ``"bessel"`` or ``"gaussian"``.
        num_radial: Number of Bessel functions.
        num_gaussians: Number of Gaussians.
        envelope_exponent: Order p of the polynomial envelope.
        cutoff: A.
        activation: Name of the activation.
        variant: ``"default"``, or ``"paper"``: the scale factors that were fitted on OC20, and no
            gain for activations other than SiLU.
        placement: ``"published"``: the activation in the output blocks and SiLU elsewhere;
            ``"all"``: everywhere.

    Raises:
        OptionError: If a size is not positive or a choice unknown.
    """

    def __init__(
        self,
        num_elements: int,
        *,
        emb_size_atom: int = 128,
        emb_size_edge: int = 128,
        emb_size_trip: int = 64,
        emb_size_rbf: int = 16,
        emb_size_cbf: int = 16,
        emb_size_bil_trip: int = 64,
        num_interactions: int = 4,
        num_before_skip: int = 1,
        num_after_skip: int = 1,
        num_concat: int = 1,
        num_atom: int = 2,
        num_spherical: int = 7,
        radial_basis: str = "bessel",
        num_radial: int = 6,
        num_gaussians: int = 128,
        envelope_exponent: int = 5,
        cutoff: float = 5.0,
        activation: str = "irelu",
        variant: str = "default",
        placement: str = "published",
    ):
        super().__init__()
        size = Sizes(
            emb_size_atom=emb_size_atom,
            emb_size_edge=emb_size_edge,
            emb_size_trip=emb_size_trip,
            emb_size_rbf=emb_size_rbf,
            emb_size_cbf=emb_size_cbf,
            emb_size_bil_trip=emb_size_bil_trip,
            num_before_skip=num_before_skip,
            num_after_skip=num_after_skip,
            num_concat=num_concat,
            num_atom=num_atom,
        )
        counts = {
            **vars(size),
            "num_interactions": num_interactions,
            "num_spherical": num_spherical,
            "num_radial": num_radial,
            "num_gaussians": num_gaussians,
            "envelope_exponent": envelope_exponent,
        }
        check_sizes({name: (n, _LEAST.get(name, 1)) for name, n in counts.items()}, cutoff)
        for name, choice, allowed in (
            ("radial_basis", radial_basis, ("bessel", "gaussian")),
            ("variant", variant, ("default", "paper")),
            ("placement", placement, ("published", "all")),
        ):
            if choice not in allowed:
                raise OptionError(f"{name} must be {' or '.join(allowed)}, got {choice!r}")
        self.cutoff, self.num_spherical, self.variant = float(cutoff), num_spherical, variant

        make = PublishedActivation if variant == "paper" else ScaledActivation
        act = make(activation)
        inner = act if placement == "all" else make("silu")

        if radial_basis == "bessel":
            self.basis: nn.Module = BesselBasis(cutoff, num_radial)
        else:
            self.basis = GaussianBasis(cutoff, num_gaussians)
        n_radial = num_radial if radial_basis == "bessel" else num_gaussians
        self.envelope = PolynomialEnvelope(cutoff, envelope_exponent)
        # Projections of the bases, shared by all blocks.
        self.rbf_triplets = linear(n_radial, emb_size_rbf)
        self.cbf_triplets = CircularProjection(n_radial, num_spherical, emb_size_cbf)
        self.rbf_atoms = linear(n_radial, emb_size_rbf)
        self.rbf_output = linear(n_radial, emb_size_rbf)

        self.embedding = nn.Embedding(num_elements, emb_size_atom)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3.0), math.sqrt(3.0))  # unit variance
        self.edges = EdgeFeatures(emb_size_atom, n_radial, emb_size_edge, inner)
        self.blocks = nn.ModuleList(
            InteractionBlock(i + 1, size, inner) for i in range(num_interactions)
        )
        self.outputs = nn.ModuleList(
            OutputBlock(f"OutBlock_{j}", size, act) for j in range(num_interactions + 1)
        )
        if variant == "paper":
            self._take_published_factors()
        else:
            with torch.no_grad():
                for output in self.outputs:
                    assert isinstance(output, OutputBlock)
                    output.energy.weight.mul_(_OUTPUT_SCALE)

    def forward(self, species: Tensor, graph: AtomicGraph) -> Tensor:
        """Per-atom energies in the network's unit.

        Args:
            species: Index of each atom's element, int64, shape [n_atoms].
            graph: The atoms and their pairs.

        Returns:
            Shape [n_atoms]; an atom without neighbours has energy 0 (in the paper variant only if
            the activation is 0 at 0).
        """
        h = self.embedding(species)
        n_atoms, dtype = graph.n_atoms, h.dtype
        edges = directed_edges(graph)
        shape = geometry(edges, graph, self.num_spherical, dtype)
        radial = self._radial(edges.distances[: graph.pairs.shape[1]], dtype)
        rbf, cbf = self.rbf_triplets(radial), self.cbf_triplets(radial)
        rbf_atom, rbf_out = self.rbf_atoms(radial), self.rbf_output(radial)

        m = self.edges(h, radial, shape)
        energies = self.outputs[0](m, rbf_out, shape, n_atoms)
        for block, output in zip(self.blocks, self.outputs[1:], strict=True):
            h, m = block(h, m, rbf, cbf, rbf_atom, shape)
            energies = energies + output(m, rbf_out, shape, n_atoms)
        return energies

    def _radial(self, distances: Tensor, dtype: torch.dtype) -> Tensor:
        """Radial basis times envelope, shape [n_pairs, n_radial]."""
        if isinstance(self.basis, GaussianBasis):
            basis = self.basis(distances, dtype)
        else:
            basis = self.basis(distances)
        return basis * self.envelope(distances).to(dtype).unsqueeze(-1)

    def fit_scale_factors(self, batches: Sequence[tuple[Tensor, AtomicGraph]]) -> dict[str, float]:
        """Fit the scale factors to data in place (see :mod:`.scaling`).

        The paper variant keeps those of OC20.

        Args:
            batches: Species and graphs.

        Returns:
            The factors by name.
        """
        if self.variant == "paper":
            return {n: float(f.factor) for n, f in scaling.scale_factors(self).items()}
        return scaling.fit_scale_factors(self, batches)

    @torch.no_grad()
    def _take_published_factors(self) -> None:
        """Those of OC20 by name; blocks beyond its three take the last block's."""
        for name, factor in scaling.scale_factors(self).items():
            part, index, kind = name.split("_", 2)
            known = f"{part}_{min(int(index), 3)}_{kind}"
            factor.factor.fill_(scaling.OC20_FACTORS[known])
            factor.fitted.fill_(1)


ARCHITECTURE = Architecture(
    "gemnet-t",
    GemNetT,
    sizes={
        # Open Catalyst's GemNet-dT, the size of the paper's tables, with autograd forces.
        "paper": {
            "emb_size_atom": 512,
            "emb_size_edge": 512,
            "num_interactions": 3,
            "num_before_skip": 1,
            "num_after_skip": 2,
            "num_concat": 1,
            "num_atom": 3,
            "radial_basis": "gaussian",
            "num_gaussians": 128,
            "cutoff": 6.0,
        },
        # The published GemNet's, also MDsim's for MD17.
        "md17": {
            "emb_size_atom": 128,
            "emb_size_edge": 128,
            "num_interactions": 4,
            "num_before_skip": 1,
            "num_after_skip": 1,
            "num_concat": 1,
            "num_atom": 2,
            "radial_basis": "bessel",
            "num_radial": 6,
            "cutoff": 5.0,
        },
        "tiny": {
            "emb_size_atom": 16,
            "emb_size_edge": 16,
            "emb_size_trip": 8,
            "emb_size_rbf": 4,
            "emb_size_cbf": 4,
            "emb_size_bil_trip": 8,
            "num_interactions": 1,
            "num_before_skip": 1,
            "num_after_skip": 1,
            "num_concat": 1,
            "num_atom": 1,
            "num_spherical": 4,
            "radial_basis": "bessel",
            "num_radial": 5,
            "cutoff": 4.0,
        },
    },
    paper_activation="silu",
    aliases=("gemnet", "gemnet_t"),
    departures=(
        "scale factors fitted on OC20 with SiLU serve every data set and activation",
        "activations other than SiLU have no gain, so that variances are not kept",
        "a fresh network's forces are several times those of labels of unit variance",
    ),
    kernel_plan="dcase.potentials.kernels.networks:gemnet",
)
