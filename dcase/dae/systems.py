"""What there is to know of a system: units, constraint, graph."""

from __future__ import annotations

from dataclasses import dataclass

from dcase.dae.constraints import Distances, chain, rigid_water
from dcase.errors import OptionError


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
        """The paper's constraint for ``n_nodes`` nodes."""
        if self.name == "pendulum":
            return chain(n_nodes)
        return rigid_water(n_nodes // 3)


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
