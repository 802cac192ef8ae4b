"""Tables, figures and the study of projections."""

import math
import re
from pathlib import Path

import pytest
import torch

from dcase.dae.experiments import published
from dcase.dae.experiments.figures import curves, curves_figure, figure_runs
from dcase.dae.experiments.projection_study import saved_bytes, study
from dcase.dae.experiments.tables import markdown, table_figure, table_rows, table_runs
from dcase.dae.pendulum import simulate_pendulum
from dcase.dae.projection import ProjectionSettings
from dcase.dae.systems import system_named
from dcase.errors import OptionError

PAPER = Path(__file__).parents[3] / "shared" / "seeds" / "neural-dae-paper.txt"


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
def test_published_figures_are_those_of_the_paper():
    pattern = re.compile(
        r"(No|Auxiliary|Penalty|End|Smooth) (?:constraints|loss|\$).*?"
        r"\t([\d.]+)\t([\d.]+)\t([\d.]+)$"
    )
    text = PAPER.read_text(encoding="utf-8")
    rows = [m.groups() for line in text.splitlines() if (m := pattern.search(line))]
    ours = []
    for table in (published.TABLE1, published.TABLE2):
        for of_k in table.values():
            for method, values in of_k.items():
                ours.append((published.TITLES[method].split()[0], *values.values()))
    assert len(rows) == 15
    assert [(r[0], *map(float, r[1:])) for r in rows] == ours
    assert published.figure_of("pendulum", 20, "smooth", 100) == 27.9
    assert published.figure_of("water", 20, "smooth", 100) is None


def test_table_runs_are_all_different():
    runs = table_runs("pendulum", ["mimetic", "mechanical"], ks=[20, 50], sizes=[100, 1000])
    assert len(runs) == 2 * 2 * (5 + 2) * 3
    assert len({run.name for run in runs}) == len(runs)
    names = [r.name for name in ("dae-figure7", "dae-figure8") for r in figure_runs(name, seeds=2)]
    assert len(set(names)) == len(names) == 2 * 6 * 2
    with pytest.raises(OptionError, match="nothing to do"):
        table_runs("pendulum", ["mechanical"], ks=[20], sizes=[100], methods=["none"])


def result(seed, mae, **more):
    simple = {"mae_cm": 50.0 + seed, "mean_violation": 0.0, "max_violation": 0.0}
    settings = {"k": 20, "n_train": 100, "seed": seed, "method": "none"}
    found = {"label": "No constraints", "status": "finished", "settings": settings}
    if mae is not None:
        found |= {"mae_cm": mae, "mean_violation": 0.1, "max_violation": 0.2 + seed,
                  "identity": simple, "constant_velocity": simple}  # fmt: skip
    return found | more


def test_rows_have_mean_spread_and_failures():
    rows = table_rows("pendulum", [result(0, 30.0), result(1, 34.0), result(2, None)])
    assert [r["method"] for r in rows] == ["No constraints", "(identity)", "(constant velocity)"]
    row = rows[0]
    assert (row["runs"], row["failed"]) == (3, 1)
    assert row["mae_cm mean"] == 32.0
    assert row["mae_cm std"] == pytest.approx(math.sqrt(8.0))
    assert row["max violation"] == 1.2
    assert row["paper mae_cm"] == 35.0
    assert rows[1]["mae_cm mean"] == 50.5
    text = markdown("pendulum", rows, "Table")
    assert "32 ± 2.8 (1 of 3 diverged) [35]" in text


def test_curves_average_the_epochs_all_seeds_have():
    runs = [
        {"label": "a", "history": [{"epoch": 1, "x": 1.0}, {"epoch": 2, "x": 3.0}]},
        {"label": "a", "history": [{"epoch": 1, "x": 3.0}]},
        {"label": "b", "status": "diverged"},
    ]
    found = curves(runs, "x")
    assert list(found) == ["a"]
    epochs, mean, spread = found["a"]
    assert (epochs.tolist(), mean.tolist()) == ([1], [2.0])
    assert spread[0] == pytest.approx(math.sqrt(2.0))


def followed(label, seed, *, epochs=3, mae=50.0):
    rows = [
        {"epoch": e, **{f"{part}_{q}": mae / e for part in ("val", "train")
                        for q in ("mae_cm", "max_violation")}}
        for e in range(1, epochs + 1)
    ]  # fmt: skip
    settings = {"k": 20, "n_train": 100, "seed": seed}
    return {"label": label, "status": "finished", "history": rows, "settings": settings}


def test_figures_have_a_line_of_their_own_colour_for_each_setting():
    labels = [f"gamma = {g}" for g in (0, 1, 3, 10, 30, 100)]
    runs = [
        followed(label, seed, mae=20.0 + i) for i, label in enumerate(labels) for seed in (0, 1)
    ]
    figure = curves_figure(runs, "Figure 7", ordered=True)
    for ax, unit in zip(figure.axes, ("(cm)", "(m)"), strict=True):
        solid = [line for line in ax.lines if line.get_linestyle() == "-"]
        assert [line.get_label() for line in solid] == labels
        assert len({line.get_color() for line in solid}) == len(labels)
        assert unit in ax.get_ylabel()
        assert ax.get_xlabel() == "epoch"
    # Weakest first, dark to light.
    brightness = [sum(line.get_color()[:3]) for line in solid]
    assert brightness == sorted(brightness)
    explained = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert any("standard deviation of 2 runs" in text for text in explained)
    assert "k = 20, 100 training samples" in figure.get_suptitle()


def test_the_legend_of_a_table_names_all_sizes():
    """Also those that only the second k has, each with the paper's beside it."""
    few = [
        result(0, 30.0),
        {**result(0, 60.0), "settings": {**result(0, 1.0)["settings"], "k": 50}},
    ]
    many = {**result(0, 9.0), "settings": {**result(0, 1.0)["settings"], "k": 50, "n_train": 1000}}
    figure = table_figure("pendulum", table_rows("pendulum", [*few, many]))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["n = 100", "n = 100, paper", "n = 1000", "n = 1000, paper"]


@pytest.fixture(scope="module")
def swing():
    return simulate_pendulum(300, substeps=2)


def test_study_of_projections(swing):
    rows = {row["way"]: row for row in study(swing, batch=3, displacements=[10.0], repeats=1)}
    newton, cg, descent = rows["newton"], rows["cg"], rows["descent"]
    for row in rows.values():
        assert row["converged"] == "yes"
        assert row["violation (m)"] < 1e-4
    assert newton["iterations max"] <= 5
    assert descent["iterations mean"] > 2 * newton["iterations mean"]
    assert newton["implicit (kB)"] < 0.1 * newton["unrolled (kB)"]
    for row in (newton, cg):
        assert row["implicit - unrolled, 1e-10"] < 1e-6
        assert row["tangent - unrolled"] > 1e-3


def test_memory_of_the_implicit_gradient_does_not_grow(swing):
    c = system_named("pendulum").constraint(5)
    r = torch.as_tensor(swing.positions[[50, 250]])
    noise = torch.randn(r.shape, generator=torch.Generator().manual_seed(0), dtype=r.dtype)
    kept = {}
    for gradient in ("implicit", "unrolled"):
        settings = ProjectionSettings("descent", None, 200, gradient)
        kept[gradient] = [saved_bytes(r + s * noise, c, settings) for s in (0.005, 0.1)]
    # Input and output, 2 x 5 x 2 numbers of 8 bytes each.
    assert kept["implicit"] == [320, 320]
    assert kept["unrolled"][1] > 1.5 * kept["unrolled"][0]
