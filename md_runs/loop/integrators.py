"""Integrators made from settings, and random numbers as plain values."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from ase import Atoms

from dcase.md_runs.loop.ensembles import Motion, ensemble_named
from dcase.md_runs.settings import MDSettings


def begin_motion(
    atoms: Atoms, settings: MDSettings, rng: np.random.Generator, *, ensemble: str | None = None
) -> Motion:
    """An integrator for ``atoms``, with its ensemble.

    Args:
        atoms: With calculator and momenta; moved by the integrator.
        settings: Time step, temperature, coupling.
        rng: Of the stochastic thermostats.
        ensemble: Instead of that of ``settings`` (the equilibration has one of its own).

    Raises:
        OptionError: If the thermostat cannot treat this system.
    """
    record = ensemble_named(ensemble or settings.ensemble)
    return Motion(record, record.make(atoms, settings, rng))


def make_dynamics(
    atoms: Atoms, settings: MDSettings, rng: np.random.Generator, *, ensemble: str | None = None
) -> Any:
    """The integrator of ASE's alone; see :func:`begin_motion`."""
    return begin_motion(atoms, settings, rng, ensemble=ensemble).dynamics


def rng_state(rng: np.random.Generator) -> np.ndarray:
    """The state of a generator as JSON, for a checkpoint."""
    return np.array(json.dumps(rng.bit_generator.state, default=_plain))


def restore_rng(text: str) -> np.random.Generator:
    """A generator that goes on where the stored one stopped."""
    rng = np.random.default_rng()
    rng.bit_generator.state = json.loads(text)
    return rng


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else int(value)
