"""CGCNN, DimeNet++, ForceNet and GemNet-T, each as a plan for ``edge_network.c``.

The arithmetic is that of the networks' own modules, whose formulas are not repeated here. Linear
maps in a row become one, and what depends on elements alone is computed once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcase.errors import OptionError
from dcase.normalization import PassThrough
from dcase.potentials.kernels.layout import Buffer, Program
from dcase.potentials.kernels.plan import Plan
from dcase.potentials.kernels.tables import Function, coefficients, fine_enough
from dcase.potentials.networks.gemnet.blocks import AtomUpdate, InteractionBlock
from dcase.potentials.networks.gemnet.layers import INV_SQRT_2, Dense


@dataclass(frozen=True)
class Written:
    """A network as the kernel takes it.

    Attributes:
        program: What to do.
        intervals: Of its tables.
        norms: Of the Legendre polynomials of the angles, shape [orders]; empty without angles.
    """

    program: Program
    intervals: int
    norms: np.ndarray


@torch.no_grad()
def write(
    network: nn.Module, planner: Callable[[Any, Plan], Written], dtype: torch.dtype, vector: int
) -> Written:
    """The plan of a network.

    Args:
        network: In evaluation mode, on the CPU.
        planner: Of its architecture (``kernel_plan``).
        dtype: In which it is to be evaluated.
        vector: Numbers in a register of the processor.

    Raises:
        OptionError: If it has none, saying why.
    """
    return planner(copy.deepcopy(network).double().eval(), Plan(dtype, vector))


def _tables(network: Any, *functions: Function) -> tuple[int, list[np.ndarray]]:
    """Splines of functions of the distance, all with the same number of intervals."""
    cutoff = float(network.cutoff)
    intervals = max(fine_enough(function, cutoff) for function in functions)
    return intervals, [coefficients(function, cutoff, intervals) for function in functions]


def _linear(plan: Plan, x: Buffer, layer: nn.Linear, act: nn.Module | None = None, **more: Any):
    return plan.dense(x, layer.weight, layer.bias, act, **more)


def _affine(layer: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """Factor and shift [width] of a normalisation in evaluation mode, or of what replaced it."""
    if isinstance(layer, PassThrough | nn.Identity):
        return torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    if not isinstance(layer, nn.BatchNorm1d) or layer.running_var is None:
        raise OptionError(f"there is no compiled form with {type(layer).__name__}")
    norm: Any = layer
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return factor, norm.bias - norm.running_mean * factor


# ---------------------------------------------------------------------------- CGCNN


def cgcnn(network: Any, plan: Plan) -> Written:
    """The plan of a CGCNN."""
    if network.pools_mean:
        raise OptionError("there is no compiled form of the paper variant of cgcnn")
    intervals, (basis, window) = _tables(
        network, network.basis, lambda d: network.envelope(d).unsqueeze(-1)
    )
    gaussians, envelope = plan.radial(basis), plan.radial(window)
    settled = plan.count(envelope)
    h = plan.elements(network.embedding(network.features.double()))
    for block in network.convolutions:
        factor, shift = _affine(block.edge_norm, 2 * h.width)
        weight = torch.cat([block.target.weight, block.source.weight])
        bias = torch.cat([block.target.bias * factor + shift, torch.zeros_like(shift)])
        atoms = plan.dense(h, weight * factor.repeat(2).unsqueeze(1), bias)
        own = plan.dense(gaussians, block.edge.weight * factor.unsqueeze(1))
        message = plan.norm(plan.gate(atoms, own, envelope, block.gated_act), block.atom_norm)
        h = plan.sum(h, plan.scale(message, settled), act=block.update_act)
    layers = list(network.head)
    for layer, act in zip(layers[:-1:2], layers[1::2], strict=True):
        h = _linear(plan, h, layer, act)
    plan.energy(h, layers[-1].weight, layers[-1].bias)
    return Written(plan.finish(), intervals, np.empty(0))


# ------------------------------------------------------------------------ DimeNet++


def dimenet(network: Any, plan: Plan) -> Written:
    """The plan of a DimeNet++."""
    if network.detached_angles:
        raise OptionError("there is no compiled form of the paper variant of dimenet++")
    orders = network.num_spherical

    def by_order(d: Tensor) -> Tensor:
        return network._bases(d)[1].transpose(0, 1).flatten(1)

    intervals, (bessel, spherical) = _tables(network, lambda d: network._bases(d)[0], by_order)
    radial, basis = plan.radial(bessel), plan.radial(spherical)

    def read_out(block: Any, m: Buffer) -> None:
        x = plan.dense(plan.collect(m, _linear(plan, radial, block.radial)), block.up.weight)
        for layer in block.layers:
            x = _linear(plan, x, layer, block.act)
        plan.energy(x, block.energy.weight)

    first = network.embedding
    at_target, at_source, at_pair = first.message.weight.chunk(3, dim=1)
    pair = plan.dense(_linear(plan, radial, first.radial, first.act), at_pair, first.message.bias)
    rows = first.element.weight
    m = plan.join(
        plan.elements(rows @ at_target.T), plan.elements(rows @ at_source.T), pair, first.act
    )
    read_out(network.outputs[0], m)
    for block, output in zip(network.interactions, network.outputs[1:], strict=True):
        act = block.act
        by_distance = plan.dense(radial, block.radial_out.weight @ block.radial_in.weight)
        x = plan.by_pair(_linear(plan, m, block.incoming, act), by_distance)
        x = _linear(plan, x, block.down, act, filled_up=True)
        weight = block.spherical_out.weight @ block.spherical_in.weight
        weight = weight.view(len(weight), orders, -1).transpose(0, 1)
        filters = plan.dense(basis, weight, filled_up=True)
        summed = plan.triplets_of_source(x, filters)
        up = plan.dense(summed, plan.fill_up(block.up.weight), None, act)
        x = _linear(plan, m, block.own, act, skip=up)
        for layer in block.before_skip:
            x = _linear(plan, _linear(plan, x, layer.first, act), layer.second, act, skip=x)
        m = _linear(plan, x, block.update, act, skip=m)
        for layer in block.after_skip:
            m = _linear(plan, _linear(plan, m, layer.first, act), layer.second, act, skip=m)
        read_out(output, m)
    return Written(plan.finish(), intervals, np.ones(orders))


# -------------------------------------------------------------------------- GemNet-T


def gemnet(network: Any, plan: Plan) -> Written:
    """The plan of a GemNet-T."""
    orders = network.num_spherical
    intervals, (table,) = _tables(network, lambda d: network._radial(d, torch.float64))
    radial = plan.radial(table)

    def dense(x: Buffer, layer: Dense, **more: Any) -> Buffer:
        return plan.dense(x, layer.linear.weight, None, layer.act, **more)

    def residuals(x: Buffer, layers: Any) -> Buffer:
        for layer in layers:
            x = dense(dense(x, layer.first), layer.second, skip=x, scale=INV_SQRT_2)
        return x

    def filters(layer: nn.Linear, below: nn.Linear, factor: Tensor) -> Buffer:
        return plan.dense(radial, factor * layer.weight @ below.weight)

    def update(block: AtomUpdate, below: nn.Linear, m: Buffer) -> Buffer:
        x = plan.collect(m, filters(block.mlp_rbf, below, block.scale_sum.factor))
        return residuals(dense(x, block.dense), block.residuals)

    def triplets(block: Any, m: Buffer) -> Buffer:
        factor = filters(block.mlp_rbf, network.rbf_triplets, block.scale_rbf.factor)
        x = dense(plan.by_pair(dense(m, block.dense_ba), factor), block.down, filled_up=True)
        y = plan.triplets_of_target(x, cbf, orders)
        # All features of the first radial function, all of the next, ...
        weight = block.bilinear.weight * block.scale_cbf.factor
        weight = weight.view(len(weight), cbf.width // orders, -1)
        y = plan.dense(y, plan.fill_up(weight).flatten(1))
        up = dense(y, block.up_ca), dense(y, block.up_ac)
        return plan.sum(*up, scale=INV_SQRT_2, opposite=True)

    def interaction(block: InteractionBlock, h: Buffer, m: Buffer) -> tuple[Buffer, Buffer]:
        x = dense(m, block.dense_ca, skip=triplets(block.triplets, m), scale=INV_SQRT_2)
        m = plan.sum(m, residuals(x, block.before_skip), scale=INV_SQRT_2)
        m = residuals(m, block.after_skip)
        h = plan.sum(h, update(block.atom_update, network.rbf_atoms, m), scale=INV_SQRT_2)
        source, target, own = _blocks(block.concat)
        at = plan.dense(h, target), plan.dense(h, source)
        x = plan.join(*at, plan.dense(m, own), block.concat.act)
        m = plan.sum(m, residuals(x, block.after_concat), scale=INV_SQRT_2)
        return h, m

    def read_out(block: Any, m: Buffer) -> None:
        plan.energy(update(block, network.rbf_output, m), block.energy.weight)

    projection = network.cbf_triplets.weight
    cbf = plan.dense(radial, projection.view(len(projection) * orders, -1))
    rows = network.embedding.weight
    h = plan.elements(rows)
    source, target, own = _blocks(network.edges)
    at = plan.elements(rows @ target.T), plan.elements(rows @ source.T)
    m = plan.join(*at, plan.dense(radial, own), network.edges.act)
    read_out(network.outputs[0], m)
    for block, output in zip(network.blocks, network.outputs[1:], strict=True):
        h, m = interaction(block, h, m)
        read_out(output, m)
    norms = [math.sqrt((2 * order + 1) / (4 * math.pi)) for order in range(orders)]
    return Written(plan.finish(), intervals, np.array(norms))


def _blocks(layer: Any) -> tuple[Tensor, ...]:
    """The parts of an edge layer's matrix: source, target, own features."""
    n = layer.n_atom
    return layer.weight.split([n, n, layer.weight.shape[1] - 2 * n], dim=1)


