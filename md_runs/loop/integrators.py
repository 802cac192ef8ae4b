"""ASE's integrators with the right degrees of freedom, and their state as plain values."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from ase import Atoms
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet

from dcase.errors import OptionError, SimulationError
from dcase.md_runs.loop.mechanics import degrees_of_freedom
from dcase.md_runs.settings import MDSettings
from dcase.units import FS, KB


def make_dynamics(
    atoms: Atoms, settings: MDSettings, rng: np.random.Generator, *, ensemble: str | None = None
) -> Any:
    """An ASE integrator for ``atoms``.

    ASE's Bussi and Nose-Hoover chain count 3N degrees of freedom. A molecule whose centre of mass
    and rotation are still has fewer, and would be kept too hot by 3N / (3N - 6); the right number
    is put in here.

    Args:
        atoms: With calculator and momenta; moved by the integrator.
        settings: Time step, temperature, coupling.
        rng: Of the stochastic thermostats.
        ensemble: Instead of that of ``settings`` (the equilibration uses ``langevin``).

    Raises:
        OptionError: If the thermostat cannot treat this system.
    """
    ensemble = ensemble or settings.ensemble
    dt = settings.timestep_fs * FS
    if ensemble == "nve":
        return VelocityVerlet(atoms, timestep=dt)
    if ensemble == "langevin":
        return Langevin(
            atoms,
            timestep=dt,
            temperature_K=settings.temperature_K,
            friction=settings.friction_per_fs / FS,
            fixcm=False,
            rng=rng,
        )
    n_dof = degrees_of_freedom(atoms, ensemble)
    if n_dof < 1:
        raise OptionError(f"{ensemble} has nothing to heat: the system has no degree of freedom")
    if atoms.get_kinetic_energy() <= 1e-12:
        raise OptionError(f"{ensemble} scales momenta, and this structure has none: let them draw")
    thermal = KB * settings.temperature_K
    if ensemble == "bussi":
        bussi = Bussi(
            atoms,
            timestep=dt,
            temperature_K=settings.temperature_K,
            taut=settings.taut_fs * FS,
            rng=rng,
        )
        bussi.ndof = n_dof
        bussi.target_kinetic_energy = 0.5 * thermal * n_dof
        return bussi
    if len(atoms.constraints) > 0:
        raise OptionError("nose-hoover cannot treat constrained atoms: use langevin or bussi")
    tdamp = settings.taut_fs * FS
    chain = NoseHooverChainNVT(
        atoms, timestep=dt, temperature_K=settings.temperature_K, tdamp=tdamp
    )
    thermostat: Any = chain._thermostat
    if not hasattr(thermostat, "_num_atoms_global"):
        raise SimulationError("this ASE release changed its Nose-Hoover chain: use bussi")
    # ASE writes 3 * N wherever the number of degrees of freedom is meant.
    thermostat._num_atoms_global = n_dof / 3.0
    thermostat._Q[0] = n_dof * thermal * tdamp**2
    return chain


def conserved_energy(dynamics: Any, total_energy: Any) -> Any:
    """What the integrator conserves, of one total energy or several, eV; NaN under Langevin.

    Bussi: total energy minus the heat put in (J. Chem. Phys. 126, 014101, eq. 15). Nose-Hoover:
    total energy plus that of the chain.
    """
    if isinstance(dynamics, Bussi):
        return total_energy - dynamics.transferred_energy
    if isinstance(dynamics, NoseHooverChainNVT):
        return total_energy + dynamics._thermostat.get_thermostat_energy()
    if isinstance(dynamics, VelocityVerlet):
        return total_energy
    return float("nan")


def get_state(dynamics: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Everything but positions and momenta that the next step depends on, as plain arrays."""
    state: dict[str, np.ndarray] = {
        "rng": np.array(json.dumps(rng.bit_generator.state, default=_plain))
    }
    if isinstance(dynamics, Bussi):
        state["transferred_energy"] = np.array(dynamics.transferred_energy)
    if isinstance(dynamics, NoseHooverChainNVT):
        state["eta"] = dynamics._thermostat._eta.copy()
        state["p_eta"] = dynamics._thermostat._p_eta.copy()
    return state


def restore_rng(text: str) -> np.random.Generator:
    """A generator that goes on where the stored one stopped."""
    rng = np.random.default_rng()
    rng.bit_generator.state = json.loads(text)
    return rng


def restore_thermostat(dynamics: Any, state: dict[str, np.ndarray]) -> None:
    """Put back the thermostat variables stored by ``get_state``."""
    if isinstance(dynamics, Bussi):
        dynamics.transferred_energy = float(state["transferred_energy"])
    if isinstance(dynamics, NoseHooverChainNVT):
        dynamics._thermostat._eta[:] = state["eta"]
        dynamics._thermostat._p_eta[:] = state["p_eta"]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else int(value)
