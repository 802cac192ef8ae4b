"""SchNets of any larger size that are the shipped potential, so that timed dynamics is real.

A network with random weights lets a molecule fall apart or fly through itself, and what is timed is
then no molecule any more. Here the shipped aspirin potential sits in the first channels, filters
and layers of a larger random network, of which nothing flows back into those channels: the same
forces (up to the change of the Gaussians), at the cost of the larger network, in full matrices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dcase.potentials.networks.bases import GaussianBasis
from dcase.potentials.networks.registry import create_potential
from dcase.potentials.networks.schnet import SchNet
from dcase.potentials.potential import Potential, load_potential

SHIPPED = "aspirin_irelu.pt"


def widened(h: dict[str, Any], filter_knots: int) -> Potential | None:
    """The shipped potential with the sizes ``h``, or None where it does not fit in.

    Args:
        h: All hyper-parameters of SchNet, and ``activation``.
        filter_knots: Of the result.
    """
    shipped = load_potential(SHIPPED)
    small = shipped.hyper_parameters
    sizes = ("hidden_channels", "num_filters", "num_interactions", "num_gaussians")
    same = ("cutoff", "activation")
    if any(h[k] < small[k] for k in sizes) or any(h[k] != small[k] for k in same):
        return None
    options = {k: h[k] for k in (*sizes, *same)}
    potential = create_potential(
        "schnet", elements=shipped.elements, filter_knots=filter_knots, **options
    )
    _insert(shipped.network, potential.network, small)  # type: ignore[arg-type]
    potential.set_scale(shipped.scale)
    return potential.eval()


@torch.no_grad()
def _insert(inner: SchNet, outer: SchNet, small: dict[str, Any]) -> None:
    hidden = small["hidden_channels"]
    outer.embedding.weight[:, :hidden] = inner.embedding.weight
    change = _basis_change(inner.basis, outer.basis)
    for layer, block in enumerate(outer.interactions):
        if layer >= len(inner.interactions):
            block.update.weight[:hidden] = 0  # type: ignore[union-attr, index, operator]
            block.update.bias[:hidden] = 0  # type: ignore[union-attr, index, operator]
            continue
        old: Any = inner.interactions[layer]
        rows = len(old.filter_in.weight)
        block.filter_in.weight[:rows] = old.filter_in.weight @ change  # type: ignore[union-attr, index, operator]
        block.filter_in.bias[:rows] = old.filter_in.bias  # type: ignore[union-attr, index, operator]
        for name in ("filter_out", "atom_in", "atom_out", "update"):
            _place(getattr(old, name), getattr(block, name))
    _place(inner.out_in, outer.out_in)
    _place(inner.out, outer.out)


def _place(old: torch.nn.Linear, new: torch.nn.Linear) -> None:
    """The first outputs depend on the first inputs alone, as they did."""
    rows, columns = old.weight.shape
    new.weight[:rows] = 0
    new.weight[:rows, :columns] = old.weight
    if old.bias is not None:
        new.bias[:rows] = old.bias


def _basis_change(old: GaussianBasis, new: GaussianBasis) -> torch.Tensor:
    """T with ``old(d) = T new(d)``, by least squares where atoms are; [n_old, n_new]."""
    cutoff = float(old.centres[-1])
    distances = torch.linspace(0.0, cutoff, 4001, dtype=torch.float64)
    # Filters vanish with the envelope, whose root is the weight; the deep core is never visited.
    weight = torch.cos(distances * (np.pi / 2 / cutoff)) + 1e-3
    weight = torch.where(distances < 0.6, 0.01, weight).unsqueeze(1)
    solution = torch.linalg.lstsq(new(distances) * weight, old(distances) * weight).solution
    return solution.T.float()
