"""``dcase compare``: the same frames for every variant, differences seed by seed."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_inputs import save_some
from own_networks import write_code

from dcase.potentials.fitting.comparison import difference, spread_of
from dcase.potentials.potential import load_potential

# SiLU under another name: a variant that cannot be better or worse.
TWIN = """
from torch import nn
class Twin(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()
"""
RUN = [
    "compare", "xyz", "some.npz", "--model", "mynet.py:MyNet", "--set", "features=4", "--set",
    "layers=1", "--activation", "silu", "--activation", "twin.py:Twin", "--activation", "relu",
    "--seeds", "2", "--n-train", "12", "--n-val", "4", "--n-test", "6", "--epochs", "2",
    "--device", "cpu", "--out", "c",
]  # fmt: skip


@pytest.fixture(autouse=True)
def there(empty_folder):
    save_some("some.npz", "ethanol", 24)
    write_code(".")
    write_code(".", TWIN, "twin.py")


def test_variants_see_the_same_frames_and_are_compared_seed_by_seed(dcase):
    done = dcase(*RUN)
    assert done.code == 0, done.err
    report = json.loads(Path("c/compare.json").read_text())
    silu, twin, relu = (report["variants"][name] for name in ("silu", "Twin", "relu"))
    key = "forces_mae_mev_angstrom"
    # The same function from the same weights on the same frames: only rounding is between them.
    assert np.allclose(twin[key], silu[key], rtol=1e-3)
    assert not np.allclose(relu[key], silu[key], rtol=1e-3)
    assert silu[key][0] != silu[key][1]
    assert twin["network"].startswith("mynet.py:MyNet@")
    of = difference(relu[key], silu[key])
    assert relu[f"{key}_difference"] == of
    told = next(line for line in done.out.splitlines() if line.strip().startswith("relu"))
    assert f"{of['mean']:+.1f} ± {of['error']:.1f}" in told
    hashes = [
        [load_potential(Path("c") / name).metadata["split"]["hash"] for name in row["checkpoints"]]
        for row in (silu, twin, relu)
    ]
    assert hashes[0] == hashes[1] == hashes[2]
    assert hashes[0][0] != hashes[0][1]

    # What is there stays, what is missing is trained to the same result.
    kept, gone = Path("c") / silu["checkpoints"][0], Path("c") / relu["checkpoints"][1]
    before = kept.stat().st_mtime_ns
    gone.unlink()
    gone.with_suffix(".run").joinpath("state.pt").unlink()
    gone.with_suffix(".run").joinpath("run.json").unlink()
    assert dcase(*RUN).code == 1  # neither --resume nor --overwrite
    again = dcase(*RUN, "--resume")
    assert again.code == 0, again.err
    assert kept.stat().st_mtime_ns == before
    assert json.loads(Path("c/compare.json").read_text())["variants"]["relu"][key] == relu[key]
    other = dcase(*RUN, "--resume", "--lr", "0.5")
    assert other.code == 1
    assert "lr" in other.message


def test_what_cannot_be_compared_is_refused(dcase):
    alone = dcase("compare", "xyz", "some.npz", "--activation", "silu")
    assert "nothing to compare" in alone.message
    few = dcase(*RUN, "--n-train", "20")
    assert "no frames are left to test on" in few.message
    assert not Path("c").exists()


def test_differences_are_paired():
    """A spread that both share is not in the difference; by hand."""
    base = [10.0, 20.0, 60.0]
    found = difference([11.0, 23.0, 62.0], base)
    assert found["mean"] == pytest.approx(2.0)
    assert found["error"] == pytest.approx(1.0 / 3**0.5)
    assert spread_of(base) == {"mean": 30.0, "std": pytest.approx(700**0.5)}
    assert difference([1.0], [3.0]) == {"mean": -2.0, "error": None}
