"""A network from a file through every command that trains or loads a potential."""

import json
import sys
from pathlib import Path

import pytest
from cli_inputs import save_some
from own_networks import ACTIVATION, times_run, write_code

from dcase import own_code

TRAIN = [
    "train", "xyz", "some.npz", "--model", "mynet.py:MyNet", "--set", "features=4", "--set",
    "layers=1", "--activation", "silu", "--epochs", "2", "--seed", "0", "--device", "cpu",
    "--out", "p.pt",
]  # fmt: skip


@pytest.fixture(autouse=True)
def there(empty_folder, monkeypatch):
    save_some("some.npz", "ethanol", 24)
    write_code(".")
    forget(monkeypatch)


def forget(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(own_code, "_LOADED", {})
    for name in [n for n in sys.modules if n.startswith("dcase_own_")]:
        del sys.modules[name]


def test_trained_shown_checked_simulated_and_resumed(dcase, monkeypatch):
    done = dcase(*TRAIN)
    assert done.code == 0, done.err
    assert "model   mynet.py:MyNet@" in done.err
    assert "dcase md --model p.pt --code mynet.py" in done.out
    forget(monkeypatch)
    runs = times_run("mynet.py")
    told = json.loads(dcase("info", "p.pt", "--json").out)
    assert told["hyper_parameters"]["features"] == 4
    assert told["parameters"] > 100
    assert dcase("info", "p.pt", "--source").out == Path("mynet.py").read_text()
    assert "SHA-256" in dcase("info", "p.pt").out
    for command in (
        ["md", "--model", "p.pt"], ["check", "p.pt"], ["evaluate", "p.pt", "some.npz"],
        ["bench", "p.pt"], ["relax", "--model", "p.pt"],
    ):  # fmt: skip
        refused = dcase(*command)
        assert refused.code == 1
        assert "--code mynet.py" in refused.message
    assert times_run("mynet.py") == runs
    code = ["--code", "mynet.py"]
    assert "validation MAE" in dcase("info", "p.pt").out
    common = ["--structure", "ethanol", *code]
    cold = [*common, "--equilibrate", "0", "--temperature", "10"]
    for command in (
        ["evaluate", "p.pt", "some.npz", *code],
        ["md", "--model", "p.pt", *cold, "--steps", "12"],
        ["md", "--model", "p.pt", *cold, "--steps", "2", "--replicas", "2", "--out", "r"],
        ["md", "--model", "p.pt", "--model", "p.pt", *cold, "--steps", "2", "--out", "e"],
        ["bench", "p.pt", *common, "--steps", "2", "--rounds", "1"],
    ):
        done = dcase(*command)
        assert done.code == 0, (command, done.err)
    assert dcase("relax", "--model", "p.pt", *common, "--steps", "2").code == 1  # far from done
    forget(monkeypatch)
    resumed = dcase("md", "--model", "p.pt", *cold, "--steps", "16", "--resume")
    assert resumed.code == 0, resumed.err
    more = dcase(*TRAIN, "--epochs", "3", "--resume")
    assert more.code == 0, more.err
    before = Path("p.pt").read_bytes()
    write_code(".", Path("mynet.py").read_text() + "# changed\n")
    other = dcase(*TRAIN, "--epochs", "4", "--resume")
    assert other.code == 1
    assert "model.architecture was 'mynet.py:MyNet@" in other.message
    assert Path("p.pt").read_bytes() == before


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_cross_validated(dcase, monkeypatch, jobs):
    folds = ["cross-validate", *TRAIN[1:-2], "--folds", "2", "--out", "cv.pt"]
    done = dcase(*folds, "--jobs", jobs)
    assert done.code == 0, done.err
    assert "dcase evaluate cv.pt DATA --code mynet.py" in done.out
    forget(monkeypatch)
    assert "ensemble of 2: mynet.py:MyNet@" in dcase("info", "cv.pt").out
    assert dcase("evaluate", "cv.pt", "some.npz").code == 1
    assert dcase("evaluate", "cv.pt", "some.npz", "--code", "mynet.py").code == 0
    forget(monkeypatch)
    again = dcase(*folds, "--resume")
    assert again.code == 0, again.err


def test_learns_actively(dcase):
    Path("label.py").write_text(
        "from ase.calculators.emt import EMT\ndef calculator():\n    return EMT()\n"
    )
    done = dcase(
        "active-learn", "--structure", "ethanol", "--labeller", "label.py:calculator", "--rounds",
        "1", "--walkers", "1", "--steps", "4", "--members", "2", "--epochs", "1", "--initial", "4",
        "--per-round", "1", "--frame-every", "2", "--model", "mynet.py:MyNet", "--out", "al",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "--code mynet.py" in done.out


def test_an_activation_from_a_file(dcase, monkeypatch):
    write_code(".", ACTIVATION, "wavy.py")
    done = dcase(
        "train", "xyz", "some.npz", "--model", "schnet", "--size", "tiny", "--activation",
        "wavy.py:Wavy", "--epochs", "1", "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    forget(monkeypatch)
    (made,) = Path().glob("*.pt")
    assert made.name == "some_schnet_Wavy.pt"
    assert dcase("evaluate", made, "some.npz").code == 1
    assert dcase("evaluate", made, "some.npz", "--code", "wavy.py").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "featurs=4"], "did you mean features"),
        (["--set", "features"], "write NAME=VALUE"),
        (["--set", "features=many"], "features must be a int"),
        (["--size", "tiny"], "has no presets"),
        (["--variant", "paper"], "no hyper-parameter 'variant'"),
        (["--model", "nonet.py:MyNet"], "nonet.py: No such file"),
    ],
)
def test_what_it_does_not_have_is_refused(dcase, options, message):
    refused = dcase(*TRAIN, *options)
    assert refused.code == 1
    assert message in refused.message
    assert not Path("p.pt").exists()
    assert not Path("p.run").exists()
