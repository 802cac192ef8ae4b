"""The options of ``dcase active-learn``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dcase.cli.options import (
    POSITIVE,
    Number,
    device_option,
    dtype_option,
    section,
    threads_option,
)
from dcase.md_runs.active.settings import STRATEGIES, ActiveSettings

_DEFAULT = ActiveSettings()

_OPTIONS = (
    click.option(
        "--data",
        type=click.Path(),
        default=None,
        help="Start from these labelled frames (.npz, extxyz, ...); their labels must be of the "
        "labeller's method.",
    ),
    click.option(
        "--structure",
        default=None,
        help="Or from a structure file or molecule name: rattled copies of it are labelled first.",
    ),
    click.option(
        "--initial",
        type=click.IntRange(min=2),
        default=None,
        help="First frames: so many of --data, drawn at random (default: all), or copies of "
        "--structure (default: 20).",
    ),
    click.option(
        "--rattle",
        type=POSITIVE,
        default=0.1,
        show_default=True,
        help="Standard deviation of the coordinates of the last copy, A; earlier ones have less.",
    ),
    click.option(
        "--out",
        type=click.Path(file_okay=False),
        default="active",
        show_default=True,
        help="Folder for everything that is made; ensemble.pt in it is the result.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on where it stopped; --rounds may be more, and all else must be the same.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out."),
    click.option("--quiet", "-q", is_flag=True, help="Print the result only."),
    section(
        "Loop",
        click.option(
            "--rounds",
            type=click.IntRange(min=0),
            default=_DEFAULT.rounds,
            show_default=True,
            help="Times that frames are sampled, chosen and labelled.",
        ),
        click.option(
            "--per-round",
            type=click.IntRange(min=1),
            default=_DEFAULT.per_round,
            show_default=True,
            help="Frames labelled in a round.",
        ),
        click.option(
            "--strategy",
            type=click.Choice(STRATEGIES),
            default=_DEFAULT.strategy,
            show_default=True,
            help="Label the frames that the members disagree about most, or (to compare) as many "
            "of the same sampling at random.",
        ),
        click.option(
            "--until-trusted",
            is_flag=True,
            help="End before the last round once no walker is stopped by its uncertainty.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=_DEFAULT.seed,
            show_default=True,
            help="Of everything random.",
        ),
    ),
    section(
        "Sampling",
        click.option(
            "--temperature",
            type=POSITIVE,
            multiple=True,
            default=_DEFAULT.temperatures_K,
            show_default=True,
            help="Of the Langevin dynamics, K; given several times, walkers take them in turn.",
        ),
        click.option(
            "--walkers",
            type=click.IntRange(min=1),
            default=_DEFAULT.walkers,
            show_default=True,
            help="Trajectories in a round, from labelled frames drawn at random.",
        ),
        click.option(
            "--steps",
            type=click.IntRange(min=1),
            default=_DEFAULT.steps,
            show_default=True,
            help="Time steps of a walker.",
        ),
        click.option(
            "--timestep",
            type=POSITIVE,
            default=_DEFAULT.timestep_fs,
            show_default=True,
            help="Of the dynamics, fs.",
        ),
        click.option(
            "--friction",
            type=POSITIVE,
            default=_DEFAULT.friction_per_fs,
            show_default=True,
            help="Langevin friction, 1/fs.",
        ),
        click.option(
            "--frame-every",
            type=click.IntRange(min=1),
            default=_DEFAULT.frame_every,
            show_default=True,
            help="Steps between the frames that may be chosen.",
        ),
        click.option(
            "--max-uncertainty",
            type=POSITIVE,
            default=None,
            metavar="X",
            help="A walker stops where the members' standard deviation of the force on an atom is "
            "larger, eV/A. Default: half of the median force on an atom in the labelled frames.",
        ),
    ),
    section(
        "Labels",
        click.option(
            "--labeller",
            default="xtb",
            show_default=True,
            metavar="xtb|MODULE:FUNCTION|FILE.py:FUNCTION",
            help="GFN2-xTB, or a function without arguments that returns an ASE calculator.",
        ),
        click.option(
            "--theory",
            default=None,
            metavar="TEXT",
            help="Level of theory of the labels, for reports; default: GFN2-xTB, or the labeller.",
        ),
        click.option(
            "--max-force",
            type=POSITIVE,
            default=_DEFAULT.max_force_eV_A,
            show_default=True,
            help="Leave out labelled frames with a larger force on an atom, eV/A.",
        ),
        click.option(
            "--test",
            type=click.Path(),
            default=None,
            help="Labelled frames on which errors are measured each round; default: the frames "
            "that the members validate on.",
        ),
    ),
    section(
        "Training",
        click.option(
            "--members",
            type=click.IntRange(min=2),
            default=_DEFAULT.members,
            show_default=True,
            help="Potentials in the ensemble.",
        ),
        click.option(
            "--validation",
            type=Number(min=0.0, max=0.9),
            default=_DEFAULT.validation,
            show_default=True,
            help="Share of the labelled frames that a member validates on.",
        ),
        click.option(
            "--recipe",
            default="default",
            show_default=True,
            metavar="NAME|FILE",
            help="Every other value of the training; see dcase train.",
        ),
        click.option("--model", default=None, help="Architecture, as in dcase train."),
        click.option("--size", default=None, help="Preset of the architecture."),
        click.option("--epochs", type=click.IntRange(min=1), default=None, help="Of every member."),
        click.option(
            "--training-steps",
            type=click.IntRange(min=1),
            default=None,
            help="Instead of epochs: optimizer steps of a member, however many labels there are.",
        ),
        click.option(
            "--batch-size", type=click.IntRange(min=0), default=None, help="Frames a step."
        ),
        click.option("--lr", type=POSITIVE, default=None, help="Peak learning rate."),
        click.option(
            "--time-limit-per-member",
            type=POSITIVE,
            default=None,
            help="Seconds of training a member; runs with it do not repeat to the last bit.",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Members trained at the same time, in processes of one thread each.",
        ),
    ),
    section("Machine", dtype_option(_DEFAULT.dtype), device_option, threads_option),
    click.option(
        "--against",
        type=click.Path(),
        multiple=True,
        metavar="FOLDER",
        help="Also draw the learning curve of another run into learning_curve.png.",
    ),
)


def active_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, in this order."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
