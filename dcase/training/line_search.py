"""A line search for the strong Wolfe conditions, by cubic interpolation.

With f(a) the loss at ``x + a d`` and f' its slope, a step is accepted when

    f(a) <= f(0) + c1 a f'(0)        it decreases enough,
    |f'(a)| <= c2 |f'(0)|            and is near a minimum along the line,

(Nocedal and Wright, Numerical Optimization, 2nd ed., algorithms 3.5 and 3.6, here as one loop).
Losses that differ by no more than their rounding are taken as equal, so that the slopes decide
between them (after Hager and Zhang, SIAM J. Optim. 16, 170, 2005): without it a search ends long
before the gradient does. A loss or slope of NaN or infinity counts as too long a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

ROUNDING = 4.0  # losses are trusted to this many units of the last place
INSIDE = 0.1  # a trial keeps this share of the interval away from its ends
SHORTER = 0.2  # of the interval, after a loss that is not finite
LONGER = (1.1, 10.0)  # a step is made longer by factors between these


@dataclass(frozen=True)
class Trial:
    """What was found at a step: loss, slope along the line, and the gradient [n_parameters].

    ``number`` counts evaluations of the loss, for the caller.
    """

    step: float
    loss: float
    slope: float
    gradient: Tensor
    number: int | None = None

    @property
    def finite(self) -> bool:
        """Whether loss and slope are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.slope)


def strong_wolfe(
    evaluate: Callable[[float], Trial],
    start: Trial,
    step: float,
    *,
    epsilon: float,
    c1: float = 1e-4,
    c2: float = 0.9,
    most: int = 25,
) -> Trial | None:
    """A step that satisfies the strong Wolfe conditions.

    Args:
        evaluate: The trial of a step.
        start: That of step 0; its slope is negative.
        step: The first to try.
        epsilon: Relative rounding of the loss (that of its dtype).
        c1: Of the first condition.
        c2: Of the second; with a small one the search is as good as exact.
        most: Evaluations to spend.

    Returns:
        The step, or one that at least decreases the loss if ``most`` is not enough, or None.
    """
    low, high = start, None  # the best so far, and the other end, if there is one yet
    for _ in range(most):
        trial = evaluate(step)
        noise = ROUNDING * epsilon * max(abs(start.loss), abs(low.loss))
        enough = start.loss + c1 * step * start.slope + noise
        if not trial.finite or trial.loss > min(enough, low.loss + noise):
            high = trial
        elif abs(trial.slope) <= c2 * abs(start.slope):
            return trial
        else:
            previous, outward = low, 1.0 if high is None else high.step - low.step
            low = trial
            if trial.slope * outward >= 0:
                high = previous  # the minimum is between the two
            elif high is None:
                step = _further(previous, trial, noise)
                continue
        step = _between(low, high, noise)
        if abs(high.step - low.step) <= 2 * epsilon * max(high.step, low.step):
            break
    return low if low.step > 0 and low.loss < start.loss else None


def _further(before: Trial, last: Trial, noise: float) -> float:
    shortest, longest = (factor * last.step for factor in LONGER)
    minimum = _minimum(before, last, noise)
    return longest if minimum is None else min(max(minimum, shortest), longest)


def _between(low: Trial, high: Trial, noise: float) -> float:
    width = high.step - low.step
    if not high.finite:
        return low.step + SHORTER * width
    minimum = _minimum(low, high, noise)
    share = 0.5 if minimum is None else (minimum - low.step) / width
    return low.step + min(max(share, INSIDE), 1 - INSIDE) * width


def _minimum(a: Trial, b: Trial, noise: float) -> float | None:
    """Where the cubic through two trials and their slopes has its minimum, if it has one."""
    width = b.step - a.step
    if abs(a.loss - b.loss) <= noise:  # the difference says nothing: the slopes' secant
        change = b.slope - a.slope
        return a.step - a.slope * width / change if change * width > 0 else None
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.step - b.step)
    square = d1 * d1 - a.slope * b.slope
    if not 0 <= square < math.inf:
        return None
    d2 = math.copysign(math.sqrt(square), width)
    bottom = b.slope - a.slope + 2 * d2
    return b.step - width * (b.slope + d2 - d1) / bottom if bottom else None
