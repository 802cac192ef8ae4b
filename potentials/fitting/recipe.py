"""Recipes: every choice of a training run in one small file, each one overridable.

A recipe is TOML with the tables ``[model]``, ``[labels]``, ``[data]``, ``[loss]``, ``[training]``
and ``[acceleration]``. The complete recipe, with all overrides, is stored in the checkpoint.
A table such as ``[architecture."gemnet-t".training]`` holds what differs for that architecture.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dcase.data.dataset import AtomicDataset
from dcase.errors import OptionError
from dcase.files import read_toml
from dcase.objective import Term
from dcase.options import check_types
from dcase.own_code import canonical, is_own, load_own, pinned
from dcase.training.settings import LIMITS, TrainSettings

FREE = (*(f"training.{name}" for name in LIMITS), "acceleration.compiled")
"""What a resume may change: limits, and how the same function is evaluated."""

RECIPE_DIR = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class ModelChoice:
    """Which network.

    Attributes:
        architecture: Registry name, or ``"FILE.py:CLASS"``, a network of the user's own.
        size: Preset.
        activation: Name of the activation, or ``"original"`` for the architecture's own.
        variant: ``"default"``, or ``"paper"``: the published implementation to the letter.
        placement: Where the activation goes: ``"published"`` (where the DC paper put IReLU) or
            ``"all"``.
        denormalize: Take BatchNorm layers out; None: yes, but not in the paper variant.
        initialization: ``"default"`` (the architecture's own) or ``"lsuv"`` (data-dependent,
            unit-variance pre-activations; see :func:`dcase.initialization.lsuv_`).
        hyper_parameters: Overrides of the preset, by name.
    """

    architecture: str = "schnet"
    size: str = "md17"
    activation: str = "irelu"
    variant: str = "default"
    placement: str = "published"
    denormalize: bool | None = None
    initialization: str = "default"
    hyper_parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class LabelChoice:
    """How labels reach the network; see :func:`dcase.rescaling.fit_label_scale`.

    ``offset`` may also be ``"isolated"`` or ``"H=-13.6,O=-2041.8"``: energies of isolated atoms
    (:mod:`dcase.potentials.fitting.lone_atoms`).
    """

    rescale: str | float = "forces"
    offset: str = "atomic"
    energy_per_atom: bool = False

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class DataChoice:
    """How training frames reach the network.

    Attributes:
        augment_rotations: Turn every frame at random, every epoch anew, for architectures that are
            not invariant to rotation (ForceNet); see
            :class:`~dcase.potentials.fitting.batches.RotatedFrames`.
        max_force: Leave out frames with a larger force component, eV/A.
        drop_outliers: Leave out frames whose labels are outliers, or whose atoms lie on top of each
            other; see :func:`dcase.data.label_check.check_labels`.
    """

    augment_rotations: bool = False
    max_force: float | None = None
    drop_outliers: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_force is not None and not self.max_force > 0:
            raise OptionError(f"the largest force must be positive, got {self.max_force:g}")


@dataclass(frozen=True)
class LossChoice:
    """Weight and loss of each term; a weight of 0 leaves a term out of training.

    The stress counts times the volume of an atom, see
    :class:`~dcase.potentials.fitting.energy_forces.EnergyForces`.

    With ``free_atoms``, forces on atoms that the data mark as held in place count neither in the
    loss nor in errors; data without such marks are not concerned.
    """

    energy_weight: float = 0.01
    forces_weight: float = 1.0
    stress_weight: float = 0.0
    energy_loss: str = "l2"
    forces_loss: str = "l2"
    stress_loss: str = "l2"
    huber_delta: float = 1.0
    free_atoms: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        self.terms()  # impossible values are an error here rather than after reading the data

    def seen(self, dataset: AtomicDataset) -> AtomicDataset:
        """The dataset as loss and errors see it: its marks of held atoms count or are gone."""
        return dataset if self.free_atoms else dataset.without_fixed()

    def terms(self) -> dict[str, Term]:
        """As terms of an objective; the stress only where it is trained on."""
        stress = Term(self.stress_weight, self.stress_loss, self.huber_delta)
        return {
            "energy": Term(self.energy_weight, self.energy_loss, self.huber_delta),
            "forces": Term(self.forces_weight, self.forces_loss, self.huber_delta),
            **({"stress": stress} if stress.weight > 0 else {}),
        }


@dataclass(frozen=True)
class Acceleration:
    """What makes training faster.

    Attributes:
        filter_table: ``filter_knots`` of architectures that have that hyper-parameter (SchNet),
            where the model's own hyper-parameters do not set it; 0: none.
        compiled: Use the compiled gradient (:mod:`dcase.potentials.kernels.training`) where there
            is one: for SchNet with a filter table, on the CPU.
    """

    filter_table: int = 128
    compiled: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        if self.filter_table < 0:
            raise OptionError(f"filter_table must not be negative, got {self.filter_table}")


@dataclass(frozen=True)
class Recipe:
    """All choices of a run."""

    name: str = "default"
    description: str = ""
    model: ModelChoice = field(default_factory=ModelChoice)
    labels: LabelChoice = field(default_factory=LabelChoice)
    data: DataChoice = field(default_factory=DataChoice)
    loss: LossChoice = field(default_factory=LossChoice)
    training: TrainSettings = field(default_factory=TrainSettings)
    acceleration: Acceleration = field(default_factory=Acceleration)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, by table."""
        tables = {}
        for name in _TABLES:
            part = getattr(self, name)
            tables[name] = {f.name: getattr(part, f.name) for f in fields(part)}
        return {"name": self.name, "description": self.description, **tables}

    def identity(self) -> dict[str, Any]:
        """What makes a run the run it is: all but how the recipe is called (see :data:`FREE`)."""
        tables = self.to_dict()
        del tables["name"], tables["description"]
        model = tables["model"]
        model["architecture"] = canonical(model["architecture"])
        model["activation"] = canonical(model["activation"])
        return tables

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """Inverse of :meth:`to_dict`; missing entries take their defaults.

        Raises:
            OptionError: For an unknown table or entry, or an impossible value.
        """
        parts: dict[str, Any] = {}
        for table, content in values.items():
            if table in ("name", "description"):
                parts[table] = str(content)
                continue
            if table not in _TABLES:
                raise OptionError(
                    f"recipe: unknown table [{table[:60]}]; known: {', '.join(_TABLES)}"
                )
            if not isinstance(content, Mapping):
                raise OptionError(f"recipe: {table} must be a table, got {content!r}")
            known = {f.name for f in fields(_TABLES[table])}
            for key in content:
                if key not in known:
                    raise OptionError(
                        f"recipe: [{table}] has no entry {key[:60]!r}{_hint(key, known)}"
                    )
            parts[table] = _TABLES[table](**content)
        return Recipe(**parts)


