"""Integrals over the domain against time, and how far they drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dcase.pinn.sample import Sample

Fields = Mapping[str, np.ndarray]
Density = Callable[[Fields], np.ndarray]


@dataclass(frozen=True)
class Integral:
    r"""One integral :math:`Q(t) = \int q\,dx` of a prediction and of the reference.

    Args:
        name: Of the quantity.
        times: ``(nt,)``.
        predicted: ``(nt,)``.
        reference: ``(nt,)``.
        scale: :math:`\max_t \int |q_\text{ref}|\,dx`, which is not zero where Q is (a momentum);
            1 if the reference vanishes altogether.
        conserved: Whether the equation keeps Q constant.
    """

    name: str
    times: np.ndarray
    predicted: np.ndarray
    reference: np.ndarray
    scale: float
    conserved: bool

    def summary(self) -> dict[str, float | bool]:
        r"""Plain numbers.

        Returns:
            ``drift`` :math:`\max_t |Q(t) - Q(0)| / s` of the prediction from its own start,
            ``reference_drift`` the same of the reference (what its solver achieves), ``deviation``
            :math:`\max_t |Q(t) - Q_\text{ref}(t)| / s`, the scale s, and ``conserved``.
        """
        with np.errstate(all="ignore"):  # a diverged network gives NaN
            return {
                "drift": float(np.abs(self.predicted - self.predicted[0]).max()) / self.scale,
                "reference_drift": float(np.abs(self.reference - self.reference[0]).max())
                / self.scale,
                "deviation": float(np.abs(self.predicted - self.reference).max()) / self.scale,
                "scale": self.scale,
                "conserved": self.conserved,
            }


def conserved_densities(sample: Sample) -> dict[str, Density]:
    r"""Densities whose integrals the task's equation conserves.

    ================  =====================================================================
    advection         u, on a periodic domain
    cfd               mass :math:`\rho`, momentum :math:`\rho v`, energy
                      :math:`p/(\gamma-1) + \rho v^2/2`, on a periodic domain
    anything else     none
    ================  =====================================================================
    """
    if "x" not in sample.periodic:
        return {}
    if sample.task == "advection":
        return {"u": lambda f: f["u"]}
    if sample.task == "cfd":
        gamma = sample.parameters.get("gamma", 5.0 / 3.0)
        return {
            "mass": lambda f: f["rho"],
            "momentum": lambda f: f["rho"] * f["v"],
            "energy": lambda f: f["p"] / (gamma - 1.0) + 0.5 * f["rho"] * f["v"] ** 2,
        }
    return {}


def conservation(
    prediction: Fields, sample: Sample, densities: Mapping[str, Density] | None = None
) -> dict[str, Integral]:
    """Integrals of densities over the domain at every saved time.

    Args:
        prediction: Each ``(nx, (ny,) nt)``.
        sample: The reference.
        densities: Of conserved quantities, from the fields; by default those of the task
            (:func:`conserved_densities`). Where there are none, the integrals of the fields
            themselves are taken, marked as not conserved: they are compared with the reference's.
    """
    found = conserved_densities(sample) if densities is None else dict(densities)
    conserved = bool(found)
    if not conserved:
        found = {name: lambda f, name=name: f[name] for name in sample.fields}  # type: ignore[misc]
    cells = [
        cell_sizes(axis, sample.domain[name], name in sample.periodic)
        for name, axis in sample.axes.items()
        if name != "t"
    ]
    integrals = {}
    for name, density in found.items():
        with np.errstate(all="ignore"):
            predicted = integrate(density(prediction), cells)
            of_reference = density(sample.fields)
            reference = integrate(of_reference, cells)
            scale = float(integrate(np.abs(of_reference), cells).max())
        integrals[name] = Integral(
            name, sample.axes["t"], predicted, reference, scale or 1.0, conserved
        )
    return integrals


def integrate(values: np.ndarray, cells: list[np.ndarray]) -> np.ndarray:
    """Sum of ``values`` ``(nx, (ny,) nt)`` times cell sizes, over space: ``(nt,)``."""
    total = np.asarray(values, dtype=np.float64)
    for sizes in cells:
        total = np.tensordot(sizes, total, axes=(0, 0))
    return total


def cell_sizes(axis: np.ndarray, extent: tuple[float, float], periodic: bool) -> np.ndarray:
    """Size of the cell around every grid point: faces lie half-way between neighbours.

    Exact for cell centres; on a grid that includes both ends it is the trapezoidal rule.

    Args:
        axis: ``(n,)`` ascending.
        extent: Of the domain.
        periodic: The last point's neighbour is the first one, not the domain's end.
    """
    axis = np.asarray(axis, dtype=np.float64)
    start, stop = extent
    middle = 0.5 * (axis[1:] + axis[:-1])
    if not periodic:
        return np.diff(np.concatenate([[start], middle, [stop]]))
    seam = 0.5 * (axis[-1] + axis[0] + stop - start)  # the face between the last and the first
    return np.diff(np.concatenate([[seam - (stop - start)], middle, [seam]]))
