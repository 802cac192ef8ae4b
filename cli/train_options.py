"""The options of ``dcase train``, and what they make of a recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from typing import Any

import click

from dcase.activations import activation_names
from dcase.cli.options import (
    Decorator,
    count,
    dataclass_options,
    device_option,
    frame_count,
    hyper_parameter_options,
    out_file,
    overwrite_option,
    quiet_option,
    resume_option,
    section,
    threads_option,
)
from dcase.errors import OptionError
from dcase.own_code import is_own
from dcase.potentials.fitting.lone_atoms import e0s_text
from dcase.potentials.fitting.recipe import (
    DataChoice,
    LabelChoice,
    LossChoice,
    ModelChoice,
    Recipe,
    load_recipe,
    recipe_names,
)
from dcase.potentials.networks.registry import (
    ARCHITECTURES,
    COMMON,
    PLACEMENTS,
    VARIANTS,
    find_architecture,
)
from dcase.training.settings import TrainSettings

# Tables of the recipe whose entries are options of the same name.
_SETTINGS = {
    "data": DataChoice,
    "labels": LabelChoice,
    "loss": LossChoice,
    "training": TrainSettings,
}

_LABEL_TEXTS = {
    "rescale": "Unit C of the labels inside the network: forces (their spread), paper (the DC "
    "paper's rule), none, or a number in the file's unit.",
    "offset": "Energy kept outside the network: atomic (fitted per element), mean, atomref (of "
    "free atoms, as published, where the data come with them), or none.",
    "energy_per_atom": "Compare energies per atom.",
}
_DATA_TEXTS = {
    "augment_rotations": "Turn every training frame at random, every epoch anew: for architectures "
    "that are not invariant to rotation (forcenet).",
    "max_force": "Leave out frames with a larger force component, eV/A.",
    "drop_outliers": "Leave out frames whose labels are outliers or whose atoms lie on top of each "
    "other; without, they are named.",
}
_LOSS_TEXTS = {
    "energy_weight": "Weight of the energies; 0: train on forces only.",
    "forces_weight": "Weight of the forces; 0: train on energies only.",
    "stress_weight": "Weight of the stress, which counts times the volume of an atom; 0: not "
    "trained on.",
    "energy_loss": "l1, l2 or huber.",
    "forces_loss": "l1, l2 or huber.",
    "stress_loss": "l1, l2 or huber.",
    "huber_delta": "Where huber turns from quadratic to linear, in units of C.",
    "free_atoms": "Leave out forces on atoms that the data mark as held in place (the default), or "
    "count them like any others.",
}
_TRAINING_TEXTS = {
    "epochs": "Passes over the training set; on --resume more or fewer may be asked for.",
    "schedule": "Learning rate: constant, cosine or exponential (down to --final-lr), or plateau "
    "(times --decay after --patience validations without improvement).",
    "decay": "Factor of the plateau schedule.",
    "patience": "Validations of the plateau schedule.",
    "seed": "Of the split, the first weights and the order of the frames.",
    "time_limit": "Seconds of training, all sittings together; cosine and exponential schedules "
    "run to their end within it. Preparations and the final validation are within it, errors on "
    "test frames are not. Default: no limit.",
    "cpu_limit": "The same in CPU seconds, of all threads and processes together; of two limits "
    "the nearer one counts.",
}


TARGETS = ("energy", "forces", "energy+forces")


def target_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--target``, applied by :func:`use_target`."""
    return click.option(
        "--target",
        type=click.Choice(TARGETS),
        default=None,
        help="What to train on: sets the weights of the loss. energy: no forces, no stress; "
        "forces: no energies (their constant is fitted in the end); energy+forces: both, as the "
        "recipe weighs them. Default: as the recipe.",
    )(function)


def use_target(chosen: dict[str, Any], target: str | None) -> None:
    """Set the weights of the loss to what ``--target`` says, in place.

    Raises:
        OptionError: If weights that are given as well contradict it.
    """
    if target is None:
        return
    for name in ("energy", "forces"):
        key, wanted = f"{name}_weight", name in target.split("+")
        given = chosen[key]
        if given is not None and (given > 0) != wanted:
            raise OptionError(
                f"--target {target} and --{name}-weight {given:g} contradict each other; drop one"
            )
        if not wanted:
            chosen[key] = 0.0
    if target == "energy" and chosen["stress_weight"] is None:
        chosen["stress_weight"] = 0.0
    if target == "energy" and chosen["energy_weight"] is None:
        chosen["energy_weight"] = 1.0  # alone, its size means nothing, but clipping would see it


def _run_options(recipe: str) -> Decorator:
    """What is written where, on which frames."""
    return section(
        "Run",
        out_file(
            "Checkpoint to write; default: <molecule or file>_<activation>.pt, with "
            "the model before the activation where it is not the recipe's. Logs and the state to "
            "resume from go into a folder of that name ending in .run."
        ),
        resume_option("Go on from the last saved state."),
        overwrite_option("Replace an earlier run."),
        click.option(
            "--recipe",
            default=recipe,
            show_default=True,
            metavar="NAME|FILE",
            help=f"Every value that is not given here: {', '.join(recipe_names())}, or a "
            ".toml file.",
        ),
        frame_count("--n-train", help="Training frames: a number, or a fraction of all below 1."),
        frame_count("--n-val", help="Validation frames: a number, or a fraction of all below 1."),
        click.option(
            "--test", "test_rest", is_flag=True, help="Also evaluate on all other frames."
        ),
        click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events."),
        quiet_option("Print the result only."),
    )


