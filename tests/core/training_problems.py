"""Small learning problems for the tests of the trainer, and runs of them in other processes."""

from __future__ import annotations

import csv
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from processes import die_at_write
from torch import Tensor, nn

from dcase import checkpoint
from dcase.data.dataset import AtomicDataset
from dcase.data.splits import Splits, split
from dcase.errors import CheckpointError, TrainingError
from dcase.objective import Objective, Term
from dcase.potentials.fitting.fit_potential import fit_potential
from dcase.potentials.fitting.recipe import load_recipe
from dcase.training.settings import TrainSettings
from dcase.training.state import STATE_VERSION
from dcase.training.trainer import Trainer


@dataclass
class Points:
    """A batch of points of a curve."""

    x: Tensor
    y: Tensor
    slope: Tensor
    indices: Tensor

    def describe(self) -> str:
        return "points " + ", ".join(str(int(i)) for i in self.indices)


class Curve:
    """Samples of sin(2x), with slopes; sample ``poison`` has a label of NaN."""

    def __init__(
        self,
        n: int = 22,
        poison: int | None = None,
        shift: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        self.x = (torch.linspace(-1.5, 1.5, n, dtype=dtype) + shift).unsqueeze(1)
        self.y, self.slope = torch.sin(2 * self.x), 2 * torch.cos(2 * self.x)
        self.asked = 0  # samples handed out
        if poison is not None:
            self.y[poison] = float("nan")

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Points:
        self.asked += len(indices)
        return Points(self.x[indices], self.y[indices], self.slope[indices], indices)


class CurveFit:
    """Values and slopes of a curve: derivative-constrained, and no potential."""

    display: ClassVar = {"value": (10.0, "mm"), "slope": (1.0, "mm/m")}

    def terms(self, model: nn.Module, batch: Points, training: bool) -> dict[str, Tensor]:
        with torch.enable_grad():
            x = batch.x.clone().requires_grad_(True)
            u = model(x)
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=training)
        return {"value": u - batch.y, "slope": slope - batch.slope, "unused": u}


TERMS = {"value": Term(1.0, "l2"), "slope": Term(0.3, "huber", 0.5)}


def network(width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))
    return net.to(dtype)