def _specialise(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Replace the tables ``[architecture.NAME.TABLE]`` by what they say of the chosen one."""
    special = values.pop("architecture", {})
    model = values.get("model", {})
    chosen = overrides.get("model.architecture")
    if chosen is None and isinstance(model, dict):
        chosen = model.get("architecture", ModelChoice.architecture)
    if not isinstance(special, Mapping):
        raise OptionError("recipe: [architecture] holds tables such as [architecture.cgcnn.loss]")
    if not special:
        return
    from dcase.potentials.networks.registry import get_architecture

    own = is_own(str(chosen))
    for name, tables in special.items():
        if own or get_architecture(name).name != get_architecture(str(chosen)).name:
            continue
        if not isinstance(tables, Mapping) or not all(
            isinstance(entries, Mapping) for entries in tables.values()
        ):
            raise OptionError(f"recipe: [architecture.{name}] must hold tables")
        for table, entries in tables.items():
            content = values.setdefault(table, {})
            if isinstance(content, dict):  # else from_dict says what is wrong with the file
                content.update(entries)


_TABLES: dict[str, Any] = {
    "model": ModelChoice,
    "labels": LabelChoice,
    "data": DataChoice,
    "loss": LossChoice,
    "training": TrainSettings,
    "acceleration": Acceleration,
}


def _hint(key: str, known: set[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def recipe_names() -> list[str]:
    """Recipes that come with dcase."""
    return sorted(path.stem for path in RECIPE_DIR.glob("*.toml"))


def load_recipe(name: str = "default", overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name or from a TOML file, with overrides.

    Args:
        name: One of :func:`recipe_names`, or a path to a ``.toml`` file.
        overrides: ``{"table.entry": value}``; None values are skipped. ``model.<name>`` with an
            unknown entry name is taken as a hyper-parameter of the architecture.

    Raises:
        OptionError: If there is no such recipe, it cannot be read, or a value is impossible.

    A network or activation of the user's own that the recipe names is run, and pinned: its name
    gets the digest of its file, so that the whole run, its processes and a later resume use the
    same code.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = RECIPE_DIR / f"{name}.toml"
        if not path.is_file():
            raise OptionError(
                f"no recipe {name!r}; there are: {', '.join(recipe_names())}, or give a .toml file"
            )
    values = read_toml(path, OptionError)
    values.setdefault("name", path.stem)
    _specialise(values, overrides or {})
    model_entries = {f.name for f in fields(ModelChoice)}
    for key, value in (overrides or {}).items():
        if value is None:
            continue
        table, _, entry = key.partition(".")
        content = values.setdefault(table, {})
        if table == "model" and entry not in model_entries and isinstance(content, dict):
            content = content.setdefault("hyper_parameters", {})
        if isinstance(content, dict):  # else from_dict says what is wrong with the file
            content[entry] = value
    model = values.get("model", {})
    for entry in ("architecture", "activation"):
        if isinstance(model, dict) and is_own(str(model.get(entry, ""))):
            model[entry] = pinned(model[entry])
            load_own(model[entry])
    return Recipe.from_dict(values)
