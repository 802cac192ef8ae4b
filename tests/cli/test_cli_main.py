"""The command itself: help, exit statuses, and what becomes of errors."""

import re
import subprocess
import sys

import click
import pytest

from dcase._version import __version__
from dcase.cli import main as cli
from dcase.cli.reproduce_pinn import TABLES as PINN_TABLES
from dcase.errors import DataError
from dcase.pinn.run import PDEBENCH
from dcase.potentials.experiments.protocol import TABLES


def commands(group=cli.main, path=()):
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            yield (*path, name), command
            if isinstance(command, click.Group):
                yield from commands(command, (*path, name))


COMMANDS = dict(commands())


def test_all_commands_are_there():
    assert {" ".join(path) for path in COMMANDS} == {
        *(
            f"{group}{name}"
            for group in ("train", "cross-validate")
            for name in ("", " md17", " xyz", " oc22", " qm9", " iso17")
        ),
        "md", "active-learn", "relax", "bench", "evaluate", "baseline", "check",
        "info", "data", "data list", "data fetch", "data generate", "data check",
        "quickstart", "reproduce",
        *(f"reproduce {name}" for name in (*TABLES, *PINN_TABLES, "figure1", "figure2")),
        "compare", "compare md17", "compare xyz",
        "pinn", "pinn train", "pinn evaluate", "pinn plot", "pinn list", "pinn compare",
        "pinn data", *(f"pinn data {name}" for name in (*PDEBENCH, "download", "info")),
        "dae", "dae train", "dae evaluate", "dae plot", "dae data",
        *(f"dae data {name}" for name in ("pendulum", "water", "info")),
        *(f"reproduce dae-figure{n}" for n in (5, 7, 8)),
        *(f"reproduce report-table{n}" for n in range(1, 8)),
        "reproduce report-figure1", "reproduce report-figure2",
        "reproduce dae-table1", "reproduce dae-table2", "reproduce dae-projection",
    }  # fmt: skip


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_reads_well(dcase, path):
    shown = dcase(*path, "--help")
    assert shown.code == 0
    assert shown.out.startswith(f"Usage: dcase {' '.join(path)}")
    # Markup of docstrings has no place in a terminal, nor have Python's words.
    assert not re.search(r"``|:\w+:`|\bNone\b", shown.out)
    assert max(map(len, shown.out.splitlines())) <= 80


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_is_explained(path):
    command = COMMANDS[path]
    assert command.help
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert [p.name for p in options if not p.help] == []


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("md",), "--temperature"),
        (("md",), "--timestep"),
        (("md",), "--friction"),
        (("md",), "--taut"),
        (("relax",), "--fmax"),
        (("data", "generate"), "--temperature"),
        (("data", "generate"), "--timestep"),
        (("data", "generate"), "--equilibrate"),
        (("data", "generate"), "--interval"),
        (("data", "generate"), "--friction"),
        (("train", "md17"), "--time-limit"),
        (("train", "md17"), "--cutoff"),
    ],
)
def test_quantities_have_units(command, option):
    (found,) = [p for p in COMMANDS[command].params if option in p.opts]
    assert re.search(r"\b(K|fs|1/fs|eV/A|A|Seconds)\b", found.help)


def test_help_and_version_without_torch():
    code = (
        "import sys; from dcase.cli.main import entry_point\n"
        "try: entry_point(sys.argv[1:])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    for flag, expected in (("--help", "Commands:"), ("--version", __version__)):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout


def test_python_m_dcase():
    done = subprocess.run(
        [sys.executable, "-m", "dcase", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.strip() == f"dcase, version {__version__}"


def test_a_closed_pipe_is_silent():
    process = subprocess.Popen(
        [sys.executable, "-m", "dcase", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()  # what `| head` does, only sooner
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1  # click's choice


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "md71"], "No such command 'md71'"),
        (["md", "--stpes", "5"], "No such option"),
        (["md", "--steps", "many"], "'many' is not a valid integer"),
        (["md", "--timestep", "nan"], "not a finite number"),
        (["md", "--temperature", "-1"], "not in the range"),
        (["md", "--ensemble", "npt"], "'npt' is not one of"),
        (["md", "--resume", "--overwrite"], "exclude each other"),
        (["evaluate", "model.pt"], "Missing argument 'DATA'"),
        (["train", "md17"], "Missing option '--molecule'"),
    ],
)
def test_wrong_usage_exits_with_2(dcase, arguments, reason):
    done = dcase(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("Usage: dcase")
    assert reason in done.err


def raising(monkeypatch, error):
    def run():
        raise error

    command = click.Command("info", callback=run)
    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: command)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("the file\n  is gone"), "dcase: error: the file is gone"),
        (MemoryError(), "dcase: error: not enough memory; "),
        (
            RuntimeError("can't allocate memory: you tried to allocate 40000000000 bytes."),
            "dcase: error: not enough memory; try a smaller model or batch size (40 GB in one",
        ),
        (ValueError("array is too big; `arr.size` is larger"), "dcase: error: not enough memory; "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "dcase: error: not enough"),
        (PermissionError(13, "Permission denied", "x.pt"), "dcase: error: x.pt: Permission denied"),
        (KeyError("scale"), "dcase: internal error: KeyError: 'scale' (run again with --debug"),
    ],
)
def test_errors_become_one_line(dcase, monkeypatch, error, line):
    raising(monkeypatch, error)
    done = dcase("info")
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith(line)
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--debug", "info"], ["info", "--debug"]])
@pytest.mark.parametrize("error", [DataError("gone"), KeyError("scale")])
def test_debug_anywhere_shows_the_traceback(monkeypatch, arguments, error):
    raising(monkeypatch, error)
    with pytest.raises(type(error)):
        cli.entry_point(arguments)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "dcase: stopped"),
        (KeyboardInterrupt("saved; run it again"), "dcase: saved; run it again"),
    ],
)
def test_ctrl_c_exits_with_130(dcase, monkeypatch, error, line):
    raising(monkeypatch, error)
    done = dcase("info")
    assert done.code == 130
    assert done.err.strip() == line