# -------------------------------------------------------------------------- ForceNet


def forcenet(network: Any, plan: Plan) -> Written:
    """The plan of a ForceNet."""
    if network.to_the_letter:
        raise OptionError("there is no compiled form of the paper variant of forcenet")
    if network.harmonics is None:
        raise OptionError("there is no compiled form of forcenet with basis 'gauss'")
    if len(network.rotations) > 1:
        raise OptionError("there is no compiled form of forcenet with frames")
    elements, columns = len(network.radii), network.radial.weight.shape[0]

    def by_elements(d: Tensor) -> Tensor:
        """[n, element of the target, of the source, columns], flat behind the first."""
        d, r_i, r_j = torch.broadcast_tensors(
            d.view(-1, 1, 1), network.radii.view(-1, 1), network.radii
        )
        scaled = torch.stack([d, d - r_j, d - r_i, d - r_j - r_i], dim=-1) / network.cutoff
        return network.radial(network.numbers_basis(scaled).flatten(-2)).flatten(1)

    intervals, (table, window) = _tables(
        network, by_elements, lambda d: network.envelope(d).unsqueeze(-1)
    )
    degrees = network.harmonics.l_max + 1
    norms = np.zeros((degrees, degrees))
    for degree in range(degrees):
        for m in range(degree + 1):
            square = (2 * degree + 1) * math.factorial(degree - m) / math.factorial(degree + m)
            norms[degree, m] = math.sqrt(square * (2 if m else 1))
    features = plan.harmonic(table, norms, columns, elements)
    envelope = plan.radial(window)
    h = plan.elements(network.embedding(network.numbers_basis(network.properties).flatten(1)))
    for block in network.interactions:
        embed, inside = block.edge_embedding, block.edge_in
        mixed = plan.dense(features, inside.weight @ embed.weight, inside(embed.bias))
        at_target = _linear(plan, h, block.target_in)
        at_source = _linear(plan, h, block.source_in)
        filters = _mlp(plan, block.filter_mlp, (at_target, at_source, mixed))
        x = _linear(plan, h, block.atom_in)
        message = plan.continuous(x, filters, envelope, block.self_weight)
        h = _update(plan, block.update, message, h)
    h = _linear(plan, h, network.out_in, network.out_act)
    plan.energy(h, network.out.weight, network.out.bias)
    return Written(plan.finish(), intervals, np.empty(0))


