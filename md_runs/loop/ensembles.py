"""Ensembles of molecular dynamics: all that is special to one, in one record each.

A new ensemble is a record here, with a line in :data:`ENSEMBLES`; everything else asks the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dcase.errors import OptionError, SimulationError
from dcase.units import FS, KB

if TYPE_CHECKING:
    from ase import Atoms

    Make = Callable[[Atoms, "Coupling", np.random.Generator], Any]


class Coupling(Protocol):
    """What of :class:`~dcase.md_runs.settings.MDSettings` integrators are made from."""

    @property
    def timestep_fs(self) -> float:
        """Time step, fs."""
        ...

    @property
    def temperature_K(self) -> float:
        """K."""
        ...

    @property
    def friction_per_fs(self) -> float:
        """Langevin friction, 1/fs."""
        ...

    @property
    def taut_fs(self) -> float:
        """Time of the coupling, fs."""
        ...


def _no_state(dynamics: Any) -> dict[str, np.ndarray]:
    return {}


def _nothing_to_restore(dynamics: Any, state: Mapping[str, np.ndarray]) -> None:
    pass


@dataclass(frozen=True)
class MDEnsemble:
    """What makes an ensemble.

    Attributes:
        name: As users give it.
        make: An integrator of ASE's for atoms with calculator and momenta, by the settings and with
            their random numbers.
        conserved: What the integrator conserves, of one total energy or several, eV; None where it
            conserves nothing.
        state: What the next step depends on besides positions, momenta and random numbers.
        restore: Puts that back.
        thermostat: Whether it keeps a temperature, which then has to be above zero.
        conserves_momentum: Whether the centre of mass and the rotation stay as they are.
        holds_constraints: Whether it can move constrained atoms.
        takes_forces: Whether a step takes the forces at its start, and returns those at its end.
    """

    name: str
    make: Make
    conserved: Callable[[Any, Any], Any] | None
    state: Callable[[Any], dict[str, np.ndarray]] = _no_state
    restore: Callable[[Any, Mapping[str, np.ndarray]], None] = _nothing_to_restore
    thermostat: bool = True
    conserves_momentum: bool = True
    holds_constraints: bool = True
    takes_forces: bool = True

    @property
    def title(self) -> str:
        """As people write it: ``NVE``, ``NVT (bussi)``."""
        return f"NVT ({self.name})" if self.thermostat else self.name.upper()

    @property
    def conserved_name(self) -> str:
        """Of the quantity whose drift says how good a run is."""
        return "conserved energy" if self.thermostat else "total energy"


@dataclass
class Motion:
    """An integrator at work.

    Attributes:
        ensemble: What it samples.
        dynamics: The integrator of ASE's.
    """

    ensemble: MDEnsemble
    dynamics: Any

    def step(self, forces: np.ndarray | None) -> np.ndarray | None:
        """One step.

        ASE compares all atoms with the last call's whenever forces are asked for, which costs more
        than a step of a small molecule should; integrators that can be given them are.

        Args:
            forces: At the positions, eV/A; None: not known.

        Returns:
            The forces at the new positions, where they are known.
        """
        if self.ensemble.takes_forces:
            found: np.ndarray | None = self.dynamics.step(forces)
            return found
        self.dynamics.step()
        return forces

    def conserved(self, total_energy: Any) -> Any:
        """What is conserved, of one total energy or several, eV; NaN where nothing is."""
        if self.ensemble.conserved is None:
            return float("nan")
        return self.ensemble.conserved(self.dynamics, total_energy)

    def state(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        return self.ensemble.state(self.dynamics)

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Put back what :meth:`state` gave."""
        self.ensemble.restore(self.dynamics, state)


def ensemble_named(name: str) -> MDEnsemble:
    """The record of an ensemble.

    Raises:
        OptionError: If there is none of that name.
    """
    try:
        return ENSEMBLES[name]
    except KeyError:
        raise OptionError(f"ensemble must be one of {', '.join(ENSEMBLES)}, not {name!r}") from None


# ------------------------------------------------------------------------------------------- NVE


def _verlet(atoms: Atoms, settings: Coupling, rng: np.random.Generator) -> Any:
    from ase.md.verlet import VelocityVerlet

    return VelocityVerlet(atoms, timestep=settings.timestep_fs * FS)


NVE = MDEnsemble(
    "nve", _verlet, conserved=lambda dynamics, total: total, thermostat=False
)  # velocity Verlet


# -------------------------------------------------------------------------------------- Langevin


