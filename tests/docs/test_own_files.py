"""The table of docs/own-files.md names tests that exist, each of them once at least."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "own-files.md").read_text()


def test_every_test_that_is_named_exists():
    named = dict(re.findall(r"^\| (\d+) \| `(\S+)` \|$", TEXT, flags=re.M))
    assert len(named) > 30
    for path, test in (name.split("::") for name in named.values()):
        assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), flags=re.M), test
    table = TEXT[TEXT.index("| | data |") : TEXT.index("| | test |")]
    used = set(re.findall(r"\d+", table))
    assert used == set(named)
