"""The formulas of a perceptron's jets and gradient as torch operations, layer by layer.

Any kind of automatic differentiation can take these apart; :mod:`dcase.pinn.derivatives.fused` does
the same faster for an ordinary training step. ``parameters`` are weight and bias of the first
layer, of the second, ..., of the read-out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcase.activations.jets import activation_jet
from dcase.pinn.derivatives.jets import Jet, Plan


def plain_jet(
    activation: nn.Module,
    alpha: float | None,
    plan: Plan,
    stack: Tensor,
    parameters: Sequence[Tensor],
) -> Tensor:
    """Jet of the output, [C, N, n_out].

    Args:
        activation: Of the hidden layers.
        alpha: Scale of the residual blocks, or None.
        plan: Channels of ``stack``.
        stack: Jet of the features, [C, N, n_in].
        parameters: See the module.
    """

    def act(z: Tensor, order: int) -> tuple[Tensor, ...]:
        return activation_jet(activation, z, order)

    h = Jet(plan, stack)
    *hidden, (weight, bias) = zip(parameters[0::2], parameters[1::2], strict=True)
    for i, (w, b) in enumerate(hidden):
        new = h.linear(w, b).elementwise(act)
        h = h + new * alpha if alpha is not None and i else new
    return h.linear(weight, bias).stack


def plain_gradient(
    activation: nn.Module, alpha: float | None, features: Tensor, parameters: Sequence[Tensor]
) -> Tensor:
    """Value and gradient of a single output, side by side: [N, 1 + n_in].

    With pre-activations :math:`z_l`, the reverse pass is :math:`g_{l-1} = W_l^T (s'(z_l) g_l)`,
    starting from the row of the read-out.
    """
    h, slopes = features, []
    *hidden, (weight, bias) = zip(parameters[0::2], parameters[1::2], strict=True)
    for i, (w, b) in enumerate(hidden):
        new, slope = activation_jet(activation, torch.addmm(b, h, w.T), 1)
        h = h + alpha * new if alpha is not None and i else new
        slopes.append(slope)
    value = torch.addmm(bias, h, weight.T)
    g = weight.expand(len(features), -1)
    for i in reversed(range(len(hidden))):
        back = (g * slopes[i]) @ hidden[i][0]
        g = g + alpha * back if alpha is not None and i else back
    return torch.cat([value, g], 1)
