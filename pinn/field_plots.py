"""Pictures of fields in space and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dcase.errors import DataError
from dcase.pinn.conservation import Fields
from dcase.plotting import BLUE, new_figure

if TYPE_CHECKING:
    from dcase.pinn.sample import Sample

FIELD_MAP, ERROR_MAP, SIZE_MAP = "viridis", "RdBu_r", "cividis_r"
SYMBOLS = {"rho": "ρ"}
REFERENCE: dict[str, Any] = {"color": "#b0b0b0", "linewidth": 3.0}
PREDICTION: dict[str, Any] = {"color": BLUE, "linewidth": 1.2}
"""Lines: the prediction lies on the wide reference."""

WIDTH = 7.2
"""Inches: two columns of a paper."""

MAX_CELLS = 512
"""Along an axis of an image of an uneven grid; a finer one is thinned (pixels are no finer)."""


def symbol(name: str) -> str:
    """A field's name as printed."""
    return SYMBOLS.get(name, name)


def space_time_figure(
    sample: Sample, prediction: Fields, fields: str | Sequence[str] | None = None
) -> Figure:
    """Reference, prediction and error: one row a field, time across, position up.

    In two dimensions the rows are reference, prediction and error, at five times. Reference and
    prediction share colour limits, those of the reference (in 2D of the later four times: a start
    from noise would leave the rest without contrast); the error's are symmetric. Where a few
    extremes would do the same, limits are percentiles. A colour bar's pointed end means that there
    are values beyond it.

    Args:
        sample: The reference.
        prediction: Each ``(nx, (ny,) nt)``.
        fields: One, some, or all of them.

    Raises:
        DataError: For an unknown field.
    """
    names = chosen_fields(sample, fields)
    if len(sample.axes) == 3:
        return _snapshots(sample, prediction, names)
    size = (WIDTH, 0.55 + 1.75 * len(names))
    figure, axes = new_figure(len(names), 3, size, sharex=True, sharey=True)
    t, x = sample.axes["t"], next(iter(sample.axes.values()))
    extents = (_extent(sample, "t"), _extent(sample, next(iter(sample.axes))))
    for row, name in enumerate(names):
        panels = axes[3 * row : 3 * row + 3]
        reference, predicted = sample.fields[name], np.asarray(prediction[name])
        with np.errstate(invalid="ignore"):
            shown = (reference, predicted, predicted - reference)
        low, high = _limits(reference)
        top = _largest(shown[2])
        for ax, values in zip(panels[:2], shown[:2], strict=True):
            image = _image(ax, t, x, values, extents, low, high, FIELD_MAP)
        _bar(figure, image, panels[:2], symbol(name), shown[:2], aspect=14)
        image = _image(panels[2], t, x, shown[2], extents, -top, top, ERROR_MAP)
        _bar(figure, image, panels[2:], f"error of {symbol(name)}", shown[2:], aspect=14)
        panels[0].set_ylabel(f"position {next(iter(sample.axes))}")
    for ax, title in zip(axes, ("reference", "prediction", "prediction − reference"), strict=False):
        ax.set_title(title, fontsize=10)
    for ax in axes[-3:]:
        ax.set_xlabel("time t")
    return figure


