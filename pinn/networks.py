"""The multi-layer perceptron that stands for the unknown fields."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcase.activations import get_activation
from dcase.errors import OptionError
from dcase.initialization import LSUVReport, init_linear_, lsuv_, residual_alpha
from dcase.pinn.derivatives.fused import Network, fused_jet, usable
from dcase.pinn.derivatives.fused_adjoint import fused_gradient
from dcase.pinn.derivatives.jets import Jet, Plan
from dcase.pinn.derivatives.kernels import kernel_for
from dcase.pinn.derivatives.plain import plain_gradient, plain_jet
from dcase.pinn.derivatives.workspace import Workspace

#: Ways to draw the weights of :class:`MLP`.
INITIALIZATIONS = ("glorot", "variance", "stable", "lsuv")


class MLP(nn.Module):
    r"""Fully connected network: ``depth`` hidden layers of ``width``, and a linear read-out.

    PDEBench's baseline is 6 x 40 with tanh, Glorot-normal weights and zero biases: the default.

    ============  ==================================================================================
    init          weights
    ============  ==================================================================================
    glorot        normal, variance 2 / (fan_in + fan_out); biases 0
    variance      variance preserved through the activation; biases 0
    stable        variance at a stable fixed point, with the spread of biases that it takes; the
                  read-out, which nothing follows, as "variance"
    lsuv          as "stable", to be followed by :meth:`scale_on` with real points
    ============  ==================================================================================

    Weights are drawn in float64 and then rounded, so that a seed gives the same network in float32
    and float64.

    Args:
        n_in: Features that come in.
        n_out: Fields.
        width: Units of a hidden layer.
        depth: Number of hidden layers.
        activation: Name in :data:`dcase.activations.ACTIVATIONS`, or an elementwise module.
        batch_norm: ``nn.BatchNorm1d`` between linear map and activation (rows "+BN" of the paper).
            Every point then depends on every other, which jets cannot express: :meth:`jet` raises
            and only the autograd engine is left.
        residual: Hidden layers after the first are ``h + act(W h) / depth``.
        init: See the table.
        generator: Source of the weights; default: a new one with seed 0.
        dtype: float32 or float64.

    Raises:
        OptionError: Impossible sizes, unknown activation or init.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int = 40,
        depth: int = 6,
        activation: str | nn.Module = "tanh",
        batch_norm: bool = False,
        residual: bool = False,
        init: str = "glorot",
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        sizes = {"n_in": n_in, "n_out": n_out, "width": width, "depth": depth}
        for name, size in sizes.items():
            if size < 1:
                raise OptionError(f"{name} of the network must be at least 1, got {size}")
        if init not in INITIALIZATIONS:
            raise OptionError(f"unknown init '{init}'; choose from {', '.join(INITIALIZATIONS)}")
        if dtype not in (torch.float32, torch.float64):
            raise OptionError(f"networks are float32 or float64, not {dtype}")
        self.n_in, self.n_out, self.width, self.depth = n_in, n_out, width, depth
        self.init = init
        self.activation = get_activation(activation)
        widths = [n_in, *[width] * depth, n_out]
        self.layers = nn.ModuleList(
            # Without torch's own draw, which would advance the global generator.
            nn.utils.skip_init(nn.Linear, a, b, dtype=torch.float64)
            for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width, dtype=dtype) for _ in range(depth if batch_norm else 0)
        )
        self.residual_scale = residual_alpha(depth) if residual else None
        self._workspace = Workspace()
        self._draw(torch.Generator().manual_seed(0) if generator is None else generator)
        self.layers.to(dtype)

    @property
    def supports_jets(self) -> bool:
        """False with batch normalisation."""
        return len(self.norms) == 0

    def _draw(self, generator: torch.Generator) -> None:
        mode = {"glorot": "xavier", "variance": "variance_preserving"}.get(self.init, "stable")
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            feeds = self.activation if i else None
            this = "variance_preserving" if mode == "stable" and i == last else mode
            init_linear_(layer, feeds, generator, mode=this)

    def scale_on(self, run: Callable[[], Any]) -> LSUVReport:
        """Scale each hidden layer to unit pre-activations on real points (LSUV), in place.

        Args:
            run: Runs the whole model, embedding included, on a batch of points.

        Returns:
            The scales, by layer.
        """
        return lsuv_(self, run, layers=list(self.layers)[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """Map features [N, n_in] to fields [N, n_out]."""
        # A gradient by the features may be differentiated again: autograd gets its graph.
        if features.ndim == 2 and not features.requires_grad and self._fusible():
            return self._jet(Plan(), features[None])[0]
        h = features
        *hidden, last = self.layers
        for i, layer in enumerate(hidden):
            z = layer(h)
            if len(self.norms):
                z = self.norms[i](z)
            new = self.activation(z)
            h = h + self.residual_scale * new if self.residual_scale and i else new
        return last(h)

    def jet(self, jet: Jet) -> Jet:
        """Carry the jet of the features [C, N, n_in] to that of the fields [C, N, n_out].

        With ``plan.adjoint``, a single output and first derivatives only, by :meth:`gradient`.

        Raises:
            OptionError: With batch normalisation.
        """
        if not self.supports_jets:
            raise OptionError("jets cannot pass batch normalisation; use engine 'autograd'")
        plan = jet.plan
        if plan.adjoint and self.n_out == 1 and plan.order == 1:
            value, gradient = self.gradient(jet.value)
            slopes = [(jet.first(i) * gradient).sum(1, keepdim=True) for i in plan.first]
            return Jet(plan, torch.stack([value, *slopes]))
        return Jet(plan, self._jet(plan, jet.stack))

    def gradient(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient of a single output by an explicit reverse pass.

        Args:
            features: [N, n_in].

        Returns:
            Value [N, 1] and its derivatives by the features [N, n_in], both differentiable in
            parameters and features.

        Raises:
            OptionError: More than one output, or batch normalisation.
        """
        if self.n_out != 1 or not self.supports_jets:
            raise OptionError("gradient needs a network with one output and no batch normalisation")
        plain = functools.partial(plain_gradient, self.activation, self.residual_scale)
        if self._fusible():
            both = fused_gradient(self._network(Plan(), plain), features, self._weights())
        else:
            both = plain(features, self._weights())
        value, gradient = both.split((1, self.n_in), 1)
        return value, gradient

    def _jet(self, plan: Plan, stack: Tensor) -> Tensor:
        plain = functools.partial(plain_jet, self.activation, self.residual_scale, plan)
        if self._fusible():
            return fused_jet(self._network(plan, plain), stack, self._weights())
        return plain(stack, self._weights())

    def _network(self, plan: Plan, plain: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> Network:
        kernel = kernel_for(self.activation, plan)
        assert kernel is not None
        return Network(kernel, self.depth, self.width, self.residual_scale, plain, self._workspace)

    def _weights(self) -> list[Tensor]:
        return [p for layer in self.layers for p in (layer.weight, layer.bias)]  # type: ignore[misc]

    def _fusible(self) -> bool:
        """Whether the fused functions may stand in for the layers, hooks included."""
        watched = any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in (*self.layers, self.activation)
        )
        return self.supports_jets and not watched and usable(self.activation)

    def extra_repr(self) -> str:
        """Sizes and start."""
        return f"width={self.width}, depth={self.depth}, init={self.init}"
