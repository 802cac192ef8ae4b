"""torch_geometric's DimeNet++ with the weights of one of ours, without its compiled extensions.

PyG needs torch_cluster for its neighbours and torch_sparse for its triplets; both are written out
here in plain torch. PyG's zeros of the spherical Bessel functions are rounded to float32; here they
are exact, so that float64 can be compared to its last digits.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from scipy import optimize, special
from torch_geometric.nn.models import DimeNetPlusPlus, dimenet, dimenet_utils


def edge_index(pos, r, batch=None, max_num_neighbors=None):
    """All ordered pairs closer than ``r``, as (source, target)."""
    near = torch.cdist(pos.detach(), pos.detach()) < r
    near &= ~torch.eye(len(pos), dtype=torch.bool)
    if batch is not None:
        near &= batch[:, None] == batch[None, :]
    target, source = torch.nonzero(near).T
    return torch.stack([source, target])


def triplets(index, num_nodes):
    """What PyG's function of that name returns: k->j->i for every edge j->i and every k != i."""
    source, target = index
    ji, kj = torch.nonzero(
        (source[:, None] == target[None, :]) & (target[:, None] != source[None, :])
    ).T
    return target, source, target[ji], source[ji], source[kj], kj, ji


def exact_zeros(n, k):
    """Zeros of j_0 ... j_{n-1}, by scipy, bracketed by those of the order below."""
    rows = [np.pi * np.arange(1, n + k)]
    for order in range(1, n):
        above = rows[-1]
        rows.append(
            np.array(
                [
                    optimize.brentq(lambda x, o=order: special.spherical_jn(o, x), a, b, xtol=1e-14)
                    for a, b in itertools.pairwise(above)
                ]
            )
        )
    return np.array([row[:k] for row in rows])


# Their formulas are derived by sympy, which takes seconds; once for each number of them is enough.
bessel_basis = functools.cache(dimenet_utils.bessel_basis)
real_sph_harm = functools.cache(dimenet_utils.real_sph_harm)


def pyg_twin(potential, monkeypatch) -> DimeNetPlusPlus:
    """The same network, in the dtype of ``potential``; SiLU only."""
    monkeypatch.setattr(dimenet, "radius_graph", edge_index)
    monkeypatch.setattr(dimenet, "triplets", triplets)
    monkeypatch.setattr(dimenet_utils, "Jn_zeros", exact_zeros)
    monkeypatch.setattr(dimenet_utils, "bessel_basis", bessel_basis)
    monkeypatch.setattr(dimenet_utils, "real_sph_harm", real_sph_harm)
    own, h = potential.network, potential.hyper_parameters
    twin = DimeNetPlusPlus(
        hidden_channels=h["hidden_channels"],
        out_channels=1,
        num_blocks=h["num_interactions"],
        int_emb_size=h["int_emb_size"],
        basis_emb_size=h["basis_emb_size"],
        out_emb_channels=h["out_emb_channels"],
        num_spherical=h["num_spherical"],
        num_radial=h["num_radial"],
        cutoff=h["cutoff"],
        envelope_exponent=h["envelope_exponent"],
        num_before_skip=h["num_before_skip"],
        num_after_skip=h["num_after_skip"],
        num_output_layers=h["num_output_layers"],
        act="swish",
    ).to(potential.dtype)
    with torch.no_grad():
        twin.rbf.freq.copy_(own.basis.frequencies)
        twin.emb.emb.weight[potential.elements] = own.embedding.element.weight
        layers = [
            (twin.emb.lin_rbf, own.embedding.radial),
            (twin.emb.lin, own.embedding.message),
        ]
        for theirs, ours in zip(twin.output_blocks, own.outputs, strict=True):
            layers += [
                (theirs.lin_rbf, ours.radial),
                (theirs.lin_up, ours.up),
                (theirs.lin, ours.energy),
                *zip(theirs.lins, ours.layers, strict=True),
            ]
        for theirs, ours in zip(twin.interaction_blocks, own.interactions, strict=True):
            layers += [
                (theirs.lin_rbf1, ours.radial_in),
                (theirs.lin_rbf2, ours.radial_out),
                (theirs.lin_sbf1, ours.spherical_in),
                (theirs.lin_sbf2, ours.spherical_out),
                (theirs.lin_kj, ours.incoming),
                (theirs.lin_ji, ours.own),
                (theirs.lin_down, ours.down),
                (theirs.lin_up, ours.up),
                (theirs.lin, ours.update),
            ]
            for a, b in (
                (theirs.layers_before_skip, ours.before_skip),
                (theirs.layers_after_skip, ours.after_skip),
            ):
                for x, y in zip(a, b, strict=True):
                    layers += [(x.lin1, y.first), (x.lin2, y.second)]
        for theirs, ours in layers:
            theirs.load_state_dict(ours.state_dict())
    assert (
        sum(p.numel() for p in twin.parameters()) - twin.emb.emb.weight.numel()
        == sum(p.numel() for p in own.parameters()) - own.embedding.element.weight.numel()
    )
    return twin
