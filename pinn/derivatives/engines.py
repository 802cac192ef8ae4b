"""Engines: ``engine(model, points, wanted) -> Named``, differentiable in the parameters."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from dcase.errors import OptionError
from dcase.pinn.derivatives.jets import Jet, Plan
from dcase.pinn.derivatives.names import Named, Wanted

#: Names that :func:`choose_engine` takes.
ENGINES = ("auto", "autograd", "jet", "adjoint")


class Engine(Protocol):
    """What all engines have in common."""

    name: str

    def __call__(self, model: nn.Module, points: Tensor, wanted: Wanted) -> Named:
        """Fields, derivatives and coordinates of ``wanted`` at the points.

        Args:
            model: Maps points [N, d] to fields [N, F].
            points: [N, d], columns as ``wanted.coordinates``.
            wanted: What is asked for.

        Returns:
            Tensors [N] by name; differentiable in the parameters of the model if grad mode is on.
        """
        ...


class AutogradEngine:
    """Nested reverse-mode autograd: any model, any activation; the reference.

    One reverse pass per field with derivatives, one more per field and coordinate with second ones.
    """

    name = "autograd"

    def __call__(self, model: nn.Module, points: Tensor, wanted: Wanted) -> Named:
        """See :class:`Engine`."""
        _check(points, wanted)
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            if wanted.first:
                # A graph node of its own, whatever the caller's points are.
                source = points if points.requires_grad else points.detach().requires_grad_()
                points = source.view_as(source)
            values = _by_autograd(model, points, wanted)
        if not training:
            values = {name: value.detach() for name, value in values.items()}
        return Named(values)


class JetEngine:
    """Truncated Taylor series carried through the network in one batched forward pass.

    Args:
        compile: Compile the formulas with ``torch.compile``: needs a C++ compiler, and up to a
            minute for each shape. It may pay on a GPU or for an activation of your own; on a
            CPU the hand-written passes that a plain MLP takes otherwise are faster (measured:
            18 ms to 24 for the adjoint of 7000 points, 45 to 73 for two fields and a Laplacian).
    """

    name = "jet"
    _adjoint = False

    def __init__(self, *, compile: bool = False) -> None:
        self.compile = compile
        self._compiled = torch.compile(_outputs, dynamic=False) if compile else _outputs

    def __call__(self, model: nn.Module, points: Tensor, wanted: Wanted) -> Named:
        """See :class:`Engine`."""
        _check(points, wanted)
        self._check_model(model, wanted)
        if wanted.order == 0:
            return Named(_plain_values(model, points, wanted))
        plan = Plan.of(wanted, adjoint=self._adjoint)
        rows = self._compiled(model, points, plan)
        return Named(_named(rows, points, plan, wanted))

    def _check_model(self, model: nn.Module, wanted: Wanted) -> None:
        if not supports_jets(model):
            raise OptionError(
                f"engine '{self.name}' cannot differentiate this model (it has no jet method, or"
                " batch normalisation); use engine 'autograd'"
            )


class AdjointEngine(JetEngine):
    """All first derivatives of one field from one explicit reverse pass.

    A pass costs twice a value, whatever the number of coordinates; the jets cost one value more for
    each.
    """

    name = "adjoint"
    _adjoint = True

    def _check_model(self, model: nn.Module, wanted: Wanted) -> None:
        super()._check_model(model, wanted)
        if wanted.order > 1 or len(wanted.fields) != 1:
            raise OptionError(
                "engine 'adjoint' is for first derivatives of one field; use engine 'jet'"
            )


def choose_engine(
    model: nn.Module, wanted: Wanted, name: str = "auto", *, compile: bool = False
) -> Engine:
    """The engine of that name, or the fastest that can do it.

    "auto" is autograd for models without jets (batch normalisation, a module without ``jet``);
    else adjoint for first derivatives of one field by two coordinates or more; else jets.

    Args:
        model: Maps points [N, d] to fields [N, F].
        wanted: What will be asked for.
        name: One of :data:`ENGINES`.
        compile: See :class:`JetEngine`.

    Raises:
        OptionError: Unknown name, or an engine that cannot do this.
    """
    if name not in ENGINES:
        raise OptionError(f"unknown engine '{name}'; choose from {', '.join(ENGINES)}")
    if name == "auto":
        if not supports_jets(model):
            name = "autograd"
        elif wanted.order == 1 and len(wanted.fields) == 1 and len(wanted.first) > 1:
            name = "adjoint"
        else:
            name = "jet"
    if name == "autograd":
        if compile:
            raise OptionError("engine 'autograd' cannot be compiled; leave compile out")
        return AutogradEngine()
    engine = (AdjointEngine if name == "adjoint" else JetEngine)(compile=compile)
    engine._check_model(model, wanted)
    return engine


def supports_jets(model: nn.Module) -> bool:
    """Whether jets can pass: it has a ``jet`` method, and no part of it forbids them.

    A part forbids them by an attribute ``supports_jets = False``; batch normalisation always does,
    because there every point depends on every other.
    """
    return callable(getattr(model, "jet", None)) and not any(
        isinstance(part, nn.modules.batchnorm._BatchNorm)
        or getattr(part, "supports_jets", True) is False
        for part in model.modules()
    )


def _check(points: Tensor, wanted: Wanted) -> None:
    if points.ndim != 2 or points.shape[1] != len(wanted.coordinates):
        raise OptionError(
            f"points must have shape [N, {len(wanted.coordinates)}] for coordinates"
            f" {', '.join(wanted.coordinates)}, got {list(points.shape)}"
        )


def _check_output(width: int, wanted: Wanted) -> None:
    if width != len(wanted.fields):
        raise OptionError(
            f"the model returns {width} columns for {len(wanted.fields)} fields"
            f" ({', '.join(wanted.fields)})"
        )


def _plain_values(model: nn.Module, points: Tensor, wanted: Wanted) -> dict[str, Tensor]:
    out = model(points)
    _check_output(out.shape[1], wanted)
    columns, axes = out.unbind(1), points.unbind(1)
    return {
        r.name: axes[r.indices[0]] if r.kind == "coordinate" else columns[r.field]
        for r in wanted.requests
    }


def _by_autograd(model: nn.Module, points: Tensor, wanted: Wanted) -> dict[str, Tensor]:
    out = model(points)
    _check_output(out.shape[1], wanted)
    gradients: dict[int, Tensor] = {}
    hessian_rows: dict[tuple[int, int], Tensor] = {}

    def derivative(of: Tensor) -> Tensor:
        if not of.requires_grad:
            return torch.zeros_like(points)
        (result,) = torch.autograd.grad(of.sum(), points, create_graph=True, allow_unused=True)
        return torch.zeros_like(points) if result is None else result

    def gradient(field: int) -> Tensor:
        if field not in gradients:
            gradients[field] = derivative(out[:, field])
        return gradients[field]

    def hessian_row(field: int, i: int) -> Tensor:
        if (field, i) not in hessian_rows:
            hessian_rows[field, i] = derivative(gradient(field)[:, i])
        return hessian_rows[field, i]

    values: dict[str, Tensor] = {}
    for r in wanted.requests:
        if r.kind == "coordinate":
            values[r.name] = points[:, r.indices[0]]
        elif r.kind == "value":
            values[r.name] = out[:, r.field]
        elif r.kind == "first":
            values[r.name] = gradient(r.field)[:, r.indices[0]]
        elif r.kind == "second":
            i, j = r.indices
            values[r.name] = hessian_row(r.field, i)[:, j]
        else:
            values[r.name] = torch.stack([hessian_row(r.field, i)[:, i] for i in r.indices]).sum(0)
    return values


def _outputs(model: nn.Module, points: Tensor, plan: Plan) -> Tensor:
    """[C, F, N]: the channels of each field contiguous."""
    jet: Jet = model.jet(plan.seed(points))  # type: ignore[operator]
    return jet.stack.transpose(1, 2).contiguous()


def _named(rows: Tensor, points: Tensor, plan: Plan, wanted: Wanted) -> dict[str, Tensor]:
    _check_output(rows.shape[1], wanted)
    # One unbind, whose backward is one stack; a select per name would each fill a tensor of zeros.
    columns = rows.flatten(0, 1).unbind(0)
    axes = points.unbind(1)
    values: dict[str, Tensor] = {}
    for r in wanted.requests:
        if r.kind == "coordinate":
            values[r.name] = axes[r.indices[0]]
            continue
        channel = 0
        if r.kind == "laplacian":
            channel = plan.channel("laplacian")
        elif r.kind != "value":
            channel = plan.channel(*r.indices)
        values[r.name] = columns[channel * len(wanted.fields) + r.field]
    return values
