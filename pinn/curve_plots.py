"""Pictures of errors and integrals against time, and of spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from dcase.pinn.conservation import Fields, Integral
from dcase.pinn.field_plots import PREDICTION, REFERENCE, chosen_fields, symbol
from dcase.pinn.metrics import LAST, nrmse_at_times, trivial_predictors, window_times
from dcase.pinn.spectra import BANDS, energy_spectrum
from dcase.plotting import BLUE, GREY, RED, new_figure

if TYPE_CHECKING:
    from dcase.pinn.sample import Sample

BASELINES = {
    "zero": (":", "zero"),
    "mean": ("--", "initial mean"),
    "persistence": ("-.", "initial state held"),
}


def error_time_figure(
    sample: Sample,
    prediction: Fields,
    fields: str | Sequence[str] | None = None,
    *,
    last: int = LAST,
) -> Figure:
    """Normalised error of each field against time, beside the trivial predictors.

    Args:
        sample: The reference.
        prediction: Each ``(nx, (ny,) nt)``.
        fields: One, some, or all of them.
        last: Saved times that the metrics look at; shaded.

    Raises:
        DataError: For an unknown field.
    """
    names = chosen_fields(sample, fields)
    size = (max(4.2, 0.5 + 2.6 * len(names)), 3.3)
    figure, axes = new_figure(1, len(names), size, sharey=True, sharex=True)
    t = sample.axes["t"]
    judged = t[window_times(len(t), last)]
    shaded = f"last {len(judged)} times"
    predictors = trivial_predictors(sample)
    lowest = math.inf
    for ax, name in zip(axes, names, strict=True):
        ax.axvspan(judged[0], judged[-1], color=GREY, alpha=0.12, linewidth=0.0, label=shaded)
        for predictor, (style, label) in BASELINES.items():
            error = _positive(nrmse_at_times(predictors[predictor][name], sample.fields[name]))
            if predictor == "persistence":
                error[0] = np.nan  # zero by definition
            ax.plot(t, error, color=GREY, linewidth=1.1, linestyle=style, label=label)
            lowest = min([lowest, *error[np.isfinite(error)][-len(judged) :]])
        error = _positive(nrmse_at_times(np.asarray(prediction[name]), sample.fields[name]))
        ax.plot(t, error, color=BLUE, linewidth=1.6, label="prediction")
        # A hard initial condition is exact at first: that shall not flatten all the rest.
        later = error[len(error) // 20 :]
        lowest = min([lowest, *later[np.isfinite(later)]])
        ax.set_title(symbol(name), fontsize=10)
        ax.set_xlabel("time t")
    axes[0].set_yscale("log")
    axes[0].set_xlim(float(t[0]), float(t[-1]))
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(max(low, 0.5 * lowest) if math.isfinite(lowest) else low, min(high, 1e2))
    axes[0].set_ylabel("nRMSE")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], ncols=3 if len(names) < 2 else 5, frameon=False, fontsize=8,
        loc="outside upper center", handlelength=2.4, columnspacing=1.2,
    )  # fmt: skip
    return figure


def _positive(values: np.ndarray) -> np.ndarray:
    """What a logarithmic axis can show."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values) & (values > 0.0), values, np.nan)


