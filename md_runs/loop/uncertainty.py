"""How far the members of an ensemble disagree along a run, and what is done about it.

The uncertainty of a step is the largest disagreement on the force of an atom,

    u = max_i |s_i|        s_i: standard deviation over the members of the force on atom i, eV/A

which is DP-GEN's "model deviation" of the forces but for k - 1 in place of k (Zhang et al., Comput.
Phys. Commun. 253, 107206 (2020)). Every step counts, whether it is recorded or not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write

from dcase.data.held import free_axes, std_along
from dcase.data.selection import Shortlist
from dcase.data.state import bare, for_extxyz
from dcase.errors import OptionError
from dcase.files import atomic_path
from dcase.md_runs.settings import MDSettings

SPREAD = "forces_std"
"""The calculator's result that only ensembles have: eV/A, (N, 3)."""

EXCEEDED = "the uncertainty rose"
"""How the reason begins why a run was stopped."""

WARNING = "the uncertainty was above"
"""How the warning of a flagged run begins."""


def uncertainty_of(calculator: Any, axes: np.ndarray | None = None) -> float:
    """The uncertainty of the calculator's last structure, eV/A; NaN where it gives none.

    Args:
        calculator: Of an ensemble.
        axes: Directions in which the atoms are free (:func:`dcase.data.held.free_axes`), where some
            are not: what pulls at atoms held in place has no part in it.
    """
    spread = (getattr(calculator, "results", None) or {}).get(SPREAD)
    if spread is None or len(spread) == 0:
        return math.nan
    spread = np.asarray(spread, dtype=np.float64)
    if axes is not None:
        spread = std_along(axes, spread)
    x, y, z = (spread * spread).T
    return float(np.sqrt((x + y + z).max()))  # as verlet.c sums


def is_ensemble(calculator: Any) -> bool:
    """Whether the last results hold the spread of an ensemble's forces."""
    return SPREAD in (getattr(calculator, "results", None) or {})


def require_ensemble(atoms: Atoms) -> None:
    """Evaluate a structure and see whether its calculator knows an uncertainty.

    Raises:
        OptionError: If it does not.
    """
    atoms.get_potential_energy()
    if not is_ensemble(atoms.calc):
        raise OptionError(
            "max_uncertainty needs an ensemble, and this is a single potential: give an ensemble's "
            "checkpoint (dcase cross-validate makes one), or several potentials"
        )


class UncertaintyWatch:
    """Looks at every step's uncertainty: statistics, the limit, frames worth labelling.

    Args:
        template: Elements, cell and periodicity.
        settings: The limit, what to do beyond it, and how many frames to keep.
    """

    def __init__(self, template: Atoms, settings: MDSettings) -> None:
        self.template = template
        self.axes = free_axes(template)
        self.limit = settings.max_uncertainty_eV_A
        self.stops = self.limit is not None and settings.on_uncertain == "stop"
        self.now = 0.0  # eV/A, of the step last measured; no step is above the limit before
        self.steps, self.above = 0, 0
        self.sum, self.largest = 0.0, 0.0
        size = settings.max_selected if self.limit is not None else 0
        self.selected = Shortlist(template, size)

    def measure(self, calculator: Any) -> None:
        """Take the uncertainty from the results of the present step."""
        self.now = uncertainty_of(calculator, self.axes)

    def look(self, step: int, positions: np.ndarray, *, production: bool) -> bool:
        """Count the step measured last, and keep its frame if it is worth labelling.

        Args:
            step: Its number; negative in the equilibration, which the statistics leave out.
            positions: A, (N, 3).
            production: Whether the equilibration is over.

        Returns:
            Whether this is the first step of production above the limit.
        """
        beyond = self.beyond
        if production:
            self.steps += 1
            self.sum += self.now
            self.largest = float(np.maximum(self.largest, self.now))  # a NaN stays
            self.above += beyond
        if beyond:
            self.selected.offer(self.now, step, positions)
        return production and beyond and self.above == 1

    @property
    def beyond(self) -> bool:
        """Whether the step measured last is above the limit; a NaN is."""
        return self.limit is not None and not self.now <= self.limit

    @property
    def stops_beyond(self) -> float:
        """The uncertainty beyond which the run must stop, eV/A; infinite: none."""
        return self.limit if self.stops and self.limit is not None else math.inf

    @property
    def trouble(self) -> str:
        """Why the run must stop here, or ""."""
        return self.exceeded if self.stops and self.beyond else ""

    @property
    def exceeded(self) -> str:
        """The step last measured against the limit, in words."""
        return f"{EXCEEDED} to {self.now:.3g} eV/A (limit {self.limit:g} eV/A)"

    # --- kept over a resume ------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Everything counted and kept so far, as plain arrays for the checkpoint."""
        numbers = np.array([self.now, self.steps, self.above, self.sum, self.largest])
        return {"numbers": numbers, **self.selected.state()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go back to a stored state."""
        self.now, steps, above, self.sum, self.largest = (float(x) for x in state["numbers"])
        self.steps, self.above = int(steps), int(above)
        self.selected.restore(state)

    # --- what comes of it --------------------------------------------------------------------

    def warning(self) -> str:
        """What a user should know of a run that went on beyond the limit, or ""."""
        if self.stops or not self.above:
            return ""
        share = 100.0 * self.above / self.steps
        return (
            f"{WARNING} {self.limit:g} eV/A in {share:.3g} % of the steps (largest "
            f"{self.largest:.3g} eV/A): the potential is not to be trusted there"
        )

    def facts(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {
            "mean_eV_A": self.sum / self.steps if self.steps else math.nan,
            "max_eV_A": self.largest if self.steps else math.nan,
            "limit_eV_A": self.limit,
            "share_above": self.above / self.steps if self.steps and self.limit else math.nan,
            "steps": self.steps,
            "selected": len(self.selected),
        }

    def write(self, path: Path, timestep_fs: float) -> None:
        """Write the frames worth labelling, most uncertain first; no file if there are none.

        They carry the state of the start (charge, constraints, ``info``, ...), no labels, and in
        ``info`` their ``step``, ``time_fs`` and ``uncertainty_eV_A``.

        Raises:
            DcaseError: If the file cannot be written.
        """
        if not len(self.selected):
            path.unlink(missing_ok=True)
            return
        frames = []
        template = bare(self.template)
        template.arrays.pop("momenta", None)
        kept = self.selected
        for score, step, positions in zip(kept.scores, kept.tags, kept.positions, strict=True):
            frame = template.copy()
            frame.positions = positions
            frame.info.update(
                step=int(step), time_fs=float(step * timestep_fs), uncertainty_eV_A=float(score)
            )
            frames.append(for_extxyz(frame))
        with atomic_path(path) as temporary:
            write(temporary, frames, format="extxyz")
