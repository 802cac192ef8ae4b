"""The mutants are up to date, and the tool that tries them tells killed from survived."""

import json
from pathlib import Path

import pytest
from mutate import LISTS, ROOT, Mutant, hunt, problems, read_mutants, table

MUTANTS = read_mutants()


def test_every_mutant_changes_exactly_one_place():
    assert MUTANTS, f"no mutants in {LISTS}"
    assert problems(MUTANTS, ROOT) == []


@pytest.mark.parametrize(
    ("old", "new", "tests", "words"),
    [
        ("gone", "x", ("tests",), "holds 'gone' 0 times"),
        ("a", "x", ("tests",), "holds 'a' 2 times"),
        ("b", "b", ("tests",), "holds 'b' 1 times"),
        ("b", "x", ("nowhere",), "no such tests: nowhere"),
        ("b", "x", (), "no such tests: none named"),
    ],
)
def test_what_is_wrong_with_a_mutant(tmp_path, old, new, tests, words):
    (tmp_path / "tests").mkdir()
    (tmp_path / "code.py").write_text("a, a, b\n")
    (line,) = problems([Mutant("code.py", old, new, tests)], tmp_path)
    assert words in line


def test_lists_are_read_and_repeated_mutants_refused(tmp_path):
    entry = {"file": "code.py", "old": "a", "new": "b", "tests": "one two"}
    (tmp_path / "area.json").write_text(json.dumps([entry]))
    (mutant,) = read_mutants(tmp_path)
    assert (mutant.tests, mutant.area) == (("one", "two"), "area")
    assert mutant.id.startswith("area-")
    (tmp_path / "area.json").write_text(json.dumps([entry, entry]))
    with pytest.raises(ValueError, match="listed twice"):
        read_mutants(tmp_path)


@pytest.fixture
def project(tmp_path):
    """A project of one line, behind a link as dcase's folders are."""
    root = tmp_path / "project"
    (root / "code").mkdir(parents=True)
    (root / "code" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (root / "linked").symlink_to("code")
    (root / "test_sums.py").write_text(
        "import sys; sys.path.insert(0, 'linked')\nfrom sums import add\n"
        "def test_add():\n    assert add(2, 2) == 4\n"
    )
    return root


def mutant(new):
    return Mutant("code/sums.py", "a + b", new, ("test_sums.py",), area="sums")


def test_killed_survived_and_resumed(project, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("mutate.START", "spawn")
    out = tmp_path / "results.json"
    found = hunt([mutant("a - b"), mutant("a * b")], project, out)
    assert [r["outcome"] for r in found] == ["killed", "survived"]
    assert "test_add" in found[0]["by"]
    assert "return a + b" in (project / "code" / "sums.py").read_text()
    assert "+ a * b" in table(found)
    # The second time nothing is run, unless the tests have changed.
    capfd.readouterr()
    assert hunt([mutant("a - b"), mutant("a * b")], project, out) == found
    assert capfd.readouterr().out == ""
    test = project / "test_sums.py"
    test.write_text(test.read_text().replace("add(2, 2) == 4", "add(2, 3) == 5"))
    found = hunt([mutant("a * b")], project, out)
    assert [r["outcome"] for r in found] == ["killed"]
    assert len(json.loads(out.read_text())) == 2


def test_tests_that_fail_anyway_kill_nothing(project, tmp_path, monkeypatch):
    monkeypatch.setattr("mutate.START", "spawn")
    test = project / "test_sums.py"
    test.write_text(test.read_text().replace("== 4", "== 5"))
    with pytest.raises(SystemExit, match="fail without any mutant: FAILED test_sums"):
        hunt([mutant("a - b")], project, tmp_path / "results.json")


def test_the_project_has_its_links():
    assert all(
        Path(ROOT, "dcase", name).is_symlink() for name in ("cli", "md_runs", "pinn", "potentials")
    )