def _langevin(atoms: Atoms, settings: Coupling, rng: np.random.Generator) -> Any:
    from ase.md.langevin import Langevin

    return Langevin(
        atoms,
        timestep=settings.timestep_fs * FS,
        temperature_K=settings.temperature_K,
        friction=settings.friction_per_fs / FS,
        fixcm=False,
        rng=rng,
    )


# Its noise pushes the whole system, so no momentum stays what it was.
LANGEVIN = MDEnsemble("langevin", _langevin, conserved=None, conserves_momentum=False)


# ------------------------------------------------------------- Bussi: stochastic velocity rescaling


def _heated_dof(atoms: Atoms, name: str) -> int:
    """Degrees of freedom that a thermostat which scales momenta has to heat.

    ASE's count 3N. A molecule whose centre of mass and rotation are still has fewer, and would be
    kept too hot by 3N / (3N - 6).
    """
    from dcase.md_runs.loop.freedom import moving_dof

    n_dof = moving_dof(atoms, ensemble_named(name).conserves_momentum)
    if n_dof < 1:
        raise OptionError(f"{name} has nothing to heat: the system has no degree of freedom")
    if atoms.get_kinetic_energy() <= 1e-12:
        raise OptionError(f"{name} scales momenta, and this structure has none: let them draw")
    return n_dof


def _bussi(atoms: Atoms, settings: Coupling, rng: np.random.Generator) -> Any:
    from ase.md.bussi import Bussi

    n_dof = _heated_dof(atoms, "bussi")
    bussi = Bussi(
        atoms,
        timestep=settings.timestep_fs * FS,
        temperature_K=settings.temperature_K,
        taut=settings.taut_fs * FS,
        rng=rng,
    )
    bussi.ndof = n_dof
    bussi.target_kinetic_energy = 0.5 * KB * settings.temperature_K * n_dof
    return bussi


def _restore_bussi(dynamics: Any, state: Mapping[str, np.ndarray]) -> None:
    dynamics.transferred_energy = float(state["transferred_energy"])


# Conserved: the total energy minus the heat put in (J. Chem. Phys. 126, 014101, eq. 15).
BUSSI = MDEnsemble(
    "bussi",
    _bussi,
    conserved=lambda dynamics, total: total - dynamics.transferred_energy,
    state=lambda dynamics: {"transferred_energy": np.array(dynamics.transferred_energy)},
    restore=_restore_bussi,
)


# ------------------------------------------------------------------------------ Nose-Hoover chain


def _nose_hoover(atoms: Atoms, settings: Coupling, rng: np.random.Generator) -> Any:
    from ase.md.nose_hoover_chain import NoseHooverChainNVT

    n_dof = _heated_dof(atoms, "nose-hoover")
    if len(atoms.constraints) > 0:
        raise OptionError("nose-hoover cannot treat constrained atoms: use langevin or bussi")
    damping = settings.taut_fs * FS
    chain = NoseHooverChainNVT(
        atoms,
        timestep=settings.timestep_fs * FS,
        temperature_K=settings.temperature_K,
        tdamp=damping,
    )
    thermostat: Any = chain._thermostat
    if not hasattr(thermostat, "_num_atoms_global"):
        raise SimulationError("this ASE release changed its Nose-Hoover chain: use bussi")
    # ASE writes 3 * N wherever the number of degrees of freedom is meant.
    thermostat._num_atoms_global = n_dof / 3.0
    thermostat._Q[0] = n_dof * KB * settings.temperature_K * damping**2
    return chain


def _chain_state(dynamics: Any) -> dict[str, np.ndarray]:
    chain = dynamics._thermostat
    return {"eta": chain._eta.copy(), "p_eta": chain._p_eta.copy()}


def _restore_chain(dynamics: Any, state: Mapping[str, np.ndarray]) -> None:
    dynamics._thermostat._eta[:] = state["eta"]
    dynamics._thermostat._p_eta[:] = state["p_eta"]


NOSE_HOOVER = MDEnsemble(
    "nose-hoover",
    _nose_hoover,
    conserved=lambda dynamics, total: total + dynamics._thermostat.get_thermostat_energy(),
    state=_chain_state,
    restore=_restore_chain,
    holds_constraints=False,
    takes_forces=False,
)


EQUILIBRATION = LANGEVIN
"""What brings a start to its temperature, whatever comes after."""

ENSEMBLES: Mapping[str, MDEnsemble] = MappingProxyType(
    {record.name: record for record in (NVE, LANGEVIN, BUSSI, NOSE_HOOVER)}
)
"""All of them by name, in the order in which users see them."""
