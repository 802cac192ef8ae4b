"""Numbers that no run can use are refused in one line that says the limit."""

import math
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
import pytest

from dcase import options
from dcase.cli.options import limit_numbers
from dcase.errors import OptionError
from dcase.options import check_memory, check_size, check_types, memory


@dataclass
class Settings:
    steps: int = 1
    rate: float = 0.5
    seed: int = 0
    table: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_types(self)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("steps", 10**12 + 1, "steps must be at most 1e.12, got 1000000000001"),
        ("steps", -(10**13), "steps must be at most"),
        ("steps", 10**4000, "got a number of 13288 bits"),
        ("steps", math.inf, "steps must be a whole number, got inf"),
        ("rate", math.inf, "rate must be a finite number, got inf"),
        ("rate", math.nan, "rate must be a finite number, got nan"),
        ("rate", 10**400, "rate must be at most"),
        ("rate", "x" * 5000, r"got 'x{199}\.\.\."),
        ("seed", 2**63, "seed must be at most 9e.18"),
        ("table", {"widths": [64, 10**13]}, r"table\.widths must be at most"),
        ("table", {"a": {"b": math.nan}}, r"table\.a\.b must be a finite number"),
    ],
)
def test_absurd_settings_are_refused(name, value, why):
    with pytest.raises(OptionError, match=why) as caught:
        Settings(**{name: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_everything_up_to_the_limits_passes():
    Settings(steps=10**12, rate=1e200, seed=2**63 - 1, table={"a": ["inf", True, None, -1e15]})
    check_size("x", np.float64(1e15))
    with pytest.raises(OptionError, match="x must be at most 1e.15, got -1.1e.15"):
        check_size("x", -1.1e15)
    with pytest.raises(OptionError, match="finite"):
        check_size("x", np.float32("nan"))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--steps", "9" * 19], "--steps must be at most 1e+12"),
        (["--rate", "1e400"], "--rate must be a finite number, got inf"),
        (["--rate", "nan"], "--rate must be a finite number"),
        (["--several", "1", "--several", "1e20"], "--several must be at most 1e+15"),
        (["--odd", "1e20"], "--odd must be at most"),
        ([str(10**20)], "place must be at most"),
    ],
)
def test_every_option_and_argument_of_every_command_is_limited(arguments, why):
    @click.group()
    def group():
        pass

    def called_after(ctx, param, value):
        assert value == 3.0
        return "callback"

    @group.command()
    @click.argument("place", type=int, default=1)
    @click.option("--steps", type=click.IntRange(min=1))
    @click.option("--rate", type=float)
    @click.option("--several", type=float, multiple=True)
    @click.option("--odd", type=float, callback=called_after)
    def command(**found):
        return found

    limit_numbers(group)
    limit_numbers(group)  # of a command that is looked up again
    with pytest.raises(click.BadParameter) as caught:
        group(["command", *arguments], standalone_mode=False)
    assert why in caught.value.message
    found = group(["command", "--steps", "5", "--odd", "3"], standalone_mode=False)
    assert (found["steps"], found["odd"]) == (5, "callback")


def test_memory_is_compared_with_what_the_machine_has(monkeypatch):
    monkeypatch.setattr(options, "memory", lambda: 8e9)
    check_memory(7.9e9, "x")
    with pytest.raises(OptionError, match="5 replicas would need at least 8.1 GB .* has 8 GB"):
        check_memory(8.1e9, "5 replicas")


def test_this_machine_has_memory():
    assert 1e8 < memory() < 1e15
