"""The options of ``dcase active-learn``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dcase.cli.options import (
    Number,
    count,
    device_option,
    dtype_option,
    out_folder,
    overwrite_option,
    positive,
    quiet_option,
    resume_option,
    section,
    seed_option,
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
    count(
        "--initial",
        least=2,
        help="First frames: so many of --data, drawn at random (default: all), or copies of "
        "--structure (default: 20).",
    ),
    positive(
        "--rattle",
        default=0.1,
        help="Standard deviation of the coordinates of the last copy, A; earlier ones have less.",
    ),
    out_folder("Folder for everything that is made; ensemble.pt in it is the result.", "active"),
    resume_option("Go on where it stopped; --rounds may be more, and all else must be the same."),
    overwrite_option(),
    quiet_option("Print the result only."),
    section(
        "Loop",
        count(
            "--rounds",
            default=_DEFAULT.rounds,
            least=0,
            help="Times that frames are sampled, chosen and labelled.",
        ),
        count("--per-round", default=_DEFAULT.per_round, help="Frames labelled in a round."),
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
        seed_option("Of everything random.", _DEFAULT.seed),
    ),
    section(
        "Sampling",
        positive(
            "--temperature",
            default=_DEFAULT.temperatures_K,
            multiple=True,
            help="Of the Langevin dynamics, K; given several times, walkers take them in turn.",
        ),
        count(
            "--walkers",
            default=_DEFAULT.walkers,
            help="Trajectories in a round, from labelled frames drawn at random.",
        ),
        count("--steps", default=_DEFAULT.steps, help="Time steps of a walker."),
        positive("--timestep", default=_DEFAULT.timestep_fs, help="Of the dynamics, fs."),
        positive("--friction", default=_DEFAULT.friction_per_fs, help="Langevin friction, 1/fs."),
        count(
            "--frame-every",
            default=_DEFAULT.frame_every,
            help="Steps between the frames that may be chosen.",
        ),
        positive(
            "--max-uncertainty",
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
        positive(
            "--max-force",
            default=_DEFAULT.max_force_eV_A,
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
        count("--members", default=_DEFAULT.members, least=2, help="Potentials in the ensemble."),
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
        count("--epochs", help="Of every member."),
        count(
            "--training-steps",
            help="Instead of epochs: optimizer steps of a member, however many labels there are.",
        ),
        count("--batch-size", least=0, help="Frames a step."),
        positive("--lr", help="Peak learning rate."),
        positive(
            "--time-limit-per-member",
            help="Seconds of training a member; runs with it do not repeat to the last bit.",
        ),
        count(
            "--jobs",
            default=1,
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
