"""Denormalisation: take the normalisation layers out of a model.

The derivative-constrained paper (sec. 4.2) removes BatchNorm, whose statistics make the derivative
of one sample depend on its batch and blind the network to the units of what it differentiates.  It
removes **BatchNorm only** (its CGCNN keeps the LayerNorm behind the aggregation), and so does
:func:`denormalize` unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dcase.errors import OptionError

#: Groups of layers that ``denormalize(also=...)`` understands, besides BatchNorm.
NORM_LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "layer": (nn.LayerNorm, nn.RMSNorm),
    "group": (nn.GroupNorm,),
    # torch derives InstanceNorm from its BatchNorm base in some versions; it has its own group.
    "instance": (_InstanceNorm,),
}


class PassThrough(nn.Identity):
    """What stands where a normalisation layer stood: returns its first argument.

    Unlike ``nn.Identity`` it swallows further arguments: graph layers are called as
    ``norm(x, batch)``.
    """

    def forward(self, input: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the input."""
        return input


def _wrapped_batch_norm(module: nn.Module) -> bool:
    """True for wrappers such as torch_geometric.nn.BatchNorm, which hold just one BatchNorm."""
    children = list(module.children())
    return (
        type(module).__name__ == "BatchNorm" and len(children) == 1 and _is_batch_norm(children[0])
    )


def _is_batch_norm(module: nn.Module) -> bool:
    if isinstance(module, _InstanceNorm):
        return False
    return isinstance(module, _BatchNorm) or _wrapped_batch_norm(module)


def denormalize(
    model: nn.Module,
    *,
    also: Iterable[str] = (),
    keep: tuple[type[nn.Module], ...] = (),
    fold: bool = False,
) -> list[str]:
    """Replace the normalisation layers of a model by ``nn.Identity``, in place.

    Works on any module tree: attributes, ``Sequential``, ``ModuleList``, ``ModuleDict``, and layers
    that are reached by several names (each name is replaced).  A layer that the model *also* keeps
    outside the module tree (in a plain list) is out of reach.

    Args:
        model: the model; changed in place.
        also: kinds to remove besides BatchNorm: any of ``"layer"`` (LayerNorm, RMSNorm),
            ``"group"``, ``"instance"``.  Default none, as in the paper.
        keep: classes to leave alone even when they match.
        fold: when True, a BatchNorm in eval mode that directly follows a ``Linear`` in a
            ``Sequential`` is folded into that Linear, ``W' = diag(gamma / sqrt(var + eps)) W``, so
            that the function of a batch of rows (rank 2) stays what it was, up to rounding.  A
            layer that cannot be folded (training mode, no running statistics, another neighbour, a
            shared layer) is an error: removing it would change the function silently.

    Returns:
        The dotted names of what was removed, in the order of ``named_modules``.

    Raises:
        OptionError: the model itself is a normalisation layer, an unknown kind in ``also``, or a
            layer that ``fold`` cannot fold.  The model is unchanged then.
    """
    kinds = [also] if isinstance(also, str) else list(also)
    unknown = [kind for kind in kinds if kind not in NORM_LAYERS]
    if unknown:
        raise OptionError(
            f"unknown kind of normalisation '{unknown[0]}'; choose from {', '.join(NORM_LAYERS)}"
        )
    extra = tuple(cls for kind in kinds for cls in NORM_LAYERS[kind])

    def matches(module: nn.Module) -> bool:
        return not isinstance(module, keep) and (
            _is_batch_norm(module) or (bool(extra) and isinstance(module, extra))
        )

    if matches(model):
        raise OptionError(
            f"the model itself is a {type(model).__name__}: nothing would be left of it;"
            " pass the module that contains it"
        )

    found: list[tuple[str, nn.Module, str]] = []  # (dotted name, parent, name in parent)

    def visit(parent: nn.Module, prefix: str, seen: set[int]) -> None:
        # A parent that is shared is edited once; a layer under several names, at each of them.
        if id(parent) in seen:
            return
        seen.add(id(parent))
        for name, child in parent._modules.items():
            if child is None:
                continue
            if matches(child):
                found.append((prefix + name, parent, name))
            else:
                visit(child, f"{prefix}{name}.", seen)

    visit(model, "", set())
    folds = _plan_folds(model, found) if fold else []
    for linear, weight, bias in folds:
        _set_linear(linear, weight, bias)
    for _, parent, name in found:
        parent._modules[name] = PassThrough()
    return [name for name, _, _ in found]


def _plan_folds(
    model: nn.Module, found: list[tuple[str, nn.Module, str]]
) -> list[tuple[nn.Linear, Tensor, Tensor]]:
    """Work out every folded (weight, bias) first, so that a refusal leaves the model as it was."""
    uses: dict[int, int] = {}
    # Count by name: a Linear or a norm used in two places cannot take up one place's factor.
    for _, module in model.named_modules(remove_duplicate=False):
        uses[id(module)] = uses.get(id(module), 0) + 1
    weights: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        weights[id(parameter)] = weights.get(id(parameter), 0) + 1

    plan = []
    for name, parent, key in found:
        norm = parent._modules[key]
        assert norm is not None
        inner = next(iter(norm.children()), norm)

        def refuse(why: str, name: str = name) -> OptionError:
            return OptionError(f"cannot fold '{name}': {why}; use fold=False to drop it instead")

        if not isinstance(inner, _BatchNorm) or isinstance(inner, _InstanceNorm):
            raise refuse("only BatchNorm has a fixed linear map to fold")
        if inner.training:
            raise refuse("it is in training mode, call model.eval() first")
        if inner.running_mean is None or inner.running_var is None:
            raise refuse("it keeps no running statistics")
        if nn.parameter.is_lazy(inner.running_mean):
            raise refuse("it is lazy and has seen no data")
        keys = list(parent._modules)
        place = keys.index(key)
        linear = parent._modules[keys[place - 1]] if place else None
        if not isinstance(parent, nn.Sequential) or type(linear) is not nn.Linear:
            raise refuse("it does not directly follow a Linear in a Sequential")
        if uses[id(linear)] > 1 or uses[id(norm)] > 1 or weights.get(id(linear.weight), 1) > 1:
            raise refuse("it or its Linear is used in several places")
        # BatchNorm2d and 3d act on dimension 1 of images, a Linear on the last one.
        if isinstance(inner, nn.BatchNorm2d | nn.BatchNorm3d):
            raise refuse(f"a {type(inner).__name__} does not act on the outputs of the Linear")
        if linear.out_features != inner.num_features:
            raise refuse(f"{linear.out_features} outputs do not fit {inner.num_features} features")
        plan.append((linear, *_fold(linear, inner)))
    return plan


@torch.no_grad()
def _fold(linear: nn.Linear, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """W' = diag(s) W and b' = s (b - mean) + beta with s = gamma / sqrt(var + eps), in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double()
    if linear.bias is not None:
        shift = shift + linear.bias.double()
    bias = shift * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    return scale[:, None] * linear.weight.double(), bias


@torch.no_grad()
def _set_linear(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Write into the parameters that are there: an optimiser may hold them already."""
    linear.weight.copy_(weight)
    if linear.bias is None:
        linear.bias = nn.Parameter(bias.to(linear.weight), linear.weight.requires_grad)
    else:
        linear.bias.copy_(bias)