def straight(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A straight line, always the same one."""
    model = nn.Linear(1, 1, dtype=dtype)
    with torch.no_grad():
        for p, value in zip(model.parameters(), (0.3, -0.2), strict=True):
            p.fill_(value)
    return model


def trainer(
    folder: Path, *, data=None, validation="default", model=None, terms=None, problem=None, **rest
) -> Trainer:
    """A trainer of the curve; arguments that Trainer does not have go to TrainSettings."""
    own = ("identity", "fabric", "on_step", "on_state", "tensorboard")
    own += ("clock", "prepared", "evaluations", "after")
    options = {key: rest.pop(key) for key in own if key in rest}
    settings = TrainSettings(**{"epochs": 3, "batch_size": 5, "lr": 1e-2, **rest})
    return Trainer(
        network() if model is None else model,
        Objective(problem or CurveFit(), terms or TERMS),
        Curve() if data is None else data,
        Curve(9, shift=0.05) if validation == "default" else validation,
        settings,
        folder,
        **options,
    )


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def rows_but_time(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in r.items() if k != "elapsed_s"} for r in csv.DictReader(file)]


def saved(folder: Path) -> dict:
    """The training state without the clock."""
    state = checkpoint.load(folder / "state.pt", "training", STATE_VERSION)
    for name in ("elapsed", "cpu", "costs"):
        state.pop(name)
    state["settings"].pop("checkpoint_every")
    return state


def same(a, b) -> bool:
    """Equality of nested plain values, tensors bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ------------------------------------------------------------------ a small potential


def water(n: int = 26) -> tuple[AtomicDataset, Splits]:
    rng = np.random.default_rng(3)
    shape = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    noise = 0.05 * rng.standard_normal((n, 3, 3))
    dataset = AtomicDataset(
        numbers=np.tile([8, 1, 1], n),
        positions=(shape + noise).reshape(-1, 3),
        ptr=3 * np.arange(n + 1),
        energies=40.0 * (noise**2).sum(axis=(1, 2)) - 2000.0,
        forces=(-80.0 * noise).reshape(-1, 3),
    )
    return dataset, split(n, 18, 6, 0)


def water_recipe(**overrides):
    return load_recipe(
        "default",
        {
            "model.size": "tiny",
            "training.epochs": 12,
            "training.batch_size": 4,
            "training.validate_every": 2,
            "training.checkpoint_every": 1e-9,  # after every step
            **overrides,
        },
    )


def fit_water(
    out: Path, resume: bool, die_at_save: int = 0, how: str = "", die_at: int = 0
) -> None:
    """Target of a process: train, and maybe die by SIGKILL within a save or at a write."""
    dataset, splits = water()
    die_at_write(die_at)
    saves = 0
    if die_at_save:
        replace, write = os.replace, Path.write_bytes

        def counted_write(self, data):
            nonlocal saves
            if "state.pt" in self.name:
                saves += 1
                if saves == die_at_save and how == "write":
                    write(self, bytes(data[: len(data) // 2]))
                    os.kill(os.getpid(), signal.SIGKILL)
            return write(self, data)

        def deadly_replace(source, target, **kwargs):
            if saves == die_at_save and Path(target).name == "state.pt":
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(source, target, **kwargs)

        Path.write_bytes = counted_write  # type: ignore[method-assign]
        os.replace = deadly_replace
    fit_potential(dataset, splits, water_recipe(), out, resume=resume)


# ------------------------------------------------------------------ several processes


class Shared(nn.Module):
    """A network with a parameter that no loss depends on; its gradient must stay absent."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


JOINT = {
    # 11 samples in batches of 5: the last batch is a single sample, so one process gets none.
    "plain": {"epochs": 3, "weight_decay": 0.1, "ema": 0.9, "clip_norm": 0.5},
    "plateau": {"epochs": 4, "schedule": "plateau", "patience": 1, "lr": 0.2},
    "nan": {"epochs": 2, "poison": 4},
    "interrupt": {"epochs": 50},
    "balance": {"epochs": 3, "balance": "gradient-norm", "balance_every": 4},
    "ntk": {"epochs": 3, "balance": "ntk", "balance_every": 4, "optimizer": "soap"},
    # A sample alone in a batch leaves one process without; the whole set is a batch of 11.
    "lbfgs": {"epochs": 4, "optimizer": "lbfgs", "double": True},
    "ssbroyden": {"epochs": 9, "optimizer": "ssbroyden", "batch_size": 0, "double": True},
    "time": {"epochs": 10**6, "time_limit": 0.5},
    "cpu": {"epochs": 10**6, "cpu_limit": 0.5},
}


def joint_run(name: str, folder: Path, fabric=None) -> dict:
    """One of the JOINT runs; plain values to compare."""
    options = dict(JOINT[name])
    dtype = torch.float64 if options.pop("double", False) else torch.float32
    data = Curve(11, poison=options.pop("poison", None), dtype=dtype)
    losses: list[float] = []
    rank = fabric.global_rank if fabric else 0

    def on_step(progress):
        losses.append(progress.loss)
        if name == "interrupt" and progress.step == 5 and rank == 1:
            os.kill(os.getpid(), signal.SIGINT)  # in one process only

    model = Shared().to(dtype)
    if rank == 1:  # another random start here must not matter
        for p in model.parameters():
            p.data.add_(1.0)
    validation = Curve(40, shift=0.05, dtype=dtype)
    run = trainer(
        folder,
        data=data,
        validation=validation,
        model=model,
        fabric=fabric,
        on_step=on_step,
        **options,
    )
    try:
        result = run.fit()
    except TrainingError as error:
        return {"error": str(error)}
    return {
        "status": result.status,
        "steps": result.steps,
        "elapsed": result.elapsed,
        "cpu": result.cpu,
        "losses": losses,
        "weights": [w.tolist() for w in weights(model)],
        "best": {k: float(v) for k, v in result.best.items()},
        "idle_state": len(run.optimizer.state.get(model.idle, {})),
        "validated": validation.asked,
        "term_weights": run.term_weights,
        "last_batch": len(data) % run.batch_size,
    }


def joint_worker(rank: int, port: int, folder: Path) -> None:
    """Target of a process: all JOINT runs as one of two, started the way torchrun does."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    for name in JOINT:
        # Each process has its own folder, so that it shows who writes.
        outcome = joint_run(name, folder / f"{name}{rank}", fabric)
        torch.save(outcome, folder / f"{name}{rank}.result")
    # A resume whose state only the first process can see.
    model = Shared()
    run = trainer(
        folder / f"plain{rank}",
        data=Curve(11),
        validation=Curve(40, shift=0.05),
        model=model,
        fabric=fabric,
        **{**JOINT["plain"], "epochs": 5},
    )
    result = run.fit(resume=True)
    torch.save(
        {"steps": result.steps, "weights": [w.tolist() for w in weights(model)]},
        folder / f"resumed{rank}.result",
    )
    try:
        trainer(
            folder / f"plain{rank}",
            data=Curve(11),
            model=Shared(),
            fabric=fabric,
            **{**JOINT["plain"], "lr": 0.5},
        ).fit(resume=True)
    except CheckpointError as error:
        torch.save({"error": str(error)}, folder / f"refused{rank}.result")
    torch.distributed.destroy_process_group()
