"""Networks and activations from a user's file: the contract, and checkpoints that run no code."""

import copy
import hashlib
import pickle
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from ase.build import molecule
from own_networks import ACTIVATION, IN_PYTHON, NETWORK, times_run, write_code

from dcase import DCCalculator, own_code
from dcase.errors import CheckpointError, NetworkWarning, OptionError
from dcase.potentials import create_potential, load_potential
from dcase.potentials.ensemble import Ensemble, load_model
from dcase.potentials.fitting.recipe import load_recipe


@pytest.fixture
def forget(monkeypatch):
    """As in a new process: nothing of a user's has run."""

    def now():
        monkeypatch.setattr(own_code, "_LOADED", {})
        for name in [n for n in sys.modules if n.startswith("dcase_own_")]:
            del sys.modules[name]

    now()
    return now


@pytest.fixture
def mynet(tmp_path, forget):
    return write_code(tmp_path)


def small(spec, **options):
    return create_potential(f"{spec}:MyNet", elements="HCO", features=4, **options)


def test_the_tutorial_is_forty_lines():
    lines = [line for line in NETWORK.splitlines() if line.strip()]
    assert 30 <= len(lines) <= 40


def test_a_checkpoint_gives_back_the_potential_only_with_its_code(mynet, forget, tmp_path):
    potential = small(mynet, activation="tanh")
    potential.save(tmp_path / "p.pt")
    atoms = molecule("CH3CH2OH")
    expected = DCCalculator(potential, dtype="float64").get_forces(atoms)
    forget()
    runs = times_run(mynet)
    with pytest.raises(
        own_code.CodeNeededError, match=r"made with MyNet of mynet.py.*--code mynet"
    ):
        load_potential(tmp_path / "p.pt")
    assert times_run(mynet) == runs
    calculator = DCCalculator(tmp_path / "p.pt", code=mynet, dtype="float64")
    assert np.array_equal(calculator.get_forces(atoms), expected)
    assert calculator.potential.fingerprint() == potential.fingerprint()
    assert "has no compiled form" in calculator.form or "no compiled form of" in calculator.form


def test_code_that_changed_is_refused_unrun_and_accepted_by_its_digest(mynet, forget, tmp_path):
    small(mynet).save(tmp_path / "p.pt")
    forget()
    mynet.write_text(mynet.read_text() + "# another line\n")
    runs = times_run(mynet)
    digest = hashlib.sha256(mynet.read_bytes()).hexdigest()[:8]
    with pytest.raises(own_code.CodeNeededError, match=rf"--code \S*mynet.py@{digest}") as refused:
        load_potential(tmp_path / "p.pt", code=mynet)
    assert times_run(mynet) == runs
    with pytest.raises(own_code.CodeNeededError):
        load_potential(tmp_path / "p.pt", code=f"{mynet}@{digest[:2]}")  # too short to mean it
    accepted = re.search(r"--code (\S+)$", str(refused.value))[1]
    potential = load_potential(tmp_path / "p.pt", code=accepted)
    assert potential.architecture == f"mynet.py:MyNet@{digest}"


def test_code_that_is_not_there_is_said_to_be_so(mynet, forget, tmp_path):
    small(mynet).save(tmp_path / "p.pt")
    forget()
    with pytest.raises(own_code.CodeNeededError, match=r"nonet\.py: No such file"):
        load_potential(tmp_path / "p.pt", code=tmp_path / "nonet.py")