def _model_options() -> Decorator:
    """Architecture and what is set of it."""
    sizes = "; ".join(f"{a.name}: {', '.join(a.sizes)}" for a in ARCHITECTURES.values())
    return section(
        "Model",
        click.option(
            "--model",
            default=None,
            help=f"Architecture: {', '.join(ARCHITECTURES)}; or your own network, FILE.py:CLASS "
            "(docs/own-network.md), which runs.",
        ),
        click.option(
            "--set",
            "assigned",
            multiple=True,
            metavar="NAME=VALUE",
            help="Hyper-parameter of your own network (repeatable).",
        ),
        click.option("--size", default=None, help=f"Preset ({sizes})."),
        click.option(
            "--activation",
            default=None,
            help=f"original (the architecture's own), {', '.join(activation_names())}; or your "
            "own, FILE.py:CLASS.",
        ),
        click.option(
            "--variant",
            type=click.Choice(VARIANTS),
            default=None,
            help="paper: the published implementation to the letter, defects included.",
        ),
        click.option(
            "--placement",
            type=click.Choice(PLACEMENTS),
            default=None,
            help="Where the activation goes: where the DC paper put IReLU, or everywhere.",
        ),
        click.option(
            "--denormalize/--keep-normalization",
            "denormalize",
            default=None,
            help="Take BatchNorm layers out, or keep them; default: out, but kept in the "
            "paper variant.",
        ),
        click.option(
            "--initialization",
            default=None,
            help="default (the architecture's own) or lsuv (unit variance on a batch).",
        ),
        hyper_parameter_options,
    )


def training_options(
    function: Callable[..., Any] | None = None, *, recipe: str = "default"
) -> Callable[..., Any]:
    """Everything but the data; the command gets it as ``chosen: dict``.

    Args:
        function: The command.
        recipe: Where values come from that are not given.
    """
    if function is None:
        return functools.partial(training_options, recipe=recipe)

    @functools.wraps(function)
    def wrapper(**given: Any) -> Any:
        own = {name: given.pop(name) for name in list(given) if name in data_options}
        return function(chosen=given, **own)

    command: Callable[..., Any] = wrapper
    data_options = {p.name for p in getattr(function, "__click_params__", [])}
    groups = [
        _run_options(recipe),
        _model_options(),
        section(
            "Labels and loss",
            dataclass_options(LabelChoice, texts=_LABEL_TEXTS),
            click.option(
                "--e0s",
                default=None,
                metavar="H=-13.6,...|FILE|isolated",
                help="Energies of isolated atoms in eV, which the potential then has exactly: "
                "given, from a file, or from frames of one atom in the data (used by themselves "
                "if there is one of every element). Instead of --offset.",
            ),
            dataclass_options(DataChoice, texts=_DATA_TEXTS),
            dataclass_options(LossChoice, texts=_LOSS_TEXTS),
        ),
        section("Training", dataclass_options(TrainSettings, texts=_TRAINING_TEXTS)),
        section(
            "Machine",
            device_option,
            threads_option,
            count("--devices", default=1, help="Processes on each node (GPUs, or CPU processes)."),
            count(
                "--num-nodes",
                default=1,
                help="Nodes, when started on each of them by torchrun.",
            ),
        ),
    ]
    for group in reversed(groups):
        command = group(command)
    return command


def chosen_recipe(chosen: dict[str, Any]) -> Recipe:
    """The recipe with the options on top.

    Raises:
        OptionError: If there is no such recipe, or a value is impossible.
        DcaseError: If the file of energies of isolated atoms cannot be read.
    """
    values: dict[str, Any] = {
        **_assigned(chosen.get("assigned") or ()),
        "model.architecture": chosen["model"],
        "model.size": chosen["size"],
        "model.activation": chosen["activation"],
        "model.variant": chosen["variant"],
        "model.placement": chosen["placement"],
        "model.denormalize": chosen["denormalize"],
        "model.initialization": chosen["initialization"],
    }
    for table, cls in _SETTINGS.items():
        settings: Any = cls
        values.update({f"{table}.{f.name}": chosen[f.name] for f in fields(settings)})
    if chosen.get("e0s") is not None:
        if chosen["offset"] is not None:
            raise OptionError("--e0s and --offset exclude each other")
        values["labels.offset"] = e0s_text(chosen["e0s"])
    for architecture in ARCHITECTURES.values():
        for key in architecture.hyper_parameters():
            if key not in COMMON and values.get(f"model.{key}") is None:
                values[f"model.{key}"] = chosen[key]
    known = {f"model.{f.name}" for f in fields(ModelChoice)}
    recipe = load_recipe(
        chosen["recipe"], {k: v for k, v in values.items() if v is not None or k in known}
    )
    if is_own(recipe.model.architecture):
        _check_own(recipe, chosen)
    return recipe


def _assigned(given: Iterable[str]) -> dict[str, Any]:
    """What ``--set`` says."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise OptionError(f"--set {text}: write NAME=VALUE")
        words: dict[str, Any] = {"true": True, "false": False}
        for kind in (int, float):
            with suppress(ValueError):
                words.setdefault(value.strip().lower(), kind(value))
        found[f"model.{name}"] = words.get(value.strip().lower(), value)
    return found


def _check_own(recipe: Recipe, chosen: dict[str, Any]) -> None:
    """Refuse what was asked of the user's own network and it does not have.

    Raises:
        OptionError: Saying what it has.
    """
    architecture = find_architecture(recipe.model.architecture)
    known = architecture.hyper_parameters()
    if chosen["size"] is not None:
        raise OptionError(f"--size: {architecture.name} has no presets; --set NAME=VALUE")
    for name in ("activation", "variant", "placement"):
        if chosen[name] is not None and name not in known:
            raise OptionError(
                f"--{name}: {architecture.name} has no hyper-parameter {name!r}; "
                f"it has: {', '.join(known)}"
            )
