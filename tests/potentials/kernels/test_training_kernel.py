"""The compiled gradient of training against autograd's gradient of a gradient."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from potential_models import crystal, ethanol, lively

from dcase.data.dataset import AtomicDataset
from dcase.potentials.fitting.batches import FrameBatches
from dcase.potentials.kernels import training
from dcase.potentials.kernels.atom_kernel import ACTIVATIONS, available
from dcase.potentials.kernels.painn_training import PaiNNTraining
from dcase.potentials.kernels.schnet_training import SchNetTraining
from dcase.rescaling import LabelScale

pytestmark = pytest.mark.skipif(
    not available(torch.float64), reason="no C compiler works here: nothing to compare"
)


KERNELS = {"schnet": SchNetTraining, "painn": PaiNNTraining}
both = pytest.mark.parametrize("architecture", KERNELS)


def kernel_of(potential):
    return KERNELS[potential.architecture](
        potential.network, potential.hyper_parameters["activation"]
    )


def splined(architecture="schnet", activation="silu", **options):
    everywhere = {"placement": "all"} if architecture == "painn" else {}
    fixed = {"dtype": torch.float64, "filter_knots": 32, **everywhere}
    return lively(architecture, activation, **{**fixed, **options})


def batch_of(frames, potential):
    dataset = AtomicDataset.from_frames(frames)
    data = FrameBatches(dataset, potential.cutoff, LabelScale())
    return data.batch(torch.arange(len(frames))).graph


def objective(energies, forces, seed=0):
    """Any smooth function of energies and forces, whose gradient is by both."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(energies.shape, generator=generator, dtype=torch.float64)
    b = torch.randn(forces.shape, generator=generator, dtype=torch.float64)
    return (a * energies + 0.1 * energies.square()).sum() + ((forces - b).square()).mean()


def gradients(potential, loss):
    potential.network.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in potential.network.named_parameters()
    }


def compare(potential, graph, relative=1e-11):
    kernel = kernel_of(potential)
    species = potential.species_of[graph.numbers]
    e, f = potential.energies_and_forces(graph, create_graph=True)
    wanted = gradients(potential, objective(e, f))
    atoms, forces = kernel(species, graph, forces=True)
    energies = graph.sum_over_atoms(atoms)
    torch.testing.assert_close(energies, e, rtol=0, atol=relative * float(e.detach().abs().max()))
    torch.testing.assert_close(forces, f, rtol=0, atol=relative * float(f.detach().abs().max()))
    found = gradients(potential, objective(energies, forces))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        size = float(value.abs().max())
        assert size > 0, name
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=relative * size, msg=lambda m, n=name: f"{n}: {m}"
        )


@both
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_is_that_of_autograd(architecture, activation):
    potential = splined(architecture, activation)
    frames = [ethanol(seed=1), ethanol(seed=2)[:5], ethanol(seed=3)]
    compare(potential, batch_of(frames, potential))


def test_gradient_with_two_activations():
    potential = splined("painn", "irelu", placement="published")
    assert potential.network.inner_activation == "silu"
    compare(potential, batch_of([ethanol(seed=1), ethanol(seed=2)], potential))


@both
def test_gradient_of_periodic_systems_with_their_own_images(architecture):
    potential = splined(architecture, cutoff=5.3)
    graph = batch_of([crystal(seed=1), crystal(seed=2)], potential)
    assert bool((graph.pairs[0] == graph.pairs[1]).any())
    compare(potential, graph)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ("schnet", {"hidden_channels": 33, "num_filters": 7, "num_interactions": 1}),
        ("schnet", {"hidden_channels": 6, "num_filters": 70, "num_interactions": 3}),
        ("schnet", {"hidden_channels": 64, "num_filters": 64, "num_interactions": 2}),
        ("painn", {"hidden_channels": 33, "num_interactions": 1}),
        ("painn", {"hidden_channels": 6, "num_interactions": 3}),
        ("painn", {"hidden_channels": 64, "num_interactions": 2, "softening": 0.5}),
    ],
    ids=str,
)
def test_gradient_of_shapes_that_fill_no_tile(architecture, shape):
    potential = splined(architecture, **shape)
    compare(potential, batch_of([ethanol(seed=1), ethanol(seed=2)], potential))


@both
def test_gradient_in_single_precision(architecture):
    potential = splined(architecture, "ssp", dtype=torch.float32)
    graph = batch_of([ethanol(seed=1), ethanol(seed=2)], potential)
    compare(potential, graph, relative=2e-4)


@both
def test_gradient_of_energies_alone(architecture):
    potential = splined(architecture, "ssp")
    graph = batch_of([ethanol(seed=1), ethanol(seed=2)], potential)
    wanted = gradients(potential, potential.energies(graph).square().sum())
    kernel = kernel_of(potential)
    for forces in (False, True):  # asked for, but not used
        atoms, found = kernel(potential.species_of[graph.numbers], graph, forces=forces)
        loss = graph.sum_over_atoms(atoms).square().sum()
        assert bool(found.any()) == forces
        for name, value in gradients(potential, loss).items():
            size = float(wanted[name].abs().max())
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-11 * size)