def _snapshots(sample: Sample, prediction: Fields, names: Sequence[str]) -> Figure:
    count = 5
    times = _times(sample, count)
    (x_name, x), (y_name, y), _ = sample.axes.items()
    extents = (_extent(sample, x_name), _extent(sample, y_name))
    ratio = min(2.0, max(0.5, float(np.ptp(extents[1]) / np.ptp(extents[0]))))
    size = (WIDTH, 0.7 + 3.45 * ratio * len(names))
    figure, axes = new_figure(3 * len(names), count, size, sharex=True, sharey=True)
    for block, name in enumerate(names):
        reference, predicted = sample.fields[name], np.asarray(prediction[name])
        with np.errstate(invalid="ignore"):
            shown = (reference, predicted, predicted - reference)
        low, high = _limits(reference[..., times[1:]])
        top = _largest(shown[2][..., times[1:]])
        seen = [values[..., times] for values in shown]
        rows = [axes[(3 * block + i) * count :][:count] for i in range(3)]
        for i, row in enumerate(rows):
            limits = (low, high, FIELD_MAP) if i < 2 else (-top, top, ERROR_MAP)
            for ax, at in zip(row, times, strict=True):
                image = _image(ax, x, y, shown[i][:, :, at].T, extents, *limits)
                ax.set_aspect("equal")
                ax.tick_params(labelsize=8)
                ax.xaxis.set_major_locator(round_ticks(2))
                ax.yaxis.set_major_locator(round_ticks(2))
            title = ("reference", "prediction", "error")[i]
            row[0].set_ylabel(f"{symbol(name)}, {title}\n{y_name}", fontsize=9)
            if i == 1:
                _bar(figure, image, [*rows[0], *rows[1]], symbol(name), seen[:2], aspect=24)
            elif i == 2:
                _bar(figure, image, row, f"error of {symbol(name)}", seen[2:], aspect=12)
    for ax, at in zip(axes, times, strict=False):
        ax.set_title(f"t = {sample.axes['t'][at]:.4g}", fontsize=10)
    for ax in axes[-count:]:
        ax.set_xlabel(x_name)
    return figure


def slices_figure(
    sample: Sample, prediction: Fields, fields: str | Sequence[str] | None = None
) -> Figure:
    """Profiles in x at four times, prediction over reference; in 2D along the middle of y.

    The rows' common limits follow the reference: a prediction that blows up runs out of the
    picture, and so does in 2D a first time that varies much more than the others (noise).

    Args:
        sample: The reference.
        prediction: Each ``(nx, (ny,) nt)``.
        fields: One, some, or all of them.

    Raises:
        DataError: For an unknown field.
    """
    names = chosen_fields(sample, fields)
    times = _times(sample, 4)
    size = (WIDTH, 0.75 + 1.6 * len(names))
    figure, axes = new_figure(len(names), 4, size, sharex=True, sharey="row")
    x_name, x = next(iter(sample.axes.items()))
    cut = ""
    for row, name in enumerate(names):
        reference, predicted = sample.fields[name], np.asarray(prediction[name])
        if reference.ndim == 3:
            y_name = list(sample.axes)[1]
            middle = len(sample.axes[y_name]) // 2
            reference, predicted = reference[:, middle], predicted[:, middle]
            cut = f" at {y_name} = {sample.axes[y_name][middle]:.3g}"
        panels = axes[4 * row : 4 * row + 4]
        for ax, at in zip(panels, times, strict=True):
            ax.plot(x, reference[:, at], label="reference", **REFERENCE)
            ax.plot(x, predicted[:, at], label="prediction", **PREDICTION)
        later = [reference[:, times[1:]], predicted[:, times[1:]]]
        if not cut or np.ptp(reference[:, 0]) < 1.8 * np.ptp(later[0]):
            later = [reference[:, times], predicted[:, times]]
        panels[0].set_ylim(_profile_limits(*later))
        panels[0].set_ylabel(symbol(name))
    for ax, at in zip(axes, times, strict=False):
        ax.set_title(f"t = {sample.axes['t'][at]:.4g}", fontsize=10)
    axes[0].set_xlim(_extent(sample, x_name))
    axes[0].xaxis.set_major_locator(round_ticks(3))
    for ax in axes[-4:]:
        ax.set_xlabel(x_name)
    handles, labels = axes[0].get_legend_handles_labels()
    title = f"cut{cut}" if cut else None
    figure.legend(
        handles, labels, ncols=2, frameon=False, fontsize=9, loc="outside upper center",
        title=title, title_fontsize=9,
    )  # fmt: skip
    return figure