def _mlp(plan: Plan, layers: nn.Sequential, parts: tuple[Buffer, Buffer, Buffer]) -> Buffer:
    """Activations and linear layers in turns, of the sum of ``parts``."""
    modules: list[Any] = list(layers)
    if any(isinstance(module, nn.BatchNorm1d) for module in modules):
        raise OptionError("there is no compiled form with depth_mlp_edge 0 and normalization")
    if len(modules) == 1:  # what took the place of a normalisation
        return plan.join(*parts, None)
    x = plan.join(*parts, modules[0])
    for k in range(1, len(modules), 2):
        x = _linear(plan, x, modules[k], modules[k + 1] if k + 1 < len(modules) else None)
    return x


def _update(plan: Plan, layers: nn.Sequential, x: Buffer, skip: Buffer) -> Buffer:
    """``skip`` plus linear layers, each with a normalisation and an activation or with none."""
    modules: list[Any] = list(layers)
    while modules:
        linear = modules.pop(0)
        weight, bias, act = linear.weight, linear.bias, None
        if modules:
            factor, shift = _affine(modules.pop(0), len(weight))
            weight, bias = weight * factor.unsqueeze(1), bias * factor + shift
        if modules:
            act = modules.pop(0)
        x = plan.dense(x, weight, bias, act, skip=None if modules else skip)
    return x