def test_a_checkpoint_cannot_name_code_by_itself(mynet, forget, tmp_path):
    """What a document claims to be made of does not run, whatever it claims and records."""
    document = small(mynet).to_document()
    forget()
    runs = times_run(mynet)
    from dcase.potentials.potential import potential_from_document

    for architecture in (f"{mynet}:MyNet", f"{mynet}:MyNet@12345678", "os:system"):
        forged = {**copy.deepcopy(document), "architecture": architecture, "code": {}}
        with pytest.raises(CheckpointError, match="that it does not record"):
            potential_from_document(forged, "x.pt")
    forged = {**copy.deepcopy(document), "architecture": "schnet", "code": {}}
    forged["hyper_parameters"]["activation"] = f"{mynet}:MyNet"
    with pytest.raises(CheckpointError, match="that it does not record"):
        potential_from_document(forged, "x.pt")
    forged = copy.deepcopy(document)
    (record,) = forged["code"].values()
    record["sha256"] = "0" * 64
    wrong = pytest.raises(CheckpointError, match="SHA-256 begins with 00000000")
    with wrong, own_code.named_code(mynet):
        potential_from_document(forged, "x.pt")
    assert times_run(mynet) == runs


def test_two_contents_of_one_name_are_two_networks(mynet, tmp_path):
    first = small(mynet)
    mynet.write_text(
        mynet.read_text().replace("self.readout(s)[:, 0]", "2 * self.readout(s)[:, 0]")
    )
    second = small(mynet)
    assert first.architecture != second.architecture
    assert first.fingerprint() != second.fingerprint()
    second.network.load_state_dict(first.network.state_dict())
    atoms = molecule("H2O")
    e, twice = (
        DCCalculator(p, dtype="float64").get_potential_energy(atoms) for p in (first, second)
    )
    assert twice == pytest.approx(2 * e, rel=1e-12)


def test_ensembles_and_pickled_calculators_carry_it(mynet, forget, tmp_path):
    ensemble = Ensemble([small(mynet, seed=0), small(mynet, seed=1)])
    ensemble.save(tmp_path / "e.pt")
    calculator = DCCalculator(ensemble)
    atoms = molecule("CH3OH")
    expected, pickled = calculator.get_forces(atoms), pickle.dumps(calculator)
    forget()
    with pytest.raises(own_code.CodeNeededError):
        load_model(tmp_path / "e.pt")
    assert len(load_model(tmp_path / "e.pt", code=str(mynet))) == 2
    forget()
    assert np.array_equal(pickle.loads(pickled).get_forces(atoms), expected)


