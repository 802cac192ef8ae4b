"""What a simulation is asked to do."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from dcase.errors import OptionError
from dcase.md_runs.choices import CONSTRAINTS
from dcase.md_runs.loop.ensembles import ENSEMBLES as RECORDS
from dcase.md_runs.loop.ensembles import ensemble_named
from dcase.options import check_size

ENSEMBLES = tuple(RECORDS)
"""Ensembles by name."""

ON_UNCERTAIN = ("stop", "flag")
"""What a run does once its uncertainty is above the limit."""


@dataclass(frozen=True)
class MDSettings:
    """Settings of one run; the defaults suit a small organic molecule.

    Attributes:
        ensemble: ``nve`` (velocity Verlet), ``langevin``, ``bussi`` (stochastic velocity
            rescaling) or ``nose-hoover`` (chain of three).
        temperature_K: Of the first momenta, of the equilibration and of the thermostat, K.
        timestep_fs: fs. 0.5 resolves a C-H stretch (11 fs) 22 times.
        steps: Production steps.
        equilibrate: Langevin steps before production, not recorded; 0 is none. Without them a
            relaxed structure given momenta at T ends at about T/2, since half of the kinetic
            energy flows into the springs.
        friction_per_fs: Langevin friction, 1/fs (production and equilibration). 0.02 forgets the
            start within 50 fs, so 1000 steps of 0.5 fs equilibrate a molecule ten times over.
        taut_fs: Relaxation time of ``bussi``, damping time of ``nose-hoover``, fs.
        seed: Of everything random.
        log_every: Steps between rows of the energy series.
        traj_every: Steps between frames of the trajectory.
        checkpoint_every: Steps between checkpoints, from which a killed or interrupted run resumes;
            they reach the disk at most once a second.
        constrain: ``bonds-to-hydrogen`` or ``all-bonds`` keep their lengths of the starting
            structure (RATTLE), so that a longer time step is stable; ``none`` holds nothing.
        keep_momenta: Start from the momenta of the structure instead of drawing them; not together
            with an equilibration, which would change them.
        bond_stretch_A: Stop when a covalent bond of the start is longer by this much, Angstrom;
            None does not look. Only bonds between non-metals are watched.
        max_temperature_K: Stop above this; None is ten times ``temperature_K`` plus 1000 K.
        force_timestep: Run even where the time step is past Verlet's stability limit.
        max_uncertainty_eV_A: For ensembles: largest standard deviation over the members of the
            force on an atom up to which a step is trusted, eV/A; None: any.
        on_uncertain: ``stop`` the run at the first step beyond, or ``flag`` such steps and go on.
        max_selected: Most frames beyond the limit that are kept in ``selected.extxyz``.
    """

    ensemble: str = "nve"
    temperature_K: float = 300.0
    timestep_fs: float = 0.5
    steps: int = 10_000
    equilibrate: int = 1000
    friction_per_fs: float = 0.02
    taut_fs: float = 100.0
    seed: int = 0
    log_every: int = 1
    traj_every: int = 10
    checkpoint_every: int = 500
    constrain: str = "none"
    keep_momenta: bool = False
    bond_stretch_A: float | None = 0.5
    max_temperature_K: float | None = None
    force_timestep: bool = False
    max_uncertainty_eV_A: float | None = None
    on_uncertain: str = "stop"
    max_selected: int = 20

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            OptionError: With the name of the setting and what it may be.
        """
        for name, value in vars(self).items():
            check_size(name, value)
        ensemble = ensemble_named(self.ensemble)
        if self.constrain not in CONSTRAINTS:
            raise OptionError(
                f"constrain must be one of {', '.join(CONSTRAINTS)}, not {self.constrain!r}"
            )
        if self.constrain != "none" and not ensemble.holds_constraints:
            raise OptionError(f"{self.ensemble} cannot hold bonds: use bussi or langevin")
        for name in ("timestep_fs", "friction_per_fs", "taut_fs"):
            _require(name, getattr(self, name), above=0.0)
        _require("temperature_K", self.temperature_K, above=0.0, or_equal=not ensemble.thermostat)
        if self.on_uncertain not in ON_UNCERTAIN:
            raise OptionError(
                f"on_uncertain must be one of {', '.join(ON_UNCERTAIN)}, not {self.on_uncertain!r}"
            )
        for name in ("bond_stretch_A", "max_temperature_K", "max_uncertainty_eV_A"):
            if getattr(self, name) is not None:
                _require(name, getattr(self, name), above=0.0)
        for name, least in (
            ("steps", 1),
            ("equilibrate", 0),
            ("seed", 0),
            ("log_every", 1),
            ("traj_every", 1),
            ("checkpoint_every", 1),
            ("max_selected", 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or int(value) != value or value < least:
                raise OptionError(f"{name} must be a whole number >= {least}, not {value!r}")
            object.__setattr__(self, name, int(value))  # 1e4 from a config file is 10000

    @property
    def temperature_limit_K(self) -> float:
        """Temperature at which the run counts as blown up, K."""
        if self.max_temperature_K is not None:
            return self.max_temperature_K
        return 10.0 * self.temperature_K + 1000.0

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> MDSettings:
        """Inverse of ``to_dict``; a setting that an older run did not know has its default."""
        known = {f.name for f in fields(MDSettings)}
        return MDSettings(**{name: value for name, value in values.items() if name in known})


def _require(name: str, value: float, *, above: float, or_equal: bool = False) -> None:
    fine = math.isfinite(value) and (value >= above if or_equal else value > above)
    if not fine:
        sign = ">=" if or_equal else ">"
        raise OptionError(f"{name} must be a number {sign} {above:g}, not {value!r}")
