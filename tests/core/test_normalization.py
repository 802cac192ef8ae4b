"""Denormalisation strips what it says, keeps the rest, and folds exactly."""

import pytest
import torch
from torch import nn

from dcase.errors import OptionError
from dcase.normalization import denormalize


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        self.again = self.bn  # the same layer under a second name
        self.ln = nn.LayerNorm(4)
        self.none = None
        self.seq = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.LazyBatchNorm1d()
        )
        self.list = nn.ModuleList(
            [nn.SyncBatchNorm(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.GroupNorm(2, 4)]
        )
        self.dict = nn.ModuleDict({"a": nn.InstanceNorm1d(4), "b": nn.RMSNorm(4)})
        self.shared = self.seq

    def forward(self, x):
        return self.seq(self.ln(self.again(self.bn(x))))


def norms(model):
    return {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}


def test_default_removes_batch_norms_only():
    model = Zoo()
    removed = denormalize(model)
    assert removed == ["bn", "again", "seq.1", "seq.3", "list.0", "list.1", "list.2"]
    assert norms(model) == {"LayerNorm", "GroupNorm", "InstanceNorm1d", "RMSNorm"}
    assert isinstance(model.again, nn.Identity)
    assert isinstance(model.shared[1], nn.Identity)
    x = torch.randn(3, 4)
    y = model(x)
    # Row by row is the same: nothing couples the samples of a batch any more.
    torch.testing.assert_close(torch.cat([model(r[None]) for r in x]), y)
    assert denormalize(model) == []


def test_all_kinds_and_keep():
    model = Zoo()
    denormalize(model, also=("layer", "group", "instance"))
    assert norms(model) == set()
    model = Zoo()
    removed = denormalize(model, also="layer", keep=(nn.RMSNorm, nn.SyncBatchNorm))
    assert "ln" in removed
    assert "dict.b" not in removed
    assert "list.0" not in removed


def test_graph_norms_lose_their_wrapper_and_swallow_batch():
    gnn = pytest.importorskip("torch_geometric.nn")
    model = nn.ModuleDict({"bn": gnn.BatchNorm(4), "in": gnn.InstanceNorm(4)})
    assert denormalize(model, also=["instance"]) == ["bn", "in"]
    x = torch.randn(3, 4)
    assert model["in"](x, torch.zeros(3, dtype=torch.long)) is x


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.SyncBatchNorm(3)])
def test_refuses_a_bare_norm_layer(norm):
    with pytest.raises(OptionError, match="itself is a"):
        denormalize(norm)
    with pytest.raises(OptionError, match="unknown kind"):
        denormalize(Zoo(), also=["batch"])


def trained(bias=True, affine=True, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 7, bias=bias), nn.BatchNorm1d(7, affine=affine), nn.Tanh(), nn.Linear(7, 1)
    ).to(dtype)
    for _ in range(5):
        model(3.0 * torch.randn(64, 5, generator=g).to(dtype) + 1.0)
    if affine:
        with torch.no_grad():
            model[1].weight.copy_(torch.randn(7, generator=g))
            model[1].bias.copy_(torch.randn(7, generator=g))
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fold_keeps_the_function(bias, affine, dtype):
    model = trained(bias, affine, dtype).eval()
    weight = model[0].weight
    x = torch.randn(11, 5, dtype=dtype, requires_grad=True)
    y = model(x)
    (dy,) = torch.autograd.grad(y.sum(), x)
    assert denormalize(model, fold=True) == ["1"]
    assert model[0].weight is weight  # the optimiser's reference stays good
    assert model[0].bias.requires_grad
    tol = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(model(x), y, rtol=tol, atol=tol)
    torch.testing.assert_close(
        torch.autograd.grad(model(x).sum(), x)[0], dy, rtol=tol, atol=5 * tol
    )


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.seq = nn.Sequential(self.lin, nn.BatchNorm1d(4))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.seq = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.other = nn.Linear(4, 4)
        self.other.weight = self.seq[0].weight


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (trained(), "training mode"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(),
            "no running statistics",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.LazyBatchNorm1d()).eval(), "lazy"),
        (nn.Sequential(nn.Tanh(), nn.BatchNorm1d(4)).eval(), "directly follow"),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Tanh()).eval(), "directly follow"),
        (nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)]).eval(), "directly follow"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm2d(4)).eval(), "does not act"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(4)).eval(), "do not fit"),
        (Shared().eval(), "several places"),
        (Tied().eval(), "several places"),
    ],
)
def test_fold_refuses_and_changes_nothing(model, why):
    before = [type(m) for m in model.modules()]
    with pytest.raises(OptionError, match=why):
        denormalize(model, fold=True)
    assert [type(m) for m in model.modules()] == before
    assert denormalize(model)
