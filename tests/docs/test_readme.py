"""The Python in the README and the guide runs as it stands there."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for name in ("README.md", "docs/guide.md", "docs/dae.md")
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_equation_of_ones_own(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of docs/pinn.md belong together: an equation, and its solution."""
    text = (ROOT / "docs/pinn.md").read_text(encoding="utf-8")
    if not whole:  # an error of 0.02; a few steps less and rounding decides about 0.1
        assert "adam:200,lbfgs:200" in text
        text = text.replace("adam:200,lbfgs:200", "adam:50,lbfgs:100")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/pinn.md", "exec"), names)
    decay = math.exp(-0.05 * (2 * math.pi) ** 2 * 0.5)
    assert abs(float(names["u"]) - decay) < (0.01 if whole else 0.1)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "documentation", "exec"), {})
    if "print(" in block:
        assert capsys.readouterr().out.strip()
