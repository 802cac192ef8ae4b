"""SOAP: where it is Adam, and what its basis does."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from dcase.training.soap import SOAP


def problem(seed=0, condition=100.0, n=6):
    """``1/2 |A W B - C|^2`` with W [n, n]; A and B as ill-conditioned as asked, and turned."""
    g = torch.Generator().manual_seed(seed)

    def matrix():
        u, v = (
            torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0] for _ in "uv"
        )
        return u @ torch.diag(torch.logspace(0, -1, n, base=condition**0.5).double()) @ v

    a, b = matrix(), matrix()
    target = torch.randn(n, n, generator=g, dtype=torch.float64)
    start = torch.randn(n, n, generator=g, dtype=torch.float64)
    return lambda w: 0.5 * (a @ w @ b - a @ target @ b).square().sum(), start


def train(optimizer, parameters, loss, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_without_a_basis_it_is_adam(weight_decay):
    def fit(kind, **options):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        x = torch.linspace(-1, 1, 30, dtype=torch.float64).view(10, 3)
        optimizer = kind(
            net.parameters(), lr=0.02, betas=(0.8, 0.95), weight_decay=weight_decay, **options
        )
        return train(optimizer, net, lambda: (net(x) - x.sum(1, keepdim=True)).square().mean(), 40)

    assert fit(SOAP, largest=0) == pytest.approx(fit(torch.optim.AdamW), rel=1e-9)
    assert fit(SOAP)[-1] != pytest.approx(fit(torch.optim.AdamW)[-1], rel=1e-3)


def test_it_does_not_depend_on_the_coordinates():
    """Turned rows and columns turn the path of SOAP, bit rounding aside; not Adam's."""
    loss, start = problem()
    g = torch.Generator().manual_seed(9)
    left, right = (
        torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))[0] for _ in "lr"
    )

    def path(kind, turned, **options):
        w = nn.Parameter(left @ start @ right if turned else start.clone())
        optimizer = kind([w], lr=0.05, **options)
        return train(optimizer, [w], lambda: loss(left.T @ w @ right.T if turned else w), 60)

    assert path(SOAP, True, every=3) == pytest.approx(path(SOAP, False, every=3), rel=1e-5)
    a, b = (path(torch.optim.Adam, turned)[-1] for turned in (True, False))
    assert a != pytest.approx(b, rel=1e-2)


def test_it_is_better_where_coordinates_are_mixed():
    loss, start = problem(condition=1e3)

    def best(kind):
        finals = []
        for lr in (0.01, 0.03, 0.1):
            w = nn.Parameter(start.clone())
            finals.append(train(kind([w], lr=lr), [w], lambda w=w: loss(w), 300)[-1])
        return min(finals)

    assert best(SOAP) < 0.2 * best(torch.optim.Adam)


def test_the_first_step_sets_the_basis_and_nothing_else():
    loss, start = problem()
    w, bias = nn.Parameter(start.clone()), nn.Parameter(torch.ones(6, dtype=torch.float64))
    optimizer = SOAP([w, bias], lr=0.1)
    train(optimizer, [w, bias], lambda: loss(w) + bias.square().sum(), 1)
    assert torch.equal(w.detach(), start)
    assert (
        torch.equal(bias.detach(), torch.full((6,), 0.9, dtype=torch.float64).clone())
        or (bias.detach() - 0.9).abs().max() < 1e-6
    )
    (q,) = optimizer.state[w]["left_basis"]
    torch.testing.assert_close(q.T @ q, torch.eye(6, dtype=torch.float64))
    turned = q.T @ optimizer.state[w]["left"][0] @ q
    values = turned.diagonal()
    assert (turned - torch.diag(values)).abs().max() < 1e-10 * values.max()
    assert (values.diff() <= 0).all()


