"""Engines against formulas and against each other; names of derivatives."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from dcase.activations import ACTIVATIONS
from dcase.errors import OptionError
from dcase.pinn.derivatives import (
    AdjointEngine,
    AutogradEngine,
    Jet,
    JetEngine,
    Plan,
    choose_engine,
    trace,
    wanted,
)
from dcase.pinn.networks import MLP

F64 = torch.float64
ALL = ("u", "v", "x", "u_x", "u_t", "v_y", "u_xx", "v_xy", "u_ty", "v_tt", "lap_u", "lap_v")


def points(n, d, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(n_in, n_out, **options):
    options = {"width": 9, "depth": 3, "init": "stable", "dtype": F64} | options
    return MLP(n_in, n_out, generator=torch.Generator().manual_seed(5), **options)


class Waves(nn.Module):
    """u = a sin(x) cos(2y) e^-t, v = x^2 y t^3: every derivative known by heart."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.3, dtype=F64))

    def forward(self, p):
        x, y, t = p.unbind(1)
        u = self.a * torch.sin(x) * torch.cos(2 * y) * torch.exp(-t)
        return torch.stack([u, x * x * y * t**3], 1)

    def jet(self, jet):
        x, y, t = (jet.columns([i]) for i in range(3))
        sin_x = x.elementwise(lambda z, _: (torch.sin(z), torch.cos(z), -torch.sin(z)))
        cos_2y = (y * 2.0).elementwise(lambda z, _: (torch.cos(z), -torch.sin(z), -torch.cos(z)))
        decay = (-t).elementwise(lambda z, _: (torch.exp(z),) * 3)
        # Sums and constants on both sides, to have them tested.
        one = Jet.constant(jet.plan, torch.ones_like(x.value))
        u = sin_x * cos_2y * decay * self.a + 1.0 - one
        v = x * x * y * t * t * t
        return Jet.cat([u, 3.0 - (3.0 - v)])


@pytest.mark.parametrize("engine", [AutogradEngine(), JetEngine()], ids=lambda e: e.name)
def test_against_formulas(engine):
    p = points(30, 3)
    x, y, t = p.unbind(1)
    model = Waves()
    d = engine(model, p, wanted(ALL, ("x", "y", "t"), ("u", "v")))
    e = torch.exp(-t)
    u = 1.3 * torch.sin(x) * torch.cos(2 * y) * e
    expected = {
        "u": u,
        "v": x**2 * y * t**3,
        "x": x,
        "u_x": 1.3 * torch.cos(x) * torch.cos(2 * y) * e,
        "u_t": -u,
        "v_y": x**2 * t**3,
        "u_xx": -u,
        "v_xy": 2 * x * t**3,
        "u_ty": 2.6 * torch.sin(x) * torch.sin(2 * y) * e,
        "v_tt": 6 * x**2 * y * t,
        "lap_u": -5 * u,
        "lap_v": 2 * y * t**3,
    }
    assert set(d) == set(ALL) == set(expected)
    for name, value in expected.items():
        assert getattr(d, name).shape == (30,)
        torch.testing.assert_close(d[name].detach(), value, rtol=1e-12, atol=1e-12)
    # u is linear in a.
    (to_a,) = torch.autograd.grad((d.lap_u * x).sum(), model.a)
    torch.testing.assert_close(to_a, (-5 * u * x).sum() / 1.3)


def agree(engine, model, p, w, rtol=1e-10):
    """Values and the gradient of a nonlinear loss, engine against nested autograd."""
    parameters = [q for q in model.parameters() if q.requires_grad]
    results = []
    for e in (engine, AutogradEngine()):
        d = e(model, p, w)
        loss = sum(
            ((k + 1) * d[n] + 0.3 * d[n] ** 2 * d[w.names[0]]).mean() for k, n in enumerate(w.names)
        )
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        results.append(
            {n: d[n].detach() for n in w.names}
            | {f"gradient {i}": g for i, g in enumerate(gradients) if g is not None}
        )
    ours, theirs = results
    assert set(theirs) <= set(ours)
    for key, value in ours.items():
        reference = theirs.get(key, torch.zeros_like(value))
        scale = float(reference.abs().max())
        torch.testing.assert_close(value, reference, rtol=rtol, atol=rtol * max(scale, 1e-3))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jets_agree_with_autograd(activation):
    w = wanted(ALL, ("x", "y", "t"), ("u", "v"))
    agree(JetEngine(), mlp(3, 2, activation=activation), points(23, 3), w)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_order_jets_and_adjoint_agree_with_autograd(activation):
    w = wanted(("u", "u_x", "u_t"), ("x", "t"), ("u",))
    for residual in (False, True):
        model = mlp(2, 1, activation=activation, residual=residual)
        agree(JetEngine(), model, points(23, 2), w)
        agree(AdjointEngine(), model, points(23, 2), w)


