"""Options shared by commands, some of them derived from the dataclasses they fill."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def attribute_help(cls: type) -> dict[str, str]:
    """The texts of a docstring's ``Attributes:`` section, by name, without markup."""
    text = inspect.getdoc(cls) or ""
    _, _, section = text.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        match = re.match(r"    (\w+): (.*)", line)
        if match:
            name, found[match[1]] = match[1], match[2]
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
        elif line.strip():
            break
    return {key: re.sub(r"``\"?(.*?)\"?``", r"\1", value) for key, value in found.items()}


def dataclass_options(cls: type, *, skip: tuple[str, ...] = ()) -> Decorator:
    """An option for every field of a settings dataclass; its default, None, means "as the recipe"."""
    texts = attribute_help(cls)
    hints = typing.get_type_hints(cls)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(fields(cls)):
            if field.name in skip:
                continue
            kind = _plain_type(hints[field.name])
            flag = "--" + field.name.replace("_", "-")
            declared = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
            function = click.option(
                declared, field.name, type=kind, default=None, help=texts.get(field.name)
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
    from dcase.potentials.registry import ARCHITECTURES

    kinds: dict[str, type] = {}
    owners: dict[str, list[str]] = {}
    for name, architecture in ARCHITECTURES.items():
        for key, default in architecture.hyper_parameters().items():
            if key != "activation":
                kinds[key] = type(default)
                owners.setdefault(key, []).append(name)
    for key in reversed(kinds):
        function = click.option(
            "--" + key.replace("_", "-"),
            key,
            type=kinds[key],
            default=None,
            help=f"Hyper-parameter of {', '.join(owners[key])}.",
        )(function)
    return function


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
