"""``dcase evaluate``, ``dcase info`` and ``dcase check``."""

import json

import ase.io
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from cli_inputs import save_some

from dcase.data.md17 import embedded_file
from dcase.data.molecules import get_molecule
from dcase.data.npz import read_npz
from dcase.potentials import create_potential
from dcase.potentials.fitting.evaluation import evaluate_potential
from dcase.potentials.potential import load_potential
from dcase.units import KCAL_PER_MOL

ETHANOL = embedded_file(get_molecule("ethanol"))


# -------------------------------------------------------------------------------- evaluate


def test_evaluate_writes_the_documented_keys(dcase, model, empty_folder):
    done = dcase(
        "evaluate", model, ETHANOL, "--index", ":10", "--json", "e.json", "--plot", "p.png"
    )
    assert done.code == 0, done.err
    content = json.loads((empty_folder / "e.json").read_text())
    frames = read_npz(ETHANOL).subset(range(10))
    expected = evaluate_potential(load_potential(model), frames).metrics
    for key in (
        "energy_mae_kcal_mol", "forces_mae_kcal_mol_angstrom", "energy_mae_mev",
        "forces_mae_mev_angstrom", "efwt", "n_frames",
    ):  # fmt: skip
        assert content[key] == pytest.approx(expected[key], rel=1e-5)
    assert content["n_frames"] == 10
    ratio = content["energy_mae_mev"] / content["energy_mae_kcal_mol"]
    assert ratio == pytest.approx(1000 * KCAL_PER_MOL)
    assert content["data_level_of_theory"] == content["model_level_of_theory"] == "GFN2-xTB"
    assert f"{content['forces_mae_kcal_mol_angstrom']:.4f}" in done.out
    for name in ("p_energy.png", "p_forces.png"):
        assert (empty_folder / name).read_bytes().startswith(b"\x89PNG")


def test_evaluate_in_the_precision_asked_for(dcase, model, empty_folder):
    frames, found = read_npz(ETHANOL).subset(range(3)), {}
    for dtype in (torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        options = ["--index", ":3", "--dtype", name, "--json", f"{name}.json"]
        assert dcase("evaluate", model, ETHANOL, *options).code == 0
        found[name] = json.loads((empty_folder / f"{name}.json").read_text())[
            "forces_mae_mev_angstrom"
        ]
    double = evaluate_potential(load_potential(model).with_dtype(torch.float64), frames)
    expected = double.metrics["forces_mae_mev_angstrom"]
    assert found["float64"] == pytest.approx(expected, rel=1e-13)
    assert found["float32"] != pytest.approx(expected, rel=1e-13)


def test_evaluate_says_where_the_levels_of_theory_differ(dcase, model):
    save_some("md17_ethanol.npz", "ethanol", 5)
    done = dcase("evaluate", model, "md17_ethanol.npz")
    assert done.code == 0
    warning = done.err.splitlines()[-1]
    assert warning.startswith("WARNING: the potential was trained on GFN2-xTB, the data are PBE")


def test_evaluate_says_where_the_charge_is_another(dcase, empty_folder):
    potential = create_potential(elements="HO", size="tiny", seed=0)
    potential.metadata["electrons"] = {"charges": [0.0], "unpaired": [], "stated": False}
    potential.save("neutral.pt")
    water = molecule("H2O")
    water.calc = SinglePointCalculator(water, energy=0.0, forces=0 * water.positions)
    ase.io.write("neutral.extxyz", water)
    water.info["charge"] = 1
    ase.io.write("cation.extxyz", water)
    done = dcase("evaluate", "neutral.pt", "cation.extxyz", "--json", "e.json")
    assert done.code == 0, done.err
    (line,) = [one for one in done.err.splitlines() if "total charge" in one]
    assert "trained on total charge 0 (none was given), the data has 1" in line
    content = json.loads((empty_folder / "e.json").read_text())
    assert content["electrons"]["charges"] == [1.0]
    assert content["model_electrons"]["charges"] == [0.0]
    assert len(content["warnings"]) == 1
    done = dcase("evaluate", "neutral.pt", "neutral.extxyz")
    assert "total charge" not in done.err
    assert "total charge" not in dcase("info", "neutral.pt").out
    potential.metadata["electrons"] = {"charges": [1.0], "unpaired": [1], "stated": True}
    potential.save("cation.pt")
    assert "total charge 1; 1 unpaired electrons" in dcase("info", "cation.pt").out
    assert "total charge" not in dcase("evaluate", "cation.pt", "cation.extxyz").err


def test_evaluate_compares_what_is_there(dcase, model, empty_folder):
    dataset = read_npz(ETHANOL).subset(range(3))
    frames = [dataset.frame(i) for i in range(3)]
    for atoms in frames:
        atoms.info["mine"] = atoms.get_potential_energy()
        atoms.calc = None
    ase.io.write("energies.extxyz", frames)
    done = dcase("evaluate", model, "energies.extxyz", "--energy-key", "mine", "--json", "e.json")
    assert done.code == 0, done.err
    content = json.loads((empty_folder / "e.json").read_text())
    assert "energy_mae_mev" in content
    assert "forces_mae_mev_angstrom" not in content


@pytest.mark.parametrize(
    ("index", "count"), [("3", 1), ("-1", 1), ("-2:", 2), ("::500", 2), (":", 1000)]
)
def test_index(dcase, model, empty_folder, index, count):
    done = dcase("evaluate", model, ETHANOL, "--index", index, "--json", "e.json")
    assert done.code == 0, done.err
    assert json.loads((empty_folder / "e.json").read_text())["n_frames"] == count


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere.npz"], "no such file: nowhere.npz"),
        (["folder"], "folder is a folder"),
        (["text.npz"], "text.npz is not an npz file"),
        (["text.xyz"], "cannot read"),
        (["plain.xyz"], "neither energies nor forces"),
        (["cl.xyz", "--energy-key", "e"], "the data hold Cl"),
        ([ETHANOL, "--labels", "rmd17"], "no rmd17 labels"),
        ([ETHANOL, "--index", "foo"], "--index 'foo' is not understood"),
        ([ETHANOL, "--index", "5000:"], "selects none of the 1000 frames"),
        ([ETHANOL, "--json", "file/x.json"], "file is not a folder"),
        ([ETHANOL, "--plot", "file/x.png"], "file is not a folder"),
        ([ETHANOL, "--plot", "x.pdf"], "name it FILE.png"),
        ([ETHANOL, "--device", "cuda:99"], "device 'cuda:99' is not available here"),
    ],
)
def test_evaluate_refuses_before_it_works(dcase, model, empty_folder, arguments, reason):
    (empty_folder / "folder").mkdir()
    for name in ("file", "text.npz", "text.xyz"):
        (empty_folder / name).write_text("nothing of use")
    (empty_folder / "plain.xyz").write_text("2\n\nO 0 0 0\nH 0 0 1\n")
    (empty_folder / "cl.xyz").write_text("2\ne=1.0\nCl 0 0 0\nH 0 0 1\n")
    done = dcase("evaluate", model, *arguments)
    assert done.code == 1
    assert reason in done.message
    assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([ETHANOL, "--energy-key", "E"], "not for .npz; use --labels"),
        (["frames.xyz", "--labels", "md17"], "--labels is for .npz files"),
    ],
)
def test_options_that_do_not_apply(dcase, model, arguments, reason):
    done = dcase("evaluate", model, *arguments)
    assert done.code == 2
    assert reason in done.err


