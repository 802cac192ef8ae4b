"""The molecular network: symmetries and conservation laws that hold whatever the weights."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dcase.dae.molecular import MASSES, MolecularNetwork
from dcase.dae.water import droplet
from dcase.errors import OptionError

M = 4


@pytest.fixture
def network():
    found = MolecularNetwork(M, duration=5.0, layers=3, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in found.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return found


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    one = torch.tensor([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]]).double()
    at = 3.0 * torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]).double()
    r = (one + at[:, None]).reshape(1, 3 * M, 3).repeat(2, 1, 1)
    noise = torch.randn((2, *r.shape), generator=generator, dtype=torch.float64)
    return r + 0.1 * noise[0], 0.01 * noise[1]


def flow(network, r, v):
    z, _ = network.open(r, v)
    shared = network.begin_layer(0, z, None)
    return network.rate(0, z, shared)[:, 1]


def test_it_is_not_trivial(network, state):
    assert float(flow(network, *state).detach().abs().max()) > 1e-3


def test_turned_and_moved_systems_are_accelerated_alike(network, state):
    r, v = state
    turn = torch.tensor(Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix())
    mirror = turn @ torch.diag(torch.tensor([1.0, 1.0, -1.0]).double())
    for matrix in (turn, mirror):
        moved = flow(network, r @ matrix.T + 5.0, v)
        torch.testing.assert_close(moved, flow(network, r, v) @ matrix.T, rtol=1e-9, atol=1e-12)


def test_atoms_that_are_alike_may_be_exchanged(network, state):
    r, v = state
    hydrogens = torch.arange(3 * M)
    hydrogens[[1, 2]] = torch.tensor([2, 1])
    molecules = torch.tensor([3, 4, 5, 0, 1, 2, *range(6, 3 * M)])
    for order in (hydrogens, molecules):
        found = flow(network, r[:, order], v)
        torch.testing.assert_close(found, flow(network, r, v)[:, order], rtol=1e-9, atol=1e-12)


def test_momentum_and_angular_momentum_are_conserved(network, state):
    r, v = state
    mass = torch.tensor([MASSES[0], MASSES[1], MASSES[1]]).repeat(M)[None, :, None].double()
    force = mass * flow(network, r, v)
    scale = float(force.detach().abs().max())
    assert float(force.detach().sum(1).abs().max()) < 1e-12 * scale * 3 * M
    torque = torch.linalg.cross(r, force).detach().sum(1)
    assert float(torque.abs().max()) < 1e-10 * scale


def test_new_networks_have_no_forces(state):
    r, v = state
    fresh = MolecularNetwork(M, duration=5.0).double()
    assert float(flow(fresh, r, v).detach().abs().max()) == 0.0
    torch.testing.assert_close(fresh.steps().sum(), torch.tensor(5.0).double())


def test_a_droplet_gives_numbers(network):
    r = torch.tensor(droplet(M, np.random.default_rng(0)))
    assert bool(network.acceleration(r[None].double()).isfinite().all())


def test_impossible_options():
    with pytest.raises(OptionError, match="at least 1"):
        MolecularNetwork(0, duration=5.0)
    with pytest.raises(OptionError, match="duration"):
        MolecularNetwork(2, duration=0.0)