def _profile_limits(reference: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Limits for profiles, see :func:`slices_figure`."""
    low, high = float(reference.min()), float(reference.max())
    span = (high - low) or 1.0
    finite = predicted[np.isfinite(predicted)]
    if len(finite):
        low = min(low, max(float(finite.min()), low - 0.5 * span))
        high = max(high, min(float(finite.max()), high + 0.5 * span))
    return low - 0.05 * span, high + 0.05 * span


def chosen_fields(sample: Sample, fields: str | Sequence[str] | None) -> list[str]:
    """Names of the fields asked for, or of all.

    Raises:
        DataError: For an unknown field.
    """
    names = [fields] if isinstance(fields, str) else list(fields or sample.fields)
    for name in names:
        if name not in sample.fields:
            raise DataError(f"no field {name!r}; there are {', '.join(sample.fields)}")
    return names


def _times(sample: Sample, count: int) -> list[int]:
    """Indices of saved times, evenly spread from the first to the last."""
    return [int(i) for i in np.rint(np.linspace(0, len(sample.axes["t"]) - 1, count))]


def _extent(sample: Sample, name: str) -> tuple[float, float]:
    low, high = sample.domain[name]
    return float(low), float(high)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value, or percentiles if those would be lost in the extremes."""
    low, high = float(values.min()), float(values.max())
    inner = np.percentile(values, [0.5, 99.5])
    if high - low > 1.8 * (inner[1] - inner[0]) > 0.0:
        low, high = float(inner[0]), float(inner[1])
    if high > low:
        return low, high
    return low - 0.5, high + 0.5


def _largest(error: np.ndarray) -> float:
    """Symmetric limit of an error, by the same rule."""
    sizes = np.abs(error[np.isfinite(error)])
    if not len(sizes) or not sizes.max() > 0.0:
        return 1.0
    top, inner = float(sizes.max()), float(np.percentile(sizes, 99.5))
    return inner if top > 1.8 * inner > 0.0 else top


def _image(
    ax: Axes,
    across: np.ndarray,
    up: np.ndarray,
    values: np.ndarray,
    extents: tuple[tuple[float, float], tuple[float, float]],
    low: float,
    high: float,
    colors: str,
) -> Any:
    """``values`` ``(len(up), len(across))`` as an image in the coordinates of its axes."""
    ax.grid(False)
    ax.set_facecolor("#d0d0d0")  # not a number
    even = all(
        len(axis) < 3 or np.ptp(np.diff(axis)) < 1e-3 * np.ptp(axis) / (len(axis) - 1)
        for axis in (across, up)
    )
    shown: Any
    if even:
        shown = ax.imshow(
            np.ma.masked_invalid(values), cmap=colors, vmin=low, vmax=high, origin="lower",
            aspect="auto", extent=(*_edges(across), *_edges(up)), interpolation="nearest",
        )  # fmt: skip
    else:
        i, j = (np.arange(0, len(a), -(-len(a) // MAX_CELLS)) for a in (up, across))
        shown = ax.pcolormesh(
            across[j], up[i], np.ma.masked_invalid(values[np.ix_(i, j)]), cmap=colors,
            vmin=low, vmax=high, shading="nearest", rasterized=True,
        )  # fmt: skip
    ax.set_xlim(extents[0])
    ax.set_ylim(extents[1])
    ax.xaxis.set_major_locator(round_ticks(3))
    ax.yaxis.set_major_locator(round_ticks(4))
    return shown


def round_ticks(most: int) -> MaxNLocator:
    """At most so many intervals, of round length."""
    return MaxNLocator(most, steps=[1, 2, 5, 10])


def _edges(axis: np.ndarray) -> tuple[float, float]:
    """Outer edges of an even grid's first and last cell."""
    half = 0.5 * (axis[-1] - axis[0]) / max(1, len(axis) - 1) or 0.5
    return float(axis[0] - half), float(axis[-1] + half)


def _bar(
    figure: Figure,
    image: Any,
    axes: Sequence[Axes],
    label: str,
    shown: Sequence[np.ndarray],
    aspect: float,
) -> None:
    """A colour bar whose ends are pointed where values lie beyond."""
    finite = [values[np.isfinite(values)] for values in shown]
    slack = 0.01 * (image.norm.vmax - image.norm.vmin)  # not worth a remark
    below = any((values < image.norm.vmin - slack).any() for values in finite)
    above = any((values > image.norm.vmax + slack).any() for values in finite)
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    bar = figure.colorbar(image, ax=list(axes), pad=0.015, aspect=aspect, extend=extend)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
