"""The options of ``dcase reproduce``, and what is wrong with them at first sight."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

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
from dcase.errors import OptionError
from dcase.potentials.experiments.protocol import OC22_FRAMES, PAPER_FRAMES, SETTINGS
from dcase.potentials.fitting.recipe import load_recipe, recipe_names
from dcase.potentials.networks.registry import (
    ARCHITECTURES,
    VARIANTS,
    get_architecture,
    resolve_hyper_parameters,
)

Chosen = dict[str, Any]


def experiment_options(*, molecules: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """The options all experiments share; the command gets them as ``chosen: dict``."""
    several: list[Callable[..., Any]] = []
    if molecules:
        several.append(
            click.option(
                "--molecule",
                "-m",
                "molecules",
                multiple=True,
                help="MD17 molecule; may be repeated. Default: all of the experiment.",
            )
        )
    several += [
        click.option("--model", "models", multiple=True, help="Architecture; may be repeated."),
        click.option(
            "--setting",
            "settings",
            multiple=True,
            type=click.Choice(list(SETTINGS)),
            help="Rows instead of the experiment's own; may be repeated.",
        ),
        click.option(
            "--source",
            default="auto" if molecules else None,
            show_default=molecules,
            metavar="auto|md17|rmd17|xtb|FILE" if molecules else "DIR|FILE",
            help="Where the frames come from; {molecule} in a file name stands for the molecule. "
            "xtb samples other molecules than aspirin and ethanol first, which takes an hour each."
            if molecules
            else "Needed: a folder with OC22's LMDBs (train/, val_ood/), or a file of frames.",
        ),
        count(
            "--train",
            help=f"Training frames; default {PAPER_FRAMES[0]:,}, or 80 % of what there is."
            if molecules
            else f"Training frames; default: all, at most {OC22_FRAMES:,}.",
        ),
        count("--epochs", help="Default: 50."),
        positive(
            "--budget",
            metavar="MINUTES",
            help="Minutes for all runs of the experiment together. A run's share depends on how "
            "many there are; for runs that several commands are to share, use --time-limit.",
        ),
        positive("--time-limit", metavar="SECONDS", help="The same, for each run."),
        click.option(
            "--size",
            default=None,
            help="Preset of the networks; default: paper, and md17 under --budget or --time-limit.",
        ),
        click.option(
            "--variant",
            type=click.Choice(VARIANTS),
            default="paper",
            show_default=True,
            help="The published implementations, or dcase's corrected ones.",
        ),
        click.option(
            "--recipe",
            default="paper",
            show_default=True,
            metavar="NAME|FILE",
            help=f"Loss, optimizer, schedule: {', '.join(recipe_names())}, or a .toml file.",
        ),
        positive("--lr", help="Instead of the recipe's."),
        count("--batch-size", help="The same, frames."),
        seed_option("Of splits, first weights and the order of the frames."),
        out_folder("Folder for runs, tables and figures.", "reproduce"),
        quiet_option("Print the table only."),
        device_option,
        threads_option,
    ]
    if molecules:
        several[4:4] = [
            click.option(
                "--test-source",
                default=None,
                metavar="FILE",
                help="Test frames from another file than --source.",
            ),
            labels_option(),
        ]

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def wrapper(**chosen: Any) -> Any:
            _refuse_mistakes(chosen)
            return function(chosen=chosen)

        command: Any = wrapper
        for option in reversed(several):
            command = option(command)
        return command

    return decorate


def _refuse_mistakes(chosen: Chosen) -> None:
    """What can be known to be wrong before any frame is read, downloaded or sampled.

    Raises:
        OptionError: If there is such a thing.
    """
    if chosen["budget"] and chosen["time_limit"]:
        raise OptionError("--budget and --time-limit exclude each other")
    load_recipe(chosen["recipe"])
    for name in chosen["models"] or ARCHITECTURES:
        architecture = get_architecture(name)
        if chosen["size"]:
            resolve_hyper_parameters(architecture.name, chosen["size"], {})