# ------------------------------------------------------------------------------------ info


def test_info(dcase, model):
    done = dcase("info", model)
    assert done.code == 0
    text = " ".join(done.out.split())
    for part in (
        str(model), "painn", "hidden_channels=16", "H C O", "cutoff 4.0 A", "GFN2-xTB",
        "20 trained, 5 validated", "recipe default, 2 epochs", "kcal/mol/A",
    ):  # fmt: skip
        assert part in text
    content = json.loads(dcase("info", model, "--json").out)
    assert content["hyper_parameters"]["cutoff"] == 4.0
    assert content["shipped_with_dcase"] is False
    assert content["dataset"]["level_of_theory"] == "GFN2-xTB"


def test_info_on_an_untrained_potential_in_a_folder_with_brackets(dcase, empty_folder):
    folder = empty_folder / "[red]"
    folder.mkdir()
    create_potential("schnet", size="tiny", elements=["H"], seed=0).save(folder / "new.pt")
    done = dcase("info", folder / "new.pt")
    assert done.code == 0, done.err
    assert "none (untrained)" in done.out
    assert "[red]" in done.out


@pytest.mark.parametrize("command", ["info", "check", "evaluate"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.pt", "nowhere.pt: no such file"),
        ("folder", "folder is a folder"),
        ("text.pt", "not a dcase checkpoint"),
        ("cut.pt", "truncated"),
    ],
)
def test_what_is_no_checkpoint(dcase, model, empty_folder, command, name, reason):
    (empty_folder / "folder").mkdir()
    (empty_folder / "text.pt").write_text("no checkpoint")
    (empty_folder / "cut.pt").write_bytes(model.read_bytes()[:5000])
    done = dcase(command, name, *([ETHANOL] if command == "evaluate" else []))
    assert done.code == 1
    assert reason in done.message


# ----------------------------------------------------------------------------------- check


@pytest.mark.slow
def test_check(dcase, model, empty_folder):
    done = dcase("check", model, "--json", "checks.json")
    assert done.code == 0, done.out
    assert "ethanol.pt on ethanol (shipped geometry), float64" in done.out
    results = json.loads((empty_folder / "checks.json").read_text())
    assert len(results) > 10
    assert all(r["passed"] or r["skipped"] for r in results)


def test_check_fails_with_status_1(dcase, model, monkeypatch):
    from dcase.potentials.potential import Potential

    honest = Potential.forward

    def pushed(self, graph, **options):
        result = honest(self, graph, **options)
        return {**result, "forces": result["forces"] + 0.01}

    monkeypatch.setattr(Potential, "forward", pushed)
    molecule("H2CO").write("small.xyz")
    done = dcase("check", model, "small.xyz")
    assert done.code == 1
    assert "FAIL" in done.out.upper()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere.xyz"], "no such file, and no molecule of that name"),
        (["cl.xyz"], "not trained on Cl"),
        (["--json", "file/x.json"], "file is not a folder"),
    ],
)
def test_check_refuses(dcase, model, empty_folder, arguments, reason):
    (empty_folder / "file").write_text("in the way")
    (empty_folder / "cl.xyz").write_text("2\n\nCl 0 0 0\nH 0 0 1.3\n")
    done = dcase("check", model, *arguments)
    assert done.code == 1
    assert reason in done.message