@pytest.mark.physics
@both
def test_gradient_by_finite_differences(architecture):
    """Of the loss by single weights, without any autograd."""
    potential = splined(architecture)
    graph = batch_of([ethanol(seed=1)], potential)
    kernel = kernel_of(potential)
    species = potential.species_of[graph.numbers]

    def loss():
        atoms, forces = kernel(species, graph, forces=True)
        return objective(graph.sum_over_atoms(atoms), forces)

    found = gradients(potential, loss())
    h = 1e-6
    for name, weight in potential.network.named_parameters():
        place = int(found[name].abs().argmax())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.view(-1)[place] += sign * h
                values.append(float(loss()))
                weight.view(-1)[place] -= sign * h
        numerical = (values[0] - values[1]) / (2 * h)
        assert float(found[name].view(-1)[place]) == pytest.approx(numerical, rel=1e-5), name


@both
def test_two_batches_in_flight_do_not_mix(architecture):
    potential = splined(architecture)
    kernel = kernel_of(potential)
    one, two = (batch_of([ethanol(seed=n)], potential) for n in (1, 2))
    species = potential.species_of[one.numbers]

    def loss(graph):
        atoms, forces = kernel(species, graph, forces=True)
        return objective(graph.sum_over_atoms(atoms), forces)

    alone = gradients(potential, loss(one))
    first, second = loss(one), loss(two)
    other = gradients(potential, second)
    again = gradients(potential, first)
    for name, value in alone.items():
        assert torch.equal(again[name], value)
        assert not torch.equal(other[name], value)


@both
def test_weights_may_change_between_batches(architecture):
    potential = splined(architecture)
    kernel = kernel_of(potential)
    graph = batch_of([ethanol()], potential)
    species = potential.species_of[graph.numbers]
    before = kernel(species, graph, forces=True)[1]
    with torch.no_grad():
        for weight in potential.network.parameters():
            weight.mul_(1.1)
    after = kernel(species, graph, forces=True)[1]
    wanted = copy.deepcopy(potential).energies_and_forces(graph)[1]
    np.testing.assert_allclose(after.detach(), wanted, atol=1e-11 * float(wanted.abs().max()))
    assert float((after - before).detach().abs().max()) > 1e-3


def test_gradient_of_the_gradient_is_refused():
    potential = lively(activation="silu", dtype=torch.float64, filter_knots=32)
    graph = batch_of([ethanol()], potential)
    kernel = kernel_of(potential)
    atoms, _ = kernel(potential.species_of[graph.numbers], graph, forces=True)
    weight = potential.network.out.weight
    (first,) = torch.autograd.grad(atoms.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@both
def test_memory_of_a_batch_is_used_again_and_keeps_nothing(architecture):
    """A batch after a larger one, in the same memory, is what it is in fresh memory."""
    potential = splined(architecture)
    kernel = kernel_of(potential)
    small, large = (batch_of([ethanol(seed=s) for s in range(n)], potential) for n in (1, 4))

    def found(kernel, graph):
        atoms, forces = kernel(potential.species_of[graph.numbers], graph, forces=True)
        return gradients(potential, objective(graph.sum_over_atoms(atoms), forces))

    found(kernel, large)
    (memory,) = kernel.rooms._free
    memory.fill_(float("nan"))
    again = found(kernel, small)
    assert [room.data_ptr() for room in kernel.rooms._free] == [memory.data_ptr()]
    for name, value in found(kernel_of(potential), small).items():
        assert torch.equal(again[name], value)


def test_networks_without_a_compiled_form():
    for architecture in KERNELS:
        for options in ({"filter_knots": 0}, {"activation": "isilu"}):
            with pytest.raises(ValueError, match="no compiled form"):
                kernel_of(splined(architecture, **options))


@pytest.fixture
def threads(monkeypatch):
    """Three threads, and any batch worth them; how many shares each call was cut into."""
    before, shares = torch.get_num_threads(), []
    monkeypatch.setattr(training, "WORTH_A_THREAD", 1.0)
    cuts = training._cuts

    def counted(kernel, graph):
        found = cuts(kernel, graph)
        shares.append(len(found))
        return found

    monkeypatch.setattr(training, "_cuts", counted)
    torch.set_num_threads(3)
    yield shares
    torch.set_num_threads(before)


@both
@pytest.mark.parametrize("make", [ethanol, crystal])
def test_threads_share_the_systems_of_a_batch(architecture, make, threads):
    potential = splined(architecture, cutoff=5.3)
    frames = [make(seed=1), make(seed=2), make(seed=3)[:5], make(seed=4), make(seed=5)[:1]]
    compare(potential, batch_of(frames, potential))
    assert threads == [3]


@both
def test_threads_take_systems_one_after_the_other(architecture, threads, monkeypatch):
    monkeypatch.setattr(training, "BYTES_OF_A_SHARE", 1.0)
    potential = splined(architecture)
    graph = batch_of([ethanol(seed=s) for s in range(6)], potential)
    compare(potential, graph)
    assert threads == [3]
    cuts = training._cuts(kernel_of(potential), graph)
    assert [len(own) for own in cuts] == [2, 2, 2]


@both
def test_a_batch_whose_pairs_are_in_any_order_is_not_cut(architecture, threads):
    potential = splined(architecture)
    graph = batch_of([ethanol(seed=n) for n in range(3)], potential)
    order = torch.randperm(graph.pairs.shape[1], generator=torch.Generator().manual_seed(0))
    compare(potential, replace(graph, pairs=graph.pairs[:, order]))
    assert threads == [1]
