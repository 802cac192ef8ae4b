"""What a problem is, as one fingerprint: equal for equal problems, else not.

Arrays count to the bit. What functions say (an equation's residuals, an initial state, values on a
wall) is asked at a few fixed points and counts to nine digits: the last bits are another
processor's, and a run may move to another machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcase.pinn.conditions import Condition, Initial, Placement
from dcase.pinn.derivatives.names import Named, trace
from dcase.pinn.domains import Domain
from dcase.pinn.initial import GridState
from dcase.pinn.problem import PDEProblem
from dcase.pinn.sample import Sample
from dcase.runs import fingerprint

POINTS = 32
"""Points at which conditions are asked, a condition."""


def digest(problem: PDEProblem) -> str:
    """The fingerprint of equation, domain, conditions and reference data.

    Args:
        problem: A reference that is a function is not asked: it follows from the problem.
    """
    equation, domain = problem.equation, problem.domain
    reference = problem.reference
    return fingerprint(
        problem.name,
        # An object without a repr of its own names its address.
        re.sub(r" at 0x[0-9a-fA-F]+", "", repr(equation)),
        list(equation.coordinates),
        list(equation.fields),
        _residuals(equation.residuals(_numbers(trace(equation).names))),
        {name: [float(end) for end in ends] for name, ends in domain.intervals.items()},
        list(domain.coordinates),
        [_condition(condition, domain) for condition in problem.conditions],
        {name: [float(v) for v in scale] for name, scale in problem.scales.items()},
        _sample(reference) if isinstance(reference, Sample) else None,
    )


def _sample(sample: Sample) -> list[Any]:
    """All but where it comes from."""
    return [
        sample.task,
        dict(sample.axes),
        dict(sample.fields),
        {name: [float(end) for end in ends] for name, ends in sample.domain.items()},
        {name: float(value) for name, value in sample.parameters.items()},
        list(sample.periodic),
    ]


def _condition(condition: Condition, domain: Domain) -> list[Any]:
    """Where it holds, what it knows there, and what it makes of given fields."""
    points, known = condition.place(domain, Placement(POINTS))
    given = _numbers(condition.wanted(domain), len(points))
    columns = {name: points[:, k] for k, name in enumerate(domain.coordinates)}
    asked = Named({name: columns.get(name, given[name]) for name in given})
    content = [
        type(condition).__name__,
        condition.kind,
        condition.term_names(),
        _rounded(points),
        {name: _rounded(values) for name, values in known.items()},
        _residuals(condition.residuals(asked, known)),
    ]
    state = condition.state if isinstance(condition, Initial) else None
    if isinstance(state, GridState):
        content.append([state.axes, state.values, list(state.periodic)])
        content.append({name: list(ends) for name, ends in state.domain.items()})
    return content


def _numbers(names: Iterable[str], n: int = 8) -> Named:
    """Made-up values by name, between 0.5 and 1.5, [n] each."""
    found = {}
    for name in names:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        found[name] = torch.from_numpy(0.5 + np.random.default_rng(seed).random(n))
    return Named(found)


def _residuals(found: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: _rounded(values) for name, values in found.items()}


def _rounded(values: Tensor) -> np.ndarray:
    """To nine digits of the largest."""
    array = np.asarray(values.detach().cpu().double().numpy())
    finite = np.isfinite(array)
    largest = float(f"{np.abs(array[finite]).max(initial=0.0):.6e}")
    if not largest:
        return np.where(finite, 0.0, array)
    unit = 2.0 ** (np.ceil(np.log2(largest)) - 30.0)
    return np.where(finite, np.round(array / unit) + 0.0, array)  # + 0.0: no negative zeros
