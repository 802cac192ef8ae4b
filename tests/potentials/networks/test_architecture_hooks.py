"""An architecture brings its compiled form, its stack and its training kernel by itself."""

import numpy as np
import pytest
import torch
from potential_models import ethanol, graph_of
from torch import nn

from dcase.errors import OptionError
from dcase.potentials.create import create_potential
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.kernels.compiled import KernelResult
from dcase.potentials.kernels.deployed import deploy
from dcase.potentials.kernels.forms import training_form
from dcase.potentials.networks.architecture import Architecture, hook
from dcase.potentials.networks.registry import ARCHITECTURES


class Springs(nn.Module):
    """Every pair of atoms a spring of one stiffness: ``e_i = 1/2 sum_j k (c - d_ij)^2``."""

    def __init__(self, num_elements: int, *, cutoff: float = 6.0):
        super().__init__()
        self.cutoff = cutoff
        self.k = nn.Parameter(torch.rand(()))

    def forward(self, species, graph):
        bend = 0.5 * self.k * (self.cutoff - graph.distances().to(self.k.dtype)).square()
        energies = bend.new_zeros(graph.n_atoms)
        for ends in graph.pairs:
            energies = energies.index_add(0, ends, bend)
        return energies


class Compiled:
    """The closed form in NumPy."""

    nearest = 0.0

    def __init__(self, potential, tabulate, filter_error):
        self.k, self.cutoff = potential.network.k.item(), potential.cutoff

    def __call__(self, positions, species, pairs, offsets=None):
        i, j = pairs
        r = positions[j] - positions[i]
        d = np.linalg.norm(r, axis=1)
        left = self.cutoff - d
        energies, forces = np.zeros(len(species)), np.zeros((len(species), 3))
        pull = (-2.0 * self.k * left / d)[:, None] * r
        for ends, sign in ((i, 1.0), (j, -1.0)):
            np.add.at(energies, ends, 0.5 * self.k * left**2)
            np.add.at(forces, ends, sign * pull)
        return KernelResult(energies, forces, pull.T @ r, np.bincount(pairs.ravel()), d.min())


class Stack(nn.Module):
    """Several springs at once, from the formula."""

    calls = 0

    def __init__(self, networks, activation):
        super().__init__()
        self.k = torch.stack([network.k.detach() for network in networks])
        self.cutoff = networks[0].cutoff

    def forward(self, species, graph):
        Stack.calls += 1
        left = self.cutoff - graph.distances().to(self.k.dtype)
        bend = 0.5 * self.k[:, None] * left.square()
        energies = bend.new_zeros(len(self.k), graph.n_atoms)
        for ends in graph.pairs:
            energies.index_add_(1, ends, bend)
        return energies, -2.0 * self.k[:, None] * left


@pytest.fixture
def register(monkeypatch):
    def add(**hooks):
        new = Architecture("springs", Springs, sizes={"tiny": {}}, **hooks)
        monkeypatch.setitem(ARCHITECTURES, "springs", new)

    return add


def springs(seed=0):
    potential = create_potential("springs", elements="CHO", size="tiny", seed=seed)
    return potential.with_dtype(torch.float64)


def predicted(model, atoms):
    graph = graph_of(model, atoms)
    return deploy(model)(atoms.numbers, atoms.positions, graph.pairs.numpy())


def test_a_compiled_form_of_its_own(register):
    register(kernel=Compiled)
    potential, atoms = springs(), ethanol()
    wanted, found = potential(graph_of(potential, atoms)), predicted(potential, atoms)
    np.testing.assert_allclose(found.energies[0], wanted["energies"], rtol=1e-12)
    np.testing.assert_allclose(found.forces[0], wanted["forces"], rtol=1e-10, atol=1e-12)


def test_a_plan_for_the_kernel_that_architectures_share(register):
    seen = []

    def plan(network, plan):
        seen.append(network)
        raise OptionError("no plan today")

    register(kernel_plan=plan)
    with pytest.raises(OptionError, match="no plan today"):
        deploy(springs().with_dtype(torch.float32))
    assert isinstance(seen[0], Springs)


def test_without_a_hook_there_is_no_compiled_form(register):
    register()
    with pytest.raises(OptionError, match="there is no compiled form of springs"):
        deploy(springs())


@pytest.mark.parametrize("stacked", [False, True])
def test_an_ensemble_stacks_what_can_be_stacked(register, stacked):
    register(stack=Stack if stacked else None)
    members, atoms = [springs(seed) for seed in range(3)], ethanol()
    before = Stack.calls
    found = Ensemble(members).members_forward(graph_of(members[0], atoms))
    assert Stack.calls - before == stacked
    for number, member in enumerate(members):
        wanted = member(graph_of(member, atoms))
        for name, values in wanted.items():
            torch.testing.assert_close(found[name][number], values, rtol=1e-10, atol=1e-12)


def test_a_training_kernel_of_its_own(register):
    register(training_kernel=lambda potential: ("kernel of", potential))
    potential = springs()
    assert training_form(potential) == (("kernel of", potential), "")

    def none(potential):
        raise OptionError("springs with rust have no compiled gradient")

    register(training_kernel=none)
    assert training_form(potential) == (None, "springs with rust have no compiled gradient")
    register()
    assert training_form(potential) == (None, "springs has no compiled gradient")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hooks_name_what_there_is(name):
    architecture = ARCHITECTURES[name]
    assert (architecture.kernel is None) != (architecture.kernel_plan is None)
    hooks = ("kernel", "kernel_plan", "stack", "training_kernel")
    for value in filter(None, (getattr(architecture, hook_name) for hook_name in hooks)):
        assert callable(hook(value))
