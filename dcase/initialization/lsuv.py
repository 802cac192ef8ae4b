"""Layer-sequential unit-variance initialisation on a real batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dcase.errors import OptionError, TrainingError


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
    ``init_linear_(..., mode="stable")`` first (see :mod:`dcase.initialization` for why).

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
