"""Samples of a simulation against statistical mechanics, by ``physical_validation``."""

from __future__ import annotations

from typing import Any

import numpy as np

from dcase.units import KB


def samples(
    kinetic: Any,
    potential: Any = None,
    *,
    n_atoms: int,
    removed: int = 0,
    temperature_K: float,
    every_fs: float = 1.0,
) -> Any:
    """Energies of a canonical run as ``physical_validation`` wants them.

    Args:
        kinetic: eV, shape [n].
        potential: eV, shape [n].
        n_atoms: Number of atoms.
        removed: Degrees of freedom that do not move: of the centre of mass, then of the rotation.
        temperature_K: K.
        every_fs: Time between two of them, fs.
    """
    import physical_validation as pv

    observed = {"kinetic_energy": np.asarray(kinetic)}
    if potential is not None:
        observed["potential_energy"] = np.asarray(potential)
        observed["total_energy"] = observed["kinetic_energy"] + observed["potential_energy"]
    return pv.data.SimulationData(
        units=pv.data.UnitData(
            kb=KB,
            energy_str="eV",
            energy_conversion=96.485,
            length_str="A",
            length_conversion=0.1,
            volume_str="A^3",
            volume_conversion=1e-3,
            temperature_str="K",
            temperature_conversion=1.0,
            pressure_str="eV/A^3",
            pressure_conversion=1.602e6,
            time_str="fs",
            time_conversion=1e-3,
        ),
        ensemble=pv.data.EnsembleData("NVT", natoms=n_atoms, volume=1.0, temperature=temperature_K),
        system=pv.data.SystemData(
            natoms=n_atoms,
            nconstraints=0,
            ndof_reduction_tra=min(removed, 3),
            ndof_reduction_rot=max(removed - 3, 0),
        ),
        observables=pv.data.ObservableData(**observed),
        dt=every_fs,
    )


def assert_canonical(one: Any, other: Any, *, independent: bool = False) -> None:
    """Of two simulations that differ in temperature.

    The kinetic energies are distributed as they should be at each, and the logarithm of the ratio
    of the potential energies' distributions has the slope ``1/kT' - 1/kT``, whatever the potential.

    Args:
        one: From :func:`samples`.
        other: Likewise.
        independent: No two samples know of each other.
    """
    import physical_validation as pv

    known = {"data_is_uncorrelated": independent, "verbosity": 0}
    for data in (one, other):
        assert pv.kinetic_energy.distribution(data, strict=True, **known) > 1e-3
    for quantiles in pv.ensemble.check(one, other, **known):
        assert quantiles < 3.5
