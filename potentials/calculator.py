"""The ASE calculator: ``atoms.calc = DCCalculator("aspirin_irelu.pt")``."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    CalculatorError,
    PropertyNotImplementedError,
    all_changes,
)

from dcase.derivatives import stress_voigt
from dcase.errors import DcaseError, ElectronsWarning, OptionError, PaperVariantWarning
from dcase.own_code import Code, named_code, recorded_files
from dcase.potentials.create import potential_caveats
from dcase.potentials.electrons import electrons_line
from dcase.potentials.elements import unknown_elements
from dcase.potentials.ensemble import Ensemble, load_model, model_from_document
from dcase.potentials.fitting.evaluation import choose_device
from dcase.potentials.graphs.graph import (
    COINCIDENT_A,
    AtomicGraph,
    build_graph,
    coincident_atoms,
)
from dcase.potentials.kernels.deployed import Deployed, deploy
from dcase.potentials.kernels.forms import form_line
from dcase.potentials.potential import Potential, find_checkpoint
from dcase.runs import fingerprint

DTYPES = {"float32": torch.float32, "float64": torch.float64}
FEW_ATOMS = 64
"""Of a molecule, up to which listing all pairs costs less than searching again and again."""
SPREAD = ("energy_std", "forces_std")  # results of an ensemble, besides ASE's own
PER_ATOM = ("energies", "forces", "forces_std")


class DCCalculatorError(CalculatorError, DcaseError):
    """The structure cannot be evaluated; the message says why."""


class DCCalculator(Calculator):
    """Energies, conservative forces and stress of a dcase potential, for ASE.

    Forces are ``-dE/dx`` exactly, by autograd or written out. Results: ``energy`` and
    ``free_energy`` (equal; eV), ``energies`` (eV, shape [n_atoms]), ``forces`` (eV/A, shape
    [n_atoms, 3]) and, where the cell has three vectors, ``stress`` (eV/A^3, Voigt xx, yy, zz, yz,
    xz, xy): dE/d strain over the volume of the cell as ASE counts it, vacuum included, whichever
    directions are periodic.

    An atom that is out of reach of all others has an energy, its element's offset and what the
    network gives an atom alone, and no force; so that far fragments are the sum of their parts.

    Of an ensemble these are the means over its members, and there are the standard deviations over
    them besides: ``energy_std`` (eV) and ``forces_std`` (eV/A, shape [n_atoms, 3]).

    Threads may share one: each is answered about its own atoms, one at a time (give each a
    :meth:`copy` to have them compute side by side). :attr:`results` are of the last call alone.

    Args:
        path_or_potential: A checkpoint of a potential or an ensemble (a bare name is also looked
            for among the potentials shipped with dcase; a note on stderr says so), several
            checkpoints, which make an ensemble, or a
            :class:`~dcase.potentials.potential.Potential` or
            :class:`~dcase.potentials.ensemble.Ensemble` (it is copied, never changed).
        device: ``"cpu"``, ``"cuda"``, ...; None: the CPU, or a GPU if there is one.
        dtype: ``"float32"`` (geometry and energy sums in float64 all the same) or ``"float64"``.
        skin: A; neighbours are searched to cutoff + skin and the list is reused until an atom has
            moved by half of it; of a small molecule all pairs are listed once. Results do not
            depend on it.
        allow_isolated: False: raise where an atom has no neighbour inside the cutoff.
        use_cache: As in ASE.
        optimize: Use the compiled form of the potential (:mod:`dcase.potentials.kernels.deployed`).
            None: where there is one that is the same function up to rounding (on the CPU). True:
            also where a function of the distances has to be tabulated for it, which makes SchNets
            without ``filter_knots`` faster and changes their filters and slopes by at most 1e-6 of
            the largest (:attr:`form` says by how much), and other architectures fast in float64;
            an error where there is none. False: never.
        code: Files, modules or classes that a checkpoint may use: those of networks or activations
            of your own. No checkpoint runs code that is not named here.

    Raises:
        CheckpointError: If the file is missing, damaged or foreign, or needs code that was not
            named.
        OptionError: For an unknown dtype, a device that is not there, or ``optimize=True`` where
            there is no compiled form.
    """

    implemented_properties: ClassVar[list[str]] = [  # type: ignore[misc]
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
    ]
    ignored_changes: ClassVar[set[str]] = {"initial_charges", "initial_magmoms"}  # type: ignore[misc]
    discard_results_on_any_change = True

    def __init__(
        self,
        path_or_potential: str
        | os.PathLike[str]
        | Sequence[str | os.PathLike[str]]
        | Potential
        | Ensemble,
        *,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        skin: float = 0.5,
        allow_isolated: bool = True,
        use_cache: bool = True,
        optimize: bool | None = None,
        code: Code | Sequence[Code] | None = None,
    ):
        super().__init__()
        self._lock = threading.RLock()
        if dtype not in DTYPES:
            raise OptionError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
        if not skin >= 0:
            raise OptionError(f"skin must not be negative, got {skin}")
        self.device = choose_device(None if device is None else str(device))
        self.dtype = dtype
        self.skin = float(skin)
        self.allow_isolated = allow_isolated
        self.use_cache = use_cache
        self.optimize = optimize
        if isinstance(path_or_potential, Potential | Ensemble):
            self.model_path = None
            potential = _copy(path_or_potential)
        else:
            self.model_path = ", ".join(map(_located, _as_list(path_or_potential)))
            potential = load_model(path_or_potential, code=code)
        one = potential.first if isinstance(potential, Ensemble) else potential
        if not one.quantity.is_energy:
            raise OptionError(
                f"the potential predicts {one.quantity}, which has no forces; a calculator "
                "needs one that predicts energies"
            )
        if caveats := potential_caveats(one):
            warnings.warn(caveats, PaperVariantWarning, stacklevel=2)
        self._adopt(potential)

    def _adopt(self, potential: Potential | Ensemble) -> None:
        # Potential or Ensemble: who asks for more than they share knows which one was given.
        self.potential: Any = potential.with_dtype(DTYPES[self.dtype]).to(self.device).eval()
        self.potential.requires_grad_(False)
        self._list: NeighbourList | None = None
        self._told_electrons = False
        self.deployed = self._deploy()
        if isinstance(potential, Ensemble):
            self.implemented_properties = [*type(self).implemented_properties, *SPREAD]  # type: ignore[misc]

    def _deploy(self) -> Deployed | None:
        self._why_plain = ""
        if self.optimize is False:
            self._why_plain = "as asked"
            return None
        try:
            return deploy(self.potential, tabulate=bool(self.optimize))
        except OptionError as error:
            if self.optimize:
                raise OptionError(f"optimize=True: {error}") from error
            self._why_plain = str(error)
            return None

    @property
    def form(self) -> str:
        """What evaluates the potential: the compiled form, or PyTorch and why."""
        deployed = self.deployed
        return form_line(deployed is not None, deployed.note if deployed else self._why_plain)

    # -------------------------------------------------------------- ASE contract

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute everything cheap at once, and the stress if it is asked for or 3D periodic.

        Raises:
            DCCalculatorError: For unknown elements, NaN positions, atoms in the same place, no
                atoms, and isolated atoms if they are not allowed.
            PropertyNotImplementedError: For the stress without three lattice vectors.
        """
        with self._lock:
            self._calculate(atoms, properties)

    def _calculate(self, atoms: Atoms | None, properties: list[str] | None) -> None:
        # Instead of Calculator.calculate, which copies once more and looks for a directory.
        self.results = {}  # first: who sees these atoms does not see the results of others
        if atoms is not None and (self.atoms is None or self.check_state(atoms)):
            self.atoms = atoms.copy()
        atoms = self.atoms
        assert atoms is not None
        stress = bool(atoms.pbc.all()) or "stress" in (properties or [])
        if "stress" in (properties or []) and _has_no_volume(atoms):
            raise PropertyNotImplementedError(_NO_VOLUME)
        with torch.inference_mode(False):  # its tensors could not be differentiated
            neighbours = self.neighbour_list(atoms)
            result = self._compiled(atoms, neighbours, stress) or self._plain(
                atoms, neighbours, stress
            )
        energy = float(result.pop("energy"))
        if not (np.isfinite(energy) and np.isfinite(result["forces"]).all()):
            raise DCCalculatorError(
                "the potential gave a NaN or infinite energy or force; are atoms on top of each "
                "other?"
            )
        self.results = {"energy": energy, "free_energy": energy, **result}
        if "energy_std" in result:
            self.results["energy_std"] = float(result["energy_std"])

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, to the last bit.

        ASE's own takes longer than the compiled form of a small molecule.
        """
        known = self.atoms
        if known is None or len(known) != len(atoms):
            return list(all_changes)
        pairs = {
            "positions": (known.positions, atoms.positions),
            "numbers": (known.numbers, atoms.numbers),
            "cell": (known.cell.array, atoms.cell.array),
            "pbc": (known.pbc, atoms.pbc),
        }
        return [name for name, (old, new) in pairs.items() if (old != new).any()]

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """As ASE, of these atoms also where other threads ask for others at the same time.

        Where there is no stress, it says why.
        """
        if name == "stress" and atoms is not None and _has_no_volume(atoms):
            raise PropertyNotImplementedError(_NO_VOLUME)
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def calculate_properties(self, atoms: Atoms, properties: list[str]) -> Any:
        """As ASE; likewise."""
        with self._lock:
            return super().calculate_properties(atoms, properties)

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """What a trajectory stores about the calculator."""
        return {
            "model": self.model_path or "in memory",
            "dtype": self.dtype,
            "potential": self.potential.describe(),
        }

    def fingerprint(self) -> str:
        """Digest of the potential, and of the class where a subclass may add to it.

        The dtype is not part of it, nor anything else that does not change the function.
        """
        kind = type(self)
        return fingerprint(f"{kind.__module__}.{kind.__qualname__}", self.potential.fingerprint())

    def copy(self) -> DCCalculator:
        """An independent calculator with the same potential."""
        other = DCCalculator(
            self.potential,
            device=self.device,
            dtype=self.dtype,
            skin=self.skin,
            allow_isolated=self.allow_isolated,
            use_cache=self.use_cache,
            optimize=self.optimize,
        )
        other.model_path = self.model_path
        return other

    def __deepcopy__(self, memo: dict) -> DCCalculator:
        return self.copy()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["potential"] = self.potential.to_document()
        state["device"] = str(self.device)
        state["_list"] = state["_lock"] = None
        state["deployed"] = None  # made anew where it is unpickled
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self.device = choose_device(state["device"])
        # A pickle runs code anyway; the files it was made with are found where they were.
        with named_code(recorded_files(state["potential"])):
            self._adopt(model_from_document(state["potential"], "pickled calculator"))

    @property
    def name(self) -> str:
        """Lower-case class name, as ASE has it."""
        return "dccalculator"

    # ------------------------------------------------------------------- graphs

    def forget(self) -> None:
        """Drop results and pairs, so that what follows does not depend on what went before."""
        with self._lock:
            self.reset()
            self._list = None

    def neighbour_list(self, atoms: Atoms) -> NeighbourList:
        """Pairs up to the skin, searched for anew only when they have to be.

        Raises:
            DCCalculatorError: Without atoms, with positions that are no numbers, or with elements
                that the potential does not know.
        """
        found = self._list = self.search(atoms, self._list)
        return found  # not what another thread may have put there since

    def search(self, atoms: Atoms, known: NeighbourList | None = None) -> NeighbourList:
        """As :meth:`neighbour_list`, but ``known`` is the list that may still hold."""
        if len(atoms) == 0:
            raise DCCalculatorError("there are no atoms")
        finite = np.isfinite(atoms.positions).all(axis=1)
        if not finite.all():
            raise DCCalculatorError(
                f"the position of atom {int(np.argmin(finite))} is NaN or infinite"
            )
        if known is not None and known.covers(atoms):
            return known
        self._check_elements(atoms)
        if not self._told_electrons and (line := electrons_line(self.potential, atoms)):
            self._told_electrons = True
            warnings.warn(line, ElectronsWarning, stacklevel=2)
        return NeighbourList(atoms, self.potential.cutoff, self.skin, self.device)

    def _plain(self, atoms: Atoms, neighbours: NeighbourList, stress: bool) -> dict[str, Any]:
        """Results by name, by PyTorch and autograd."""
        graph = neighbours.graph(atoms)
        if stress and graph.cells is None:  # nothing is periodic, but there is a volume
            cells = graph.positions.new_tensor(atoms.cell.array).reshape(1, 3, 3)
            graph = replace(graph, cells=cells)
        r = graph.vectors()
        if bool(((r * r).sum(dim=1) < COINCIDENT_A**2).any()):
            self._refuse_coincident(atoms, neighbours)
        if not self.allow_isolated:
            # Counted from the pairs inside the cutoff, not inside the skin.
            counts = torch.bincount(graph.pairs.flatten(), minlength=len(atoms))
            self._check_isolated(atoms, counts.cpu().numpy())
        return {
            name: value.cpu().numpy() if name in PER_ATOM else value[0].cpu().numpy()
            for name, value in self.potential(graph, stress=stress).items()
        }

    def _compiled(self, atoms: Atoms, neighbours: NeighbourList, stress: bool) -> dict[str, Any]:
        """The same of the compiled form; empty where there is none."""
        if self.deployed is None:
            return {}
        found = self.deployed(atoms.numbers, atoms.positions, neighbours.pairs, neighbours.offsets)
        if found.closest < COINCIDENT_A:
            self._refuse_coincident(atoms, neighbours)
        if not self.allow_isolated:
            self._check_isolated(atoms, found.neighbours)
        result: dict[str, Any] = {
            "energy": found.energies.sum(axis=1).mean(),
            "energies": found.energies.mean(axis=0),
            "forces": found.forces.mean(axis=0),
        }
        if stress:
            cells = torch.as_tensor(atoms.cell.array).reshape(1, 3, 3)
            virial = torch.as_tensor(found.virial.mean(axis=0)).reshape(1, 3, 3)
            result["stress"] = stress_voigt(virial, cells)[0].numpy()
        if isinstance(self.potential, Ensemble):
            result["energy_std"] = found.energies.sum(axis=1).std(ddof=1)
            result["forces_std"] = found.forces.std(axis=0, ddof=1)
        return result

    def _refuse_coincident(self, atoms: Atoms, neighbours: NeighbourList) -> None:
        which = coincident_atoms(atoms.positions, neighbours.pairs, neighbours.offsets)
        raise DCCalculatorError(f"{which}: no force can be told there")

    def _check_isolated(self, atoms: Atoms, neighbours: np.ndarray) -> None:
        if len(atoms) > 1 and not neighbours.all():
            lonely = int(np.argmin(neighbours))
            raise DCCalculatorError(
                f"atom {lonely} ({atoms.symbols[lonely]}) has no neighbour within the cutoff "
                f"of {self.potential.cutoff} A: did the system fly apart, or are the positions "
                "not in Angstrom? (allow_isolated=True, the default, evaluates it all the same)"
            )

    def _check_elements(self, atoms: Atoms) -> None:
        if trouble := unknown_elements(atoms.numbers, self.potential.elements):
            raise DCCalculatorError(trouble)


class NeighbourList:
    """Pairs within cutoff + skin, valid while no two atoms can have come closer by the skin.

    Valid as long as every atom is within skin/2 of where it was *as given* (a wrapped atom has
    moved by a lattice vector and triggers a rebuild), and species, cell and pbc are the same.
    Of a small molecule all pairs are listed, and valid wherever its atoms go.

    Attributes:
        positions: At which the pairs were searched for, A, shape [n_atoms, 3].
        limit: (skin/2)^2, A^2; infinite where all pairs are listed.
        pairs: Half list, int64, shape [2, n_pairs].
        offsets: Vectors between the cells of a pair's atoms, A, shape [n_pairs, 3], or None.
    """

    def __init__(self, atoms: Atoms, cutoff: float, skin: float, device: torch.device):
        self.numbers = atoms.numbers.copy()
        self.positions = atoms.positions.copy()
        self.cell = atoms.cell.array.copy()
        self.pbc = atoms.pbc.copy()
        everything = len(atoms) <= FEW_ATOMS and not self.pbc.any()
        self.cutoff, self.limit = cutoff, np.inf if everything else (0.5 * skin) ** 2
        reach = np.inf if everything else cutoff + skin
        wide = build_graph(atoms.numbers, atoms.positions, reach, self.cell, self.pbc)
        self.pairs = wide.pairs.numpy()
        self.offsets = None if wide.shifts is None else wide.shifts.numpy() @ self.cell
        self.wide = wide.to(device)

    def covers(self, atoms: Atoms) -> bool:
        """Whether the pairs hold for ``atoms`` as they are now."""
        if len(atoms) != len(self.numbers) or (atoms.numbers != self.numbers).any():
            return False
        if (atoms.pbc != self.pbc).any():
            return False
        if self.pbc.any() and (atoms.cell.array != self.cell).any():
            return False
        moved = ((atoms.positions - self.positions) ** 2).sum(axis=1)
        return bool(moved.max() < self.limit)

    def graph(self, atoms: Atoms) -> AtomicGraph:
        """The pairs inside the cutoff now: those that a fresh search finds."""
        positions = torch.as_tensor(
            atoms.positions, dtype=torch.float64, device=self.wide.positions.device
        )
        wide = replace(self.wide, positions=positions)
        r = wide.vectors()
        inside = (r * r).sum(dim=1) < self.cutoff * self.cutoff
        return replace(
            wide,
            pairs=wide.pairs[:, inside],
            shifts=None if wide.shifts is None else wide.shifts[inside],
        )


_NO_VOLUME = (
    "the stress is dE/d strain over the volume of the cell, which needs three lattice vectors: "
    "give the directions that are not periodic a vector, as with atoms.center(vacuum=10, axis=2)"
)


def _has_no_volume(atoms: Atoms) -> bool:
    return atoms.cell.rank < 3  # as ASE's own calculators and filters ask


def _copy(potential: Potential | Ensemble) -> Potential | Ensemble:
    return model_from_document(potential.to_document(), "potential")


def _as_list(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Any]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _located(path: str | os.PathLike[str]) -> str:
    """The file that is read; a note on stderr if it is the one shipped with dcase."""
    file, shipped = find_checkpoint(path)
    if shipped:
        print(
            f"dcase: no {Path(path).name} here, using the one shipped with dcase ({file})",
            file=sys.stderr,
        )
    return str(file)
