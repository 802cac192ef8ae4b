"""``dcase evaluate`` on ensembles: uncertainty against error."""

import json
import math

import numpy as np
import pytest
from cli_inputs import save_some

from dcase.cli.calibration_figures import reliability_figure, verdict
from dcase.data.npz import read_npz
from dcase.potentials import create_potential
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.fitting.calibration import calibrate
from dcase.potentials.fitting.ensemble_evaluation import Uncertainty, evaluate_ensemble
from dcase.potentials.potential import load_potential

pytestmark = pytest.mark.pictures


@pytest.fixture(autouse=True)
def members(empty_folder):
    """Three untrained potentials, and ethanol to be wrong about."""
    save_some("some.npz", "ethanol", 12)
    names = ["a.pt", "b.pt", "c.pt"]
    for seed, name in enumerate(names):
        create_potential(size="tiny", elements=["H", "C", "O"], seed=seed).save(name)
    return names


def loaded(names):
    return Ensemble([load_potential(name) for name in names]).eval()


@pytest.mark.slow
def test_several_files_are_an_ensemble(dcase, empty_folder, members):
    first, *others = members
    options = [word for name in others for word in ("--with", name)]
    done = dcase("evaluate", first, "some.npz", *options, "--json", "e.json", "--plot", "p.png")
    assert done.code == 0, done.err
    content = json.loads((empty_folder / "e.json").read_text())
    assert (content["model"], content["with"], content["members"]) == ("a.pt", others, 3)
    expected = evaluate_ensemble(loaded(members), read_npz("some.npz"))
    assert content["energy_mae_mev"] == pytest.approx(expected.evaluation.metrics["energy_mae_mev"])
    for name, found in expected.by_name().items():
        one = content["calibration"][name]
        for key, value in found.to_dict().items():
            if key in ("spearman", "miscalibration_area", "scale", "nll", "sharpness", "n"):
                assert one[key] == pytest.approx(value, rel=1e-4)
        assert len(one["levels"]) == len(one["coverage"]) == 101
    forces = expected.forces
    assert f"{forces.calibration.spearman:.3f}" in done.out
    assert f"{forces.spearman_per_atom:.3f}" in done.out
    assert "Standard deviation over 3 potentials" in done.out
    assert "a.pt and 2 more on 12 frames" in done.out
    for name in ("p_energy.png", "p_forces.png", "p_reliability.png"):
        assert (empty_folder / name).read_bytes().startswith(b"\x89PNG")


def test_an_ensemble_in_one_file_is_the_same(dcase, empty_folder, members):
    loaded(members).save("ensemble.pt")
    dcase("evaluate", "a.pt", "some.npz", "--with", "b.pt", "--with", "c.pt", "--json", "one.json")
    done = dcase("evaluate", "ensemble.pt", "some.npz", "--json", "two.json")
    assert done.code == 0, done.err
    one, two = (json.loads((empty_folder / name).read_text()) for name in ("one.json", "two.json"))
    assert one["calibration"] == two["calibration"]
    assert two["with"] == []


def test_a_single_potential_has_no_such_table(dcase, empty_folder):
    done = dcase("evaluate", "a.pt", "some.npz", "--json", "e.json", "--plot", "p.png")
    assert done.code == 0, done.err
    assert "deviation" not in done.out
    content = json.loads((empty_folder / "e.json").read_text())
    assert not {"calibration", "members", "with"} & set(content)
    assert not (empty_folder / "p_reliability.png").exists()


def test_one_frame_has_no_rank_correlation(dcase, empty_folder):
    done = dcase(
        "evaluate", "a.pt", "some.npz", "--with", "b.pt", "--index", "0", "--json", "e.json",
        "--plot", "p.png",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads((empty_folder / "e.json").read_text())["calibration"]
    assert found["energy"]["spearman"] is None
    assert found["forces"]["spearman_per_frame"] is None
    assert found["forces"]["spearman_per_atom"] is not None


def test_files_that_do_not_go_together(dcase):
    create_potential(size="tiny", elements=["N"], seed=0).save("n.pt")
    done = dcase("evaluate", "a.pt", "some.npz", "--with", "n.pt")
    assert done.code == 1
    assert "no element in common" in done.message
    assert "no such file" in dcase("evaluate", "a.pt", "some.npz", "--with", "none.pt").message


def test_verdicts():
    error = np.linspace(-1, 1, 101)
    right = float(np.sqrt(np.mean(error**2)))

    def of(std):
        return verdict(calibrate(np.zeros(101), error, std))

    assert of(np.full(101, right)) == "right size"
    assert of(np.full(101, right / 4)) == "too small: multiply by 4"
    assert of(np.full(101, right * 2)) == "too large: multiply by 0.5"
    assert of(np.zeros(101)) == "101 of 101 are exactly 0"
    assert of(np.where(error > 0.9, math.nan, right)).endswith("not finite, left out")


@pytest.mark.parametrize("count", [1, 4, 200, 5000])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_figure_shows_any_number_of_points(count, spread):
    generator = np.random.default_rng(0)
    error, std = generator.normal(size=count), spread * generator.lognormal(size=count)
    one = Uncertainty(error, std, "eV", calibrate(np.zeros(count), error, std))
    figure = reliability_figure({"energy": one})
    curve, panel = figure.axes[:2]
    assert panel.get_xlabel() == "standard deviation of the energy (meV)"
    drawn = np.array(curve.lines[1].get_ydata())
    assert drawn == pytest.approx(one.calibration.coverage)
    from dcase.plotting import png

    assert png(figure).startswith(b"\x89PNG")
