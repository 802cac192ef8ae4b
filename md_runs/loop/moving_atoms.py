"""Atoms in motion: steps of an integrator, one by one or many at a time, and what they come to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorError

from dcase.data.held import restraint_energy
from dcase.errors import DcaseError
from dcase.md_runs.loop.constrain import constrain
from dcase.md_runs.loop.ensembles import EQUILIBRATION, Motion
from dcase.md_runs.loop.freedom import hold_as_given
from dcase.md_runs.loop.integrators import begin_motion
from dcase.md_runs.loop.mechanics import degrees_of_freedom
from dcase.md_runs.loop.mechanics import temperature as kinetic_temperature
from dcase.md_runs.loop.uncertainty import UncertaintyWatch
from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.md_runs.settings import MDSettings

if TYPE_CHECKING:
    from dcase.md_runs.loop.compiled_blocks import Block, VerletBlocks
    from dcase.md_runs.loop.gpu_blocks import GraphBlocks


class MovingAtoms:
    """The atoms of a run, with all that a step needs; no files.

    Args:
        atoms: The structure given, with a calculator; a copy is moved.
        settings: What to do.
        tell: Called with events, one line each.

    Attributes:
        given: The structure given.
        atoms: The copy that moves.
        held: Bonds of fixed length; None: none.
        n_dof: Degrees of freedom of production.
        step: Steps done; negative in the equilibration.
        production: Whether the equilibration is over.
        motion: The integrator.
        blocks: A loop of ours in its place, where there is one.
        forces: At the current positions, eV/A, if known.
        energies: Potential and kinetic, eV, of the current step.
        last_good: Positions and momenta of the last step with finite numbers.
        uncertainty: Of an ensemble of potentials.
    """

    def __init__(
        self, atoms: Atoms, settings: MDSettings, tell: Callable[[str], None] | None = None
    ) -> None:
        self.given = atoms
        self.atoms: Atoms = atoms.copy()
        self.atoms.calc = atoms.calc
        # From the structure given, also on resume, so that the lengths are the same to the last bit
        self.held = constrain(self.atoms, settings.constrain)
        if self.held is None:
            hold_as_given(self.atoms)
        self.settings = settings
        self.tell = tell
        self.n_dof = degrees_of_freedom(self.atoms, settings.ensemble)
        self._equilibration_dof = degrees_of_freedom(self.atoms, EQUILIBRATION.name)
        self.watch = BlowUpWatch(atoms, settings.bond_stretch_A, settings.temperature_limit_K)
        # Forces are the gradient of the free energy, where that differs from the energy.
        self.free_energy = "free_energy" in getattr(atoms.calc, "implemented_properties", ())
        self.rng = np.random.default_rng(settings.seed)
        self.step, self.production = 0, False
        self.motion: Motion | None = None
        self.blocks: VerletBlocks | GraphBlocks | None = None
        self.forces: np.ndarray | None = None
        self.energies = (np.nan, np.nan)
        self.last_good = (self.atoms.get_positions(), self.atoms.get_momenta())
        self.uncertainty: UncertaintyWatch | None = None

    @property
    def moving_dof(self) -> int:
        """Degrees of freedom that move now: the equilibration moves all that nothing holds."""
        return self.n_dof if self.production else self._equilibration_dof

    def begin_phase(self, ensemble: str) -> None:
        """The integrator, and the compiled loop for calculators with a compiled potential."""
        self.motion = begin_motion(self.atoms, self.settings, self.rng, ensemble=ensemble)
        self.blocks = None
        if hasattr(self.atoms.calc, "deployed"):
            # They import torch, which simulations with other calculators do without.
            from dcase.md_runs.loop.compiled_blocks import verlet_blocks
            from dcase.md_runs.loop.gpu_blocks import graph_blocks

            what = (self.atoms, self.settings.timestep_fs, self.watch, self.moving_dof)
            dynamics, uncertain = self.motion.dynamics, self.uncertainty
            most = np.inf if uncertain is None else uncertain.stops_beyond
            self.blocks = verlet_blocks(
                *what, dynamics=dynamics, most_uncertain=most
            ) or graph_blocks(*what, dynamics=dynamics)

    def watch_uncertainty(self) -> None:
        """From now on look at the spread of an ensemble's forces."""
        self.uncertainty = UncertaintyWatch(self.given, self.settings)

    def step_once(self) -> tuple[str, bool]:
        """One step of ASE's integrator.

        Returns:
            What went wrong, or "", and whether the step has been measured.
        """
        try:
            # Overflow is what a blow-up looks like; it is noticed and named below.
            with np.errstate(over="ignore", invalid="ignore"):
                assert self.motion is not None
                self.forces = self.motion.step(self.forces)
                self.step += 1
                return self.look(), True
        except (DcaseError, CalculatorError) as error:
            # A potential that refuses a structure (atoms flown apart, on top of each other).
            self.step += 1
            return (str(error).splitlines() or ["the potential refused"])[0], False
        except Exception:
            if np.isfinite(self.atoms.get_positions()).all():
                raise
            self.step += 1
            return "positions are not finite numbers", False

    def step_block(self, steps: int) -> Block | None:
        """Up to so many steps by the compiled loop; None leaves the next one to ASE's.

        That happens where there is no such loop, for the first step after a checkpoint, before
        which no forces are known, and for a step that looks like a blow-up or is too uncertain.
        """
        if self.blocks is None or self.forces is None:
            return None
        atoms = self.atoms
        block = self.blocks.advance(atoms.positions, atoms.get_momenta(), self.forces, steps)
        if not len(block):
            return None
        if self.uncertainty is not None:
            assert block.uncertainties is not None
            each = zip(block.uncertainties.tolist(), block.positions, strict=True)
            for step, (uncertainty, where) in enumerate(each, self.step + 1):
                self.uncertainty.now = uncertainty
                self.look_at_uncertainty(step, where)
        self.step += len(block)
        self.forces = block.forces
        self.energies = (float(block.energies[-1, 0]), float(block.energies[-1, 1]))
        atoms.set_positions(block.positions[-1])
        atoms.set_momenta(block.momenta[-1])
        self.last_good = (block.positions[-1], block.momenta[-1])
        return block

    def look(self) -> str:
        """Measure this step, and compare it with what is physical."""
        self.measure()
        potential, kinetic = self.energies
        positions = self.atoms.get_positions()
        heat = kinetic_temperature(kinetic, self.moving_dof)
        trouble = self.watch.look(positions, potential, kinetic, heat)
        if np.isfinite(positions).all() and np.isfinite(kinetic):
            self.last_good = (positions, self.atoms.get_momenta())
        return trouble or self.look_at_uncertainty(self.step, positions)

    def look_at_uncertainty(self, step: int, positions: np.ndarray) -> str:
        """Count the uncertainty of a step; returns why the run must stop there, or ""."""
        watch = self.uncertainty
        if watch is None:
            return ""
        first = watch.look(step, positions, production=self.production)
        if first and not watch.stops and self.tell is not None:
            self.tell(f"{watch.exceeded} at step {step}; such steps are flagged")
        return watch.trouble

    def measure(self) -> None:
        """Potential and kinetic energy of this step, eV."""
        self.energies = (self.potential_energy(), float(self.atoms.get_kinetic_energy()))
        if self.uncertainty is not None:
            self.uncertainty.measure(self.atoms.calc)

    def potential_energy(self) -> float:
        """Potential energy whose gradient the forces are, that of restraints included, eV.

        Taken from the calculator's results where these are of exactly these positions.
        """
        calculator: Any = self.atoms.calc
        results = getattr(calculator, "results", None) or {}
        name = "free_energy" if self.free_energy else "energy"
        seen: Any = getattr(calculator, "atoms", None)
        known = name in results and seen is not None
        known = known and np.array_equal(seen.positions, self.atoms.positions)
        if known and calculator.results is results:  # no other thread has come in between
            return float(results[name]) + restraint_energy(self.atoms)
        return float(self.atoms.get_potential_energy(force_consistent=self.free_energy))

    def reset_calculator(self) -> None:
        """Let the calculator compute the next step as if it were its first."""
        self.forces = None
        if self.blocks is not None:
            self.blocks.forget()
        calculator: Any = self.atoms.calc
        forget = getattr(calculator, "forget", None) or getattr(calculator, "reset", None)
        if forget is not None:
            forget()