def conservation_figure(integrals: Mapping[str, Integral]) -> Figure:
    """Integrals over the domain against time, prediction over reference.

    Conserved ones are shown as the change from the reference's start over their scale, in percent;
    others as they are.

    Args:
        integrals: From :func:`dcase.pinn.conservation.conservation`.
    """
    count = max(1, len(integrals))
    figure, axes = new_figure(1, count, (max(4.2, 0.5 + 2.6 * count), 3.0), sharex=True)
    for ax, integral in zip(axes, integrals.values(), strict=False):
        start, scale = 0.0, 1.0
        if integral.conserved:
            start, scale = float(integral.reference[0]), 0.01 * integral.scale
        for values, label, style in (
            (integral.reference, "reference", REFERENCE),
            (integral.predicted, "prediction", PREDICTION),
        ):
            shown = np.where(np.isfinite(values), values, np.nan)
            ax.plot(integral.times, (shown - start) / scale, label=label, **style)
        if integral.conserved:
            low, high = ax.get_ylim()
            reach = max(abs(low), abs(high), 1e-10)  # rounding is not a drift
            if reach <= 1e-10:
                ax.set_ylim(-reach, reach)
            drift = integral.summary()["drift"]
            ax.set_title(f"{symbol(integral.name)} (drift {drift:.2g})", fontsize=10)
        else:
            ax.set_title(f"∫ {symbol(integral.name)}", fontsize=10)
        ax.set_xlabel("time t")
        ax.margins(x=0.0)
    if integrals:
        conserved = next(iter(integrals.values())).conserved
        axes[0].set_ylabel("change of the integral (%)" if conserved else "integral")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, ncols=2, frameon=False, fontsize=9, loc="outside upper center"
        )
    return figure


def spectrum_figure(
    sample: Sample, prediction: Fields, fields: str | Sequence[str] | None = None
) -> Figure:
    """Amplitudes of waves at the last time: reference, prediction and error.

    Args:
        sample: The reference.
        prediction: Each ``(nx, (ny,) nt)``.
        fields: One, some, or all of them.

    Raises:
        DataError: For an unknown field.
    """
    names = chosen_fields(sample, fields)
    size = (max(4.2, 0.5 + 2.8 * len(names)), 3.3)
    figure, axes = new_figure(1, len(names), size, sharex=True)
    for ax, name in zip(axes, names, strict=True):
        reference = sample.fields[name][..., -1]
        predicted = np.asarray(prediction[name])[..., -1]
        shortest = min(reference.shape) // 2
        peak = 0.0
        for values, label, style in (
            (reference, "reference", REFERENCE),
            (predicted, "prediction", PREDICTION),
            (predicted - reference, "error", {**PREDICTION, "color": RED}),
        ):
            with np.errstate(all="ignore"):  # of a network that diverged
                amplitude = np.sqrt(energy_spectrum(values))[:shortest]
            if np.isfinite(amplitude).all():
                seen = np.where(amplitude > 0.0, amplitude, np.nan)
                ax.plot(np.arange(len(seen)), seen, label=label, **style)
                peak = max(peak, float(amplitude.max()))
        ax.set_xscale("symlog", linthresh=1.0, linscale=0.4)
        ticks = [k for k in (0, 1, 4, 12, 50, 200, 1000, 4000) if k <= shortest]
        ax.set_xticks(ticks, [str(k) for k in ticks], minor=False)
        ax.minorticks_off()
        ax.set_xlim(0, shortest - 1)
        if peak > 0.0:
            ax.set_yscale("log")
            low, high = ax.get_ylim()
            low = max(low, 1e-7 * peak)
            ax.set_ylim(low, high * (high / low) ** 0.1)  # room for the bands' names
        for i, (band, (start, stop)) in enumerate(BANDS.items()):
            stop = min(shortest - 1, stop or shortest)
            if start >= stop:
                continue
            ax.axvspan(start, stop, color=GREY, alpha=(0.0, 0.08, 0.16)[i], linewidth=0.0)
            scale = ax.xaxis.get_transform()
            middle = scale.inverted().transform([scale.transform([start, stop]).mean()])[0]
            ax.text(
                middle, 0.97, band, transform=ax.get_xaxis_transform(),
                ha="center", va="top", fontsize=8, color=GREY,
            )  # fmt: skip
        ax.set_title(f"{symbol(name)}, t = {sample.axes['t'][-1]:.4g}", fontsize=10)
        ax.set_xlabel("wave number k (waves per domain)")
    axes[0].set_ylabel("amplitude (r.m.s.)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, frameon=False, fontsize=9, loc="outside upper center")
    return figure
