"""Options shared by commands, some of them derived from the dataclasses they fill."""

from __future__ import annotations

import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from dcase.errors import OptionError
from dcase.files import check_writable
from dcase.options import check_size

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


# ---------------------------------------------------------------------------------------------
# Values


class Number(click.FloatRange):
    """A finite number in a range; click's own lets NaN through, as NaN compares with nothing."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert and check."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def limit_numbers(command: click.Command) -> None:
    """Have a command, and those below it, refuse numbers that nothing can be done with.

    Whatever the type of a parameter: what it makes of the text goes through
    :func:`dcase.options.check_size`.
    """
    for parameter in command.params:
        if not isinstance(parameter.callback, _Limited):
            parameter.callback = _Limited(parameter.callback)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            limit_numbers(below)


class _Limited:
    """A parameter's callback that checks the size of numbers first."""

    def __init__(self, then: Callable[..., Any] | None):
        self.then = then

    def __call__(self, ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        name = max(param.opts, key=len) if param.param_type_name == "option" else param.name
        try:
            check_size(name or "value", value)
        except OptionError as error:
            raise click.BadParameter(str(error), ctx, param) from error
        return value if self.then is None else self.then(ctx, param, value)


POSITIVE = Number(min=0.0, min_open=True)


class FrameCount(click.ParamType):
    """A number of frames, or a share of all frames below 1."""

    name = "number|fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """An int, or a float between 0 and 1."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if 0.0 < number < 1.0:
            return number
        if not math.isfinite(number) or number < 0.0 or number != int(number):
            self.fail(
                f"{value!r} is neither a number of frames nor a fraction below 1.", param, ctx
            )
        return int(number)


# ---------------------------------------------------------------------------------------------
# Help


def attribute_help(cls: Any, section: str = "Attributes") -> dict[str, str]:
    """The texts of a docstring's ``Attributes:`` (or other) section, by name, without markup."""
    text = inspect.getdoc(cls) or ""
    _, _, body = text.partition(f"{section}:\n")
    found: dict[str, str] = {}
    name = ""
    for line in body.splitlines():
        match = re.match(r"    (\w+): (.*)", line)
        if match:
            name, found[match[1]] = match[1], match[2]
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
        elif line.strip():
            break
    return {key: _plain_text(value) for key, value in found.items()}


def _plain_text(text: str) -> str:
    """A docstring's sentence as a reader of ``--help`` wants it."""
    text = re.sub(r"[;,]? ?[Ss]ee :\w+:`[^`]*`[^.;]*", "", text)  # no use without the code
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    text = re.sub(r"``\"?(.*?)\"?``", r"\1", text)
    return text.replace("None: none", "default: none").strip()


class SectionedCommand(click.Command):
    """A command whose ``--help`` lists its options under headings (see :func:`section`)."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options without a heading first, then heading by heading."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                heading = getattr(parameter, "section", "Options")
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def section(heading: str, *decorators: Decorator) -> Decorator:
    """Several options as one decorator, in this order, under a heading of the help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            before = len(getattr(function, "__click_params__", []))
            function = decorator(function)
            for parameter in function.__click_params__[before:]:  # type: ignore[attr-defined]
                parameter.section = heading
        return function

    return decorate


def parameters_under(heading: str, *decorators: Decorator) -> list[click.Parameter]:
    """The same options as parameters, for a command made of another one's."""

    def declared() -> None: ...

    decorated: Any = section(heading, *decorators)(declared)
    return list(reversed(decorated.__click_params__))


# ---------------------------------------------------------------------------------------------
# Options


def dataclass_options(
    cls: type, *, texts: dict[str, str] | None = None, leave_out: Collection[str] = ()
) -> Decorator:
    """An option for every field of a settings dataclass; its default, None, means "as the recipe".

    Args:
        cls: The dataclass.
        texts: Help of fields whose docstring does not suit the command line.
        leave_out: Fields without an option.
    """
    help_of = {**attribute_help(cls), **(texts or {})}
    hints = typing.get_type_hints(cls)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed([f for f in fields(cls) if f.name not in leave_out]):
            kind = _plain_type(hints[field.name])
            flag = "--" + field.name.replace("_", "-")
            declared = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
            function = click.option(
                declared, field.name, type=kind, default=None, help=help_of.get(field.name)
            )(function)
        return function

    return decorate


def _plain_type(hint: Any) -> type:
    """``float`` for ``float | None`` and ``str`` for ``str | float``."""
    if isinstance(hint, types.UnionType):
        options = [t for t in typing.get_args(hint) if t is not type(None)]
        return str if str in options else options[0]
    return hint


def hyper_parameter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """An option for every hyper-parameter of every architecture."""
    from dcase.potentials.networks.registry import ARCHITECTURES, COMMON

    kinds: dict[str, type] = {}
    texts: dict[str, list[str]] = {}
    for name, architecture in ARCHITECTURES.items():
        meanings = attribute_help(architecture.build, "Args")
        for key, default in architecture.hyper_parameters().items():
            if key in COMMON:
                continue
            kinds.setdefault(key, type(default))
            presets = ", ".join(
                f"{size} {values[key]}"
                for size, values in architecture.sizes.items()
                if key in values
            )
            meaning = meanings.get(key, "").rstrip(".")
            texts.setdefault(key, []).append(
                f"{meaning} ({name}: {presets or default})" if meaning else f"Of {name}."
            )
    for key in reversed(kinds):
        function = click.option(
            "--" + key.replace("_", "-"),
            key,
            type=kinds[key],
            default=None,
            help="; ".join(texts[key]),
        )(function)
    return function


def count(flag: str, *names: str, default: Any = None, least: int = 1, **more: Any) -> Decorator:
    """An option that takes a whole number of at least ``least``; a default is shown."""
    return _shown(flag, *names, type=click.IntRange(min=least), default=default, **more)


def positive(flag: str, *names: str, default: Any = None, **more: Any) -> Decorator:
    """An option that takes a finite number above zero; a default is shown."""
    return _shown(flag, *names, type=POSITIVE, default=default, **more)


def _shown(*names: str, default: Any = None, **more: Any) -> Decorator:
    return click.option(*names, default=default, show_default=default is not None, **more)


def out_folder(text: str, default: str | None = None) -> Decorator:
    """``--out``, a folder."""
    return _shown("--out", type=click.Path(file_okay=False), default=default, help=text)


def out_file(text: str, default: str | None = None) -> Decorator:
    """``--out``, a file."""
    return _shown("--out", type=click.Path(dir_okay=False), default=default, help=text)


def json_option(text: str = "Write the figures to this file.") -> Decorator:
    """``--json``, passed as ``json_file``."""
    return click.option("--json", "json_file", type=click.Path(dir_okay=False), help=text)


def resume_option(text: str = "Go on with a run that was stopped.") -> Decorator:
    """``--resume``."""
    return click.option("--resume", is_flag=True, help=text)


def overwrite_option(text: str = "Replace an earlier run in --out.") -> Decorator:
    """``--overwrite``."""
    return click.option("--overwrite", is_flag=True, help=text)


def quiet_option(text: str = "Show no progress.") -> Decorator:
    """``--quiet``."""
    return click.option("--quiet", "-q", is_flag=True, help=text)


def seed_option(
    text: str = "Of everything random.", default: int | None = 0, most: int | None = None
) -> Decorator:
    """``--seed``, up to ``most``."""
    kind = click.IntRange(0, most)
    return _shown("--seed", type=kind, default=default, help=text)


def labels_option(text: str = "Label set, where a file holds both.") -> Decorator:
    """``--labels``."""
    return click.option("--labels", type=click.Choice(["md17", "rmd17"]), help=text)


def reading_options(
    function: Callable[..., Any] | None = None, *, labels: bool = True, keys: bool = True
) -> Any:
    """How a file of labelled frames is to be read; the command gets ``reading: Reading``.

    Args:
        function: The command.
        labels: Whether it takes ``--labels``.
        keys: Whether it takes ``--energy-key``, ``--forces-key`` and what is about stress.
    """
    if function is None:
        return functools.partial(reading_options, labels=labels, keys=keys)
    from dcase.data.frames import Reading
    from dcase.units import ENERGY_UNITS, LENGTH_UNITS, STRESS_UNITS

    flags = {
        "energy_unit": f"Unit of energies: {', '.join(ENERGY_UNITS)}. Default: what the file says, "
        "else eV (an .npz that does not say: kcal/mol).",
        "length_unit": f"Unit of positions and cells: {', '.join(LENGTH_UNITS)}. Default: A.",
        "forces_unit": "Unit of forces, e.g. Hartree/Bohr; with a minus in front, the file holds "
        "gradients. Default: from the units of energy and length.",
        "theory": "Level of theory of the labels, for reports and checkpoints.",
    }
    if keys:
        flags = {
            "energy_key": "Key of the energy in the file (not for .npz).",
            "forces_key": "Key of the forces in the file (not for .npz).",
            "stress_key": "Key of the stress, positive in tension as in ASE, Voigt (xx, yy, zz, "
            "yz, xz, xy) or 3x3. Default: REF_stress, REF_virials, or where ASE puts it.",
            "virial_key": "Key of virials instead, in the unit of energies: -stress * volume.",
            **flags,
            "stress_unit": f"Unit of the stress: {', '.join(STRESS_UNITS)}; with a minus in front "
            "(-kbar, as in VASP's OUTCAR) compression is positive in the file. Default: from the "
            "units of energy and length.",
        }
    if labels:
        flags = {"labels": "Label set, where an .npz holds both.", **flags}

    @functools.wraps(function)
    def wrapper(**given: Any) -> Any:
        return function(reading=Reading(**{k: given.pop(k) for k in flags}), **given)

    command: Any = wrapper
    for name, text in reversed(flags.items()):
        kind = click.Choice(["md17", "rmd17"]) if name == "labels" else None
        metavar = {"theory": "TEXT", "labels": None}.get(name, name.split("_")[-1].upper())
        option = click.option(
            "--" + name.replace("_", "-"), name, type=kind, metavar=metavar, help=text
        )
        command = option(command)
    return command


def limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--time-limit`` and ``--cpu-limit`` of a training."""
    command = positive("--cpu-limit", metavar="SECONDS", help="The same in CPU seconds.")(function)
    text = "Seconds of training, over all sittings."
    return positive("--time-limit", metavar="SECONDS", help=text)(command)


def limits_text(settings: Any, each: str = "") -> str:
    """``", at most 60 s"``, or nothing.

    Args:
        settings: With ``time_limit`` and ``cpu_limit``.
        each: Of what: ``" a fold"``.
    """
    limits = ((settings.time_limit, "s"), (settings.cpu_limit, "CPU s"))
    said = [f"{limit:g} {unit}" for limit, unit in limits if limit]
    return f", at most {' or '.join(said)}{each}" if said else ""


def frame_count(flag: str, *names: str, **more: Any) -> Decorator:
    """An option that takes a number of frames, or a share of all (:class:`FrameCount`)."""
    return click.option(flag, *names, type=FrameCount(), default=None, **more)


def data_dir_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--data-dir``."""
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False),
        help="Where downloads are kept; default: the user's cache folder.",
    )(function)


