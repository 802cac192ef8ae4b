"""DimeNet++ against torch_geometric's, its sum over triplets, and its two variants."""

from __future__ import annotations

import pytest
import torch
from ase.build import molecule
from potential_models import ethanol, lively
from pyg_dimenet import pyg_twin

from dcase.data.dataset import AtomicDataset
from dcase.potentials.batching import FrameBatches
from dcase.rescaling import LabelScale


def _batch(frames, cutoff):
    batches = FrameBatches(AtomicDataset.from_frames(frames), cutoff, LabelScale())
    return batches.batch(torch.arange(len(frames))).graph


@pytest.mark.parametrize("size", ["tiny", "md17"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_potentials_dimenet_equals_torch_geometric(dtype, tolerance, size, monkeypatch):
    potential = lively("dimenet++", "silu", size=size, dtype=dtype)
    twin = pyg_twin(potential, monkeypatch)
    graph = _batch([ethanol(0.1), ethanol(0.1, seed=4), molecule("CH3CHO")], potential.cutoff)
    positions = graph.positions.to(dtype).requires_grad_(True)
    theirs = twin(graph.numbers, positions, graph.system).squeeze(1)
    (gradient,) = torch.autograd.grad(theirs.sum(), positions)
    energies, forces = potential.energies_and_forces(graph)
    assert (energies - theirs).abs().max() <= tolerance * energies.abs().max()
    assert (forces + gradient).abs().max() <= 10 * tolerance * forces.abs().max()
    # Control: the tolerance would notice a frequency that is off by one part in 1e3.
    with torch.no_grad():
        twin.rbf.freq[0] *= 1.001
    off = twin(graph.numbers, positions, graph.system).squeeze(1)
    assert (energies - off).abs().max() > tolerance * energies.abs().max()