def test_the_basis_follows_the_gradients():
    """Gradients ``D1 Z D2`` in turned coordinates: the basis must turn them back."""
    g = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(4, 4, generator=g).double())[0] for _ in "uv")
    scales = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]).double())
    w = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    optimizer = SOAP([w], lr=0.0, betas=(0.9, 0.999), every=2)
    for _ in range(1500):
        w.grad = u @ scales @ torch.randn(4, 4, generator=g).double() @ scales @ v.T
        optimizer.step()
    for name, known in (("left", u), ("right", v)):
        overlap = (optimizer.state[w][f"{name}_basis"][0].T @ known).abs()
        assert overlap.diagonal().min() > 0.97
    # The second moment is that of the turned gradients, in the order of the basis.
    (square,) = optimizer.state[w]["square"]
    expected = torch.outer(scales.diagonal() ** 2, scales.diagonal() ** 2)
    assert (square.log() - expected.log()).abs().max() < 0.8


def test_shapes_of_all_kinds():
    g = torch.Generator().manual_seed(0)
    shapes = [(), (3,), (1, 4), (4, 1), (2, 3, 4), (3, 2)]
    parameters = [nn.Parameter(torch.randn(s, generator=g)) for s in shapes]
    optimizer = SOAP(parameters, lr=0.05, every=2)
    idle = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [idle]})
    losses = train(
        optimizer, parameters, lambda: sum((p - 1).square().sum() for p in parameters), 300
    )
    assert losses[-1] < 1e-2 * losses[0]
    assert torch.equal(idle.detach(), torch.ones(2, 2))
    assert "left" not in optimizer.state[parameters[2]]  # one row: nothing to turn
    assert optimizer.state[parameters[4]]["right"].shape == (1, 12, 12)


def test_parameters_do_not_feel_each_other():
    """Matrices of one shape are worked on together, vectors end to end: each goes its own way."""
    g = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (4,), (3, 4), (2, 2), (3,), (4, 3), (3, 4)]
    starts = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    targets = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]

    def end(chosen):
        parameters = [nn.Parameter(starts[i].clone()) for i in chosen]
        scale = torch.linspace(1, 3, 12, dtype=torch.float64)

        def loss():
            pairs = zip(parameters, (targets[i] for i in chosen), strict=True)
            return sum(
                ((p - t).reshape(-1).cumsum(0) * scale[: p.numel()]).square().sum()
                for p, t in pairs
            )

        train(SOAP(parameters, lr=0.03, every=3), parameters, loss, 20)
        return [p.detach() for p in parameters]

    together = end(range(7))
    for i, found in enumerate(together):
        torch.testing.assert_close(found, end([i])[0], rtol=1e-9, atol=1e-9)


def test_blocks_are_matrices_of_their_own():
    """A weight of 2 x 3 blocks goes where its blocks would go as six parameters."""
    g = torch.Generator().manual_seed(0)
    start, target = (torch.randn(6, 6, generator=g, dtype=torch.float64) for _ in "st")

    def blocks(whole):
        return [whole[3 * i : 3 * i + 3, 2 * j : 2 * j + 2] for i in range(2) for j in range(3)]

    def loss(found, wanted):
        pairs = zip(found, wanted, strict=True)
        return sum((a.cumsum(0) - b.cumsum(0)).square().sum() for a, b in pairs)

    whole = nn.Parameter(start.clone())
    whole.block_shape = (3, 2)
    train(SOAP([whole], 0.03, every=3), [whole], lambda: loss(blocks(whole), blocks(target)), 20)
    parts = [nn.Parameter(b.clone()) for b in blocks(start)]
    train(SOAP(parts, 0.03, every=3), parts, lambda: loss(parts, blocks(target)), 20)
    for found, part in zip(blocks(whole.detach()), parts, strict=True):
        torch.testing.assert_close(found, part.detach(), rtol=1e-9, atol=1e-9)

    whole.block_shape = (4, 2)
    whole.grad = torch.ones_like(whole)
    with pytest.raises(ValueError, match="blocks of 4 x 2 do not fill 6 x 6"):
        SOAP([whole]).step()


