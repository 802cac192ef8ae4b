"""Scale factors: constants that keep variances where initialisation alone cannot.

Products with a radial basis and sums over neighbours change the variance of the features by amounts
that depend on the data. A factor behind each of them puts it back: ``sqrt(Var_in / Var_out)``,
variances over the batch, averaged over the features (arXiv:2106.08903, "scaling factors"). They
are fitted once, at the initial weights, in the order of the forward pass, and stay fixed.

One forward pass does it: each factor is set as soon as its input is there, and what comes after is
computed with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from dcase.errors import OptionError
from dcase.potentials.graphs.graph import AtomicGraph

if TYPE_CHECKING:
    from collections.abc import Iterator

# Directed edges in the fit: variances to a percent, in the memory of a few training batches.
_ENOUGH_EDGES = 30_000

# Fitted on OC20 with SiLU, 128 Gaussians and 50 neighbours at most (gemnet-dT.json of Open
# Catalyst's code): what the DC paper used for every data set.
OC20_FACTORS = {
    "TripInteraction_1_had_rbf": 18.873615264892578,
    "TripInteraction_1_sum_cbf": 7.996850490570068,
    "AtomUpdate_1_sum": 1.220463752746582,
    "TripInteraction_2_had_rbf": 16.10817527770996,
    "TripInteraction_2_sum_cbf": 7.614634037017822,
    "AtomUpdate_2_sum": 0.9690994620323181,
    "TripInteraction_3_had_rbf": 15.01930046081543,
    "TripInteraction_3_sum_cbf": 7.025179862976074,
    "AtomUpdate_3_sum": 0.8903237581253052,
    "OutBlock_0_sum": 1.6437848806381226,
    "OutBlock_1_sum": 1.1077653169631958,
    "OutBlock_2_sum": 0.9477927684783936,
    "OutBlock_3_sum": 0.9059251546859741,
}


class ScaleFactor(nn.Module):
    """One factor.

    It multiplies a small tensor before the operation (all of them are linear in it), rather than
    the large result.

    Args:
        name: As in the published scale files, e.g. ``TripInteraction_1_had_rbf``.

    Attributes:
        factor: Scalar; 1 until it is fitted.
        fitted: 1 if it was, else 0.
    """

    factor: Tensor
    fitted: Tensor

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.fitting = False
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` times the factor."""
        return x * self.factor

    def settle(self, result: Tensor, reference: Tensor) -> Tensor:
        """While fitting: set the factor so that ``result`` has the variance of ``reference``.

        Args:
            result: What the operation gave with the present factor, shape [..., features].
            reference: Shape [..., features'].

        Returns:
            ``result``, with the new factor if it was changed.
        """
        if not self.fitting:
            return result
        wanted, found = _variance(reference), _variance(result)
        # One sample, or features that are all alike, say nothing about a scale.
        if wanted > 0 and found > 0:
            ratio = (wanted / found) ** 0.5
            self.factor.mul_(ratio)
            result = result * ratio
        self.fitted.fill_(1)
        return result


def _variance(x: Tensor) -> float:
    """Variance over all rows [..., features], mean over features; 0 where there is none."""
    rows = x.flatten(0, -2)
    if rows.shape[0] < 2:
        return 0.0
    value = float(rows.var(0).double().mean())
    return value if value > 1e-20 else 0.0


def scale_factors(network: nn.Module) -> dict[str, ScaleFactor]:
    """The factors of a network by name."""
    return {m.name: m for m in network.modules() if isinstance(m, ScaleFactor)}


@contextmanager
def _fitting(factors: Iterable[ScaleFactor]) -> Iterator[None]:
    factors = list(factors)
    for factor in factors:
        factor.factor.fill_(1.0)
        factor.fitting = True
    try:
        yield
    finally:
        for factor in factors:
            factor.fitting = False


@torch.no_grad()
def fit_scale_factors(
    network: nn.Module, batches: Sequence[tuple[Tensor, AtomicGraph]]
) -> dict[str, float]:
    """Fit all factors of ``network`` in place; a function of weights and batches alone.

    Args:
        network: Called as ``network(species, graph)``.
        batches: Species and graphs. Whole batches are used up to 30 000 directed edges, and at
            least the first.

    Returns:
        The factors by name.

    Raises:
        OptionError: If there is no batch.
    """
    if not batches:
        raise OptionError("scale factors need at least one batch to be fitted on")
    factors = scale_factors(network)
    species, graph = _join(batches)
    with _fitting(factors.values()):
        network(species, graph)
    return {name: float(f.factor) for name, f in factors.items()}


def _join(batches: Sequence[tuple[Tensor, AtomicGraph]]) -> tuple[Tensor, AtomicGraph]:
    """Batches as one graph."""
    chosen: list[tuple[Tensor, AtomicGraph]] = []
    edges = 0
    for species, graph in batches:
        edges += 2 * graph.pairs.shape[1]
        if chosen and edges > _ENOUGH_EDGES:
            break
        chosen.append((species, graph))
    graphs = [graph for _, graph in chosen]
    atoms = systems = 0
    pairs, system = [], []
    for graph in graphs:
        pairs.append(graph.pairs + atoms)
        system.append(graph.system + systems)
        atoms += graph.n_atoms
        systems += graph.n_systems
    shifts = [g.shifts for g in graphs if g.shifts is not None]
    cells = [g.cells for g in graphs if g.cells is not None]
    return torch.cat([species for species, _ in chosen]), AtomicGraph(
        numbers=torch.cat([g.numbers for g in graphs]),
        positions=torch.cat([g.positions for g in graphs]),
        system=torch.cat(system),
        n_systems=systems,
        pairs=torch.cat(pairs, dim=1),
        shifts=torch.cat(shifts) if shifts else None,
        cells=torch.cat(cells) if cells else None,
    )


class _Potential(Protocol):
    """What of a :class:`~dcase.potentials.potential.Potential` is needed here."""

    network: nn.Module
    architecture: str

    def species(self, numbers: Tensor) -> Tensor:
        """Index of each atom's element."""
        ...


def refit_scale_factors(potential: _Potential, graphs: Iterable[AtomicGraph]) -> dict[str, float]:
    """Fit the scale factors of an existing GemNet potential again, in place.

    For a potential whose activation or weights were changed by hand; training does it by itself.

    Args:
        potential: Of architecture gemnet-t, default variant.
        graphs: Typical structures, e.g. batches of training frames.

    Returns:
        The factors by name.

    Raises:
        OptionError: If the potential has no scale factors that can be fitted, or there is no graph.
    """
    fit = getattr(potential.network, "fit_scale_factors", None)
    if fit is None or not scale_factors(potential.network):
        raise OptionError(f"a {potential.architecture} potential has no scale factors to fit")
    return fit([(potential.species(g.numbers), g) for g in graphs])
