"""An option that several commands have is defined once, and means one thing."""

import ast
from collections import Counter
from pathlib import Path

import click
import pytest

import dcase.cli
from dcase.cli.main import main
from dcase.cli.options import FrameCount

FOLDER = Path(dcase.cli.__file__).resolve().parent
SHARED = (
    "--data-dir", "--device", "--dtype", "--energy-key", "--forces-key", "--labels",
    "--optimize/--no-optimize", "--overwrite", "--quiet", "--resume", "--seed", "--threads",
)  # fmt: skip


def declared():
    """``(file, flag)`` of every ``click.option("--flag", ...)``."""
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "click.option":
                found.append((path.name, getattr(node.args[0], "value", "")))
    return found


def commands(command=main, path=()):
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))
    else:
        yield " ".join(path), command


def test_shared_options_are_declared_in_one_place():
    elsewhere = [(file, flag) for file, flag in declared() if flag in SHARED]
    assert [one for one in elsewhere if one[0] != "options.py"] == []
    assert max(Counter(flag for _, flag in elsewhere).values()) == 1


@pytest.mark.parametrize("flag", ["--threads", "--device", "--data-dir", "--optimize"])
def test_they_read_the_same_everywhere(flag):
    texts = {
        option.help
        for _, command in commands()
        for option in command.params
        if isinstance(option, click.Option) and flag in option.opts
    }
    assert len(texts) == 1


def test_every_quiet_has_its_letter():
    quiet = [o for _, c in commands() for o in c.params if "--quiet" in o.opts]
    assert len(quiet) > 30
    assert all("-q" in option.opts for option in quiet)


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("1", 1), ("1.0", 1), ("0.25", 0.25), ("1e3", 1000)]
)
def test_one_is_a_frame_and_less_is_a_share(text, count):
    found = FrameCount().convert(text, None, None)
    assert (found, type(found)) == (count, type(count))


@pytest.mark.parametrize("text", ["1.5", "-0.5", "-1", "nan", "inf", "all"])
def test_what_is_no_number_of_frames(text):
    with pytest.raises(click.BadParameter, match="neither a number of frames nor a fraction"):
        FrameCount().convert(text, None, None)