@pytest.mark.parametrize(
    "names",
    [
        ("u",),
        ("u", "u_x"),
        ("u_t", "lap_u"),
        ("u_xy",),
        ("u_xx", "u_yy", "u_tt"),
        ("lap_u", "u_xx", "v_xt"),
        ("u", "v", "v_t"),
    ],
    ids="+".join,
)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_every_set_of_channels(names, residual):
    w = wanted(names, ("x", "y", "t"), ("u", "v"))
    agree(JetEngine(), mlp(3, 2, residual=residual, activation="log_cosh"), points(17, 3), w)


class Embedded(nn.Module):
    """Trainable frequency -> MLP -> u = g + t N: what a task builds."""

    def __init__(self, **options):
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(2.0, dtype=F64))
        self.mlp = mlp(3, 1, **options)

    def forward(self, p):
        x, t = p[:, :1], p[:, 1:]
        phase = self.frequency * x
        features = torch.cat([torch.sin(phase), torch.cos(phase), t], 1)
        return torch.sin(x) + t * self.mlp(features)

    def jet(self, jet):
        x, t = jet.columns([0]), jet.columns([1])

        def sine(z, order):
            return (torch.sin(z), torch.cos(z), -torch.sin(z))[: order + 1]

        phase = x * self.frequency
        features = Jet.cat([phase.elementwise(sine), (phase + math.pi / 2).elementwise(sine), t])
        return x.elementwise(sine) + t * self.mlp.jet(features)


@pytest.mark.parametrize("engine", [JetEngine(), AdjointEngine()], ids=lambda e: e.name)
def test_embeddings_and_output_transforms_with_parameters_of_their_own(engine):
    w = wanted(("u", "u_x", "u_t"), ("x", "t"), ("u",))
    agree(engine, Embedded(), points(19, 2), w)
    if engine.name == "jet":
        agree(engine, Embedded(), points(19, 2), wanted(("u_xx", "u_xt"), ("x", "t"), ("u",)))


