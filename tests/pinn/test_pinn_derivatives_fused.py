"""The hand-written passes: blocks of points, memory used again, and when they step aside."""

import copy
import pickle

import pytest
import torch
from torch import nn

from dcase.activations import ACTIVATIONS, get_activation
from dcase.pinn.derivatives import (
    AdjointEngine,
    AutogradEngine,
    JetEngine,
    Plan,
    fused,
    fused_adjoint,
    wanted,
    workspace,
)
from dcase.pinn.networks import MLP

F64 = torch.float64
FIRST = wanted(("u", "u_x", "u_t"), ("x", "t"), ("u",))
SECOND = wanted(("u", "v_t", "u_xt", "v_xx", "lap_u"), ("x", "y", "t"), ("u", "v"))


def points(n, d, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(n_in, n_out, **options):
    options = {"width": 7, "depth": 3, "init": "stable", "dtype": F64} | options
    return MLP(n_in, n_out, generator=torch.Generator().manual_seed(5), **options)


def loss_of(d, w):
    return sum(((k + 1) * d[n] + d[n] ** 2 * d[w.names[0]]).mean() for k, n in enumerate(w.names))


def gradients(engine, model, p, w):
    return torch.autograd.grad(
        loss_of(engine(model, p, w), w), list(model.parameters()), materialize_grads=True
    )


def same(ours, theirs, rtol=1e-10):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * max(float(b.abs().max()), 1e-3))


@pytest.fixture
def no_fusing(monkeypatch):
    """Make any use of the hand-written passes an error."""

    def refuse(*_, **__):
        raise AssertionError("a hand-written pass was used")

    monkeypatch.setattr(fused, "_forward", refuse)
    monkeypatch.setattr(fused_adjoint, "_forward", refuse)


def test_ordinary_steps_are_fused(no_fusing):
    # Otherwise the other tests here would show nothing.
    for engine, model, w in (
        (JetEngine(), mlp(3, 2), SECOND),
        (AdjointEngine(), mlp(2, 1), FIRST),
    ):
        with pytest.raises(AssertionError, match="hand-written"):
            engine(model, points(5, model.n_in), w)
    with pytest.raises(AssertionError, match="hand-written"):
        mlp(2, 1)(points(5, 2))


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("activation", ["tanh", "isilu", "irelu"])
def test_blocks_of_points_add_up(monkeypatch, activation, residual, depth):
    monkeypatch.setattr(workspace, "BLOCK_ROWS", 20)
    options = {"activation": activation, "residual": residual, "depth": depth}
    for n in (0, 1, 23):
        one, two = mlp(2, 1, **options), mlp(3, 2, **options)
        for engine, model, w in (
            (JetEngine(), one, FIRST),
            (AdjointEngine(), one, FIRST),
            (JetEngine(), two, SECOND),
        ):
            p = points(n, model.n_in)
            if n == 0:
                assert engine(model, p, w).u.shape == (0,)
                continue
            same(gradients(engine, model, p, w), gradients(AutogradEngine(), model, p, w))
            with torch.no_grad():
                ours = engine(model, p, w)
            theirs = AutogradEngine()(model, p, w)
            same([ours[k] for k in w.names], [theirs[k].detach() for k in w.names])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_alone(monkeypatch, activation):
    monkeypatch.setattr(workspace, "BLOCK_ROWS", 8)
    for residual in (False, True):
        model, p = mlp(2, 3, activation=activation, residual=residual), points(21, 2)
        weights = list(model.parameters())
        found = torch.autograd.grad(model(p).square().sum(), weights)
        q = p.clone().requires_grad_()  # goes layer by layer
        same(found, torch.autograd.grad(model(q).square().sum(), weights))
        with torch.no_grad():
            same([model(p)], [model(q)])


def test_blocks_cover_all_points_evenly():
    cpu = torch.device("cpu")
    for n in (1, 7, 4096, 7000, 10_001):
        blocks = workspace.blocks_of(n, 3, cpu)
        ends = [start + m for start, m in blocks]
        assert [start for start, _ in blocks] == [0, *ends[:-1]]
        assert ends[-1] == n
        sizes = [m for _, m in blocks]
        assert sizes[0] == max(sizes) <= workspace.BLOCK_ROWS // 3 * torch.get_num_threads()
        assert sizes[-1] > sizes[0] - len(blocks)
    assert workspace.blocks_of(0, 3, cpu) == []
    assert workspace.blocks_of(10**6, 3, torch.device("cuda")) == [(0, 10**6)]


# Memory


def engines_and_models():
    return [(JetEngine(), mlp(3, 2), SECOND), (AdjointEngine(), mlp(2, 1), FIRST)]


def test_memory_is_used_again_but_not_while_a_graph_needs_it():
    for engine, model, w in engines_and_models():
        a, b = points(9, model.n_in, 1), points(9, model.n_in, 2)
        weights = list(model.parameters())
        expected = [gradients(AutogradEngine(), model, p, w) for p in (a, b)]
        # Two graphs alive at once, backward in the order that would hurt.
        first, second = loss_of(engine(model, a, w), w), loss_of(engine(model, b, w), w)
        same(torch.autograd.grad(first, weights, materialize_grads=True), expected[0])
        same(torch.autograd.grad(second, weights, materialize_grads=True), expected[1])
        del first, second
        held = len(model._workspace._free)
        for _ in range(5):
            same(gradients(engine, model, a, w), expected[0])
        assert len(model._workspace._free) == held > 0