def test_the_class_itself_and_the_snippet_of_the_page(mynet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    space = {}
    exec(IN_PYTHON, space)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    assert space["potential"].hyper_parameters["features"] == 64
    assert load_potential("fresh.pt", code=space["MyNet"]).network.__class__ is space["MyNet"]
    assert small("mynet.py").architecture == space["potential"].architecture


def test_a_recipe_pins_the_content(mynet, tmp_path):
    recipe = load_recipe("default", {"model.architecture": f"{mynet}:MyNet"})
    digest = hashlib.sha256(mynet.read_bytes()).hexdigest()
    assert recipe.model.architecture == f"{mynet}:MyNet@{digest[:8]}"
    assert recipe.identity()["model"]["architecture"] == f"mynet.py:MyNet@{digest[:8]}"
    mynet.write_text(mynet.read_text() + "# later\n")
    own_code._LOADED.clear()
    with pytest.raises(OptionError, match="has changed"):
        create_potential(recipe.model.architecture, elements="HCO")


# ------------------------------------------------------------------------------------- the contract

MESSAGES = {
    "no cutoff": ("self.cutoff = cutoff  # A", "self.rc = cutoff", "has no cutoff"),
    "shape": ("self.readout(s)[:, 0]", "self.readout(s)", r"shape \[6\].*not \[6, 1\]"),
    "total": ("self.readout(s)[:, 0]", "self.readout(s).sum()", r"not \[\]"),
    "tuple": ("self.readout(s)[:, 0]", "(s, v)", "must return a tensor of energies, not tuple"),
    "NaN": ("self.readout(s)[:, 0]", "self.readout(s)[:, 0].log()", "NaN or infinite energies"),
    "detached distances": (
        "d = edges.distances.to(dtype)", "d = edges.distances.detach().to(dtype)",
        "not the derivative of its energies",
    ),
    "detached": (
        "directed_edges(graph), self", "directed_edges(__import__('dataclasses').replace("
        "graph, positions=graph.positions.detach())), self",
        "not the derivative of its energies",
    ),
    "blind": ("w = filters(basis) * envelope", "w = 0 * filters(basis)", "do not depend on where"),
    "one way": (
        "s = s.index_add(0, edges.target, a[:, 0])",
        "h = len(edges) // 2; s = s.index_add(0, edges.target[:h], a[:h, 0])",
        "order of the atoms",
    ),
    "float64": (".to(dtype)[:, None]", "[:, None]", r"positions are float64.*convert"),
    "float32": (
        "self.embed.weight.dtype  #", "torch.float32  #", "fails on 6 atoms|float64 its energies"
    ),
    "batch": ("self.readout(s)", "self.readout(s - s.mean(0))", "other systems of a batch"),
    "origin": (
        "self.readout(s)", "self.readout(s + graph.positions.to(dtype).square().sum(1)[:, None])",
        "where the origin is",
    ),
    "images": (
        "edges.distances.to(dtype)",
        "(graph.positions[edges.source] - graph.positions[edges.target]).norm(dim=1).to(dtype)",
        "moves by a lattice vector",
    ),
    "random": (
        "self.readout(s)", "self.readout(nn.functional.dropout(s, 0.5, True))", "each time"
    ),
    "square root": (" + 0.01).sqrt()", ").sqrt()", r"no slope at 0: take sqrt\(x\^2 \+ eps\)"),
    "error": (
        "self.readout(s)[:, 0]", "self.readout(s[:, :2])[:, 0]", r"fails on 6 .*line 4\d of mynet"
    ),
    "default": ("layers=2", "layers=None", "needs a default that is a number"),
    "arguments": ("num_elements, *, ", "*, num_elements=3, ", "number of elements first"),
    "no module": ("class MyNet(nn.Module)", "class MyNet(object)", "subclass of torch.nn.Module"),
    "init": ("features=32", "features=-3", "cannot be made"),
    "syntax": ("def forward", "def forward(", "cannot be run: SyntaxError"),
    "name": ("class MyNet", "class Mynet", "has no class 'MyNet'; it has: Mynet"),
}  # fmt: skip


@pytest.mark.parametrize("what", MESSAGES)
def test_a_broken_contract_is_one_clear_line(tmp_path, forget, what):
    old, new, message = MESSAGES[what]
    assert old in NETWORK
    path = write_code(tmp_path, NETWORK.replace(old, new, 1))
    with pytest.raises(OptionError, match=message) as refused:
        create_potential(f"{path}:MyNet", elements="HCO")
    assert "\n" not in str(refused.value)


def test_what_a_potential_may_lack_is_said(tmp_path, forget):
    turning = write_code(
        tmp_path,
        NETWORK.replace("self.readout(s)", "self.readout(s + v[:, 0])", 1),
        "turning.py",
    )
    with pytest.warns(NetworkWarning, match="change as a structure turns; train with --augment"):
        small(turning)
    jumping = write_code(
        tmp_path, NETWORK.replace("filters(basis) * envelope", "filters(basis)"), "jumping.py"
    )
    with pytest.warns(NetworkWarning, match="jumps at the cutoff"):
        small(jumping)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(write_code(tmp_path))


# -------------------------------------------------------------------------------------- activations


@pytest.mark.parametrize("architecture", ["schnet", "painn", "mine"])
def test_an_activation_from_a_file_is_the_function_it_says(tmp_path, forget, architecture):
    """Against the registry's own: the same formula under another name gives the same bits."""
    text = "import torch\nfrom torch import nn\nclass Mine(nn.Module):\n    def forward(self, x):\n"
    own = write_code(tmp_path, text + "        return x.tanh()\n", "acts.py")
    if architecture == "mine":
        architecture = f"{write_code(tmp_path)}:MyNet"
    place = {} if ":" in architecture else {"size": "tiny"}
    a = create_potential(architecture, elements="HCO", activation=f"{own}:Mine", **place)
    b = create_potential(architecture, elements="HCO", activation="tanh", **place)
    a.save(tmp_path / "a.pt")
    forget()
    with pytest.raises(own_code.CodeNeededError, match="--code"):
        load_potential(tmp_path / "a.pt")
    code = [own, tmp_path / "mynet.py"] if place == {} else own
    loaded = load_potential(tmp_path / "a.pt", code=code)
    atoms = molecule("CH3OH")
    for optimize in (False, None):
        forces = [
            DCCalculator(p, dtype="float64", optimize=optimize).get_forces(atoms)
            for p in (loaded, b)
        ]
        assert np.abs(forces[0] - forces[1]).max() <= 1e-7 * np.abs(forces[1]).max()


BAD = {
    "parameters": ("self.a = nn.Parameter(torch.ones(1))", "x * self.a", "has parameters"),
    "mixes": ("pass", "x - x.mean(-1, keepdim=True)", "every number by itself"),
    "shape": ("pass", "x.sum(-1)", "every number by itself"),
    "NaN": ("pass", "x.log()", "NaN or infinite"),
    "no slope": ("pass", "x.detach()", "fails: RuntimeError"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_activation_is_refused(tmp_path, forget, what):
    made, formula, message = BAD[what]
    path = write_code(
        tmp_path,
        "import torch\nfrom torch import nn\nclass Bad(nn.Module):\n    def __init__(self):\n"
        f"        super().__init__()\n        {made}\n    def forward(self, x):\n"
        f"        return {formula}\n",
        "bad.py",
    )
    with pytest.raises(OptionError, match=message):
        create_potential("schnet", size="tiny", elements="HCO", activation=f"{path}:Bad")


def test_the_activation_of_the_page(tmp_path, forget):
    path = write_code(tmp_path, ACTIVATION, "wavy.py")
    potential = create_potential("schnet", size="tiny", elements="HCO", activation=f"{path}:Wavy")
    act = potential.network.out_act
    x = torch.linspace(-3, 3, 7)
    assert torch.allclose(act(x), x * torch.sigmoid(x) + 0.1 * torch.sin(x))
    assert potential.hyper_parameters["activation"].startswith("wavy.py:Wavy@")


# ----------------------------------------------------------------------------------------- packages


def test_entry_points_of_installed_packages_are_known_by_name(tmp_path, monkeypatch, forget):
    site = tmp_path / "site"
    info = site / "netpack-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "netpack_nets.py").write_text(NETWORK + ACTIVATION)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: netpack\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[dcase.architectures]\nPackNet = netpack_nets:MyNet\n"
        "[dcase.activations]\nwavy = netpack_nets:Wavy\n"
    )
    own_code.entry_points.cache_clear()
    with monkeypatch.context() as installed:
        installed.syspath_prepend(site)
        potential = create_potential("packnet", elements="HCO", activation="wavy", features=4)
        assert potential.architecture == "PackNet"
        potential.save(tmp_path / "p.pt")
        expected = potential.fingerprint()
        assert load_potential(tmp_path / "p.pt").fingerprint() == expected
        with pytest.raises(OptionError, match=r"painn, PackNet, or FILE.py:CLASS"):
            create_potential("nonet", elements="HCO")
    own_code.entry_points.cache_clear()
    sys.modules.pop("netpack_nets", None)
    with pytest.raises(CheckpointError, match=r"package netpack 1\.2, which is to be installed"):
        load_potential(tmp_path / "p.pt")


def test_a_network_put_together_by_hand_is_named_as_such(tmp_path):
    """Registered in Python alone: saved as ever, and not called damaged elsewhere."""
    potential = create_potential("schnet", size="tiny", elements="HCO")
    potential.architecture = "mine"
    potential.save(tmp_path / "p.pt")
    with pytest.raises(CheckpointError, match=r"unknown architecture 'mine'.*FILE\.py:CLASS"):
        load_potential(tmp_path / "p.pt")