def test_points_that_need_a_gradient_get_one():
    w = wanted(("u", "u_x", "u_t"), ("x", "t"), ("u",))
    model, found = mlp(2, 1), []
    for engine in (AutogradEngine(), JetEngine(), AdjointEngine()):
        p = points(11, 2).requires_grad_()
        d = engine(model, p, w)
        found.append(torch.autograd.grad((d.u_t * d.u + d.u_x**2).sum(), p)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", [AutogradEngine(), JetEngine(), AdjointEngine()])
def test_without_grad_mode_nothing_is_tracked(engine):
    w = wanted(("u", "u_x", "u_t"), ("x", "t"), ("u",))
    model, p = mlp(2, 1), points(5, 2)
    with torch.no_grad():
        d = engine(model, p, w)
    assert not any(d[name].requires_grad for name in w.names)
    torch.testing.assert_close(d.u_t, engine(model, p, w).u_t.detach())


def test_float32_agrees_to_rounding():
    w = wanted(("u_t", "v_t", "lap_u", "lap_v"), ("x", "y", "t"), ("u", "v"))
    p = points(200, 3)
    narrow = JetEngine()(mlp(3, 2, dtype=torch.float32), p.float(), w)
    wide = JetEngine()(mlp(3, 2), p, w)
    for name in w.names:
        assert narrow[name].dtype == torch.float32
        torch.testing.assert_close(narrow[name].double(), wide[name], rtol=1e-4, atol=1e-4)


def test_the_engine_fits_equation_and_model():
    first = wanted(("u", "u_x", "u_t"), ("x", "t"), ("u",))
    one = wanted(("u_t",), ("x", "t"), ("u",))
    second = wanted(("u_t", "u_xx"), ("x", "t"), ("u",))
    assert choose_engine(mlp(2, 1), first).name == "adjoint"
    assert choose_engine(mlp(2, 1), one).name == "jet"
    assert choose_engine(mlp(2, 1), second).name == "jet"
    assert choose_engine(mlp(2, 1), first, "autograd").name == "autograd"
    normalised = mlp(2, 1, batch_norm=True)
    assert choose_engine(normalised, first).name == "autograd"
    assert choose_engine(nn.Sequential(nn.Linear(2, 1)), first).name == "autograd"
    with pytest.raises(OptionError, match="batch normalisation"):
        choose_engine(normalised, first, "jet")
    with pytest.raises(OptionError, match="first derivatives of one field"):
        choose_engine(mlp(2, 1), second, "adjoint")
    with pytest.raises(OptionError, match="unknown engine 'jets'"):
        choose_engine(mlp(2, 1), first, "jets")


def test_batch_norm_is_differentiated_through_the_batch():
    # Points of a batch depend on each other: the reverse sum is what DeepXDE takes, too.
    w = wanted(("u", "u_x"), ("x", "t"), ("u",))
    model, p = mlp(2, 1, batch_norm=True), points(12, 2)
    d = choose_engine(model, w)(model, p, w)
    h = 1e-6
    step = torch.tensor([h, 0.0], dtype=F64)
    # The sum over the batch shifts every point alike: sum_i du_i/dx_j over j is the total.
    numeric = (model(p + step).sum() - model(p - step).sum()) / (2 * h)
    torch.testing.assert_close(d.u_x.sum().detach(), numeric.detach(), rtol=1e-5, atol=1e-7)
    loss = (d.u_x**2).sum()
    loss.backward()
    assert all(torch.isfinite(q.grad).all() for q in model.parameters() if q.grad is not None)


def test_wrong_shapes_are_refused():
    w = wanted(("u", "u_x"), ("x", "t"), ("u",))
    for engine in (AutogradEngine(), JetEngine(), AdjointEngine()):
        with pytest.raises(OptionError, match=r"shape \[N, 2\] for coordinates x, t"):
            engine(mlp(2, 1), points(4, 3), w)
    for engine in (AutogradEngine(), JetEngine()):
        with pytest.raises(OptionError, match="returns 2 columns for 1 fields"):
            engine(mlp(2, 2), points(4, 2), w)


# Names


def test_names_are_taken_apart():
    w = wanted(("u_tx", "lap_v", "v_y", "x", "v_y"), ("x", "y", "t"), ("u", "v"))
    assert w.names == ("u_tx", "lap_v", "v_y", "x")
    assert w.first == (0, 1, 2)
    assert w.second == ((0, 2),)
    assert w.laplacian == (0, 1)
    assert w.order == 2
    assert wanted(("u",), ("x", "t"), ("u",)).order == 0


def test_long_names_and_underscores():
    w = wanted(("c_b_r", "c_rphi", "c_b_phi_phi"), ("r", "phi", "t"), ("c", "c_b"))
    assert [(r.field, r.indices) for r in w.requests] == [(1, (0,)), (0, (0, 1)), (1, (1, 1))]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("u_z", "unknown name 'u_z'; did you mean 'u_"),
        ("w", "unknown name 'w'"),
        ("lap_w", "unknown name 'lap_w'"),
        ("u_xxx", "order 3; the engines go to order 2"),
        ("u_", "unknown name 'u_'"),
    ],
)
def test_unknown_names_get_a_hint(name, message):
    with pytest.raises(OptionError, match=message):
        wanted((name,), ("x", "t"), ("u",))


def test_clashing_names_are_refused():
    with pytest.raises(OptionError, match="must all differ"):
        wanted(("u",), ("x", "t"), ("x",))


@dataclass(frozen=True)
class Burgers:
    nu: float = 0.1
    coordinates: ClassVar = ("x", "t")
    fields: ClassVar = ("u",)

    def residuals(self, d):
        return {"burgers": d.u_t + d.u * d.u_x - self.nu * d.u_xx + torch.sin(d.x)}


def test_an_equation_is_traced():
    w = trace(Burgers())
    assert set(w.names) == {"u", "u_t", "u_x", "u_xx", "x"}
    assert w.first == (0, 1)
    assert w.second == ((0, 0),)


def test_a_faulty_equation_is_refused():
    class Wrong(Burgers):
        def residuals(self, d):
            return {"wrong": d.u_z}

    class NoDict(Burgers):
        def residuals(self, d):
            return d.u_x

    with pytest.raises(OptionError, match="unknown name 'u_z'"):
        trace(Wrong())
    with pytest.raises(OptionError, match=r"NoDict\.residuals must return a dict"):
        trace(NoDict())


def test_what_was_not_computed_is_said():
    model = mlp(2, 1)
    d = JetEngine()(model, points(3, 2), wanted(("u_x",), ("x", "t"), ("u",)))
    with pytest.raises(AttributeError, match="'u_t' was not computed; what there is: u_x"):
        _ = d.u_t


def test_plans_are_checked():
    with pytest.raises(OptionError, match="need the first ones"):
        Plan(first=(0,), second=((0, 1),))
    with pytest.raises(OptionError, match="first derivatives only"):
        Plan(first=(0,), second=((0, 0),), adjoint=True)
    with pytest.raises(OptionError, match="no channel"):
        Plan(first=(0,)).channel(1)
