"""The compiled loop of time steps with the architectures that have a kernel in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.md.verlet import VelocityVerlet

from dcase import DCCalculator
from dcase.md_runs.loop.compiled_blocks import verlet_blocks
from dcase.md_runs.loop.mechanics import draw_momenta
from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.networks.registry import create_potential
from dcase.rescaling import LabelScale
from dcase.units import FS


@pytest.mark.skipif(not available(torch.float32, "edge_network"), reason="no C compiler works here")
@pytest.mark.parametrize("architecture", ["cgcnn", "dimenet++", "forcenet", "gemnet-t"])
def test_compiled_loop_is_ases_to_the_last_bit(architecture):
    potential = create_potential(architecture, elements=["H", "C", "O"], size="tiny", seed=1)
    atoms = molecule("CH3CH2OH", cell=[6.4, 6.1, 5.8], pbc=True)
    atoms.calc = DCCalculator(potential.eval(), optimize=False)
    potential.set_scale(LabelScale(1.0 / float(np.abs(atoms.get_forces()).max())))
    atoms.calc = DCCalculator(potential, skin=0.1)
    draw_momenta(atoms, 300.0, np.random.default_rng(2))
    start, momenta = atoms.positions.copy(), atoms.get_momenta().copy()
    VelocityVerlet(atoms, 0.5 * FS).run(25)
    wanted = atoms.positions.copy(), atoms.get_momenta().copy()

    atoms.positions[:] = start
    atoms.set_momenta(momenta)
    blocks = verlet_blocks(atoms, 0.5, BlowUpWatch(atoms, None, 1e9), 3 * len(atoms))
    assert blocks is not None
    block = blocks.advance(start, momenta, atoms.get_forces(), 25)
    assert len(block) == 25
    assert blocks.searches > 1  # the pairs were listed anew on the way
    assert np.abs(block.positions[-1] - start).max() > 0.05
    np.testing.assert_array_equal(block.positions[-1], wanted[0])
    np.testing.assert_array_equal(block.momenta[-1], wanted[1])
