"""Checkpoints: exact round trips, and files that are damaged, foreign or hostile."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import torch
from potential_models import OFFSETS, ethanol, lively

from dcase import load_potential
from dcase.errors import CheckpointError
from dcase.potentials.graphs.graph import build_graph
from dcase.rescaling import LabelScale


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "good.pt"
    lively().save(path)
    return path


def _refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_potential(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 500 + len(str(path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_potentials_checkpoint_round_trip_is_bit_exact(tmp_path, dtype):
    potential = lively(dtype=dtype)
    awkward = {1: -13.587222780835477, 6: 0.1 + 0.2, 8: -2041.8396277138027e-7, 92: 5e-324}
    potential.set_scale(LabelScale(1.0 / 3.0, awkward, "forces", "atomic"))
    potential.metadata = {
        "dataset": {"name": "x", "level_of_theory": "PBE"},
        "list": [1, 2.5, None],
    }
    potential.save(tmp_path / "model.pt")
    loaded = load_potential(tmp_path / "model.pt")
    assert loaded.dtype == dtype
    assert loaded.scale == potential.scale
    assert loaded.scale.offsets == awkward
    assert loaded.metadata == potential.metadata
    assert loaded.level_of_theory == "PBE"
    assert not loaded.training
    for name, value in potential.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value), name
    atoms = ethanol()
    graph = build_graph(atoms.numbers, atoms.positions, potential.cutoff)
    before, after = potential(graph), loaded(graph)
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_potentials_offsets_survive_any_dtype():
    potential = lively()
    potential.to(torch.float32).half().to(torch.bfloat16).to(torch.float64)
    for z, energy in OFFSETS.items():
        assert float(potential.offsets[z]) == energy


class _Evil:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle", "patched"])
def test_potentials_checkpoint_never_runs_code(tmp_path, saved, container):
    marker, path = tmp_path / "was_run", tmp_path / "evil.pt"
    document = {"format": "dcase-potential", "format_version": 1, "metadata": _Evil(marker)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(document))
    elif container == "patched":  # a good checkpoint whose pickle was exchanged
        with zipfile.ZipFile(saved) as good, zipfile.ZipFile(path, "w") as evil:
            for name in good.namelist():
                data = good.read(name)
                evil.writestr(
                    name, pickle.dumps(document, 2) if name.endswith("data.pkl") else data
                )
    else:
        torch.save(document, path, _use_new_zipfile_serialization=container == "zip")
    _refused(path, "nothing in it was executed")
    assert not marker.exists()
    # Control: the file is as dangerous as it looks.
    if container in ("zip", "patched"):
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_potentials_checkpoint_truncated(tmp_path, saved, share):
    data = saved.read_bytes()
    path = tmp_path / "short.pt"
    path.write_bytes(data[: int(len(data) * share)])
    _refused(path, "truncated")


def test_potentials_checkpoint_with_a_flipped_bit_is_noticed(tmp_path, saved):
    # In the middle of the weights: torch itself would load other numbers without a word.
    weights = load_potential(saved).network.state_dict()
    needle = max(weights.values(), key=lambda w: w.numel()).numpy().tobytes()[:64]
    data = bytearray(saved.read_bytes())
    data[data.index(needle) + 13] ^= 0x01
    path = tmp_path / "flipped.pt"
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    _refused(path, "damaged: the checksum of .* is wrong")


def _foreign_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hi")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.touch(), "is empty"),
        (lambda p: p.write_text("hello"), "not a dcase checkpoint"),
        (_foreign_zip, "not a dcase checkpoint"),
        (lambda p: torch.save({"a": torch.ones(2)}, p), "a PyTorch file, but not a dcase"),
        (lambda p: torch.save([1, 2], p), "a PyTorch file, but not a dcase"),
        (lambda p: torch.save(torch.nn.Linear(1, 1), p), "refused"),
    ],
    ids=["missing", "folder", "empty", "text", "zip", "state", "list", "module"],
)
def test_potentials_checkpoint_that_is_none(tmp_path, make, match):
    path = tmp_path / "thing.pt"
    make(path)
    _refused(path, match)


def _nan_weights(document):
    name = next(iter(document["weights"]))
    document["weights"][name] = document["weights"][name] * float("nan")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.update(format="dcase-training"), "holds a training, not a potential"),
        (lambda d: d.update(format_version=99), "version 99 is newer than this dcase"),
        (lambda d: d.update(format_version="one"), "format version one"),
        (lambda d: d.update(format_version=0), "no way to migrate format version 0"),
        (lambda d: d.pop("weights"), "missing or do not fit.*weights"),
        (lambda d: d.update(weights={}), "Missing key"),
        (lambda d: d.update(weights=[1]), "do not fit"),
        (lambda d: d.update(elements=[1, 6]), "size mismatch"),
        (lambda d: d.update(elements=[1, 6, 500]), "do not fit"),
        (lambda d: d.update(elements=[]), "do not fit"),
        (lambda d: d.update(architecture="unheard"), "unknown architecture 'unheard'"),
        (lambda d: d["hyper_parameters"].update(evil=1), "evil"),
        (lambda d: d["hyper_parameters"].update(hidden_channels=32), "size mismatch"),
        (lambda d: d["hyper_parameters"].update(activation="nope"), "unknown activation"),
        (lambda d: d["scale"].update(constant=float("nan")), "label scale"),
        (lambda d: d["scale"].update(offsets={1: float("inf")}), "offsets"),
        (lambda d: d["scale"].update(offsets={500: 1.0}), "do not fit"),
        (lambda d: d.update(metadata=None), "do not fit"),
        (_nan_weights, "NaN or infinite"),
    ],
)
def test_potentials_checkpoint_with_wrong_parts(tmp_path, saved, change, match):
    document = torch.load(saved, weights_only=True)
    change(document)
    path = tmp_path / "changed.pt"
    torch.save(document, path)
    _refused(path, match)


def test_potentials_checkpoint_holds_only_plain_values(tmp_path):
    import numpy as np

    potential = lively()
    potential.metadata = {"metrics": {"mae": np.float64(1.0)}}
    with pytest.raises(CheckpointError, match=r"\.metadata\.metrics\.mae is a float64"):
        potential.save(tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_potentials_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, saved, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(saved.read_bytes())

    def fail(target, data):
        with open(target, "wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(KeyboardInterrupt):
        lively(seed=9).save(path)
    assert path.read_bytes() == saved.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_potentials_checkpoint_migrates_step_by_step(tmp_path):
    from dcase import checkpoint

    path = tmp_path / "old.pt"
    checkpoint.save(path, "toy", 1, {"length_nm": 0.5})

    def to_two(document):
        document["length_A"] = document.pop("length_nm") * 10

    def to_three(document):
        document["area_A2"] = document["length_A"] ** 2

    document = checkpoint.load(path, "toy", 3, {1: to_two, 2: to_three})
    assert document["area_A2"] == 25.0
    assert document["format_version"] == 3
    with pytest.raises(CheckpointError, match="no way to migrate format version 2"):
        checkpoint.load(path, "toy", 3, {1: to_two})
