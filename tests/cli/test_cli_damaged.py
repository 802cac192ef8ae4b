"""Files and folders that are not what a command asks for: one line that says what they are."""

import h5py
import numpy as np
import pytest

from dcase.potentials.potential import load_potential


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "folder is a folder, not a file"),
        ("empty", "empty is empty"),
        ("a.json", "it is a JSON file"),
        ("a.h5", "it is an HDF5 file"),
        ("a.npz", "an npz file of arrays"),
    ],
)
def test_info_says_what_a_file_is_instead(dcase, empty_folder, name, reason):
    (empty_folder / "folder").mkdir()
    (empty_folder / "empty").touch()
    (empty_folder / "a.json").write_text("{}")
    np.savez(empty_folder / "a.npz", a=1)
    h5py.File(empty_folder / "a.h5", "w").close()
    done = dcase("info", name)
    assert done.code == 1
    assert reason in done.message
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "metadata",
    [{"dataset": {"x": 1}}, {"split": 3}, {"training": {"a": 1}, "recipe": {"name": "x"}}],
)
def test_info_of_a_checkpoint_with_odd_metadata(dcase, empty_folder, metadata):
    potential = load_potential("aspirin_irelu.pt")
    potential.metadata = metadata
    potential.save(empty_folder / "odd.pt")
    done = dcase("info", "odd.pt")
    assert "what it says of itself is not what dcase writes" in done.message
    assert done.err.count("\n") == 1
    assert "internal" not in dcase("info", "odd.pt", "--json").err


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"fields": {"u": 1}}', "null"])
def test_pinn_list_of_a_run_whose_results_are_damaged(dcase, empty_folder, monkeypatch, content):
    class Source:
        task, sample, activation = "advection", 0, "tanh"

    monkeypatch.setattr("dcase.cli.pinn.read_record", lambda _: (Source, Source))
    (empty_folder / "run").mkdir()
    (empty_folder / "run" / "metrics.json").write_text(content)
    done = dcase("pinn", "list", "run")
    assert done.code == 1
    assert "run/metrics.json" in done.message
    assert "internal" not in done.err
    assert done.err.count("\n") == 1