def test_a_graph_can_be_used_twice():
    for engine, model, w in engines_and_models():
        loss = loss_of(engine(model, points(9, model.n_in), w), w)
        weights = list(model.parameters())
        once = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
        engine(model, points(9, model.n_in, 2), w)  # something in between
        same(torch.autograd.grad(loss, weights, materialize_grads=True), once)


def test_changed_weights_are_noticed():
    for engine, model, w in engines_and_models():
        loss = loss_of(engine(model, points(9, model.n_in), w), w)
        with torch.no_grad():
            model.layers[1].weight.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_the_memory_is_bounded_and_stays_out_of_copies_and_files():
    model = mlp(2, 1)
    for n in range(1, 20):
        gradients(AdjointEngine(), model, points(n, 2), FIRST)
    assert 0 < len(model._workspace._free) <= workspace._KEPT
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._workspace._free == []
        assert torch.equal(twin(points(4, 2)), model(points(4, 2)))
    assert set(model.state_dict()) == {
        f"layers.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")
    }


# Stepping aside


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_gradients_of_gradients(residual):
    # For example a Hessian-vector product of the loss.
    for engine, model, w in (
        (JetEngine(), mlp(3, 2, residual=residual), SECOND),
        (AdjointEngine(), mlp(2, 1, residual=residual), FIRST),
    ):
        p, weights, found = points(9, model.n_in), list(model.parameters()), []
        for e in (engine, AutogradEngine()):
            loss = loss_of(e(model, p, w), w)
            grads = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
            square = sum(g.square().sum() for g in grads)
            found.append(torch.autograd.grad(square, weights, materialize_grads=True))
        same(*found, rtol=1e-9)


def test_function_transforms_go_by_the_plain_formulas(no_fusing):
    # For example the Jacobian of all residuals by the parameters (NTK, Gauss-Newton).
    model, p = mlp(2, 1), points(6, 2)
    parameters = dict(model.named_parameters())

    def residuals(parameters, engine):
        call = torch.func.functional_call
        if engine is None:
            return call(model, parameters, (p,))[:, 0]
        plan = Plan.of(FIRST, adjoint=engine)

        class Wrapped(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self, points):
                return self.inner.jet(plan.seed(points)).first(1)[:, 0]

        return call(Wrapped(), {f"inner.{k}": v for k, v in parameters.items()}, (p,))

    for engine in (None, False, True):
        jacobian = torch.func.jacrev(residuals)(parameters, engine)
        forward = torch.func.jacfwd(residuals)(parameters, engine)
        for name, j in jacobian.items():
            assert j.shape == (6, *parameters[name].shape)
            torch.testing.assert_close(j, forward[name], rtol=1e-10, atol=1e-12)


def test_batched_gradients_through_a_fused_graph():
    model, p = mlp(2, 1), points(6, 2)
    d = AdjointEngine()(model, p, FIRST)
    weights = list(model.parameters())
    rows = torch.autograd.grad(
        d.u_t, weights, torch.eye(6, dtype=F64), is_grads_batched=True, retain_graph=True
    )
    for i in range(6):
        one = torch.autograd.grad(d.u_t[i], weights, retain_graph=True, materialize_grads=True)
        same([r[i] for r in rows], one)


def test_hooks_are_called():
    model, seen = mlp(2, 1), []
    handle = model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    model(points(4, 2))
    handle.remove()
    model(points(4, 2))
    assert seen == [1]


class Cubic(nn.Module):
    def forward(self, x):
        return x + 0.1 * x**3


def test_a_users_activation_takes_the_plain_formulas(no_fusing):
    w = wanted(("u", "u_xx", "u_xt"), ("x", "t"), ("u",))
    model, p = mlp(2, 1, activation=Cubic()), points(9, 2)
    same(gradients(JetEngine(), model, p, w), gradients(AutogradEngine(), model, p, w))
    same(gradients(AdjointEngine(), model, p, FIRST), gradients(AutogradEngine(), model, p, FIRST))


def test_parametrised_weights_get_their_gradient():
    model = mlp(2, 1)
    torch.nn.utils.parametrizations.weight_norm(model.layers[1])
    p = points(9, 2)
    same(gradients(AdjointEngine(), model, p, FIRST), gradients(AutogradEngine(), model, p, FIRST))


def test_frozen_weights():
    model, p = mlp(2, 1), points(9, 2)
    model.layers[0].requires_grad_(False)
    loss_of(AdjointEngine()(model, p, FIRST), FIRST).backward()
    assert model.layers[0].weight.grad is None
    assert model.layers[1].weight.grad is not None


def test_points_that_need_gradients_through_blocks(monkeypatch):
    monkeypatch.setattr(workspace, "BLOCK_ROWS", 12)
    for engine, model, w in engines_and_models():
        found = []
        for e in (engine, AutogradEngine()):
            p = points(17, model.n_in).requires_grad_()
            found.append(torch.autograd.grad(loss_of(e(model, p, w), w), p))
        same(*found)


def test_inference_mode_leaves_nothing_behind():
    for engine, model, w in engines_and_models():
        p = points(9, model.n_in)
        with torch.inference_mode():
            engine(model, p, w)
            model(p)
        with torch.no_grad():
            found = engine(model, p, w)
            model(p)
            expected = AutogradEngine()(model, p, w)
        same([found[n] for n in w.names], [expected[n] for n in w.names])


def test_another_activation_gets_memory_of_its_own():
    model, p = mlp(2, 1), points(9, 2)
    engines = (AdjointEngine(), JetEngine())
    for engine in engines:
        gradients(engine, model, p, FIRST)
    model.activation = get_activation("isilu")
    for engine in engines:
        same(gradients(engine, model, p, FIRST), gradients(AutogradEngine(), model, p, FIRST))
