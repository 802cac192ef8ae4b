"""Files of trained networks: versions, and that weights keep their meaning."""

import json

import pytest
import torch

from dcase import checkpoint
from dcase.dae import run
from dcase.dae.build import build_model
from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.settings import default_settings
from dcase.dae.trajectories import make_pairs
from dcase.errors import CheckpointError, DcaseError, OptionError

SCALES = {
    "pendulum": {"position": 2.0, "velocity": 4.0, "acceleration": 10.0, "nodes": 5, "dim": 2},
    "water": {"position": 6.0, "velocity": 0.02, "acceleration": 0.01, "nodes": 6, "dim": 3},
}
SMALL = {"layers": 2, "hidden": 8, "n_train": 20, "n_validation": 10, "n_test": 10}

# What networks give whose weights follow from their places. Where one of these figures changes,
# files of before would load as another network: raise VERSION in dcase/dae/run.py, and put the
# new figure here.
VERSION = 2
GIVES = {
    "mechanical": -0.3212090186836396,
    "mimetic": -1.367082139803724,
    "molecular": -6.211588164804159,
    "equivariant": -9.342160863025935,
}


def settings_of(network):
    system = "pendulum" if network in ("mechanical", "mimetic") else "water"
    return default_settings(system, network).changed(method="none", dtype="float64", **SMALL)


@pytest.mark.parametrize("network", GIVES)
def test_weights_mean_what_they_meant_in_this_version(network, monkeypatch):
    if network == "equivariant":
        pytest.importorskip("e3nn")
        from dcase.dae import equivariant

        tiny = {"scalars": 2, "vectors": 6, "layers": 1, "radius": 5.0, "radial": (4,)}
        monkeypatch.setattr(equivariant, "SMALL", tiny)  # e3nn takes long to build a larger one
    settings = settings_of(network)
    scales = SCALES[settings.system]
    model = build_model(settings, scales)
    shape = (1, scales["nodes"], scales["dim"])
    place = torch.arange(float(torch.Size(shape).numel()), dtype=torch.float64).view(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(0.3 * torch.cos(1.7 * count + 0.4).view(parameter.shape))
        found = model(0.5 * place + 0.3 * torch.sin(place), 0.1 * torch.cos(3.0 * place))
    assert run.VERSION == VERSION
    sum_by_place = float((torch.cos(place) * (found.r + found.v)).sum())
    assert sum_by_place == pytest.approx(GIVES[network], rel=1e-6)


@pytest.fixture
def saved(tmp_path):
    """A network's file, and what is in it."""
    settings = settings_of("mimetic")
    path = tmp_path / "model.pt"
    model = build_model(settings, SCALES["pendulum"])
    run.save_model(path, model, settings, {k: float(v) for k, v in SCALES["pendulum"].items()})
    return path, checkpoint.load(path, "dae", VERSION)


def refused(path, error=CheckpointError):
    with pytest.raises(error) as caught:
        run.load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_what_is_saved_comes_back(saved):
    path, content = saved
    model, settings = run.load_model(path)
    assert settings == settings_of("mimetic")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, content["weights"][name])


def test_an_earlier_version_is_refused_in_one_line(saved):
    path, content = saved
    checkpoint.save(path, "dae", 1, {k: v for k, v in content.items() if "format" not in k})
    message = refused(path)
    assert "earlier version" in message
    assert "train it again" in message


def test_a_later_version_is_refused(saved):
    path, content = saved
    content = {k: v for k, v in content.items() if "format" not in k}
    checkpoint.save(path, "dae", VERSION + 1, content)
    assert "newer" in refused(path)


@pytest.mark.parametrize("change", ["less", "more", "shape", "setting"])
def test_weights_that_do_not_fit_are_refused(saved, change):
    path, content = saved
    weights = content["weights"]
    if change == "less":
        weights.pop("network.types")
    elif change == "more":
        weights["network.another"] = torch.zeros(1)
    elif change == "shape":
        weights["network.types"] = torch.zeros(4, 8)
    else:
        content["settings"]["friction"] = 1.0
    checkpoint.save(path, "dae", VERSION, {k: v for k, v in content.items() if "format" not in k})
    assert "does not fit" in refused(path)


@pytest.fixture(scope="module")
def swing():
    return simulate_pendulum(1100, substeps=2)


def train(swing, folder, **changes):
    settings = settings_of("mechanical").changed(epochs=1, k=5)
    counts = settings.n_train, settings.n_validation, settings.n_test
    pairs = make_pairs(swing, 5, *counts, seed=0)
    return run.train(
        settings, folder, trajectory=swing, pairs=pairs, pictures=False, **changes
    ).metrics


def test_a_run_of_an_earlier_version_is_not_gone_on_with(swing, tmp_path):
    first = train(swing, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["identity"].pop("version") == VERSION
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(OptionError, match="another version.*--overwrite"):
        train(swing, tmp_path, resume=True)
    assert train(swing, tmp_path, overwrite=True)["mae_cm"] == first["mae_cm"]


def test_a_run_of_other_data_is_not_gone_on_with(swing, tmp_path):
    train(swing, tmp_path)
    with pytest.raises(OptionError, match="other "):
        train(simulate_pendulum(1100, substeps=3), tmp_path, resume=True)


def test_overwriting_leaves_nothing_to_be_taken_for_the_new_run(swing, tmp_path, monkeypatch):
    """Even when it ends before the first step."""
    train(swing, tmp_path)

    def fail(*arguments):
        raise DcaseError("no")

    monkeypatch.setattr(run, "build_model", fail)
    with pytest.raises(DcaseError, match="no"):
        train(swing, tmp_path, overwrite=True)
    for name in ("metrics.json", "model.pt", "state.pt"):
        assert not (tmp_path / name).exists()


def test_single_precision_has_a_least_tolerance():
    settings = settings_of("mechanical")
    assert settings.changed(dtype="float32", tolerance=1e-4).tolerance == 1e-4
    with pytest.raises(OptionError, match="single precision"):
        settings.changed(dtype="float32", tolerance=1e-9)
    assert settings.changed(tolerance=1e-9).tolerance == 1e-9


def test_atoms_must_be_whole_molecules():
    with pytest.raises(OptionError, match="three atoms a molecule, which 4"):
        build_model(settings_of("molecular"), {**SCALES["water"], "nodes": 4})
