"""What is installed is what is in the checkout: every package, and the files that code reads."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = {
    "dcase": "dcase",
    "cli": "dcase.cli",
    "potentials": "dcase.potentials",
    "md_runs": "dcase.md_runs",
    "pinn": "dcase.pinn",
}
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folders():
    """Folders with files, and their packages' names; not through the links inside dcase/."""
    for part, name in PARTS.items():
        for folder in [ROOT / part, *(p for p in (ROOT / part).rglob("*") if p.is_dir())]:
            inside = folder.relative_to(ROOT)
            through_a_link = any((ROOT / p).is_symlink() for p in [inside, *inside.parents])
            if not through_a_link and folder.name != "__pycache__":
                yield folder, ".".join([name, *folder.relative_to(ROOT / part).parts])


def test_every_package_is_installed():
    there = {name for folder, name in folders() if list(folder.glob("*.py"))}
    assert set(SETUP["packages"]) == there


def test_every_file_that_is_no_module_is_installed():
    for folder, name in folders():
        patterns = SETUP["package-data"].get(name, [])
        for path in folder.iterdir():
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert any(path.match(pattern) for pattern in patterns), f"{name}: {path.name}"
