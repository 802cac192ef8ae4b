"""create_potential: reproducible, harmless to global state, and helpful about typos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dcase.errors import OptionError
from dcase.potentials.networks.registry import (
    ARCHITECTURES,
    create_potential,
    element_numbers,
    resolve_hyper_parameters,
)


def _weights(potential):
    return torch.cat([p.detach().flatten() for p in potential.parameters()])


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_potentials_same_seed_same_weights(architecture):
    def make(seed):
        return create_potential(architecture, elements=["H", "C"], size="tiny", seed=seed)

    torch.rand(3)
    first = _weights(make(5))
    torch.rand(7)  # other global state
    assert torch.equal(_weights(make(5)), first)
    assert not torch.equal(_weights(make(6)), first)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_potentials_creation_leaves_global_state_alone(architecture, monkeypatch):
    def refuse(seed):
        raise AssertionError("a GPU generator was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_default_dtype()  # noqa: NPY002
    potential = create_potential(architecture, elements=["H", "C"], size="tiny", seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.get_default_dtype() == before[2] == torch.float32
    assert potential.dtype == torch.float32
    assert not potential.training


def test_potentials_unknown_names_suggest_a_close_one():
    with pytest.raises(OptionError, match="no hyper-parameter 'num_filter'; did you mean num_filt"):
        create_potential(elements=["H"], num_filter=32)
    with pytest.raises(OptionError, match="no hyper-parameter 'zzz'; it has: hidden_channels"):
        create_potential(elements=["H"], zzz=32)
    with pytest.raises(OptionError, match="unknown architecture 'shnet'; there are: schnet"):
        create_potential("shnet", elements=["H"])
    with pytest.raises(OptionError, match="unknown activation 'irelo'; did you mean 'irelu'"):
        create_potential(elements=["H"], activation="irelo")
    with pytest.raises(OptionError, match="has no size 'huge'; there are: .*tiny"):
        create_potential(elements=["H"], size="huge")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_filters": "many"}, "num_filters must be a int, got 'many'"),
        ({"num_filters": 3.5}, "num_filters must be a int, got 3.5"),
        ({"num_filters": float("inf")}, "num_filters must be a finite number"),
        ({"num_filters": 0}, "num_filters must be at least 1"),
        ({"num_interactions": -1}, "num_interactions must be at least 0"),
        ({"num_gaussians": 1}, "num_gaussians must be at least 2"),
        ({"cutoff": 0.0}, "cutoff must be positive"),
        ({"cutoff": float("nan")}, "cutoff must be a finite number"),
        ({"cutoff": float("inf")}, "cutoff must be a finite number"),
    ],
)
def test_potentials_impossible_values_are_refused(options, match):
    with pytest.raises(OptionError, match=match) as caught:
        create_potential(elements=["H"], size="tiny", **options)
    assert "\n" not in str(caught.value)


def test_potentials_overrides_win_over_the_size():
    values = resolve_hyper_parameters("schnet", "tiny", {"cutoff": "4.5", "num_filters": None})
    assert values["cutoff"] == 4.5
    assert values["num_filters"] == ARCHITECTURES["schnet"].sizes["tiny"]["num_filters"]
    assert set(values) == set(ARCHITECTURES["schnet"].hyper_parameters())
    potential = create_potential(elements=["H"], size="tiny", num_filters=24)
    assert potential.hyper_parameters["num_filters"] == 24
    assert potential.network.interactions[0].filter_out.weight.shape == (24, 24)


@pytest.mark.parametrize("architecture", ["cgcnn", "forcenet"])
def test_potentials_normalization_has_one_switch(architecture):
    with pytest.raises(OptionError, match="normalization is set by denormalize"):
        create_potential(architecture, elements=["H"], size="tiny", normalization=True)
    for denormalize in (False, True):
        potential = create_potential(
            architecture, elements=["H"], size="tiny", denormalize=denormalize
        )
        kept = any(isinstance(m, torch.nn.BatchNorm1d) for m in potential.modules())
        assert kept is not denormalize
        assert potential.hyper_parameters["normalization"] is kept


def test_potentials_elements_in_any_form():
    assert element_numbers(["O", "H", 6, "H", 1]) == [1, 6, 8]
    for bad in (["Hx"], [0], [119], [-1], []):
        with pytest.raises(OptionError, match="element"):
            element_numbers(bad)


def test_potentials_order_of_elements_does_not_matter():
    a = create_potential(elements=["O", "H", "C"], size="tiny")
    b = create_potential(elements=[1, 6, 8], size="tiny")
    assert a.elements == b.elements == [1, 6, 8]
    assert torch.equal(_weights(a), _weights(b))


def test_potentials_describe_themselves():
    potential = create_potential(elements=["H", "C"], size="tiny", activation="ssp")
    count = sum(p.numel() for p in potential.parameters())
    assert potential.describe() == f"schnet (ssp), {count:,} parameters, elements HC"
    assert potential.level_of_theory == "none (untrained)"
