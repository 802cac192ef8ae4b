"""Initialisation of networks with integrated activations.

With zero bias and weights of variance ``sigma_w^2 / fan_in``, pre-activations ``z ~ N(0, q)`` of
one layer give the next one (deep information propagation, 1611.01232)

    q' = sigma_w^2 E[Phi(z)^2] + sigma_b^2,     chi = sigma_w^2 E[Phi'(z)^2],

chi being the growth of squared input gradients.  For the integrated ReLU ``q' = (3 sigma_w^2/8)
q^2``: the logarithmic slope is 2, so that any deviation from the fixed point *doubles in every
layer* (10 % becomes a factor of e^6 in six layers) and a ten-layer network collapses or explodes.
Two remedies, which belong together:

* :func:`lsuv_` sets the scale of each layer on a real batch, in the order of the forward pass.  It
  fixes the *batch's* standard deviation; the spread *among samples* still doubles per layer, so
  that deep down one large sample can carry it all while the others vanish.
* a spread of biases (:func:`stable_variances`, ``init_linear_(mode="stable")``) lowers the slope.
  For IReLU slope 1/2 at q = 1 takes sigma_b^2 = 3/4 and bears samples of up to 3 q; slope 1 bears
  none above q.  The price is chi = 2/3 slope: input gradients shrink by 0.58 a layer (no choice
  gives chi = 1 with slope <= 1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dcase.activations import get_activation
from dcase.errors import OptionError, TrainingError

# ---------------------------------------------------------------------------------------------
# Variance propagation


@dataclass(frozen=True)
class VarianceMap:
    """One step of the variance recursion at ``q``.

    Attributes:
        q: pre-activation variance that goes in.
        q_next: ``q' = sigma_w^2 E[Phi^2] + sigma_b^2``.
        slope: ``s = d ln q' / d ln q``; a fixed point is stable if |s| < 1.
        chi: ``sigma_w^2 E[Phi'^2]``, the gain of squared gradients.
        curvature: ``E[Phi''^2] / E[Phi^2]`` (0 where Phi'' has no autograd).
        mean: ``E[Phi]``.
        second_moment: ``E[Phi^2]``.
        sigma_w2: weight variance times fan-in.
        sigma_b2: bias variance.
    """

    q: float
    q_next: float
    slope: float
    chi: float
    curvature: float
    mean: float
    second_moment: float
    sigma_w2: float
    sigma_b2: float


def _quadrature(breaks: Iterable[float]) -> tuple[Tensor, Tensor]:
    """Nodes and weights for E over N(0, 1), float64.

    Composite Gauss-Legendre rather than Gauss-Hermite: most activations have a kink in some
    derivative, and panels that end there keep the full order.
    """
    edges = np.unique(np.concatenate([np.linspace(-12.0, 12.0, 49), list(breaks)]))
    edges = edges[(edges >= -12.0) & (edges <= 12.0)]
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half, middle = 0.5 * np.diff(edges)[:, None], 0.5 * (edges[1:] + edges[:-1])[:, None]
    t = (middle + half * nodes).ravel()
    w = (half * weights).ravel() * np.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)
    return torch.from_numpy(t), torch.from_numpy(w)


def _resolve(activation: str | nn.Module | None) -> nn.Module:
    if activation is None or activation in ("identity", "linear"):
        return nn.Identity()
    module = get_activation(activation)
    if any(True for _ in module.parameters()):
        module = copy.deepcopy(module)
    return module.to(torch.float64) if any(True for _ in module.parameters()) else module


def _moments(activation: str | nn.Module | None, q: float) -> dict[str, float]:
    """E over z ~ N(0, q) of Phi, Phi^2, Phi'^2, Phi''^2 and Phi Phi' z."""
    if not (math.isfinite(q) and q > 0):
        raise OptionError(f"the variance q must be a positive number, got {q}")
    module, root = _resolve(activation), math.sqrt(q)
    tau = float(getattr(module, "tau", 1.0))
    t, w = _quadrature([-tau / root, tau / root])
    z = (root * t).requires_grad_()
    with torch.enable_grad():
        phi = module(z)
        first = second = torch.zeros_like(t)
        if phi.requires_grad:
            (first,) = torch.autograd.grad(phi.sum(), z, create_graph=True)
        if first.requires_grad:
            (grad2,) = torch.autograd.grad(first.sum(), z, allow_unused=True)
            second = second if grad2 is None else grad2
    phi, first, z = phi.detach(), first.detach(), z.detach()
    return {
        "mean": float(w @ phi),
        "second": float(w @ phi.square()),
        "first2": float(w @ first.square()),
        "second2": float(w @ second.detach().square()),
        "cross": float(w @ (phi * first * z)),
    }


def gain(activation: str | nn.Module | None, *, q: float = 1.0, centered: bool = False) -> float:
    """Variance-preserving gain ``g = sqrt(q / E[Phi(z)^2])``, ``z ~ N(0, q)``.

    Weights of standard deviation ``g / sqrt(fan_in)`` behind this activation give
    pre-activations the variance q again.  IReLU: sqrt(8/3) = 1.633; ReLU: sqrt(2).

    Args:
        activation: name or elementwise module; ``None`` or "identity" gives 1.
        q: variance to preserve.
        centered: for weight rows that sum to zero, which see ``Var[Phi]`` in place of
            ``E[Phi^2]``.

    Returns:
        g > 0.

    Raises:
        OptionError: unknown activation, q not positive, or an activation that is constant.
    """
    m = _moments(activation, q)
    power = m["second"] - m["mean"] ** 2 if centered else m["second"]
    if not (math.isfinite(power) and power > 0):
        raise OptionError(f"activation {activation} has no variance to preserve (E = {power:g})")
    return math.sqrt(q / power)


def variance_map(
    activation: str | nn.Module | None,
    q: float = 1.0,
    *,
    sigma_w2: float | None = None,
    sigma_b2: float = 0.0,
) -> VarianceMap:
    """One step of the variance recursion (see the module's head).

    Args:
        activation: name or elementwise module.
        q: variance of the pre-activations that go in.
        sigma_w2: weight variance times fan-in; default: the one that makes ``q' = q``.
        sigma_b2: bias variance.

    Returns:
        q', its logarithmic slope, chi and the moments behind them.
    """
    m = _moments(activation, q)
    if sigma_w2 is None:
        sigma_w2 = (q - sigma_b2) / m["second"]
    q_next = sigma_w2 * m["second"] + sigma_b2
    # d/dq E[Phi(sqrt(q) t)^2] = E[Phi Phi' z] / q with z = sqrt(q) t.
    slope = sigma_w2 * m["cross"] / q_next
    return VarianceMap(
        q=q,
        q_next=q_next,
        slope=slope,
        chi=sigma_w2 * m["first2"],
        curvature=m["second2"] / m["second"],
        mean=m["mean"],
        second_moment=m["second"],
        sigma_w2=sigma_w2,
        sigma_b2=sigma_b2,
    )


def stable_variances(
    activation: str | nn.Module | None, *, q: float = 1.0, slope: float = 0.5
) -> tuple[float, float]:
    """Weight and bias variance for which q is a fixed point with a logarithmic slope <= ``slope``.

    Args:
        activation: name or elementwise module.
        q: the fixed point, ``q' = q``.
        slope: largest slope wanted; below 1 the fixed point is stable.  Where the slope has to be
            bought with biases, its basin is narrow near 1 (IReLU: q (2/slope - 1)).

    Returns:
        ``(sigma_w^2, sigma_b^2)``, the first times 1/fan_in.  sigma_b^2 is 0 where the activation
        is that stable by itself (sigmoid).  IReLU, q = 1, slope = 1/2: (2/3, 3/4).
    """
    if not (math.isfinite(slope) and slope > 0):
        raise OptionError(f"the slope must be a positive number, got {slope}")
    m = _moments(activation, q)
    if not m["second"] > 0:
        raise OptionError(f"activation {activation} has no variance to preserve")
    sigma_w2 = q / m["second"]
    if m["cross"] > 0:
        sigma_w2 = min(sigma_w2, slope * q / m["cross"])
    return sigma_w2, max(q - sigma_w2 * m["second"], 0.0)


# ---------------------------------------------------------------------------------------------
# Drawing weights

#: Modes of :func:`init_linear_`.
INIT_MODES = ("variance_preserving", "stable", "centered", "lecun", "he", "xavier")


@torch.no_grad()
def init_linear_(
    linear: nn.Linear,
    activation: str | nn.Module | None,
    generator: torch.Generator,
    *,
    mode: str = "variance_preserving",
    distribution: str = "normal",
    bias_std: float | None = None,
) -> float:
    """Draw the weights of one linear layer, in place.

    ======================  ============================================================
    mode                    standard deviation of the weights
    ======================  ============================================================
    variance_preserving     gain(activation) / sqrt(fan_in)
    stable                  as :func:`stable_variances` says, slope 1/2; with its bias
    centered                the same for rows shifted to sum to zero (the mean
                            of the features then drops out)
    lecun                   1 / sqrt(fan_in)
    he                      sqrt(2 / fan_in)
    xavier                  sqrt(2 / (fan_in + fan_out))
    ======================  ============================================================

    Args:
        linear: any module with ``weight`` (out, in) and perhaps ``bias`` (out,).
        activation: the activation that FEEDS this layer; ``None`` for a first layer, whose inputs
            are taken to have unit variance.  Used by the first three modes.
        generator: source of the numbers.  They are drawn on its device, in float32 or wider, so
            that one seed gives the same weights on every device.
        mode: see the table.
        distribution: "normal" or "uniform" (same standard deviation).
        bias_std: standard deviation of the bias (normal); 0 sets it to zero.  Default: what
            mode "stable" asks for, 0 in the others.

    Returns:
        The standard deviation that was used.

    Raises:
        OptionError: unknown mode or distribution, or a negative ``bias_std``.
    """
    if mode not in INIT_MODES:
        raise OptionError(f"unknown init mode '{mode}'; choose from {', '.join(INIT_MODES)}")
    if distribution not in ("normal", "uniform"):
        raise OptionError(f"unknown distribution '{distribution}'; choose from normal, uniform")
    if bias_std is not None and not (math.isfinite(bias_std) and bias_std >= 0):
        raise OptionError(f"bias_std must be >= 0, got {bias_std}")
    fan_out, fan_in = linear.weight.shape
    centered = mode == "centered"
    if centered and fan_in < 2:
        raise OptionError("mode 'centered' needs at least two inputs")
    if mode in ("variance_preserving", "centered"):
        std = gain(activation, centered=centered) / math.sqrt(fan_in)
    elif mode == "stable":
        sigma_w2, sigma_b2 = stable_variances(activation)
        std = math.sqrt(sigma_w2 / fan_in)
        bias_std = math.sqrt(sigma_b2) if bias_std is None else bias_std
    elif mode == "xavier":
        std = math.sqrt(2.0 / (fan_in + fan_out))
    else:
        std = math.sqrt((2.0 if mode == "he" else 1.0) / fan_in)
    dtype = torch.promote_types(linear.weight.dtype, torch.float32)
    draw = torch.empty(fan_out, fan_in, dtype=dtype, device=generator.device)
    if distribution == "normal":
        draw.normal_(0.0, std, generator=generator)
    else:
        bound = math.sqrt(3.0) * std
        draw.uniform_(-bound, bound, generator=generator)
    if centered:
        # Centring takes 1/n of the variance; give it back.
        draw = (draw - draw.mean(1, keepdim=True)) * math.sqrt(fan_in / (fan_in - 1.0))
    linear.weight.copy_(draw)
    if linear.bias is not None:
        if bias_std:
            bias = torch.empty(fan_out, dtype=dtype, device=generator.device)
            linear.bias.copy_(bias.normal_(0.0, bias_std, generator=generator))
        else:
            linear.bias.zero_()
    return std


def residual_alpha(depth: int, factor: float = 1.0) -> float:
    """Scale ``alpha = factor / depth`` for ``h + alpha Phi(W h)``.

    With alpha <= 1/L a stack of L residual blocks changes the variance by a bounded factor, however
    deep it is, even where Phi is quadratic.
    """
    if depth < 1 or not (0 < factor <= 1):
        raise OptionError(f"need depth >= 1 and 0 < factor <= 1, got {depth} and {factor}")
    return factor / depth


# ---------------------------------------------------------------------------------------------
# LSUV


@dataclass
class LayerScale:
    """What :func:`lsuv_` did to one layer.

    Attributes:
        name: dotted name in the model.
        scale: factor its weight was multiplied by (1 where it was left alone).
        std_before: standard deviation of its output when its turn came.
        std_after: the same at the end.
        calls: how often one forward pass calls it.
        note: why it was left alone or is off target; empty when all is well.
    """

    name: str
    scale: float = 1.0
    std_before: float = math.nan
    std_after: float = math.nan
    calls: int = 0
    note: str = ""


@dataclass
class LSUVReport:
    """Result of :func:`lsuv_`: one entry per layer in forward order, and the number of runs."""

    layers: list[LayerScale] = field(default_factory=list)
    runs: int = 0
    target_std: float = 1.0

    @property
    def scales(self) -> dict[str, float]:
        """Factor by layer name."""
        return {layer.name: layer.scale for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for a checkpoint or a log."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"LSUV to std {self.target_std:g} in {self.runs} runs"]
        width = max((len(layer.name) for layer in self.layers), default=0)
        for layer in self.layers:
            line = (
                f"  {layer.name:<{width}}  x {layer.scale:<10.4g}"
                f" std {layer.std_before:.4g} -> {layer.std_after:.4g}"
            )
            lines.append(f"{line}  ({layer.note})" if layer.note else line)
        return "\n".join(lines)


class _Watch:
    """Sums over the outputs of one layer in one run: y = u + b, u = W x."""

    def __init__(self) -> None:
        self.calls = 0
        self.n = 0
        self.sums = torch.zeros(5, dtype=torch.float64)

    def add(self, y: Tensor, bias: Tensor | None) -> None:
        y = y.detach().to(torch.float64)
        b = torch.zeros((), dtype=y.dtype, device=y.device) if bias is None else bias.detach().to(y)
        b = b.expand_as(y)
        u = y - b
        self.calls += 1
        self.n += y.numel()
        self.sums += torch.stack(
            [u.sum(), b.sum(), (u * u).sum(), (u * b).sum(), (b * b).sum()]
        ).cpu()

    def covariances(self) -> tuple[float, float, float]:
        """Var u, Cov(u, b), Var b over all calls, samples and features."""
        su, sb, uu, ub, bb = (self.sums / max(self.n, 1)).tolist()
        return max(uu - su * su, 0.0), ub - su * sb, max(bb - sb * sb, 0.0)

    def std(self) -> float:
        vu, cov, vb = self.covariances()
        return math.sqrt(max(vu + 2.0 * cov + vb, 0.0))


def _is_linear(module: nn.Module) -> bool:
    """Torch's Linear, and look-alikes such as torch_geometric's."""
    if isinstance(module, nn.Linear):
        return True
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Linear" and isinstance(weight, nn.Parameter)


def _choose(model: nn.Module, layers: Iterable[str | nn.Module] | None) -> dict[nn.Module, str]:
    names = {module: name for name, module in reversed(list(model.named_modules()))}
    if layers is None:
        return {m: n for n, m in model.named_modules() if _is_linear(m)}
    by_name = dict(model.named_modules(remove_duplicate=False))
    chosen: dict[nn.Module, str] = {}
    for layer in layers:
        module = by_name.get(layer) if isinstance(layer, str) else layer
        if module is None or module not in names:
            raise OptionError(f"the model has no layer '{layer}'")
        if not isinstance(getattr(module, "weight", None), Tensor):
            raise OptionError(f"layer '{names[module]}' has no weight to rescale")
        chosen[module] = layer if isinstance(layer, str) else names[module]
    return chosen


def lsuv_(
    model: nn.Module,
    run: Callable[[], Any],
    *,
    layers: Iterable[str | nn.Module] | None = None,
    target_std: float = 1.0,
    tol: float = 0.02,
    max_iter: int = 10,
) -> LSUVReport:
    """Layer-sequential unit-variance initialisation (1511.06422), in place.

    The linear layers are visited in the order in which one forward pass first calls them; each
    weight is multiplied by the positive factor that gives the layer's output (the pre-activation,
    bias included and left as it is) the wanted standard deviation over all samples, features and
    calls of one run.  A layer that is called several times is iterated, as its scale changes its
    own later inputs.

    Left alone, with a note in the report: layers that the run never calls, whose output without
    bias is constant (zero weights, dead inputs), whose weight is shared with a layer already
    scaled or is parametrised, and layers whose bias alone spreads more than ``target_std``.

    In deep stacks of quadratically growing activations draw the layers with
    ``init_linear_(..., mode="stable")`` first (see the module's head for why).

    Args:
        model: the model.
        run: callable without arguments that runs the model on a real batch, e.g.
            ``lambda: model(batch)``.  Called about once per layer; what it returns is ignored.
            Dropout and batch statistics act as the mode of the model says.
        layers: names or modules to scale; default every linear layer, the read-out included.
        target_std: wanted standard deviation.
        tol: relative deviation that counts as reached.
        max_iter: rescalings a layer may take.

    Returns:
        The scales, in forward order.

    Raises:
        OptionError: impossible options, or no layer to scale.
        TrainingError: a layer gives inf or NaN although everything before it is scaled.
    """
    if not (math.isfinite(target_std) and target_std > 0 and tol > 0 and max_iter >= 1):
        raise OptionError(
            "LSUV needs target_std > 0, tol > 0 and max_iter >= 1, got"
            f" {target_std}, {tol}, {max_iter}"
        )
    chosen = _choose(model, layers)
    if not chosen:
        raise OptionError("LSUV found no linear layer in the model")
    report = LSUVReport(target_std=target_std)

    def measure() -> dict[nn.Module, _Watch]:
        watches: dict[nn.Module, _Watch] = {}

        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                bias = getattr(module, "bias", None)
                watches.setdefault(module, _Watch()).add(output, bias)

        handles = [module.register_forward_hook(hook) for module in chosen]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        report.runs += 1
        return watches  # in the order of the first calls

    watches = measure()
    order = list(watches)
    done: set[int] = set()
    for module in order:
        entry = LayerScale(chosen[module])
        report.layers.append(entry)
        if module not in watches:
            entry.note = "left alone: not called any more after a rescaling"
            continue
        entry.calls, entry.std_before = watches[module].calls, watches[module].std()
        weight = module.weight
        if parametrize.is_parametrized(module, "weight"):
            entry.note = "left alone: its weight is parametrised"
            continue
        assert isinstance(weight, Tensor)
        if id(weight) in done:
            entry.note = "left alone: shares its weight with a layer before it"
            continue
        done.add(id(weight))
        for _ in range(max_iter):
            watch = watches[module]
            std = watch.std()
            if not math.isfinite(std):
                raise TrainingError(
                    f"layer '{entry.name}' gives inf or NaN on this batch; check the inputs"
                )
            vu, cov, vb = watch.covariances()
            # Rounding of a constant output is not variance.
            noise = torch.finfo(weight.dtype).eps * abs(float(watch.sums[0]) / watch.n)
            if math.sqrt(vu) <= 8.0 * noise:
                entry.note = "left alone: its output is constant"
                break
            if abs(std / target_std - 1.0) <= tol:
                break
            # Positive root of vu a^2 + 2 cov a + vb = target^2.
            spare = cov * cov + vu * (target_std**2 - vb)
            factor = (math.sqrt(spare) - cov) / vu if spare > 0 else 0.0
            if not (factor > 0 and math.isfinite(factor)):
                entry.note = "left alone: its bias alone spreads more than the target"
                break
            with torch.no_grad():
                weight.mul_(factor)
            entry.scale *= factor
            watches = measure()
            if module not in watches:
                entry.note = "not called any more after the rescaling"
                break
    for entry in report.layers:
        module = next(m for m, name in chosen.items() if name == entry.name)
        if module in watches:
            entry.std_after = watches[module].std()
        if not entry.note and abs(entry.std_after / target_std - 1.0) > max(tol, 0.05):
            entry.note = "off target: calls feed on one another"
    report.layers += [
        LayerScale(name, note="left alone: never called")
        for module, name in chosen.items()
        if module not in set(order)
    ]
    return report
