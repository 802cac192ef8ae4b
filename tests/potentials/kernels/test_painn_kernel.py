"""The compiled PaiNN against the network in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from potential_models import crystal, ethanol, graph_of, lively

from dcase.activations import activation_names
from dcase.errors import OptionError
from dcase.potentials.kernels.atom_kernel import ACTIVATIONS, available
from dcase.potentials.kernels.deployed import deploy

pytestmark = pytest.mark.skipif(
    not available(torch.float64, "painn"), reason="no C compiler works here: nothing to compare"
)


def painn(activation="silu", **options):
    return lively("painn", activation, **{"dtype": torch.float64, "filter_knots": 32, **options})


def compare(potential, atoms, relative, **options):
    graph = graph_of(potential, atoms)
    wanted = potential(graph)
    offsets = None if graph.shifts is None else graph.shifts.numpy() @ atoms.cell.array
    found = deploy(potential, **options)(
        atoms.numbers, atoms.positions, graph.pairs.numpy(), offsets
    )
    table = potential.offsets[graph.numbers]
    energies = (wanted["energies"] - table).numpy()
    np.testing.assert_allclose(
        found.energies[0] - table.numpy(), energies, rtol=0, atol=relative * np.abs(energies).max()
    )
    _, forces = potential.energies_and_forces(graph)
    forces = forces.detach().numpy() * potential.scale.constant
    np.testing.assert_allclose(
        found.forces[0], forces, rtol=0, atol=relative * np.abs(forces).max()
    )


@pytest.mark.parametrize("placement", ["all", "published"])
@pytest.mark.parametrize("activation", activation_names())
def test_compiled_is_the_network(activation, placement):
    known = activation in ACTIVATIONS
    potential = painn(activation, placement=placement)
    compare(potential, ethanol(), 1e-11 if known else 1e-6, tabulate=not known)


@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_channels": 33, "num_interactions": 1},
        {"hidden_channels": 7, "num_interactions": 3, "softening": 0.1},
        {"hidden_channels": 64, "num_interactions": 2, "num_radial": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [ethanol, crystal])
def test_shapes_that_fill_no_tile(shape, make):
    compare(painn(cutoff=5.3, **shape), make(), 1e-11)


def test_single_precision():
    compare(painn("irelu", dtype=torch.float32), ethanol(), 1e-5)


def test_filters_without_splines_are_put_on_fine_ones():
    potential = painn(filter_knots=0)
    compare(potential, ethanol(), 1e-6, tabulate=True)
    with pytest.raises(OptionError, match="float64 resolves the error of the radial functions"):
        deploy(potential)
    compare(painn(filter_knots=0, dtype=torch.float32), ethanol(), 1e-5)


def test_weights_are_copied():
    potential = painn()
    deployed, graph = deploy(potential), graph_of(potential, ethanol())
    arguments = ethanol().numbers, ethanol().positions, graph.pairs.numpy()
    before = deployed(*arguments).forces
    with torch.no_grad():
        for weight in potential.network.parameters():
            weight.mul_(1.1)
    np.testing.assert_array_equal(deployed(*arguments).forces, before)
    assert np.abs(deploy(potential)(*arguments).forces - before).max() > 1e-3


def test_more_features_than_fit_the_stack():
    compare(painn(hidden_channels=1030, num_interactions=2), ethanol(), 1e-11)
