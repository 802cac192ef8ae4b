r"""Errors of a prediction: PDEBench's six metrics and more, beside trivial predictors.

Arrays are ``(nx, nt)`` or ``(nx, ny, nt)``, one field of one sample, as in ``Sample.fields``.
A network is worth something only if it beats :func:`trivial_predictors`: two published rows for
these tasks do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dcase.errors import DataError, OptionError
from dcase.pinn.conservation import Density, Fields, conservation
from dcase.pinn.spectra import band_errors

if TYPE_CHECKING:
    from dcase.pinn.sample import Sample

LAST = 20
"""Saved times that PDEBench judges a network by."""


def field_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    axes: Mapping[str, np.ndarray],
    *,
    last: int = LAST,
    paper: bool = False,
) -> dict[str, float]:
    r"""Errors of one field over its last saved times.

    With :math:`d = p - y`, means over space :math:`\langle\cdot\rangle_x` and over the last times
    :math:`\langle\cdot\rangle_t`:

    .. math::
        \text{rmse} &= \big\langle \langle d^2\rangle_x^{1/2} \big\rangle_t \\
        \text{nrmse} &= \big\langle \langle d^2\rangle_x^{1/2} /
            \langle y^2\rangle_x^{1/2} \big\rangle_t \\
        \text{crmse} &= \big\langle |\textstyle\sum_x d| / N \big\rangle_t \\
        \text{max\_error} &= \big\langle \max_x |d| \big\rangle_t \\
        \text{brmse} &= \big\langle [(d_0^2 + d_{n-1}^2)/2]^{1/2} \big\rangle_t
            \quad\text{(1D)} \\
        &= \big\langle [\textstyle\sum_\text{four edges} d^2 / (2n_x + 2n_y)]^{1/2}
            \big\rangle_t \quad\text{(2D, corners twice)} \\
        \text{frmse\_low, \_mid, \_high} &= \langle F \rangle_t
            \quad\text{(see}\ \texttt{spectra.band\_errors)}

    These are PDEBench's for one sample (arXiv 2210.07182, appendix B, and its ``metrics.py``): its
    maximum is a mean over times of maxima over space. Beside them:

    .. math::
        \text{mse} &= \langle d^2 \rangle_{x,t}, \qquad
        \text{relative\_l2} = \big[\langle d^2\rangle_{x,t} /
            \langle y^2\rangle_{x,t}\big]^{1/2} \\
        \text{nrmse\_all},\ & \text{relative\_l2\_all}: \text{the same over all saved times}

    Args:
        prediction: ``(nx, (ny,) nt)``.
        reference: The same shape.
        axes: Coordinates by name, each ``(n,)``, in the arrays' order with ``t`` last.
        last: Saved times to judge by; all if there are fewer.
        paper: Leave out the first of them, as PDEBench's script for PINNs does (19 times).

    Returns:
        Plain floats. NaN or infinite where a reference is zero everywhere or a prediction is not
        finite, and NaN for a band that the grid has no waves for.

    Raises:
        DataError: If shapes do not fit.
        OptionError: If no time is left.
    """
    prediction, reference = _fitting(prediction, reference, axes)
    nt = reference.shape[-1]
    window = window_times(nt, last, paper)
    space = tuple(range(reference.ndim - 1))
    with np.errstate(all="ignore"):  # a diverged network has infinite errors, not a warning
        d_all = prediction - reference
        d, y = d_all[..., window], reference[..., window]
        square, norm = np.mean(d**2, axis=space), np.mean(y**2, axis=space)
        bands = band_errors(d)
        values = {
            "rmse": np.mean(np.sqrt(square)),
            "nrmse": np.mean(np.sqrt(square) / np.sqrt(norm)),
            "crmse": np.mean(np.abs(np.mean(d, axis=space))),
            "max_error": np.mean(np.max(np.abs(d), axis=space)),
            "brmse": np.mean(_boundary_rms(d)),
            **{f"frmse_{name}": np.mean(value) for name, value in bands.items()},
            "mse": np.mean(square),
            "relative_l2": np.sqrt(np.mean(square) / np.mean(norm)),
            "nrmse_all": np.mean(nrmse_at_times(prediction, reference)),
            "relative_l2_all": np.sqrt(np.mean(d_all**2) / np.mean(reference**2)),
        }
    return {name: float(value) for name, value in values.items()}


def window_times(nt: int, last: int = LAST, paper: bool = False) -> slice:
    """The last saved times, without the first of them if ``paper``.

    Raises:
        OptionError: If none is left.
    """
    start = max(0, nt - last) + bool(paper)
    if last < 1 or start >= nt:
        raise OptionError(f"no time left to judge by: {nt} saved, the last {last} asked for")
    return slice(start, nt)


def nrmse_at_times(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    r"""Error against time, :math:`\langle d^2\rangle_x^{1/2} / \langle y^2\rangle_x^{1/2}`.

    Args:
        prediction: ``(nx, (ny,) nt)``.
        reference: The same shape.

    Returns:
        ``(nt,)``.
    """
    space = tuple(range(reference.ndim - 1))
    with np.errstate(all="ignore"):
        square = np.mean((prediction - reference) ** 2, axis=space)
        return np.sqrt(square) / np.sqrt(np.mean(reference**2, axis=space))


def trivial_predictors(sample: Sample) -> dict[str, dict[str, np.ndarray]]:
    r"""What anyone could say without solving anything.

    ===============  ======================================================================
    ``zero``         0
    ``mean``         the initial condition's arithmetic mean over the grid points, each field
                     its own, at all points and times (nothing from later times is used)
    ``persistence``  the initial condition, at all times
    ===============  ======================================================================

    Args:
        sample: The reference; its first saved time is the initial condition.

    Returns:
        By predictor and field, read-only, in the shape of the field.
    """
    predictors: dict[str, dict[str, np.ndarray]] = {"zero": {}, "mean": {}, "persistence": {}}
    for name, values in sample.fields.items():
        start = np.asarray(values, dtype=np.float64)[..., :1]
        constants = {"zero": np.zeros(()), "mean": start.mean(), "persistence": start}
        for predictor, constant in constants.items():
            predictors[predictor][name] = np.broadcast_to(constant, np.shape(values))
    return predictors


def evaluate(
    prediction: Fields,
    sample: Sample,
    *,
    last: int = LAST,
    paper: bool = False,
    densities: Mapping[str, Density] | None = None,
) -> dict[str, Any]:
    """All errors of a prediction, ready for JSON.

    Args:
        prediction: Every field of the sample, ``(nx, (ny,) nt)`` each.
        sample: The reference.
        last: See :func:`field_metrics`.
        paper: See :func:`field_metrics`.
        densities: See :func:`dcase.pinn.conservation.conservation`.

    Returns:
        ``fields``: metrics by field; ``mean``: each metric's mean over the fields, as PDEBench
        reports them; ``baselines``: by trivial predictor, the metrics by field; ``conservation``:
        by quantity, see :class:`~dcase.pinn.conservation.Integral`; ``window``: the first and last
        time judged, and their number.

    Raises:
        DataError: If a field is missing or has another shape.
        OptionError: If no time is left to judge by.
    """
    missing = [name for name in sample.fields if name not in prediction]
    if missing:
        raise DataError(f"the prediction lacks the field {missing[0]!r} of {sample.source}")

    def judge(values: Fields) -> dict[str, dict[str, float]]:
        return {
            name: field_metrics(values[name], reference, sample.axes, last=last, paper=paper)
            for name, reference in sample.fields.items()
        }

    fields = judge(prediction)
    times = np.asarray(sample.axes["t"])
    judged = times[window_times(len(times), last, paper)]
    return {
        "fields": fields,
        "mean": {
            metric: float(np.mean([values[metric] for values in fields.values()]))
            for metric in next(iter(fields.values()))
        },
        "baselines": {name: judge(values) for name, values in trivial_predictors(sample).items()},
        "conservation": {
            name: integral.summary()
            for name, integral in conservation(prediction, sample, densities).items()
        },
        "window": {"first": float(judged[0]), "last": float(judged[-1]), "times": len(judged)},
    }


def _boundary_rms(d: np.ndarray) -> np.ndarray:
    """Root mean square over the boundary's points, ``(nt,)``."""
    if d.ndim == 2:
        return np.sqrt((d[0] ** 2 + d[-1] ** 2) / 2.0)
    nx, ny = d.shape[:2]
    edges = (d[0] ** 2 + d[-1] ** 2).sum(axis=0) + (d[:, 0] ** 2 + d[:, -1] ** 2).sum(axis=0)
    return np.sqrt(edges / (2 * nx + 2 * ny))


def _fitting(
    prediction: np.ndarray, reference: np.ndarray, axes: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64.

    Raises:
        DataError: If they do not fit each other or the axes.
    """
    prediction = np.asarray(prediction, dtype=np.float64)
    reference = np.asarray(reference, dtype=np.float64)
    shape = tuple(len(axis) for axis in axes.values())
    if prediction.shape != reference.shape or reference.shape != shape:
        raise DataError(
            f"prediction {prediction.shape}, reference {reference.shape} and axes "
            f"({', '.join(axes)}) {shape} must have one shape"
        )
    if len(shape) not in (2, 3) or list(axes)[-1] != "t":
        raise DataError(f"metrics need axes (x, t) or (x, y, t), not ({', '.join(axes)})")
    return prediction, reference