def structure_option(*names: str, **more: Any) -> Decorator:
    """``--structure``."""
    text = "Structure file or molecule name; default: what the potential was trained on."
    return click.option("--structure", *names, help=text, **more)


def optimize_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--optimize/--no-optimize``; None where neither is given."""
    return click.option(
        "--optimize/--no-optimize",
        default=None,
        help="Evaluate the potential in its compiled form: by default where that is the same "
        "function; --optimize: also where it has to be tabulated for it.",
    )(function)


def dtype_option(default: str) -> Decorator:
    """``--dtype``."""
    return click.option(
        "--dtype",
        type=click.Choice(["float32", "float64"]),
        default=default,
        show_default=True,
        help="Precision of the network; geometry and energy sums are float64 always.",
    )


def code_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--code``, applied for as long as the command runs."""

    def use(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
        from dcase.own_code import named_code

        ctx.with_resource(named_code(value))

    return click.option(
        "--code",
        multiple=True,
        expose_value=False,
        callback=use,
        metavar="FILE.py",
        help="Code of your own that the checkpoint was made with (network, activation); nothing "
        "runs that is not named. FILE.py@DIGEST accepts a file that has changed since.",
    )(function)


def device_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--device``."""
    return click.option(
        "--device",
        default=None,
        metavar="NAME",
        help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.",
    )(function)


def threads_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--threads``, applied by :func:`use_threads`."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=None,
        help="CPU threads; default: PyTorch's choice.",
    )(function)


def use_threads(threads: int | None) -> None:
    """Set PyTorch's threads for this process, if asked to."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def refuse_both(resume: bool, overwrite: bool) -> None:
    """Refuse ``--resume`` together with ``--overwrite``.

    Raises:
        UsageError: If both are given.
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")


def check_outputs(json_file: str | None, plot: str | None, what: str) -> None:
    """Refuse, before any work, a JSON file or picture that cannot be written.

    Args:
        json_file: Of ``--json``.
        plot: Of ``--plot``; has to end in .png.
        what: What to say of another ending, e.g. ``"the figure is a PNG"``.

    Raises:
        OptionError: If the picture has another ending.
        DcaseError: If one cannot be written.
    """
    if json_file:
        check_writable(json_file)
    if plot:
        if Path(plot).suffix.lower() != ".png":
            raise OptionError(f"--plot {plot}: {what}; name it FILE.png")
        check_writable(plot)
