"""What there is to know of a system: units, constraint, graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dcase.dae.constraints import Distances, chain, rigid_water
from dcase.dae.trajectory_file import Trajectory
from dcase.errors import DataError, OptionError


@dataclass(frozen=True)
class System:
    """A kind of trajectory.

    Attributes:
        name: ``"pendulum"`` or ``"water"``.
        length: Unit of positions and violations.
        time: Unit of time.
        error: Unit of errors in tables.
        factor: Of a position in ``length``, to give ``error``.
        step: Time of a simulation step; the ``k`` of a prediction counts these.
        networks: Those that suit it, the default first.
    """

    name: str
    length: str
    time: str
    error: str
    factor: float
    step: float
    networks: tuple[str, ...]

    @property
    def mae(self) -> str:
        """Name of the error in files."""
        return f"mae_{self.error}"

    def constraint(self, n_nodes: int) -> Distances:
        """The paper's constraint for ``n_nodes`` nodes.

        Raises:
            OptionError: If the atoms are not whole molecules of water.
        """
        if self.name == "pendulum":
            return chain(n_nodes)
        if n_nodes % 3:
            raise OptionError(f"water has three atoms a molecule, which {n_nodes} atoms are not")
        return rigid_water(n_nodes // 3)

    def check(self, trajectory: Trajectory) -> None:
        """Refuse a trajectory that the ``k`` of a prediction would not mean the same time in.

        Raises:
            DataError: If it is of another system, or its simulation step is not :attr:`step`.
        """
        if trajectory.system != self.name:
            raise DataError(f"the data are of {trajectory.system}, not of {self.name}")
        step = trajectory.interval / trajectory.stride
        if not math.isclose(step, self.step, rel_tol=1e-6):
            flag = "interval" if self.name == "pendulum" else "timestep"
            raise DataError(
                f"the trajectory has steps of {step:g} {self.time}, predictions count steps of "
                f"{self.step:g} {self.time}: make one with `dcase dae data {self.name} --{flag} "
                f"{self.step:g}`"
            )


SYSTEMS = {
    "pendulum": System("pendulum", "m", "s", "cm", 100.0, 0.01, ("mechanical", "mimetic")),
    "water": System("water", "A", "fs", "pm", 100.0, 0.1, ("molecular", "equivariant")),
}


def system_named(name: str) -> System:
    """The system.

    Raises:
        OptionError: If there is none of this name.
    """
    if name not in SYSTEMS:
        raise OptionError(f"no such system: {name!r}; choose from {', '.join(SYSTEMS)}")
    return SYSTEMS[name]
