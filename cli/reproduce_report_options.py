"""The options of ``dcase reproduce report-*``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console

from dcase.cli.options import (
    count,
    device_option,
    labels_option,
    out_folder,
    positive,
    quiet_option,
    seed_option,
    threads_option,
)

Chosen = dict[str, Any]
RECIPES = ("schnet-report", "default")


def report_options(*more: Any, systems: str) -> Callable[[Callable[..., Any]], Any]:
    """The options of all of them; the command gets them as ``chosen: dict``.

    Args:
        *more: Options of its own.
        systems: What is used without ``--molecule``, for its help.
    """
    common = (
        click.option(
            "--molecule",
            "-m",
            "molecules",
            multiple=True,
            help=f"MD17 molecule, qm9 or iso17; may be repeated. Default: {systems}.",
        ),
        click.option(
            "--source",
            "sources",
            multiple=True,
            default=("auto",),
            metavar="auto|md17|rmd17|xtb|FILES",
            help="MD17's frames. In file names {molecule} stands for the molecule, * for anything; "
            "all files found are read, frames that occur twice once. May be repeated. Default: "
            "auto.",
        ),
        labels_option(),
        click.option(
            "--qm9-source",
            default=None,
            metavar="auto|qm9pack|figshare|PATH",
            help="QM9. Default: the package qm9pack or the cache, if one is there.",
        ),
        click.option("--iso17-source", default=None, metavar="auto|DIR|FILE", help="ISO17."),
        click.option(
            "--recipe",
            "recipes",
            multiple=True,
            default=RECIPES,
            metavar="NAME|FILE",
            help="Columns of ours; may be repeated. schnet-report: the report's protocol, but for "
            "the energy offset; schnet-report-total: without it, as the report; default: dcase's "
            "own (for QM9: qm9). Default: schnet-report and default.",
        ),
        count("--train", help="Training frames; default: as many as the report, or what there is."),
        count(
            "--test", help="Test frames; default: as many as the report, at most a fifth of all."
        ),
        count(
            "--epochs",
            help="Default: so many that there are as many optimiser steps as in the report.",
        ),
        positive(
            "--time-limit",
            metavar="SECONDS",
            help="For each run. By the report's protocol at most the report's steps are made; by "
            "other recipes as many as there is time for.",
        ),
        seed_option("Of splits, first weights and the order of the frames."),
        *_file_options(),
        device_option,
    )

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def wrapper(**chosen: Any) -> Any:
            return function(chosen)

        command: Any = wrapper
        for option in reversed((*more, *common)):
            command = option(command)
        return command

    return decorate


def _file_options() -> tuple[Any, ...]:
    return (
        out_folder("Folder for runs, tables and figures.", "reproduce"),
        quiet_option("Print the table only."),
        threads_option,
    )


def with_files(function: Callable[..., Any]) -> Any:
    """``--out``, ``--quiet`` and ``--threads``, as the command's own arguments."""
    for option in reversed(_file_options()):
        function = option(function)
    return function


def warn(line: str) -> None:
    """For the loaders of data."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"WARNING: {line}", style="bold yellow", markup=False)
