"""The pictures of a run, as files; see :mod:`dcase.plotting` for the style they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcase.pinn.conservation import Density, Fields, conservation
from dcase.pinn.curve_plots import (
    conservation_figure,
    error_time_figure,
    spectrum_figure,
)
from dcase.pinn.field_plots import (
    slices_figure,
    space_time_figure,
)
from dcase.pinn.training_plots import History, bars_figure, loss_figure, points_figure
from dcase.plotting import save

if TYPE_CHECKING:
    from dcase.pinn.sample import Sample

__all__ = [
    "bars_figure",
    "conservation_figure",
    "error_time_figure",
    "loss_figure",
    "points_figure",
    "slices_figure",
    "space_time_figure",
    "spectrum_figure",
    "write_all",
]


def write_all(
    folder: str | Path,
    *,
    sample: Sample | None = None,
    prediction: Fields | None = None,
    histories: Sequence[History] = (),
    points: Any = None,
    residuals: Any = None,
    densities: Mapping[str, Density] | None = None,
) -> list[str]:
    """Draw what there is data for.

    Args:
        folder: Made if it does not exist.
        sample: The reference.
        prediction: Each ``(nx, (ny,) nt)``.
        histories: See :func:`~dcase.pinn.training_plots.loss_figure`.
        points: ``(N, d)`` in the order of the sample's axes.
        residuals: ``(N,)``.
        densities: See :func:`dcase.pinn.conservation.conservation`.

    Returns:
        Names of the files written, of ``space_time.png``, ``slices.png``, ``error_time.png``,
        ``spectrum.png``, ``conservation.png``, ``loss.png``, ``points.png``.

    Raises:
        DataError: If arrays do not fit.
        DcaseError: If a file cannot be written.
    """
    figures = {}
    if sample is not None and prediction is not None:
        figures["space_time"] = space_time_figure(sample, prediction)
        figures["slices"] = slices_figure(sample, prediction)
        figures["error_time"] = error_time_figure(sample, prediction)
        figures["spectrum"] = spectrum_figure(sample, prediction)
        figures["conservation"] = conservation_figure(conservation(prediction, sample, densities))
    if any(rows for _, rows in histories):
        figures["loss"] = loss_figure(histories)
    if sample is not None and points is not None and residuals is not None:
        figures["points"] = points_figure(
            points, residuals, list(sample.axes), domain=sample.domain
        )
    for name, figure in figures.items():
        save(figure, Path(folder) / f"{name}.png")
    return [f"{name}.png" for name in figures]
