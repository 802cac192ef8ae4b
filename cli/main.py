"""The ``dcase`` command: one group, its commands loaded only when used."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import click

from dcase._version import __version__
from dcase.errors import (
    ApartWarning,
    DcaseError,
    ElectronsWarning,
    KernelWarning,
    NetworkWarning,
    PaperVariantWarning,
)

_OURS = (ApartWarning, ElectronsWarning, KernelWarning, NetworkWarning, PaperVariantWarning)

# name -> (module, attribute, one line for --help); imported when the command runs, so that
# ``dcase --help`` does not wait for torch.
COMMANDS = {
    "train": ("dcase.cli.train", "train", "Train a potential (md17, qm9, iso17, oc22, xyz)."),
    "cross-validate": (
        "dcase.cli.cross_validate",
        "command",
        "Train one potential a fold; together they are an ensemble.",
    ),
    "compare": (
        "dcase.cli.compare",
        "command",
        "Does it help? Variants of a training, with several seeds, side by side.",
    ),
    "md": ("dcase.cli.md", "md", "Run molecular dynamics and report the energy drift."),
    "active-learn": (
        "dcase.cli.active_learn",
        "active_learn",
        "Sample with an ensemble, label what it is least sure of, retrain.",
    ),
    "relax": ("dcase.cli.relax", "relax", "Relax a structure."),
    "bench": ("dcase.cli.bench", "bench", "Time simulations on this machine, part by part."),
    "evaluate": ("dcase.cli.evaluate", "evaluate", "Errors of a potential on labelled frames."),
    "baseline": ("dcase.cli.baseline", "baseline", "Errors of the simplest models, to beat."),
    "check": ("dcase.cli.check", "check", "Check that a potential obeys the physics it should."),
    "info": ("dcase.cli.info", "info", "What a checkpoint holds."),
    "data": ("dcase.cli.data", "data", "List, fetch or generate training data."),
    "pinn": (
        "dcase.cli.pinn",
        "pinn",
        "Solve differential equations with networks (PINNs, PDEBench).",
    ),
    "dae": ("dcase.cli.dae", "dae", "Networks for constrained dynamics (neural DAEs)."),
    "reproduce": (
        "dcase.cli.reproduce",
        "reproduce",
        "Repeat the paper's tables and figures.",
    ),
    "quickstart": (
        "dcase.cli.quickstart",
        "quickstart",
        "Train, relax and simulate aspirin: the whole tool in a few minutes.",
    ),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of ``cmd_name``."""
        if cmd_name not in COMMANDS:
            return None
        from dcase.cli.options import limit_numbers

        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        limit_numbers(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dcase")
@click.option("--debug", is_flag=True, help="Show tracebacks; understood anywhere on the line.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Networks trained on their own derivatives, and put to work.

    \b
    Train a potential:     dcase train md17 --molecule aspirin
    Simulate with it:      dcase md --model aspirin_irelu.pt --steps 10000
    Everything at once:    dcase quickstart

    Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted (--resume goes on).
    """
    ctx.obj = {"debug": debug}


def entry_point(argv: list[str] | None = None) -> None:
    """Run the command line; errors become one line and exit status 1 (wrong usage: 2)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # --debug is understood anywhere on the line.
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    with warnings.catch_warnings():
        for category in _OURS:
            warnings.simplefilter("always", category)
        warnings.showwarning = _one_line_each(warnings.showwarning)
        _run(arguments, debug)


def _one_line_each(others: Callable[..., Any]) -> Callable[..., Any]:
    """``warnings.showwarning`` that prints ours as one line, each of them once."""
    shown = set()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, _OURS):
            others(message, category, *where, **more)
        elif str(message) not in shown:
            shown.add(str(message))
            click.echo(f"WARNING: {message}", err=True)

    return show


def _run(arguments: list[str], debug: bool) -> None:
    try:
        outcome: Any = main(
            args=[*(["--debug"] if debug else []), *arguments],
            prog_name="dcase",
            standalone_mode=False,
        )
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.Abort as error:  # click's word for Ctrl-C; the cause may say how to go on
        click.echo(f"dcase: {_one_line(error.__cause__ or error) or 'stopped'}", err=True)
        sys.exit(130)
    except click.ClickException as error:
        if isinstance(error, click.UsageError):
            error.show()
        else:
            click.echo(f"dcase: error: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except DcaseError as error:
        if debug:
            raise
        click.echo(f"dcase: error: {_one_line(error)}", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        click.echo(f"dcase: {_explain(error)}", err=True)
        sys.exit(1)
    sys.exit(outcome if isinstance(outcome, int) else 0)


def _explain(error: Exception) -> str:
    """One line about an error that dcase did not raise itself."""
    text = _one_line(error)
    # torch says it in a RuntimeError on the CPU, and in a subclass of it on a GPU.
    memory = ("out of memory", "allocate memory", "array is too big", "Maximum allowed dimension")
    if isinstance(error, MemoryError) or any(words in text for words in memory):
        asked = re.search(r"allocate (\d+) bytes", text)
        text = f"{int(asked[1]) / 1e9:.3g} GB in one piece" if asked else text[:120]
        return f"error: not enough memory; try a smaller model or batch size ({text})"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror}"
    return (
        f"internal error: {type(error).__name__}: {text} (run again with --debug for the traceback)"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    entry_point()