def test_a_gradient_that_comes_and_goes():
    """The first one joins a parameter to the others; without one it drifts on like Adam's."""
    a, b = (nn.Parameter(torch.ones(2, 2, dtype=torch.float64)) for _ in "ab")
    optimizer = SOAP([a, b], lr=0.1)
    a.grad = torch.eye(2, dtype=torch.float64)
    optimizer.step()
    optimizer.step()
    assert torch.equal(b.detach(), torch.ones(2, 2, dtype=torch.float64))
    b.grad = 2 * a.grad
    for _ in range(3):
        optimizer.step()
    assert (b.detach().diagonal() < 1).all()
    moved = a.detach().clone()
    a.grad = None
    optimizer.step()
    assert (a.detach().diagonal() < moved.diagonal()).all()


def test_state_is_plain_and_complete():
    loss, start = problem()

    def make(at):
        w = nn.Parameter(at.clone())
        return w, SOAP([w], lr=0.05, every=3)

    w, optimizer = make(start)
    train(optimizer, [w], lambda: loss(w), 10)
    buffer = io.BytesIO()
    torch.save([w.detach(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    at, state = torch.load(buffer, weights_only=True)
    other, again = make(at)
    again.load_state_dict(state)
    assert train(optimizer, [w], lambda: loss(w), 10) == train(
        again, [other], lambda: loss(other), 10
    )
    assert torch.equal(w, other)


def soap_by_the_paper(gradients, start, lr, betas, eps, every):
    """Algorithms 3 and 4 of Vyas et al. (2024) for a matrix, in NumPy, line by line."""
    beta1, beta2 = betas
    w, n = start.copy(), start.shape
    left, right = np.zeros((n[0], n[0])), np.zeros((n[1], n[1]))
    q_left, q_right = np.eye(n[0]), np.eye(n[1])
    mean, square, path = np.zeros(n), np.zeros(n), []
    for t, g in enumerate(gradients):
        if t > 0:
            mean = beta1 * mean + (1 - beta1) * g
            turned = q_left.T @ g @ q_right
            square = beta2 * square + (1 - beta2) * turned**2
            first = (q_left.T @ mean @ q_right) / (1 - beta1**t)
            second = square / (1 - beta2**t)
            w = w - lr * q_left @ (first / (np.sqrt(second) + eps)) @ q_right.T
        left = beta2 * left + (1 - beta2) * g @ g.T
        right = beta2 * right + (1 - beta2) * g.T @ g
        if t == 0:
            q_left, q_right = (np.linalg.eigh(m)[1][:, ::-1] for m in (left, right))
        elif t % every == 0:
            for axis, average in ((0, left), (1, right)):
                q = q_left if axis == 0 else q_right
                order = np.argsort(-np.diag(q.T @ average @ q), kind="stable")
                square = np.take(square, order, axis)
                q = np.linalg.qr(average @ q[:, order])[0]  # one step of power iteration
                q_left, q_right = (q, q_right) if axis == 0 else (q_left, q)
        path.append(w)
    return np.array(path)


def test_it_takes_the_steps_of_the_paper():
    rng = np.random.default_rng(4)
    scales = np.logspace(1, -1, 4)
    # Their sizes change with time, so that the order of the basis does.
    gradients = [
        (np.roll(scales, t // 8)[:, None] * rng.normal(size=(4, 3))) @ rng.normal(size=(3, 3))
        for t in range(40)
    ]
    start = rng.normal(size=(4, 3))
    options = {"lr": 0.03, "betas": (0.9, 0.8), "eps": 1e-8}
    wanted = soap_by_the_paper(gradients, start, every=3, **options)
    w = nn.Parameter(torch.tensor(start))
    optimizer = SOAP([w], every=3, **options)
    for g, expected in zip(gradients, wanted, strict=True):
        w.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(w.detach().numpy(), expected, rtol=0, atol=1e-10)


def test_a_state_from_before_stacks_is_refused():
    """Its tensors would not fit in the first step, after the run was taken over."""
    w = nn.Parameter(torch.eye(2))
    optimizer = SOAP([w])
    w.grad = torch.ones(2, 2)
    optimizer.step()
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    state["state"][0]["mean"] = state["state"][0]["mean"][0]
    with pytest.raises(ValueError, match="older"):
        SOAP([w]).load_state_dict(state)
